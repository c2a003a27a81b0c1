"""A bundle -> one device over the broker that both know, for devices that ssh does not reach. See `docs/ota.md`.

The device sets the pace and does all the checking; the sender only answers what it is asked. Whatever happens to the
link, the offer is repeated until the device has said what came of it, and goes on where the last try ended.
"""

import hashlib
import queue
import secrets
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edge_runtime.config.addresses import parse_endpoint
from edge_runtime.errors import CommandError, TransientError

OFFER_AGAIN_S = 5.0
ORDER_S = 60.0  # for an order to be carried out
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


class Line:
    """A connection to the broker that hears what one device says. A context manager.

    Args:
        login: the broker.
        device: the device's id, as its configuration has it.
        topics: what to listen to, below `edge/{device}/`.

    Raises:
        TransientError: the broker cannot be reached.
    """

    def __init__(self, login: Login, device: str, topics: Sequence[str]) -> None:
        self._login = login
        self.device = device
        self._base = f"edge/{device}"
        self._topics = topics
        self._heard: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self._client = self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def hear(self, patience_s: float) -> tuple[str, bytes] | None:
        """The next message, as topic below `edge/{device}/` and payload; `connected` for a connection; None for none.

        Raises:
            TransientError: the broker refuses the login.
        """
        try:
            what, payload = self._heard.get(timeout=max(0.0, patience_s))
        except queue.Empty:
            return None
        if what == "refused":
            raise TransientError(payload.decode())
        return what, payload

    def say(self, what: str, payload: bytes | dict[str, Any]) -> None:
        """Publish below `edge/{device}/`; without a connection it is left out, since whoever waits asks again."""
        if self._client.is_connected():
            data = payload if isinstance(payload, bytes) else msgspec.json.encode(payload)
            self._client.publish(f"{self._base}/{what}", data, qos=1)

    def _connect(self) -> paho.Client:
        endpoint = parse_endpoint(self._login.url)
        client = paho.Client(CallbackAPIVersion.VERSION2)
        client.reconnect_delay_set(1, 5)
        if self._login.username is not None:
            client.username_pw_set(self._login.username, self._login.password)
        if endpoint.tls:
            client.tls_set_context(ssl.create_default_context(cafile=self._login.ca_file))
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        try:
            client.connect(endpoint.host, endpoint.port)
        except OSError as error:
            raise TransientError(f"{self._login.url}: the broker cannot be reached: {error}") from error
        client.loop_start()
        return client

    def _on_connect(self, client: paho.Client, _userdata: object, _flags: object, reason: Any, _more: object) -> None:
        if reason.is_failure:
            self._heard.put(("refused", f"{self._login.url} refused the login: {reason}".encode()))
            return
        client.subscribe([(f"{self._base}/{topic}", 1) for topic in self._topics])

    def _on_subscribe(self, *_arguments: object) -> None:
        self._heard.put(("connected", b""))

    def _on_message(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        self._heard.put((message.topic.removeprefix(f"{self._base}/"), bytes(message.payload)))


class MqttTransport:
    """Sends bundles to one device.

    Args:
        login: the broker.
        device: the device's id, as its configuration has it.
    """

    def __init__(self, login: Login, device: str) -> None:
        self._login = login
        self._device = device

    def send(
        self, bundle: Path, progress: Progress, *, silence_s: float = 60.0, mode: str = "active"
    ) -> dict[str, Any]:
        """Bring a bundle and its signature there, and return the device's last word: model, version, digest, why.

        Args:
            bundle: the file; `BUNDLE.sig` stands beside it.
            progress: called with bytes there and bytes in all.
            silence_s: a device that says nothing for so long is given up.
            mode: `active`, `stage` or `shadow`.

        Raises:
            CommandError: the device refuses it, or it cannot be read.
            TransientError: the broker or the device does not answer.
        """
        content, signature = _read(bundle), _read(bundle.with_name(bundle.name + ".sig"))
        offer = {
            "transfer": secrets.token_hex(8),
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "sha512": hashlib.sha512(content).hexdigest(),
            "signature": signature.decode("ascii", "replace"),
            "mode": mode,
            **_more_signatures(bundle),
        }
        with Line(self._login, self._device, ("ota/want", "ota/status")) as line:
            return self._serve(line, content, offer, progress, silence_s)

    def roll_back(self, model: str, digest: str, sign: Callable[[bytes], str]) -> dict[str, Any]:
        """Order the device to leave a bundle, and return its last word.

        Args:
            model: the name of the model.
            digest: of the bundle that it runs now.
            sign: makes the signature of an order.

        Raises:
            CommandError: the device refuses it.
            TransientError: the broker or the device does not answer.
        """
        word: dict[str, Any] = {"transfer": secrets.token_hex(8)}
        order = {"type": "rollback", "device": self._device, "model": model, "digest": digest}
        with Line(self._login, self._device, ("ota/status",)) as line:
            deadline = time.monotonic() + ORDER_S
            while (left := deadline - time.monotonic()) > 0:
                heard = line.hear(min(left, OFFER_AGAIN_S))
                document = {} if heard is None else _document(heard[1])
                if document.get("transfer") != word["transfer"]:
                    if heard is None or heard[0] == "connected":
                        line.say("ota/rollback", word)
                elif document.get("state") == "greeting":
                    signed = {**order, "token": str(document.get("token")), "nonce": secrets.token_hex(8)}
                    word["order"] = msgspec.json.encode(signed).decode()
                    word["signature"] = sign(word["order"].encode())
                    line.say("ota/rollback", word)
                elif document.get("state") == "rolled back":
                    return document
                else:
                    raise CommandError(str(document.get("why")))
        raise TransientError(_silent(self._device))

    def _serve(
        self, line: Line, content: bytes, offer: dict[str, Any], progress: Progress, silence_s: float
    ) -> dict[str, Any]:
        last = time.monotonic()
        while True:
            heard = line.hear(OFFER_AGAIN_S)
            if heard is None:
                if time.monotonic() - last > silence_s:
                    raise TransientError(_silent(self._device))
                line.say("ota/offer", offer)
                continue
            what, payload = heard
            if what == "connected":
                line.say("ota/offer", offer)
                continue
            document = _document(payload)
            if document.get("transfer") != offer["transfer"]:
                continue  # another sender's
            last = time.monotonic()
            if what == "ota/want":
                self._answer(line, content, offer["transfer"], document)
            elif what == "ota/status":
                done = self._told(line, offer, document, progress)
                if done is not None:
                    return done

    def _told(
        self, line: Line, offer: dict[str, Any], document: dict[str, Any], progress: Progress
    ) -> dict[str, Any] | None:
        state = document.get("state")
        if state == "greeting":
            offer["token"] = str(document.get("token", ""))
            line.say("ota/offer", offer)
        elif state in {"refused", "failed"}:
            raise CommandError(str(document.get("why")))
        elif state == "installed":
            progress(offer["size"], offer["size"])
            return document
        elif state == "receiving":
            progress(int(document.get("received", 0)), offer["size"])
        return None

    def _answer(self, line: Line, content: bytes, transfer: str, want: dict[str, Any]) -> None:
        offset, count = want.get("offset"), want.get("bytes")
        if not isinstance(offset, int) or not isinstance(count, int):
            return
        if offset >= 0 and 0 < count <= MOST_BYTES and offset + count <= len(content):
            line.say(f"ota/chunk/{transfer}/{offset}", content[offset : offset + count])


def _more_signatures(bundle: Path) -> dict[str, str]:
    """The second signature and the release document of a bundle, where they exist."""
    found = {}
    for key, suffix in (
        ("signature2", ".sig2"),
        ("release", ".release"),
        ("release_signature", ".release.sig"),
        ("release_signature2", ".release.sig2"),
    ):
        path = bundle.with_name(bundle.name + suffix)
        if path.is_file():
            found[key] = _read(path).decode("utf-8", "replace")
    return found


def _silent(device: str) -> str:
    return f"it does not answer on edge/{device}/ota: is it online, with over_mqtt switched on?"


def _document(payload: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(payload, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError):
        return {}  # somebody else's


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path}: cannot be read: {error.strerror}") from error
