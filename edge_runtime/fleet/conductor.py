"""A signed rollout over the broker: publishes what each device is to run, wave by wave, and reads what came of it.

The host only moves retained documents: what has been published is followed by its devices, whether this machine is on
or not. Guarantee: a wave is published only while the rollout runs, and only when enough devices have proven the bundle
and no more failed than allowed (`wave_progress.py`). Devices that do not report are away: they hold up nothing, and
converge when they come back. What a process that was killed at any moment left undone, the next one repairs: it
compares the file with the documents that the broker keeps, and publishes what is missing. Weak point: who may publish
on `edge/+/rollout` can report what no device did.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.fleet.broker_line import CAUGHT_UP, CONNECTED, BrokerLine, Heard, Login
from edge_runtime.fleet.cli import limits_of
from edge_runtime.fleet.errors import AwayError
from edge_runtime.fleet.over_mqtt import sign_all
from edge_runtime.fleet.rollout import Outcome, Result
from edge_runtime.fleet.rollout_file import LEFT_OUT, DeviceRow, RolloutFile, RolloutRow
from edge_runtime.fleet.wave_progress import WaveProgress, next_wave
from edge_runtime.store.desired_document import DESIRED_NAMESPACE, TAKEN_BACK, Desired, Envelope, Report

SETTLE_S = 1.0  # without a message, the broker has sent what it retains
MOST_SETTLE_S = 10.0  # while devices report without a pause
CONNECT_S = 30.0
BATCH = 64  # documents that are signed by one call, and between which reports are read
READ_AGAIN_S = 10.0
_READ_TO_THE_END = frozenset({"confirmed", "failed", *LEFT_OUT})
_TICK_S = 0.5
_SANE_SERIAL = 2**53  # a report that claims a higher one is ignored: serials after it would have no room


class Conductor:
    """Moves one rollout on.

    Args:
        file: the rollouts.
        login: the broker.
        key: signs the documents.
        say: shows a line.
        once: return after what is due now is published.
    """

    def __init__(
        self, file: RolloutFile, login: Login, key: Path | None, say: Callable[[str], None], *, once: bool = False
    ) -> None:
        self._once = once
        self._file = file
        self._login = login
        self._key = key
        self._say = say
        self._kept: dict[str, tuple[str, int]] = {}  # rollout and serial of the documents at the broker
        self._highest = 0
        self._next_reading = 0.0
        self._progress = WaveProgress(by_clock=once)

    def run(self, rollout: str, *, until_done: bool) -> None:
        """Publish and watch until the rollout is finished, stopped or paused; else only read what was reported.

        Raises:
            AwayError: the broker cannot be reached.
            CommandError: another operator has changed the rollout, or the key cannot be used.
        """
        with BrokerLine(self._login, ["+/rollout", "+/desired"], qos=0) as line:
            self._collect(line, rollout, SETTLE_S, connects=True)
            self._read_again(line, rollout)
            self._finish(rollout)
            if until_done:
                self._compare(rollout)
            while until_done:
                row = self._file.read(rollout)
                if row.state != "running" or self._step(line, row) or self._once:
                    return
                self._collect(line, rollout, _TICK_S)
                if time.monotonic() >= self._next_reading:
                    self._read_again(line, rollout)

    def clear(self, rollout: str, keep: frozenset[str] = frozenset()) -> None:
        """Take back the documents of devices that have not confirmed; what they have begun they finish.

        Args:
            rollout: its id.
            keep: devices whose document another rollout replaces.

        Raises:
            AwayError: the broker cannot be reached, or does not acknowledge.
        """
        with BrokerLine(self._login, ["+/rollout", "+/desired"], qos=0) as line:
            self._collect(line, rollout, SETTLE_S, connects=True)
            self._read_again(line, rollout)
            for each in self._file.devices(rollout):
                is_ours = self._kept.get(each.device, (rollout, 0))[0] == rollout
                is_open = each.serial and each.state not in {"confirmed", "failed", "probation"}
                if is_open and is_ours and each.device not in keep:
                    line.publish(f"{each.device}/desired", b"", retain=True)
            self._settle(line)

    def _read_again(self, line: BrokerLine, rollout: str) -> None:
        """Read what the broker retains of devices under way: of a burst of reports it may have dropped some."""
        self._next_reading = time.monotonic() + READ_AGAIN_S
        open_ones = [
            each.device for each in self._file.devices(rollout) if each.serial and each.state not in _READ_TO_THE_END
        ]
        if open_ones:
            line.read_again([f"{name}/{what}" for name in open_ones for what in ("rollout", "desired")])
            self._collect(line, rollout, SETTLE_S, catches_up=True)

    def _collect(
        self, line: BrokerLine, rollout: str, seconds: float, *, connects: bool = False, catches_up: bool = False
    ) -> None:
        """Read reports for a while; after a connection or `read_again`, until the broker has sent what it retains."""
        begun = time.monotonic()
        deadline = begun + (CONNECT_S if connects else seconds)
        known = {each.device: each for each in self._file.devices(rollout)}
        reports: dict[str, tuple[str, str]] = {}
        is_waiting = connects
        while (left := deadline - time.monotonic()) > 0:
            heard = line.hear(left)
            if heard is None:
                break
            if heard.topic == CONNECTED:
                is_waiting = False
            elif heard.topic == CAUGHT_UP:
                if catches_up:
                    break
            else:
                self._note(known, heard, rollout, reports)
            if connects and not is_waiting:
                deadline = min(time.monotonic() + seconds, begun + CONNECT_S + MOST_SETTLE_S)
        if reports:
            self._file.reported_all(rollout, reports)
        if is_waiting:
            raise AwayError(f"{self._login.url}: the broker does not let us in")

    def _note(
        self, known: dict[str, DeviceRow], heard: Heard, rollout: str, reports: dict[str, tuple[str, str]]
    ) -> None:
        device, _, what = heard.topic.partition("/")
        row = known.get(device)
        if row is None:
            return
        if what == "desired":
            self._note_document(row, heard.payload, rollout, reports)
            return
        try:
            found = msgspec.json.decode(heard.payload, type=Report)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return
        if found.serial < _SANE_SERIAL:
            self._highest = max(self._highest, found.serial)
        if found.rollout != rollout or row.state in LEFT_OUT:
            return
        self._progress.heard(device, found.state, found.received)
        if row.before is None and found.before is not None:
            row.before = {"name": found.model, **found.before}
            self._file.ran_before(rollout, device, row.before)
        if (found.state, found.why or "") != (row.state, row.why):
            reports[device] = row.state, row.why = found.state, found.why or ""
            if found.state in {"failed", "confirmed", "probation"}:
                self._say(f"{device}: {found.state}{f': {found.why}' if found.why else ''}")

    def _note_document(self, row: DeviceRow, payload: bytes, rollout: str, reports: dict[str, tuple[str, str]]) -> None:
        """What the broker keeps for a device: ours, or one of another file of rollouts, which has replaced it."""
        try:
            document = msgspec.json.decode(msgspec.json.decode(payload, type=Envelope).document, type=Desired)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            self._kept.pop(row.device, None)
            return
        self._kept[row.device] = (document.rollout, document.serial)
        if document.serial < _SANE_SERIAL:
            self._highest = max(self._highest, document.serial)
        is_other = document.rollout != rollout and document.serial > row.serial > 0
        if is_other and row.state not in {"confirmed", "failed", *LEFT_OUT}:
            why = f"rollout {document.rollout} of {document.model} {document.version} has replaced it"
            reports[row.device] = row.state, row.why = "refused", why
            self._say(f"{row.device}: {why}")

    def _compare(self, rollout: str) -> None:
        """Have documents published again that the file has and the broker does not."""
        if self._file.read(rollout).state != "running":
            return
        for each in self._file.devices(rollout):
            if not each.serial or each.state not in {"", "pending", "receiving"}:
                continue
            kept = self._kept.get(each.device)
            if kept != (rollout, each.serial):
                why = "its document is not at the broker: it is published again"
                self._file.release(rollout, [each.device], each.serial, why if each.published else "")
            elif not each.published:
                self._file.published(rollout, [each.device], each.serial)

    def _step(self, line: BrokerLine, row: RolloutRow) -> bool:
        """Publish the next wave if it is time; True when there is nothing more to do."""
        devices = self._file.devices(row.id)
        if self._has_failed(row, devices):
            return True
        if not any(each.is_waiting for each in devices):
            if not self._progress.is_at_rest(devices, row.plan.soak):
                return False
            self._finish(row.id)
            return True
        due = next_wave(devices, row.plan, self._progress)
        if due.are_canaries:
            names = [each.device for each in due.devices]
            self._file.move(row.id, names, 1, "in the place of a canary that did not prove the bundle")
            self._say(f"wave 1, in the place of canaries that are away: {', '.join(names)}")
        elif due.devices:
            self._say(f"wave {due.devices[0].wave}: {len(due.devices)} devices")
        if due.devices:
            self._publish(line, row, due.devices)
            self._hint(devices)
        return False

    def _hint(self, devices: Sequence[DeviceRow]) -> None:
        """Name what is probably missing when the devices before got nothing."""
        if any(each.state == "receiving" for each in devices) and not self._progress.has_moved:
            self._say("no device has received a byte: is `edge-runtime depot` running, with this file?")

    def _has_failed(self, row: RolloutRow, devices: Sequence[DeviceRow]) -> bool:
        """Stop a rollout of which more devices failed than are allowed."""
        failed = sum(1 for each in devices if each.state == "failed")
        if limits_of(row.plan.max_failures).allows(failed, len(devices)):
            return False
        self._file.change(row, "stopped", f"stopped: {failed} of {len(devices)} failed")
        self._say(f"stopping: {failed} of {len(devices)} failed")
        return True

    def _finish(self, rollout: str) -> None:
        """Note that nothing more will come of a rollout."""
        row = self._file.read(rollout)
        devices = self._file.devices(rollout)
        if row.state == "running" and all(each.state in {"confirmed", "failed", *LEFT_OUT} for each in devices):
            self._file.change(row, "finished", "finished")

    def _publish(self, line: BrokerLine, row: RolloutRow, wave: Sequence[DeviceRow]) -> None:
        """Publish to the devices of a wave, as long as the rollout runs and no more fail than are allowed."""
        assert self._key is not None
        for start in range(0, len(wave), BATCH):
            serial = self._file.next_serial(self._highest)
            batch = self._file.claim(row.id, wave[start : start + BATCH], serial)
            sent: list[str] = []
            link = line.connections
            try:
                texts = [msgspec.json.encode(_document(row, each, serial)) for each in batch]
                signatures = sign_all(self._key, texts, namespace=DESIRED_NAMESPACE)
                for each, text, signature in zip(batch, texts, signatures, strict=True):
                    if self._file.read(row.id).state != "running":
                        break  # another operator has paused or aborted it in the middle of the wave
                    envelope = Envelope(document=text.decode(), signature=signature)
                    if not line.publish(f"{each.device}/desired", msgspec.json.encode(envelope), retain=True):
                        break
                    sent.append(each.device)
                self._settle(line)
                if line.connections != link:
                    sent.clear()  # the link broke: not known which of them the broker has
                self._file.published(row.id, sent, serial)
            finally:
                self._file.release(row.id, [each.device for each in batch if each.device not in sent], serial)
            for device in sent:
                self._progress.published(device)
            if len(sent) < len(batch):
                return
            if start + BATCH < len(wave):
                self._collect(line, row.id, 0.05)
                if self._has_failed(self._file.read(row.id), self._file.devices(row.id)):
                    return

    def _settle(self, line: BrokerLine) -> None:
        """Wait until the broker has acknowledged everything.

        Raises:
            AwayError: it does not.
        """
        deadline = time.monotonic() + 30.0
        while not line.is_settled:
            if time.monotonic() > deadline:
                raise AwayError(f"{self._login.url}: the broker does not acknowledge: try `rollout resume`")
            time.sleep(0.02)


def _document(row: RolloutRow, device: DeviceRow, serial: int) -> Desired:
    plan = row.plan
    about: dict[str, Any] = {
        "model": plan.model,
        "version": plan.version,
        "digest": plan.digest,
        "size": plan.size,
        "files": plan.files,
        "url": plan.url,
    }
    if plan.undoes is not None and device.before is not None:
        before = device.before
        about |= {"version": before["version"], "digest": before["digest"], "size": 0, "files": {}, "url": None}
    return Desired(
        device=device.device,
        rollout=row.id,
        serial=serial,
        device_class=plan.device_class,
        not_before=plan.not_before,
        expires=plan.expires,
        window=plan.window,
        **about,
    )


def outcomes(row: RolloutRow, devices: Sequence[DeviceRow]) -> list[Outcome]:
    """What became of each device, in the words of every command of the fleet."""
    return [_outcome(row, each) for each in devices]


_WORDS: dict[str, Result] = {
    "confirmed": "done",
    "probation": "done",
    "failed": "failed",
    "refused": "refused",
    "pinned": "unchanged",
}


def _outcome(row: RolloutRow, each: DeviceRow) -> Outcome:
    result: Result = _WORDS.get(each.state, "busy" if each.state else "away")
    text = each.why or each.state
    if each.is_waiting:
        result, text = "not tried", f"the rollout is {row.state}"
    elif each.why == TAKEN_BACK or (row.state in {"aborted", "undone"} and each.state in {"", "pending"}):
        result, text = "not tried", "its document was taken back before it began"
    elif not each.state and not each.published:
        result, text = "not tried", "interrupted while its document was published: `rollout resume` goes on"
    elif not each.state:
        text = "no report yet: it follows when it comes back"
    elif each.state == "probation":
        text = "on probation"
    is_same = each.before is not None and each.before.get("digest") == row.plan.digest
    if result == "done" and is_same and row.plan.undoes is None:
        result, text = "unchanged", f"it ran {row.plan.version} before"
    return Outcome(each.device, result, text, details={"wave": each.wave, "state": each.state})
