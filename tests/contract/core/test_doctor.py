"""`edge-runtime doctor`: each thing that keeps a device from working is one line with its remedy."""

import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.bringup.broker_checks import check_broker
from edge_runtime.bringup.finding import Finding, findings
from edge_runtime.bringup.machine_checks import (
    check_card,
    check_clock,
    check_disk,
    check_memory,
    check_onnxruntime,
    check_processor,
)
from edge_runtime.bringup.port_checks import check_port
from edge_runtime.cli import main
from edge_runtime.config.tables import BrokerTable
from tests.conftest import MakePort
from tests.support import builders
from tests.support.broker import CertificateAuthority, Mosquitto
from tests.support.fake_broker import FakeBroker, Mode
from tests.support.installed import ROOT
from tests.support.ports import find_free_port
from tests.support.small_disk import small_disk
from tests.support.waiting import patient, wait_until

MakeBroker = Callable[..., Mosquitto]


def only(found: Any) -> Finding:
    """The single finding of a check."""
    one: Finding
    (one,) = list(found)
    return one


# --- the machine ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("machine", "bits"), [("armv7l", 32), ("aarch64", 32), ("riscv64", 64)])
def test_a_system_without_a_wheel_is_a_failure(machine: str, bits: int) -> None:
    """A 32-bit system on a 64-bit board, above all."""
    found = only(check_processor(machine, bits))
    assert found.state == "failure"
    assert "64-bit system" in found.remedy


@pytest.mark.parametrize(("free", "state"), [(100, "failure"), (200, "warning"), (400, "ok")])
def test_memory_is_judged_by_what_a_daemon_needs(tmp_path: Path, free: int, state: str) -> None:
    """`MemAvailable`, in kB, as proc(5) has it."""
    path = tmp_path / "meminfo"
    path.write_text(f"MemTotal: {512 * 1024} kB\nMemFree: 1 kB\nMemAvailable: {free * 1024} kB\n")
    found = only(check_memory(path))
    assert (found.state, found.found) == (state, f"{free} MiB free of 512 MiB")


def test_a_full_disk_and_a_read_only_one_are_failures(tmp_path: Path) -> None:
    """A real file system of 20 MiB, filled; then the same mounted read-only."""
    with small_disk(tmp_path / "disk", "20m") as disk:
        (disk / "fill").write_bytes(bytes(18 * 2**20))
        full = only(check_disk(disk / "not" / "yet", "the outbox"))
        assert (full.state, full.check) == ("failure", "disk of the outbox")
        assert "1 MiB free" in full.found or "2 MiB free" in full.found
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert "read-only" in only(check_disk(disk, "the outbox")).found


@pytest.mark.parametrize(("life", "state"), [("0x01 0x02", "ok"), ("0x09 0x01", "warning"), (None, None)])
def test_the_wear_of_an_emmc_is_shown_and_an_sd_card_tells_none(
    tmp_path: Path, life: str | None, state: str | None
) -> None:
    """Tenths of its life, the worse of two; JESD84-B51."""
    device = tmp_path / "mmcblk0" / "device"
    device.mkdir(parents=True)
    if life is not None:
        (device / "life_time").write_text(life + "\n")
    assert [each.state for each in check_card(tmp_path)] == ([] if state is None else [state])


def test_a_clock_before_the_installation_is_a_failure_and_an_unset_one_a_warning() -> None:
    """A Pi without a network starts in the past; then TLS and signatures fail for a reason that does not show."""
    assert only(check_clock(946_684_800.0)).state == "failure"
    assert only(check_clock(is_set=False)).state == "warning"
    assert only(check_clock(is_set=True)).state == "ok"


def test_onnxruntime_is_run_in_a_process_of_its_own(tmp_path: Path) -> None:
    """A missing instruction ends that process by a signal, and not the diagnosis."""
    assert only(check_onnxruntime()).state == "ok"
    for script, words in (("kill -ILL $$", "signal 4"), ("echo 'ImportError: no module' >&2; exit 1", "no module")):
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        found = only(check_onnxruntime(str(python)))
        assert found.state == "failure"
        assert words in found.found


