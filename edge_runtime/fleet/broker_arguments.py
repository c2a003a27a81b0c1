"""The broker of the devices on the command line, in place of the inventory's: `--broker` and what belongs to it."""

import argparse
from pathlib import Path

from edge_runtime.config.addresses import parse_endpoint
from edge_runtime.errors import CommandError
from edge_runtime.fleet.inventory import FleetBrokerTable, load_inventory


def add_broker(parser: argparse.ArgumentParser) -> None:
    """--broker, --broker-user, --broker-password-file, --broker-ca-file."""
    parser.add_argument(
        "--broker", metavar="URL", help="the devices' broker, mqtt(s)://HOST:PORT; default: the inventory's"
    )
    parser.add_argument("--broker-user", metavar="NAME", help="the account there")
    parser.add_argument("--broker-password-file", type=Path, metavar="FILE", help="its password, on the first line")
    parser.add_argument("--broker-ca-file", metavar="FILE", help="the authority of its certificate")


def given_broker(args: argparse.Namespace) -> FleetBrokerTable | None:
    """The broker of the command line; None where it names none.

    Raises:
        CommandError: `--broker` is no address of one.
    """
    if args.broker is None:
        return None
    try:
        parse_endpoint(args.broker)
    except ValueError as error:
        raise CommandError(f"--broker: {error}") from error
    password = None if args.broker_password_file is None else str(args.broker_password_file)
    return FleetBrokerTable(
        url=args.broker, username=args.broker_user, password_file=password, ca_file=args.broker_ca_file
    )


def fleet_broker(args: argparse.Namespace, inventory: Path) -> FleetBrokerTable:
    """The broker of the command line, else that of the inventory.

    Raises:
        CommandError: neither names one.
    """
    broker = given_broker(args) or load_inventory(inventory).broker
    if broker is None:
        raise CommandError("expected the devices' broker in [broker] of the inventory or --broker, found none")
    return broker
