"""Imports paho without the modules that a device does not use: called once, before any other import of paho.

paho imports `urllib.request`, and with it HTTP and mail, for the proxies of websockets; and `ssl`, where nothing may be
TLS. Together they are 3.5 MiB and a third of paho's import. While paho is imported stand-ins take their places; then
they are removed, so that a later import gets the real modules. `real_tls` hands paho the real `ssl`.

Weak point: it goes by what paho's releases import; a stand-in that were used would raise `AttributeError`.
"""

import importlib
import sys
from types import ModuleType


class _NeverRaisedError(Exception):
    """What paho looks out for, and without TLS never meets."""


def import_light() -> None:
    """Import paho; what is loaded already stays what it is."""
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
    """The real `ssl`, which from now on is paho's as well."""
    import ssl  # noqa: PLC0415 - only where a broker is met over TLS

    client = importlib.import_module("paho.mqtt.client")
    client.ssl = ssl  # type: ignore[attr-defined]
    return ssl
