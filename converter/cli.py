"""`edge-convert`: the command line of the converter. Commands and exit codes only.

Exit codes: 0 done, 1 failed, 2 usage. A command is one module of `converter/commands/`, imported when it is asked
for; whatever a user can cause ends in one readable message on stderr, never in a traceback.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from edge_runtime.errors import EXIT_FAILED, EXIT_USAGE, EdgeError

COMMANDS = {
    "build": "turn a trained model into a bundle, and prove it",
    "inspect": "show what a bundle says about itself",
    "compare": "run two models on the same data, side by side",
    "keygen": "make a key to sign bundles with",
    "sign": "sign a bundle",
    "verify": "check a bundle's signature",
}
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        the exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="edge-convert",
        description="Trained models become small, proven, self-describing ONNX bundles for edge devices.",
    )
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
        return int(importlib.import_module(f"converter.commands.{options.command}").run(options))
    except EdgeError as error:
        for line in str(error).splitlines():
            print(line, file=sys.stderr)
        return EXIT_FAILED
    except ModuleNotFoundError as error:
        print(f"edge-convert {options.command}: {_missing(error)}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except MemoryError:
        print("out of memory: use fewer rows of data or a machine with more", file=sys.stderr)
        return EXIT_FAILED


def _missing(error: ModuleNotFoundError) -> str:
    return (
        f"needs the Python package {error.name!r}, which is not installed: "
        "pip install 'edge-inference-runtime[convert]'"
    )


if __name__ == "__main__":
    sys.exit(main())
