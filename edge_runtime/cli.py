"""`edge-runtime`: the commands and their exit codes, and nothing else. Each command is a module of `commands/`.

Only the command that was asked for is imported, so that the daemon starts quickly.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edge_runtime import __version__
from edge_runtime.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, EdgeError
from edge_runtime.system.standard_streams import guarded

if TYPE_CHECKING:
    import argparse

COMMANDS = {
    "run": "serve a device until it is stopped",
    "check": "check a device file and the bundles that it names",
    "try": "show what the sources send and what the models make of it, publishing nothing",
    "doctor": "look at ports, brokers, disk, clock and permissions of this machine",
    "init": "write a device file",
    "record": "record what a source sends, for training",
    "status": "what the daemons of this machine are doing",
    "predict": "score recorded files",
    "serve": "answer requests for predictions, without sensors",
    "models": "install, list and roll back the models of this device",
    "flash": "bring a model to devices of the fleet",
    "rollout": "have devices follow a signed state, also those that are away",
    "depot": "serve bundles to devices that follow such a state",
    "rollback": "take devices of the fleet back to the model before",
    "devices": "show what the devices of the fleet are doing",
    "logs": "show the log of devices of the fleet",
    "captures": "bring in the windows that devices of the fleet keep to be labelled",
    "provision": "install the runtime, its service and its configuration on devices of the fleet",
    "demo": "see the whole path work, without hardware or broker",
}

_EPILOG = "exit codes: 0 done, 1 failed, 2 wrong usage, 78 the configuration is wrong"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda: _command(words), gone=EXIT_OK)  # `| head` has seen enough


def _command(words: list[str]) -> int:
    if _is_plain_run(words):
        return _obey(lambda: importlib.import_module("edge_runtime.commands.run").serve(words[1]))
    return _parse(words)


def _is_plain_run(words: Sequence[str]) -> bool:
    """How systemd calls the daemon. It needs no argparse, which is a megabyte and takes longer than our own files."""
    return len(words) == 2 and words[0] == "run" and not words[1].startswith("-")


def _parse(words: list[str]) -> int:
    wanted = next((word for word in words if not word.startswith("-")), "")
    parser = _parser({wanted})
    try:
        parsed = parser.parse_args(words)
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else EXIT_USAGE
    return _obey(lambda: parsed.run(parsed))


def whole_parser() -> "argparse.ArgumentParser":
    """The parser with every command's arguments, of which pages and completions are made."""
    return _parser(set(COMMANDS))


def _parser(wanted: set[str]) -> "argparse.ArgumentParser":
    """The parser; only the commands that are wanted are imported."""
    import argparse  # noqa: PLC0415 - see `_is_plain_run`

    parser = argparse.ArgumentParser(
        prog="edge-runtime", description="Runs trained models on live sensor data.", epilog=_EPILOG
    )
    parser.add_argument("--version", action="version", version=f"edge-runtime {__version__}")
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        command = parsers.add_parser(name, help=text, description=text.capitalize() + ".", epilog=_EPILOG)
        if name in wanted:
            module = importlib.import_module(f"edge_runtime.commands.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def _obey(command: Callable[[], int]) -> int:
    """Run a command, and turn how it ends into an exit code."""
    try:
        return int(command())
    except EdgeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
