"""Every mistake in a file and its bundles comes to light before anything is opened, in one line each."""

from collections.abc import Callable
from pathlib import Path

import pytest

from edge_runtime.config.load import load_config
from edge_runtime.daemon.plan import Plan, describe_plan, make_plan, plan_warnings
from edge_runtime.errors import ConfigError
from tests.support import builders

DEVICE = """
[device]
id = "d"

[[source]]
name = "s"
type = "serial"
port = "/dev/nothing"
fields = ["temperature", "humidity"]
{source}

[[model]]
name = "m"
bundle = "{bundle}"
source = "s"
{model}

[upstream]
url = "mqtt://localhost"
"""


def _plan(folder: Path, bundle: str, *, model: str = "", source: str = "") -> Plan:
    path = folder / "device.toml"
    path.write_text(DEVICE.format(bundle=bundle, model=model, source=source))
    return make_plan(load_config(path))


def _mistakes(folder: Path, bundle: str, *, model: str = "", source: str = "") -> str:
    with pytest.raises(ConfigError) as error:
        _plan(folder, bundle, model=model, source=source)
    return str(error.value)


def _classification(folder: Path) -> None:
    builders.classification().save(folder / "m.onnx")


def _regression(folder: Path) -> None:
    builders.regression(channels=("temperature", "humidity")).save(folder / "m.onnx")


def _anomaly(folder: Path) -> None:
    builders.anomaly(channels=("temperature", "humidity")).save(folder / "m.onnx")


def _multilabel(folder: Path) -> None:
    builders.multilabel(channels=("temperature", "humidity")).save(folder / "m.onnx")


def _coloured(folder: Path, name: str = "m.onnx", texts: tuple[str, ...] = ("red", "green")) -> None:
    draft = builders.classification(length=2)
    draft.manifest["input"]["channels"][0] = {"name": "temperature", "categories": list(texts)}
    draft.manifest["input"]["window"]["rate_hz"] = 10.0
    draft.save(folder / name)


Save = Callable[[Path], object]


@pytest.mark.parametrize(
    ("save", "model", "message"),
    [
        (_classification, 'alarm_labels = ["hot"]', "alarm_labels: expected some of low, high, found hot"),
        (_anomaly, 'alarm_labels = ["hot"]', "alarm_labels: the bundle is a model of the kind anomaly, which has no"),
        (
            _classification,
            'abstain = "unsure"',
            "abstain: the bundle has no sets to abstain by: build it",
        ),
        (_classification, 'abstain = "high"', 'abstain: expected a label that the bundle does not have, found "high"'),
        (_classification, 'publish = "alarm"', 'publish: "alarm" needs alarm_labels, which say what an alarm is'),
        (_regression, 'publish = "alarm"', 'publish: "alarm" needs a threshold, above which a value is an alarm'),
        (_multilabel, 'alarm_labels = ["cold"]', "alarm_labels: expected some of hot, wet, loud, found cold"),
        (_multilabel, 'publish = "alarm"', 'publish: "alarm" needs alarm_labels, which say what an alarm is'),
        (
            _coloured,
            'on_rate = "resample"',
            'on_rate: "resample" mixes neighbouring readings, and temperature holds categories, which cannot',
        ),
    ],
)
def test_a_table_that_its_bundle_cannot_serve_is_refused(save: Save, model: str, message: str, tmp_path: Path) -> None:
    """The line names the file, the model and the key, and says what would do."""
    save(tmp_path)
    found = _mistakes(tmp_path, "m.onnx", model=model)
    assert f'{tmp_path}/device.toml: model "m".{message}' in found


def test_a_source_without_a_channel_of_its_model_is_refused(tmp_path: Path) -> None:
    """The missing channel is named."""
    builders.classification(channels=("temperature", "pressure")).save(tmp_path / "m.onnx")
    found = _mistakes(tmp_path, "m.onnx")
    assert 'source "s".fields' in found
    assert "pressure" in found


