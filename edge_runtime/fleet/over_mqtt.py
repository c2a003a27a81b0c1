"""The work of the fleet's commands on a device behind its broker: the same outcomes and rows as over ssh.

The retained documents (`status`, `models`) are read first, so that an offline device is named at once. Then the device
is asked over the topics of `docs/ota.md`. The broker is not trusted: bundles and rollback orders are signed, and the
device checks them.
"""

import subprocess
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from edge_runtime.errors import CommandError
from edge_runtime.fleet.broker_view import Known, login, look_at
from edge_runtime.fleet.bundle_files import BundleFiles, InstallOptions, kept_by_pin, pinned, require_class
from edge_runtime.fleet.errors import AwayError, RefusedError
from edge_runtime.fleet.inventory import FleetDevice
from edge_runtime.fleet.listing import SERVING, Unwanted, details, in_service, replaced, serving, to_leave, words
from edge_runtime.fleet.mqtt_transport import BundleSender
from edge_runtime.fleet.overview import OverviewRow, fill_figures
from edge_runtime.fleet.rollout import Outcome, Result, Watcher, outcome_of
from edge_runtime.fleet.table import size_in_words
from edge_runtime.store.ota_parts import ROLLBACK_NAMESPACE

_STALE = "order to go back: digest: "  # a device's refusal to leave a bundle that it does not run (store/ota_parts.py)
AFTER_S = 15.0  # for the daemon to load a new bundle; it checks every second
AGAIN_S = 1.0


class MqttTransport:
    """As `Transport`."""

    def flash(self, target: FleetDevice, watcher: Watcher, files: BundleFiles, options: InstallOptions) -> Outcome:
        """Bring a bundle to one device and make it active there."""
        if (
            options.unsigned
            or options.retry_rejected
            or options.max_latency_ms is not None
            or options.max_memory_mib is not None
        ):
            raise RefusedError(
                "over MQTT only signed bundles are taken, by the device's own limits: such wishes need ssh"
            )
        require_class(target, files)
        if (pin := pinned(target, files.name, files.version)) is not None:
            return Outcome(target.name, "unchanged", pin)
        watcher.step(target.name, "asking what it runs")
        before = serving(_ask(target).listing(), files.name)
        if before is not None and before["digest"] == files.digest and not options.stays_inactive:
            return Outcome(target.name, "unchanged", f"{words(before)} already", details=details(before, before))
        watcher.step(target.name, f"sending {size_in_words(files.path.stat().st_size)} over MQTT")
        mode = "shadow" if options.shadow else "stage" if options.stage else "active"
        progress = partial(watcher.bytes, target.name)
        done = BundleSender(login(target), target.name).send(files.path, progress, mode=mode)
        text = f"{done.get('model')} {done.get('version')} ({str(done.get('digest'))[:12]}): {done.get('why')}"
        text += "" if options.stays_inactive else replaced(before, files.digest)
        return Outcome(target.name, "done", text, details=details(before, None))

    def confirm(self, target: FleetDevice, files: BundleFiles) -> str | None:
        """The fault of a device after it has run the new bundle for a while, or None."""
        deadline = time.monotonic() + AFTER_S
        while True:
            found = [each for each in _ask(target).listing() if each["name"] == files.name]
            if any(each["digest"] == files.digest and each["state"] in SERVING for each in found):
                return None
            if time.monotonic() > deadline or any(each.get("why") for each in found):
                why = "; ".join(str(each["why"]) for each in found if each.get("why"))
                return f"{files.name} {files.version} is not active: {why or 'the daemon has not taken it up'}"
            time.sleep(1.0)

    def rollback(
        self, target: FleetDevice, watcher: Watcher, *, model: str | None, unwanted: Unwanted, key: Path | None
    ) -> Outcome:
        """Take one device back to the bundle before the active one, by an order that `key` signs."""
        if key is None:
            raise RefusedError("over MQTT an order to go back must be signed: name the key with --sign")
        deadline = time.monotonic() + AFTER_S
        while True:
            try:
                return self._roll_back(target, watcher, model=model, unwanted=unwanted, key=key)
            except CommandError as error:
                if _STALE not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(AGAIN_S)  # the retained list is older than the running bundle: a new one follows

    def _roll_back(
        self, target: FleetDevice, watcher: Watcher, *, model: str | None, unwanted: Unwanted, key: Path
    ) -> Outcome:
        watcher.step(target.name, "asking what it runs")
        known = _ask(target)
        if known.models is None:
            raise AwayError("the broker keeps no list of its models: was it ever online?")
        listed = known.listing()
        before = to_leave(listed, model, unwanted)
        if before is None:
            return Outcome(target.name, "unchanged", f"it runs {in_service(listed)}")
        if (pin := kept_by_pin(target, before)) is not None:
            return Outcome(target.name, "unchanged", pin)
        watcher.step(target.name, f"going back from {words(before)}")
        sender = BundleSender(login(target), target.name)
        done = sender.roll_back(before["name"], before["digest"], partial(sign, key, namespace=ROLLBACK_NAMESPACE))
        text = f"{done.get('model')} {done.get('version')} ({str(done.get('digest'))[:12]}): {done.get('why')}"
        return Outcome(target.name, "done", text, details=details(before, None))

    def look(self, target: FleetDevice, watcher: Watcher) -> Outcome:
        """Ask one device."""
        watcher.step(target.name, "asking over MQTT")
        return look_at_all([target])[0]


