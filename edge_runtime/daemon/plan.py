"""A configuration and its bundles -> the plan of what to run: checked together, before a port or a broker is opened.

All mistakes in the file, and in the bundles that it names, are reported here together, with exit code 78. `check` stops
after this step; `run` continues.
"""

import importlib.util
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.bundle.manifest import LABEL_TASKS
from edge_runtime.bundle.model import Model, ModelError, ModelOptions
from edge_runtime.bundle.open import Bundle, open_bundle
from edge_runtime.bundle.optimised_copy import chosen, load_model
from edge_runtime.bundle.uncertainty import label_sets
from edge_runtime.config.convert import names_a_file
from edge_runtime.config.rules import RESERVED, RESERVED_BELOW, first_repeated
from edge_runtime.config.tables import CaptureTable, Config, ModelTable, tag_of
from edge_runtime.config.topics import matches, overlap, split_share
from edge_runtime.daemon.state import state_folder
from edge_runtime.delivery.payloads import CONVENTIONS, can_alarm, first_of, flat_convention
from edge_runtime.errors import BundleError, CommandError, ConfigError
from edge_runtime.stream.sources.kind import FramedSourceTable, SourceKindTable, as_kind
from edge_runtime.system.hashing import use_openssl

if TYPE_CHECKING:
    from edge_runtime.store.records import Slot
    from edge_runtime.store.store import ModelStore
    from edge_runtime.store.trust import Trust


class PlannedModel(msgspec.Struct, eq=False):
    """One model: its table, its checked bundle, the loaded session, and the slot of the store that it came from."""

    config: ModelTable
    bundle: Bundle
    model: Model
    slot: "Slot | None" = None


class PlannedSource(msgspec.Struct, eq=False):
    """One source: the columns of its models, in the order of delivery."""

    config: SourceKindTable
    channels: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = None
    models: list[PlannedModel] = msgspec.field(default_factory=list)
    categories: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    units: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def max_gap(self) -> float | None:
        """The shortest pause that one of its models takes for a gap; None if no model does."""
        gaps = [model.config.max_gap for model in self.models if model.config.max_gap is not None]
        return min(gaps, default=None)


class Plan(msgspec.Struct, eq=False):
    """All sources and models of a device."""

    config: Config
    sources: list[PlannedSource]

    @property
    def models(self) -> list[PlannedModel]:
        """Every model, in the order of the sources."""
        return [model for source in self.sources for model in source.models]

    @property
    def uses_store(self) -> bool:
        """Whether a model comes from the model store."""
        return any(model.slot is not None for model in self.models)


def make_plan(
    config: Config,
    *,
    starting: bool = False,
    running: Sequence[PlannedModel] = (),
    absent: Collection[str] = (),
) -> Plan:
    """Open every bundle, load it, and fit it to its source. Can be called in any thread.

    Args:
        config: the device file.
        starting: whether the plan will run now: then the store counts the start of a bundle on probation, and gives
            up on one whose starts never last.
        running: models that run already: one whose bundle and threads are the same is not loaded a second time.
        absent: files, and names of models in the store, that are on another machine; their models are left out.

    Raises:
        ConfigError: lists every mistake, one line each.
    """
    mistakes = [f"{config.path}: {mistake}" for mistake in mistakes_of_words(config)]
    models: list[PlannedModel] = []
    importlib.import_module("onnxruntime")  # once loaded, it has its version without 10 ms of package metadata
    for each in config.model:
        if each.bundle in absent:
            continue
        try:
            models.append(_plan_model(config, each, starting=starting, running=running))
        except (BundleError, ModelError, CommandError) as error:
            mistakes.extend(f'{config.path}: model "{each.name}".bundle: {line}' for line in str(error).splitlines())
            continue
        mistakes.extend(f'{config.path}: model "{each.name}".{mistake}' for mistake in _misfits(models[-1]))
    sources: list[PlannedSource] = []
    joined = {name for source in config.source for name in getattr(source, "of", ())}
    for source in config.source:
        if source.name in joined:
            continue  # the join runs it
        planned = PlannedSource(
            as_kind(source).bound(config), models=[model for model in models if model.config.source == source.name]
        )
        sources.append(planned)
        if absent and any(path in absent for path in _texts(source)):
            continue
        mistakes.extend(f'{config.path}: source "{source.name}".{mistake}' for mistake in _fit(planned, config))
    if config.capture is not None:
        mistakes.extend(_mistakes_of_captures(config, config.capture, models))
    if len(models) == len(config.model):
        mistakes.extend(f"{config.path}: {mistake}" for mistake in _deaf_sinks(config, models))
    if mistakes:
        raise ConfigError(mistakes)
    return Plan(config, sources)