def test_a_bundle_that_does_not_keep_its_golden_answers_is_refused(tmp_path: Path) -> None:
    """A model that gives other answers here than where it was made is not run."""
    draft = builders.classification()
    other = builders.classification(seed=77)
    draft.manifest["selftest"] = other.manifest["selftest"]
    draft.save(tmp_path / "m.onnx")
    assert 'model "m".bundle: ' in _mistakes(tmp_path, "m.onnx")


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """A bundle that is none and a table that cannot be served: two lines, one run."""
    _classification(tmp_path)
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    second = '\n[[model]]\nname = "n"\nbundle = "broken.onnx"\nsource = "s"\n'
    found = _mistakes(tmp_path, "m.onnx", model=f'publish = "alarm"\n{second}')
    assert 'model "m".publish' in found
    assert 'model "n".bundle' in found


def test_models_of_frames_and_of_channels_do_not_share_a_source(tmp_path: Path) -> None:
    """One source delivers one kind of reading."""
    _classification(tmp_path)
    builders.frame().save(tmp_path / "frame.onnx")
    second = '\n[[model]]\nname = "n"\nbundle = "frame.onnx"\nsource = "s"\n'
    assert "expected models of one kind of input" in _mistakes(tmp_path, "m.onnx", model=second)


def test_a_model_of_frames_takes_no_stride(tmp_path: Path) -> None:
    """Each frame is a window by itself."""
    builders.frame().save(tmp_path / "m.onnx")
    assert "stride: the bundle takes each frame by itself: leave it out" in _mistakes(
        tmp_path, "m.onnx", model="stride = 2"
    )


def test_a_plan_says_what_will_run(tmp_path: Path) -> None:
    """A line for each source and each model."""
    builders.classification(length=4).save(tmp_path / "m.onnx")
    assert describe_plan(_plan(tmp_path, "m.onnx", model="stride = 2")) == [
        "source s: serial /dev/nothing, 115200 baud, csv",
        "  model m: activity 1.0.0, classification, window 4x2, every 2, publishes always",
    ]


def test_columns_are_those_of_all_models_once(tmp_path: Path) -> None:
    """Two models that share a channel get it from one column."""
    _classification(tmp_path)
    builders.regression(channels=("humidity", "temperature")).save(tmp_path / "r.onnx")
    second = '\n[[model]]\nname = "n"\nbundle = "r.onnx"\nsource = "s"\n'
    (source,) = _plan(tmp_path, "m.onnx", model=second).sources
    assert source.channels == ("temperature", "humidity")
    assert len(source.models) == 2


def test_a_source_that_no_model_uses_is_refused(tmp_path: Path) -> None:
    """Its readings would be acknowledged to their broker, and lost."""
    _classification(tmp_path)
    second = '\n[[source]]\nname = "spare"\ntype = "mqtt"\ntopics = ["a"]\n'
    found = _mistakes(tmp_path, "m.onnx", model=second)
    assert found == (
        f'{tmp_path}/device.toml: source "spare": expected a model that uses it, found none: its readings would be '
        "taken and lost: add a model, or take the source out"
    )


@pytest.mark.parametrize("key", ["time", "key"])
def test_a_field_is_a_channel_or_something_else(key: str, tmp_path: Path) -> None:
    """A channel that is read as the time, or as the key, would be both."""
    _classification(tmp_path)
    found = _mistakes(tmp_path, "m.onnx", source=f'{key} = "humidity"')
    assert f"source \"s\".{key}: expected a field beside the channels, found 'humidity'" in found


def test_a_window_of_one_has_no_gaps(tmp_path: Path) -> None:
    """A gap empties a window; where each reading is one, there is nothing to empty, unless the model remembers."""
    _classification(tmp_path)
    assert 'model "m".max_gap: the bundle takes each reading by itself' in _mistakes(
        tmp_path, "m.onnx", model="max_gap = 5.0"
    )
    builders.classification(length=2).save(tmp_path / "m.onnx")
    _plan(tmp_path, "m.onnx", model="max_gap = 5.0")
    builders.stateful(channels=("temperature", "humidity")).save(tmp_path / "m.onnx")
    _plan(tmp_path, "m.onnx", model="max_gap = 5.0")


