"""A bundle -> the model store of one device, and back again.

The device decides: signature, structure, version and self-test are checked there, by its own runtime, before the one
rename that makes the bundle active. Whatever goes wrong on the way, the device keeps serving what it served. Flashing
what is active already changes nothing, so a rollout that broke off is resumed by the same command.
"""

import json
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from edge_runtime.bundle.open import open_bundle
from edge_runtime.bundle.release import RELEASE_SUFFIX
from edge_runtime.bundle.signature import SUFFIXES
from edge_runtime.errors import CommandError
from edge_runtime.fleet.inventory import Target
from edge_runtime.fleet.rollout import Outcome, Watcher
from edge_runtime.fleet.ssh import Answer, as_account, as_root, run, script
from edge_runtime.fleet.transfer import send

INSTALL_SECONDS = 300.0  # the self-test on the device has 120 of its own, and a Zero 2 W loads slowly
ASK_SECONDS = 60.0
SERVING = ("active", "probation")
# What travels with a bundle, where it exists: signatures, the release document, and a permission for an older version.
_BESIDE = (
    *SUFFIXES,
    *(RELEASE_SUFFIX + end for end in ("", *SUFFIXES)),
    ".allow-older",
    ".allow-older.sig",
)


class Cargo(msgspec.Struct, frozen=True):
    """What is flashed: a bundle, known to be sound here, and what lies beside it.

    Attributes:
        path: the bundle's file.
        name: the model's name.
        version: its version.
        digest: the SHA-256 of the file.
        beside: signature and permission, as far as they exist.
    """

    path: Path
    name: str
    version: str
    digest: str
    beside: tuple[Path, ...]


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What `flash` asks of the device's `models install` beyond its defaults."""

    unsigned: bool = False
    stage: bool = False
    shadow: bool = False
    retry_rejected: bool = False
    max_latency_ms: float | None = None
    max_memory_mib: int | None = None

    @property
    def waits(self) -> bool:
        """The bundle is not to be active yet."""
        return self.stage or self.shadow

    def words(self) -> list[str]:
        """The options."""
        found = ["--unsigned", "allow"] if self.unsigned else []
        found += ["--stage"] if self.stage else []
        found += ["--shadow"] if self.shadow else []
        found += ["--retry-rejected"] if self.retry_rejected else []
        found += [] if self.max_latency_ms is None else ["--max-latency", f"{self.max_latency_ms:g}"]
        return found + ([] if self.max_memory_mib is None else ["--max-memory", str(self.max_memory_mib)])


def load(path: Path, *, unsigned: bool) -> Cargo:
    """Looks at a bundle before any device does.

    Raises:
        BundleError: it is no sound bundle.
        CommandError: nobody has signed it, and that was not said to be meant.
    """
    bundle = open_bundle(path)
    beside = [path.with_name(path.name + suffix) for suffix in _BESIDE]
    found = tuple(each for each in beside if each.is_file())
    if beside[0] not in found and not unsigned:
        raise CommandError(
            f"{path}: expected its signature beside it, found no {beside[0].name}: "
            "`edge-convert sign` it, or use --unsigned for a device that allows that"
        )
    return Cargo(path, bundle.manifest.name, bundle.manifest.version, bundle.digest, found)


def flash(target: Target, watcher: Watcher, cargo: Cargo, wishes: Wishes) -> Outcome:
    """Brings a bundle to one device and makes it active there.

    Raises:
        TransientError: the device cannot be reached.
        CommandError: it refuses; the text is its own reason.
    """
    watcher.step(target.name, "asking what it runs")
    before = serving(target, cargo.name)
    if before is not None and before["digest"] == cargo.digest and not wishes.waits:
        return Outcome(target.name, "unchanged", f"{words(before)} already", details=details(before, before))
    folder = str(PurePosixPath(target.store).parent / "incoming" / cargo.digest)
    watcher.step(target.name, f"sending {cargo.path.stat().st_size} bytes")
    for path in (cargo.path, *cargo.beside):
        # A signature is too small to be worth a bar.
        progress = partial(watcher.bytes, target.name) if path == cargo.path else _untold
        send(target, path, folder, _there(cargo, path), progress)
    watcher.step(target.name, "installing")
    install = ["install", *wishes.words(), "--device", target.name, f"{folder}/{_there(cargo, cargo.path)}"]
    if target.kind is not None:
        install[-1:-1] = ["--device-class", target.kind]
    answer = run(target, models(target, *install), timeout=INSTALL_SECONDS)
    # A bundle that was refused is of no more use there; one that was taken has been copied into the store.
    run(target, as_account(target.account, ["rm", "-rf", "--", folder]), timeout=ASK_SECONDS)
    if answer.code != 0:
        raise CommandError(_refusal(answer, folder, cargo))
    after = serving(target, cargo.name)
    if not wishes.waits and (after is None or after["digest"] != cargo.digest):
        raise CommandError(f"it took {cargo.name} {cargo.version}, but runs {words(after)}")
    text = _last_line(answer.out) + ("" if wishes.waits else _start(target))
    return Outcome(target.name, "done", text, details=details(before, after))