def capture_folder(config: Config) -> Path | None:
    """The folder of captures; None without `[capture]`, or if no folder is known."""
    if config.capture is None:
        return None
    if config.capture.path is not None:
        return Path(config.capture.path)
    folder = state_folder(config)
    return None if folder is None else folder / "captures"


def _mistakes_of_captures(config: Config, table: CaptureTable, models: Sequence[PlannedModel]) -> Iterator[str]:
    from edge_runtime.capture.policy import mistakes  # noqa: PLC0415 - only where it is configured

    if capture_folder(config) is None:
        yield f"{config.path}: capture.path: expected a folder, since systemd gives no state folder here, found none"
    if len(models) == len(config.model):  # otherwise a label may belong to an absent bundle
        found = mistakes(table, [(each.config.name, each.bundle.manifest) for each in models])
        yield from (f"{config.path}: capture.{key}: {text}" for key, text in found)


def _texts(table: msgspec.Struct) -> Iterator[str]:
    """The texts of a table, which include the paths of files."""
    for value in msgspec.structs.asdict(table).values():
        yield from (each for each in (value if isinstance(value, tuple) else (value,)) if isinstance(each, str))


def _plan_model(config: Config, each: ModelTable, *, starting: bool, running: Sequence[PlannedModel]) -> PlannedModel:
    slot: Slot | None = None
    if names_a_file(each.bundle):
        bundle = _open_file(config, Path(each.bundle), starting=starting)
    else:
        store = open_store(config)
        if starting:
            store.note_device_class(config.device.class_)
        slot = store.begin(each.bundle) if starting else store.slot(each.bundle)
        bundle = store.open_slot(slot)
    options = ModelOptions(threads=each.threads, max_batch=each.max_batch)
    for other in running:
        same = (other.config.threads, other.config.max_batch) == (each.threads, each.max_batch)
        if same and other.config.name == each.name and other.bundle.digest == bundle.digest:
            return PlannedModel(each, other.bundle, other.model, slot)
    model = load_model(bundle, options, chosen(each, config.store))
    return PlannedModel(each, bundle, model, slot)


def open_store(config: Config) -> "ModelStore":
    """The model store of a device, which opens only bundles that the device trusts."""
    from edge_runtime.store.store import ModelStore  # noqa: PLC0415 - only where a model comes from the store

    use_openssl()  # bundles of any size are hashed, also in parts
    return ModelStore(Path(config.store.path), trust=_trust(config))


def _trust(config: Config) -> "Trust | None":
    signers = config.store.allowed_signers
    if signers is None:
        return None
    from edge_runtime.store.trust import Trust  # noqa: PLC0415 - starts a program: only when asked for

    return Trust(Path(signers), config.store.signatures)


def _open_file(config: Config, path: Path, *, starting: bool) -> Bundle:
    """Open a bundle that the device file names by its path, with the checks of signatures and class of an install.

    Raises:
        BundleError: it is refused.
    """
    if config.store.allowed_signers is None:
        bundle = open_bundle(path)
    else:
        from edge_runtime.store.admission import Admissions  # noqa: PLC0415 - starts a program: only when asked for

        folder = state_folder(config)
        admissions = Admissions(None if folder is None else folder / "admitted.json")
        bundle = admissions.open(path, _trust(config), note=starting)
    wanted, own = bundle.manifest.target_device, config.device.class_
    if wanted is not None and own is not None and wanted != own:
        raise BundleError(f"{path}: expected a bundle for {own}, found one for {wanted}: convert it for this device")
    return bundle


