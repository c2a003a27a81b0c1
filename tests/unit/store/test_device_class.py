"""A bundle that was made for another class of device is refused on every way in, and runs on where it is in."""

from pathlib import Path

import msgspec
import pytest

from edge_runtime.bundle.release import Release
from edge_runtime.config.load import load_config
from edge_runtime.daemon.plan import make_plan
from edge_runtime.errors import BundleError, ConfigError
from edge_runtime.fleet.bundle_files import load, require_class
from edge_runtime.fleet.errors import RefusedError
from edge_runtime.store.install import Policy
from edge_runtime.store.store import ModelStore
from tests.faults.slots.operations import quick
from tests.support import builders
from tests.unit.fleet.test_rollout import targets

DEVICE = """
[device]
id = "press-07"
class = "{own}"
[[source]]
name = "imu"
type = "mqtt"
topics = ["a/{{key}}"]
[[model]]
name = "activity"
bundle = "{bundle}"
source = "imu"
[upstream]
url = "mqtt://localhost"
[store]
path = "{store}"
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Made for a Zero 2 W."""
    draft = builders.classification(name="activity", version="1.0.0")
    draft.manifest["target_device"] = "zero2w"
    return draft.save(tmp_path / "activity.onnx")


def _plan(folder: Path, bundle: str, own: str) -> None:
    path = folder / "device.toml"
    path.write_text(DEVICE.format(own=own, bundle=bundle, store=folder / "models"))
    make_plan(load_config(path), starting=True)


def test_a_bundle_by_path_is_compared_with_the_class_of_the_device(tmp_path: Path, bundle: Path) -> None:
    """`bundle = "FILE"` of another class is a mistake of the file, named with both classes."""
    _plan(tmp_path, str(bundle), "zero2w")
    with pytest.raises(ConfigError, match="expected a bundle for pi4, found one for zero2w"):
        _plan(tmp_path, str(bundle), "pi4")


def test_an_install_by_hand_knows_the_class_of_the_device(tmp_path: Path, bundle: Path) -> None:
    """The daemon leaves its class in the store; an install from a stick, or over ssh without a class, compares it."""
    store, policy = ModelStore(tmp_path / "models", quick), Policy(unsigned="allow")
    store.install(bundle, policy)
    _plan(tmp_path, "activity", "pi4")  # what is in runs on: a rule for letting in is none for running
    draft = builders.classification(name="activity", version="1.1.0")
    draft.manifest["target_device"] = "zero2w"
    newer = draft.save(tmp_path / "newer.onnx")
    with pytest.raises(BundleError, match="expected a bundle for pi4, found one for zero2w"):
        store.install(newer, policy)
    release = Release(name="activity", version="1.1.0", digest="0" * 64, size=1, device_class="zero2w")
    with pytest.raises(BundleError, match="expected a bundle for pi4, found one for zero2w"):
        store.require_admissible(release, None)
    assert store.slot("activity").version == "1.0.0"


def test_the_host_compares_before_it_sends(bundle: Path) -> None:
    """A device whose class in the inventory differs is refused without being asked."""
    files = load(bundle, unsigned=True)
    (target,) = targets("a")
    require_class(target, files)
    require_class(msgspec.structs.replace(target, kind="zero2w"), files)
    with pytest.raises(RefusedError, match="expected a bundle for pi4, found one for zero2w"):
        require_class(msgspec.structs.replace(target, kind="pi4"), files)