@pytest.mark.parametrize("name", ["status", "models", "ota", "shadow", "predict", "capture", "drift", "truth"])
def test_a_model_is_not_called_like_a_topic_of_the_device(name: str, tmp_path: Path) -> None:
    """Its predictions would stand among what the device publishes itself."""
    _classification(tmp_path)
    path = tmp_path / "device.toml"
    path.write_text(DEVICE.format(bundle="m.onnx", model="", source="").replace('name = "m"', f'name = "{name}"'))
    with pytest.raises(
        ConfigError, match=r"expected a (name|topic) that (is no topic of the device|the device does not)"
    ):
        make_plan(load_config(path))


@pytest.mark.parametrize("topic", ["edge/{device}/{key}", "edge/d/{key}/x", "{key}/d/status"])
def test_no_key_leads_a_prediction_to_a_topic_of_the_device(topic: str, tmp_path: Path) -> None:
    """A machine may be called anything: a key `status` or `shadow` must not publish over the device's own documents."""
    _classification(tmp_path)
    path = tmp_path / "device.toml"
    path.write_text(DEVICE.format(bundle="m.onnx", model="", source="") + f'topic = "{topic}"\n')
    with pytest.raises(ConfigError, match="where a key may be the name of such a topic"):
        load_config(path)


def _mqtt_plan(folder: Path, *, length: int, source: str = "", upstream: str = "") -> Plan:
    builders.classification(length=length).save(folder / "m.onnx")
    path = folder / "device.toml"
    serial = 'type = "serial"\nport = "/dev/nothing"\nfields = ["temperature", "humidity"]'
    text = DEVICE.replace(serial, 'type = "mqtt"\ntopics = ["s/{{key}}"]') + upstream
    path.write_text(text.format(bundle="m.onnx", model='acknowledge = "window"', source=source))
    return make_plan(load_config(path))


@pytest.mark.parametrize(
    ("length", "upstream", "setting"),
    [(21, "", "max_inflight_messages"), (101, 'protocol = "5"\n', "receive_maximum")],
)
def test_windows_that_a_broker_cannot_fill_unacknowledged_are_said_with_the_remedy(
    length: int, upstream: str, setting: str, tmp_path: Path
) -> None:
    """With the setting, how many it lets be unacknowledged, and how many are needed."""
    (warning,) = plan_warnings(_mqtt_plan(tmp_path, length=length, upstream=upstream))
    assert f"set {setting}" in warning.replace("mosquitto's ", "")
    assert f"at least {length} times the number of keys" in warning
    assert plan_warnings(_mqtt_plan(tmp_path, length=length - 1, upstream=upstream)) == []


def test_a_plan_says_how_many_readings_windows_hold(tmp_path: Path) -> None:
    """Each key holds so many, and the broker's limit is for all of them together."""
    line = describe_plan(_mqtt_plan(tmp_path, length=8))[-1]
    assert "leaves 8 readings of each key unacknowledged" in line
    assert "max_inflight_messages is 20" in line


def test_readings_that_cannot_come_again_cannot_wait_for_their_windows(tmp_path: Path) -> None:
    """A serial port, and topics with QoS 0."""
    _classification(tmp_path)
    assert "qos = 1" in _mistakes(tmp_path, "m.onnx", model='acknowledge = "window"')
    with pytest.raises(ConfigError, match="qos = 1"):
        _mqtt_plan(tmp_path, length=2, source="qos = 0")


def test_models_that_disagree_about_categories_do_not_share_a_source(tmp_path: Path) -> None:
    """One text cannot be two indexes; the second model is named, with what to do."""
    _coloured(tmp_path)
    _coloured(tmp_path, "n.onnx", ("green", "red"))
    second = '\n[[model]]\nname = "n"\nbundle = "n.onnx"\nsource = "s"\n'
    found = _mistakes(tmp_path, "m.onnx", model=second)
    assert (
        "models: model \"n\" has other categories for channel 'temperature' than the models before it: give it" in found
    )
    _coloured(tmp_path, "n.onnx")
    assert _plan(tmp_path, "m.onnx", model=second).sources[0].categories == {"temperature": ("red", "green")}
