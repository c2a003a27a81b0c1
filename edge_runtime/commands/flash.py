"""`edge-runtime flash BUNDLE DEVICE...`: a bundle to devices of the fleet, as `fleet/flash.py` promises."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from edge_runtime.endpoint import parse_endpoint
from edge_runtime.errors import CommandError
from edge_runtime.fleet.cli import add_selection, add_waves, carry_out, chosen
from edge_runtime.fleet.flash import Cargo, Wishes, confirm, flash, load
from edge_runtime.fleet.inventory import Target
from edge_runtime.fleet.rollout import Outcome, Watcher

HELP = "bring a model to devices of the fleet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """BUNDLE, the devices, the waves, and what is asked of the install."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="an .onnx bundle, its signature beside it")
    add_selection(parser)
    add_waves(parser)
    parser.add_argument("--unsigned", action="store_true", help="ask devices to take a bundle that nobody signed")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--stage", action="store_true", help="bring it there, but do not make it active")
    how.add_argument("--shadow", action="store_true", help="run it beside the active model, to see how far they agree")
    parser.add_argument("--retry-rejected", action="store_true", help="try again where this bundle failed before")
    parser.add_argument("--max-latency", type=float, metavar="MS", help="devices refuse a slower model")
    parser.add_argument("--max-memory", type=int, metavar="MIB", help="devices refuse a model that needs more")
    parser.add_argument("--over", choices=("ssh", "mqtt"), default="ssh", help="how devices are reached; default: ssh")
    parser.add_argument("--broker", metavar="URL", help="with --over mqtt: the devices' broker, mqtt(s)://HOST:PORT")
    parser.add_argument("--broker-user", metavar="NAME", help="the account there")
    parser.add_argument("--broker-password-file", type=Path, metavar="FILE", help="its password, on the first line")
    parser.add_argument("--broker-ca-file", metavar="FILE", help="the authority of its certificate")


def run(args: argparse.Namespace) -> int:
    """Flash, show the table, and return how many devices failed.

    Raises:
        EdgeError: the bundle, the inventory or the choice of devices is wrong; no device was touched.
    """
    cargo = load(args.bundle, unsigned=args.unsigned)
    _, targets, rollout = chosen(args)
    wishes = Wishes(
        unsigned=args.unsigned,
        stage=args.stage,
        shadow=args.shadow,
        retry_rejected=args.retry_rejected,
        max_latency_ms=args.max_latency,
        max_memory_mib=args.max_memory,
    )
    over_mqtt = _over_mqtt(args, cargo) if args.over == "mqtt" else None
    about: dict[str, object] = {"model": cargo.name, "version": cargo.version, "digest": cargo.digest}
    return carry_out(
        args,
        targets,
        rollout,
        over_mqtt or (lambda target, watcher: flash(target, watcher, cargo, wishes)),
        confirm=None if args.stage or over_mqtt else lambda target: confirm(target, cargo),
        about=about,
    )


def _over_mqtt(args: argparse.Namespace, cargo: Cargo) -> Callable[[Target, Watcher], Outcome]:
    """The same step over the broker, where the device's name in the inventory is its id."""
    asked = (args.unsigned, args.stage, args.retry_rejected, args.max_latency, args.max_memory, args.soak)
    if any(each not in {None, False} for each in asked) or args.broker is None:
        raise CommandError("--over mqtt: expected --broker, and nothing asked of the install: such wishes need ssh")
    from edge_runtime.fleet.mqtt_transport import Login, flash_over_mqtt  # noqa: PLC0415 - only where it is asked for

    try:
        parse_endpoint(args.broker)
        found = args.broker_password_file
        password = None if found is None else found.read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, ValueError) as error:
        raise CommandError(f"--over mqtt: {error}") from error
    login = Login(url=args.broker, username=args.broker_user, password=password, ca_file=args.broker_ca_file)

    def step(target: Target, watcher: Watcher) -> Outcome:
        watcher.step(target.name, "sending over MQTT")
        return Outcome(
            target.name, "done", flash_over_mqtt(login, target.name, cargo.path, partial(watcher.bytes, target.name))
        )

    return step
