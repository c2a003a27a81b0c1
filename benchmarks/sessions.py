"""Loading models: from the bundle and from its optimised copy (`edge_runtime/bundle/optimised_copy.py`), in turns.

CPU time of the process, since a start waits for nothing else; each load is a process of its own. `make bench` takes
the large models of `large_models.py`; `python -m benchmarks.sessions [--forms] BUNDLE...` takes any bundles, and with
`--forms` compares the ways in which onnxruntime can keep an optimised model.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from benchmarks import process
from benchmarks.large_models import write_large
from benchmarks.results import Results
from benchmarks.targets import script

SECONDS = 60.0
TURNS = 5
BUNDLE, COPY = "from the bundle", "from its copy"
WAYS = ((BUNDLE, "never"), (COPY, "always"))
FORMS = ("bundle, bytes", "ONNX, bytes", "ONNX, path", "ORT, path", "ORT, bytes used directly")
LOAD = "{}, loading, CPU ms"
START = "{}, start to first answer, CPU ms"
RSS = "{}, memory taken, MiB"


def measure(folder: Path, results: Results) -> None:
    """Every large model both ways, after its copy was made."""
    for name, bundle in write_large(folder):
        _load_both(folder, name, bundle, results)


def _load_both(folder: Path, name: str, bundle: Path, results: Results) -> None:
    _run(folder, "load_model", bundle, "make")
    for _ in range(TURNS):
        for target, way in WAYS:
            load_s, start_s, taken = _run(folder, "load_model", bundle, way)
            results.add(LOAD.format(name), target, load_s * 1e3)
            results.add(START.format(name), target, start_s * 1e3)
            results.add(RSS.format(name), target, taken / 2**20)


def _compare_forms(folder: Path, name: str, bundle: Path, results: Results) -> None:
    for form in FORMS:
        _run(folder, "load_form", bundle, folder, form)  # which makes the form
    for _ in range(TURNS):
        for form in FORMS:
            load_s, taken = _run(folder, "load_form", bundle, folder, form)
            results.add(LOAD.format(name), form, load_s * 1e3)
            results.add(RSS.format(name), form, taken / 2**20)


def _run(folder: Path, peer: str, *words: object) -> list[float]:
    with script(peer, *map(str, words), folder=folder, core=process.cores()[1]) as running:
        if running.wait(SECONDS):
            running.check()
        return [float(word) for word in running.output().splitlines()[-1].split()]


def main() -> None:
    """Print the table for the bundles that were named, and of the large models without any."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sessions", description=__doc__.partition("\n")[0])
    parser.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE")
    parser.add_argument("--forms", action="store_true", help="compare the forms of an optimised model")
    arguments = parser.parse_args()
    results = Results(machine={})
    with tempfile.TemporaryDirectory(prefix="edge-sessions-") as temporary:
        folder = Path(temporary)
        found = [(path.stem, Path(shutil.copy(path, folder))) for path in arguments.bundles]
        for name, bundle in found or write_large(folder):
            (_compare_forms if arguments.forms else _load_both)(folder, name, bundle, results)
    print(results.table([]))


if __name__ == "__main__":
    main()
