"""The workstation of the system tests: trains on the shared recordings and converts with the installed `edge-convert`.

A bundle is built once a test run, however many test processes ask for it.
"""

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.installed import Installed

Train = Callable[[], Any]


class Workshop:
    """Bundles by name, in a folder that every test process shares."""

    def __init__(self, installed: Installed, folder: Path) -> None:
        self._installed = installed
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def build(
        self,
        name: str,
        train: Train,
        spec: str,
        *,
        calibration: tuple[NDArray[Any], NDArray[Any] | None],
        evaluation: tuple[NDArray[Any], NDArray[Any] | None],
        quantize: str,
    ) -> Path:
        """The bundle of that name; `train` gives the fitted scikit-learn model, and is called only the first time.

        Raises:
            AssertionError: `edge-convert build` failed; what it printed is in the text.
        """
        bundle = self._folder / f"{name}.onnx"
        with (self._folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not bundle.exists():
                self._build(bundle, train, spec, calibration, evaluation=evaluation, quantize=quantize)
        return bundle

    def output_of(self, name: str) -> str:
        """What `edge-convert build` printed when it made the bundle of that name."""
        return (self._folder / f"{name}.txt").read_text()

    def _build(
        self, bundle: Path, train: Train, spec: str, calibration: Any, *, evaluation: Any, quantize: str
    ) -> None:
        import skops.io  # noqa: PLC0415 - most system tests need no scikit-learn

        source, specification = bundle.with_suffix(".skops"), bundle.with_suffix(".toml")
        skops.io.dump(train(), source)
        specification.write_text(spec)
        arguments: list[str | Path] = ["build", source, "--spec", specification, "--quantize", quantize, "-o", bundle]
        for option, (x, y) in (("calibration", calibration), ("evaluation", evaluation)):
            file = bundle.with_name(f"{bundle.stem}-{option}.npz")
            np.savez(file, **({"x": x} if y is None else {"x": x, "y": y}))
            arguments += [f"--{option}", file]
        done = self._installed.run(self._installed.edge_convert, *arguments, cwd=self._folder)
        bundle.with_suffix(".txt").write_text(done.stdout)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
