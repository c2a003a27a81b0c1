"""New bundles over the MQTT connection that the device already has, for devices that ssh does not reach.

Topics below `edge/{device}/ota/`, described in full in `docs/ota.md`::

    offer                     sender -> device   JSON: size, SHA-256 and signature of a bundle
    want                      device -> sender   JSON: the next chunk, by offset and length
    chunk/TRANSFER/OFFSET     sender -> device   the bytes
    status                    device -> sender   JSON: progress, and at the end the result
    rollback                  sender -> device   JSON: a signed order to go back to the previous bundle
    ask                       sender -> device   any payload: publish health now, without waiting for the interval

Guarantee: the device sets the pace. It requests one chunk, writes it in a thread, and requests the next no sooner than
`over_mqtt_rate` allows, so that at most two chunks are in memory and readings have priority. Chunks that were not
requested are ignored and counted: lost, duplicate, late and misplaced chunks do no harm. An offer must contain the
token that the device made at this start and sends in its greeting, so that a retained or queued offer begins nothing.
An offer takes the only place for a transfer after the signature of a trusted key is verified (`Incoming.examine`);
until then it is a message in a short queue (`ota_flood.py`), which costs no disk. Orders to go back are signed, name
device, start and bundle, and are carried out once. The computing, answers and log lines that a flood can cause are
bounded; messages over the bound are counted (`ota_dropped`, `ota_unanswered`), and a sender tries again.

Weak points: anyone who may publish here can replay an offer that is valid now, and so begin that transfer without
sending its chunks; a sender with chunks takes it over after `TAKE_OVER_S`. Anyone who may publish chunks can corrupt
them, which the digest detects at the end. The broker's access list has to prevent both.

A class of more than 400 lines, on purpose: a transfer is one state machine, and each of its steps is short.
"""

import secrets
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from edge_runtime.bundle.open import one_line
from edge_runtime.errors import BundleError, EdgeError, TransientError
from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.mqtt.messages import Message
from edge_runtime.store.ota_flood import FloodGuard, Kind
from edge_runtime.store.ota_parts import Incoming, Offer
from edge_runtime.store.ota_transfer import ByteSource, Transfer, http_file, length, problem_of
from edge_runtime.store.records import ListedBundle
from edge_runtime.system.background import BackgroundThread
from edge_runtime.system.counters import Counters
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.loop import Loop, Timer

ASK_AGAIN_S = 5.0  # a chunk that has not arrived is requested again
PATIENCE_S = 120.0  # a sender silent for so long is given up; the part stays for the next one
PROGRESS_S = 2.0  # between two reports of progress
TAKE_OVER_S = 10.0  # a sender without a chunk for so long is replaced by another one of the same bundle
MOST_OFFER_BYTES = 64 * 1024
MOST_ORDER_BYTES = 4096
REST = 1.0  # times the duration of a check

_log = get_logger("ota")

Step = Callable[[], None]


class TransferListener(Protocol):
    """Gets the states of a transfer, on the loop."""

    def __call__(self, offer: Offer, state: str, held: int, why: str | None, *, is_final: bool) -> None:
        """A new state; `is_final` for a failure that a retry cannot correct."""


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    """What comes on `rollback`: an order as the text that was signed; without a signature, a question for the token."""

    transfer: str
    order: str = ""
    signature: str = ""


