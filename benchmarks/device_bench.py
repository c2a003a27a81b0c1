"""One file that measures a board: `python device_bench.py` with the runtime installed, or `make device-bench`.

It needs the standard library and what a device has anyway, no broker, no sensor and no network: the sensor is a
pseudo-terminal, the model is embedded below, and predictions wait in memory as they do while a broker is away. It
writes one JSON file with the board's name; `python -m benchmarks.device_bench --page` makes `docs/boards.md` of all
files in `benchmarks/boards/`. CPU is what counts; wall-clock times are those of this run.
"""

import argparse
import base64
import contextlib
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tty
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edge_runtime import __version__
from edge_runtime.bundle.model import Model, ModelOptions
from edge_runtime.bundle.open import open_bundle

FORMAT = 1
BOARDS = Path(__file__).resolve().parent / "boards"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "boards.md"
SIMULATED = "\n<!-- a slow device, simulated -->"  # from here on by `benchmarks.slow_device`
PACED_HZ = 100
TICKS = os.sysconf("SC_CLK_TCK")
_TICKS_OF_CPU = slice(11, 13)  # utime and stime behind the name, proc(5)


def main() -> int:
    """Measure, and write the file; or write the page of all files."""
    parser = argparse.ArgumentParser(description="measures the edge runtime on this board")
    parser.add_argument("--name", default=board_name(), help="what the board is called (default: what it says itself)")
    parser.add_argument("--simulated", action="store_true", help="a virtual machine, a container or an emulator")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each figure at a pace")
    parser.add_argument("-o", "--output", type=Path, help="where to write (default: NAME.json)")
    parser.add_argument("--page", action="store_true", help="write docs/boards.md anew instead")
    options = parser.parse_args()
    if options.page:
        PAGE.write_text(page(sorted(BOARDS.glob("*.json"))), encoding="utf-8")
        return 0
    found = measure(options.name, simulated=options.simulated or is_virtual(), seconds=options.seconds)
    output = options.output or Path(f"{''.join(c if c.isalnum() else '-' for c in options.name).strip('-')}.json")
    output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"{output}: written; put it into benchmarks/boards/ and run --page")
    return 0


def board_name() -> str:
    """What the device tree says, else the processor."""
    with contextlib.suppress(OSError):
        return Path("/proc/device-tree/model").read_text().strip("\0\n ")
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def is_virtual() -> bool:
    """Whether a hypervisor runs this machine, as x86 tells."""
    with contextlib.suppress(OSError):
        return " hypervisor " in Path("/proc/cpuinfo").read_text().replace("\n", " ")
    return False


def measure(name: str, *, simulated: bool, seconds: float) -> dict[str, Any]:
    """Every figure of this board."""
    found: dict[str, Any] = {
        "format": FORMAT,
        "board": name,
        "simulated": simulated,
        "measured": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {"runtime": __version__, "onnxruntime": onnxruntime.__version__, "numpy": np.__version__},
    }
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder, "bench.onnx")
        bundle.write_bytes(zlib.decompress(base64.b64decode(MODEL)))
        found["model_us"] = _model(bundle)
        found |= _daemon(Path(folder), bundle, seconds)
    return found


def _model(bundle: Path) -> float:
    """CPU microseconds of one window of 20 x 6 through the model, median of 21 groups."""
    model = Model(open_bundle(bundle), ModelOptions())
    window = np.zeros((1, *model.manifest.input.tensor_shape), np.float32)
    groups = []
    for _ in range(21):
        began = time.process_time()
        for _ in range(200):
            model.run_borrowed(window)
        groups.append((time.process_time() - began) / 200)
    return round(statistics.median(groups) * 1e6, 1)


