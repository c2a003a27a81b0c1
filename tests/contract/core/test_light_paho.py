"""paho without HTTP, mail and TLS, as the daemon loads it: in a process of its own, since here all of it is loaded."""

import subprocess
import sys

from tests.conftest import MakeBroker
from tests.support.broker import CertificateAuthority
from tests.support.waiting import patient

_PROGRAM = """
import sys
from edge_runtime.mqtt.light_paho import import_light
import_light()
heavy = [name for name in ("ssl", "urllib.request", "http.client", "email.message") if name in sys.modules]
assert not heavy, heavy

from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop
from edge_runtime.mqtt.connection import Connection
from edge_runtime.config.tables import BrokerTable

url, ca_file = sys.argv[1:]
loop, outcomes = Loop(), []
settings = BrokerTable(url=url, ca_file=ca_file or None)
connection = Connection(
    settings, name="upstream", client_id="edge-light", password=lambda: None, loop=loop, counters=Counters()
)
connection.start()
while not connection.ready:
    loop.run_once(5.0)
    assert not connection.state.endswith("in 1 s"), connection.state
connection.publish("out", bytes(100_000), qos=1, outcome=outcomes.append)
while not outcomes:
    loop.run_once(5.0)
connection.stop()
loop.close()
assert ("ssl" in sys.modules) == bool(ca_file)

import ssl
import urllib.request
import paho.mqtt.client
assert ssl.SSLContext and urllib.request.getproxies
assert not ca_file or paho.mqtt.client.ssl is ssl
"""


def _run(url: str, ca_file: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, url, ca_file], capture_output=True, text=True, timeout=patient(60), check=False
    )
    assert done.returncode == 0, done.stderr


def test_in_clear_text_nothing_of_tls_or_http_is_loaded(make_mosquitto: MakeBroker) -> None:
    """A message goes out, and whoever imports the real modules afterwards gets them."""
    _run(make_mosquitto().url, "")


def test_over_tls_the_real_module_is_loaded_when_it_is_needed(
    make_mosquitto: MakeBroker, authority: CertificateAuthority
) -> None:
    """A large message goes out over TLS, and paho has the real `ssl`."""
    _run(make_mosquitto(tls=authority).url, str(authority.certificate))
