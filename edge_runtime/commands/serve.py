"""`edge-runtime serve BUNDLE... [--listen HOST:PORT]`: predictions on demand, on a machine without sensors.

SIGTERM answers the requests in flight and ends; SIGHUP reads bundles and token again without losing a request.
"""

import argparse
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_runtime.http.shared_counts import SharedCounts
    from edge_runtime.system.systemd import Notifier

# Reports of a process, with a text for people: + it serves, ... it reloads, r it has reloaded, ! it refused, - it ends.
Report = Callable[[bytes, str], None]
MOST_PROCESSES = 64
MOST_STOP_S = 600.0
PARENT_EVERY_S = 1.0  # interval in which a child process checks that its parent is there


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `serve` takes."""
    parser.add_argument(
        "bundles", nargs="+", type=Path, metavar="BUNDLE", help="the .onnx files; SIGHUP reads them again"
    )
    parser.add_argument(
        "--listen", default="127.0.0.1:8080", metavar="HOST:PORT|unix:PATH",
        help="default: %(default)s; a socket that systemd hands over goes before it",
    )  # fmt: skip
    parser.add_argument("--token-file", type=Path, help="its first line is the token that every request must bring")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="so many processes on one address")
    parser.add_argument(
        "--stop-timeout", type=float, default=10.0, metavar="S",
        help="what SIGTERM gives requests in flight (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument("--health", choices=("open", "token"), default="open", help="whether health needs the token")
    parser.add_argument(
        "--metrics", choices=("open", "token"), default="token", help="whether /metrics needs the token"
    )
    parser.add_argument(
        "--hosts", action="append", default=[], metavar="NAME[,NAME]",
        help="further host names that a request without a token may come to",
    )  # fmt: skip
    parser.add_argument(
        "--origins", action="append", default=[], metavar="URL[,URL]", help="other sites whose pages may ask (CORS)"
    )
    parser.add_argument("--prefix", default="", metavar="PATH", help="a path that a proxy leaves in front of ours")
    parser.add_argument("--access-log", choices=("off", "json"), default="off", help="a line an answer, on stdout")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    from edge_runtime.http.listening import address_of, forget, inherited, listen_on  # noqa: PLC0415 - not for `--help`
    from edge_runtime.http.processes import Supervisor  # noqa: PLC0415
    from edge_runtime.http.shared_counts import SharedCounts  # noqa: PLC0415
    from edge_runtime.system.log import setup  # noqa: PLC0415
    from edge_runtime.system.systemd import Notifier  # noqa: PLC0415

    setup()
    _check(args)
    notifier = Notifier()
    given = inherited()
    count = args.processes
    listeners = [given] * count if given is not None else listen_on(args.listen, count)
    where = address_of(listeners[0])
    shown = where if where.startswith("unix:") else f"http://{where}/"

    def say_ready(text: str) -> None:
        notifier.ready(text)
        print(f"{text} on {shown}", file=sys.stderr, flush=True)

    if count > 1:
        shared = SharedCounts(count)

        def serve(number: int, listener: socket.socket, report: Report) -> int:
            shared.number = number
            return _serve_or_say_why(args, listener, report, shared, is_lent=given is not None)

        code = Supervisor(
            listeners,
            serve,
            notifier,
            lambda: say_ready(f"{count} processes, serving"),
            args.stop_timeout,
        ).run()
    else:
        code = _serve(args, listeners[0], _to_systemd(notifier, say_ready), is_lent=given is not None)
    if given is None and where.startswith("unix:"):
        forget(where.removeprefix("unix:"))
    return code


def _check(args: argparse.Namespace) -> None:
    """Check the arguments, and parse lists.

    Raises:
        CommandError: an argument is wrong.
    """
    from edge_runtime.config.addresses import host_fault, listening_fault, origin_fault, prefix_fault  # noqa: PLC0415
    from edge_runtime.errors import CommandError  # noqa: PLC0415

    if args.listen.startswith("unix:") and args.listen != "unix:":
        args.listen = f"unix:{Path(args.listen.removeprefix('unix:')).absolute()}"
    args.hosts = [each for words in args.hosts for each in words.split(",")]
    args.origins = [each for words in args.origins for each in words.split(",")]
    faults = [("--listen", listening_fault(args.listen)), ("--prefix", prefix_fault(args.prefix))]
    faults += [("--hosts", host_fault(each)) for each in args.hosts]
    faults += [("--origins", origin_fault(each)) for each in args.origins]
    if not 1 <= args.processes <= MOST_PROCESSES:
        faults.append(("--processes", f"expected 1 to {MOST_PROCESSES}, found {args.processes}"))
    if not 0 <= args.stop_timeout <= MOST_STOP_S:
        faults.append(("--stop-timeout", f"expected 0 to {MOST_STOP_S:g} seconds, found {args.stop_timeout:g}"))
    found = [f"{name}: {fault}" for name, fault in faults if fault is not None]
    if found:
        raise CommandError("\n".join(found))


def _to_systemd(notifier: "Notifier", say_ready: Callable[[str], None]) -> Report:
    """The reports of a single process."""

    def report(word: bytes, text: str) -> None:
        match word:
            case b"+":
                say_ready(text)
            case b"...":
                notifier.reloading()
            case b"-":
                notifier.stopping(text)
            case _:
                notifier.ready(text)

    return report


def _serve_or_say_why(
    args: argparse.Namespace, listener: socket.socket, report: Report, shared: "SharedCounts", *, is_lent: bool
) -> int:
    """One of several processes; it ends when its parent is gone."""
    from edge_runtime.errors import EdgeError  # noqa: PLC0415

    try:
        return _serve(args, listener, report, parent=os.getppid(), shared=shared, is_lent=is_lent)
    except EdgeError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code


def _serve(
    args: argparse.Namespace,
    listener: socket.socket,
    report: Report,
    *,
    parent: int | None = None,
    shared: "SharedCounts | None" = None,
    is_lent: bool,
) -> int:
    """Load, answer, reload and stop."""
    from edge_runtime.errors import EdgeError  # noqa: PLC0415
    from edge_runtime.http.standalone import Stand, StandOptions  # noqa: PLC0415 - numpy, which `--help` does not need
    from edge_runtime.system.background import start_thread  # noqa: PLC0415
    from edge_runtime.system.log import fields, get_logger  # noqa: PLC0415
    from edge_runtime.system.loop import Loop  # noqa: PLC0415

    log = get_logger("serve")
    words: deque[str] = deque()
    loop = Loop()
    loop.wake_on_signals()
    for number, word in ((signal.SIGTERM, "stop"), (signal.SIGINT, "stop"), (signal.SIGHUP, "reload")):
        signal.signal(number, lambda _number, _frame, word=word: words.append(word))  # type: ignore[misc]
    options = StandOptions(
        token_file=args.token_file,
        health=args.health,
        metrics=args.metrics,
        hosts=args.hosts,
        origins=args.origins,
        prefix=args.prefix,
        access_log=args.access_log,
    )
    stand = Stand(args.bundles, listener, options, shared)
    report(b"+", f"serving {', '.join(stand.names)}")

    def reload() -> None:
        try:
            changes = stand.reload()
        except EdgeError as error:
            log.error("not reloaded, serving on as before: %s", error)  # noqa: TRY400 - a user's mistake, no fault of ours
            report(b"!", "not reloaded: see the log")
        else:
            log.info("reloaded", extra=fields(changes=changes))
            report(b"r", f"reloaded: {changes}")
        words.append("reloaded")
        loop.wake()

    is_reloading = wants_reload = False
    while True:
        loop.run_once(None if parent is None else PARENT_EVERY_S)
        if "stop" in words or (parent is not None and os.getppid() != parent):
            break
        while words:
            word = words.popleft()
            is_reloading = is_reloading and word != "reloaded"
            wants_reload = wants_reload or word == "reload"
        if wants_reload and not is_reloading:  # a signal during a reload requests another one
            is_reloading, wants_reload = True, False
            report(b"...", "")
            start_thread("reload", reload)
    report(b"-", "stopping")
    stand.stop(args.stop_timeout, accepts=not is_lent)
    loop.close()
    return 0
