"""The paho client of one connection, over a `WholeSocket`; and the list of paho's private names in use.

paho queues nothing here: it makes the CONNECT and SUBSCRIBE packets and reads packets outside the hot path.
Weak point: `PRIVATE_NAMES` are not paho's interface. `pyproject.toml` bounds paho's release, `check_paho` compares the
installed one at the start, and `tests/unit/mqtt/test_private_names.py` compares the list with the code.
"""

import contextlib
import socket
import sys
from types import ModuleType
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edge_runtime.config.addresses import parse_endpoint
from edge_runtime.config.tables import BrokerTable
from edge_runtime.errors import ConfigError, EdgeError
from edge_runtime.mqtt.light_paho import real_tls
from edge_runtime.mqtt.whole_socket import WholeSocket

CONNECT_TIMEOUT_S = 10.0
PRIVATE_NAMES = {  # paho's private names that are used here, by their owner
    "paho.mqtt.client.Client": ("_create_socket", "_ssl_context"),
    "paho.mqtt.client.MQTTMessage": ("_topic",),
    "paho.mqtt.client._WebsocketWrapper": ("_create_frame", "_sendbuffer", "_socket"),  # in `web_socket.py`
}
PAHO_RELEASES = (2, 1), (2, 3)  # tested: from the first on, below the second; the bounds in `pyproject.toml`


class PahoClient(paho.Client):
    """paho over a `WholeSocket`. `_create_socket` is the one private method that is overridden."""

    _raw: socket.socket | None = None
    web_path = ""  # the path of the HTTP request, with MQTT over WebSockets

    def abort(self) -> None:
        """Abort the wait of the connecting thread, such as a handshake that never completes."""
        if self._raw is not None:
            with contextlib.suppress(OSError):
                self._raw.shutdown(socket.SHUT_RDWR)

    def _create_socket(self) -> Any:
        # As text the name would go through Python's IDNA, whose tables are 1.5 MiB; only a non-ASCII name needs that.
        host = self.host.encode() if self.host.isascii() else self.host
        plain = self._raw = socket.create_connection((host, self.port), timeout=CONNECT_TIMEOUT_S)  # type: ignore[arg-type]
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = self._ssl_context
        if context is None:
            return self._framed(plain) if self.web_path else WholeSocket(plain)
        secured = self._raw = context.wrap_socket(plain, server_hostname=self.host, do_handshake_on_connect=False)
        try:
            secured.do_handshake()
        except BaseException:
            secured.close()  # paho would leave the closing to the garbage collector
            raise
        return self._framed(secured, real_tls()) if self.web_path else WholeSocket(secured, real_tls())

    def _framed(self, connected: Any, tls: ModuleType | None = None) -> WholeSocket:
        from edge_runtime.mqtt.web_socket import WebSocketStream  # noqa: PLC0415 - only for a URL of this kind

        try:
            connected.settimeout(CONNECT_TIMEOUT_S)
            stream = WebSocketStream(connected, self.host, self.port, tls is not None, self.web_path, None)
        except BaseException:
            connected.close()
            raise
        return WholeSocket(stream, tls, shows_bytes=False)


def make_client(
    settings: BrokerTable, client_id: str, password: str | None, *, keeps_session: bool = True
) -> PahoClient:
    """A client for one connection, without callbacks and last will.

    With `keeps_session` False a 3.1.1 broker drops the session with the connection; MQTT 5 sets that in CONNECT.

    Raises:
        OSError: a certificate or key file cannot be read.
        ValueError: its content is not valid.
    """
    is_v5 = settings.protocol == "5"
    client = PahoClient(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        protocol=paho.MQTTv5 if is_v5 else paho.MQTTv311,
        clean_session=None if is_v5 else not keeps_session,
        manual_ack=True,
        reconnect_on_failure=False,
    )
    client.connect_timeout = CONNECT_TIMEOUT_S
    if settings.username is not None:
        client.username_pw_set(settings.username, password)
    endpoint = parse_endpoint(settings.url)
    client.web_path = endpoint.path
    if endpoint.tls:
        ssl = real_tls()
        context = ssl.create_default_context(cafile=settings.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if settings.cert_file is not None:
            context.load_cert_chain(settings.cert_file, settings.key_file)
        if settings.alpn is not None:
            context.set_alpn_protocols([settings.alpn])
        client.tls_set_context(context)
    # with this set paho leaves the writing to the loop: one flush at the end of a pass instead of one send a packet
    client.on_socket_register_write = _leave_writing_to_the_loop
    return client


def topic_of(message: paho.MQTTMessage) -> bytes:
    """The topic as received; paho's `topic` decodes it, and raises if it is no UTF-8."""
    topic: bytes = message._topic  # noqa: SLF001 - see `PRIVATE_NAMES`
    return topic


def check_paho() -> None:
    """Check that the installed paho has the names in use.

    Raises:
        ConfigError: it lacks one, so that no connection could work.
    """
    missing = [
        f"{owner.rpartition('.')[2]}.{name}"
        for owner, names in PRIVATE_NAMES.items()
        for name in names
        if not _has(getattr(paho, owner.rpartition(".")[2]), name)
    ]
    if missing:
        lowest, beyond = (".".join(map(str, release)) for release in PAHO_RELEASES)
        raise ConfigError(
            f"paho-mqtt {_paho_version()}: {', '.join(missing)} not found, which this program needs: "
            f"expected a release from {lowest} on and below {beyond}: pip install 'paho-mqtt>={lowest},<{beyond}'"
        )


def _has(owner: type, name: str) -> bool:
    """Whether instances of `owner` have `name`: as a method or slot of the class, or as set by its constructor."""
    constructor = getattr(vars(owner).get("__init__"), "__code__", None)
    return hasattr(owner, name) or (constructor is not None and name in constructor.co_names)


def _paho_version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - only for the message

    try:
        return version("paho-mqtt")
    except PackageNotFoundError:
        return "of an unknown release"


def explain(error: Exception, url: str) -> str:
    """One line with the fault of the connection, and where to look."""
    if isinstance(error, EdgeError):
        return f"{url}: {error}"
    if isinstance(error, paho.WebsocketConnectionError):
        return f"{url}: the server does not let us speak MQTT over WebSockets there: look at the path of the url"
    ssl = sys.modules.get("ssl")  # if not loaded, it is no TLS error
    if ssl is not None and isinstance(error, ssl.SSLCertVerificationError):
        return f"{url}: the broker's certificate is not trusted: {error.verify_message}: check ca_file and the clock"
    if ssl is not None and isinstance(error, ssl.SSLError):
        return f"{url}: TLS failed: {error.reason or error}"
    if isinstance(error, socket.gaierror):
        return f"{url}: the name is not known: {error.strerror}"
    if isinstance(error, TimeoutError):
        return f"{url}: no answer within {CONNECT_TIMEOUT_S:.0f} s"
    if isinstance(error, OSError):
        return f"{url}: {error.strerror or error}"
    return f"{url}: {type(error).__name__}: {error}"


def _leave_writing_to_the_loop(_client: paho.Client, _userdata: Any, _socket: Any) -> None:
    """Ignore paho's request to write; the flush at the end of the pass writes."""
