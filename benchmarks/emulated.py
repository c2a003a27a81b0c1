"""Bundles on an emulated arm64 processor: golden answers, and how far every answer is from this machine's.

    python -m benchmarks.emulated ROOT BUNDLE...

ROOT is a folder of Debian for arm64 with Python 3.11; it is entered by chroot, as root, with qemu-aarch64-static, and
nothing in it needs to be set up:

    debootstrap --arch=arm64 --foreign --variant=minbase --include=python3 bookworm UNPACKED
    for file in UNPACKED/var/cache/apt/archives/*.deb; do dpkg-deb -x $file ROOT; done
    pip download --only-binary=:all: --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
        --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 --python-version 3.11 --abi cp311 \
        --abi abi3 --abi none -d WHEELS onnxruntime numpy paho-mqtt msgspec pyserial
    for file in WHEELS/*.whl; do unzip -q $file -d ROOT/opt/site; done

Each bundle is asked its golden windows, and windows of seeded noise around them, on Cortex-A53, A72 and A76, for which
onnxruntime picks other kernels. The exit code is 1 where a golden answer is not given. An emulator says nothing about
a device's speed, and may run what a board does not.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from edge_runtime.bundle.golden import golden_windows
from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle

PROCESSORS = ("cortex-a53", "cortex-a72", "cortex-a76")
EMULATOR = "qemu-aarch64-static"
_NOISE_ROWS = 24
_CHECK = """
import sys
sys.path[:0] = ["/opt/site", "/opt/runtime"]
from pathlib import Path
import numpy as np
from edge_runtime.bundle.golden import check_golden
from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle

failed = 0
for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
    model = Model(open_bundle(path))
    try:
        check_golden(model)
        outcome = "golden answers given"
    except Exception as error:
        failed, outcome = 1, f"FAILED: {error}"
    known = np.load(path.with_suffix(".npz"))
    found = model.run(known["window"]).arrays()
    off = [
        f"{name} {int((part != known[name]).sum())} differ" if part.dtype.kind == "i"
        else f"{name} off by {np.abs(part.astype(float) - known[name]).max():.2g}"
        for name, part in found.items()
    ]
    print(f"  {path.name}: {outcome}; {', '.join(off)}", flush=True)
sys.exit(failed)
"""


def lay_out(bundle: Path, folder: Path) -> None:
    """A bundle, and what this machine answers, where the emulated one finds them."""
    model = Model(open_bundle(bundle))
    golden = model.manifest.selftest
    if golden is None:
        sys.exit(f"{bundle}: expected golden answers, found none: convert it again")
    windows = golden_windows(golden)
    noise = np.random.default_rng(0).normal(size=(_NOISE_ROWS, *windows.shape[1:])) * (windows.std() + 1e-3)
    around = windows[np.arange(_NOISE_ROWS) % len(windows)] + noise
    if model.manifest.input.dtype != "float32" or model.manifest.categories:
        around = np.clip(np.rint(around), windows.min(), windows.max())  # codes, tokens and indexes are whole numbers
    asked = np.ascontiguousarray(np.concatenate([windows, around]), dtype=np.float32)
    shutil.copyfile(bundle, folder / bundle.name)
    np.savez(folder / f"{bundle.stem}.npz", window=asked, **model.run(asked).arrays())  # type: ignore[arg-type]


def main(root: Path, bundles: list[Path]) -> int:
    """Ask every bundle on every processor."""
    emulator = shutil.which(EMULATOR)
    if emulator is None:
        sys.exit(f"expected {EMULATOR}, found none: apt-get install qemu-user-static")
    shutil.copyfile(emulator, root / EMULATOR)
    (root / EMULATOR).chmod(0o755)
    shutil.rmtree(root / "opt" / "runtime", ignore_errors=True)
    runtime = Path(__file__).resolve().parents[1] / "edge_runtime"
    shutil.copytree(runtime, root / "opt" / "runtime" / "edge_runtime", ignore=shutil.ignore_patterns("__pycache__"))
    code = 0
    with tempfile.TemporaryDirectory(dir=root / "opt") as name:
        folder = Path(name)
        (folder / "check.py").write_text(_CHECK)
        for bundle in bundles:
            lay_out(bundle, folder)
        inside = f"/opt/{folder.name}"
        for processor in PROCESSORS:
            print(processor, flush=True)
            done = subprocess.run(
                ["chroot", str(root), f"/{EMULATOR}", "/usr/bin/python3.11", f"{inside}/check.py", inside],
                env={**os.environ, "QEMU_CPU": processor}, stderr=subprocess.DEVNULL, check=False,
            )  # fmt: skip
            code = code or done.returncode
    return code


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), [Path(word) for word in sys.argv[2:]]))