def test_a_check_that_cannot_be_made_keeps_no_other_from_being_made(tmp_path: Path) -> None:
    """A file of the kernel that is not there."""
    found = only(findings("memory", lambda: check_memory(tmp_path / "none")))
    assert (found.check, found.state) == ("memory", "warning")


# --- ports ----------------------------------------------------------------------------------------------------------


def test_a_port_that_is_not_there_names_those_that_are(tmp_path: Path, make_port: MakePort) -> None:
    """The remedy is a name that can be copied."""
    by_id = tmp_path / "by-id"
    by_id.mkdir()
    port = make_port("imu")
    (by_id / "usb-imu").symlink_to(port.path.resolve())
    found = only(check_port(str(tmp_path / "ttyUSB7"), by_id=by_id))
    assert (found.state, found.found) == ("failure", "not there")
    assert str(by_id / "usb-imu") in found.remedy


def test_a_port_under_a_changing_name_is_a_warning_with_the_stable_one(tmp_path: Path, make_port: MakePort) -> None:
    """/dev/ttyUSB0 is another device after the next reboot."""
    by_id = tmp_path / "by-id"
    by_id.mkdir()
    port = make_port("imu")
    os.chown(port.path.resolve(), 0, 20)  # dialout
    (by_id / "usb-imu").symlink_to(port.path.resolve())
    found = only(check_port(str(port.path.resolve()), by_id=by_id))
    assert (found.state, found.remedy) == ("warning", f"use {by_id / 'usb-imu'}")


