"""The optimised copy beside a bundle, with the installed daemon: made once, used from then on, never missed."""

import os
import shutil
from pathlib import Path

import pytest

from edge_runtime.bundle.open import Bundle, open_bundle
from edge_runtime.bundle.optimised_copy import copy_path, open_copy, seal_of
from edge_runtime.store.store import ModelStore
from tests.conftest import MakeDaemon
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.daemon import Daemon
from tests.support.devices import climate_device, stored_device
from tests.support.stored import UNSIGNED, believed
from tests.support.subscriber import Subscriber
from tests.support.waiting import wait_until

pytestmark = pytest.mark.system

KEEP = 'keep_optimised = "always"'
KEPT, USED, UNUSED = "optimised copy kept", "loaded from its optimised copy", "the optimised copy is not used"


@pytest.fixture
def comfort(tmp_path: Path) -> Path:
    """A bundle in a folder of its own."""
    folder = tmp_path / "bundles"
    folder.mkdir()
    return builders.classification(name="comfort").save(folder / "comfort.onnx")


def _put(bundle: Bundle, model: bytes, cut: int = 0) -> None:
    """A copy that holds this model, well sealed, without its last bytes where it is to be torn."""
    data = model + seal_of(bundle, model)
    copy_path(bundle.path).write_bytes(data[: len(data) - cut])


def _is_whole(bundle: Path) -> bool:
    with open_copy(open_bundle(bundle)) as copy:
        return copy is not None


def _start(daemon: Daemon, times: int = 1) -> None:
    """Start it, and return when it is online for the so-manieth time."""
    daemon.start()
    wait_until(lambda: daemon.log.count(": online") == times, lambda: f"online:\n{daemon.log[-2000:]}", 30.0)


def _ask(client: Subscriber, device: str = "room") -> object:
    """The scores of one reading."""
    client.clear()
    client.publish("sensors/a/climate", {"temperature": 0.3, "humidity": -1.2})
    return client.wait_for(1, f"edge/{device}/comfort/")[0].document["scores"]


def test_the_second_start_comes_from_the_copy(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, comfort: Path
) -> None:
    """The first start makes it, once; every later one loads it, writes nothing, and gives the same scores."""
    daemon = make_daemon(climate_device(mosquitto, comfort, model=KEEP))
    _start(daemon)
    first = _ask(subscriber)
    daemon.wait_for_log(KEPT, 60.0)
    assert USED not in daemon.log
    assert daemon.stop() == 0
    made = copy_path(comfort).stat()
    assert _is_whole(comfort)
    for start in (2, 3):
        _start(daemon, start)
        assert _ask(subscriber) == first
        assert daemon.stop() == 0
    assert daemon.log.count(USED) == 2
    assert daemon.log.count(KEPT) == 1
    now = copy_path(comfort).stat()
    assert (made.st_ino, made.st_mtime_ns) == (now.st_ino, now.st_mtime_ns)


def test_a_torn_copy_is_replaced(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, comfort: Path
) -> None:
    """After a power cut at the wrong moment the daemon starts from the bundle as ever, and makes the copy anew."""
    _put(open_bundle(comfort), comfort.read_bytes(), cut=20)
    daemon = make_daemon(climate_device(mosquitto, comfort, model=KEEP))
    _start(daemon)
    _ask(subscriber)
    assert UNUSED in daemon.log
    daemon.wait_for_log(KEPT, 60.0)
    assert _is_whole(comfort)
    assert daemon.stop() == 0


