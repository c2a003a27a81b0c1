"""`edge-runtime rollout start|status|pause|resume|abort|undo`: signed desired state for devices, kept in one file."""

import argparse
import secrets
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from edge_runtime.errors import CommandError
from edge_runtime.fleet.broker_arguments import add_broker, given_broker
from edge_runtime.fleet.broker_view import Known, broker_login, look_at
from edge_runtime.fleet.bundle_files import BundleFiles, load, pinned, require_class
from edge_runtime.fleet.cli import add_max_failures, add_selection, add_waves, chosen, existing, report
from edge_runtime.fleet.conductor import Conductor, outcomes
from edge_runtime.fleet.errors import AwayError, RefusedError
from edge_runtime.fleet.hung import HungDevices
from edge_runtime.fleet.inventory import Fleet, FleetDevice, RolloutTable, find_inventory, load_inventory
from edge_runtime.fleet.listing import serving
from edge_runtime.fleet.rollout import DEFAULT_SOAK_S, RolloutResult, waves
from edge_runtime.fleet.rollout_file import DeviceRow, RolloutFile, RolloutPlan, RolloutRow
from edge_runtime.fleet.table import folded
from edge_runtime.store.desired_document import check_window


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`rollout start BUNDLE DEVICE... --sign KEY | status | pause | resume | abort | undo`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    start = verbs.add_parser("start", help="publish what devices are to run, wave by wave")
    start.add_argument("bundle", type=Path, metavar="BUNDLE", help="an .onnx bundle, its signature beside it")
    add_selection(start)
    add_waves(start)
    start.add_argument("--expires", type=_day, metavar="YYYY-MM-DD", help="no device begins it after this day (UTC)")
    start.add_argument(
        "--not-before",
        type=_moment,
        metavar="YYYY-MM-DD[THH:MM]",
        help="no device begins it before (UTC)",
    )
    start.add_argument("--window", type=_window, metavar="HH:MM-HH:MM", help="when devices may change, in UTC")
    start.add_argument("--url", type=_url, metavar="URL", help="where devices fetch the file by HTTP, before a depot")
    start.add_argument("--detach", action="store_true", help="publish the first wave and return; `resume` goes on")
    for verb, text in (
        ("status", "what became of each device"),
        ("pause", "publish no further wave"),
        ("resume", "go on with the next waves"),
        ("abort", "publish nothing more, and take back what devices have not begun"),
        ("undo", "take the devices of a rollout back to what they ran before"),
    ):
        other = verbs.add_parser(verb, help=text)
        other.add_argument("rollout", nargs="?", metavar="ROLLOUT", help="its id; default: the newest")
        other.add_argument("--inventory", metavar="FILE", help="default: as for the other commands of the fleet")
        other.add_argument("--json", action="store_true", help="the result as JSON on stdout")
        other.add_argument("--quiet", action="store_true", help="no progress")
        if verb == "resume":
            add_max_failures(other, "what the rollout began with")
        if verb in {"resume", "undo"}:
            other.add_argument("--detach", action="store_true", help="publish what is due and return")
    for name, command in verbs.choices.items():
        if name in {"start", "resume", "undo"}:
            command.add_argument("--sign", type=existing, required=True, metavar="KEY", help="signs the documents")
        command.add_argument(
            "--state", type=Path, metavar="FILE", help="the file of rollouts; default: rollouts.db beside the inventory"
        )
        add_broker(command)


def run(args: argparse.Namespace) -> int:
    """Run the subcommand, print the result of each device, and return the exit code of `fleet/rollout.py`.

    Raises:
        EdgeError: the inventory, the bundle or the key is wrong, or another operator changed the rollout meanwhile.
    """
    inventory = find_inventory(args.inventory)
    file = RolloutFile(args.state or inventory.absolute().parent / "rollouts.db")
    hung = HungDevices(file.path.absolute().parent)
    if args.verb == "start":
        fleet, targets, table = chosen(args)
        row = _start(args, file, hung.last(_reached(args, fleet, targets)), table)
    else:
        fleet = load_inventory(inventory)
        row = file.read(args.rollout)
    conductor = _conductor(args, file, fleet)
    interrupted = False
    try:
        row = _act(args, file, conductor, row)
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted: what is published stays; `rollout resume` goes on", file=sys.stderr)
    except AwayError as error:
        if args.verb != "status":
            raise
        print(f"{error}; this is what the file has", file=sys.stderr)
    row = file.read(row.id)
    devices = file.devices(row.id)
    hung.note(
        {each.device for each in devices if each.is_online and each.published and each.state in {"", "receiving"}},
        {each.device for each in devices if each.state in {"confirmed", "probation"}},
    )
    return _report(args, file, row, interrupted=interrupted)


