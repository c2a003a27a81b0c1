"""The Debian package, built from wheels and installed by dpkg into a root of its own."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.namespaces import require_namespaces
from tests.support.waiting import patient

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.fixture
def in_root(tmp_path: Path) -> Callable[[str], str]:
    """`in_root(script)`: runs it in a copy of this machine's system that is thrown away."""
    require_namespaces()

    def run(script: str) -> str:
        (tmp_path / "inner.sh").write_text(script)
        outer = f"""set -e
            mount -t tmpfs -o size=800m t /mnt
            mkdir /mnt/u /mnt/w /mnt/root
            mount -t overlay o -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/root
            mount -t proc p /mnt/root/proc
            mount --rbind /dev /mnt/root/dev
            mkdir -p /mnt/root/in
            mount --bind {tmp_path} /mnt/root/in
            exec chroot /mnt/root env -u PYTHONPATH HOME=/root sh -e /in/inner.sh"""
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", outer],
            capture_output=True, text=True, check=False, timeout=patient(240), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


def test_the_package_is_plain(package: Path) -> None:
    """It holds the runtime and its unit, for root, and nothing of the machine that built it."""
    listed = subprocess.run(
        ["dpkg-deb", "-c", str(package)], capture_output=True, text=True, check=True, timeout=patient(60)
    ).stdout
    assert "./usr/lib/systemd/system/edge-runtime@.service" in listed
    assert "/site-packages/edge_runtime/daemon/process.py" in listed
    assert "/site-packages/converter/" not in listed
    assert "./usr/share/doc/edge-runtime/examples/vibration-usb-serial.toml" in listed
    for path in ("bash-completion/completions/edge-runtime", "zsh/vendor-completions/_edge-runtime",
                 "fish/vendor_completions.d/edge-runtime.fish", "man/man1/edge-runtime-flash.1.gz"):  # fmt: skip
        assert f"./usr/share/{path}" in listed
    assert package.with_suffix(".cdx.json").is_file()
    assert all(line.split()[1] == "root/root" for line in listed.splitlines())
    assert "__pycache__" not in listed


def test_the_package_installs_and_the_runtime_answers(
    package: Path, in_root: Callable[[str], str], tmp_path: Path
) -> None:
    """It installs without pip or network, works as the daemon's user, and its removal leaves data alone."""
    shutil.copy(package, tmp_path / "package.deb")
    answered = in_root("""
        dpkg --force-depends -i /in/package.deb >/dev/null
        id -nG edge-runtime
        stat -c '%U %a' /var/lib/edge-runtime/models
        cd /
        runuser -u edge-runtime -- edge-runtime --version
        runuser -u edge-runtime -- edge-runtime models list
        python=/opt/edge-runtime/bin/python
        runuser -u edge-runtime -- $python -c 'import onnxruntime, edge_runtime; print(edge_runtime.__file__)'
        echo kept > /var/lib/edge-runtime/outbox.db
        dpkg --force-depends -r edge-runtime >/dev/null
        cat /var/lib/edge-runtime/outbox.db
        [ -e /opt/edge-runtime ] || echo gone
    """)
    lines = answered.splitlines()
    assert "dialout" in lines[0].split()
    assert lines[1] == "edge-runtime 750"
    assert lines[2] == "edge-runtime 0.1.0"
    assert lines[3] == "nothing is installed in /var/lib/edge-runtime/models"
    assert lines[4].startswith("/opt/edge-runtime/lib/python3.")
    assert lines[5:] == ["kept", "gone"]
