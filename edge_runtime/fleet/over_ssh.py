"""The work of the fleet's commands on a device that ssh reaches, by its own `edge-runtime models`.

An install that waits for another one is tried again for `BUSY_SECONDS`. Two operators send to separate folders; only
the part of a transfer is shared, and one of them claims it (`transfer.py`).
"""

import secrets
import time
from functools import partial
from pathlib import Path, PurePosixPath

import msgspec

from edge_runtime.errors import CommandError
from edge_runtime.fleet.bundle_files import BundleFiles, InstallOptions, kept_by_pin, pinned, require_class
from edge_runtime.fleet.errors import BusyError
from edge_runtime.fleet.inventory import FleetDevice
from edge_runtime.fleet.listing import (
    Listed,
    Unwanted,
    details,
    in_service,
    read_listing,
    replaced,
    serving,
    to_leave,
    words,
)
from edge_runtime.fleet.overview import MARK, QUESTION, OverviewRow, fill_from_answer
from edge_runtime.fleet.rollout import Outcome, Result, Watcher, outcome_of
from edge_runtime.fleet.ssh import RemoteResult, as_account, as_root, run, script
from edge_runtime.fleet.table import size_in_words
from edge_runtime.fleet.transfer import send

INSTALL_SECONDS = 300.0  # the self-test on the device has 120 of its own, and a Zero 2 W loads slowly
ASK_SECONDS = 60.0
BUSY_SECONDS = 180.0
_BUSY_PAUSE_S = 3.0
_BUSY_WORDS = "another install is under way"

# A running daemon loads the new model itself; one that was never started, or ended without a model, is started.
_START = """service=edge-runtime@$1
systemctl is-enabled --quiet "$service" 2>/dev/null || exit 0
systemctl is-active --quiet "$service" 2>/dev/null && exit 0
systemctl start "$service" && echo started
"""


class SshTransport:
    """As `Transport`."""

    def flash(self, target: FleetDevice, watcher: Watcher, files: BundleFiles, options: InstallOptions) -> Outcome:
        """Bring a bundle to one device and make it active there."""
        require_class(target, files)
        if (pin := pinned(target, files.name, files.version)) is not None:
            return Outcome(target.name, "unchanged", pin)
        watcher.step(target.name, "asking what it runs")
        before = serving(listing(target), files.name)
        if before is not None and before["digest"] == files.digest and not options.stays_inactive:
            return Outcome(target.name, "unchanged", f"{words(before)} already", details=details(before, before))
        folder, own = str(PurePosixPath(target.store).parent / "incoming" / files.digest), secrets.token_hex(4)
        watcher.step(target.name, f"sending {size_in_words(files.path.stat().st_size)}")
        for path in (files.path, *files.beside):
            # A signature is too small to be worth a bar.
            progress = partial(watcher.bytes, target.name) if path == files.path else _no_progress
            send(target, path, folder, f"{own}/{_there(files, path)}", progress=progress)
        watcher.step(target.name, "installing")
        bundle = f"{folder}/{own}/{_there(files, files.path)}"
        answer = _install(target, bundle, options)
        # A refused bundle is useless there, and an accepted one has been copied into the store.
        run(target, as_account(target.account, script(_CLEAN, folder, own)), timeout=ASK_SECONDS)
        if answer.code != 0:
            raise CommandError(_refusal(answer, bundle, files))
        after = serving(listing(target), files.name)
        if not options.stays_inactive and (after is None or after["digest"] != files.digest):
            raise CommandError(f"it took {files.name} {files.version}, but runs {words(after)}")
        text = _last_line(answer.out)
        if not options.stays_inactive:
            text += replaced(before, files.digest) + _start_service(target)
        return Outcome(target.name, "done", text, details=details(before, after))

    def confirm(self, target: FleetDevice, files: BundleFiles) -> str | None:
        """The fault of a device after it has run the new bundle for a while, or None."""
        for each in listing(target):
            if each["digest"] == files.digest:
                if each["state"] in {"active", "probation"}:
                    return None
                why = each.get("why") or "it went back by itself"
                return f"{files.name} {files.version} is {each['state']}: {why}"
        return f"{files.name} {files.version} is not there any more"

    def rollback(
        self, target: FleetDevice, watcher: Watcher, *, model: str | None, unwanted: Unwanted, key: Path | None
    ) -> Outcome:
        """Take one device back to the bundle before the active one; `key` is for devices that MQTT reaches."""
        del key
        watcher.step(target.name, "asking what it runs")
        listed = listing(target)
        before = to_leave(listed, model, unwanted)
        if before is None:
            return Outcome(target.name, "unchanged", f"it runs {in_service(listed)}")
        if (pin := kept_by_pin(target, before)) is not None:
            return Outcome(target.name, "unchanged", pin)
        watcher.step(target.name, f"going back from {words(before)}")
        answer = run(target, models(target, "rollback", before["name"]), timeout=ASK_SECONDS)
        if answer.code != 0:
            raise CommandError(answer.reason)
        after = serving(listing(target), before["name"])
        return Outcome(target.name, "done", _last_line(answer.out), details=details(before, after))

    def look(self, target: FleetDevice, watcher: Watcher) -> Outcome:
        """Ask one device everything, in one connection."""
        watcher.step(target.name, "asking")
        row = OverviewRow(name=target.name, group=target.group, kind=target.kind)

        def ask() -> Outcome:
            arguments = (target.runtime, target.service, target.store, target.allowed_signers)
            answer = run(target, as_account(target.account, script(QUESTION, *arguments)), timeout=ASK_SECONDS)
            row.reachable = True
            fill_from_answer(row, answer.out.split(MARK)[1:], answer.reason)
            result: Result = "failed" if row.why else "done"
            return Outcome(target.name, result, row.why)

        outcome = outcome_of(target, ask)
        row.why = outcome.text
        return msgspec.structs.replace(outcome, details={"row": row})


