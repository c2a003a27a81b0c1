"""`edge-convert sign`: sign a bundle that is there already."""

import argparse
from pathlib import Path

from converter.signing import sign
from edge_runtime.errors import EXIT_OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--key", type=Path, required=True, help="the private key, as made by `edge-convert keygen`")


def run(options: argparse.Namespace) -> int:
    """Sign it."""
    print(f"wrote {sign(options.bundle, options.key)}")
    return EXIT_OK
