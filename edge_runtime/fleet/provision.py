"""A fresh Raspberry Pi -> a device of the fleet: runtime, user, folders, service and configuration, over ssh.

Existing parts are not touched: a second run changes nothing, and a run after a break continues where it stopped. A new
runtime is built beside the old one and replaces it by one rename of a link; the service is restarted only after the new
runtime has accepted the configuration. `--dry-run` changes nothing. Needs root on the device, by login or by sudo
without a password.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import msgspec

from edge_runtime.config.load import parse_toml
from edge_runtime.errors import CommandError
from edge_runtime.fleet.inventory import FleetDevice
from edge_runtime.fleet.rollout import Outcome, Watcher
from edge_runtime.fleet.ssh import RemoteResult, as_account, as_root, run, script
from edge_runtime.fleet.transfer import send
from edge_runtime.fleet.wheels import Machine, Wheels, bundle, choose, locked_lines, needed_of
from edge_runtime.registered import SOURCES

ASK_SECONDS = 60.0
INSTALL_SECONDS = 1800.0  # pip unpacks 150 MB, which is slow on the card of a Zero 2 W
_ETC = "/etc/edge-runtime"
_OPT = "/opt/edge-runtime"
_OLDEST_PYTHON = (3, 11)
_PROCESSORS = ("aarch64", "x86_64")  # onnxruntime has wheels for no other Linux


class Managed(msgspec.Struct, frozen=True):
    """A file that a device is to have.

    Attributes:
        content: its bytes.
        path: where, on the device.
        mode: its permissions.
        group: whom it belongs to beside root.
        effect: the step after a change: `user`, `folders`, `unit`, `config`, or nothing.
    """

    content: bytes
    path: str
    mode: str = "0644"
    group: str = "root"
    effect: str = ""


class Supply(msgspec.Struct, frozen=True, kw_only=True):
    """The files for devices, beside the settings of the inventory.

    Attributes:
        wheelhouse: a folder of wheels for an installation without network; None lets the device fetch what it needs.
        wheel: the runtime's own wheel, where there is no wheelhouse.
        allowed_signers: whose bundles the device trusts.
        beside: files that go beside the device file, readable by the daemon only.
    """

    wheelhouse: Path | None = None
    wheel: Path | None = None
    allowed_signers: Path | None = None
    beside: tuple[Path, ...] = ()


class Facts(msgspec.Struct, frozen=True):
    """What a device is and has."""

    machine: Machine
    account: bool
    systemd: bool
    runtime: str
    digests: dict[str, str]
    enabled: bool
    active: bool


def provision(target: FleetDevice, watcher: Watcher, supply: Supply, *, dry_run: bool) -> Outcome:
    """Provision one device, or list the missing parts.

    Raises:
        TransientError: the device cannot be reached.
        CommandError: it cannot be a device, or a step failed; finished steps stay.
    """
    watcher.step(target.name, "looking")
    files = list(managed_files(target, supply))
    facts = look(target, [each.path for each in files])
    extras = extras_of(target.config)
    wheels = _wheels(supply, facts.machine, extras)
    steps = list(_steps(target, facts, files, wheels, supply=supply))
    if dry_run:
        would = [text for text, _ in steps]
        return Outcome(
            target.name, "unchanged", f"would {'; '.join(would) or 'change nothing'}", details={"would": would}
        )
    done = []
    for text, step in steps:
        watcher.step(target.name, text)
        step(watcher)
        done.append(text)
    note = _start(target, watcher, facts, changed=bool(done))
    if note:
        done.append(note)
    if not done:
        return Outcome(target.name, "unchanged", f"runtime {wheels.version} is all there")
    return Outcome(target.name, "done", "; ".join(done), details={"did": done})


def managed_files(target: FleetDevice, supply: Supply) -> Iterator[Managed]:
    """The files that a device is to have, in the order in which they are brought."""
    share = shared_folder()
    plain = (
        ("sysusers.d/edge-runtime.conf", "/etc/sysusers.d/edge-runtime.conf", "user"),
        ("tmpfiles.d/edge-runtime.conf", "/etc/tmpfiles.d/edge-runtime.conf", "folders"),
        ("modules-load.d/edge-runtime.conf", "/etc/modules-load.d/edge-runtime.conf", ""),
        ("edge-runtime@.service", "/etc/systemd/system/edge-runtime@.service", "unit"),
    )
    for name, path, effect in plain:
        yield Managed((share / name).read_bytes(), path, effect=effect)
    if supply.allowed_signers is not None:
        yield Managed(_read(supply.allowed_signers), target.allowed_signers)
    for each in supply.beside:
        yield Managed(_read(each), f"{_ETC}/{each.name}", "0640", target.account, "config")
    if target.config is not None:
        yield Managed(_read(Path(target.config)), f"{_ETC}/{target.service}.toml", "0640", target.account, "config")


def extras_of(config: str | None) -> frozenset[str]:
    """The extras that a device file needs, by the kinds of its sources; a file that is none needs none.

    Raises:
        ConfigError: it cannot be read as TOML.
    """
    sources = [] if config is None else parse_toml(Path(config)).get("source", [])
    words = [each.get("type") for each in sources if isinstance(each, dict)] if isinstance(sources, list) else []
    return frozenset(extra for word in words if word in SOURCES and (extra := SOURCES.load(str(word)).extra))


def shared_folder() -> Path:
    """Where the units are: inside the installed package, or beside it in the source folder.

    Raises:
        CommandError: they are in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "share" / "systemd", package.parent / "systemd"):
        if (folder / "edge-runtime@.service").is_file():
            return folder
    raise CommandError(f"{package}: expected the service unit in share/systemd, found none: install the package again")


