"""A target: paho and nothing else. It sends every message back at QoS 1; the latency that is not ours.

Usage: echo.py PORT TOPIC_IN TOPIC_OUT
"""

import sys
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

PORT, TOPIC_IN, TOPIC_OUT = int(sys.argv[1]), sys.argv[2], sys.argv[3]


def on_connect(client: mqtt.Client, _userdata: Any, _flags: Any, _reason_code: Any, _properties: Any) -> None:
    """Subscribe whenever the connection is made."""
    client.subscribe(TOPIC_IN, qos=1)


def on_message(client: mqtt.Client, _userdata: Any, message: mqtt.MQTTMessage) -> None:
    """Send it back."""
    client.publish(TOPIC_OUT, message.payload, qos=1)


client = mqtt.Client(CallbackAPIVersion.VERSION2)
client.on_connect = on_connect
client.on_message = on_message
client.connect("127.0.0.1", PORT)
client.loop_forever()