def mistakes_of_words(config: Config) -> Iterator[str]:
    """Mistakes of a plan that are found without a bundle: unused sources, reserved names of models, unknown payloads.

    For a file with other mistakes it reports what can be checked; there a wrong key has its default or None.
    """
    models, sources = config.model or (), config.source or ()
    used = {model.source for model in models}
    used.update(name for source in sources for name in getattr(source, "of", None) or ())  # parts of a join
    misspelled = bool(used - {source.name for source in sources})  # reported elsewhere: it may mean any source
    for source in sources:
        if source.name and not misspelled and source.name not in used:
            yield (
                f'source "{source.name}": expected a model that uses it, found none: its readings would be taken and '
                "lost: add a model, or take the source out"
            )
    yield from _mistakes_of_joins(config)
    yield from _mistakes_of_sinks(config)
    yield from _own_further_topics(config)
    for model in models:
        if model.name in (*RESERVED, *RESERVED_BELOW):
            yield (
                f'model "{model.name}".name: expected a name that is no topic of the device itself, '
                f'found "{model.name}": choose another'
            )
        for payload in model.payloads or ():
            if payload not in CONVENTIONS:
                yield f'model "{model.name}".payload: expected one of {", ".join(CONVENTIONS)}, found {payload!r}'
        twice = first_repeated(model.payloads or ())
        if twice is not None:
            yield f'model "{model.name}".payload: expected every convention once, found {twice!r} twice'
        if model.payload == () and not config.sink and config.sparkplug is None:
            known = ", ".join(CONVENTIONS)
            yield f'model "{model.name}".payload: expected at least one of {known}, found an array of 0'


def _own_further_topics(config: Config) -> Iterator[str]:
    """Sources that would read the topics below a prediction, which further payload conventions use."""
    upstream, device = config.upstream, config.device
    if not getattr(upstream, "topic", "") or not getattr(device, "id", ""):  # missing in a file with other mistakes
        return
    for model in config.model or ():
        if not isinstance(model.payload, tuple) and (model.payload not in CONVENTIONS or first_of(model.payloads)):
            continue
        filled = upstream.topic.replace("{device}", device.id).replace("{model}", model.name or "+")
        below = f"{filled.replace('{key}', '+')}/#"
        for source in config.source or ():
            for topic, topic_filter in source.read_topics(upstream).items():
                plain = split_share(topic_filter)[1]
                is_reported = matches(plain, filled.replace("{key}", "-"))  # by the rule for all models
                if source.name == model.source and not is_reported and overlap(plain, below):
                    yield (
                        f'source "{source.name}".topics: expected topics that model "{model.name}" does not publish '
                        f'to, found "{topic}": it may read the values of its own predictions'
                    )


def _mistakes_of_sinks(config: Config) -> Iterator[str]:
    """Sinks with the same name or file, and sinks of models that do not exist."""
    sinks, models = config.sink or (), [model.name for model in config.model or ()]
    names, paths = [sink.name for sink in sinks], [getattr(sink, "path", None) for sink in sinks]
    for place, sink in enumerate(sinks):
        if sink.name in names[:place]:
            yield f'sink "{sink.name}".name: expected a name of its own, found that of another sink'
        if paths[place] is not None and paths[place] in paths[:place]:
            yield f'sink "{sink.name}".path: expected a file of its own, found that of another sink: {paths[place]}'
        for name in sink.models or ():
            if name not in models and None not in models:
                known = ", ".join(f'"{each}"' for each in models)
                yield f'sink "{sink.name}".models: expected names of models, found "{name}": the models are {known}'


def _deaf_sinks(config: Config, models: list[PlannedModel]) -> Iterator[str]:
    """Sinks that wait for alarms of models without alarms."""
    for sink in config.sink:
        taken = [model for model in models if not sink.models or model.config.name in sink.models]
        if sink.when == "alarm" and taken and not any(can_alarm(each.config, each.bundle.manifest) for each in taken):
            yield (
                f'sink "{sink.name}".when: "alarm" needs a model that can raise one: give it alarm_labels or a '
                'threshold, or set when = "always"'
            )


def _mistakes_of_joins(config: Config) -> Iterator[str]:
    """Joins of sources that do not exist, are joins themselves, or are also used otherwise."""
    sources, models = config.source or (), config.model or ()
    joins = [source for source in sources if getattr(source, "of", None)]
    names = {source.name for source in sources} - {source.name for source in joins}
    used = {model.source: f'model "{model.name}"' for model in models}
    for join in joins:
        for name in getattr(join, "of", ()):
            if name not in names:
                yield (
                    f'source "{join.name}".of: expected names of sources that are no joins, found "{name}": '
                    f"the sources are {', '.join(sorted(map(str, names)))}"
                )
            elif name in used:
                yield (
                    f'source "{join.name}".of: expected a source that is used by nothing else, found "{name}", which '
                    f'{used[name]} takes: have the model take "{join.name}"'
                )
            used[name] = f'source "{join.name}"'


