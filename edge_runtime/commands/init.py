"""`edge-runtime init`: a device file, from what the ports and topics of this machine send and what a bundle wants."""

import argparse
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import UsageError

if TYPE_CHECKING:
    from edge_runtime.bringup.proposal import Proposal
    from edge_runtime.bundle.manifest import Manifest

_BROKER = "mqtt://localhost:1883"
_LISTEN_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `init` takes; what is left out is asked for, or with --yes proposed."""
    parser.add_argument("--bundle", type=Path, metavar="FILE", help="the model that is to run")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="where to write; ID.toml when left out")
    parser.add_argument("--yes", action="store_true", help="ask nothing: take what is proposed")
    parser.add_argument("--id", help="the name of the device; that of this machine when left out")
    parser.add_argument("--port", help="the serial port that the sensor is on")
    parser.add_argument("--baudrate", type=int, help="its speed; the usual ones are tried when left out")
    parser.add_argument("--fields", help="the columns of a line, such as time,temperature,humidity")
    parser.add_argument("--broker", metavar="URL", help=f"the broker; {_BROKER} when left out")
    parser.add_argument(
        "--topic", metavar="T", help="the topic that the sensors publish to, such as sensors/{key}/climate"
    )
    parser.add_argument(
        "--seconds", type=float, default=_LISTEN_S, metavar="N", help="how long to listen to a broker (5)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the file, and check it."""
    from edge_runtime.bringup.device_file import DeviceFile  # noqa: PLC0415 - as in `run`
    from edge_runtime.errors import EXIT_FAILED, EXIT_OK, CommandError, ConfigError  # noqa: PLC0415

    _refuse_wrong_options(args)
    asking = not args.yes and sys.stdin.isatty()
    manifest = None if args.bundle is None else _open(args.bundle)
    name = args.id or _fit_name(_ask("The name of this device", socket.gethostname(), asking=asking))
    output: Path = args.output or Path(f"{name}.toml")
    if output.exists():
        raise CommandError(f"{output}: expected no such file, found one: init overwrites nothing: name another with -o")
    channels = () if manifest is None else tuple(manifest.channel_names)
    source, proposal = _source(args, channels, asking=asking)
    broker = args.broker or _BROKER
    if asking and args.broker is None and source["type"] != "mqtt":
        broker = _ask("The broker that predictions go to", broker, asking=asking)
    made = DeviceFile(
        id=name,
        source=source,
        proposal=proposal,
        bundle=None if args.bundle is None else _as_written(args.bundle, output),
        model="model" if manifest is None else _fit_name(manifest.name),
        channels=() if manifest is None else tuple(_with_unit(each) for each in manifest.input.channels),
        window="" if manifest is None else _window(manifest),
        upstream=broker,
    )
    try:
        _write(output, made.text())
    except OSError as error:
        raise CommandError(f"{output}: cannot be written: {error.strerror}") from error
    print(f"{output}: written")
    for doubt in proposal.doubts:
        print(f"look at this: {doubt}")
    try:
        _check(output, has_model=manifest is not None)
    except ConfigError as error:
        for mistake in error.mistakes:
            print(mistake, file=sys.stderr)
        print(f"{output}: edge-runtime check does not accept it yet: see above", file=sys.stderr)
        return EXIT_FAILED
    if manifest is None:
        print("there is no model in it yet: edge-runtime record works without one, run and try need one")
        print(f"next: edge-runtime record {output} -o recordings/ --label NAME")
    else:
        print(f"next: edge-runtime try {output}")
    return EXIT_OK


def _write(output: Path, text: str) -> None:
    """Write a new file atomically: half a file would block the next try."""
    output.parent.mkdir(parents=True, exist_ok=True)
    file = output.open("x", encoding="utf-8")
    try:
        with file:
            file.write(text)
    except OSError:
        output.unlink()
        raise


