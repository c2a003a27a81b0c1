"""Device files for tests, put together from small parts."""

from pathlib import Path

from tests.support.broker import Mosquitto


def climate_device(
    broker: Mosquitto, bundle: Path, *, device: str = "room", upstream: str = "", source: str = "", model: str = ""
) -> str:
    """A device that takes `sensors/{key}/climate` from its broker and predicts with one bundle.

    `upstream`, `source` and `model` are further lines of these tables.
    """
    return f"""
[device]
id = "{device}"
health_interval = 0.5
stop_timeout = 5.0

[[source]]
name = "climate"
type = "mqtt"
topics = ["sensors/{{key}}/climate"]
{source}

[[model]]
name = "comfort"
bundle = "{bundle}"
source = "climate"
{model}

[upstream]
url = "{broker.url}"
reconnect_min = 0.05
reconnect_max = 0.2
{upstream}

[outbox]
path = "{device}.db"
"""


def watch_device(broker: Mosquitto, bundle: Path, port: Path, fields: tuple[str, ...], *, model: str = "") -> str:
    """A device that reads CSV lines from a serial port and predicts with one bundle."""
    columns = ", ".join(f'"{name}"' for name in fields)
    return f"""
[device]
id = "watch"
health_interval = 0.5

[[source]]
name = "imu"
type = "serial"
port = "{port}"
fields = [{columns}]
reopen_max = 0.2

[[model]]
name = "activity"
bundle = "{bundle}"
source = "imu"
{model}

[upstream]
url = "{broker.url}"
reconnect_min = 0.05
reconnect_max = 0.2

[outbox]
path = "watch.db"
commit_interval = 0.1
"""


def stored_device(broker: Mosquitto, folder: Path, more: str = "", *, upstream: str = "", device: str = "") -> str:
    """A device whose model `comfort` comes from the model store in `folder`.

    `more` are further lines of `[store]`, `upstream` and `device` of their tables.
    """
    return f"""
[device]
id = "room"
{device}

[[source]]
name = "climate"
type = "mqtt"
topics = ["sensors/{{key}}/climate"]

[[model]]
name = "comfort"
bundle = "comfort"
source = "climate"

[upstream]
url = "{broker.url}"
{upstream}

[outbox]
path = "{folder / "outbox.db"}"

[store]
path = "{folder / "store"}"
{more}
"""
