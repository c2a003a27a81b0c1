"""Shared by the commands of the fleet: the choice of devices, and the output of progress and result."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edge_runtime.fleet.hung import HungDevices
from edge_runtime.fleet.inventory import Fleet, FleetDevice, RolloutTable, find_inventory, load_inventory, select
from edge_runtime.fleet.progress import shown
from edge_runtime.fleet.rollout import (
    NO_LIMIT,
    PASSING,
    RESULTS,
    RETRY_PAUSES_S,
    STRAGGLER_S,
    Confirmation,
    FailureLimit,
    Outcome,
    RolloutResult,
    Runner,
    Watcher,
)
from edge_runtime.fleet.ssh import require_ssh
from edge_runtime.fleet.table import folded, render


def add_selection(parser: argparse.ArgumentParser) -> None:
    """DEVICE..., --all, --class, --where, --except, --inventory, --json, --quiet, --limit."""
    parser.add_argument("device", nargs="*", metavar="DEVICE", help="a name of the inventory, or group:NAME")
    parser.add_argument("--all", action="store_true", help="every device of the inventory")
    parser.add_argument("--class", dest="kind", metavar="CLASS", help="of these, only devices of one class")
    parser.add_argument(
        "--where", action="append", default=[], metavar="LABEL", help="of these, only devices with this label"
    )
    parser.add_argument(
        "--except", dest="without", action="append", default=[], metavar="NAME", help="but not this device or group"
    )
    parser.add_argument(
        "--inventory",
        metavar="FILE",
        help="default: $EDGE_FLEET, else device_configs/fleet.toml or fleet.toml",
    )
    parser.add_argument("--limit", type=_count, metavar="N", help="how many devices at once; default: the inventory's")
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def add_waves(parser: argparse.ArgumentParser) -> None:
    """--canaries, --wave, --soak, --max-failures, --keep-going."""
    parser.add_argument("--canaries", type=_count_or_none, metavar="N", help="how many devices go first, alone")
    parser.add_argument("--wave", type=_count, metavar="N", help="how many follow in each later wave")
    parser.add_argument("--soak", type=_seconds, metavar="S", help="how long a wave is watched before the next begins")
    add_max_failures(parser, "the inventory's, else 0")
    parser.add_argument("--keep-going", action="store_true", help="go on however many devices fail")


def add_max_failures(parser: argparse.ArgumentParser, default: str) -> None:
    """--max-failures, with its default."""
    parser.add_argument(
        "--max-failures",
        type=_threshold,
        metavar="N|N%",
        help=f"how many devices may fail before nothing further is begun; default: {default}",
    )


def chosen(args: argparse.Namespace, *, everything: bool = False) -> tuple[Fleet, list[FleetDevice], RolloutTable]:
    """The inventory, the chosen devices, and the order of the rollout.

    Raises:
        ConfigError: the inventory is wrong.
        CommandError: a device is not in it, or there is no ssh.
    """
    fleet = load_inventory(find_inventory(args.inventory))
    everything = args.all or (everything and not args.device and not args.where)
    targets = select(fleet, args.device, everything=everything, kind=args.kind, labels=args.where, without=args.without)
    if any(each.transport == "ssh" for each in targets):
        require_ssh()
    given = {key: getattr(args, key, None) for key in ("limit", "canaries", "wave", "soak", "max_failures")}
    rollout: RolloutTable = msgspec.structs.replace(
        fleet.rollout, **{key: value for key, value in given.items() if value is not None}
    )
    return fleet, targets, rollout


def at_once(rollout: RolloutTable) -> RolloutTable:
    """The same limit, without canaries and waves."""
    return RolloutTable(limit=rollout.limit, canaries=0)


def carry_out(
    args: argparse.Namespace,
    targets: Sequence[FleetDevice],
    rollout: RolloutTable,
    work: Callable[[FleetDevice, Watcher], Outcome],
    *,
    confirm: Confirmation | None = None,
    about: dict[str, object],
) -> int:
    """Do the work with progress, print the result of each device, and return the exit code of `RolloutResult`."""
    keep_going = getattr(args, "keep_going", not hasattr(args, "max_failures"))
    limits = NO_LIMIT if keep_going else limits_of(rollout.max_failures)
    hung = HungDevices(find_inventory(getattr(args, "inventory", None)).absolute().parent)
    with shown(quiet=args.quiet, total=len(targets)) as watcher:
        ordered = hung.last(targets)
        runner = Runner(ordered, work, rollout, watcher, confirm=confirm, limits=limits, retry=RETRY_PAUSES_S)
        result = runner.run()
    hung.note(
        {each.device for each in result.outcomes if each.result in PASSING and each.seconds >= STRAGGLER_S},
        {each.device for each in result.outcomes if each.succeeded},
    )
    report(result, as_json=args.json, about=about)
    return result.exit_code


def report(result: RolloutResult, *, as_json: bool, about: dict[str, object]) -> None:
    """Print the result of each device."""
    outcomes = result.outcomes
    if as_json:
        by_result = {
            each.replace(" ", "_"): [outcome.device for outcome in outcomes if outcome.result == each]
            for each in RESULTS
        }
        document = {
            **about,
            "devices": msgspec.to_builtins(outcomes),
            **by_result,
            "interrupted": result.interrupted,
        }
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        rows = [
            (each.device, each.result, f"{each.seconds:.1f} s", each.text)
            for kind in RESULTS
            for each in outcomes
            if each.result == kind
        ]
        sys.stdout.write(render(("DEVICE", "RESULT", "TIME", "WHAT"), rows) + "\n")
        sys.stdout.write(summary(outcomes) + (", interrupted" if result.interrupted else "") + "\n")
    sys.stdout.flush()


def summary(outcomes: Sequence[Outcome]) -> str:
    """One line: the number of devices with each result, and the names of failed ones."""
    parts = []
    for result in RESULTS:
        names = [each.device for each in outcomes if each.result == result]
        if names:
            listed = "" if result in {"done", "unchanged"} else f" ({folded(names)})"
            parts.append(f"{len(names)} {result}{listed}")
    return ", ".join(parts)


def limits_of(text: str) -> FailureLimit:
    """`N` or `N%`, as a limit."""
    return FailureLimit(percent=float(text[:-1])) if text.endswith("%") else FailureLimit(count=int(text))


def existing(text: str) -> Path:
    """The path of a file that is there."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"expected a file, found none at {text}")
    return path


def _threshold(text: str) -> str:
    digits = text.removesuffix("%")
    is_number = digits.isascii() and digits.isdigit() and len(digits) <= 6
    if not is_number or (text.endswith("%") and int(digits) > 100):
        raise argparse.ArgumentTypeError(f"expected a number or a percentage such as 5%, found {text}")
    return text


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < 1e9:
        raise argparse.ArgumentTypeError(f"expected seconds, 0 or more, found {text}")
    return found


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:9]) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, found {text}")
    return int(text[:9])


def _count_or_none(text: str) -> int:
    return 0 if text == "0" else _count(text)