def _refuse_wrong_options(args: argparse.Namespace) -> None:
    """Refuse mistakes that no answer of a port or a broker can correct, before anything is opened or written."""
    from edge_runtime.config.addresses import parse_endpoint  # noqa: PLC0415 - as light as `--help` can be

    if args.port is not None and args.topic is not None:
        raise UsageError("--port, --topic: expected one of them, found both: a source reads a port or a topic")
    for flag in ("id", "port", "topic", "fields"):
        if getattr(args, flag) is not None and not getattr(args, flag).strip():
            raise UsageError(f"--{flag}: expected a text, found none: leave the option out")
    if args.id is not None and args.id != _fit_name(args.id):
        raise UsageError(f"--id: expected one level of a topic, found {args.id!r}: {_fit_name(args.id)} would do")
    if args.baudrate is not None and args.baudrate <= 0:
        raise UsageError(f"--baudrate: expected more than 0, found {args.baudrate}: 9600 and 115200 are frequent")
    if not 0 < args.seconds < float("inf"):
        raise UsageError(f"--seconds: expected a number above 0, found {args.seconds:g}: 5 is the default")
    names = [each.strip() for each in (args.fields or "").split(",") if each.strip() != "_"]
    twice = sorted({each for each in names if names.count(each) > 1})
    if twice:
        raise UsageError(f"--fields: expected each name once, found {', '.join(twice)} twice: _ is one not read")
    if args.topic is not None and not _is_filter(args.topic):
        raise UsageError(f"--topic: expected a topic such as sensors/{{key}}/climate, found {args.topic!r}")
    if args.broker is not None:
        try:
            parse_endpoint(args.broker)
        except ValueError as error:
            raise UsageError(f"--broker: {error}") from error


def _is_filter(topic: str) -> bool:
    """Wildcards stand for whole levels, and # for the last one (MQTT 3.1.1 section 4.7.1)."""
    levels = topic.split("/")
    return all(each in {"+", "#"} or not set(each) & {"+", "#", "\0"} for each in levels) and "#" not in levels[:-1]


def _open(path: Path) -> "Manifest":
    from edge_runtime.bundle.open import open_bundle  # noqa: PLC0415 - brings numpy

    return open_bundle(path).manifest


def _check(output: Path, *, has_model: bool) -> None:
    from edge_runtime.config.load import load_config  # noqa: PLC0415 - as in `check`
    from edge_runtime.daemon.plan import make_plan  # noqa: PLC0415

    config = load_config(output, needs_models=has_model)
    if has_model:
        make_plan(config)


def _source(args: argparse.Namespace, channels: tuple[str, ...], *, asking: bool) -> "tuple[dict[str, Any], Proposal]":
    from edge_runtime.bringup.listening import serial_ports  # noqa: PLC0415 - brings paho
    from edge_runtime.errors import CommandError  # noqa: PLC0415

    if args.port is not None:
        return _serial(args, args.port, channels)
    if args.topic is not None:
        return _mqtt(args, args.topic, channels)
    ports = serial_ports()
    choices = [*ports, "MQTT topics"]
    if asking:
        for number, each in enumerate(choices, 1):
            print(f"  {number}  {each}")
        chosen = _ask("Where do readings come from (number, port or topic)", "1", asking=True)
        if chosen.isdecimal() and 1 <= int(chosen) <= len(choices):
            chosen = choices[int(chosen) - 1]
    elif len(ports) == 1:
        chosen = ports[0]
    elif args.broker is not None:
        chosen = choices[-1]
    else:
        found = f"{len(ports)} serial ports ({', '.join(ports)})" if ports else "no serial port"
        raise CommandError(
            f"expected one sensor to choose, found {found}: name it with --port, or --broker and --topic"
        )
    if chosen == choices[-1]:
        return _mqtt(args, _choose_topic(args, channels, asking=asking), channels)
    return _serial(args, chosen, channels) if chosen.startswith("/") else _mqtt(args, chosen, channels)


def _serial(args: argparse.Namespace, port: str, channels: tuple[str, ...]) -> "tuple[dict[str, Any], Proposal]":
    from edge_runtime.bringup.listening import USUAL_SPEEDS, find_speed, lines_of  # noqa: PLC0415
    from edge_runtime.bringup.port_checks import stable_name  # noqa: PLC0415
    from edge_runtime.bringup.proposal import propose  # noqa: PLC0415
    from edge_runtime.errors import CommandError  # noqa: PLC0415

    speeds = USUAL_SPEEDS if args.baudrate is None else (args.baudrate,)
    speed, lines, silent = speeds[0], [], ""
    if args.baudrate is None or args.fields is None:
        print(f"listening to {port}", file=sys.stderr)
        try:
            speed, heard = find_speed(port, speeds)
        except CommandError as error:
            silent = str(error)
        else:
            lines = lines_of(heard)
            silent = "" if lines else f"{port} sent no whole line: is the sensor on, and does it send by itself?"
    proposal = propose(lines, channels)
    if silent:
        proposal = _from_channels(channels, silent)
    _take_fields(args, proposal)
    better = stable_name(Path(port))
    return {"type": "serial", "port": str(better or port), "baudrate": speed}, proposal


