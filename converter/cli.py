"""`edge-convert`: the command line of the converter. Commands and exit codes only.

Exit codes: 0 done, 1 failed, 2 usage. A command is one module of `converter/commands/`, imported when it is used. A
mistake of the user ends in one readable message on stderr, never in a traceback.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from edge_runtime import __version__
from edge_runtime.errors import EXIT_FAILED, EXIT_USAGE, EdgeError
from edge_runtime.system.standard_streams import guarded

COMMANDS = {
    "build": "turn a trained model into a bundle, and prove it",
    "inspect": "show what a bundle says about itself",
    "compare": "run two models on the same data, side by side",
    "dataset": "merge what devices captured or recorded into one file for training",
    "label": "label captures or a recording on a local page",
    "keygen": "make a key to sign bundles with",
    "sign": "sign a bundle",
    "verify": "check a bundle's signature",
}
ISOLATED = ("build", "compare", "inspect")  # they read files of unknown origin: see `isolated.py`
_PROGRAMS = ("edge-convert", "cli.py")  # the program's own entry; a program that calls `main` itself gets no sandbox
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None, errors: TextIO | None = None) -> int:
    """Run one command.

    Args:
        argv: its words; by default those of this program, whose commands then read models in a restricted child
            process.
        errors: the stream for messages about failures; standard error by default.

    Returns:
        the exit code.
    """
    return guarded(lambda: _command(argv, errors or sys.stderr), gone=EXIT_FAILED)


def _command(argv: Sequence[str] | None, errors: TextIO) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="edge-convert",
        description="Trained models become small, proven, self-describing ONNX bundles for edge devices.",
    )
    parser.add_argument("--version", action="version", version=f"edge-convert {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((word for word in arguments if not word.startswith("-")), None)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == asked:
            importlib.import_module(f"converter.commands.{name}").add_arguments(command)
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    try:
        module = importlib.import_module(f"converter.commands.{options.command}")
        if argv is None and options.command in ISOLATED and Path(sys.argv[0]).name in _PROGRAMS:
            from converter.isolated import run  # noqa: PLC0415 - signing and the like, which `--help` does not need

            module.check(options)
            return run(options.command, options, arguments[arguments.index(options.command) + 1 :])
        return int(module.run(options))
    except EdgeError as error:
        for line in str(error).splitlines():
            print(line, file=errors)
        return EXIT_FAILED
    except ModuleNotFoundError as error:
        print(f"edge-convert {options.command}: {_missing(error)}", file=errors)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=errors)
        return _INTERRUPTED
    except MemoryError:
        print("out of memory: use fewer rows of data or a machine with more", file=errors)
        return EXIT_FAILED


def _missing(error: ModuleNotFoundError) -> str:
    return (
        f"needs the Python package {error.name!r}, which is not installed: "
        "pip install 'edge-inference-runtime[convert]'"
    )


if __name__ == "__main__":
    sys.exit(main())
