"""`edge-runtime check DEVICE.toml`: everything that `run` checks before it opens a port, and nothing more."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from edge_runtime.config.tables import Config
    from edge_runtime.stream.sources.kind import SourceKindTable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `check` takes."""
    parser.add_argument("device", type=Path, metavar="DEVICE.toml", help="the device file")
    parser.add_argument(
        "--for-device",
        action="store_true",
        help="the file is for another machine: leave out what its files, bundles and store decide, and say so",
    )


def run(args: argparse.Namespace) -> int:
    """Print what would run; with mistakes print all of them and return 78."""
    from edge_runtime.config.load import load_config, parse_toml  # noqa: PLC0415 - as in `run`
    from edge_runtime.daemon.plan import (  # noqa: PLC0415
        describe_plan,
        make_plan,
        mistakes_of_words,
        plan_warnings,
    )

    absent: dict[str, str] = {}
    has_none_yet = parse_toml(args.device).get("model") == []
    if has_none_yet and _accept_without_model(args.device, absent, at_home=args.for_device):
        return 0
    config = load_config(args.device, absent=absent if args.for_device else None, further=mistakes_of_words)
    if args.for_device:
        config = _without_the_device(config, absent)
    plan = make_plan(config, absent=absent)
    for line in describe_plan(plan):
        print(line)
    for line in plan_warnings(plan):
        print(f"warning: {line}")
    for path, place in absent.items():
        print(f"not checked: {place}: {path} is not on this machine")
    print(f"{args.device}: good" + (", as far as it can be judged here" if absent else ""))
    return 0


def _accept_without_model(device: Path, absent: dict[str, str], *, at_home: bool) -> bool:
    """Whether a file with `model = []`, as `init` writes it, has no other mistake and is good for `record`."""
    from edge_runtime.config.load import load_config  # noqa: PLC0415 - as in `run`
    from edge_runtime.errors import ConfigError  # noqa: PLC0415

    try:
        config = load_config(device, absent=absent if at_home else None, needs_models=False)
    except ConfigError:
        return False
    for source in cast("tuple[SourceKindTable, ...]", config.source):  # every extra of the registry
        print(f"source {source.name}: {source.describe()}")
    for path, place in absent.items():
        print(f"not checked: {place}: {path} is not on this machine")
    print(f"{device}: good for edge-runtime record; run and try need a [[model]], which it does not have yet")
    return True


def _without_the_device(config: "Config", absent: dict[str, str]) -> "Config":
    """The same configuration without signers and store, if these are on the device."""
    import msgspec  # noqa: PLC0415 - as light as `--help` can be

    from edge_runtime.config.convert import names_a_file  # noqa: PLC0415

    store = config.store
    if not Path(store.path).is_dir():
        for model in config.model:
            if not names_a_file(model.bundle):
                absent[model.bundle] = f'model "{model.name}".bundle'
    if store.allowed_signers in absent:
        config = msgspec.structs.replace(config, store=msgspec.structs.replace(store, allowed_signers=None))
    return config
