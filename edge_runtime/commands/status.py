"""`edge-runtime status [--json]`: what the daemons of this machine are doing, from the files that they keep in memory.

It shows the services, and the daemons that the same user runs in the foreground (`daemon/status_file.py`).
"""

import argparse
import time
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `status` takes."""
    parser.add_argument("device", nargs="?", help="the id of a device; every one of this machine when left out")
    parser.add_argument("--json", action="store_true", help="the documents, as a JSON array")
    parser.add_argument(
        "--folder",
        type=Path,
        help="where the daemons keep their state; /run/edge-runtime and this user's own when left out",
    )


def run(args: argparse.Namespace) -> int:
    """Print the state; 1 when there is none, or when a daemon ended without a clean stop."""
    import msgspec  # noqa: PLC0415 - as light as `--help` can be

    from edge_runtime.daemon.status_file import all_folders, is_running, status_files  # noqa: PLC0415
    from edge_runtime.errors import CommandError  # noqa: PLC0415

    folders = [args.folder] if args.folder is not None else all_folders()
    found = []
    for path in (path for folder in folders for path in status_files(folder, args.device)):
        try:
            found.append(msgspec.json.decode(path.read_bytes()))
        except (OSError, msgspec.DecodeError) as error:
            raise CommandError(f"{path}: expected the state of a daemon, found {error}") from error
    if not found:
        which = f" of {args.device}" if args.device else ""
        raise CommandError(
            f"{' and '.join(map(str, folders))}: expected the state of a daemon{which}, found none: "
            "is edge-runtime@DEVICE running, or edge-runtime run by this user?"
        )
    for document in found:
        document["running"] = is_running(document.get("pid"))
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        for document in found:
            for line in _describe(document):
                print(line)
    return 0 if all(document["running"] for document in found) else 1


def _describe(document: dict[str, Any]) -> list[str]:
    from edge_runtime.stream.rejections import shortened  # noqa: PLC0415 - brings the codecs

    standing = "running" if document["running"] else "not running any more"
    age = max(0, round(time.time() - float(document.get("written", 0))))
    lines = [
        f"{document['device']}: {standing}, pid {document.get('pid')}, as of {age} s ago",
        f"  published {document['published']}, queued {document['queued']}, readings {document['readings']}",
    ]
    lines += [f"  link {name}: {state}" for name, state in document["link"].items()]
    if (outbox := document.get("outbox", {}).get("state", "ok")) != "ok":
        lines.append(f"  outbox: {shortened(outbox)}")
    if (captures := document.get("capture", {}).get("state", "ok")) != "ok":
        lines.append(f"  captures: {shortened(captures)}")
    for name, source in document["sources"].items():
        lines.append(f"  source {name}: {source['state']}")
        for reason, last in source.get("last_rejected", {}).items():
            sample = f" ({last['sample']})" if last["sample"] else ""
            lines.append(f"    {reason} at {last['time']}: {shortened(last['where'])}: {last['why']}{sample}")
    lines += [f"  sink {name}: {shortened(sink['state'])}" for name, sink in document.get("sinks", {}).items()]
    if "sparkplug" in document:
        lines.append(f"  sparkplug {document['sparkplug']['state']}")
    for model in document.get("slots", []):
        why = f" ({model['why']})" if model.get("why") else ""
        lines.append(
            f"  model {model['name']}: {model['version']} {model['state']}{why}, digest {model['digest'][:12]}"
        )
        beside = model.get("shadow")
        if beside:
            reason = f" ({beside['why']})" if beside.get("why") else ""
            lines.append(f"    in its shadow: {beside['version']} {beside['state']}{reason}")
    for name in ("rejected", "skipped", "dropped", "errors"):
        if document.get(name):
            lines.append(f"  {name}: " + ", ".join(f"{reason} {count}" for reason, count in document[name].items()))
    return lines