def _daemon(folder: Path, bundle: Path, seconds: float) -> dict[str, Any]:
    """Start, memory, and the CPU of a prediction at a pace and as fast as it goes, through a serial port."""
    master, slave = os.openpty()
    tty.setraw(slave)
    device = folder / "bench.toml"
    fields = ", ".join(f'"c{number}"' for number in range(6))
    device.write_text(
        f'[device]\nid = "bench"\nlog_level = "error"\n[[source]]\nname = "s"\ntype = "serial"\n'
        f'port = "{os.ttyname(slave)}"\nfields = [{fields}]\n'
        f'[[model]]\nname = "m"\nbundle = "{bundle}"\nsource = "s"\nstride = 10\n'
        f'[upstream]\nurl = "mqtt://127.0.0.1:9"\nreconnect_min = 60.0\n'
    )
    environment = os.environ | {"XDG_RUNTIME_DIR": str(folder), "RUNTIME_DIRECTORY": str(folder)}
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_runtime", "run", str(device)], env=environment, stderr=subprocess.PIPE
    )
    drained = threading.Thread(target=_drain, args=(process,), daemon=True)
    drained.start()
    try:
        _wait_for(lambda: _holds(process.pid, os.ttyname(slave)), "an open port")
        opened = time.monotonic()
        start_cpu = _cpu_s(process.pid)
        idle = {"rss_mib": _rss_mib(process.pid)}
        line = b"0.125,0.25,0.375,0.5,0.625,0.75\n"
        time.sleep(1.0)
        before = _cpu_s(process.pid)
        sent = 0
        due = time.monotonic()
        while sent < PACED_HZ * seconds:
            os.write(master, line)
            sent += 1
            due += 1.0 / PACED_HZ
            time.sleep(max(0.0, due - time.monotonic()))
        time.sleep(1.0)
        paced = (_cpu_s(process.pid) - before) / sent
        before, wall = _cpu_s(process.pid), time.monotonic()
        written = _flood(master, line, seconds / 2)
        took = time.monotonic() - wall
        time.sleep(1.0)
        spent = _cpu_s(process.pid) - before
        return {
            "start_s": round(opened - began, 2),
            "start_cpu_s": round(start_cpu, 2),
            "idle_rss_mib": idle["rss_mib"],
            "loaded_rss_mib": _rss_mib(process.pid),
            "paced": {
                "hz": PACED_HZ,
                "cpu_us_a_reading": round(1e6 * paced, 1),
                "core_percent": round(100 * paced * PACED_HZ, 2),
            },
            "saturated": {
                "readings_a_second": round(written / took),
                "cpu_us_a_reading": round(1e6 * spent / max(1, written), 1),
            },
        }
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        os.close(master)
        os.close(slave)


def _drain(process: "subprocess.Popen[bytes]") -> None:
    assert process.stderr is not None
    for _ in process.stderr:
        pass


def _flood(master: int, line: bytes, seconds: float) -> int:
    """Write as fast as the port takes it; returns the lines."""
    os.set_blocking(master, True)
    until, lines, block = time.monotonic() + seconds, 0, line * 64
    while time.monotonic() < until:
        done = os.write(master, block)
        while done < len(block):
            done += os.write(master, block[done:])
        lines += 64
    return lines


def _wait_for(condition: Any, what: str, most_s: float = 120.0) -> None:
    until = time.monotonic() + most_s
    while not condition():
        if time.monotonic() > until:
            raise SystemExit(f"device_bench: waited {most_s:g} s in vain for {what}")
        time.sleep(0.02)


def _holds(pid: int, device: str) -> bool:
    with contextlib.suppress(OSError):
        return any(os.path.realpath(each) == device for each in Path(f"/proc/{pid}/fd").iterdir())
    return False


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(each) for each in fields[_TICKS_OF_CPU]) / TICKS


def _rss_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / 2**20, 1)


def page(files: list[Path]) -> str:
    """`docs/boards.md`, of one file a board; what `benchmarks.slow_device` has written there stays."""
    _, begin, simulated = PAGE.read_text(encoding="utf-8").partition(SIMULATED)
    return "\n".join([*_HEAD, *_rows(files), *_TAIL]) + begin + simulated