class Ota:
    """Receives bundles from the broker.

    Args:
        device: its id.
        connection: the link upstream; not yet started.
        loop: the event loop; runs everything except the disk work.
        incoming: the disk side.
        rate: bytes a second, at most.
        counters: its own.
        on_ask: called on a request for the device's health.
        takes_offers: False only fetches what `fetch` is asked for.
    """

    def __init__(
        self,
        device: str,
        connection: AnyConnection,
        loop: Loop,
        *,
        incoming: Incoming,
        rate: float,
        counters: Counters,
        on_ask: Callable[[], None] = lambda: None,
        takes_offers: bool = True,
    ) -> None:
        self._base = f"edge/{device}/ota"
        self._connection = connection
        self._loop = loop
        self._incoming = incoming
        self._rate = rate
        self._counters = counters
        self._on_ask = on_ask
        self._token = secrets.token_hex(8)
        self._transfer: Transfer | None = None
        self._last_status: dict[str, Any] | None = None
        self.flood = FloodGuard()
        self._timer: Timer | None = None
        self._pace: Timer | None = None
        self._thread = BackgroundThread("ota", loop.call_soon_threadsafe)
        self._stopped = False
        self._ended = threading.Event()
        self._is_up = False
        self.on_transfer: TransferListener | None = None
        filters = ("offer", "chunk/+/+", "rollback", "ask") if takes_offers else ("chunk/+/+", "ask")
        connection.subscribe([f"{self._base}/{each}" for each in filters], 1, self._take)

    def link_changed(self) -> None:
        """After a change of the link, request again the chunk that may be lost, and publish the last status again."""
        was_up, self._is_up = self._is_up, self._connection.connected
        if was_up or not self._is_up or self._stopped:
            return
        if self._last_status is not None:
            self._publish("status", self._last_status)
        self._ask()

    def leave(self) -> None:
        """End for good: unsubscribe, so that the broker keeps no bundles for this device."""
        self._connection.unsubscribe(self._take)
        self.end()

    def end(self) -> None:
        """Stop; the part stays."""
        self._stopped = True
        self._ended.set()
        self._cancel()
        self._thread.stop()

    # --- received ---------------------------------------------------------------------------------------------------

    def _take(self, messages: list[Message]) -> None:
        prefix = f"{self._base}/".encode()
        for message in messages:
            if not message.topic.startswith(prefix):
                continue
            what, _, rest = message.topic[len(prefix) :].partition(b"/")
            if what not in {b"offer", b"chunk", b"rollback", b"ask"}:
                continue
            message.claimed = True
            if self._stopped:
                continue
            if what == b"offer":
                self._offered(message.payload)
            elif what == b"rollback":
                self._ordered(message.payload)
            elif what == b"ask":
                self._on_ask()
            else:
                self._arrived(rest, message.payload)

    def _offered(self, payload: bytes) -> None:
        if len(payload) > MOST_OFFER_BYTES:
            self._counters.rejected["ota_malformed"] += 1
            return
        try:
            offer = msgspec.json.decode(payload, type=Offer)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            self._counters.rejected["ota_malformed"] += 1
            return
        if not (len(offer.transfer) <= 64 and offer.transfer.isascii() and offer.transfer.isalnum()):
            self._counters.rejected["ota_malformed"] += 1
            return
        if offer.token != self._token:  # retained, or queued while offline; or a sender's first offer
            self._greet({"transfer": offer.transfer})
            return
        problem, last = problem_of(offer), self._last_status
        if problem is not None:
            self._refuse(offer, problem)
        elif self._transfer is None and last is not None and last["transfer"] == offer.transfer:
            self._publish("status", last)  # the sender may have missed the result
        elif self._transfer is None:
            self._examine(offer, payload)
        elif not self._transfer.offer.is_same_bundle(offer):
            share = 100 * self._transfer.held // self._transfer.offer.size
            self._refuse(
                offer, f"another transfer is under way, {share} % of it are here: wait for it to end", is_busy=True
            )
        elif self._transfer.offer.transfer == offer.transfer:
            self._report("receiving")
        elif self._transfer.asked is None:
            self._refuse(offer, "this bundle is being written or installed: ask again in a moment", is_busy=True)
        elif self._loop.time() - self._transfer.heard >= TAKE_OVER_S or not self._transfer.brought:
            self._transfer.offer = offer  # the same bundle from another sender, or from one that began anew
            self._ask()
        else:
            self._refuse(offer, "another sender is bringing this very bundle: ask again in a moment", is_busy=True)

    def _examine(self, offer: Offer, payload: bytes) -> None:
        """Check the signatures in the thread; the place for a transfer stays free until then."""
        if not self._may_check("offer", payload):
            return

        def examine() -> Step:
            try:
                self._incoming.examine(offer)  # first: an invalid signature costs no access to the disk
                found = self._incoming.serving(offer)
            except EdgeError as error:
                why = one_line(str(error))
                return lambda: self._examined(offer, payload, why)
            if found is not None:
                return lambda: self._serves_already(offer, found)
            return lambda: self._examined(offer, payload, None)

        self._check(examine)

    def _may_check(self, kind: Kind, payload: bytes) -> bool:
        """Whether to queue a check, which costs milliseconds: not over the bound, nor for a payload refused before."""
        if self.flood.may_check(kind, payload):
            return True
        self._counters.counts["ota_dropped"] += 1
        return False

    def _examined(self, offer: Offer, payload: bytes, why: str | None) -> None:
        self.flood.checked("offer")
        if why is not None:
            self.flood.remember_refused(payload)
            self._refuse(offer, why)
        elif self._transfer is None:
            self._begin(offer)
        else:
            self._refuse(offer, "another transfer has begun: wait for it to end", is_busy=True)

    def _serves_already(self, offer: Offer, found: ListedBundle) -> None:
        self.flood.checked("offer")
        model = {"model": found.name, "version": found.version, "digest": found.digest}
        about = {"transfer": offer.transfer, "state": "installed", "received": offer.size, "size": offer.size}
        document = {**about, "sha256": offer.sha256, "why": "it is active already", **model}
        if self._transfer is None:
            self._last_status = document
        self._reply(document)

    def _ordered(self, payload: bytes) -> None:
        try:
            request = msgspec.json.decode(payload[:MOST_OFFER_BYTES], type=_Request)  # what is cut is no JSON any more
        except (msgspec.MsgspecError, ValueError, RecursionError):
            self._counters.rejected["ota_malformed"] += 1
            return
        about = {"transfer": request.transfer[:64]}
        if not request.signature:
            self._greet(about)
            return
        if len(request.order) > MOST_ORDER_BYTES:
            self._counters.rejected["ota_malformed"] += 1
            return
        if not self._may_check("order", payload):
            return

        def go_back() -> Step:
            try:
                slot = self._incoming.rollback(request.order, request.signature, self._token)
            except EdgeError as error:
                why = one_line(str(error))
                return lambda: self._answer_order({**about, "state": "refused", "why": why})
            model = {"model": slot.name, "version": slot.version, "digest": slot.digest}
            why = f"it is {slot.standing}"
            return lambda: self._answer_order({**about, "state": "rolled back", "why": why, **model})

        self._check(go_back)

    def _answer_order(self, document: dict[str, Any]) -> None:
        self.flood.checked("order")
        is_done = document["state"] == "rolled back"
        self._counters.counts["ota_rolled_back" if is_done else "ota_refused"] += 1
        if self._reply(document, always=is_done):
            level = _log.info if is_done else _log.warning
            level("order to go back", extra=fields(state=document["state"], why=document["why"]))

    def _arrived(self, rest: bytes, data: bytes) -> None:
        transfer = self._transfer
        name, _, offset = rest.partition(b"/")
        if transfer is None or transfer.asked is None or name != transfer.offer.transfer.encode():
            self._counters.counts["ota_unasked"] += 1
            return
        if offset != b"%d" % transfer.asked or len(data) != length(transfer):
            self._counters.counts["ota_unasked"] += 1
            return
        transfer.asked, transfer.heard, transfer.brought = None, self._loop.time(), True
        offer, at = transfer.offer, transfer.held
        began = transfer.heard

        def write() -> Step:
            self._incoming.append(offer, at, data)
            return lambda: self._written(transfer, len(data), began)

        self._away(write)

    def fetch(self, offer: Offer, url: str | None = None) -> bool:
        """Fetch a bundle that was judged elsewhere; False while another transfer is in progress.

        From `url` by HTTP, where it is given; what does not come from there is asked of a depot.
        """
        if self._transfer is not None or self._stopped:
            return False
        self._begin(offer, http_file(url, offer.size) if url else None)
        return True

    # --- steps ------------------------------------------------------------------------------------------------------

    def _begin(self, offer: Offer, file: ByteSource | None = None) -> None:
        transfer = self._transfer = Transfer(offer, file, heard=self._loop.time())
        _log.info("bundle offered", extra=fields(bytes=offer.size, sha256=offer.sha256[:12]))

        def prepare() -> Step:
            held = self._incoming.prepare(offer)
            return lambda: self._prepared(transfer, held)

        self._away(prepare)

    def _prepared(self, transfer: Transfer, held: int) -> None:
        transfer.held = held
        self._report("receiving")
        self._go_on(transfer)

    def _written(self, transfer: Transfer, count: int, began: float) -> None:
        transfer.held += count
        if self._loop.time() - transfer.reported >= PROGRESS_S:
            self._report("receiving")
        due = began + count / self._rate
        self._pace = self._loop.call_at(due, lambda: self._go_on(transfer))

    def _go_on(self, transfer: Transfer) -> None:
        if self._stopped or self._transfer is not transfer:
            return
        if transfer.held < transfer.offer.size:
            if transfer.file is not None:
                self._read(transfer, transfer.file)
                return
            transfer.asked = transfer.held
            self._ask()
            return
        self._report("installing")
        offer = transfer.offer

        def install() -> Step:
            slot = self._incoming.install(offer)
            model = {"model": slot.name, "version": slot.version, "digest": slot.digest}
            return lambda: self._finish("installed", f"it is {slot.standing}", model)

        self._away(install)

    def _read(self, transfer: Transfer, file: ByteSource) -> None:
        """Take the next chunk from the file's server."""
        offer, at, count, began = transfer.offer, transfer.held, length(transfer), self._loop.time()

        def read() -> Step:
            try:
                data = file.read(at, count)
            except TransientError as error:
                why = one_line(str(error))
                return lambda: self._server_failed(transfer, why)
            self._incoming.append(offer, at, data)
            if at + count == offer.size:
                file.close()
            return lambda: self._written(transfer, count, began)

        self._away(read)

    def _server_failed(self, transfer: Transfer, why: str) -> None:
        """Retry from where it broke, and use a depot if nothing has arrived since the last failure."""
        self._counters.counts["ota_http_failed"] += 1
        if transfer.held == transfer.broke_at:
            transfer.file = None
        _log.warning("bundle by HTTP", extra=fields(why=why, next="again" if transfer.file else "asking a depot"))
        transfer.broke_at, transfer.heard = transfer.held, self._loop.time()
        self._go_on(transfer)

    def _ask(self) -> None:
        """Request the awaited chunk, if there is one, again until it arrives."""
        transfer = self._transfer
        if transfer is None or transfer.asked is None:
            return
        if self._loop.time() - transfer.heard > PATIENCE_S:
            self._finish("failed", f"the sender has been silent for {PATIENCE_S:.0f} s: offer it again to go on", {})
            return
        offer = transfer.offer
        want = {
            "transfer": offer.transfer,
            "offset": transfer.asked,
            "bytes": length(transfer),
            "sha256": offer.sha256,
        }
        self._publish("want", want)
        self._cancel()
        self._timer = self._loop.call_later(ASK_AGAIN_S, self._ask)

    def _away(self, work: Callable[[], Step]) -> None:
        """Run `work` in the thread, and the step that it returns on the loop."""
        self._thread.submit(
            work,
            lambda then: then(),
            self._failed,
            what="a bundle that comes over MQTT",
            most_s=PATIENCE_S * 5,  # installing tries it in a child
        )

    def _check(self, work: Callable[[], Step]) -> None:
        """As `_away`; then the thread rests, so that a flood of checks gets half of one core."""

        def check() -> Step:
            began = time.monotonic()
            try:
                return work()
            finally:
                self._ended.wait(REST * (time.monotonic() - began))

        self._away(check)

    def _failed(self, error: Exception) -> None:
        if isinstance(error, EdgeError):
            self._finish("failed", one_line(str(error)), {}, is_final=isinstance(error, BundleError))
            return
        self.flood.reset()
        _log.error("a transfer is given up", exc_info=error)  # a bug, which must not end the daemon
        self._finish("failed", "a fault of the runtime, which its log describes", {})

    # --- published --------------------------------------------------------------------------------------------------

    def _greet(self, about: dict[str, Any]) -> None:
        self._counters.counts["ota_greeted"] += 1
        if self.flood.may_greet(self._loop.time()):
            self._publish("status", {**about, "state": "greeting", "token": self._token})
        else:
            self._counters.counts["ota_unanswered"] += 1

    def _refuse(self, offer: Offer, why: str, *, is_busy: bool = False) -> None:
        """Refuse an offer; a transfer in progress continues. `busy` marks a temporary reason."""
        self._counters.counts["ota_refused"] += 1
        document = {"transfer": offer.transfer, "state": "refused", "why": why}
        if self._reply(document | ({"busy": True} if is_busy else {})):
            _log.warning("bundle refused", extra=fields(why=why))

    def _reply(self, document: dict[str, Any], *, always: bool = False) -> bool:
        """Publish an answer, unless the budget is used up, so that a flood of offers causes no flood of answers."""
        if not self.flood.may_reply(self._loop.time(), always=always):
            self._counters.counts["ota_unanswered"] += 1
            return False
        self._publish("status", document)
        return True

    def _report(self, state: str) -> None:
        transfer = self._transfer
        if transfer is not None:
            transfer.reported = self._loop.time()
            self._publish_status(transfer, state, None, {})

    def _finish(self, state: str, why: str, model: dict[str, str], *, is_final: bool = False) -> None:
        transfer, self._transfer = self._transfer, None
        if transfer is None or self._stopped:
            return
        self._counters.counts[f"ota_{state}"] += 1
        (_log.info if state == "installed" else _log.error)(f"bundle {state}", extra=fields(**model, why=why))
        self._publish_status(transfer, state, why, model, is_final=is_final)

    def _publish_status(
        self, transfer: Transfer, state: str, why: str | None, model: dict[str, str], *, is_final: bool = False
    ) -> None:
        offer = transfer.offer
        about = {"transfer": offer.transfer, "state": state, "received": transfer.held, "size": offer.size}
        self._last_status = {**about, "sha256": offer.sha256, "why": why, **model}
        self._publish("status", self._last_status)
        if self.on_transfer is not None:
            self.on_transfer(offer, state, transfer.held, why, is_final=is_final)

    def _publish(self, what: str, document: dict[str, Any]) -> None:
        self._connection.publish(f"{self._base}/{what}", msgspec.json.encode(document), qos=1, outcome=None)

    def _cancel(self) -> None:
        for timer in (self._timer, self._pace):
            if timer is not None:
                timer.cancel()
