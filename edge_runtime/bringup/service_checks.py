"""The checks of `doctor` for the installation: device file, bundles, store, signers, unit, and the running daemon."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from edge_runtime.bringup.finding import Finding
from edge_runtime.config.convert import names_a_file
from edge_runtime.config.load import load_config
from edge_runtime.config.tables import Config
from edge_runtime.daemon.plan import make_plan, plan_warnings
from edge_runtime.daemon.status_file import all_folders, status_files
from edge_runtime.errors import ConfigError

ETC = Path("/etc/edge-runtime")
_UNIT_FOLDERS = (Path("/etc/systemd/system"), Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))
_UNIT = "edge-runtime@.service"
_SYSTEMCTL_S = 10.0


def read_device(path: Path) -> tuple[Config | None, list[Finding]]:
    """The device file, or None and every mistake."""
    try:
        return load_config(path), [Finding(f"device file {path}", "ok", "no mistake in it")]
    except ConfigError as error:
        return None, [
            Finding("device file", "failure", mistake, "see docs/configuration.md") for mistake in error.mistakes
        ]


def check_bundles(config: Config) -> Iterator[Finding]:
    """Whether every bundle can be opened, is trusted, passes its self-test and fits its source."""
    try:
        plan = make_plan(config)
    except ConfigError as error:
        for mistake in error.mistakes:
            yield Finding("models", "failure", mistake)
        return
    for model in plan.models:
        manifest = model.bundle.manifest
        yield Finding(f"model {model.config.name}", "ok", f"{manifest.name} {manifest.version} loads and fits")
    for line in plan_warnings(plan):
        yield Finding("models", "warning", line)


def check_store(config: Config) -> Iterator[Finding]:
    """The model store's folder, and the keys that are trusted."""
    if all(names_a_file(model.bundle) for model in config.model):
        return
    folder = Path(config.store.path)
    if not folder.is_dir():
        yield Finding("model store", "failure", f"{folder}: not there", "edge-runtime models install BUNDLE makes it")
    elif not os.access(folder, os.R_OK | os.X_OK):
        yield Finding("model store", "failure", f"{folder}: may not be read", "run doctor as root or as edge-runtime")
    else:
        yield Finding("model store", "ok", str(folder))
    if config.store.allowed_signers is None:
        remedy = "set store.allowed_signers (docs/fleet.md) where others can reach this device"
        yield Finding("signers", "warning", "signatures are not asked for", remedy)
    elif shutil.which("ssh-keygen") is None:
        yield Finding("signers", "failure", "ssh-keygen is not installed", "apt install openssh-client")
    else:
        lines = Path(config.store.allowed_signers).read_text(errors="replace").splitlines()
        keys = [line for line in lines if line.strip() and not line.startswith("#")]
        if len(keys) < config.store.signatures:
            found = f"{len(keys)} keys in {config.store.allowed_signers}, {config.store.signatures} needed"
            yield Finding("signers", "failure", found, "add the public keys of those who sign")
        else:
            yield Finding("signers", "ok", f"{len(keys)} keys in {config.store.allowed_signers}")


def check_unit(config: Config, path: Path) -> Iterator[Finding]:
    """Whether the service is installed for this file, with its state from systemd and from the daemon."""
    unit = next((folder / _UNIT for folder in _UNIT_FOLDERS if (folder / _UNIT).exists()), None)
    running = any(True for folder in all_folders() for _ in status_files(folder, config.device.id))
    presence = "a daemon of this device is running" if running else "no daemon of this device is running"
    if unit is None:
        remedy = "install the package, or edge-runtime provision, for a service that starts at boot"
        yield Finding("service", "warning", f"{_UNIT} is not installed; {presence}", remedy)
        return
    if path.absolute().parent != ETC:
        remedy = f"copy it to {ETC}/{path.name}, where the unit looks for it"
        yield Finding("service", "warning", f"{unit} is installed, for files in {ETC}; {presence}", remedy)
        return
    name = f"edge-runtime@{path.stem}"
    states = {what: _systemctl(what, name) for what in ("is-active", "is-enabled")}
    found = f"{name}: {states['is-active']}, {states['is-enabled']} at boot; {presence}"
    if states["is-active"] != "active" or states["is-enabled"] != "enabled":
        yield Finding("service", "warning", found, f"systemctl enable --now {name}")
    else:
        yield Finding("service", "ok", found)


def _systemctl(what: str, unit: str) -> str:
    try:
        done = subprocess.run(
            ["systemctl", what, unit], capture_output=True, text=True, timeout=_SYSTEMCTL_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"
