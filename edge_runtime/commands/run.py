"""`edge-runtime run DEVICE.toml`: the daemon, in the foreground, as systemd wants it."""

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.system.systemd import Notifier

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: "argparse.ArgumentParser") -> None:
    """What `run` takes."""
    parser.add_argument("device", type=Path, metavar="DEVICE.toml", help="the device file")


def run(args: "argparse.Namespace") -> int:
    """As `serve`."""
    return serve(args.device)


def serve(device: "str | Path") -> int:
    """Serve until SIGTERM. 78 when the configuration is wrong, 1 when predictions were lost at the stop."""
    # numpy's threads would only wait here, in a busy loop at first, and each takes memory
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.disable()  # during the start: its objects stay, and the search for garbage among them takes a tenth of the start
    from edge_runtime.mqtt import light_paho  # noqa: PLC0415 - `--help` needs none of this
    from edge_runtime.system import hashing  # noqa: PLC0415 - as above

    hashing.import_light()
    light_paho.import_light()
    from edge_runtime.mqtt.paho_client import check_paho  # noqa: PLC0415 - as above

    check_paho()
    from edge_runtime.daemon.process import Daemon  # noqa: PLC0415 - numpy and paho

    return Daemon(Path(device), Notifier()).run()
