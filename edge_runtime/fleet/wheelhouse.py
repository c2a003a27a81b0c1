"""A folder with every wheel that a device needs: `python -m edge_runtime.fleet.wheelhouse dist/*.whl -o wheelhouse`.

For other processors and Pythons too, since pip can fetch wheels that it cannot run. Source packages are never used: a
device compiles nothing. With `--lock` a file with an unlisted digest is refused. Existing files stay, so one folder can
serve several kinds of devices.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_runtime.errors import CommandError, EdgeError
from edge_runtime.fleet.wheels import Machine, choose

# The C libraries of Debian 12 and of Raspberry Pi OS on it (2.36) run wheels for all of these.
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014")
MACHINES = {"arm64": "aarch64", "amd64": "x86_64", "aarch64": "aarch64", "x86_64": "x86_64"}


def gather(wheel: Path, folder: Path, machine: Machine, lock: Path | None = None) -> int:
    """Fetches what is missing for one kind of device, and returns how many wheels it needs.

    With a lock (exact releases with digests, in pip's format) no other file is accepted; without one pip takes the
    newest releases that fit.

    Raises:
        CommandError: pip finds no wheel for it; the text is pip's reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    python = ".".join(map(str, machine.python))
    words = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download"]
    words += ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", "--dest", str(folder)]
    words += [word for each in _PLATFORMS for word in ("--platform", f"{each}_{machine.processor}")]
    words += [str(wheel)] if lock is None else ["--no-deps", "--require-hashes", "--requirement", str(lock)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise CommandError(f"{machine}: {errors[0] if errors else done.stderr.strip()[-300:]}")
    if lock is not None:
        shutil.copy2(wheel, folder / wheel.name)
    return len(choose(folder, machine).files)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetches wheels for every combination asked for."""
    parser = argparse.ArgumentParser(prog="wheelhouse", description="Fetch every wheel that devices need.")
    parser.add_argument("wheel", type=Path, help="the runtime's own wheel")
    parser.add_argument("-o", "--output", type=Path, default=Path("wheelhouse"), help="default: wheelhouse")
    parser.add_argument("--machine", action="append", choices=sorted(MACHINES), help="default: aarch64")
    parser.add_argument("--python", action="append", metavar="3.N", help="default: 3.11 and 3.13 (Debian 12 and 13)")
    parser.add_argument("--lock", type=Path, metavar="FILE", help="exact releases and digests, as pip reads them")
    args = parser.parse_args(arguments)
    try:
        for name in args.machine or ["aarch64"]:
            for python in args.python or ["3.11", "3.13"]:
                machine = Machine(MACHINES[name], (3, int(python.removeprefix("3."))))
                count = gather(args.wheel, args.output, machine, args.lock)
                sys.stdout.write(f"{args.output}: {count} wheels for {machine}\n")
    except (EdgeError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
