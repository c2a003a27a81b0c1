"""`edge-convert keygen`: make a key pair, and print its line for a device's file of trusted keys."""

import argparse
from pathlib import Path

from converter.signing import make_key
from edge_runtime.bundle.signature import NAMESPACE
from edge_runtime.errors import EXIT_OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("key", type=Path, metavar="KEY", help="the file to write; KEY.pub is written beside it")
    parser.add_argument("--principal", default="edge", help="the name that devices know the key by (default: edge)")


def run(options: argparse.Namespace) -> int:
    """Make the key."""
    make_key(options.key, options.principal)
    public = Path(f"{options.key}.pub").read_text(encoding="utf-8").split()
    print(f"wrote {options.key} (keep it secret) and {options.key}.pub")
    print("it may sign bundles, and rollbacks over MQTT; for signed rollouts add edge-desired to its namespaces")
    print("for the allowed_signers file of your devices:")
    print(f'{options.principal} namespaces="{NAMESPACE},{NAMESPACE}-rollback" {public[0]} {public[1]}')
    return EXIT_OK
