"""The fixtures that every test may use. What they hand out lives in one module each beside this file."""

import itertools
import logging
import os
import platform
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before anything loads OpenMP: its threads wait for each other by spinning, and beside other test processes each waits
# for one that has no processor. Training 60 small trees took 2.0 s of CPU time on two busy cores, and 0.03 s in one
# thread. The daemons of the tests are started without it, see `Daemon.start`.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

from edge_runtime.bundle.int8 import saturates
from tests.support.broker import MOSQUITTO, CertificateAuthority, Mosquitto
from tests.support.daemon import Daemon
from tests.support.installed import Installed, build_wheel, install
from tests.support.payload_schemas import payload_faults
from tests.support.ports import VirtualPort, find_free_port
from tests.support.subscriber import Subscriber

ROOT = Path(__file__).resolve().parents[1]

MakeBroker = Callable[..., Mosquitto]
MakeDaemon = Callable[..., Daemon]
MakePort = Callable[..., VirtualPort]
MakeSubscriber = Callable[..., Subscriber]

# A shell starts what is put into the background with Ctrl-C ignored, and children inherit that; those of tests that
# send it have to see it. A signal with a handler is at its default in a child.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine makes any example slow: no verdict may hang on that. The short form tries the same examples in every
# run, so that it is red only for the change that broke something; the long form (`make torture`) tries new ones.
settings.register_profile(
    "everywhere",
    deadline=None,
    derandomize=os.environ.get("EDGE_TORTURE") != "long",
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("everywhere")


def pytest_report_header() -> str:
    """Which of the kinds of processors these tests run on: int8 products take another way on each."""
    return f"processor: {platform.machine()}, int8 products {'saturate' if saturates() else 'are exact'}"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of recordings beside the repository; the test is skipped where it is not."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the recordings are not here: expected {folder}")
    return folder


@pytest.fixture(autouse=True)
def _keep_logging() -> Iterator[None]:
    """A command that a test runs in this process sets the project's logging up; the next test finds it as it was."""
    root = logging.getLogger("edge_runtime")
    handlers, level, propagate = list(root.handlers), root.level, root.propagate
    yield
    root.handlers[:], root.propagate = handlers, propagate
    root.setLevel(level)


@pytest.fixture
def free_port() -> int:
    """A free TCP port of the loopback address."""
    return find_free_port()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """One folder for the whole test run, the same for every test process."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def installed(shared_folder: Path) -> Installed:
    """The commands of the wheel, installed away from the source folder."""
    return install(shared_folder)


@pytest.fixture(scope="session")
def wheel(shared_folder: Path) -> Path:
    """The wheel of the tree."""
    return build_wheel(shared_folder)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    """An authority whose certificates the TLS brokers of this run show."""
    return CertificateAuthority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def make_mosquitto(tmp_path: Path) -> Iterator[MakeBroker]:
    """Start brokers of this test alone: `make_mosquitto(users={...}, tls=authority, persistence=True)`."""
    yield from _brokers(tmp_path)


@pytest.fixture(scope="module")
def make_module_mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeBroker]:
    """As `make_mosquitto`, for brokers that the tests of one module share."""
    yield from _brokers(tmp_path_factory.mktemp("broker"))


@pytest.fixture
def mosquitto(make_mosquitto: MakeBroker) -> Mosquitto:
    """A plain broker of this test alone, listening."""
    return make_mosquitto()


@pytest.fixture
def make_port(tmp_path: Path) -> Iterator[MakePort]:
    """Plug in virtual serial ports: `make_port("imu")`."""
    ports: list[VirtualPort] = []

    def make(name: str = "port") -> VirtualPort:
        ports.append(VirtualPort(tmp_path / name).plug())
        return ports[-1]

    yield make
    for port in ports:
        port.unplug()


@pytest.fixture
def virtual_port(make_port: MakePort) -> VirtualPort:
    """One virtual serial port, plugged in."""
    return make_port()


@pytest.fixture
def make_subscriber() -> Iterator[MakeSubscriber]:
    """Connect MQTT clients: `make_subscriber(mosquitto.port, "edge/#")`."""
    clients: list[Subscriber] = []

    def make(port: int, *topics: str, **options: Any) -> Subscriber:
        clients.append(Subscriber(port, *topics, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
    wrong = [fault for client in clients for fault in payload_faults(client.messages)]
    assert not wrong, "what subscribers received does not follow docs/schemas:\n" + "\n".join(wrong[:10])


@pytest.fixture
def subscriber(mosquitto: Mosquitto, make_subscriber: MakeSubscriber) -> Subscriber:
    """A client of the plain broker that hears everything below `edge/`."""
    return make_subscriber(mosquitto.port, "edge/#")


@pytest.fixture
def make_daemon(installed: Installed, tmp_path: Path) -> Iterator[MakeDaemon]:
    """Write a device file and hand out its daemon, not yet started: `make_daemon(text).start()`.

    At the end every daemon is ended, and none may have shown a traceback.
    """
    daemons: list[Daemon] = []
    numbers = itertools.count(1)

    def make(text: str, **environment: str) -> Daemon:
        config = tmp_path / f"device-{next(numbers)}.toml"
        config.write_text(text)
        daemons.append(Daemon(installed, config, **environment))
        return daemons[-1]

    yield make
    for daemon in daemons:
        daemon.finish()


def _brokers(folder: Path) -> Iterator[MakeBroker]:
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed: apt install mosquitto")
    brokers: list[Mosquitto] = []

    def make(**options: Any) -> Mosquitto:
        start = options.pop("start", True)
        brokers.append(Mosquitto(folder / f"mosquitto-{len(brokers)}", **options))
        return brokers[-1].start() if start else brokers[-1]

    yield make
    for broker in brokers:
        broker.stop()