_LOOK = """account=$1 service=$2; shift 2
echo "processor $(uname -m)"
[ -x /usr/bin/python3 ] && python=/usr/bin/python3 || python=python3
$python -c 'import sys, venv, ensurepip; print("python", *sys.version_info[:2])' 2>/dev/null || echo "python none"
id -u "$account" >/dev/null 2>&1 && echo "account yes"
[ -d /run/systemd/system ] && echo "systemd yes"
[ -e /opt/edge-runtime ] && echo "runtime $(readlink /opt/edge-runtime || echo folder)"
[ -x /opt/edge-runtime/bin/edge-runtime ] || echo "runtime none"
systemctl is-enabled --quiet "edge-runtime@$service" 2>/dev/null && echo "enabled yes"
systemctl is-active --quiet "edge-runtime@$service" 2>/dev/null && echo "active yes"
for path in "$@"; do [ -f "$path" ] && echo "digest $(sha256sum "$path")"; done
echo "end yes"
"""


def look(target: FleetDevice, paths: list[str]) -> Facts:
    """What a device is and has; changes nothing.

    Raises:
        TransientError: the device cannot be reached.
        CommandError: it can never be a device, or the account lacks permissions.
    """
    answer = run(target, as_root(script(_LOOK, target.account, target.service, *paths)), timeout=ASK_SECONDS)
    lines = [line.partition(" ") for line in answer.out.splitlines()]
    facts = {key: value for key, _, value in lines}
    if "end" not in facts:
        if "sudo" in answer.err:
            raise CommandError("it needs root: log in as root, or allow sudo without a password")
        raise CommandError(answer.reason)
    pairs = [value.split("  ", 1) for key, _, value in lines if key == "digest"]
    digests = {path: digest for digest, path in pairs}
    version = tuple(int(each) for each in facts["python"].split() if each.isdigit())
    if facts["processor"] not in _PROCESSORS:
        raise CommandError(f"expected a 64-bit system ({', '.join(_PROCESSORS)}), found {facts['processor']}")
    if len(version) != 2 or version < _OLDEST_PYTHON:
        found = facts["python"].replace(" ", ".")
        raise CommandError(f"expected Python 3.11 or newer with venv, found {found}: apt install python3-venv")
    return Facts(
        machine=Machine(facts["processor"], (version[0], version[1])),
        account="account" in facts,
        systemd="systemd" in facts,
        runtime=facts.get("runtime", "none"),
        digests=digests,
        enabled="enabled" in facts,
        active="active" in facts,
    )


