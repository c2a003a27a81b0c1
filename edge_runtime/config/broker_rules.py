"""What a connection to a broker must keep beyond types: addresses, TLS and login, of `[upstream]` and of sources."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from edge_runtime.config.addresses import parse_endpoint, without_password
from edge_runtime.config.convert import quote
from edge_runtime.config.rules import Finding, first_line_fault, first_repeated, rule, unreadable
from edge_runtime.config.tables import BrokerTable, UpstreamTable

# The keys that a password can come from.
PASSWORDS = ("password_file", "password_credential", "password_command")


class HasBrokers(Protocol):
    """The keys of a connection, which `[upstream]` and some sources have."""

    @property
    def brokers(self) -> tuple[str, ...]:
        """The address of each broker."""

    @property
    def url(self) -> str | None:
        """The first of them, where it is given by itself."""

    @property
    def username(self) -> str | None:
        """The user to log in as."""

    @property
    def password_file(self) -> str | None:
        """The file of the password."""

    @property
    def password_credential(self) -> str | None:
        """The systemd credential of the password."""

    @property
    def password_command(self) -> tuple[str, ...]:
        """The program that makes the password."""

    @property
    def password_lifetime(self) -> float | None:
        """How long its answer is valid."""

    @property
    def alpn(self) -> str | None:
        """The protocol that TLS asks for."""

    @property
    def ca_file(self) -> str | None:
        """The certificates that are trusted."""

    @property
    def cert_file(self) -> str | None:
        """The certificate that is shown."""

    @property
    def key_file(self) -> str | None:
        """Its key."""


def broker_address(table: HasBrokers) -> Iterator[Finding]:
    """An address that cannot be one."""
    for url in table.brokers:
        yield from _bad_address("url", url)


@rule(UpstreamTable, keys=("url", "urls"))
def _broker_addresses(upstream: UpstreamTable) -> Iterator[Finding]:
    if not upstream.url and not upstream.urls:
        yield "url", "expected mqtt://HOST:PORT or mqtts://HOST:PORT, but the key is missing (and so is urls)"
    if upstream.url:
        yield from _bad_address("url", upstream.url)
    for url in upstream.urls:
        yield from _bad_address("urls", url)
    twice = first_repeated(upstream.urls)
    if twice is not None:
        yield "urls", f"expected every broker once, found {quote(without_password(twice))} twice"
    elif upstream.url in upstream.urls[1:]:
        yield (
            "urls",
            (
                f"expected {quote(without_password(upstream.url))}, which is url, in the first place or not at all: "
                "url is the broker that is preferred"
            ),
        )


def _bad_address(key: str, url: str) -> Iterator[Finding]:
    try:
        parse_endpoint(url)
    except ValueError as error:
        yield key, str(error)


@rule(UpstreamTable, keys=("url", "urls", "ca_file", "cert_file", "key_file", "alpn"))
def tls_files(table: HasBrokers) -> Iterator[Finding]:
    """Certificates without a key, without TLS, or that are none."""
    if (table.cert_file is None) != (table.key_file is None):
        missing, present = ("key_file", "cert_file") if table.key_file is None else ("cert_file", "key_file")
        yield (
            missing,
            f"expected a file beside {present}, but the key is missing: a certificate and its key go together",
        )
    try:
        secured = {url: parse_endpoint(url).tls for url in table.brokers}
    except ValueError:
        return
    clear = [url for url, tls in secured.items() if not tls]
    if any(secured.values()) and clear:
        yield (
            "urls",
            (
                f"expected mqtts:// for every broker or for none, found {quote(clear[0])} among them: what is "
                "encrypted on one link must not go in clear text over another"
            ),
        )
        return
    for key in ("ca_file", "cert_file", "key_file", "alpn"):
        if clear and getattr(table, key) is not None:
            yield key, f"expected a url with mqtts:// beside it, found {quote(clear[0])}: nothing is encrypted there"
    if any(secured.values()):
        yield from _certificates(table)


def _certificates(broker: HasBrokers) -> Iterator[Finding]:
    import ssl  # noqa: PLC0415 - a megabyte that a device without TLS need not hold

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if broker.ca_file is not None and unreadable(broker.ca_file) is None:
        try:
            context.load_verify_locations(broker.ca_file)
        except (ssl.SSLError, OSError):
            yield "ca_file", f"expected certificates in PEM form, found none in {quote(broker.ca_file)}"
    if broker.cert_file is None or broker.key_file is None:
        return
    if unreadable(broker.cert_file) is None and unreadable(broker.key_file) is None:
        try:
            # Without an answer to the question for a passphrase, OpenSSL would ask on the terminal.
            context.load_cert_chain(broker.cert_file, broker.key_file, password=lambda: b"")
        except (ssl.SSLError, OSError):
            yield (
                "cert_file",
                "expected a certificate and its key, in PEM form and without a passphrase, found no such pair: "
                + " and ".join(map(quote, (broker.cert_file, broker.key_file))),
            )


@rule(UpstreamTable, keys=("url", "username", *PASSWORDS, "password_lifetime"))
def login(broker: HasBrokers) -> Iterator[Finding]:
    """A password without a user, twice, or that cannot be read."""
    given = [key for key in PASSWORDS if getattr(broker, key)]
    if len(given) > 1:
        yield given[1], f"expected one of {' and '.join(given[:2])}, found both: take one out"
    if broker.password_lifetime is not None and not broker.password_command:
        yield "password_lifetime", "expected it only with password_command, found none: take it out"
    if given and broker.username is None and broker.url is not None:
        yield "username", f"expected a user beside {given[0]}, but the key is missing"
    if broker.password_file is not None and unreadable(broker.password_file) is None:
        yield from first_line_fault("password_file", broker.password_file, "password")
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if broker.password_credential is not None and folder is not None:
        path = Path(folder, broker.password_credential)
        if unreadable(str(path)) is not None:
            yield (
                "password_credential",
                (
                    f"expected a credential from systemd, found none named {quote(broker.password_credential)}: add "
                    f"LoadCredential={broker.password_credential}:/path to the unit"
                ),
            )


@rule(BrokerTable, keys=("reconnect_min", "reconnect_max"))
def _pauses(broker: BrokerTable) -> Iterator[Finding]:
    if broker.reconnect_max < broker.reconnect_min:
        yield (
            "reconnect_max",
            f"expected at least reconnect_min ({broker.reconnect_min}), found {broker.reconnect_max}",
        )
