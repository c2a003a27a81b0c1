"""A signed rollout over the broker: publishes what each device is to run, wave by wave, and reads what came of it.

The host only moves retained documents: what has been published is followed by its devices, whether this machine is on
or not. Guarantee: a wave is published only while the rollout runs, and only when the devices of the waves before that
answer are confirmed, or on probation for the soak, and no more failed than allowed. Devices that do not report are
away: they hold up nothing, and converge when they come back.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.fleet.broker_line import CONNECTED, BrokerLine, Heard, Login
from edge_runtime.fleet.cli import limits_of
from edge_runtime.fleet.errors import AwayError
from edge_runtime.fleet.over_mqtt import sign
from edge_runtime.fleet.rollout import Outcome, Result
from edge_runtime.fleet.rollout_file import DeviceRow, RolloutFile, RolloutRow
from edge_runtime.store.desired_document import DESIRED_NAMESPACE, Desired, Envelope, Report

SILENT_S = 30.0  # without a report after its document was published, a device is away for now
SETTLE_S = 1.0  # for the broker's retained documents, after each connection
_TICK_S = 0.5


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

    def run(self, rollout: str, *, until_done: bool) -> None:
        """Publish and watch until the rollout is finished, stopped or paused; else only read what was reported.

        Raises:
            AwayError: the broker cannot be reached.
            CommandError: another operator has changed the rollout, or the key cannot be used.
        """
        with BrokerLine(self._login, ["+/rollout"]) as line:
            self._collect(line, rollout, SETTLE_S, wait_for_connection=True)
            self._finish(rollout)
            while until_done:
                row = self._file.read(rollout)
                if row.state != "running" or self._step(line, row) or self._once:
                    return
                self._collect(line, rollout, _TICK_S)

    def clear(self, rollout: str) -> None:
        """Take back the documents of devices that have not confirmed; what they have begun they finish.

        Raises:
            AwayError: the broker cannot be reached, or does not acknowledge.
        """
        with BrokerLine(self._login, ["+/rollout"]) as line:
            self._collect(line, rollout, SETTLE_S, wait_for_connection=True)
            for each in self._file.devices(rollout):
                if each.serial and each.state not in {"confirmed", "failed", "probation"}:
                    line.publish(f"{each.device}/desired", b"", retain=True)
            self._settle(line)

    def _collect(self, line: BrokerLine, rollout: str, seconds: float, *, wait_for_connection: bool = False) -> None:
        """Read reports for a while."""
        connected = not wait_for_connection
        deadline = time.monotonic() + (seconds if connected else 30.0)
        known = {each.device: each for each in self._file.devices(rollout)}
        while (left := deadline - time.monotonic()) > 0:
            heard = line.hear(left)
            if heard is None:
                break
            if heard.topic == CONNECTED:
                if not connected:
                    connected = True
                    deadline = time.monotonic() + seconds
                continue
            self._note(known, heard, rollout)
        if not connected:
            raise AwayError(f"{self._login.url}: the broker does not let us in")

    def _note(self, known: dict[str, DeviceRow], heard: Heard, rollout: str) -> None:
        row = known.get(heard.topic.partition("/")[0])
        try:
            found = msgspec.json.decode(heard.payload, type=Report)
        except (msgspec.MsgspecError, ValueError):
            return
        if row is None or found.rollout != rollout or found.serial != row.serial:
            return
        if row.before is None and found.before is not None:
            row.before = {"name": found.model, **found.before}
            self._file.ran_before(rollout, row.device, row.before)
        if (found.state, found.why or "") != (row.state, row.why):
            self._file.reported(rollout, row.device, found.state, found.why or "")
            row.state, row.why = found.state, found.why or ""
            if found.state in {"failed", "confirmed", "probation"}:
                self._say(f"{row.device}: {found.state}{f': {found.why}' if found.why else ''}")

    def _step(self, line: BrokerLine, row: RolloutRow) -> bool:
        """Publish the next wave if it is time; True when there is nothing more to do."""
        devices = self._file.devices(row.id)
        failed = sum(1 for each in devices if each.state == "failed")
        if not limits_of(row.plan.max_failures).allows(failed, len(devices)):
            self._file.change(row, "stopped", f"stopped: {failed} of {len(devices)} failed")
            self._say(f"stopping: {failed} of {len(devices)} failed")
            return True
        waiting = [each for each in devices if not each.serial]
        published = [each for each in devices if each.serial]
        if any(not _is_past(each, row.plan.soak) for each in published):
            return False
        if not waiting:
            self._finish(row.id)
            return True
        wave = [each for each in waiting if each.wave == waiting[0].wave]
        self._say(f"wave {wave[0].wave}: {len(wave)} devices")
        self._publish(line, row, wave)
        return False

    def _finish(self, rollout: str) -> None:
        """Note that nothing more will come of a rollout."""
        row = self._file.read(rollout)
        devices = self._file.devices(rollout)
        if row.state == "running" and all(each.state in {"confirmed", "failed"} for each in devices):
            self._file.change(row, "finished", "finished")

    def _publish(self, line: BrokerLine, row: RolloutRow, wave: Sequence[DeviceRow]) -> None:
        assert self._key is not None
        serial = self._file.next_serial()
        for each in wave:
            if self._file.read(row.id).state != "running":
                break  # another operator has paused or aborted it in the middle of the wave
            text = msgspec.json.encode(_document(row, each, serial)).decode()
            envelope = Envelope(document=text, signature=sign(self._key, text.encode(), namespace=DESIRED_NAMESPACE))
            line.publish(f"{each.device}/desired", msgspec.json.encode(envelope), retain=True)
            self._file.published(row.id, each.device, serial)
        self._settle(line)

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
    }
    if plan.undoes is not None and device.before is not None:
        before = device.before
        about |= {"version": before["version"], "digest": before["digest"], "size": 0, "files": {}}
    return Desired(
        device=device.device,
        rollout=row.id,
        serial=serial,
        device_class=plan.device_class,
        expires=plan.expires,
        window=plan.window,
        **about,
    )


def _is_past(row: DeviceRow, soak: float) -> bool:
    """Nothing more is waited for before the next wave: it is good, failed, waits for its time, or is away."""
    now = time.time()
    if row.state in {"confirmed", "failed", "pending"}:
        return True
    if row.state == "probation":
        return now - row.updated >= soak
    return row.state == "" and now - row.published >= SILENT_S


def outcomes(row: RolloutRow, devices: Sequence[DeviceRow]) -> list[Outcome]:
    """What became of each device, in the words of every command of the fleet."""
    words: dict[str, Result] = {"confirmed": "done", "probation": "done", "failed": "failed"}
    found = []
    for each in devices:
        result: Result = words.get(each.state, "busy" if each.state else "away")
        text = each.why or each.state
        if not each.serial:
            result, text = "not tried", f"the rollout is {row.state}"
        elif row.state == "aborted" and each.state in {"", "pending"}:
            result, text = "not tried", "its document was taken back before it began"
        elif not each.state:
            text = "no report yet: it follows when it comes back"
        elif each.state == "probation":
            text = "on probation"
        found.append(Outcome(each.device, result, text, details={"wave": each.wave, "state": each.state}))
    return found
