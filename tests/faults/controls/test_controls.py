"""The suite can fail: with a guard taken out of the product, the tests that watch it go red.

Here the real product is weakened and the real tests are run. The controls of the disk's syncs and of a promise before
the commit stand beside what they control: `test_missing_syncs_are_noticed` and
`test_a_promise_before_the_commit_is_noticed`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import patient

ROOT = Path(__file__).resolve().parents[3]
CONTROLS = [
    pytest.param(
        "no_signature_check",
        "tests/faults/slots/test_bad_installs.py::test_no_changed_bundle_or_signature_ever_gets_in",
        id="signatures are not checked",
    ),
    pytest.param(
        "early_release",
        "tests/unit/delivery/test_outbox.py::test_a_reading_is_released_by_the_acknowledgement_and_not_before",
        id="a reading is acknowledged when its prediction is sent",
    ),
]


@pytest.mark.parametrize(("weakness", "test"), CONTROLS)
def test_a_weakened_product_is_noticed(weakness: str, test: str) -> None:
    """The named tests pass with the product as it is, in this same run, and fail with the weakened one."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            f"tests.faults.controls.{weakness}",
            "-p",
            "no:cacheprovider",
            test,
        ],
        cwd=ROOT,
        env=os.environ | {"EDGE_BAD_INSTALLS": "60", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(120),
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout[-3000:]
    assert "assert" in done.stdout, "it failed for another reason than what it asserts"
