"""Every mistake in a file and its bundles comes to light before anything is opened, in one line each."""

from collections.abc import Callable
from pathlib import Path

import pytest

from edge_runtime.config.load import load_config
from edge_runtime.daemon.plan import Plan, describe_plan, make_plan
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


Save = Callable[[Path], object]


@pytest.mark.parametrize(
    ("save", "model", "message"),
    [
        (_classification, 'alarm_labels = ["hot"]', "alarm_labels: expected some of low, high, found hot"),
        (_anomaly, 'alarm_labels = ["hot"]', "alarm_labels: the bundle is a model of the kind anomaly, which has no"),
        (_classification, 'publish = "alarm"', 'publish: "alarm" needs alarm_labels, which say what an alarm is'),
        (_regression, 'publish = "alarm"', 'publish: "alarm" needs a threshold, above which a value is an alarm'),
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
