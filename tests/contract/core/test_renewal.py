"""A connection whose password has an end: made anew in time, and what is under way is not lost by it."""

import sys
from pathlib import Path

from tests.support.fake_broker import Client, FakeBroker, Mode, Published
from tests.support.linked import LinkedClient

SCRIPT = "import pathlib, sys; f = pathlib.Path(sys.argv[1]); f.open('a').write('x'); print(f'p{f.stat().st_size}')"


def command(folder: Path) -> list[str]:
    """A program that writes another password each time."""
    return [sys.executable, "-c", SCRIPT, str(folder / "count")]


def test_a_connection_is_made_anew_with_a_goodbye_and_its_users_know(tmp_path: Path) -> None:
    """No link is lost: the broker gets a DISCONNECT, and whoever sends hears of the end and of the new beginning."""
    broker = FakeBroker(Mode())
    client = LinkedClient(
        broker.url, "in/#", username="u", password_command=command(tmp_path), password_lifetime=1.0
    ).up()
    ups: list[bool] = []
    client.connection.on_change.append(lambda: ups.append(client.connection.connected))
    client.until(lambda: client.counters.counts["renewals"] >= 2 and client.connection.ready, "two renewals")
    assert False in ups
    assert ups[-1]
    assert broker.disconnects[:2] == [0, 0]
    assert client.counters.errors["disconnected"] == 0
    assert broker.violations == []
    client.close()
    broker.close()


def test_what_is_in_flight_is_waited_for_and_left_to_its_sender_where_it_hangs(tmp_path: Path) -> None:
    """A message without an answer does not keep the connection beyond its time; it is not reported as delivered."""
    held: list[Published] = []

    def withhold(_client: Client, found: Published) -> bool:
        held.append(found)
        return True

    broker = FakeBroker(Mode(on_publish=withhold))
    client = LinkedClient(broker.url, username="u", password_command=command(tmp_path), password_lifetime=3.0).up()
    outcomes: list[bool] = []
    assert client.connection.publish("out", b"x", qos=1, outcome=outcomes.append)
    client.until(lambda: held, "the message")
    client.until(lambda: broker.connects >= 2 and client.connection.connected, "another connection")
    assert outcomes == []
    client.close()
    broker.close()


def test_a_password_that_cannot_be_renewed_keeps_the_link_that_is_there(tmp_path: Path) -> None:
    """It is counted and asked for again; the connection is well until its broker ends it."""
    token = tmp_path / "token"
    token.write_text("first")
    broker = FakeBroker(Mode())
    client = LinkedClient(broker.url, username="u", password_command=["cat", str(token)], password_lifetime=0.5).up()
    token.unlink()
    before = broker.connects
    client.until(lambda: client.counters.errors["password_command"], "a failure")
    assert client.connection.connected
    assert broker.connects <= before + 1
    client.close()
    broker.close()