Step = tuple[str, Callable[[Watcher], None]]


def _steps(
    target: FleetDevice, facts: Facts, files: list[Managed], wheels: Wheels, *, supply: Supply
) -> Iterator[Step]:
    """The steps in order, each with its words."""
    stale = [each for each in files if facts.digests.get(each.path) != hashlib.sha256(each.content).hexdigest()]
    # The user first: files belong to it.
    early = [each for each in stale if each.effect in {"user", "folders"}]
    for each in early:
        yield f"write {each.path}", lambda _, each=each: _write(target, each)  # type: ignore[misc]
    if not facts.account:
        yield f"make the user {target.account}", lambda _: _root(target, _MAKE_USER, target.account)
    if early or not facts.account:
        yield "make the folders", lambda _: _root(target, _MAKE_FOLDERS, target.account, target.store)
    if PurePosixPath(facts.runtime).name != f"edge-runtime-{wheels.tag}":
        offline = supply.wheelhouse is not None
        yield (
            f"install the runtime {wheels.version} ({'offline' if offline else 'from the network'})",
            lambda watcher: _install(target, watcher, wheels, offline=offline),
        )
    for each in stale:
        if each not in early:
            yield f"write {each.path}", lambda _, each=each: _write(target, each)  # type: ignore[misc]
    if facts.systemd and any(each.effect == "unit" for each in stale):
        yield "tell systemd", lambda _: _root(target, "systemctl daemon-reload")
    if not facts.enabled and target.config is not None:
        yield (
            f"enable edge-runtime@{target.service}",
            lambda _: _root(target, 'systemctl enable "edge-runtime@$1"', target.service),
        )


_MAKE_USER = """set -e
if command -v systemd-sysusers >/dev/null; then systemd-sysusers /etc/sysusers.d/edge-runtime.conf; fi
id -u "$1" >/dev/null 2>&1 || useradd --system --home-dir /var/lib/edge-runtime --shell /usr/sbin/nologin "$1"
if getent group dialout >/dev/null; then usermod -a -G dialout "$1"; fi
"""
_MAKE_FOLDERS = """set -e
if command -v systemd-tmpfiles >/dev/null; then systemd-tmpfiles --create /etc/tmpfiles.d/edge-runtime.conf || true; fi
install -d -m 0750 -o root -g "$1" /etc/edge-runtime
install -d -m 0750 -o "$1" -g "$1" /var/lib/edge-runtime "$2"
"""
_WRITE = """set -e
path=$1 mode=$2 group=$3
mkdir -p "$(dirname "$path")"
new=$(mktemp "$path.XXXXXX")
trap 'rm -f "$new"' EXIT
cat > "$new"
chmod "$mode" "$new"
chgrp "$group" "$new"
sync "$new" 2>/dev/null || true
mv "$new" "$path"
"""
# Built under its final name, since a virtual environment cannot be moved; `complete` is written last.
_BUILD = """set -e
home=/opt/edge-runtime-$1 wheels=$2
if [ -e /opt/edge-runtime ] && [ ! -L /opt/edge-runtime ]; then
  echo "/opt/edge-runtime is a folder of another installation: remove it, or update it the way it was made" >&2; exit 73
fi
if [ ! -f "$home/complete" ]; then
  rm -rf "$home"
  umask 022
  # Unpacked it is four times as large, and what a full disk does to venv and pip they do not always say.
  needed=$(( $(du -sk "$wheels" | cut -f1) * 4 ))
  if [ "$(df -Pk /opt | awk 'NR == 2 { print $4 }')" -lt "$needed" ]; then echo "No space left" >&2; exit 74; fi
  # The system's own: one below a user's home may be closed to the daemon's user.
  [ -x /usr/bin/python3 ] && python=/usr/bin/python3 || python=python3
  $python -m venv "$home"
  # pip runs as root here: it takes files whose digests stand in the list, and nothing else.
  (cd "$wheels" && "$home/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \\
    --requirement requirements.txt)
  "$home/bin/edge-runtime" --version >/dev/null
  sync
  : > "$home/complete"
fi
before=$(readlink /opt/edge-runtime || true)
ln -sfn "edge-runtime-$1" /opt/edge-runtime.new
mv -T /opt/edge-runtime.new /opt/edge-runtime
for old in /opt/edge-runtime-*; do
  case $old in "$home" | "/opt/$before") ;; *) rm -rf "$old" ;; esac
done
rm -rf "$wheels"
"""


