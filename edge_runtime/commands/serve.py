"""`edge-runtime serve BUNDLE... [--listen HOST:PORT]`: predictions on demand, on a machine without sensors."""

import argparse
import signal
import sys
import threading
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `serve` takes."""
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE", help="the .onnx files")
    parser.add_argument("--listen", default="127.0.0.1:8080", metavar="HOST:PORT", help="default: %(default)s")
    parser.add_argument("--token-file", type=Path, help="its first line is the token that every request must bring")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    from edge_runtime.http.standalone import open_stand  # noqa: PLC0415 - numpy, which `--help` does not need
    from edge_runtime.system.log import setup  # noqa: PLC0415
    from edge_runtime.system.systemd import Notifier  # noqa: PLC0415

    setup()
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stopped.set())
    server, names = open_stand(args.bundles, args.listen, args.token_file)
    notifier = Notifier()
    notifier.ready(f"serving {', '.join(names)}")
    host = args.listen.rpartition(":")[0]
    print(f"serving {', '.join(names)} on http://{host}:{server.port}/", file=sys.stderr, flush=True)
    stopped.wait()
    notifier.stopping("stopping")
    server.stop()
    return 0