def _rows(files: list[Path]) -> Iterator[str]:
    for path in files:
        board = json.loads(path.read_text(encoding="utf-8"))
        assert board["format"] == FORMAT, f"{path}: format {board['format']}"
        name = board["board"] + (" (virtual machine)" if board["simulated"] else "")
        paced, saturated = board["paced"], board["saturated"]
        cells = [
            f"{name}, {board['cores']} cores, {board['memory_mib']} MiB",
            board["measured"],
            f"{board['model_us']:g}",
            f"{paced['cpu_us_a_reading']:g} ({paced['core_percent']:g} % of a core)",
            f"{saturated['readings_a_second']:,}",
            f"{saturated['cpu_us_a_reading']:g}",
            f"{board['start_s']:g} ({board['start_cpu_s']:g} of CPU)",
            f"{board['idle_rss_mib']:g} / {board['loaded_rss_mib']:g}",
        ]
        yield f"| {' | '.join(cells)} |"


_COLUMNS = (
    "Board",
    "Measured",
    "Model, CPU us a window",
    "At 100 readings/s, CPU us a reading",
    "Flooded, readings/s",
    "Flooded, CPU us a reading",
    "Start, s",
    "Memory idle / after, MiB",
)
_HEAD = [
    "# Boards",
    "",
    "Written by `python -m benchmarks.device_bench --page` from `benchmarks/boards/*.json`, one file a board.",
    "No figure of a physical board is here yet. `make device-bench` measures yours in about a minute: add its file.",
    "",
    f"| {' | '.join(_COLUMNS)} |",
    "|---" * len(_COLUMNS) + "|",
]
_TAIL = [
    "",
    "The model takes windows of 20 readings of six channels, a new one every ten readings, and has four classes.",
    "Readings are lines of CSV on a pseudo-terminal, which has no speed of its own. Predictions are made, encoded and",
    "kept in the outbox's memory; no broker is there. `Start` is from the start of the process to the open port.",
    "A virtual machine tells less than a board: its processor is shared, and its disk is not a card.",
    "",
]

