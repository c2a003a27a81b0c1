"""Runs operations of the store in children that stop before they start, so that a tracer can be put on them.

Started by `test_kill_points.py`: reads one JSON order a line, forks, answers with the child's process id, and after the
child has ended with its status. The modules are imported once, so an order costs milliseconds.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import onnxruntime  # noqa: F401 - so that no child looks for its version on the disk, a hundred calls that prove nothing

from edge_runtime.bundle.measured import Measured
from edge_runtime.bundle.open import Bundle
from edge_runtime.bundle.selftest import Budget
from edge_runtime.store.install import Policy
from edge_runtime.store.store import ModelStore


def quick(bundle: Bundle, budget: Budget, place: str) -> Measured:
    """The self-test changes nothing in the store, so a kill in it is a kill before the next call."""
    manifest = bundle.manifest
    return Measured(manifest.name, manifest.version, bundle.digest, 1, 1.0, 1.0, 1.0, 1, 1, "fake", "fake")


def operate(order: dict[str, Any]) -> None:
    """Do one operation on a store."""
    store = ModelStore(Path(order["store"]), selftest=quick)
    name = "activity"
    match order["verb"]:
        case "install":
            signers = Path(order["allowed"])
            beside = bool(order.get("shadow"))
            policy = Policy(allowed_signers=signers, unsigned=order["unsigned"], device="press-07", shadow=beside)
            store.install(Path(order["bundle"]), policy)
        case "activate":
            store.activate(name, order["version"])
        case "rollback":
            store.rollback(name)
        case "promote":
            store.promote(name)
        case "withdraw":
            store.withdraw(name)
        case "fail_shadow":
            shadow = store.shadow(name)
            assert shadow is not None
            store.fail_shadow(name, shadow.digest, "it crashed")
        case "begin":
            store.begin(name)
        case "confirm":
            store.confirm(name, store.slot(name).digest)
        case "fail":
            store.fail(name, store.slot(name).digest, "worse than the one before")
        case other:
            raise ValueError(other)


def main() -> None:
    """Serve orders until the input ends."""
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            try:
                operate(order)
            except BaseException:  # noqa: BLE001 - the edge of the child: tell and leave
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        os.waitpid(child, os.WUNTRACED)
        print(child, flush=True)  # noqa: T201
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
