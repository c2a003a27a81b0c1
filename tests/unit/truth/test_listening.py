"""Whether a device asks its broker for truth."""

from pathlib import Path

import pytest

from edge_runtime.config.load import load_config
from edge_runtime.daemon.extras import hears_truth

DEVICE = """
[device]
id = "room"
[[source]]
name = "climate"
type = "mqtt"
topics = ["sensors/climate"]
[[model]]
name = "comfort"
bundle = "comfort.onnx"
source = "climate"
[upstream]
url = "mqtt://127.0.0.1"
"""


@pytest.mark.parametrize(
    ("upstream", "truth", "expected"),
    [
        ("", "", True),
        ('health_topic = "dt/{device}/health"', "", False),
        ('health_topic = ""', "", False),
        ('health_topic = "dt/{device}/health"', 'listen = "on"', True),
        ('status_topic = "dt/{device}/status"', "", True),
        ("", 'listen = "off"', False),
    ],
)
def test_truth_is_not_asked_for_where_the_devices_topics_are_elsewhere(
    tmp_path: Path, upstream: str, truth: str, expected: bool
) -> None:
    """A broker of a cloud ends the connection of a device that subscribes to a topic which is not its own."""
    (tmp_path / "comfort.onnx").touch()
    (tmp_path / "device.toml").write_text(f"{DEVICE}{upstream}\n[truth]\n{truth}\n")
    assert hears_truth(load_config(tmp_path / "device.toml")) == expected