def look_at_all(targets: Sequence[FleetDevice], *, accuracy: bool = False) -> list[Outcome]:
    """Ask all devices over one connection; a row for each, with `accuracy` also truth and drift. Never raises."""
    known: dict[str, Known] = {}
    failed = outcome_of(targets[0], lambda: _look_into(known, targets, accuracy=accuracy))
    return [_row(target, known.get(target.name), failed) for target in targets]


def _look_into(known: dict[str, Known], targets: Sequence[FleetDevice], *, accuracy: bool) -> Outcome:
    known |= look_at(targets, health=True, accuracy=accuracy)
    return Outcome(targets[0].name, "done")


def _row(target: FleetDevice, known: Known | None, failed: Outcome) -> Outcome:
    row = OverviewRow(name=target.name, group=target.group, kind=target.kind)
    result: Result = "done"
    if known is None:
        result, row.why = failed.result, failed.text
    else:
        row.reachable = known.status == "online"
        row.models = known.listing()
        fill_figures(row, known.health or {}, known.accuracy, known.drift)
        result = _fill(row, known)
    return Outcome(target.name, result, row.why, details={"row": row})


def _fill(row: OverviewRow, known: Known) -> Result:
    if len(known.machines) > 1:
        row.why = f"two machines answer as {row.name} ({', '.join(sorted(known.machines))}): was a card cloned?"
        return "failed"
    if known.status == "offline":
        row.why = _OFFLINE
        return "away"
    if known.status is None:
        row.why = "the broker knows nothing of it: was it ever online?"
        return "away"
    if known.health is None and (known.accuracy or known.drift):
        return "done"  # which is what was asked for
    if known.health is None:
        row.why = "it does not tell its health: is over_mqtt switched on?"
        return "failed"
    health = known.health
    machine = health.get("machine") or {}
    row.runtime, row.service = str(health.get("runtime", "")), "active"
    row.queued, row.last_prediction = health.get("queued"), health.get("last_prediction")
    row.uptime_s, row.temperature_c = machine.get("uptime_s"), machine.get("temperature_c")
    return "done"


_OFFLINE = "it is offline, says the broker"


def _ask(target: FleetDevice) -> Known:
    """The retained documents of a device.

    Raises:
        AwayError: the broker cannot be reached, or the device is offline.
    """
    known = look_at([target])[target.name]
    if known.status == "offline":
        raise AwayError(_OFFLINE)
    known.require_single(target.name)
    return known


def sign(key: Path, text: bytes, *, namespace: str) -> str:
    """The signature of a text.

    Raises:
        CommandError: the key cannot be used.
    """
    return sign_all(key, [text], namespace=namespace)[0]


def sign_all(key: Path, texts: Sequence[bytes], *, namespace: str) -> list[str]:
    """The signatures of texts, by one call of ssh-keygen, so that a passphrase is asked for once.

    Raises:
        CommandError: the key cannot be used.
    """
    if not texts:
        return []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"text-{number}" for number in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            path.write_bytes(text)
        command = ["ssh-keygen", "-Y", "sign", "-q", "-f", str(key), "-n", namespace, *map(str, paths)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CommandError(f"{key}: ssh-keygen does not sign: {error}") from error
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines()
            raise CommandError(f"{key}: ssh-keygen does not sign: {lines[-1] if lines else done.returncode}")
        return [path.with_name(path.name + ".sig").read_text() for path in paths]
