"""A device that follows its desired state: a retained, signed document on `edge/{device}/desired`.

The document names one bundle by its digest. The device compares at every connection, fetches the file (by `want` and
`chunk`, from `edge-runtime depot`), installs it by the store's own checks, and retains its progress on
`edge/{device}/rollout`: pending, receiving, probation, confirmed, or failed with the reason. So a device that was
offline or was replaced converges by itself.

Guarantee: only a document that a trusted key signed for this device is followed. Its serial is written to the disk
before any action, so that a replayed or older one has no effect, also after restarts; an expired one is reported and
not begun. The same bundle is never installed twice, and one that a person has replaced by hand is not restored by the
same document. An update that has not begun is dropped once the broker has no retained document. Weak points: a device
without a clock begins an expired document; anyone who may publish on `desired` can take documents back; an unreachable
depot is retried every `RETRY_S`.
"""

import hashlib
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec

from edge_runtime.bundle.open import one_line
from edge_runtime.bundle.signature import precheck, require_different_keys, verify
from edge_runtime.errors import BundleError, CommandError, EdgeError, SignatureError
from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.mqtt.messages import Message
from edge_runtime.store.desired_document import (
    DESIRED_NAMESPACE,
    MOST_BYTES,
    TAKEN_BACK,
    Desired,
    Envelope,
    Report,
    ReportState,
    check_window,
    is_open,
    report,
)
from edge_runtime.store.install import Policy
from edge_runtime.store.layout import StoreFolder
from edge_runtime.store.ota import REST, Ota, Step
from edge_runtime.store.ota_flood import FloodGuard
from edge_runtime.store.ota_parts import Offer
from edge_runtime.store.store import ModelStore
from edge_runtime.system.background import BackgroundThread
from edge_runtime.system.counters import Counters
from edge_runtime.system.durable import replace_file
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.loop import Loop, Timer

LOOK_S = 2.0
RETRY_S = 60.0
CHECK_S = 120.0

_log = get_logger("desired")
_Document = TypeVar("_Document")


class Kept(msgspec.Struct, kw_only=True):
    """What `STORE/.desired.json` holds: the followed document, and its last report."""

    document: str
    report: Report


class DesiredFile:
    """The disk side: judges documents, keeps the followed one, and calls the store. Never call it on the loop.

    Args:
        store: the device's store.
        policy: its device, class and trusted keys.
        now: the wall clock.
    """

    def __init__(self, store: ModelStore, policy: Policy, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._policy = policy
        self._now = now
        self._path = store.root / ".desired.json"

    def kept(self) -> tuple[Desired, Report] | None:
        """The last followed document; None without one, or if the file is damaged."""
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=Kept)
            desired = msgspec.json.decode(kept.document, type=Desired)
            check_window(desired.window)
        except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
            return None
        return desired, kept.report

    def judge(self, payload: bytes) -> tuple[Desired, Report] | None:
        """The document to follow with its report so far; None for an old one, which has no effect.

        Raises:
            EdgeError: no trusted key signed it, or it is for another device.
        """
        envelope = _decoded(payload, Envelope)
        text, signers, count = envelope.document.encode(), self._policy.allowed_signers, self._policy.signatures
        if len(envelope.signatures) < count:
            raise SignatureError(f"desired state: expected {count} signatures, found {len(envelope.signatures)}")
        digests = {kind: hashlib.new(kind, text).digest() for kind in ("sha256", "sha512")}
        name, place = DESIRED_NAMESPACE, "desired state"
        verified = []
        for each in envelope.signatures[:count]:
            precheck(each.encode(), digests, signers, namespace=name, other_keys="pass", place=place)
            verified.append(verify(text, each.encode(), signers, namespace=name, place=place))
        require_different_keys(verified, count, "desired state")
        desired = _decoded(text, Desired)
        if desired.device != self._policy.device:
            raise CommandError(f"desired state: expected one for {self._policy.device}, found {desired.device[:64]!r}")
        try:
            check_window(desired.window)
        except ValueError as error:
            raise CommandError(f"desired state: window: {error}") from error
        kept = self.kept()
        if kept is not None and desired.serial <= kept[0].serial:
            return kept if desired == kept[0] else None
        before = self._runs(desired)
        found = report(desired, "pending", before=before)
        if desired.expires is not None and self._now() > desired.expires:
            day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(desired.expires))
            why = f"the document expired at {day}: start the rollout again"
            found = report(desired, "failed", why, before=before)
        self.keep(desired, found)
        return desired, found

    def _runs(self, desired: Desired) -> dict[str, str] | None:
        """Version and digest of the bundle in service; None without one."""
        for entry in self._store.entries(desired.model):
            if entry.state in {"active", "probation"}:
                return {"version": entry.version, "digest": entry.digest}
        return None

    def keep(self, desired: Desired, latest: Report) -> None:
        """Write the document and the report durably."""
        try:
            StoreFolder(self._store.root).make()
            document = msgspec.json.encode(desired).decode()
            replace_file(self._path, msgspec.json.encode(Kept(document=document, report=latest)))
        except OSError as error:
            raise CommandError(f"{self._path}: cannot be written: {error.strerror}") from error

    def standing(self, desired: Desired, *, was_active: bool = False) -> tuple[ReportState, str | None] | None:
        """The state of the bundle in the store; None if it has to be fetched. A previous bundle is made active again.

        Args:
            desired: the document.
            was_active: this document has already made it active; if it no longer is, a person has changed that.

        Raises:
            EdgeError: the store refuses.
        """
        self._require_class(desired)
        for entry in self._store.entries(desired.model):
            if entry.digest != desired.digest:
                continue
            if entry.state == "active":
                return "confirmed", None
            if entry.state == "probation":
                return "probation", entry.why or None
            if entry.state == "rejected":
                return "failed", entry.why or "it failed here before"
            if was_active:
                return "failed", f"another bundle was made active here afterwards: {entry.why or 'by hand'}"
            slot = self._store.activate(desired.model, entry.version)
            if slot.digest != desired.digest:
                raise BundleError(f"expected one bundle of version {entry.version} here, found two: remove the other")
            return ("confirmed" if slot.state == "active" else "probation"), None
        return None

    def _require_class(self, desired: Desired) -> None:
        own = self._policy.device_class
        if own is not None and desired.device_class is not None and desired.device_class != own:
            raise BundleError(f"expected a bundle for {own}, found one for {desired.device_class}")


