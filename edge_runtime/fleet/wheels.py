"""The wheels of a wheelhouse for a device, and a tag for the set. Pure, except for reading the files."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from edge_runtime.errors import CommandError

DISTRIBUTION = "edge_inference_runtime"
_WHEEL = re.compile(
    r"^(?P<name>[A-Za-z0-9_.]+)-(?P<version>[^-]+)(-\d[^-]*)?-(?P<python>[^-]+)-(?P<abi>[^-]+)-(?P<platform>[^-]+)\.whl$"
)
# Packages beside the runtime that the device needs; without one pip would fail there, after the transfer.
NEEDED = ("numpy", "onnxruntime", "paho_mqtt", "pyserial", "msgspec")
# Packages that only some device files need, by extra.
OPTIONAL = {"modbus": ("pymodbus",)}


class Machine(msgspec.Struct, frozen=True):
    """The kind of a device, by `uname -m` and its Python.

    Attributes:
        processor: such as `aarch64`.
        python: major and minor version.
    """

    processor: str
    python: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.processor} with Python {self.python[0]}.{self.python[1]}"


class Wheels(msgspec.Struct, frozen=True):
    """The wheels that are sent to one device.

    Attributes:
        files: the wheels.
        version: of the runtime among them.
        tag: a short name for exactly these files, so that a device that has them is known by it.
    """

    files: tuple[Path, ...]
    version: str
    tag: str


def fits(name: str, machine: Machine) -> bool:
    """Whether a wheel of this name can be installed on a machine (PEP 425 and 600, glibc)."""
    found = _WHEEL.match(name)
    if found is None:
        return False
    platforms = found["platform"].split(".")
    on_machine = any(
        each == "any" or (each.startswith(("manylinux", "linux")) and each.endswith(f"_{machine.processor}"))
        for each in platforms
    )
    return on_machine and any(_fits_python(tag, found["abi"], machine.python) for tag in found["python"].split("."))


def _fits_python(tag: str, abi: str, python: tuple[int, int]) -> bool:
    if tag in {"py3", f"py3{python[1]}", f"cp{python[0]}{python[1]}"}:
        return True
    minor = tag.removeprefix("cp3")
    return "abi3" in abi.split(".") and minor.isdigit() and int(minor) <= python[1]


def choose(folder: Path, machine: Machine, extras: frozenset[str] | None = None) -> Wheels:
    """The wheels of a wheelhouse for one device: of each package the newest that fits.

    Args:
        folder: the wheelhouse.
        machine: the device.
        extras: those that the device needs; None takes what is there.

    Raises:
        CommandError: something that the runtime needs is not there for this machine.
    """
    chosen: dict[str, Path] = {}
    for path in sorted(folder.glob("*.whl"), key=_by_version):
        if fits(path.name, machine):
            found = _WHEEL.match(path.name)
            assert found is not None
            chosen[found["name"].lower().replace("-", "_").replace(".", "_")] = path
    optional = {name: extra for extra, names in OPTIONAL.items() for name in names}
    if extras is not None:
        chosen = {name: path for name, path in chosen.items() if name not in optional or optional[name] in extras}
    also = [name for name, extra in optional.items() if extras is not None and extra in extras]
    missing = [name for name in (DISTRIBUTION, *NEEDED, *also) if name not in chosen]
    if missing:
        raise CommandError(
            f"{folder}: expected wheels for {machine}, found none of {', '.join(missing)}: `make wheelhouse`"
        )
    return bundle(chosen.values())


def bundle(files: Iterable[Path], extras: Iterable[str] = ()) -> Wheels:
    """Names a set of wheels, the runtime among them, by its content, and by the extras that are fetched beside it."""
    files = tuple(sorted(files))
    own = next(path for path in files if path.name.startswith(f"{DISTRIBUTION}-"))
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    for extra in sorted(extras):
        total.update(f"[{extra}]\n".encode())
    return Wheels(files, own.name.split("-")[1], total.hexdigest()[:12])


def needed_of(lock: str, extras: frozenset[str]) -> str:
    """The entries of a lock without the packages of other extras than these."""
    left_out = {name for extra, names in OPTIONAL.items() if extra not in extras for name in names}
    entries = re.split(r"\n(?=\S)", lock)
    return "\n".join(each for each in entries if each.split("==")[0].replace("-", "_") not in left_out)


def locked_lines(wheels: Wheels) -> str:
    """Wheels that lie in the current folder, each with its digest, as `pip install --require-hashes` reads them."""
    digests = ((path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in wheels.files)
    return "".join(f"./{name} --hash=sha256:{digest}\n" for name, digest in digests)


def newest_wheel(folder: Path) -> Path:
    """The newest wheel of the runtime in a folder such as `dist`.

    Raises:
        CommandError: there is none.
    """
    found = sorted(folder.glob(f"{DISTRIBUTION}-*.whl"), key=_by_version)
    if not found:
        raise CommandError(f"{folder}: expected a wheel of the runtime, found none: `make wheel`")
    return found[-1]


def _by_version(path: Path) -> tuple[tuple[int, ...], str]:
    parts = path.name.split("-")
    return tuple(int(each) for each in re.findall(r"\d+", parts[1])) if len(parts) > 1 else (), path.name
