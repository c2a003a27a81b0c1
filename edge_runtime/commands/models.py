"""`edge-runtime models`: what is installed on this device, and how it changes. See `store/`."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.bundle.measured import MIB, write_measured
from edge_runtime.bundle.selftest import Budget, run_selftest
from edge_runtime.bundle.signature import SUFFIX
from edge_runtime.errors import EXIT_OK, CommandError, SignatureError
from edge_runtime.store.install import DEFAULT_SIGNERS, Installed, Policy
from edge_runtime.store.records import ListedBundle, Slot
from edge_runtime.store.store import DEFAULT_STORE, ModelStore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`models [--store DIR] [--allowed-signers FILE] list|install|activate|rollback|promote|withdraw|selftest`."""
    _add_places(parser, DEFAULT_STORE, DEFAULT_SIGNERS)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    listing = verbs.add_parser("list", help="every bundle and its state")
    listing.add_argument("--json", action="store_true", help="an array of {name, version, digest, state}")
    _add_install(verbs.add_parser("install", help="check a bundle, let it prove itself, and make it active"))
    activate = verbs.add_parser("activate", help="make a staged or previous version active")
    activate.add_argument("name", metavar="NAME")
    activate.add_argument("version", metavar="VERSION")
    rollback = verbs.add_parser("rollback", help="go back to the version before")
    rollback.add_argument("name", metavar="NAME")
    promote = verbs.add_parser("promote", help="make the shadow the active version, on probation")
    promote.add_argument("name", metavar="NAME")
    withdraw = verbs.add_parser("withdraw", help="end the shadow; its bundle stays staged")
    withdraw.add_argument("name", metavar="NAME")
    selftest = verbs.add_parser("selftest", help="let the active bundle prove itself again")
    selftest.add_argument("name", metavar="NAME")
    selftest.add_argument("--measure", action="store_true", help="keep the figures in DIGEST.measured.json beside it")
    for verb in verbs.choices.values():  # before or after the verb; no default there
        _add_places(verb, argparse.SUPPRESS, argparse.SUPPRESS)