def _act(args: argparse.Namespace, file: RolloutFile, conductor: Conductor, row: RolloutRow) -> RolloutRow:
    match args.verb:
        case "pause":
            return file.change(_require(row, "running"), "paused", "paused")
        case "abort":
            row = file.change(_require(row, "running", "paused", "stopped"), "aborted", "aborted")
            conductor.clear(row.id)
            return row
        case "status":
            conductor.run(row.id, until_done=False)
            return row
        case "resume":
            row = _resume(args, file, row)
        case "undo":
            made = _undo(file, row)
            conductor.clear(row.id, keep=frozenset(each.device for each in file.devices(made.id)))
            row = made
        case _:
            pass
    conductor.run(row.id, until_done=True)
    return row


def _resume(args: argparse.Namespace, file: RolloutFile, row: RolloutRow) -> RolloutRow:
    """Resume; the limit of failures can be raised, otherwise a rollout that it stopped stops again at once."""
    limit = args.max_failures
    if limit is not None and limit != row.plan.max_failures:
        plan = msgspec.structs.replace(row.plan, max_failures=limit)
        what = f"resumed; {limit} may fail, before {row.plan.max_failures}"
        return file.change(_require(row, "running", "paused", "stopped"), "running", what, plan=plan)
    if row.state == "running":
        return row
    return file.change(_require(row, "paused", "stopped"), "running", "resumed")


def _start(args: argparse.Namespace, file: RolloutFile, targets: list[FleetDevice], table: RolloutTable) -> RolloutRow:
    files = load(args.bundle, unsigned=False)
    known = look_at(targets, health=True, kept=True)
    without = {each.name: found for each in targets if (found := left_out(each, known[each.name], files))}
    taking_part = [each for each in targets if each.name not in without]
    taking_part.sort(key=lambda each: known[each.name].rank)  # canaries are devices that answer
    rows = [
        DeviceRow(
            device=target.name,
            wave=number,
            before=serving(known[target.name].listing(), files.name),
            is_online=known[target.name].is_online,
        )
        for number, wave in enumerate(waves(taking_part, table), 1)
        for target in wave
    ]
    rows += [DeviceRow(device=name, wave=0, state=state, why=why) for name, (state, why) in without.items()]
    _warn_of_others(file, known)
    plan = _plan(args, files, table, canaries=0 if len(taking_part) <= table.canaries else table.canaries)
    return file.create(secrets.token_hex(4), plan, rows)


def left_out(target: FleetDevice, known: Known, files: BundleFiles) -> tuple[str, str] | None:
    """State and reason of a device that gets no document; None where it gets one."""
    pin = pinned(target, files.name, files.version)
    if pin is not None:
        return "pinned", pin
    try:
        require_class(target, files)
        known.require_single(target.name)
    except RefusedError as error:
        return "refused", str(error)
    return None


def _warn_of_others(file: RolloutFile, known: Mapping[str, Known]) -> None:
    """Name rollouts of other files that devices still follow, since the new one replaces them."""
    others = {
        str(found.rollout.get("rollout"))
        for found in known.values()
        if found.rollout is not None and found.rollout.get("state") not in {"confirmed", "failed"}
    }
    for rollout in sorted(others - file.ids()):
        names = [name for name, found in known.items() if found.rollout and found.rollout.get("rollout") == rollout]
        print(
            f"rollout {rollout}, which is not in {file.path.name}, is under way on {folded(names)}: it is replaced "
            "there; use the same --state FILE as its operator to avoid that",
            file=sys.stderr,
        )


def _plan(args: argparse.Namespace, files: BundleFiles, table: RolloutTable, *, canaries: int) -> RolloutPlan:
    texts = {each.name.removeprefix(files.path.name): each.read_text(encoding="utf-8") for each in files.beside}
    return RolloutPlan(
        model=files.name,
        version=files.version,
        digest=files.digest,
        size=files.path.stat().st_size,
        device_class=files.device_class,
        files={suffix: text for suffix, text in texts.items() if not suffix.startswith(".allow-older")},
        max_failures="100%" if args.keep_going else table.max_failures,
        soak=DEFAULT_SOAK_S if table.soak is None else table.soak,
        not_before=args.not_before,
        expires=args.expires,
        window=args.window,
        canaries=canaries,
        url=args.url,
    )


