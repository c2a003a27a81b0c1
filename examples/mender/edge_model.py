#!/usr/bin/env python3
"""A Mender update module: lets a Mender server bring models to devices that run edge-runtime.

Mender calls it with the name of a state and a folder (update module protocol, version 3). The payload is a bundle and
the files beside it: `NAME.onnx`, `NAME.onnx.sig`, and where there are any `.release`, `.sig2` and so on. The checks are
the store's own, `edge-runtime models install`: signature, structure, version, class, golden answers. A rollback takes
back only what this update has changed. The standard library alone is needed; nothing is rebooted.

Weak point: a commit waits for the model's probation, so a device whose daemon does not run fails the update in time.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNTIME = os.environ.get("EDGE_RUNTIME", "/opt/edge-runtime/bin/edge-runtime")
ACCOUNT = os.environ.get("EDGE_ACCOUNT", "edge-runtime")  # the owner of the store; empty: as who calls
STORE = os.environ.get("EDGE_STORE", "")  # empty: edge-runtime's own default
ALLOWED_SIGNERS = os.environ.get("EDGE_ALLOWED_SIGNERS", "")
CONFIRM_S = float(os.environ.get("EDGE_CONFIRM_S", "900"))  # probation is 600 s by default; 0: do not wait for its end
LOOK_S = 2.0
IN_SERVICE = ("active", "probation")

Listed = dict[str, str]


class ModuleError(Exception):
    """The state has failed, and why."""


def models(*words: str) -> str:
    """What `edge-runtime models` prints.

    Raises:
        ModuleError: it refuses; the text is its own last line.
    """
    as_owner = ["runuser", "-u", ACCOUNT, "--"] if ACCOUNT and os.geteuid() == 0 else []
    more = ["--store", STORE] if STORE else []
    more += ["--allowed-signers", ALLOWED_SIGNERS] if ALLOWED_SIGNERS else []
    try:
        done = subprocess.run(
            [*as_owner, RUNTIME, "models", *more, *words], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise ModuleError(f"{RUNTIME}: {error.strerror}: is edge-runtime installed?") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ModuleError(lines[-1])
    return done.stdout


def listed() -> list[Listed]:
    """Every bundle of the store, as `models list --json` has them."""
    found: list[Listed] = json.loads(models("list", "--json"))
    return found


def bundle_of(folder: Path) -> Path:
    """The bundle of the payload.

    Raises:
        ModuleError: there is none, or more than one.
    """
    found = sorted((folder / "files").glob("*.onnx"))
    if len(found) != 1:
        names = ", ".join(each.name for each in found) or "none"
        raise ModuleError(f"{folder}/files: expected one .onnx bundle, found {names}: one model an artifact")
    return found[0]


def install(folder: Path) -> None:
    """Bring the bundle in. What ran before is kept in the folder first, so that a rollback knows it."""
    bundle = bundle_of(folder)
    noted = folder / "tmp" / "before.json"
    if not noted.exists():  # a second call of one update, after a power cut, keeps what the first one saw
        noted.write_text(json.dumps(listed()))
    with tempfile.TemporaryDirectory() as readable:  # Mender's own folder is for root alone
        for path in bundle.parent.iterdir():
            shutil.copy(path, readable)
        if ACCOUNT and os.geteuid() == 0:
            for path in (Path(readable), *Path(readable).iterdir()):
                shutil.chown(path, ACCOUNT)
        print(models("install", str(Path(readable) / bundle.name)).strip())


def commit(folder: Path) -> None:
    """Succeed once the bundle has proved itself.

    Raises:
        ModuleError: it went back by itself, or was not confirmed in time.
    """
    digest = digest_of(folder)
    deadline = time.monotonic() + CONFIRM_S
    while True:
        found = next((each for each in listed() if each["digest"] == digest), None)
        if found is None or found["state"] not in IN_SERVICE:
            state = "not there" if found is None else f"{found['state']}: {found.get('why', 'it is not in service')}"
            raise ModuleError(f"expected the bundle in service, found it {state}")
        if found["state"] == "active" or CONFIRM_S <= 0:
            return
        if time.monotonic() >= deadline:
            raise ModuleError(f"the bundle was still on probation after {CONFIRM_S:g} s: does the daemon run?")
        time.sleep(LOOK_S)


def roll_back(folder: Path) -> None:
    """Go back to what ran before, if this update has changed it and the device has not gone back by itself."""
    noted = folder / "tmp" / "before.json"
    if not noted.exists():
        return  # the install has not begun
    digest = digest_of(folder)
    ran_before = any(each["digest"] == digest and each["state"] in IN_SERVICE for each in json.loads(noted.read_text()))
    now = next((each for each in listed() if each["digest"] == digest and each["state"] in IN_SERVICE), None)
    if now is not None and not ran_before:
        print(models("rollback", now["name"]).strip())


def digest_of(folder: Path) -> str:
    """The SHA-256 of the bundle, by which the store knows it."""
    return hashlib.sha256(bundle_of(folder).read_bytes()).hexdigest()


def main(arguments: list[str]) -> int:
    """One call of Mender; a state that is not known does nothing, as the protocol asks."""
    state = arguments[0] if arguments else ""
    folder = Path(arguments[1]) if len(arguments) > 1 else Path()
    try:
        match state:
            case "SupportsRollback":
                print("Yes")
            case "NeedsArtifactReboot":
                print("No")
            case "ArtifactInstall":
                install(folder)
            case "ArtifactVerifyReboot" | "ArtifactCommit":
                commit(folder)
            case "ArtifactRollback":
                roll_back(folder)
            case _:
                pass  # Download too: Mender then writes the payload to `files`, and verifies it
    except (ModuleError, OSError) as error:
        print(f"edge-model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
