"""Write predictions to InfluxDB, as Telegraf would: `python influxdb.py HOST PORT http://influx:8086/write?db=edge`.

Each prediction is a point of the measurement `prediction` with the tags `device`, `model`, `key` and `version`. A
repeat is the same point again, which InfluxDB stores once. A message is acknowledged to the broker when InfluxDB has
it, so that nothing is lost while either is away. Needs paho-mqtt; the line protocol is made here.
"""

import json
import sys
import time
import urllib.request
from datetime import datetime
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

TOPIC = "edge/+/+/+"
TAGS = ("device", "model", "key", "version")


def escaped(text: str) -> str:
    """A name or the value of a tag."""
    text = text.replace("\\", "\\\\").replace("\n", " ")
    for each in (",", "=", " "):
        text = text.replace(each, f"\\{each}")
    return text


def field(value: Any) -> str:
    """The value of a field: a number is a float, so that it never changes its type."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(float(value))
    text = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
    return f'"{text}"'


def line_of(prediction: dict[str, Any]) -> str:
    """One line of the line protocol, with its time in nanoseconds.

    Readings that arrived together may have the same microsecond, and InfluxDB keeps one point of a time: the number of
    the prediction tells them apart.
    """
    tags = [f"{name}={escaped(str(prediction[name]))}" for name in TAGS if prediction.get(name)]
    fields: dict[str, Any] = {
        name: prediction[name] for name in ("id", "label", "score", "anomaly", "alarm") if name in prediction
    }
    for table in ("scores", "values"):
        fields |= {f"{table}.{name}": value for name, value in prediction.get(table, {}).items()}
    written = [f"{escaped(name)}={field(value)}" for name, value in fields.items()]
    when = datetime.fromisoformat(prediction["time"])
    micros = int(when.replace(microsecond=0).timestamp()) * 1_000_000 + when.microsecond
    return f"prediction,{','.join(tags)} {','.join(written)} {micros * 1000 + prediction['seq'] % 1000}"


def main(host: str, port: str, url: str) -> None:
    """Take messages until the process is ended."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="edge-influxdb", clean_session=False, manual_ack=True)

    def on_message(_client: mqtt.Client, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        prediction = json.loads(message.payload)
        if isinstance(prediction, dict) and "id" in prediction:
            request = urllib.request.Request(  # noqa: S310 - the address is the user's own
                f"{url}&precision=ns", line_of(prediction).encode(), method="POST"
            )
            while True:
                try:
                    urllib.request.urlopen(request, timeout=10).close()  # noqa: S310
                    break
                except OSError as error:
                    print(f"InfluxDB: {error}; tried again in 2 s", file=sys.stderr, flush=True)
                    time.sleep(2)
        client.ack(message.mid, message.qos)

    def on_connect(_client: mqtt.Client, *_: Any) -> None:
        client.subscribe(TOPIC, qos=1)

    client.on_connect = on_connect
    client.on_message = on_message
    client.connect(host, int(port))
    client.loop_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
