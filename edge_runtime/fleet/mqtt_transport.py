"""A bundle -> one device over a common broker, for devices that ssh cannot reach. See `docs/ota.md`.

The device sets the pace and does all checks; the sender only answers requests. After any break of the link the offer is
repeated until the device has published its result, and the transfer continues where the last try ended.

Guarantee: it ends. A transfer without progress for `silence_s` (no more bytes, no next state) is given up, even if the
link returns or the device publishes other documents; a refusal by the broker ends it at once. An offer that waits for
another transfer or install is repeated for `busy_s`.
"""

import hashlib
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.errors import CommandError
from edge_runtime.fleet.broker_line import CONNECTED, BrokerLine, Login
from edge_runtime.fleet.errors import AwayError, BusyError, RefusedError

OFFER_AGAIN_S = 5.0
FIRST_OFFERS_S = 1.0  # until the device has answered: under a flood of others, only some offers are looked at
SILENCE_S = 60.0
INSTALL_S = 300.0  # the self-test on the device has 120 of its own
BUSY_S = 300.0
ORDER_S = 60.0  # for an order to be carried out
MOST_BYTES = 1024 * 1024  # of one chunk; a device asks for far less
# Temporary refusals, by their words: devices of the previous release do not mark them with `busy`.
_BUSY_WORDS = (
    "another transfer",
    "another install is under way",
    "another sender",
    "is being written or installed",
)

Progress = Callable[[int, int], None]