def _mqtt(args: argparse.Namespace, topic: str, channels: tuple[str, ...]) -> "tuple[dict[str, Any], Proposal]":
    from edge_runtime.bringup.listening import hear_broker  # noqa: PLC0415
    from edge_runtime.bringup.proposal import Proposal, propose  # noqa: PLC0415
    from edge_runtime.config.topics import split_share  # noqa: PLC0415
    from edge_runtime.errors import CommandError  # noqa: PLC0415

    broker = args.broker or _BROKER
    plain = re.sub(r"\{[^{}/]*\}", "+", split_share(topic)[1])
    try:
        heard = hear_broker(broker, plain, args.seconds)
    except CommandError as error:
        proposal = Proposal("json", doubts=[str(error)])
    else:
        frames = [message for messages in heard.values() for message in messages]
        proposal = propose(frames, channels)
        if not frames:
            proposal = Proposal("json", doubts=[f"nothing came on {plain} in {args.seconds:g} s: is JSON sent there?"])
    _take_fields(args, proposal)
    return {"type": "mqtt", "topics": [topic]}, proposal


def _choose_topic(args: argparse.Namespace, channels: tuple[str, ...], *, asking: bool) -> str:
    from edge_runtime.bringup.listening import hear_broker, topic_patterns  # noqa: PLC0415
    from edge_runtime.bringup.proposal import propose  # noqa: PLC0415
    from edge_runtime.errors import CommandError  # noqa: PLC0415
    from edge_runtime.stream.rejections import shortened  # noqa: PLC0415

    broker = args.broker or _BROKER
    print(f"listening to {broker} for {args.seconds:g} s", file=sys.stderr)
    found = list(topic_patterns(hear_broker(broker, "#", args.seconds)))
    if not found:
        raise CommandError(f"{broker}: nothing was published in {args.seconds:g} s: name the topic with --topic")
    fitting = [topic for topic, messages in found if channels and not propose(messages, channels).doubts]
    if asking:
        for number, (topic, messages) in enumerate(found[:20], 1):
            print(f"  {number}  {shortened(topic)}  {shortened(messages[-1])[:80]}")
        first = next((n for n, (topic, _) in enumerate(found[:20], 1) if topic in fitting), 1)
        chosen = _ask("Which topic (number or topic)", str(first), asking=True)
        return found[int(chosen) - 1][0] if chosen.isdecimal() and 1 <= int(chosen) <= len(found) else chosen
    if len(fitting) == 1 or len(found) == 1:
        return fitting[0] if fitting else found[0][0]
    shown = ", ".join(topic for topic, _ in found[:10])
    raise CommandError(
        f"{broker}: expected one topic with the channels of the model, found {shown}: name it with --topic"
    )


def _from_channels(channels: Sequence[str], why: str) -> "Proposal":
    from edge_runtime.bringup.proposal import Proposal  # noqa: PLC0415

    guess = "so `fields` are guessed: the channels of the model in its order"
    return Proposal("csv", tuple(channels), doubts=[f"{why}; {guess}"])


def _take_fields(args: argparse.Namespace, proposal: "Proposal") -> None:
    """Options of the user override what was found."""
    if args.fields is None or proposal.format == "json":  # JSON names its values itself
        return
    proposal.format = "csv"
    proposal.fields = tuple(each.strip() for each in args.fields.split(","))
    if proposal.time not in proposal.fields:
        proposal.time = "time" if "time" in proposal.fields else None
        proposal.time_unit = "s" if proposal.time is None else proposal.time_unit
    if proposal.key not in proposal.fields:
        proposal.key = None
    proposal.doubts = [each for each in proposal.doubts if "`fields`" not in each]


def _ask(question: str, default: str, *, asking: bool) -> str:
    if not asking:
        return default
    print(f"{question} [{default}]: ", end="", flush=True)
    return sys.stdin.readline().strip() or default


def _fit_name(text: str) -> str:
    """As one level of a topic."""
    return re.sub(r"[/+#\s\x00-\x1f\x7f]+", "-", text.strip()).strip("-")[:200] or "device"


def _as_written(bundle: Path, output: Path) -> str:
    """A relative path if both lie in one folder, so that the folder can be moved."""
    if bundle.absolute().parent == output.absolute().parent:
        return bundle.name if bundle.suffix == ".onnx" else f"./{bundle.name}"
    return str(bundle.absolute())


def _with_unit(channel: Any) -> str:
    return f"{channel.name} in {channel.unit}" if channel.unit else str(channel.name)


def _window(manifest: "Manifest") -> str:
    window = manifest.input.window
    if window.length == 1:
        return ", one reading at a time"
    rate = f" at {window.rate_hz:g} a second" if window.rate_hz else ""
    return f", {window.length} readings a window{rate}"