def _add_places(parser: argparse.ArgumentParser, store: Path | str, signers: Path | str) -> None:
    parser.add_argument("--store", type=Path, default=store, metavar="DIR", help=f"default: {DEFAULT_STORE}")
    parser.add_argument(
        "--allowed-signers",
        type=Path,
        default=signers,
        metavar="FILE",
        help=f"whose signatures are trusted, as ssh-keygen reads it; default: {DEFAULT_SIGNERS}",
    )


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and print its result.

    Raises:
        EdgeError: the store refuses; nothing has changed.
    """
    store = ModelStore(args.store)
    match args.verb:
        case "list":
            _say(_listed_json(store) if args.json else _listed_table(store))
        case "install":
            _say(_installed(_install(store, args), shadow=args.shadow))
        case "activate":
            _say(_now(store.activate(args.name, args.version)))
        case "rollback":
            _say(_now(store.rollback(args.name)))
        case "promote":
            _say(_now(store.promote(args.name)))
        case "withdraw":
            _say(_now(store.withdraw(args.name)))
        case _:
            _selftest(store, args.name, measure=args.measure)
    return EXIT_OK


def _install(store: ModelStore, args: argparse.Namespace) -> Installed:
    """Install; for a bundle without a signature name both remedies."""
    try:
        return store.install(args.bundle, _policy(args))
    except SignatureError as error:
        if args.bundle.with_name(f"{args.bundle.name}{SUFFIX}").exists() or not args.bundle.exists():
            raise
        raise SignatureError(
            f"{error}, and name its key in {args.allowed_signers}; or take it as it is, with --unsigned allow"
        ) from error


def _add_install(install: argparse.ArgumentParser) -> None:
    install.add_argument("bundle", type=Path, metavar="BUNDLE", help="its signature is BUNDLE.sig")
    install.add_argument("--unsigned", choices=("refuse", "allow"), default="refuse", help="default: refuse")
    how = install.add_mutually_exclusive_group()
    how.add_argument("--stage", action="store_true", help="do not make it active yet")
    how.add_argument(
        "--shadow", action="store_true", help="run it beside the active one, and publish only how far they agree"
    )
    install.add_argument("--retry-rejected", action="store_true", help="take a bundle again that failed here")
    install.add_argument(
        "--allow-older", type=Path, metavar="FILE", help="a signed permission; default: BUNDLE.allow-older"
    )
    install.add_argument("--device", metavar="ID", help="this device's id, for a permission; default: the host name")
    install.add_argument("--device-class", metavar="CLASS", help="refuse bundles made for another class")
    install.add_argument(
        "--max-latency", type=float, metavar="MS", help="refuse a bundle whose median window takes longer"
    )
    install.add_argument(
        "--max-memory", type=int, metavar="MIB", help="refuse a bundle that needs more, runtime included"
    )
    install.add_argument("--timeout", type=float, default=120.0, metavar="S", help="for the self-test; default: 120")


def _policy(args: argparse.Namespace) -> Policy:
    memory = None if args.max_memory is None else args.max_memory * MIB
    budget = Budget(wall_s=args.timeout, latency_ms=args.max_latency, memory_bytes=memory)
    policy = Policy(
        allowed_signers=args.allowed_signers,
        unsigned=args.unsigned,
        budget=budget,
        device_class=args.device_class,
        rejected="retry" if args.retry_rejected else "refuse",
        activate=not args.stage,
        shadow=args.shadow,
        allow_older=args.allow_older,
    )
    return policy if args.device is None else replace(policy, device=args.device)


def _selftest(store: ModelStore, name: str, *, measure: bool) -> None:
    bundle = store.open(name)
    measured = run_selftest(bundle, place=name)
    _say(f"{name} {measured.version}: the golden answers came out; {measured.in_words()}")
    if measure:
        try:
            _say(f"written to {write_measured(bundle.path, measured)}")
        except OSError as error:
            raise CommandError(f"{bundle.path}: its figures cannot be written: {error.strerror}") from error


def _installed(done: Installed, *, shadow: bool) -> str:
    slot = done.slot
    if not done.changed:
        return f"{slot.name} {slot.version} ({slot.digest[:12]}) is {slot.standing} already: nothing to do"
    assert done.measured is not None
    beside = ", and runs beside the active one" if shadow else ""
    return f"{_now(slot)}{beside}; {done.measured.in_words()}"


def _now(slot: Slot) -> str:
    return f"{slot.name} {slot.version} ({slot.digest[:12]}) is {slot.standing}"


def _listed_json(store: ModelStore) -> str:
    documents = []
    for each in store.entries():
        document: dict[str, Any] = {
            "name": each.name,
            "version": each.version,
            "digest": each.digest,
            "state": each.state,
        }
        if each.shadow:
            document["shadow"] = True
        if each.why:
            document["why"] = each.why
        measured = store.measured(each.name, each.digest)
        if measured is not None:
            document["measured"] = msgspec.structs.asdict(measured)
        documents.append(document)
    return json.dumps(documents, indent=2)


def _listed_table(store: ModelStore) -> str:
    listed = store.entries()
    if not listed:
        return f"nothing is installed in {store.root}"
    rows = [("NAME", "VERSION", "STATE", "DIGEST", "MEASURED HERE", "WHY")]
    rows += [(each.name, each.version, _state(each), each.digest[:12], _cost(store, each), each.why) for each in listed]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _cost(store: ModelStore, listed: ListedBundle) -> str:
    measured = store.measured(listed.name, listed.digest)
    return "-" if measured is None else f"{measured.median_ms:.3g} ms, {measured.peak_rss_bytes / MIB:.0f} MiB"


def _state(each: ListedBundle) -> str:
    return f"{each.state}, shadow" if each.shadow else each.state


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
