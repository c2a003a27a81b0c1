"""The packages for both kinds of device in clean Debian roots: installed by dpkg, self-tested, and the daemon answers.

A root is made by debootstrap: a minute for amd64, five for arm64, whose programs run under qemu-user. So these tests
run with `EDGE_TORTURE=long`, or where `EDGE_DEBIAN_ROOTS` names a folder that holds roots `amd64` and `arm64` from an
earlier run (`debootstrap --variant=minbase --include=python3,systemd,openssh-client bookworm`). An emulator says
nothing about a device's speed, so none is judged.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.bundle.open import open_bundle
from edge_runtime.errors import CommandError
from edge_runtime.fleet.deb import build
from edge_runtime.fleet.wheelhouse import MACHINES, gather
from edge_runtime.fleet.wheels import Machine, choose
from tests.conftest import MakeBroker
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.debian_roots import debootstrap, own_architecture, require_emulation
from tests.support.namespaces import require_namespaces
from tests.support.subscriber import Subscriber
from tests.support.waiting import patient
from tests.support.workshop import Workshop

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[3]
LONG = os.environ.get("EDGE_TORTURE") == "long"
PYTHON = (3, 11)
PACKAGES = "python3,systemd,openssh-client"
# The devices whose processors onnxruntime picks other kernels for: Zero 2 W, Pi 4, Pi 5.
PROCESSORS = {"amd64": [""], "arm64": ["cortex-a53", "cortex-a72", "cortex-a76"]}

DEVICE = """
[device]
id = "press"
[[source]]
name = "climate"
type = "mqtt"
topics = ["sensors/{{key}}/climate"]
[[model]]
name = "comfort"
bundle = "comfort"
source = "climate"
[upstream]
url = "{url}"
[store]
allowed_signers = "/etc/edge-runtime/allowed_signers"
"""

SPEC = """
name = "comfort"
version = "1.0.0"
[[channel]]
name = "temperature"
[[channel]]
name = "humidity"
"""

# Runs as root in a mount namespace: the clean root below, everything that is written in memory. No /sys: with that of
# another processor in it, onnxruntime crashes under emulation.
OUTER = """set -e
mount -t tmpfs -o size=1500m t /mnt
mkdir /mnt/u /mnt/w /mnt/root
mount -t overlay o -o lowerdir={lower},upperdir=/mnt/u,workdir=/mnt/w /mnt/root
mount -t proc p /mnt/root/proc
mount --rbind /dev /mnt/root/dev
mkdir /mnt/root/in
mount --bind {folder} /mnt/root/in
exec chroot /mnt/root env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root sh -e /in/inner.sh
"""

INNER = """
dpkg -i /in/package.deb >/in/dpkg.log 2>&1
dpkg --print-architecture
cp /in/allowed_signers /in/press.toml /etc/edge-runtime/
chown root:edge-runtime /etc/edge-runtime/*
chmod 640 /etc/edge-runtime/*
mkdir -p /run/edge-runtime /var/lib/edge-runtime/press
chown edge-runtime: /run/edge-runtime /var/lib/edge-runtime/press
cp /in/comfort.onnx /in/comfort.onnx.sig /var/lib/edge-runtime/
as() {{ runuser -u edge-runtime -- "$@"; }}
as edge-runtime models install /var/lib/edge-runtime/comfort.onnx
for processor in {processors}; do
    echo "self-test on $processor"
    as env QEMU_CPU=$processor edge-runtime models selftest comfort
done
as edge-runtime models selftest comfort
cd /var/lib/edge-runtime/press
as env RUNTIME_DIRECTORY=/run/edge-runtime STATE_DIRECTORY=/var/lib/edge-runtime/press \\
    edge-runtime run /etc/edge-runtime/press.toml >/in/daemon.log 2>&1 &
while [ ! -e /in/enough ]; do sleep 0.2; kill -0 $!; done
echo done
"""


@pytest.fixture(scope="session")
def make_root(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`make_root("arm64")`: a clean Debian root of that architecture; the test is skipped where it cannot be had."""
    require_namespaces()
    kept = os.environ.get("EDGE_DEBIAN_ROOTS")

    def make(architecture: str) -> Path:
        if architecture != own_architecture():
            require_emulation()
        if kept is not None and (Path(kept) / architecture / "usr/bin/dpkg").exists():
            return Path(kept) / architecture
        if not LONG:
            pytest.skip("takes minutes: set EDGE_TORTURE=long, or EDGE_DEBIAN_ROOTS to a folder of roots")
        folder = (Path(kept) if kept is not None else tmp_path_factory.mktemp("roots")) / architecture
        return debootstrap(architecture, folder, PACKAGES)

    return make


@pytest.fixture(scope="session")
def int8_bundle(workshop: Workshop) -> Path:
    """A small network, quantised to int8, as a workstation makes it."""

    def train() -> object:
        from sklearn.neural_network import MLPClassifier  # noqa: PLC0415 - most tests need no scikit-learn

        return MLPClassifier((16,), solver="lbfgs", max_iter=5000, random_state=1).fit(x, y)

    rng = np.random.default_rng(4)
    x = rng.normal(size=(600, 2)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int64)
    half = (x[:300], y[:300]), (x[300:], y[300:])
    path = workshop.build("comfort-int8", train, SPEC, calibration=half[0], evaluation=half[1], quantize="int8")
    assert open_bundle(path).manifest.quantization["method"] == "int8"
    return path


def _package(wheel: Path, architecture: str, folder: Path) -> Path:
    machine = Machine(MACHINES[architecture], PYTHON)
    try:
        gather(wheel, folder / "wheels", machine, ROOT / "tests" / "locked" / "device.txt")
    except CommandError as error:
        pytest.skip(f"no wheels here: {error}")
    return build(choose(folder / "wheels", machine), machine, folder / "deb", "Tester <t@localhost>")


@pytest.fixture
def broker(make_mosquitto: MakeBroker) -> Mosquitto:
    """On the loopback of this machine, which the root shares."""
    return make_mosquitto()


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_the_package_serves_in_a_clean_root(
    architecture: str,
    make_root: Callable[[str], Path],
    request: pytest.FixtureRequest,
    broker: Mosquitto,
    make_subscriber: Callable[..., Subscriber],
    tmp_path: Path,
) -> None:
    """Installed by dpkg alone, it passes a signed int8 bundle within the stated tolerance, and answers readings."""
    lower = make_root(architecture)
    shared = tmp_path / "in"
    shared.mkdir()
    shutil.copy(_package(request.getfixturevalue("wheel"), architecture, tmp_path), shared / "package.deb")
    bundle = shared / "comfort.onnx"
    shutil.copy(request.getfixturevalue("int8_bundle"), bundle)  # not made for a test that is skipped
    keys = builders.signer(tmp_path / "keys")
    keys.sign(bundle)
    shutil.copy(keys.allowed, shared / "allowed_signers")
    (shared / "press.toml").write_text(DEVICE.format(url=f"mqtt://127.0.0.1:{broker.port}"))
    (shared / "inner.sh").write_text(INNER.format(processors=" ".join(filter(None, PROCESSORS[architecture]))))
    for path in shared.iterdir():
        path.chmod(0o644)
    client = make_subscriber(broker.port, "edge/#")
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "-c"]
    with (tmp_path / "printed").open("wb") as answered:
        inside = subprocess.Popen(
            [*command, OUTER.format(lower=lower, folder=shared)],
            stdin=subprocess.DEVNULL, stdout=answered, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        client.wait_until(
            lambda _: inside.poll() is not None or [m for m in client.on("edge/press/status") if m.text == "online"],
            lambda: f"online; it printed {(tmp_path / 'printed').read_text()[-2000:]}",
            600.0,
        )
        assert inside.poll() is None, (tmp_path / "printed").read_text()[-3000:]
        for number in range(20):
            client.publish("sensors/a/climate", {"temperature": 0.1 * number, "humidity": -0.3, "id": number})
        answers = [message.document for message in client.wait_for(20, "edge/press/comfort/", 120.0)]
        assert [each["id"] for each in answers] == [f"press/comfort/a/{number}" for number in range(20)]
        (shared / "enough").touch()
        assert inside.wait(120) == 0, (tmp_path / "printed").read_text()[-3000:]
    finally:
        inside.kill()
        inside.wait(patient(30))
    text = (tmp_path / "printed").read_text()
    assert text.startswith(architecture)
    proofs = text.count("the golden answers came out")
    assert proofs == 1 + len(list(filter(None, PROCESSORS[architecture])))
    print(json.dumps({"architecture": architecture, "printed": text.splitlines()}, indent=1))  # noqa: T201 - to read
