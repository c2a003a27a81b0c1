"""`edge-convert dataset DIR... -o DATA.npz`: captures or recordings of a fleet, merged into one file for training."""

import argparse
import sys
from pathlib import Path

from edge_runtime.errors import EXIT_OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="captures, as `edge-runtime captures` brings them, or recordings of `edge-runtime record`",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DATA.npz")
    parser.add_argument("--model", metavar="NAME", help="of captures, only those of this model")
    parser.add_argument(
        "--all",
        dest="everything",
        action="store_true",
        help="also what has no label: the file then says of nothing what is right",
    )


def run(options: argparse.Namespace) -> int:
    """Merge, write, and print a summary."""
    from converter.dataset import merged_table, write  # noqa: PLC0415 - numpy, which `--help` does not need

    table = merged_table(options.folders, model=options.model, everything=options.everything)
    write(options.output, table)
    for note in table.notes:
        print(note, file=sys.stderr)
    print(f"{options.output}: {table.summary}")
    return EXIT_OK