class BundleSender:
    """Sends bundles and orders to one device.

    Args:
        login: the broker.
        device: the device's id, as its configuration has it.
    """

    def __init__(self, login: Login, device: str) -> None:
        self._login = login
        self._device = device

    def send(
        self,
        bundle: Path,
        progress: Progress,
        *,
        silence_s: float = SILENCE_S,
        busy_s: float = BUSY_S,
        mode: str = "active",
    ) -> dict[str, Any]:
        """Bring a bundle and its signature there, and return the device's last status: model, version, digest, why.

        Args:
            bundle: the file; `BUNDLE.sig` stands beside it.
            progress: called with bytes there and bytes in all.
            silence_s: without progress for so long the transfer is given up.
            busy_s: how long to wait while the device is occupied by another one.
            mode: `active`, `stage` or `shadow`.

        Raises:
            CommandError: the device refuses it, or it cannot be read.
            AwayError: the broker or the device does not answer.
            BusyError: another transfer or install is under way there.
            RefusedError: the broker refuses, or two devices have this id.
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
        filters = (f"{self._device}/ota/want", f"{self._device}/ota/status")
        with BrokerLine(self._login, filters) as line:
            return _Sending(
                line, self._device, content, offer, progress=progress, silence_s=silence_s, busy_s=busy_s
            ).run()

    def roll_back(self, model: str, digest: str, sign: Callable[[bytes], str]) -> dict[str, Any]:
        """Order the device to leave a bundle, and return its last status.

        Args:
            model: the name of the model.
            digest: of the bundle that it runs now.
            sign: makes the signature of an order.

        Raises:
            CommandError: the device refuses it.
            AwayError: the broker or the device does not answer.
        """
        request: dict[str, Any] = {"transfer": secrets.token_hex(8)}
        order = {"type": "rollback", "device": self._device, "model": model, "digest": digest}
        topic = f"{self._device}/ota/rollback"
        with BrokerLine(self._login, (f"{self._device}/ota/status",)) as line:
            deadline = time.monotonic() + ORDER_S
            while (left := deadline - time.monotonic()) > 0:
                heard = line.hear(min(left, OFFER_AGAIN_S))
                document = {} if heard is None else _document(heard.payload)
                if document.get("transfer") != request["transfer"]:
                    if heard is None or heard.topic == CONNECTED:
                        line.publish(topic, request)
                elif document.get("state") == "greeting":
                    signed = {**order, "token": str(document.get("token")), "nonce": secrets.token_hex(8)}
                    request["order"] = msgspec.json.encode(signed).decode()
                    request["signature"] = sign(request["order"].encode())
                    line.publish(topic, request)
                elif document.get("state") == "rolled back":
                    return document
                else:
                    raise CommandError(str(document.get("why")))
        raise AwayError(_silent(self._device))


class _Sending:
    """One transfer."""

    def __init__(
        self,
        line: BrokerLine,
        device: str,
        content: bytes,
        offer: dict[str, Any],
        *,
        progress: Progress,
        silence_s: float,
        busy_s: float,
    ) -> None:
        self._line = line
        self._device = device
        self._content = content
        self._offer = offer
        self._progress = progress
        self._silence_s = silence_s
        self._busy_until = time.monotonic() + busy_s
        self._deadline = time.monotonic() + silence_s
        self._best = -1  # bytes that are there
        self._tokens: list[str] = []
        self._is_installing = False
        self._is_answered = False
        self._next_offer = time.monotonic() + OFFER_AGAIN_S  # the first one goes out with the connection
        self._last_refusal = ""

    def run(self) -> dict[str, Any]:
        """Serve the device until it has published its result."""
        while True:
            left = self._deadline - time.monotonic()
            if left <= 0:
                self._give_up()
            due = self._next_offer - time.monotonic()
            if due <= 0:  # by the clock, not by silence: other senders may publish on the same topic
                self._publish_offer()
                continue
            heard = self._line.hear(min(due, left))
            if heard is None:
                continue
            if heard.topic == CONNECTED:
                self._publish_offer()
                continue
            document = _document(heard.payload)
            if document.get("transfer") != self._offer["transfer"]:
                self._learn_token(document)
                continue  # another sender's
            self._is_answered = self._is_answered or document.get("state") != "greeting"
            self._next_offer = time.monotonic() + OFFER_AGAIN_S
            if heard.topic.endswith("/want"):
                self._answer(document)
            elif (done := self._follow(document)) is not None:
                return done

    def _publish_offer(self) -> None:
        self._next_offer = time.monotonic() + (
            OFFER_AGAIN_S if self._is_answered else min(FIRST_OFFERS_S, OFFER_AGAIN_S)
        )
        self._line.publish(f"{self._device}/ota/offer", self._offer)

    def _follow(self, document: dict[str, Any]) -> dict[str, Any] | None:
        state = document.get("state")
        if state == "greeting":
            self._greeted(str(document.get("token", "")))
        elif state in {"refused", "failed"}:
            self._refused(str(document.get("why")), is_busy=document.get("busy") is True)
        elif state == "installed":
            self._progress(self._offer["size"], self._offer["size"])
            return document
        elif state == "receiving":
            received = document.get("received")
            self._progressed(received if isinstance(received, int) else 0)
        elif state == "installing" and not self._is_installing:
            self._is_installing = True
            self._progress(self._offer["size"], self._offer["size"])
            self._deadline = time.monotonic() + max(self._silence_s, INSTALL_S)
        return None

    def _learn_token(self, document: dict[str, Any]) -> None:
        """A greeting to another sender holds the same token; under a flood it may be the only one that arrives."""
        if document.get("state") == "greeting" and "token" not in self._offer and document.get("token"):
            self._greeted(str(document["token"]))

    def _greeted(self, token: str) -> None:
        """Note a token of the device's start. A token that returns after another one belongs to a second device.

        Raises:
            RefusedError: two devices answer.
        """
        if token in self._tokens[:-1]:
            raise RefusedError(
                f"two devices answer as {self._device}: give each its own id in [device] (was a card cloned?)"
            )
        if not self._tokens or self._tokens[-1] != token:
            self._tokens.append(token)
        self._offer["token"] = token
        self._publish_offer()

    def _refused(self, why: str, *, is_busy: bool) -> None:
        """Wait until the reason is gone.

        Raises:
            BusyError: it was not gone in time.
            CommandError: it is permanent.
        """
        if not is_busy and not any(words in why for words in _BUSY_WORDS):
            raise CommandError(why)
        self._last_refusal = why
        if time.monotonic() >= self._busy_until:
            raise BusyError(why)
        # The next offer is sent after `OFFER_AGAIN_S` without a message.
        self._deadline = min(self._busy_until, time.monotonic() + self._silence_s)

    def _progressed(self, received: int) -> None:
        if received > self._best:
            self._best = received
            self._deadline = time.monotonic() + self._silence_s
            self._last_refusal = ""
        self._progress(received, self._offer["size"])

    def _give_up(self) -> None:
        if self._last_refusal:
            raise BusyError(self._last_refusal)
        if self._is_installing:
            raise AwayError("it has all of the bundle and installs it, but does not say what came of it")
        if self._best >= 0:
            raise AwayError(
                f"the transfer has not moved for {self._silence_s:g} s, at {self._best} of {self._offer['size']} bytes"
                ": what is there stays for the next try"
            )
        raise AwayError(_silent(self._device))

    def _answer(self, want: dict[str, Any]) -> None:
        offset, count = want.get("offset"), want.get("bytes")
        if not isinstance(offset, int) or not isinstance(count, int):
            return
        if offset >= 0 and 0 < count <= MOST_BYTES and offset + count <= len(self._content):
            self._progressed(offset)
            topic = f"{self._device}/ota/chunk/{self._offer['transfer']}/{offset}"
            self._line.publish(topic, self._content[offset : offset + count])


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
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return {}  # another program's


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path}: cannot be read: {error.strerror}") from error
