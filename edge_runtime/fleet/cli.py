"""What the commands of the fleet share: which devices are meant, how progress is shown, how the end is told."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edge_runtime.fleet.inventory import Fleet, RolloutTable, Target, find_inventory, load_inventory, select
from edge_runtime.fleet.progress import shown
from edge_runtime.fleet.rollout import Outcome, Watcher, failures, roll_out
from edge_runtime.fleet.ssh import require_ssh
from edge_runtime.fleet.table import render


def add_selection(parser: argparse.ArgumentParser) -> None:
    """DEVICE..., --all, --class, --inventory, --json, --quiet, --limit."""
    parser.add_argument("device", nargs="*", metavar="DEVICE", help="a name of the inventory, or group:NAME")
    parser.add_argument("--all", action="store_true", help="every device of the inventory")
    parser.add_argument("--class", dest="kind", metavar="CLASS", help="of these, only devices of one class")
    parser.add_argument(
        "--inventory",
        metavar="FILE",
        help="default: $EDGE_FLEET, else device_configs/fleet.toml or fleet.toml",
    )
    parser.add_argument("--limit", type=_count, metavar="N", help="how many devices at once; default: the inventory's")
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def add_waves(parser: argparse.ArgumentParser) -> None:
    """--canaries, --wave, --soak, --keep-going."""
    parser.add_argument("--canaries", type=_count_or_none, metavar="N", help="how many devices go first, alone")
    parser.add_argument("--wave", type=_count, metavar="N", help="how many follow in each later wave")
    parser.add_argument("--soak", type=float, metavar="S", help="how long a wave is watched before the next begins")
    parser.add_argument("--keep-going", action="store_true", help="go on after a wave in which a device failed")


def chosen(args: argparse.Namespace, *, everything: bool = False) -> tuple[Fleet, list[Target], RolloutTable]:
    """The inventory, the devices that were named, and how they are gone through.

    Raises:
        ConfigError: the inventory is wrong.
        CommandError: a device is not in it, or there is no ssh.
    """
    fleet = load_inventory(find_inventory(args.inventory))
    everything = args.all or (everything and not args.device)
    targets = select(fleet, args.device, everything=everything, kind=args.kind)
    if any(each.transport == "ssh" for each in targets):
        require_ssh()
    given = {key: getattr(args, key, None) for key in ("limit", "canaries", "wave", "soak")}
    rollout: RolloutTable = msgspec.structs.replace(
        fleet.rollout, **{key: value for key, value in given.items() if value is not None}
    )
    return fleet, targets, rollout


def carry_out(
    args: argparse.Namespace,
    targets: Sequence[Target],
    rollout: RolloutTable,
    work: Callable[[Target, Watcher], Outcome],
    *,
    confirm: Callable[[Target], str | None] | None = None,
    about: dict[str, object],
) -> int:
    """Does the work with progress, tells the end, and returns how many devices failed."""
    with shown(quiet=args.quiet) as watcher:
        outcomes = roll_out(
            targets, work, rollout, watcher, confirm=confirm, keep_going=getattr(args, "keep_going", False)
        )
    if args.json:
        failed = [each.device for each in outcomes if each.result == "failed"]
        document = {**about, "devices": msgspec.to_builtins(outcomes), "failed": failed}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        rows = [(each.device, each.result, f"{each.seconds:.1f} s", each.text) for each in outcomes]
        sys.stdout.write(render(("DEVICE", "RESULT", "TIME", "WHAT"), rows) + "\n")
        sys.stdout.write(_summary(outcomes) + "\n")
    return failures(outcomes)


def _summary(outcomes: Sequence[Outcome]) -> str:
    parts = []
    for result in ("done", "unchanged", "failed", "not tried"):
        names = [each.device for each in outcomes if each.result == result]
        if names:
            listed = f" ({', '.join(names)})" if result in {"failed", "not tried"} else ""
            parts.append(f"{len(names)} {result}{listed}")
    return ", ".join(parts)


def existing(text: str) -> Path:
    """The path of a file that is there."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"expected a file, found none at {text}")
    return path


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:9]) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, found {text}")
    return int(text[:9])


def _count_or_none(text: str) -> int:
    return 0 if text == "0" else _count(text)