def _misfits(planned: PlannedModel) -> list[str]:
    """The keys of a model's table that do not fit its bundle."""
    config, manifest = planned.config, planned.bundle.manifest
    found = []
    if manifest.task in ("tensor", "embedding"):
        found += [
            f'payload: "{name}" needs single values, and not a model of the kind {manifest.task}'
            for name in config.payloads
            if name in CONVENTIONS and flat_convention(name) is not None
        ]
    strange = [label for label in config.alarm_labels if label not in (*manifest.output.labels, config.abstain)]
    if strange and manifest.task in LABEL_TASKS:
        known = ", ".join(manifest.output.labels)
        found.append(f"alarm_labels: expected some of {known}, found {', '.join(strange)}")
    if config.alarm_labels and manifest.task not in LABEL_TASKS:
        found.append(
            f"alarm_labels: the bundle is a model of the kind {manifest.task}, which has no labels: leave it out"
        )
    if config.abstain in manifest.output.labels:
        found.append(f'abstain: expected a label that the bundle does not have, found "{config.abstain}"')
    if config.abstain is not None and label_sets(manifest) is None:
        found.append(
            "abstain: the bundle has no sets to abstain by: build it with [uncertainty] coverage, or leave it out"
        )
    if config.publish == "alarm":
        if manifest.task in ("tensor", "embedding"):
            found.append(f'publish: "alarm" needs a model that can raise one, and not one of the kind {manifest.task}')
        if manifest.task in LABEL_TASKS and not config.alarm_labels:
            found.append('publish: "alarm" needs alarm_labels, which say what an alarm is')
        if manifest.task == "regression" and config.threshold is None:
            found.append('publish: "alarm" needs a threshold, above which a value is an alarm')
    if config.max_gap is not None and manifest.input.window.length == 1 and not manifest.state:
        found.append("max_gap: the bundle takes each reading by itself, so that there are no gaps: leave it out")
    if config.on_rate == "resample" and config.acknowledge == "window":
        found.append(
            'acknowledge: "window" waits for single readings, which on_rate = "resample" mixes: leave one of them out'
        )
    if config.on_rate != "warn" and manifest.input.window.rate_hz is None:
        found.append("on_rate: the bundle names no rate_hz to compare with: convert it with one, or leave on_rate out")
    if config.on_rate == "resample" and manifest.categories:
        found.append(
            f'on_rate: "resample" mixes neighbouring readings, and {", ".join(manifest.categories)} holds categories, '
            'which cannot be mixed: use "warn" or "reject"'
        )
    if manifest.input.shape is not None and config.stride is not None:
        found.append("stride: the bundle takes each frame by itself: leave it out")
    return found


def _fit(planned: PlannedSource, config: Config) -> list[str]:
    """Determine a source's columns, and make its decoder for them as a check."""
    shapes = {model.bundle.manifest.input.shape for model in planned.models}
    if len(shapes) > 1:
        return ["models: expected models of one kind of input, found frames of different shapes or frames and channels"]
    if not planned.models:
        return []
    planned.shape = shapes.pop()
    names = [name for model in planned.models for name in model.bundle.manifest.channel_names]
    planned.channels = tuple(dict.fromkeys(names))
    source = planned.config
    for model in planned.models:
        for name, categories in model.bundle.manifest.categories.items():
            planned.categories.setdefault(name, categories)
    found = [
        f'models: model "{model.config.name}" has other categories for channel {each.name!r} than the models before '
        "it: give it a source of its own, or convert both with one list"
        for model in planned.models
        for each in model.bundle.manifest.input.channels
        if each.categories != planned.categories.get(each.name, ())
    ]
    planned.units = _units(planned)
    found += [
        f'models: model "{model.config.name}" measures channel {each.name!r} in {each.unit}, and a model before it in '
        f"{planned.units[each.name]}: give it a source of its own"
        for model in planned.models
        for each in model.bundle.manifest.input.channels
        if each.unit not in {"", "1"} and planned.units.get(each.name, each.unit) != each.unit
    ]
    found += [
        f"{key}: expected a field beside the channels, found {name!r}, which model {user!r} takes as a channel: "
        f"name another field, or rename the channel"
        for key, name in (() if _reads_paths(source) else (("time", source.time), ("key", source.key)))
        for user in [_first_user(planned, name)]
        if user is not None
    ]
    found += [
        f'models: model "{model.config.name}" has acknowledge = "window", which needs an MQTT source with qos = 1: '
        "no other can bring a reading again"
        for model in planned.models
        if model.config.acknowledge == "window" and source.most_unacknowledged(config) is None
    ]
    if found:
        return found
    try:
        source.check_channels_of(planned.channels, planned.shape, categories=planned.categories, units=planned.units)
    except ConfigError as error:
        return [mistake.removeprefix(f'source "{source.name}".') for mistake in error.mistakes]
    return []


