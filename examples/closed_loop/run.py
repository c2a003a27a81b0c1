"""The whole loop on a laptop, in minutes and without hardware: the world changes, and the model follows.

    python -m examples.closed_loop.run [--work DIR] [--page docs/closed-loop.md]

A press has a vibration sensor, and a model that tells its three states apart. One day the sensor is mounted anew and
the press runs faster. The drift report says so; the device keeps windows that are worth a label; they are labelled
(here by the truth of the recording, else by a person on the page of `edge-convert label`), merged with the old data,
and a better model is built. A model with a slip of the labels is refused by `compare`; the good one is installed while
the daemon runs.

The signal is made up, with fixed seeds. Everything else is real: the converter, the daemon, its store and its captures,
and an embedded broker (of the extra `demo`). Every figure is counted from what a subscriber received.
"""

import argparse
import json
import math
import shlex
import signal
import string
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.captured import merge
from converter.features import WindowFeatures
from converter.labelling.decisions import Decision, LabelFile
from edge_runtime.capture.captures import WRITE_S
from edge_runtime.demo import Audience, embedded_broker, run_step, running_daemon, subscription
from edge_runtime.errors import CommandError, EdgeError
from examples.closed_loop.pictures import captured_windows, timeline

STATES = ("ok", "unbalanced", "bearing")
CHANNELS = ("accel_x", "accel_y", "accel_z")
RATE_HZ = 100.0
LENGTH = 64
WINDOWS_A_STATE = 4  # before the press changes its state
BEGIN = 1_760_000_000.0  # Unix seconds
PATIENCE_S = 60.0
SETTLE_S = 3.0  # the report of drift follows what it is about

SPECIFICATION = f"""
name = "press"
version = "VERSION"
task = "classification"

[window]
length = {LENGTH}
stride = {LENGTH}
rate_hz = {RATE_HZ}

[data]
label = "state"
time = "time"
""" + "".join(f'\n[[channel]]\nname = "{name}"\nunit = "m/s2"\nrange = [-40.0, 40.0]\n' for name in CHANNELS)


@dataclass(frozen=True)
class World:
    """How the press and its sensor are: how fast it runs, and what the sensor makes of it."""

    speed_hz: float = 12.0
    gain: float = 1.0
    tilt: float = 0.0
    noise: float = 0.25


BEFORE = World()
AFTER = World(speed_hz=14.0, gain=0.65, tilt=0.8, noise=0.3)


@dataclass(frozen=True)
class Recording:
    """Readings with the state of the press at each."""

    times: NDArray[np.float64]
    values: NDArray[np.float32]
    states: list[str]

    def write(self, path: Path, *, with_states: bool) -> None:
        """As CSV; the device gets it without the states."""
        lines = [",".join(("time", *CHANNELS, *(["state"] if with_states else [])))]
        for moment, row, state in zip(self.times.tolist(), self.values.tolist(), self.states, strict=True):
            cells = [f"{moment:.2f}", *(f"{value:.5f}" for value in row), *([state] if with_states else [])]
            lines.append(",".join(cells))
        path.write_text("\n".join(lines) + "\n")

    @property
    def windows(self) -> int:
        """How many windows it makes."""
        return len(self.times) // LENGTH

    def state_at(self, moment: float) -> str:
        """The truth of a window whose last reading was then."""
        return self.states[int(np.searchsorted(self.times, moment - 1e-4))]