class DesiredState:
    """Follows the desired state of one device.

    Args:
        device: its id.
        connection: the link upstream.
        loop: the event loop.
        ota: fetches bundles.
        file: the disk side.
        counters: those of transfers.
        now: the wall clock.
    """

    def __init__(
        self,
        device: str,
        connection: AnyConnection,
        loop: Loop,
        *,
        ota: Ota,
        file: DesiredFile,
        counters: Counters,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._topic, self._report_topic = f"edge/{device}/desired", f"edge/{device}/rollout"
        self._connection = connection
        self._loop = loop
        self._ota = ota
        self._file = file
        self._counters = counters
        self._now = now
        self._thread = BackgroundThread("desired", loop.call_soon_threadsafe)
        self._flood = FloodGuard()
        self._ended = threading.Event()
        self._followed: tuple[Desired, Report] | None = None
        self._last = b""
        self._next: bytes | None = None
        self._is_busy = False
        self._is_retained = False  # the broker still has the document; checked at each connection
        self._timer: Timer | None = None
        self._stopped = False
        ota.on_transfer = self._transfer_changed
        connection.subscribe([self._topic], 1, self._take)
        self._away(self._resume)

    def link_changed(self) -> None:
        """Retain the report again after a connection; an update not yet begun waits for its document."""
        self._is_retained = False
        if self._connection.connected:
            self._publish()

    def end(self) -> None:
        """Stop; the next start continues an update that has begun."""
        self._stopped = True
        self._ended.set()
        self._thread.stop()

    def leave(self) -> None:
        """As `end`, on a link that stays."""
        self._connection.unsubscribe(self._take)
        self.end()

    def _take(self, messages: list[Message]) -> None:
        for message in messages:
            if message.topic != self._topic.encode():
                continue
            message.claimed = True
            payload = message.payload
            if not payload:
                self._taken_back()
                continue
            if len(payload) > MOST_BYTES:
                self._count("desired_refused")
                continue
            if payload == self._last:  # repeated at each connection
                self._is_retained = True
                self._advance()
                continue
            self._last = self._next = payload
        self._judge_next()

    def _taken_back(self) -> None:
        """Drop an update not yet begun, after `abort` cleared the document. The serial stays, against replays."""
        self._is_retained, self._last, self._next = False, b"", None
        if self._followed is not None and self._followed[1].state == "pending" and not self._is_busy:
            self._reach("failed", TAKEN_BACK)

    def _judge_next(self) -> None:
        """Judge the newest document, once the thread is free."""
        payload = self._next
        if payload is not None and not self._is_busy:
            self._next = None
            self._away(lambda: self._judge(payload))

    # --- in the thread ----------------------------------------------------------------------------------------------

    def _resume(self) -> Step:
        kept = self._file.kept()
        return _nothing if kept is None else lambda: self._follow(*kept)

    def _judge(self, payload: bytes) -> Step:
        began = time.monotonic()
        try:
            found = self._file.judge(payload)
        except EdgeError as error:
            why = one_line(str(error))
            self._ended.wait(REST * (time.monotonic() - began))
            return lambda: self._refuse(why)
        if found is None:
            return lambda: self._count("desired_old")
        return lambda: self._follow_judged(payload, *found)

    def _look(self, desired: Desired, *, was_active: bool) -> Step:
        try:
            standing = self._file.standing(desired, was_active=was_active)
        except BundleError as error:
            why = one_line(str(error))
            return lambda: self._reach("failed", why)
        except EdgeError as error:
            why = one_line(str(error))
            return lambda: self._retry(why)
        if standing is None and desired.size == 0:  # a return to the previous bundle, which is not fetched
            return lambda: self._reach("failed", f"{desired.version} is not here any more: start a rollout of it")
        if standing is None:
            return lambda: self._fetch(desired)
        return lambda: self._reach(*standing)

    # --- on the loop ------------------------------------------------------------------------------------------------

    def _count(self, reason: str) -> None:
        self._counters.counts[reason] += 1

    def _refuse(self, why: str) -> None:
        self._count("desired_refused")
        if self._flood.may_reply(self._loop.time()):
            _log.warning("desired state refused", extra=fields(why=why))

    def _follow_judged(self, payload: bytes, desired: Desired, latest: Report) -> None:
        self._is_retained = payload == self._last
        self._follow(desired, latest)
        if not self._is_retained and latest.state == "pending":
            self._reach("failed", TAKEN_BACK)  # while it was judged

    def _follow(self, desired: Desired, latest: Report) -> None:
        if self._followed is None or self._followed[0] != desired:
            _log.info(
                "desired state",
                extra=fields(rollout=desired.rollout, model=desired.model, version=desired.version),
            )
        self._followed = desired, latest
        self._publish()
        if not latest.is_final:
            self._advance()

    def _advance(self) -> None:
        """Take the next step, if it is due."""
        if self._followed is None or self._is_busy:
            return
        desired, latest = self._followed
        if latest.is_final:
            return
        now = self._now()
        if latest.state == "pending":
            if not self._is_retained:
                return  # after a start or another connection; it may have been taken back meanwhile
            if desired.not_before is not None and now < desired.not_before:
                self._wait(f"not before {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime(desired.not_before))}")
                return
            if not is_open(desired.window, int(now % 86_400) // 60):
                self._wait(f"for the window of maintenance, {'-'.join(desired.window or ())} UTC")
                return
        was_active = latest.state == "probation"
        self._away(lambda: self._look(desired, was_active=was_active))

    def _wait(self, why: str) -> None:
        self._reach("pending", f"waiting {why}")

    def _fetch(self, desired: Desired) -> None:
        offer = Offer(
            transfer=f"depot{desired.digest[:40]}",
            size=desired.size,
            sha256=desired.digest,
            signature=desired.files.get(".sig", ""),
            signature2=desired.files.get(".sig2", ""),
            release=desired.files.get(".release", ""),
            release_signature=desired.files.get(".release.sig", ""),
            release_signature2=desired.files.get(".release.sig2", ""),
        )
        if not self._ota.fetch(offer, desired.url):
            self._retry("another transfer is under way")

    def _transfer_changed(self, offer: Offer, state: str, held: int, why: str | None, *, is_final: bool) -> None:
        """Handle a new state of the transfer."""
        if self._followed is None or self._followed[1].is_final or offer.sha256 != self._followed[0].digest:
            return
        if state == "installed":
            self._reach("probation", None)
        elif state != "failed":
            self._reach("receiving", None, received=held)
        elif is_final:
            self._reach("failed", why)
        else:
            self._retry(why or "the transfer failed")

    def _retry(self, why: str) -> None:
        self._reach("pending", f"{why}; trying again", next_s=RETRY_S)

    def _reach(self, state: ReportState, why: str | None, *, received: int = 0, next_s: float = LOOK_S) -> None:
        """Publish and keep a new state, and check again later."""
        if self._followed is None or self._stopped:
            return
        desired, before = self._followed
        latest = report(desired, state, why, received=received, before=before.before)
        self._followed = desired, latest
        if latest != before:
            self._publish()
            if latest.state != before.state:
                level = _log.error if state == "failed" else _log.info
                level("desired state", extra=fields(model=desired.model, version=desired.version, state=state, why=why))
                self._away(lambda: self._kept(desired, latest))
        if self._timer is not None:
            self._timer.cancel()
        if state != "receiving":
            self._timer = self._loop.call_later(next_s, self._advance)

    def _kept(self, desired: Desired, latest: Report) -> Step:
        self._file.keep(desired, latest)
        return _nothing

    def _publish(self) -> None:
        if self._followed is not None:
            payload = msgspec.json.encode(self._followed[1])
            self._connection.publish(self._report_topic, payload, qos=1, retain=True, outcome=None)

    def _away(self, work: Callable[[], Step]) -> None:
        self._is_busy = True
        self._thread.submit(work, self._back, self._failed, what="the desired state", most_s=CHECK_S)

    def _back(self, then: Step) -> None:
        self._is_busy = False
        then()
        self._judge_next()

    def _failed(self, error: Exception) -> None:
        self._is_busy = False
        if not isinstance(error, EdgeError):
            _log.error("the desired state cannot be followed", exc_info=error)  # a bug
        self._retry(one_line(str(error)))
        self._judge_next()


def _nothing() -> None:
    """Do nothing."""


def _decoded(payload: bytes, kind: type[_Document]) -> _Document:
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CommandError(f"desired state: {error}") from error
