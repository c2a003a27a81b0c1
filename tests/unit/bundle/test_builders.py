from collections.abc import Callable
from pathlib import Path

import pytest

from edge_runtime.bundle.manifest import METADATA_KEY, read_manifest
from tests.support import builders

KINDS: list[Callable[[], builders.Draft]] = [
    builders.classification,
    builders.regression,
    builders.anomaly,
    builders.stateful,
    builders.frame,
    builders.multilabel,
]


@pytest.mark.parametrize("make", KINDS)
def test_a_built_bundle_carries_a_manifest_that_the_runtime_reads(make: Callable[[], builders.Draft]) -> None:
    """Every kind of bundle that the builder makes has a sound manifest inside."""
    import onnx  # noqa: PLC0415

    model = onnx.load_from_string(make().to_bytes())
    texts = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    assert len(texts) == 1
    assert read_manifest(texts[0], "built.onnx").selftest is not None


def test_equal_arguments_give_equal_bytes() -> None:
    """Building twice gives the same file, so a digest in a test means something."""
    assert builders.classification().to_bytes() == builders.classification().to_bytes()


def test_a_signature_lands_beside_the_bundle(tmp_path: Path) -> None:
    """`sign` writes BUNDLE.sig, in the form of ssh-keygen."""
    bundle = builders.classification().save(tmp_path / "a.onnx")
    signature = builders.signer(tmp_path / "keys").sign(bundle)
    assert signature.name == "a.onnx.sig"
    assert signature.read_text().startswith("-----BEGIN SSH SIGNATURE-----")