def _reads_paths(source: SourceKindTable) -> bool:
    """Whether `time` and `key` are places in a message: then their names may equal those of channels."""
    return isinstance(source, FramedSourceTable) and source.codec.reads_paths and not source.codec.columns


def _units(planned: PlannedSource) -> dict[str, str]:
    """The unit of each channel in the bundles, if the source's table may name units too."""
    if not planned.config.compares_units:
        return {}
    units: dict[str, str] = {}
    for model in planned.models:
        for channel in model.bundle.manifest.input.channels:
            if channel.unit not in {"", "1"}:  # 1 is a number without a unit, whose quantity is unknown
                units.setdefault(channel.name, channel.unit)
    return units


def _first_user(planned: PlannedSource, channel: str | None) -> str | None:
    """The first model with this channel."""
    users = (each.config.name for each in planned.models if channel in each.bundle.manifest.channel_names)
    return next(users, None)


def plan_warnings(plan: Plan) -> list[str]:
    """Warnings of settings that work, but perhaps not as intended: a line each, with the remedy."""
    lines = []
    for source in plan.sources:
        limit = source.config.most_unacknowledged(plan.config)
        for model in source.models:
            length = model.bundle.manifest.input.window.length
            if model.config.acknowledge != "window" or limit is None or length <= limit[0]:
                continue
            most, setting = limit
            lines.append(
                f'{plan.config.path}: model "{model.config.name}": acknowledge = "window" leaves {length} readings of '
                f"each key unacknowledged, and {setting} lets {most} be so: no window would ever be complete: set "
                f"{setting} to at least {length} times the number of keys"
            )
    return lines


def _held(source: PlannedSource, model: PlannedModel, config: Config) -> str:
    limit = source.config.most_unacknowledged(config)
    if model.config.acknowledge != "window" or limit is None:
        return ""
    length = model.bundle.manifest.input.window.length
    return f", leaves {length} readings of each key unacknowledged ({limit[1]} is {limit[0]}, for all keys together)"


def _described_outputs(config: Config) -> Iterator[str]:
    """The outputs of predictions beside the upstream, a line each."""
    for sink in config.sink:
        where = next(getattr(sink, key) for key in ("path", "url", "argv") if hasattr(sink, key))
        where = where if isinstance(where, str) else where[0]
        yield f"sink {sink.name}: {tag_of(sink)} {where.partition('?')[0]}, takes {sink.when}"
    if config.sparkplug is not None:
        yield f"sparkplug: node {config.device.id} of group {config.sparkplug.group}"


def describe_plan(plan: Plan) -> list[str]:
    """The sources and models that run, a line each, for people."""
    lines = []
    for source in plan.sources:
        lines.append(f"source {source.config.name}: {source.config.describe()}")
        for model in source.models:
            manifest = model.bundle.manifest
            window = manifest.input.window
            shape = "x".join(map(str, manifest.input.tensor_shape))
            every = f", every {model.config.stride or window.stride}" if window.length > 1 else ""
            lines.append(
                f"  model {model.config.name}: {manifest.name} {manifest.version}, {manifest.task}, "
                f"window {shape}{every}, publishes {model.config.publish}{_held(source, model, plan.config)}"
            )
    lines.extend(_described_outputs(plan.config))
    return lines
