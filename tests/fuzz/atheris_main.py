"""Coverage-guided fuzzing of one target; optional, in an environment of its own.

python3 -m venv /tmp/fuzz && /tmp/fuzz/bin/pip install atheris numpy msgspec
PYTHONPATH=. /tmp/fuzz/bin/python tests/fuzz/atheris_main.py codecs -runs=1000000 -max_len=4096

Everything after the target's name goes to libFuzzer. A finding is written to `crash-...` in the current folder.
"""

import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]

with atheris.instrument_imports(include=["edge_runtime"]):
    from tests.fuzz.targets import SEEDS, TARGETS


def main() -> None:
    """Fuzz the target that the first argument names, starting from its seeds."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"expected one of {', '.join(TARGETS)}")
    name = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as corpus:
        for index, seed in enumerate(SEEDS[name]):
            Path(corpus, str(index)).write_bytes(seed)
        atheris.Setup([*sys.argv, corpus], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