# A daemon that runs takes the new model by itself; one that was never started, or gave up for want of a model, may now.
_START = """service=edge-runtime@$1
systemctl is-enabled --quiet "$service" 2>/dev/null || exit 0
systemctl is-active --quiet "$service" 2>/dev/null && exit 0
systemctl start "$service" && echo started
"""


def _start(target: Target) -> str:
    """Starts the service where it should run and does not; what cannot be done is no fault of the flash."""
    answer = run(target, as_root(script(_START, target.service)), timeout=ASK_SECONDS)
    if answer.code != 0:
        return f"; the service does not start: {answer.reason}"
    return "; the service is started" if "started" in answer.out else ""


def rollback(target: Target, watcher: Watcher, name: str | None) -> Outcome:
    """Takes one device back to the bundle before the active one; `name` may be left out where there is one model.

    Raises:
        TransientError: the device cannot be reached.
        CommandError: there is nothing to go back to.
    """
    watcher.step(target.name, "asking what it runs")
    running = [each for each in listing(target) if each["state"] in SERVING]
    if name is None:
        if len(running) != 1:
            known = ", ".join(each["name"] for each in running) or "none"
            raise CommandError(f"expected one model, found {len(running)} ({known}): name one with --model")
        name = running[0]["name"]
    before = next((each for each in running if each["name"] == name), None)
    watcher.step(target.name, f"going back from {words(before)}")
    answer = run(target, models(target, "rollback", name), timeout=ASK_SECONDS)
    if answer.code != 0:
        raise CommandError(answer.reason)
    return Outcome(target.name, "done", _last_line(answer.out), details=details(before, serving(target, name)))


def confirm(target: Target, cargo: Cargo) -> str | None:
    """What is wrong with a device after it has run the new bundle for a while; None when nothing is."""
    for each in listing(target):
        if each["digest"] == cargo.digest:
            if each["state"] in SERVING:
                return None
            return f"{cargo.name} {cargo.version} is {each['state']}: {each.get('why') or 'it went back by itself'}"
    return f"{cargo.name} {cargo.version} is not there any more"


def models(target: Target, *words: str) -> list[str]:
    """Words that run `edge-runtime models` on a device, as the owner of its store."""
    common = ["models", "--store", target.store, "--allowed-signers", target.allowed_signers]
    missing = f"{target.runtime} is not installed: provision the device first"
    guarded = script('[ -x "$1" ] || { echo "$2" >&2; exit 69; }; shift 2; exec "$@"', target.runtime, missing)
    return as_account(target.account, [*guarded, target.runtime, *common, *words])


def listing(target: Target) -> list[dict[str, Any]]:
    """What a device has in its store: name, version, digest, state, and why where there is a reason.

    Raises:
        TransientError: the device cannot be reached.
        CommandError: it does not answer what was asked.
    """
    answer = run(target, models(target, "list", "--json"), timeout=ASK_SECONDS)
    if answer.code != 0:
        raise CommandError(answer.reason)
    return read_listing(answer.out)


def read_listing(text: str) -> list[dict[str, Any]]:
    """The JSON of `models list --json`.

    Raises:
        CommandError: it is something else; an old runtime or a login that prints a greeting may be why.
    """
    try:
        found = msgspec.json.decode(text, type=list[dict[str, Any]])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CommandError(
            f"expected its list of models, found {json.dumps(text[:80])}: does its login print something?"
        ) from error
    return [each for each in found if {"name", "version", "digest", "state"} <= each.keys()]


def serving(target: Target, name: str) -> dict[str, Any] | None:
    """The bundle of a name that a device runs now."""
    return next((each for each in listing(target) if each["name"] == name and each["state"] in SERVING), None)


def _there(cargo: Cargo, path: Path) -> str:
    # The same names on every device, whatever the file is called here.
    return "bundle.onnx" + path.name.removeprefix(cargo.path.name)


def _untold(done: int, total: int) -> None:
    """Says nothing."""


def _refusal(answer: Answer, folder: str, cargo: Cargo) -> str:
    text = answer.reason.replace(f"{folder}/bundle.onnx", cargo.path.name)
    return text if answer.err.strip() else f"the install ended with exit code {answer.code}"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def words(found: dict[str, Any] | None) -> str:
    """A bundle of a listing, for people."""
    return "nothing" if found is None else f"{found['name']} {found['version']} ({found['digest'][:12]})"


def details(before: dict[str, Any] | None, after: dict[str, Any] | None) -> dict[str, object]:
    """What a program may want to know of a change."""
    return {"before": before, "after": after}
