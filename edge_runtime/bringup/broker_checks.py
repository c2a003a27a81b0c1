"""The checks of `doctor` for a broker: name, connection, TLS, login, and permission to read the topics.

Each step needs the previous one; the first failure is the finding. Guarantee: nothing is published, the session ends
with the connection, and the client id differs from the daemon's, which keeps running. Weak point: the permission to
publish is not tested.
"""

import contextlib
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from edge_runtime.bringup.finding import Finding
from edge_runtime.config.addresses import parse_endpoint
from edge_runtime.config.tables import BrokerTable
from edge_runtime.errors import EdgeError
from edge_runtime.mqtt.paho_client import explain
from edge_runtime.mqtt.password_command import current_password

_CONNECT_S = 10.0
_ANSWER_S = 10.0
_SOON_DAYS = 30
_DAY_S = 86_400.0


def check_broker(broker: BrokerTable, url: str, filters: Sequence[str]) -> Iterator[Finding]:
    """One broker, step by step."""
    check = f"broker {url}"
    endpoint = parse_endpoint(url)
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except OSError as error:
        remedy = "look at the name, the network and /etc/resolv.conf"
        yield Finding(check, "failure", f"the name {endpoint.host} is not resolved: {error}", remedy)
        return
    try:
        socket.create_connection((endpoint.host, endpoint.port), timeout=_CONNECT_S).close()
    except OSError as error:
        addresses = ", ".join(sorted({str(each[4][0]) for each in found}))
        remedy = "is the broker running, and the port let through?"
        yield Finding(check, "failure", f"no connection to {addresses} port {endpoint.port}: {error}", remedy)
        return
    if endpoint.tls:
        findings = list(_check_tls(check, broker, endpoint.host, endpoint.port))
        yield from findings
        if any(each.state == "failure" for each in findings):
            return
    yield from _check_login(check, msgspec.structs.replace(broker, url=url, urls=()), filters)


def _check_tls(check: str, broker: BrokerTable, host: str, port: int) -> Iterator[Finding]:
    try:
        context = _context(broker)
    except OSError as error:
        yield Finding(check, "failure", f"certificate files: {error}", "look at ca_file, cert_file and key_file")
        return
    try:
        with (
            socket.create_connection((host, port), timeout=_CONNECT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            shown: Any = secured.getpeercert()
            version = secured.version()
    except ssl.SSLCertVerificationError as error:
        yield Finding(check, "failure", f"TLS: {error.verify_message}", _tls_remedy(error.verify_message))
        return
    except OSError as error:
        yield Finding(check, "failure", f"TLS: {error}", "does this port speak TLS? 8883 is the usual one")
        return
    days = (ssl.cert_time_to_seconds(shown["notAfter"]) - time.time()) / _DAY_S
    state = f"{version}, certificate good for {days:.0f} more days"
    if days < _SOON_DAYS:
        yield Finding(f"{check} TLS", "warning", state, "renew it at the broker")
    else:
        yield Finding(f"{check} TLS", "ok", state)


def _tls_remedy(message: str) -> str:
    if "expired" in message:
        return "renew the broker's certificate, or set this clock"
    if "not yet valid" in message:
        return "set this clock"
    if "mismatch" in message or "doesn't match" in message:
        return "use a name that stands in the broker's certificate"
    return "name the authority's certificate in ca_file"


class _Session:
    """One short connection: whether it is accepted, and which filters are granted."""

    def __init__(self, client: paho.Client) -> None:
        self.client = client
        self.reason: ReasonCode | None = None
        self.granted: list[ReasonCode] | None = None
        client.on_connect = self._connected
        client.on_subscribe = self._subscribed

    def _connected(self, _client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, _more: Any) -> None:
        self.reason = reason

    def _subscribed(self, _client: paho.Client, _data: Any, _mid: int, reasons: list[ReasonCode], _more: Any) -> None:
        self.granted = reasons

    def wait(self, until: Callable[[], bool]) -> bool:
        """Serve the connection until a condition holds; False after the deadline."""
        deadline = time.monotonic() + _ANSWER_S
        while not until() and time.monotonic() < deadline:
            if self.client.loop(timeout=0.1) != paho.MQTT_ERR_SUCCESS:
                break
        return until()


def _client(broker: BrokerTable) -> paho.Client:
    """A plain paho client, without the daemon's hot path."""
    is_v5 = broker.protocol == "5"
    endpoint = parse_endpoint(broker.url)
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        transport=endpoint.transport,
        client_id=f"edge-doctor-{secrets.token_hex(4)}",
        protocol=paho.MQTTv5 if is_v5 else paho.MQTTv311,
        clean_session=None if is_v5 else True,
    )
    client.connect_timeout = _CONNECT_S
    if broker.username is not None:
        client.username_pw_set(broker.username, current_password(broker))
    if endpoint.path:
        client.ws_set_options(path=endpoint.path)
    if endpoint.tls:
        client.tls_set_context(_context(broker))
    return client


def _context(broker: BrokerTable) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=broker.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if broker.cert_file is not None:
        context.load_cert_chain(broker.cert_file, broker.key_file)
    if broker.alpn is not None:
        context.set_alpn_protocols([broker.alpn])
    return context


def _check_login(check: str, broker: BrokerTable, filters: Sequence[str]) -> Iterator[Finding]:
    who = "without a user" if broker.username is None else f"as {broker.username}"
    try:
        client = _client(broker)
    except (EdgeError, OSError, ValueError) as error:
        yield Finding(check, "failure", f"the login cannot be prepared: {error}", "look at password_file")
        return
    session = _Session(client)
    endpoint = parse_endpoint(broker.url)
    try:
        if broker.protocol == "5":
            client.connect(endpoint.host, endpoint.port, broker.keepalive, clean_start=True)
        else:
            client.connect(endpoint.host, endpoint.port, broker.keepalive)
        accepted = session.wait(lambda: session.reason is not None)
        if not accepted or session.reason is None:
            yield Finding(check, "failure", "it gave no answer to CONNECT", "is it an MQTT broker?")
            return
        if session.reason.is_failure:
            found = f"it refused the login {who}: {session.reason}"
            yield Finding(check, "failure", found, "look at username, password_file and the broker's log")
            return
        yield Finding(check, "ok", f"MQTT {broker.protocol}, accepted {who}")
        yield from _check_topics(check, session, filters)
    except (OSError, ValueError) as error:
        yield Finding(check, "failure", explain(error, broker.url), "look at the broker's log")
    finally:
        with contextlib.suppress(OSError, ValueError):
            client.disconnect()
            client.loop(timeout=0.1)


def _check_topics(check: str, session: _Session, filters: Sequence[str]) -> Iterator[Finding]:
    if not filters:
        return
    session.client.subscribe([(each, 0) for each in filters])
    if not session.wait(lambda: session.granted is not None) or session.granted is None:
        yield Finding(f"{check} topics", "failure", "it gave no answer to SUBSCRIBE", "look at the broker's log")
        return
    refused = [topic for topic, reason in zip(filters, session.granted, strict=False) if reason.is_failure]
    if refused:
        remedy = "permit them in the broker's access list"
        yield Finding(f"{check} topics", "failure", f"it refuses subscriptions to {', '.join(refused)}", remedy)
    else:
        yield Finding(f"{check} topics", "ok", f"may read {', '.join(filters)}")
