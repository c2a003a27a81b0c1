import os
import time
import tracemalloc
from pathlib import Path

import pytest

from edge_runtime.bundle.onnx_file import DEFAULT_LIMITS
from edge_runtime.bundle.open import check_bundle, open_bundle
from edge_runtime.errors import BundleError
from tests.support.hostile_bundles import CASES

SECONDS = 5.0


@pytest.mark.parametrize("name", CASES)
def test_every_hostile_file_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    """A file made to do harm is refused quickly, in one printable line that names it and what is wrong with it."""
    path = tmp_path / "model.onnx"
    path.write_bytes(CASES[name].build())
    started = time.process_time()
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    spent = time.process_time() - started
    message = str(caught.value)
    assert message.startswith(str(path))
    assert CASES[name].words in message
    assert message.isprintable()
    assert len(message) < 1000
    assert spent < SECONDS


def test_there_are_at_least_a_hundred_of_them() -> None:
    """The list of named hostile files only grows."""
    assert len(CASES) >= 200


def test_refusing_them_all_leaves_memory_as_it_was() -> None:
    """After the second round through the list the process is no larger than after the first."""
    small = [data for case in CASES.values() if len(data := case.build()) < 100_000]

    def refuse_all() -> int:
        for data in small:
            with pytest.raises(BundleError):
                check_bundle(Path("model.onnx"), data)
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    first = refuse_all()
    last = [refuse_all() for _ in range(4)][-1]
    assert last - first < 8 * 1024 * 1024


def test_no_file_over_the_limit_is_kept_in_memory(tmp_path: Path) -> None:
    """The size is looked at before the first byte is read."""
    path = tmp_path / "sparse.onnx"
    with path.open("wb") as file:
        file.truncate(DEFAULT_LIMITS.max_bytes + 1)
    tracemalloc.start()  # the peak of the process would show nothing behind a test that needed more
    try:
        with pytest.raises(BundleError, match="expected at most"):
            open_bundle(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