def test_where_nothing_can_be_written_the_daemon_starts_as_ever(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, comfort: Path
) -> None:
    """A bundle on a read-only file system: one line, and predictions."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root can mount a folder read-only for one process")
    daemon = make_daemon(climate_device(mosquitto, comfort, model=KEEP))
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    daemon.within = ["unshare", "--mount", "sh", "-c", mount, str(comfort.parent)]
    _start(daemon)
    _ask(subscriber)
    daemon.wait_for_log("no optimised copy is kept", 60.0)
    assert "its folder cannot be written" in daemon.log
    assert "WARNING" not in daemon.log
    assert daemon.stop() == 0
    assert list(comfort.parent.iterdir()) == [comfort]


def test_where_signatures_are_asked_for_an_unsigned_copy_is_not_loaded(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, tmp_path: Path
) -> None:
    """Another program has put one there, well sealed: it is not looked at, it is removed, and none is made."""
    signer = builders.signer(tmp_path / "keys")
    # Enough nodes for `auto` to want a copy, were it not for the signatures.
    draft = builders.classification(name="comfort")
    _lengthen(draft, 300)
    bundle = open_bundle(draft.save(tmp_path / "comfort.onnx"))
    signer.sign(bundle.path)
    _put(bundle, builders.classification(seed=9).to_bytes())
    text = climate_device(mosquitto, bundle.path)
    daemon = make_daemon(text + f'\n[store]\nallowed_signers = "{signer.allowed}"\n')
    _start(daemon)
    _ask(subscriber)
    wait_until(lambda: not copy_path(bundle.path).exists(), "the copy to be removed", 60.0)
    assert daemon.stop() == 0
    _start(daemon, 2)
    _ask(subscriber)
    assert daemon.stop() == 0
    assert "optimised" not in daemon.log
    assert not copy_path(bundle.path).exists()


def _lengthen(draft: builders.Draft, nodes: int) -> None:
    """So many nodes before the rest, which change nothing."""
    from onnx import helper  # noqa: PLC0415 - for this alone

    graph = draft.model.graph
    flatten = next(node for node in graph.node if "window" in node.input)
    names = ["window", *(f"same{number}" for number in range(nodes))]
    flatten.input[0] = names[-1]
    same = [helper.make_node("Identity", [names[at]], [names[at + 1]]) for at in range(nodes)]
    others = list(graph.node)
    del graph.node[:]
    graph.node.extend([*same, *others])


def test_an_exchange_and_the_way_back_have_their_copies(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, tmp_path: Path
) -> None:
    """A new bundle gets its copy after it has taken over; that of the one before stays, and serves the rollback."""
    store = ModelStore(tmp_path / "store", believed)

    def install(version: str) -> Path:
        draft = builders.classification(name="comfort", version=version)
        return store.install(draft.save(tmp_path / "new.onnx"), UNSIGNED).slot.path

    first = install("1.0.0")
    daemon = make_daemon(stored_device(mosquitto, tmp_path, f"{KEEP}\nprobation_predictions = 1"))
    _start(daemon)
    _ask(subscriber)
    daemon.wait_for_log(KEPT, 60.0)
    second = install("1.1.0")
    daemon.wait_for_log("now=1.1.0", 30.0)
    _ask(subscriber)
    wait_until(lambda: daemon.log.count(KEPT) == 2, lambda: f"the second copy:\n{daemon.log[-2000:]}", 60.0)
    assert copy_path(first).exists()
    assert copy_path(second).exists()
    assert USED not in daemon.log
    store.rollback("comfort")
    daemon.wait_for_log("now=1.0.0", 30.0)
    assert daemon.log.count(USED) == 1
    assert daemon.stop() == 0
    assert daemon.log.count(KEPT) == 2


def test_two_daemons_on_one_bundle_make_one_copy(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, comfort: Path
) -> None:
    """They start at the same moment: both serve, the copy is whole, and both come from it the next time."""
    daemons = [make_daemon(climate_device(mosquitto, comfort, device=name, model=KEEP)) for name in ("room", "hall")]
    for daemon in daemons:
        daemon.start(ready=False)
    for daemon in daemons:
        daemon.wait_for_log(": online")
    wait_until(lambda: any(KEPT in daemon.log for daemon in daemons), "the copy", 60.0)
    assert _is_whole(comfort)
    for daemon in daemons:
        assert daemon.stop() == 0
    for daemon in daemons:
        _start(daemon, 2)
        assert USED in daemon.log
    assert _ask(subscriber, "hall") == _ask(subscriber, "room")
    for daemon in daemons:
        assert daemon.stop() == 0
        assert UNUSED not in daemon.log
    assert sorted(path.name for path in comfort.parent.iterdir()) == ["comfort.onnx", "comfort.onnx.optimised"]
