import os
import random
from pathlib import Path

from edge_runtime.bundle.open import open_bundle
from edge_runtime.bundle.selftest import Budget, run_selftest
from edge_runtime.errors import BundleError
from tests.faults.bundle.test_mutations import mutate
from tests.support import builders
from tests.support.disk_faults import LONG

RUNS = int(os.environ.get("EDGE_CHILD_MUTATIONS", "1000" if LONG else "12"))  # a third of a second for each
SEED = 20261123


def test_whatever_onnxruntime_does_with_a_damaged_model_we_go_on(tmp_path: Path) -> None:
    """Damaged models that look sound are loaded and run in the child: it may die, and we answer in one line."""
    rng = random.Random(SEED)
    drafts = [builders.classification(), builders.stateful(), builders.anomaly(length=4)]
    path = tmp_path / "model.onnx"
    budget = Budget(wall_s=20, cpu_s=10)
    outcomes: list[str] = []
    while len(outcomes) < RUNS:
        path.write_bytes(mutate(rng.choice(drafts).to_bytes(), rng))
        try:
            bundle = open_bundle(path)
        except BundleError:
            continue  # refused before the child: that is another test
        try:
            outcomes.append(f"passed {run_selftest(bundle, budget).rows}")
        except BundleError as error:
            outcomes.append(str(error))
    assert [text for text in outcomes if not text.isprintable()] == []
    assert any(text.startswith("passed") for text in outcomes)
    assert any("self-test: " in text for text in outcomes)
