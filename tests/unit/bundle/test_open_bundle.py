import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_runtime.bundle.onnx_file import Limits
from edge_runtime.bundle.open import open_bundle, version_key
from edge_runtime.errors import BundleError
from tests.support import builders
from tests.support.waiting import patient

KINDS: list[Callable[[], builders.Draft]] = [
    builders.classification,
    builders.regression,
    builders.anomaly,
    builders.stateful,
    builders.frame,
    builders.multilabel,
]


def _refusal(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("make", KINDS)
def test_a_sound_bundle_opens(tmp_path: Path, make: Callable[[], builders.Draft]) -> None:
    """Every task, a model with memory and a whole frame open, with digest, size and manifest."""
    path = make().save(tmp_path / "model.onnx")
    bundle = open_bundle(path)
    assert bundle.path == path
    assert bundle.size == path.stat().st_size
    assert len(bundle.digest) == 64
    assert bundle.manifest.version == "1.0.0"
    assert bundle.facts.nodes == sum(bundle.facts.operators.values())


def test_opening_does_not_import_onnxruntime(tmp_path: Path) -> None:
    """A bundle is checked before the native library that will run it is even loaded."""
    import subprocess  # noqa: PLC0415

    path = builders.classification().save(tmp_path / "model.onnx")
    code = (
        "import sys; from pathlib import Path; from edge_runtime.bundle.open import open_bundle; "
        f"open_bundle(Path({str(path)!r})); "
        "print(sorted({'onnx', 'onnxruntime', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=patient(60), check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A wrong path gets another message than a wrong file."""
    assert "no such file" in _refusal(tmp_path / "absent.onnx")


def test_a_folder_is_no_bundle(tmp_path: Path) -> None:
    """A folder in place of a file is called a folder."""
    assert "a folder" in _refusal(tmp_path)


def test_an_empty_file_is_no_bundle(tmp_path: Path) -> None:
    """A file of no bytes, as a full disk leaves it, is called empty."""
    path = tmp_path / "empty.onnx"
    path.touch()
    assert "empty" in _refusal(path)


def test_a_pipe_is_never_waited_for(tmp_path: Path) -> None:
    """A FIFO is refused at once, though no process writes to it."""
    path = tmp_path / "pipe.onnx"
    os.mkfifo(path)
    assert "a pipe or a device" in _refusal(path)


def test_a_device_is_no_bundle() -> None:
    """An endless device such as /dev/zero is refused without reading it."""
    assert "a pipe or a device" in _refusal(Path("/dev/zero"))


def test_a_text_file_is_no_bundle(tmp_path: Path) -> None:
    """A file of another kind is not called damaged, but foreign."""
    path = tmp_path / "notes.onnx"
    path.write_text("hello, this is a note")
    assert "expected an ONNX file" in _refusal(path)


def test_a_pointer_of_git_lfs_is_recognised(tmp_path: Path) -> None:
    """The classic accident of a model repository is named, with its remedy."""
    path = tmp_path / "model.onnx"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    assert "git lfs pull" in _refusal(path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_a_truncated_bundle_is_called_truncated(tmp_path: Path, share: float) -> None:
    """A copy that broke off in the middle says that it is short, and asks for another copy."""
    data = builders.classification().to_bytes()
    path = tmp_path / "model.onnx"
    path.write_bytes(data[: int(len(data) * share)])
    assert "truncated" in _refusal(path)


def test_an_onnx_file_without_a_manifest_says_how_to_get_one(tmp_path: Path) -> None:
    """Any model of the zoo is sound ONNX, and yet no bundle."""
    path = tmp_path / "model.onnx"
    path.write_bytes(builders.classification().model.SerializeToString())
    message = _refusal(path)
    assert "without a manifest" in message
    assert "edge-convert build" in message


def test_a_file_over_the_size_limit_is_not_read(tmp_path: Path) -> None:
    """A sparse file of 10 GB costs neither time nor memory."""
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(10 * 1024**3)
    assert "at most" in _refusal(path)


def test_limits_can_be_set(tmp_path: Path) -> None:
    """A device with little memory may allow less than the default."""
    path = builders.classification().save(tmp_path / "model.onnx")
    with pytest.raises(BundleError, match="at most 3 nodes"):
        open_bundle(path, limits=Limits(max_nodes=3))


def test_an_unreadable_file_says_so(tmp_path: Path) -> None:
    """A file of another user gets another message than a missing one."""
    path = builders.classification().save(tmp_path / "model.onnx")
    path.chmod(0)
    own = os.geteuid()
    if own == 0:  # root reads every file
        os.seteuid(65534)
    try:
        assert "permission denied" in _refusal(path)
    finally:
        os.seteuid(own)


def test_a_newer_onnxruntime_is_asked_for(tmp_path: Path) -> None:
    """A bundle that needs a newer runtime names both versions and the remedies."""
    draft = builders.classification()
    draft.manifest["requires"]["onnxruntime"] = "99.1"
    message = _refusal(draft.save(tmp_path / "model.onnx"))
    assert "needs onnxruntime 99.1 or newer, this is" in message


def test_versions_are_ordered_as_semantic_versions() -> None:
    """1.10.0 is newer than 1.9.0, and a release is newer than its candidates."""
    order = [
        "0.9.9", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11",
        "1.0.0-rc.1", "1.0.0", "1.9.0", "1.10.0", "2.0.0",
    ]  # fmt: skip
    keys = [version_key(version) for version in order]
    assert None not in keys
    assert keys == sorted(keys, key=lambda key: key or ())
    assert version_key("1.0.0+a") == version_key("1.0.0+b")


@pytest.mark.parametrize(
    "version", ["", "1", "1.0", "01.0.0", "1.0.0-", "1.0.0-01", "v1.0.0", "1.0.0 ", "1.0.٣", "1.0.0\n"]
)
def test_what_is_no_semantic_version_is_none(version: str) -> None:
    """A version that cannot be ordered is refused, rather than guessed at."""
    assert version_key(version) is None
