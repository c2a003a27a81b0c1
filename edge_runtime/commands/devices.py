"""`edge-runtime devices`: what every device of the fleet is doing, as a table or as JSON."""

import argparse
import json
import sys
import time
from collections.abc import Sequence

from edge_runtime.fleet.cli import add_selection, at_once, chosen, summary
from edge_runtime.fleet.inventory import FleetDevice, RolloutTable
from edge_runtime.fleet.overview import HEADER, OverviewRow, cells, to_json, totals
from edge_runtime.fleet.progress import shown
from edge_runtime.fleet.rollout import NO_LIMIT, Outcome, RolloutResult, Runner
from edge_runtime.fleet.table import printable, render
from edge_runtime.fleet.transport import transport_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The devices; all of them when none is named."""
    add_selection(parser)
    parser.add_argument(
        "--accuracy",
        action="store_true",
        help="how right the models are, where truth is known, and whether their input drifts: each device, and all",
    )


def run(args: argparse.Namespace) -> int:
    """Ask every device, show the table, and return the exit code of `fleet/rollout.py`.

    Raises:
        EdgeError: the inventory or the choice of devices is wrong.
    """
    _, targets, rollout = chosen(args, everything=True)
    result = _look(targets, rollout, quiet=args.quiet or not sys.stderr.isatty(), accuracy=args.accuracy)
    rows = [row for outcome in result.outcomes if isinstance(row := outcome.details.get("row"), OverviewRow)]
    if args.accuracy:
        _show_accuracy(rows, as_json=args.json)
    elif args.json:
        sys.stdout.write(to_json(rows) + "\n")
    else:
        now = time.time()
        sys.stdout.write(render(HEADER, [line for row in rows for line in cells(row, now)]) + "\n")
    if not args.json and not args.quiet:
        sys.stderr.write(f"{totals(rows)}; {summary(result.outcomes)}\n")
    return result.exit_code


def _show_accuracy(rows: list[OverviewRow], *, as_json: bool) -> None:
    """The accuracy of the models: by device and over all devices, with confusion matrices."""
    from edge_runtime.fleet import accuracy, same_drift  # noqa: PLC0415 - only where it is asked for

    totals_of = accuracy.in_sum(rows)
    if as_json:
        devices = [{"name": row.name, "why": row.why, "accuracy": row.accuracy, "drift": row.drift} for row in rows]
        sys.stdout.write(json.dumps({"devices": devices, "models": totals_of}, indent=2) + "\n")
        return
    sys.stdout.write(render(accuracy.HEADER, accuracy.lines_of(rows)) + "\n")
    for total in totals_of:
        for lines in (accuracy.confusion_lines(total), same_drift.drift_lines(total)):
            sys.stdout.write("".join(f"{printable(line)}\n" for line in ["", *lines]) if lines else "")


def _look(
    targets: Sequence[FleetDevice], rollout: RolloutTable, *, quiet: bool, accuracy: bool = False
) -> RolloutResult:
    """Ask the devices: each over its own ssh connection, or all over one MQTT connection."""
    over_mqtt = [each for each in targets if each.transport == "mqtt"]
    over_ssh = [each for each in targets if each.transport == "ssh"]
    found: dict[str, Outcome] = {}
    interrupted = False
    if over_mqtt:
        from edge_runtime.fleet.over_mqtt import look_at_all  # noqa: PLC0415 - only where it is asked for

        try:
            found |= {outcome.device: outcome for outcome in look_at_all(over_mqtt, accuracy=accuracy)}
        except KeyboardInterrupt:
            interrupted = True
    if over_ssh and not interrupted:
        with shown(quiet=quiet, total=len(over_ssh)) as watcher:
            work = Runner(
                over_ssh,
                lambda target, watcher: transport_of(target).look(target, watcher),
                at_once(rollout),
                watcher,
                limits=NO_LIMIT,
            )
            result = work.run()
        interrupted = result.interrupted
        found |= {outcome.device: outcome for outcome in result.outcomes}
    missing = (Outcome(each.name, "not tried", "interrupted") for each in targets if each.name not in found)
    found |= {outcome.device: outcome for outcome in missing}
    return RolloutResult([found[each.name] for each in targets], interrupted)
