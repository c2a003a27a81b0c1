"""A real mosquitto for one test or module: on loopback, with a configuration and a folder of its own.

It can be stopped, killed and started again on the same port; it is ended by its own process id.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support.ports import find_free_port, wait_for_listener
from tests.support.waiting import patient, wait_until

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


class CertificateAuthority:
    """An authority that signs certificates for this machine's loopback names, made anew for each test run."""

    def __init__(self, folder: Path, name: str = "test-ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.certificate = folder / f"{name}.crt"
        self._key = folder / f"{name}.key"
        _openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"),
            *("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"),
            *("-keyout", str(self._key), "-out", str(self.certificate)),
        )

    def issue(self, name: str, alternatives: str = "DNS:localhost,IP:127.0.0.1") -> tuple[Path, Path]:
        """A certificate and its key, for the names given."""
        return self.issue_for(2, name, alternatives)

    def issue_for(self, days: int, name: str, alternatives: str) -> tuple[Path, Path]:
        """One that is good for so many days; for less than none it has expired."""
        certificate, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        request, extension = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extension.write_text(f"subjectAltName={alternatives}\n")
        _openssl(
            *("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}"),
            *("-keyout", str(key), "-out", str(request)),
        )
        _openssl(
            *("x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey", str(self._key)),
            *("-CAcreateserial", "-days", str(days), "-extfile", str(extension), "-out", str(certificate)),
        )
        return certificate, key


class Mosquitto:
    """One broker process.

    Args:
        folder: where its configuration, log and store live.
        users: names and passwords; without them everybody may connect.
        acl: the lines of an access list, for brokers with users.
        tls: the authority whose certificate the listener shows; the listener then speaks TLS only.
        client_certificates: with `tls`, whether a client must show a certificate of the same authority.
        persistence: keep sessions, queues and retained messages over a restart and over `kill`.
        extra: further lines of mosquitto.conf.
    """

    def __init__(
        self,
        folder: Path,
        *,
        users: Mapping[str, str] | None = None,
        acl: str | None = None,
        tls: CertificateAuthority | None = None,
        client_certificates: bool = False,
        persistence: bool = False,
        extra: str = "",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = find_free_port()
        self.tls = tls
        self._process: subprocess.Popen[bytes] | None = None
        lines = [f"listener {self.port} 127.0.0.1", "log_type all", "connection_messages true"]
        # The default drops what exceeds 1000 queued messages; a test that accounts for every message must not.
        lines.append("max_queued_messages 0")
        if os.geteuid() == 0:
            lines.append("user root")  # else it changes to a user that cannot read our folder
        lines += _login_lines(folder, users, acl)
        if tls is not None:
            certificate, key = tls.issue("broker")
            lines += [f"cafile {tls.certificate}", f"certfile {certificate}", f"keyfile {key}"]
            lines.append(f"require_certificate {'true' if client_certificates else 'false'}")
        if persistence:
            store = folder / "store"
            store.mkdir()
            lines += ["persistence true", f"persistence_location {store}/"]
            lines += ["autosave_interval 1", "autosave_on_changes true"]
        lines.append(extra)
        self._config = folder / "mosquitto.conf"
        self._config.write_text("\n".join(lines) + "\n")
        self._log = folder / "mosquitto.log"

    @property
    def url(self) -> str:
        """The address in the form that a device file takes."""
        return f"{'mqtts' if self.tls else 'mqtt'}://localhost:{self.port}"

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """Everything that the broker has reported, over all its starts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> "Mosquitto":
        """Start it, and return when it listens."""
        assert MOSQUITTO is not None
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([MOSQUITTO, "-c", str(self._config)], stdout=log, stderr=log)
        try:
            wait_for_listener(self.port)
        except AssertionError as error:
            self.kill()
            raise AssertionError(f"mosquitto did not start:\n{self.log[-2000:]}") from error
        return self

    def allow(self, acl: str) -> None:
        """Exchange the access list of a broker that was given one, while it runs."""
        assert self._process is not None
        (self.folder / "acl").write_text(acl)
        before = self.log.count("Reloading config")
        self._process.send_signal(signal.SIGHUP)
        wait_until(lambda: self.log.count("Reloading config") > before, lambda: f"the reload: {self.log[-500:]}")

    def stop(self) -> None:
        """End it in good order: it says goodbye and writes its store."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it without warning."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Let it hang: its kernel takes connections and bytes, and no answer comes."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End a `pause`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Stop and start on the same port."""
        self.stop()
        self.start()

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            self._process.wait(patient(10))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(patient(10))
        self._process = None


def _login_lines(folder: Path, users: Mapping[str, str] | None, acl: str | None) -> list[str]:
    if users is None:
        return ["allow_anonymous true"]
    passwords = folder / "passwords"
    passwords.touch(mode=0o600)
    for name, password in users.items():
        subprocess.run(["mosquitto_passwd", "-b", str(passwords), name, password], check=True, capture_output=True)
    lines = ["allow_anonymous false", f"password_file {passwords}"]
    if acl is not None:
        (folder / "acl").write_text(acl)
        (folder / "acl").chmod(0o600)
        lines.append(f"acl_file {folder / 'acl'}")
    return lines


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
