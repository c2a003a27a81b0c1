"""Imports paho without modules that a device does not use: called once, before any other import of paho.

paho imports `urllib.request`, and with it HTTP and mail, for the proxies of WebSockets; and `ssl`, even without TLS.
Together they are 3.5 MiB and a third of paho's import. During the import empty modules replace them, which are removed
afterwards, so that a later import gets the real modules. `real_tls` gives paho the real `ssl`.

Weak point: it depends on the imports of paho's releases; using a replacement would raise `AttributeError`.
"""

import importlib
import sys
from types import ModuleType


class _NeverRaisedError(Exception):
    """Replaces exceptions that paho catches and that never occur without TLS."""


def import_light() -> None:
    """Import paho; modules that are already loaded stay unchanged."""
    absent = [name for name in ("urllib.request", "ssl") if name not in sys.modules]
    for name in absent:
        stand_in = ModuleType(name)
        if name == "ssl":
            stand_in.SSLWantReadError = stand_in.SSLWantWriteError = _NeverRaisedError  # type: ignore[attr-defined]
        sys.modules[name] = stand_in
    try:
        importlib.import_module("paho.mqtt.client")
    finally:
        for name in absent:
            del sys.modules[name]


def real_tls() -> ModuleType:
    """The real `ssl`, which paho uses too from now on."""
    import ssl  # noqa: PLC0415 - only with TLS

    client = importlib.import_module("paho.mqtt.client")
    client.ssl = ssl  # type: ignore[attr-defined]
    return ssl