# Remove the folder of this flash, and its parent when no part is left there.
_CLEAN = 'cd "$1" && rm -rf -- "$2" && cd .. && rmdir -- "$1" 2>/dev/null; exit 0'


def _install(target: FleetDevice, bundle: str, options: InstallOptions) -> RemoteResult:
    """Run the install, and again while another one is under way.

    Raises:
        BusyError: it was still under way after `BUSY_SECONDS`.
    """
    install = ["install", *options.words(), "--device", target.name]
    install += [] if target.kind is None else ["--device-class", target.kind]
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        answer = run(target, models(target, *install, bundle), timeout=INSTALL_SECONDS)
        if answer.code == 0 or _BUSY_WORDS not in answer.reason:
            return answer
        if time.monotonic() >= deadline:
            raise BusyError(f"another install is under way there for more than {BUSY_SECONDS:.0f} s")
        time.sleep(_BUSY_PAUSE_S)


def _start_service(target: FleetDevice) -> str:
    """Start the service where it should run but does not.

    Raises:
        CommandError: it does not start, so that nothing serves.
    """
    answer = run(target, as_root(script(_START, target.service)), timeout=ASK_SECONDS)
    if answer.code != 0:
        raise CommandError(f"the bundle is installed, but the service does not start: {answer.reason}")
    return "; the service is started" if "started" in answer.out else ""


def models(target: FleetDevice, *arguments: str) -> list[str]:
    """Words that run `edge-runtime models` on a device, as the owner of its store."""
    common = ["models", "--store", target.store, "--allowed-signers", target.allowed_signers]
    missing = f"{target.runtime} is not installed: provision the device first"
    guarded = script('[ -x "$1" ] || { echo "$2" >&2; exit 69; }; shift 2; exec "$@"', target.runtime, missing)
    return as_account(target.account, [*guarded, target.runtime, *common, *arguments])


def listing(target: FleetDevice) -> list[Listed]:
    """The store of a device: name, version, digest, state, and the reason of a state.

    Raises:
        AwayError: the device cannot be reached.
        CommandError: it does not answer what was asked.
    """
    answer = run(target, models(target, "list", "--json"), timeout=ASK_SECONDS)
    if answer.code != 0:
        raise CommandError(answer.reason)
    return read_listing(answer.out)


def _there(files: BundleFiles, path: Path) -> str:
    # The same names on every device, independent of the local file's name.
    return "bundle.onnx" + path.name.removeprefix(files.path.name)


def _no_progress(done: int, total: int) -> None:
    """Show nothing."""


def _refusal(answer: RemoteResult, bundle: str, files: BundleFiles) -> str:
    text = answer.reason.replace(bundle, files.path.name)
    return text if answer.err.strip() else f"the install ended with exit code {answer.code}"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""
