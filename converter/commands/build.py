"""`edge-convert build`: a trained model in, a proven bundle out, or no file at all."""

import argparse
from pathlib import Path

from converter.spec import Spec, load_spec
from edge_runtime.errors import EXIT_OK, CommandError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="skops, ONNX, XGBoost, LightGBM, PyTorch, Keras, TFLite, SavedModel; pickle with --trust",
    )
    parser.add_argument("--spec", type=Path, metavar="SPEC.toml", help="what the model does not tell")
    parser.add_argument("--data", type=Path, help=".npz (x, y), .csv or .parquet: split to calibrate and to judge")
    parser.add_argument("--calibration", type=Path, help="data to calibrate with, instead of a part of --data")
    parser.add_argument("--evaluation", type=Path, help="data to judge with, instead of a part of --data")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.onnx")
    parser.add_argument("--quantize", choices=("auto", "none", "int8", "dynamic", "float16"), default="auto")
    parser.add_argument(
        "--max-drop", type=float, default=0.01, metavar="DROP", help="of the metric, at most (default: 0.01)"
    )
    parser.add_argument(
        "--prefer",
        choices=("balanced", "size", "latency"),
        default="balanced",
        help="what is better among forms that keep the metric (default: balanced, bytes and time)",
    )
    parser.add_argument("--target", choices=("pi3", "pi4", "pi5", "zero2w"), help="the device that it is for")
    parser.add_argument("--sign", type=Path, metavar="KEY", help="sign the bundle with this private key")
    parser.add_argument("--report", type=Path, metavar="OUT.html", help="write a page that shows the proof")
    parser.add_argument("--trust", action="store_true", help="let code inside the model file run (pickle, joblib, ...)")
    parser.add_argument("--seed", type=int, default=0, help="of the split of --data (default: 0)")


def check(options: argparse.Namespace) -> None:
    """Check the options without reading the model.

    Raises:
        CommandError: the options contradict each other, or name folders that are not there.
    """
    if not 0 <= options.max_drop <= 1:
        raise CommandError(f"--max-drop: expected a share between 0 and 1, found {options.max_drop}")
    if options.data and (options.calibration or options.evaluation):
        raise CommandError("--data: expected either --data or --calibration and --evaluation, found both")
    if bool(options.calibration) != bool(options.evaluation):
        raise CommandError("--calibration and --evaluation: expected both, found one")
    for path in filter(None, (options.output, options.report)):
        if path.is_dir() or not path.parent.is_dir():
            raise CommandError(f"{path}: expected a file in a folder that exists")


def run(options: argparse.Namespace) -> int:
    """Build it."""
    check(options)
    spec = load_spec(options.spec) if options.spec else Spec()
    from converter.conversion import Conversion  # noqa: PLC0415 - heavy from here on

    Conversion(spec, options, say).run()
    return EXIT_OK


def say(text: str) -> None:
    """Print progress at once."""
    print(text, flush=True)
