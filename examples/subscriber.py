"""Print every prediction once: `python subscriber.py HOST PORT 'edge/+/+/+'`. Needs paho-mqtt.

The broker keeps what comes while this program is away (a session with a name, QoS 1), and a repeat has the same `id`.
"""

import json
import sys
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

host, port, topic = sys.argv[1:]
seen: dict[str, None] = {}  # the last ids, the oldest first


def on_connect(client: mqtt.Client, *_: Any) -> None:
    """Subscribe, also after the link was lost."""
    client.subscribe(topic, qos=1)


def on_message(_client: mqtt.Client, _userdata: Any, message: mqtt.MQTTMessage) -> None:
    """Print what was not here before."""
    prediction = json.loads(message.payload)
    if not isinstance(prediction, dict) or "id" not in prediction or prediction["id"] in seen:
        return
    seen[prediction["id"]] = None
    if len(seen) > 10_000:
        del seen[next(iter(seen))]
    print(message.payload.decode(), flush=True)


client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="edge-subscriber", clean_session=False)
client.on_connect = on_connect
client.on_message = on_message
client.connect(host, int(port))
client.loop_forever()
