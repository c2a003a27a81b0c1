"""`edge-convert label DIR`: a local page on which a person labels windows by the keyboard."""

import argparse
import contextlib
import sys
from pathlib import Path

from edge_runtime.errors import EXIT_OK, CommandError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="captures, or a recording of `edge-runtime record`")
    parser.add_argument("--labels", metavar="a,b", help="to choose from, instead of those that the folder knows")
    parser.add_argument("--model", metavar="NAME", help="of captures, only those of this model")
    parser.add_argument(
        "--readings", type=int, metavar="N", help="of a recording: how many readings one label is for; a second of them"
    )
    parser.add_argument("--port", type=int, default=0, metavar="N", help="of the page; any that is free when left out")
    parser.add_argument("--no-browser", action="store_true", help="only print the address of the page")


def run(options: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    import webbrowser  # noqa: PLC0415 - as light as `--help` can be

    from converter.labelling.decisions import LabelFile  # noqa: PLC0415
    from converter.labelling.server import Labelling, LabelServer  # noqa: PLC0415
    from converter.labelling.task import label_task  # noqa: PLC0415

    labels = [each.strip() for each in options.labels.split(",")] if options.labels else []
    if labels and (not all(labels) or len(set(labels)) < len(labels)):
        raise CommandError(f"--labels: expected names such as a,b, each once, found {options.labels!r}")
    if options.readings is not None and options.readings < 1:
        raise CommandError(f"--readings: expected 1 or more, found {options.readings}")
    task = label_task(options.folder, model=options.model, labels=labels, readings=options.readings)
    for note in task.notes:
        print(note, file=sys.stderr)
    labelling = Labelling(task, LabelFile(options.folder))
    try:
        server = LabelServer(labelling, options.port)
    except (OSError, OverflowError) as error:
        raise CommandError(f"--port {options.port}: expected a port that is free, found: {error}") from error
    with server:
        print(f"{len(task.items)} to label: {server.url} (Ctrl-C ends)", flush=True)
        if not options.no_browser:
            webbrowser.open(server.url)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    progress = labelling.progress()
    print(
        f"{options.folder / 'labels.jsonl'}: {progress['labelled']} of {progress['all']} labelled, "
        f"{progress['skipped']} skipped"
    )
    return EXIT_OK