def locked_packages() -> Path:
    """What a device needs beside the runtime, as exact releases with digests: in the package, or in the source folder.

    Raises:
        CommandError: they are in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    for path in (package / "share" / "locked" / "device.txt", package.parent / "tests" / "locked" / "device.txt"):
        if path.is_file():
            return path
    raise CommandError(f"{package}: expected share/locked/device.txt, found none: install the package again")


def _install(target: FleetDevice, watcher: Watcher, wheels: Wheels, *, offline: bool) -> None:
    root = msgspec.structs.replace(target, account="root")
    folder = f"/var/cache/edge-runtime/{wheels.tag}"
    total = sum(path.stat().st_size for path in wheels.files)
    before = 0
    for path in wheels.files:

        def progress(done: int, _: int, before: int = before) -> None:
            watcher.bytes(target.name, before + done, total)

        send(root, path, folder, path.name, progress=progress)
        before += path.stat().st_size
    watcher.step(target.name, f"unpacking the runtime {wheels.version}")
    lines = locked_lines(wheels) + (
        "" if offline else needed_of(locked_packages().read_text(), extras_of(target.config))
    )
    _write(root, Managed(lines.encode(), f"{folder}/requirements.txt"))
    words = script(_BUILD, wheels.tag, folder)
    answer = run(target, as_root(words), timeout=INSTALL_SECONDS)
    if answer.code != 0:
        raise CommandError(_reason(answer))


def _write(target: FleetDevice, file: Managed) -> None:
    words = as_root(script(_WRITE, file.path, file.mode, file.group))
    answer = run(target, words, stdin=file.content, timeout=ASK_SECONDS)
    if answer.code != 0:
        raise CommandError(f"{file.path}: {_reason(answer)}")


def _root(target: FleetDevice, text: str, *arguments: str) -> None:
    answer = run(target, as_root(script(text, *arguments)), timeout=ASK_SECONDS)
    if answer.code != 0:
        raise CommandError(_reason(answer))


def _start(target: FleetDevice, watcher: Watcher, facts: Facts, *, changed: bool) -> str:
    """Start the service after a check of the configuration; return the result in words."""
    if target.config is None or (facts.active and not changed):
        return ""
    watcher.step(target.name, "checking its configuration")
    path = f"{_ETC}/{target.service}.toml"
    answer = run(target, as_account(target.account, [f"{_OPT}/bin/edge-runtime", "check", path]), timeout=ASK_SECONDS)
    if answer.code != 0:
        lines = answer.err.strip().splitlines()
        standing = "it goes on as before" if facts.active else "it is not started"
        return f"{standing}: {lines[0] if lines else _reason(answer)}" if changed else ""
    _root(target, 'systemctl restart "edge-runtime@$1"', target.service)
    return f"start edge-runtime@{target.service}"


def _wheels(supply: Supply, machine: Machine, extras: frozenset[str]) -> Wheels:
    if supply.wheelhouse is not None:
        return choose(supply.wheelhouse, machine, extras)
    if supply.wheel is None:
        raise CommandError("expected a wheel of the runtime or a wheelhouse, found neither: `make wheel`")
    return bundle([supply.wheel], extras)


def _reason(answer: RemoteResult) -> str:
    if "No space left" in answer.err:
        return "no space is left on the device"
    errors = [line for line in answer.err.splitlines() if line.startswith("ERROR")]  # pip's messages are long
    return errors[0].removeprefix("ERROR: ") if errors else answer.reason


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path}: expected a file to bring to the device, found: {error.strerror}") from error