def test_a_file_that_is_no_port_is_a_failure(tmp_path: Path) -> None:
    """A log file, by mistake."""
    (tmp_path / "log").write_text("")
    assert "no serial port" in only(check_port(str(tmp_path / "log"))).found


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user: needs root")
def test_a_missing_group_is_named_with_the_command(make_port: MakePort, tmp_path: Path) -> None:
    """As a user who is in no group: whose the port is, and how to get into it."""
    port = make_port("imu")
    device = port.path.resolve()
    os.chown(device, 0, 20)
    device.chmod(0o660)
    code = (
        "import os, sys\n"
        "from edge_runtime.bringup.port_checks import check_port\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "for each in check_port(sys.argv[1]): print(each.as_line())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(device)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert "FAILURE" in done.stdout, done.stderr
    assert "may not open it" in done.stdout
    assert "usermod -aG" in done.stdout


def test_who_holds_a_port_is_named(make_port: MakePort) -> None:
    """ModemManager is a frequent one; here it is a shell."""
    port = make_port("imu")
    with port.path.open("rb") as held, subprocess.Popen(["sleep", "60"], stdin=held) as process:
        named = f"process {process.pid} (sleep 60)"  # once the kernel has put its command line in place
        wait_until(lambda: named in only(check_port(str(port.path))).found, named)
        found = only(check_port(str(port.path)))
        process.kill()
    assert found.state == "failure"


# --- brokers --------------------------------------------------------------------------------------------------------


@contextmanager
def tls_server(certificate: Path, key: Path) -> Iterator[int]:
    """Something that shows a certificate; gives its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with contextlib.suppress(OSError), client, context.wrap_socket(client, server_side=True) as secured:
                    secured.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(patient(10))


def states(found: Any) -> list[tuple[str, str]]:
    """State and text of each finding."""
    return [(each.state, each.found) for each in found]


@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
def test_a_good_broker_is_ok_step_by_step(mosquitto: Mosquitto, protocol: Any) -> None:
    """Connection, login, topics; and the broker keeps no session."""
    broker = BrokerTable(url=mosquitto.url, client_id="edge-x", protocol=protocol)
    found = states(check_broker(broker, mosquitto.url, ["sensors/+/climate"]))
    assert found == [
        ("ok", f"MQTT {protocol}, accepted without a user"),
        ("ok", "may read sensors/+/climate"),
    ]
    assert "edge-doctor-" in mosquitto.log


def test_what_does_not_listen_and_what_is_no_name_are_told_apart() -> None:
    """The two most frequent mistakes in a URL."""
    port = find_free_port()
    table = BrokerTable(url=f"mqtt://127.0.0.1:{port}")
    refused = only(check_broker(table, table.url, []))
    assert refused.state == "failure"
    assert f"no connection to 127.0.0.1 port {port}" in refused.found
    unknown = only(check_broker(table, "mqtt://no-such-host.invalid", []))
    assert "the name no-such-host.invalid is not resolved" in unknown.found


def test_a_refused_login_and_refused_topics_are_named(make_mosquitto: MakeBroker, tmp_path: Path) -> None:
    """Wrong password; and a topic that is not on the access list, which another broker than mosquitto refuses."""
    secret = tmp_path / "password"
    secret.write_text("wrong\n")
    broker = make_mosquitto(users={"device": "right"}, acl="user device\ntopic read open/#\n")
    table = BrokerTable(url=broker.url, username="device", password_file=str(secret))
    wrong = only(check_broker(table, broker.url, []))
    assert "it refused the login as device" in wrong.found
    secret.write_text("right\n")
    assert [each.state for each in check_broker(table, broker.url, ["open/x"])] == ["ok", "ok"]
    fake = FakeBroker(Mode(on_subscribe=lambda _n, filters: [0x80] * len(filters)))
    try:
        found = list(check_broker(BrokerTable(url=fake.url), fake.url, ["closed/x"]))
    finally:
        fake.close()
    assert [(each.state, each.found) for each in found][1:] == [("failure", "it refuses subscriptions to closed/x")]


def test_each_fault_of_a_certificate_has_its_own_remedy(
    make_mosquitto: MakeBroker, authority: CertificateAuthority, tmp_path: Path
) -> None:
    """Unknown authority, another name, and a good one."""
    broker = make_mosquitto(tls=authority)
    table = BrokerTable(url=broker.url, ca_file=str(authority.certificate))
    assert [each.state for each in check_broker(table, broker.url, [])][-1] == "ok"
    unknown = only(check_broker(BrokerTable(url=broker.url), broker.url, []))
    assert (unknown.state, unknown.remedy) == ("failure", "name the authority's certificate in ca_file")
    for days, names, remedy in (
        (2, "DNS:elsewhere", "use a name that stands in the broker's certificate"),
        (-1, "DNS:localhost", "renew the broker's certificate, or set this clock"),
    ):
        with tls_server(*authority.issue_for(days, f"faulty{days}", names)) as port:
            fault = only(check_broker(table, f"mqtts://localhost:{port}", []))
            assert (fault.state, fault.remedy) == ("failure", remedy)
    plain = make_mosquitto()
    speaks_none = only(check_broker(table, plain.url.replace("mqtt://", "mqtts://"), []))
    assert "does this port speak TLS?" in speaks_none.remedy


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_gives_objects_and_1_where_something_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`check`, `state`, `found`, `remedy`, for a device whose broker is away."""
    builders.classification().save(tmp_path / "b.onnx")
    device = tmp_path / "room.toml"
    device.write_text(
        '[device]\nid = "room"\n[[source]]\nname = "s"\ntype = "mqtt"\ntopics = ["a"]\n'
        f'[[model]]\nname = "m"\nbundle = "{tmp_path / "b.onnx"}"\nsource = "s"\n'
        f'[upstream]\nurl = "mqtt://127.0.0.1:{find_free_port()}"\n[outbox]\npath = "{tmp_path / "o.db"}"\n'
    )
    assert main(["doctor", str(device), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert all(set(each) == {"check", "state", "found", "remedy"} for each in found)
    assert [each["check"] for each in found if each["state"] == "failure"] == [f"broker {found_url(device)}"]
    assert not (tmp_path / "o.db").exists(), "a look changes nothing"
    device.write_text(device.read_text().replace('type = "mqtt"', 'type = "mqt"'))
    assert main(["doctor", str(device)]) == 1
    assert "FAILURE device file" in capsys.readouterr().out


def found_url(device: Path) -> str:
    """The broker of a device file."""
    return device.read_text().split('url = "')[1].split('"')[0]


def test_every_page_that_a_message_names_is_there() -> None:
    """A remedy that sends the user to a page that does not exist is none."""
    named = {
        page
        for folder in ("edge_runtime", "converter")
        for path in (ROOT / folder).rglob("*.py")
        for page in re.findall(r"docs/[\w/-]+\.md", path.read_text())
    }
    assert "docs/fleet.md" in named
    assert sorted(page for page in named if not (ROOT / page).is_file()) == []
