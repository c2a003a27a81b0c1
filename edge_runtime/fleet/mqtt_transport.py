"""A bundle -> one device over the broker that both know, for devices that ssh does not reach. See `docs/ota.md`.

The device sets the pace and does all the checking; the sender only answers what it is asked. Whatever happens to the
link, the offer is repeated until the device has said what came of it, and goes on where the last try ended.
"""

import hashlib
import queue
import secrets
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edge_runtime.endpoint import parse_endpoint
from edge_runtime.errors import CommandError, TransientError

OFFER_AGAIN_S = 5.0
MOST_BYTES = 1024 * 1024  # of one chunk; a device asks for far less

Progress = Callable[[int, int], None]


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach the broker.

    Attributes:
        url: `mqtt://HOST:PORT` or `mqtts://HOST:PORT`.
        username: None for a broker without accounts.
        password: of that account.
        ca_file: the authority of the broker's certificate, where the system does not know it.
    """

    url: str
    username: str | None = None
    password: str | None = None
    ca_file: str | None = None


class MqttTransport:
    """Sends bundles to one device.

    Args:
        login: the broker.
        device: the device's id, as its configuration has it.
    """

    def __init__(self, login: Login, device: str) -> None:
        self._login = login
        self._base = f"edge/{device}/ota"
        self._device = device
        self._heard: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()

    def send(self, bundle: Path, progress: Progress, *, silence_s: float = 60.0) -> dict[str, Any]:
        """Bring a bundle and its signature there, and return the device's last word: model, version, digest, why.

        Args:
            bundle: the file; `BUNDLE.sig` stands beside it.
            progress: called with bytes there and bytes in all.
            silence_s: a device that says nothing for so long is given up.

        Raises:
            CommandError: the device refuses it, or it cannot be read.
            TransientError: the broker or the device does not answer.
        """
        content, signature = _read(bundle), _read(bundle.with_name(bundle.name + ".sig"))
        offer = {
            "transfer": secrets.token_hex(8),
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "signature": signature.decode("ascii", "replace"),
        }
        client = self._connect()
        try:
            return self._serve(client, content, offer, progress, silence_s)
        finally:
            client.disconnect()
            client.loop_stop()

    def _connect(self) -> paho.Client:
        endpoint = parse_endpoint(self._login.url)
        client = paho.Client(CallbackAPIVersion.VERSION2)
        client.reconnect_delay_set(1, 5)
        if self._login.username is not None:
            client.username_pw_set(self._login.username, self._login.password)
        if endpoint.tls:
            client.tls_set_context(ssl.create_default_context(cafile=self._login.ca_file))
        client.on_connect = self._on_connect
        client.on_message = self._on_message
        try:
            client.connect(endpoint.host, endpoint.port)
        except OSError as error:
            raise TransientError(f"{self._login.url}: the broker cannot be reached: {error}") from error
        client.loop_start()
        return client

    def _on_connect(self, client: paho.Client, _userdata: object, _flags: object, reason: Any, _more: object) -> None:
        if reason.is_failure:
            self._heard.put(("refused", {"why": f"{self._login.url} refused the login: {reason}"}))
            return
        client.subscribe([(f"{self._base}/want", 1), (f"{self._base}/status", 1)])
        self._heard.put(("connected", {}))

    def _on_message(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        try:
            document = msgspec.json.decode(message.payload, type=dict[str, Any])
        except (msgspec.MsgspecError, ValueError):
            return  # somebody else's
        self._heard.put((message.topic.rpartition("/")[2], document))

    def _serve(
        self, client: paho.Client, content: bytes, offer: dict[str, Any], progress: Progress, silence_s: float
    ) -> dict[str, Any]:
        heard = time.monotonic()
        while True:
            try:
                what, document = self._heard.get(timeout=OFFER_AGAIN_S)
            except queue.Empty:
                if time.monotonic() - heard > silence_s:
                    raise TransientError(
                        f"{self._device} does not answer on {self._base}: is it online, with over_mqtt switched on?"
                    ) from None
                self._publish(client, "offer", msgspec.json.encode(offer))
                continue
            if what == "refused":
                raise TransientError(document["why"])
            if what == "connected":
                self._publish(client, "offer", msgspec.json.encode(offer))
            elif document.get("transfer") != offer["transfer"]:
                continue  # another sender's
            else:
                heard = time.monotonic()
            if what == "want":
                self._answer(client, content, offer["transfer"], document)
            elif what == "status":
                done = self._told(client, offer, document, progress)
                if done is not None:
                    return done

    def _told(
        self, client: paho.Client, offer: dict[str, Any], document: dict[str, Any], progress: Progress
    ) -> dict[str, Any] | None:
        state = document.get("state")
        if state == "greeting":
            offer["token"] = str(document.get("token", ""))
            self._publish(client, "offer", msgspec.json.encode(offer))
        elif state in {"refused", "failed"}:
            raise CommandError(f"{self._device}: {document.get('why')}")
        elif state == "installed":
            progress(offer["size"], offer["size"])
            return document
        elif state == "receiving":
            progress(int(document.get("received", 0)), offer["size"])
        return None

    def _answer(self, client: paho.Client, content: bytes, transfer: str, want: dict[str, Any]) -> None:
        offset, count = want.get("offset"), want.get("bytes")
        if not isinstance(offset, int) or not isinstance(count, int):
            return
        if offset >= 0 and 0 < count <= MOST_BYTES and offset + count <= len(content):
            self._publish(client, f"chunk/{transfer}/{offset}", content[offset : offset + count])

    def _publish(self, client: paho.Client, what: str, payload: bytes) -> None:
        if client.is_connected():  # else it would be queued, and the device asks again anyway
            client.publish(f"{self._base}/{what}", payload, qos=1)


def flash_over_mqtt(login: Login, device: str, bundle: Path, progress: Progress) -> str:
    """Bring a bundle to one device and say in one line what it runs now.

    Raises:
        CommandError: the device refuses it; the text is its own reason.
        TransientError: the broker or the device does not answer.
    """
    done = MqttTransport(login, device).send(bundle, progress)
    return f"{done.get('model')} {done.get('version')} ({str(done.get('digest'))[:12]}): {done.get('why')}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path}: cannot be read: {error.strerror}") from error
