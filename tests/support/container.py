"""A system that boots with systemd, made of a folder or of this machine's own system; its disk is thrown away."""

import os
import signal
import subprocess
import textwrap
from pathlib import Path

import pytest

from tests.support.waiting import patient, wait_until


class Container:
    """A system that boots with systemd; its disk is thrown away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def boot(self, prepare: str, lower: Path = Path("/"), patience: float = 180) -> None:
        """Boots a copy of a system.

        Args:
            prepare: shell commands before that, in the folder; `root` is the copy, with /proc and /dev of here.
            lower: the system.
            patience: seconds until it has to be up.
        """
        for name in ("upper", "work", "root"):
            (self.folder / name).mkdir(exist_ok=True)
        (self.folder / "outer.sh").write_text(
            textwrap.dedent(f"""\
                set -e
                cd {self.folder}
                mount -t overlay o -o lowerdir={lower},upperdir=upper,workdir=work root
                mount -t proc p root/proc
                mount --rbind /dev root/dev
                """)
            + textwrap.dedent(prepare)
            + textwrap.dedent("""
                umount -l root/dev
                umount root/proc
                : > root/etc/machine-id
                touch prepared
                exec systemd-nspawn -D root --boot --register=no --keep-unit --console=pipe --private-network
                """)
        )
        with (self.folder / "boot.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", str(self.folder / "outer.sh")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        wait_until(self._is_up, self._log, patience)

    def _log(self) -> str:
        return f"the container: {(self.folder / 'boot.log').read_text(errors='replace')[-2000:]}"

    def _is_up(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            assert (self.folder / "prepared").exists(), self._log()
            pytest.skip(f"systemd-nspawn does not run here: {self._log()}")
        return self.run("systemctl is-system-running --quiet || systemctl is-active --quiet multi-user.target")[0] == 0

    def run(self, script: str, timeout: float = 60) -> tuple[int, str]:
        """Exit code and output of a shell script inside."""
        leader = self._leader()
        if leader is None:
            return 1, "not yet"
        done = subprocess.run(
            ["nsenter", "-t", leader, "-m", "-u", "-i", "-n", "-p", "sh", "-c", script],
            capture_output=True, text=True, check=False, timeout=patient(timeout), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def say(self, script: str) -> str:
        """The output of a script that must succeed."""
        code, text = self.run(script)
        assert code == 0, text
        return text

    def _leader(self) -> str | None:
        """The process id, here, of the container's systemd."""
        assert self._process is not None
        words = ["pgrep", "-P", str(self._process.pid)]
        found = subprocess.run(words, capture_output=True, text=True, check=False, timeout=10).stdout.split()
        return found[0] if found else None

    def stop(self) -> None:
        """Switches it off: its first process takes all others with it, and systemd-nspawn follows."""
        if self._process is None:
            return
        leader = self._leader()
        if leader is not None:
            os.kill(int(leader), signal.SIGKILL)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        wait_until(without_cgroups, "the container's processes to be gone", 30)


def without_cgroups() -> bool:
    """Removes the control groups that a container leaves behind; false while a process is still in one."""
    top = [each for name in ("payload", "supervisor") for each in Path("/sys/fs/cgroup").glob(f"*/{name}")]
    folders = [each for folder in top for each in [folder, *folder.rglob("*")] if each.is_dir()]
    try:
        for each in sorted(folders, reverse=True):
            each.rmdir()
    except OSError:
        return False
    return True
