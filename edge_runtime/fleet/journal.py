"""The journal of the service on many devices, as one stream of lines with the device's name."""

import json as json_module
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from edge_runtime.errors import EdgeError
from edge_runtime.fleet.inventory import FleetDevice
from edge_runtime.fleet.rollout import Outcome, exit_code, outcome_of
from edge_runtime.fleet.ssh import Collected, RemoteResult, as_root, raise_if_unreachable, start

_lock = threading.Lock()


def show(targets: Sequence[FleetDevice], *, lines: int, follow: bool, since: str | None, json: bool, limit: int) -> int:
    """Print the lines of every device; returns the exit code of `fleet/rollout.py`.

    Lines of one device keep their order. With `follow` all devices are asked at once, whatever the limit.
    """
    words = ["journalctl", "--no-pager", "--quiet", "--output", "json" if json else "short-iso", "--lines", str(lines)]
    words += ["--follow"] if follow else []
    words += ["--since", since] if since else []

    def one(target: FleetDevice) -> Outcome:
        def ask() -> Outcome:
            _stream(target, [*words, "--unit", f"edge-runtime@{target.service}"], json=json, alone=len(targets) == 1)
            return Outcome(target.name, "done")

        outcome = outcome_of(target, ask)
        if outcome.text:
            with _lock:
                sys.stderr.write(f"{target.name}: {outcome.text}\n")
        return outcome

    with ThreadPoolExecutor(max_workers=len(targets) if follow else min(limit, len(targets))) as pool:
        return exit_code(list(pool.map(one, targets)))


def _stream(target: FleetDevice, words: list[str], *, json: bool, alone: bool) -> None:
    with start(target, as_root(words)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.close()
        err = Collected(process.stderr)
        for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip("\n")
            if json:
                line = json_module.dumps({"device": target.name, "entry": json_module.loads(line)})
            with _lock:
                sys.stdout.write((line if alone or json else f"{target.name}: {line}") + "\n")
                sys.stdout.flush()
        answer = RemoteResult(process.wait(), "", err.text())
    raise_if_unreachable(target, answer)
    if answer.code != 0:
        raise EdgeError(answer.reason)
