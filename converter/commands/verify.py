"""`edge-convert verify`: check a bundle's signature, as a device will."""

import argparse
from pathlib import Path

from edge_runtime.bundle.signature import require_signature
from edge_runtime.errors import EXIT_OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--allowed-signers", type=Path, required=True, metavar="FILE", help="whom you trust, as in ssh-keygen(1)"
    )


def run(options: argparse.Namespace) -> int:
    """Check it."""
    principal = require_signature(options.bundle, options.allowed_signers)
    print(f"{options.bundle}: signed by {principal}")
    return EXIT_OK
