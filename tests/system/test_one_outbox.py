"""Two daemons that are given one outbox by mistake."""

from pathlib import Path

import pytest

from tests.conftest import MakeDaemon
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.devices import climate_device
from tests.support.waiting import wait_until

pytestmark = pytest.mark.system


def test_the_second_daemon_on_an_outbox_ends_and_says_who_has_it(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    """It ends with 78, so that systemd does not try again; the first one goes on. After a kill the outbox is free."""
    bundle = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
    texts = [
        climate_device(mosquitto, bundle, device=name).replace(
            f'path = "{name}.db"', f'path = "{tmp_path}/one/outbox.db"'
        )
        for name in ("first", "second")
    ]
    first = make_daemon(texts[0]).start()
    second = make_daemon(texts[1]).start(ready=False)
    wait_until(lambda: second.returncode is not None, lambda: f"the end: {second.log}", 30.0)
    assert second.returncode == 78
    assert "outbox.path: expected an outbox of its own, found " in second.log
    assert f"in use by process {first.pid}, device first: stop that daemon" in second.log
    assert first.returncode is None
    first.kill()
    second.start()
    assert second.stop() == 0