def record(world: World, windows: int, *, begin: float, seed: int) -> Recording:
    """What the sensor sends: a turning mass on three axes, and bursts where a bearing is worn."""
    rng = np.random.default_rng(seed)
    count = windows * LENGTH
    moments = np.arange(count) / RATE_HZ
    states = [STATES[place // (LENGTH * WINDOWS_A_STATE) % len(STATES)] for place in range(count)]
    is_unbalanced = np.array([state == "unbalanced" for state in states])
    is_worn = np.array([state == "bearing" for state in states])
    turn = 2 * math.pi * world.speed_hz * moments
    swing = np.where(is_unbalanced, 2.0, 1.0) * (1 + 0.15 * np.sin(2 * math.pi * 0.03 * moments))
    burst = is_worn * 1.6 * (np.sin(turn * 2.7) > 0.7) * rng.normal(size=count)
    axes = np.stack([swing * np.cos(turn), swing * np.sin(turn), 0.4 * swing * np.cos(turn + 1)], axis=1)
    values = world.gain * (axes + burst[:, None] * [1.0, 0.8, 0.6]) + rng.normal(0, world.noise, (count, 3))
    values[:, 2] += world.tilt
    return Recording(begin + moments, values.astype(np.float32), states)


@dataclass
class Seen:
    """What a subscriber saw of one part of the story.

    Attributes:
        name: of the part.
        windows: for each prediction its time, its version, and whether it was right.
        drift: the states of the drift report, with their reasons, as they came.
    """

    name: str
    windows: list[tuple[float, str, bool]] = field(default_factory=list)
    drift: list[tuple[str, str]] = field(default_factory=list)

    @property
    def drift_at_end(self) -> str:
        """The last state that was reported."""
        return self.drift[-1][0] if self.drift else "ok"

    @property
    def accuracy(self) -> float:
        """The share that was right."""
        return sum(right for _, _, right in self.windows) / len(self.windows)


@dataclass
class Story:
    """Everything that the page tells."""

    parts: list[Seen] = field(default_factory=list)
    captured: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    judged_on: int = 0
    refusal: str = ""
    drift_why: str = ""
    pictures: dict[str, str] = field(default_factory=dict)


# --- the workstation --------------------------------------------------------------------------------------------------


def step(*words: str | Path) -> None:
    """A command of the converter or the store, shown and run.

    Raises:
        CommandError: it failed.
    """
    program, arguments = str(words[0]), [str(word) for word in words[1:]]
    print(f"\n$ {program} {shlex.join(arguments)}", flush=True)
    module = {"edge-convert": "converter.cli", "edge-runtime": "edge_runtime.cli"}[program]
    run_step([sys.executable, "-c", f"import sys; from {module} import main; sys.exit(main())", *arguments])


def fit(windows: NDArray[np.float32], states: Sequence[str]) -> Any:
    """Statistics of each axis, and a logistic regression. Seeded."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - slow to import
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    features = WindowFeatures(statistics=("mean", "std", "min", "max", "rms"))
    return make_pipeline(features, StandardScaler(), LogisticRegression(max_iter=2000)).fit(windows, list(states))


def windows_of(recording: Recording) -> tuple[NDArray[np.float32], list[str]]:
    """Its windows and their states."""
    values = recording.values[: recording.windows * LENGTH].reshape(-1, LENGTH, len(CHANNELS))
    return values, recording.states[LENGTH - 1 :: LENGTH][: len(values)]


def build(work: Path, name: str, version: str, model: Any, *, data: Path) -> Path:
    """Convert a model, judged on these data."""
    import skops.io  # noqa: PLC0415

    skops.io.dump(model, work / f"{name}.skops")
    (work / f"{name}.toml").write_text(SPECIFICATION.replace("VERSION", version))
    bundle = work / f"{name}.onnx"
    step("edge-convert", "build", work / f"{name}.skops", "--spec", work / f"{name}.toml", "--data", data, "-o", bundle)
    return bundle


# --- the device -------------------------------------------------------------------------------------------------------


def device_file(work: Path, recording: Path, broker: str) -> str:
    """A device that replays a recording, takes its model from the store, and keeps what is worth a label."""
    return f"""
[device]
id = "press"
health_interval = 1.0

[[source]]
name = "imu"
type = "replay"
files = ["{recording.resolve()}"]
speed = 300
time = "time"

[[model]]
name = "state"
bundle = "press"
source = "imu"

[store]
path = "{work.resolve()}/store"
probation = 2.0

[capture]
path = "{work.resolve()}/captures"
max_bytes = 2_000_000
uncertain = 0.5
random = 0.25

[upstream]
url = "{broker}"

[outbox]
path = "{work.resolve()}/device/outbox.db"
"""


class Stage:
    """The daemon with a subscriber, and one recording after another.

    Args:
        work: where everything is.
        broker: of the device.
        audience: the subscriber.
        process: the daemon's.
    """

    def __init__(self, work: Path, broker: str, audience: Audience, process: Any) -> None:
        self._work = work
        self._broker = broker
        self._audience = audience
        self._process = process

    def play(self, name: str, recording: Recording, *, first: bool = False) -> Seen:
        """Replay a recording to its end; what a subscriber received meanwhile.

        Raises:
            CommandError: the daemon ended, or not everything came.
        """
        seen = Seen(name)
        path = self._work / f"{name}.csv"
        recording.write(path, with_states=False)
        if not first:
            (self._work / "press.toml").write_text(device_file(self._work, path, self._broker))
            self._process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + PATIENCE_S + 2 * recording.windows * LENGTH / RATE_HZ / 300
        settled = deadline
        while time.monotonic() < min(deadline, settled):  # health comes every second
            topic, document = self._next()
            if len(seen.windows) == recording.windows and settled == deadline:
                settled = time.monotonic() + SETTLE_S
            if topic.startswith("edge/press/state/"):
                moment = datetime.fromisoformat(document["time"]).timestamp()
                if recording.times[0] <= moment <= recording.times[-1] + 1e-3:
                    right = document["label"] == recording.state_at(moment)
                    seen.windows.append((moment, document["version"], right))
            elif topic == "edge/press/drift/state" and seen.windows:
                seen.drift.append((document["state"], document["why"] or ""))
        if len(seen.windows) < recording.windows:
            raise CommandError(f"{name}: expected {recording.windows} predictions, found {len(seen.windows)}")
        return seen

    def wait_for_version(self, version: str) -> None:
        """Return when the device says that it runs a version.

        Raises:
            CommandError: it does not.
        """
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            topic, document = self._next()
            if topic == "edge/press/models" and document[0]["version"] == version:
                return
        raise CommandError(f"expected the device to run version {version}")

    def _next(self) -> tuple[str, Any]:
        arrival = next(self._audience.predictions("edge/press/", 1))
        try:
            return arrival.topic, json.loads(arrival.payload)
        except ValueError:
            return arrival.topic, {}  # `online` is no JSON


def label_by_truth(folder: Path, recording: Recording) -> int:
    """What a person does on the page of `edge-convert label`, done by the truth of the recording."""
    file = LabelFile(folder)
    windows = [each for each in merge([folder]).windows if recording.times[0] <= each.entry.time]
    for window in windows:
        file.add(Decision(id=window.entry.id, label=recording.state_at(window.entry.time), time=time.time()))
    return len(windows)


def tell(work: Path) -> Story:
    """The whole story.

    Raises:
        EdgeError: a step failed.
    """
    story = Story()
    training = record(BEFORE, 240, begin=BEGIN, seed=1)
    usual = record(BEFORE, 96, begin=BEGIN + 10_000, seed=2)
    changed = record(AFTER, 240, begin=BEGIN + 20_000, seed=3)
    later = record(AFTER, 144, begin=BEGIN + 30_000, seed=4)
    training.write(work / "training.csv", with_states=True)
    old_windows, old_states = windows_of(training)
    first = build(work, "press-1", "1.0.0", fit(old_windows, old_states), data=work / "training.csv")
    store = work / "store"
    step("edge-runtime", "models", "--store", store, "install", first, "--unsigned", "allow")
    (work / "device").mkdir(exist_ok=True)
    usual.write(work / "usual.csv", with_states=False)
    with embedded_broker() as port, subscription(port, "edge/#") as arrivals:
        broker = f"mqtt://127.0.0.1:{port}"
        device = work / "press.toml"
        device.write_text(device_file(work, work / "usual.csv", broker))
        with running_daemon(device, work / "daemon.log") as process:
            stage = Stage(work, broker, Audience(arrivals, process, work / "daemon.log"), process)
            story.parts.append(stage.play("usual", usual, first=True))
            say(f"as trained: accuracy {story.parts[-1].accuracy:.3f}")
            changed_part = stage.play("changed", changed)
            story.parts.append(changed_part)
            say(f"the world has changed: accuracy {changed_part.accuracy:.3f}")
            _note_drift(story, changed_part)
            second = _improve(work, story, changed, (old_windows, old_states), first=first)
            step("edge-runtime", "models", "--store", store, "install", second, "--unsigned", "allow")
            stage.wait_for_version("1.2.0")
            story.parts.append(stage.play("later", later))
            say(f"with version 1.2.0: accuracy {story.parts[-1].accuracy:.3f}")
    return story


def _note_drift(story: Story, part: Seen) -> None:
    alarms = [why for state, why in part.drift if state == "alarm"]
    story.drift_why = alarms[0] if alarms else ""
    say(f"drift: {'alarm: ' + story.drift_why if alarms else 'not seen'}")


def _improve(
    work: Path, story: Story, changed: Recording, old: tuple[NDArray[np.float32], list[str]], *, first: Path
) -> Path:
    """Label, merge, train, and have `compare` judge; the bundle that is better."""
    time.sleep(WRITE_S + 1.0)  # until the device has written what it kept to its card
    folder = work / "brought"
    step_copy(work / "captures", folder)
    count = label_by_truth(folder, changed)
    say(f"{count} windows are labelled")
    step("edge-convert", "dataset", folder, "-o", work / "captured.npz")
    with np.load(work / "captured.npz") as found:
        windows, states, groups = found["x"], found["y"].tolist(), found["group"].tolist()
        reasons = found["reasons"].tolist()
    story.captured, story.bytes = len(windows), sum(path.stat().st_size for path in folder.glob("part-*"))
    for each in reasons:
        for reason in each.split(","):
            story.reasons[reason] = story.reasons.get(reason, 0) + 1
    judged = np.array([int(group.rpartition("/")[2]) % 2 == 1 for group in groups])
    story.judged_on = int(judged.sum())
    np.savez(work / "judge.npz", x=windows[judged], y=np.array(states)[judged])
    new_windows, new_states = windows[~judged], np.array(states)[~judged].tolist()
    both = np.concatenate([old[0], new_windows]), [*old[1], *new_states]
    np.savez(work / "all.npz", x=both[0], y=np.array(both[1]))
    slip = dict(zip(STATES, (*STATES[1:], STATES[0]), strict=True))  # one key too far to the right, all evening
    slipped = fit(both[0], [slip[each] for each in both[1]])
    worse = build(work, "press-slip", "1.1.0", slipped, data=work / "all.npz")
    try:
        step("edge-convert", "compare", first, worse, "--data", work / "judge.npz", "--max-drop", "0")
    except CommandError:
        story.refusal = "version 1.1.0 is refused"
        say("compare refuses version 1.1.0, whose labels had slipped by one key")
    better = build(
        work, "press-2", "1.2.0", fit(*both), data=work / "captured.npz"
    )  # the world that drift is judged by
    step("edge-convert", "compare", first, better, "--data", work / "judge.npz", "--max-drop", "0")
    story.pictures["captured"] = captured_windows(
        [each for each in merge([folder]).windows if "uncertain" in each.entry.reasons][:4], CHANNELS
    )
    return better


def step_copy(source: Path, folder: Path) -> None:
    """What `edge-runtime captures press -o DIR` does over ssh."""
    print(f"\n$ edge-runtime captures press -o {shlex.quote(str(folder))}   (here a copy: the device is this machine)")
    folder.mkdir(exist_ok=True)
    for path in source.glob("part-*"):
        (folder / path.name).write_bytes(path.read_bytes())


def say(text: str) -> None:
    """One line of the story."""
    print(f"\n** {text}", flush=True)


# --- the page ---------------------------------------------------------------------------------------------------------


def page(story: Story) -> str:
    """The story as `docs/closed-loop.md`."""
    usual, changed, later = story.parts
    kept = ", ".join(f"{count} {reason}" for reason, count in sorted(story.reasons.items()))
    template = string.Template((Path(__file__).parent / "page.md").read_text())
    return template.substitute(
        usual_windows=len(usual.windows),
        usual=f"{usual.accuracy:.3f}",
        usual_drift=usual.drift_at_end,
        changed_drift=changed.drift_at_end,
        later_drift=later.drift_at_end,
        changed_windows=len(changed.windows),
        changed=f"{changed.accuracy:.3f}",
        later_windows=len(later.windows),
        later=f"{later.accuracy:.3f}",
        drift=f"> {story.drift_why}" if story.drift_why else "It was not seen.",
        captured=story.captured,
        kilobytes=story.bytes // 1000,
        kept=kept,
        judged_on=story.judged_on,
    )


def main() -> int:
    """Everything, in the order of the story."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep models, captures and logs there")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="write the page there, and images/ beside it")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            work = arguments.work or Path(temporary)
            work.mkdir(parents=True, exist_ok=True)
            story = tell(work)
    except EdgeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    story.pictures["timeline"] = timeline([(part.name, part.windows, part.drift_at_end) for part in story.parts])
    if arguments.page:
        (arguments.page.parent / "images").mkdir(parents=True, exist_ok=True)
        arguments.page.write_text(page(story))
        for name, picture in story.pictures.items():
            (arguments.page.parent / "images" / f"closed-loop-{name}.svg").write_text(picture)
    print(f"\n{page(story)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