def _undo(file: RolloutFile, row: RolloutRow) -> RolloutRow:
    """A new rollout over the devices that got a document and ran another bundle before."""
    if row.state in {"running", "paused"}:
        row = file.change(row, "aborted", "aborted, to be undone")
    devices = [
        DeviceRow(device=each.device, wave=1, before=each.before)
        for each in file.devices(row.id)
        if each.serial and each.before is not None and each.before["digest"] != row.plan.digest
    ]
    if not devices:
        raise CommandError(f"rollout {row.id}: expected devices that ran another bundle before, found none")
    plan = msgspec.structs.replace(
        row.plan, undoes=row.id, not_before=None, expires=None, window=None, max_failures="100%", soak=0.0, canaries=0
    )
    made = file.create(secrets.token_hex(4), plan, devices)
    file.change(row, "undone", f"undone by {made.id}")
    return made


def _require(row: RolloutRow, *states: str) -> RolloutRow:
    if row.state not in states:
        raise CommandError(f"rollout {row.id}: expected it {' or '.join(states)}, found it {row.state}")
    return row


def _reached(args: argparse.Namespace, fleet: Fleet, targets: list[FleetDevice]) -> list[FleetDevice]:
    broker = given_broker(args) or fleet.broker
    if broker is None:
        raise CommandError("expected the devices' broker in [broker] of the inventory or --broker, found none")
    return [msgspec.structs.replace(each, transport="mqtt", broker=broker) for each in targets]


def _conductor(args: argparse.Namespace, file: RolloutFile, fleet: Fleet) -> Conductor:
    broker = given_broker(args) or fleet.broker
    if broker is None:
        raise CommandError("expected the devices' broker in [broker] of the inventory or --broker, found none")

    def say(text: str) -> None:
        if not args.quiet:
            print(text, file=sys.stderr, flush=True)

    return Conductor(file, broker_login(broker), getattr(args, "sign", None), say, once=getattr(args, "detach", False))


def _report(args: argparse.Namespace, file: RolloutFile, row: RolloutRow, *, interrupted: bool) -> int:
    found = outcomes(row, file.devices(row.id))
    result = RolloutResult(found, interrupted)
    about: dict[str, object] = {
        "rollout": row.id,
        "state": row.state,
        "model": row.plan.model,
        "version": row.plan.version,
        "digest": row.plan.digest,
    }
    if args.json and args.verb == "status":
        about["history"] = file.history(row.id)
    if not args.json:
        began = datetime.fromtimestamp(row.began, UTC).strftime("%Y-%m-%d %H:%M UTC")
        sys.stdout.write(f"rollout {row.id}, {row.plan.model} {row.plan.version}: {row.state}, began {began}\n")
    report(result, as_json=args.json, about=about)
    return result.exit_code


def _day(text: str) -> int:
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a day such as 2027-06-30, found {text}") from error
    found = int((day + timedelta(days=1)).timestamp())
    if found < time.time():
        raise argparse.ArgumentTypeError(f"expected a day to come, found {text}")
    return found


def _moment(text: str) -> int:
    for form in ("%Y-%m-%d", "%Y-%m-%dT%H:%M"):
        try:
            found = int(datetime.strptime(text, form).replace(tzinfo=UTC).timestamp())
        except ValueError:
            continue
        if found < time.time():
            raise argparse.ArgumentTypeError(f"expected a time to come, found {text}")
        return found
    raise argparse.ArgumentTypeError(f"expected a time in UTC such as 2027-06-30T22:00, found {text}")


def _url(text: str) -> str:
    if urlsplit(text).scheme not in {"http", "https"} or not urlsplit(text).hostname:
        raise argparse.ArgumentTypeError(f"expected http://HOST/... or https://HOST/..., found {text}")
    return text


def _window(text: str) -> tuple[str, str]:
    begin, _, end = text.partition("-")
    try:
        check_window((begin, end))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected HH:MM-HH:MM, found {text}") from error
    return begin, end
