"""Instructions of one prediction on arm64, counted by an emulator: the bundle, and LiteRT with XNNPACK.

    python -m benchmarks.arm64_instructions ROOT [--data FOLDER] [NAME...]

ROOT is the folder of Debian for arm64 that `benchmarks.emulated` describes, with the wheels of ai-edge-litert,
flatbuffers, tqdm, typing_extensions and backports.strenum in `opt/site` too. The emulator is `qemu-aarch64` of the
package qemu-user, whose static form takes no plugins; gcc builds the plugin (`peers/count_instructions.c`). The count
of some calls is taken from that of more, so that the start cancels out; calls are those of `benchmarks.model_time`, on
Cortex-A53 (no dot products) and A76 (with them). Instructions are not time: an A53 takes more cycles for each than an
A76, and neither caches nor memory show.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import model_time
from benchmarks.model_time import DATA, RUNTIME, prepared, subjects
from benchmarks.targets import PEERS, ROOT

PROCESSORS = ("cortex-a53", "cortex-a76")
EMULATOR = "qemu-aarch64"
CALLS = (60, 260)
LITERT = "LiteRT"
_HOST = "host"  # where the emulator and its libraries stand below ROOT


def main() -> int:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.arm64_instructions", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("root", type=Path, help="a folder of Debian for arm64")
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of names; every model without any")
    parser.add_argument("--data", type=Path, default=DATA, help="default: ../shared/data")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        sys.exit(f"{arguments.data}: expected the folder of models and recordings, found none")
    emulator = install(arguments.root)
    heads = " | ".join(f"{processor}: runtime | LiteRT | ratio" for processor in PROCESSORS)
    print(f"| model | {heads} |\n|---|{'---:|' * 3 * len(PROCESSORS)}", flush=True)
    for subject in subjects():
        if LITERT not in subject.peers or (
            arguments.names and not any(name in subject.name for name in arguments.names)
        ):
            continue
        with tempfile.TemporaryDirectory(dir=arguments.root / "opt") as name:
            folder = Path(name)
            bundle, original, asked, _ = prepared(subject, arguments.data, folder)
            shutil.copyfile(original, folder / "original")
            shutil.copyfile(PEERS / "model_answer.py", folder / "model_answer.py")
            cells, inside = [subject.name], f"/opt/{folder.name}"
            for processor in PROCESSORS:
                started = [*emulator, "-cpu", processor, "/usr/bin/python3.11", f"{inside}/model_answer.py"]
                counts = [
                    per_call(arguments.root, [*started, kind, f"{inside}/{path}", f"{inside}/{asked.name}"])
                    for kind, path in ((RUNTIME, bundle.name), (LITERT, "original"))
                ]
                cells += [f"{count:,}" for count in counts] + [f"{counts[0] / counts[1]:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)
    return 0


def install(root: Path) -> list[str]:
    """Put emulator, plugin and runtime into the folder; the command that starts the emulator there.

    Raises:
        SystemExit: a program is missing.
    """
    for program, package in ((EMULATOR, "qemu-user"), ("gcc", "gcc")):
        if shutil.which(program) is None:
            sys.exit(f"expected {program}, found none: apt-get install {package}")
    host, emulator = root / _HOST, str(shutil.which(EMULATOR))
    host.mkdir(exist_ok=True)
    listed = subprocess.run(["ldd", emulator], capture_output=True, text=True, check=True).stdout
    libraries = [Path(name) for name in re.findall(r"(/\S+)", listed)]
    for path in (*libraries, Path(emulator)):
        shutil.copyfile(path, host / path.name)
        (host / path.name).chmod(0o755)
    source = PEERS / "count_instructions.c"
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", host / "count.so", source], check=True)
    runtime = root / "opt" / "runtime"
    shutil.rmtree(runtime, ignore_errors=True)
    shutil.copytree(ROOT / "edge_runtime", runtime / "edge_runtime", ignore=shutil.ignore_patterns("__pycache__"))
    cpus = root / "sys" / "devices" / "system" / "cpu"  # onnxruntime asks there, and finds no dot products otherwise
    cpus.mkdir(parents=True, exist_ok=True)
    for name in ("possible", "present"):
        (cpus / name).write_text("0\n")
    loader = next(path.name for path in libraries if path.name.startswith("ld-"))
    inside = f"/{_HOST}"
    return [f"{inside}/{loader}", "--library-path", inside, f"{inside}/{EMULATOR}", "-plugin", f"{inside}/count.so"]


def per_call(root: Path, command: list[str]) -> int:
    """Instructions of one call with one window, by a command that still wants the calls."""
    few, many = (_count(root, [*command, f"one {calls}"]) for calls in CALLS)
    return round((many - few) / (CALLS[1] - CALLS[0]))


def _count(root: Path, command: list[str]) -> int:
    environment = {**os.environ, "PYTHONPATH": "/opt/site:/opt/runtime", "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        ["chroot", str(root), *command],
        check=False, capture_output=True, text=True, env=environment, timeout=model_time.START_SECONDS,
    )  # fmt: skip
    found = re.search(r"instructions: (\d+)", done.stderr)
    if done.returncode or found is None:
        sys.exit(f"{command[-1]}: expected a count, found:\n{(done.stdout + done.stderr)[-1000:]}")
    return int(found.group(1))


if __name__ == "__main__":
    sys.exit(main())