# A bundle as `edge-convert` writes it, zlib and base64: one matrix product of windows of 20 x 6 with four classes.
MODEL = (
    "eNqdWF9PG0cQPxICzkURxM1DqqRSdKr6ABSbQAhCCnfL2aSkpsFq0kqNouhsn48L5kx8ZxsSIfkz9BPwSTi/9bWvffNH6e7e7s7cYqkqKzn2/p"
    "nZ38z8ZnZIoVC8k/hxEm///cD83pwbhlGrOyzOtjteYs3v0X8TP1q6Z856Z2H8aOZy5pb51OS75vzQD4OjJC7On/a6rX4zseYOvOSg3zGfmHLJ"
    "nG2EXlyc63SDMImt26TVMn8wxbQ4Fze7PT+25n/ttpMT7yx/z3NT7BfvdLyG37HmSC840E4tLZiFY98/bYUn8SODLhTnGv2o1fGX/lwonBVmF2"
    "d2Jc7XowXDGO0YhmNn35cp/aa/DfZJs2+2zj580LnDzlzBPhtsrtbF/NLOdJXHdGEMMkqfQ79TocfJMDji3kkKdzJMTLcxEudHBgyJUeBk56QO"
    "vibtGQnbJL4dsSfvScEP8m6O/wp0chmxNpY40B6Tk/5zbMBs2HmM3I6rbL44BkzjNG8Dv9vOcBjCFnZmIuxxpC/FOTmcFM6z9bGdyT0dZ+tPhd"
    "8vU4inIX1joxihmHK/G+CzscCg7EPykkcqDinEmWG/FPqZ7dwXyM8yBlzWQbG5QnEfgb/lHfI+5SsR37KT6VccQn7mcpijck/GSfhwYgNXZXwk"
    "nyaSY1fXc4PnAPItzg0ZX2m3geIhsUoMnONjsGucAr8uU9Ap9yZCZix5cAXxlL7DeSL9YqA4GDIPUshB5XvJLYGR8cpxhE6pdwTxcXR+oLriCJ"
    "ySYyqPUd2ROid23rdGms+BsY1y24Y1iUvaL3N3gnjsII4qLDiWklsGipEN/B/LXN4B+1Tsd6BOqlzTfGTY+ZyXOlR9wfXEyLA4NsphwdFJCry+"
    "RJxS8gKHtHuE+TuC/HFw7EbA1Ul6PS7STlnHx+hOQ/iN3cH8I8/L3MC1coTeEvVtQ3xHdt6fYxtqCq5X6k1KAZvUP7aBW4bMHRY7Bzgj3xVV+3"
    "ZETgm/T5APHYzJAD/h+iE5p9Z24LeTLj3hLzJvCl4vIqu59/74TvUf35gPCjPF++bt4swv5q3CQ/qZazw0s0ageM+8W5gv3uG7jW9Vm7Bg3qdC"
    "d6XQ7O6saSw+6P3z2LzvtwJ/9cSLwjbtdYp/Pf5qtbu9E9ribK+tWGF02qe/vlrNIy+K/E5sbb//akXeiW9tW82ytWL1vCigk/c/rpX5WC2vqF"
    "8fVqx+FFJ5a826WAG5tRvKPbuh3PoN5TZuKPf8/8jRSRZZ5uaOHwXJkbX9rLxixUkvbFEVa+WLixWpu+FHzSOqvttPRGR43FlcLI+uN+inST8t"
    "6wMV6vmf+yFrI+m5sPdx4PfisBtZ21tUQRSd9fpREnK1a6vPWDC7p7HPAv+CysZ+p83aXybrJd2OtU2Rl8uYFC0v8agwyY8SIS45HBIS1LYIqb"
    "p0vpvNK3RO2JyQAZ3X2XzfXc7N+b5LBgE7vyFUunw/00e4/KE6z0amn9Ty83pN6tvl8nzsEzUPahvifhedz4a6T9gzyOnPBj+/D3iCzB41h/Mu"
    "ngMeJZ/ZK85q+MiyulD5i+oL5BzkAa/AV4H70T7JyVeRP5i/hX/V/VURzwDHNxtZPME/dc3/GI+KF7qPjyrgryN8Sl91uvw1/waaPxW/iOIX+O"
    "86H1U8CdgL97kovpg/mn/RecVffr+L/UEUPxQf3al8Dmoa/qn+hPzK5c8QxxfZV4X8ItPOE40PIj95vHU8HD/wMdvX+ZnNkX4Vr3otHw+MX+nT"
    "+biv8bvqTs2/QS7/UT7vI32avbr99VoeP78f4Yf6hPyF61Elz6dM3kX5s6HsB3xa/uP6heI/AD6CfEXLFy1/puJB/COoHiN8wI+Mr8s5PIJPis"
    "9kWr1H+qta/aiC/kCrV0TjQ/1avdLyQaungcZvqAdoH9ULXP8Oc/EUY1r+4PxV8XM1f8t8ztdTiL+szxv5+qrxAfzvavmC3gdUfwjKD+VvxOfr"
    "723+PSa1Ke8Dii/R/Yny8xDe1zx+vV7q7zXuB2oav5V/diE+qB5dqwfT6ufUepOrb6h/0eKP6ouqPzIeAZbX8eJ8Ilq+gz117f0mmj3AN/w+o/"
    "xB7y/Uf1d7v3U+aPUE92sKP8o/3C8Jf7B2Mzk/ZX1ku9P1knXWp8dHHlt5v7FCe9lN1ozyRvXjSRjTPy6aR6wpLcs+NlaNLG4rA8QXNQ7gJ+y/"
    "RBDCKNncwADY3eJ/U0H53m+l4zf7h0eVSuvN8k9bpU/DN82D9Vcv3LfHg0/P97+8G7RKh8PBSbvyrrq82Tw//739utZ4+2LvbetzaX2rRDY/Nw"
    "8rzS+lLz8PX0VxaW+9cX5Qf/nyP3xBwbC2XLXTawxbt99r+gxbu0eb/GG3d0yl+f88U1nVs/O/MazEi9lus+PFcdgOm17CNnPHVqli6+Jff2Wz"
    "eg=="
)

if __name__ == "__main__":
    sys.exit(main())
