"""Loading a device file: what the golden files cannot show."""

import contextlib
import datetime as dt
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.config.load import (
    BrokerTable,
    Config,
    differences,
    load_config,
    parse_endpoint,
    read_password,
    upstream_broker,
)
from edge_runtime.errors import EXIT_CONFIG, ConfigError, TransientError
from edge_runtime.stream.sources.mqtt import MqttSourceTable, source_broker
from tests.support.waiting import patient

DEVICE = """
[device]
id = "press-07"
[[source]]
name = "imu"
type = "serial"
port = "/dev/ttyUSB0"
fields = ["x"]
[[model]]
name = "vibration"
bundle = "vibration.onnx"
source = "imu"
[upstream]
url = "mqtt://localhost"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a bundle and a password file in it."""
    (tmp_path / "vibration.onnx").touch()
    (tmp_path / "broker.password").write_text("hunter2\n")
    return tmp_path


def write(folder: Path, text: str) -> Path:
    """A device file with this text."""
    path = folder / "device.toml"
    path.write_text(text)
    return path


def load(folder: Path, text: str) -> Config:
    """The values of a device file with this text."""
    return load_config(write(folder, text))


def mistakes(path: Path) -> tuple[str, ...]:
    """What is wrong with a device file; every mistake is one printable line."""
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.exit_code == EXIT_CONFIG
    for mistake in caught.value.mistakes:
        assert mistake.isprintable(), mistake
    return caught.value.mistakes


def test_relative_paths_start_from_the_folder_of_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may be read from anywhere; the bundles that it names are beside it."""
    (folder / "below").mkdir()
    write(folder, DEVICE + '[outbox]\npath = "below/../outbox.db"\n')
    monkeypatch.chdir(folder / "below")
    config = load_config(Path("../device.toml"))
    assert config.model[0].bundle == str(folder / "vibration.onnx")
    assert config.outbox.path == str(folder / "outbox.db")


def test_a_bundle_may_be_a_name_in_the_model_store(folder: Path) -> None:
    """What is no path is a name of the store, and not looked for beside the file."""
    assert load(folder, DEVICE.replace("vibration.onnx", "vibration")).model[0].bundle == "vibration"


def test_a_port_that_is_absent_is_no_mistake(folder: Path) -> None:
    """A plug may be out when the daemon starts."""
    assert load(folder, DEVICE.replace("ttyUSB0", "ttyNONE")).source


def test_the_mark_of_windows_editors_and_their_line_ends_do_no_harm(folder: Path) -> None:
    """A file written on Windows, with a byte order mark and CRLF, reads the same."""
    path = folder / "device.toml"
    path.write_bytes(b"\xef\xbb\xbf" + DEVICE.replace("\n", "\r\n").encode())
    assert load_config(path).device.id == "press-07"


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    """A wrong path on the command line is reported in one line."""
    path = tmp_path / "none.toml"
    assert mistakes(path) == (f"{path}: expected a device file (TOML), found none: mend the path",)


def test_a_folder_or_pipe_in_place_of_the_file_is_one_line(tmp_path: Path) -> None:
    """A folder, or a pipe that would wait for ever, is refused at once."""
    assert mistakes(tmp_path) == (f"{tmp_path}: expected a device file (TOML), found a folder",)
    os.mkfifo(tmp_path / "pipe")
    assert mistakes(tmp_path / "pipe") == (f"{tmp_path}/pipe: expected a device file (TOML), found a device or pipe",)
    assert len(mistakes(Path("/dev/zero"))) == 1


def test_a_path_that_no_system_knows_is_one_line(folder: Path) -> None:
    """Names that are too long or hold a zero byte are refused like any wrong path."""
    assert "File name too long" in mistakes(folder / ("a" * 300))[0]
    (only,) = mistakes(write(folder, DEVICE.replace("vibration.onnx", "a" * 300 + ".onnx")))
    assert "File name too long" in only
    (only,) = mistakes(write(folder, DEVICE.replace("vibration.onnx", "a\\u0000.onnx")))
    assert "expected a bundle file or the name of a model" in only


def test_a_file_that_may_not_be_read_names_the_user() -> None:
    """A password file of another user is named with the user that cannot read it."""
    with another_user() as user, tempfile.TemporaryDirectory() as name:
        shared = Path(name)
        (shared / "vibration.onnx").touch()
        (shared / "broker.password").touch(mode=0)
        (only,) = mistakes(write(shared, DEVICE + 'username = "u"\npassword_file = "broker.password"\n'))
        assert f"which user {user} may not read: change its owner or mode" in only
        (shared / "device.toml").chmod(0)
        (only,) = mistakes(shared / "device.toml")
        assert only.endswith("expected a device file (TOML) that can be read, found: Permission denied")


@contextlib.contextmanager
def another_user() -> Iterator[int]:
    """We are no longer root, who may read everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield os.geteuid()
    finally:
        os.seteuid(before)


def test_text_that_is_not_utf8_names_its_line(tmp_path: Path) -> None:
    """A file in another encoding is refused with the line of the first wrong byte."""
    path = tmp_path / "device.toml"
    path.write_bytes(b'[device]\nid = "press"\n# M\xfcller\n')
    assert mistakes(path) == (f"{path}: line 3: expected text in UTF-8, found byte 0xfc: save the file in UTF-8",)


def test_a_file_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    """More than a megabyte is no device file."""
    path = tmp_path / "device.toml"
    path.write_text("# long\n" * 200_000)
    assert mistakes(path) == (f"{path}: expected a device file (TOML) of at most 1048576 bytes, found a larger one",)


def test_nesting_without_end_is_one_line(tmp_path: Path) -> None:
    """Brackets in brackets by the thousand are a mistake like any other."""
    path = tmp_path / "device.toml"
    path.write_text("a = " + "[" * 50_000)
    assert mistakes(path) == (f"{path}: not valid TOML: arrays or tables are nested too deeply",)


def test_path_is_no_key(folder: Path) -> None:
    """The attribute that holds the file's own place cannot be set in the file."""
    (only,) = mistakes(write(folder, 'path = "/etc"\n' + DEVICE))
    assert "path: unknown key" in only


def test_a_secret_never_reaches_a_message_or_a_value(folder: Path) -> None:
    """Passwords stay in their files; one that stands in the device file by mistake is not repeated in the message."""
    secret = (folder / "broker.password").read_text().strip()
    config = load(folder, DEVICE + 'username = "u"\npassword_file = "broker.password"\n')
    assert secret not in repr(config)
    wrong = DEVICE.replace("mqtt://localhost", f"mqtt://u:{secret}@localhost:99999") + f'password = "{secret}"\n'
    found = mistakes(write(folder, wrong))
    assert len(found) >= 2, "the url and the key are both wrong"
    assert [mistake for mistake in found if secret in mistake] == []


def test_a_password_is_the_first_line_of_its_file(folder: Path) -> None:
    """Line ends are no part of a password, spaces are; a file that vanishes is a reason to try again later."""
    config = load(folder, DEVICE + 'username = "u"\npassword_file = "broker.password"\n')
    broker = upstream_broker(config)
    (folder / "broker.password").write_bytes(b" pass word \r\nsecond line\n")
    assert read_password(broker) == " pass word "
    (folder / "broker.password").write_bytes(b"\xff")
    with pytest.raises(TransientError, match="expected a password in UTF-8"):
        read_password(broker)
    (folder / "broker.password").unlink()
    with pytest.raises(TransientError, match="cannot be read"):
        read_password(broker)
    assert read_password(BrokerTable(url="mqtt://h")) is None


def test_a_password_may_come_from_a_systemd_credential(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A credential is looked up where systemd puts it, and its absence is a mistake of the unit."""
    text = DEVICE + 'username = "u"\npassword_credential = "broker"\n'
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    broker = upstream_broker(load(folder, text))  # `check` by hand cannot know what systemd will hand over
    with pytest.raises(ConfigError, match=r"no \$CREDENTIALS_DIRECTORY"):
        read_password(broker)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    (only,) = mistakes(folder / "device.toml")
    assert only.endswith('found none named "broker": add LoadCredential=broker:/path to the unit')
    (folder / "broker").write_text("hunter2")
    assert read_password(upstream_broker(load(folder, text))) == "hunter2"


def mqtt_source(folder: Path, keys: str, upstream: str = "") -> tuple[Config, MqttSourceTable]:
    """A configuration with one MQTT source, and that source."""
    head, _, rest = DEVICE.partition('type = "serial"')
    tail = rest.partition('fields = ["x"]')[2]
    config = load(folder, head + f'type = "mqtt"\ntopics = ["a"]\n{keys}' + tail + upstream)
    source = config.source[0]
    assert isinstance(source, MqttSourceTable)
    return config, source


def test_a_source_without_url_shares_the_connection_of_the_upstream(folder: Path) -> None:
    """The very same broker, client id and login: one connection serves both."""
    config, source = mqtt_source(folder, "", 'username = "u"\npassword_file = "broker.password"\n')
    assert source_broker(config, source) == upstream_broker(config)
    assert source_broker(config, source).client_id == "edge-press-07"


def test_a_source_that_changes_the_connection_gets_one_of_its_own(folder: Path) -> None:
    """One key that differs makes a second connection, with a client id that does not throw the first one out."""
    config, source = mqtt_source(folder, "protocol = '5'\n", 'username = "u"\npassword_file = "broker.password"\n')
    broker = source_broker(config, source)
    assert (broker.protocol, broker.username, broker.client_id) == ("5", "u", "edge-press-07-imu")
    config, source = mqtt_source(folder, 'client_id = "mine"\n')
    assert source_broker(config, source).client_id == "mine"


def test_a_source_with_a_url_takes_nothing_over(folder: Path) -> None:
    """No login of the upstream goes to another broker, even at the same address."""
    config, source = mqtt_source(
        folder, 'url = "mqtt://localhost"\n', 'username = "u"\npassword_file = "broker.password"\n'
    )
    broker = source_broker(config, source)
    assert (broker.username, broker.password_file, broker.client_id) == (None, None, "edge-press-07-imu")


@pytest.mark.parametrize(
    ("url", "host", "port", "tls"),
    [
        ("mqtt://localhost", "localhost", 1883, False),
        ("mqtts://broker.example", "broker.example", 8883, True),
        ("mqtts://broker.example:443/", "broker.example", 443, True),
        ("tcp://10.0.0.1:1884", "10.0.0.1", 1884, False),
        ("ssl://h", "h", 8883, True),
        ("mqtt://[::1]:1883", "::1", 1883, False),
        ("MQTT://H", "h", 1883, False),
    ],
)
def test_a_broker_is_named_by_a_url(url: str, host: str, port: int, *, tls: bool) -> None:
    """Names, addresses and ports are read, and the default port depends on TLS."""
    endpoint = parse_endpoint(url)
    assert (endpoint.host, endpoint.port, endpoint.tls) == (host, port, tls)
    assert parse_endpoint(str(endpoint)) == endpoint


@pytest.mark.parametrize("url", ["", "mqtt://", "mqtt://h y", "mqtt://:1883", "mqtt://h:0", "mqtt://h:x", "mqtt://[::1",
                                 "mqtt://h?x=1", "mqtt://h#x", "//h", "mqtt://u@h", "mqtt://h\n"])  # fmt: skip
def test_a_wrong_url_is_refused_in_one_line(url: str) -> None:
    """Whatever stands in place of a URL, the answer is one line with the form that is expected."""
    with pytest.raises(ValueError, match="expected mqtt://HOST:PORT or mqtts://HOST:PORT") as caught:
        parse_endpoint(url)
    assert str(caught.value).isprintable()


def make_certificate(folder: Path, *cipher: str) -> None:
    """A certificate and its key in PEM form."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=h",
         "-keyout", "key.pem", "-out", "cert.pem", *cipher],
        cwd=folder, check=True, capture_output=True, timeout=patient(60),
    )  # fmt: skip


def test_certificates_are_tried_before_they_are_needed(folder: Path) -> None:
    """Files that hold no certificate, or a key behind a passphrase, are mistakes; a good pair is accepted."""
    tls = DEVICE.replace("mqtt:", "mqtts:") + 'ca_file = "cert.pem"\ncert_file = "cert.pem"\nkey_file = "key.pem"\n'
    make_certificate(folder, "-nodes")
    assert load(folder, tls).upstream.ca_file == str(folder / "cert.pem")
    make_certificate(folder, "-passout", "pass:open sesame")
    (only,) = mistakes(write(folder, tls))
    assert "upstream.cert_file: expected a certificate and its key, in PEM form and without a passphrase" in only
    (folder / "cert.pem").write_text("nothing")
    assert any(
        "upstream.ca_file: expected certificates in PEM form" in each for each in mistakes(folder / "device.toml")
    )


def test_a_reload_says_what_changed(folder: Path) -> None:
    """Every key that differs, and every source or model that came or went, is a sentence."""
    old = load(folder, DEVICE)
    second = '[[source]]\nname = "r"\ntype = "replay"\nfiles = ["vibration.onnx"]\nspeed = 2.0\n'
    new = load(
        folder,
        DEVICE.replace('fields = ["x"]', 'fields = ["x", "y"]\nbaudrate = 9600').replace('"vibration"\n', '"v2"\n')
        + '[outbox]\npath = "o.db"\n[http]\n'
        + second,
    )
    assert differences(old, old) == []
    assert sorted(differences(old, new)) == [
        "http was added",
        'model "v2" was added',
        'model "vibration" was removed',
        f'outbox.path changed from nothing to "{folder}/o.db"',
        'source "imu".baudrate changed from 115200 to 9600',
        'source "imu".fields changed from ["x"] to ["x", "y"]',
        'source "r" was added',
    ]


def test_a_source_that_changes_its_kind_is_one_sentence(folder: Path) -> None:
    """A serial source that becomes an MQTT source is reported as such, not key by key."""
    old = load(folder, DEVICE)
    new, _ = mqtt_source(folder, "")
    assert differences(old, new) == ['source "imu" changed its type from serial to mqtt']


KNOWN = """device source model upstream outbox id name type serial mqtt replay topics url fields smoothing n m repair
port files bundle mqtt://h {key} { a/# imu / . password_file cert_file ca_file http listen : 0.0.0.0:1"""
WORDS = st.sampled_from([*KNOWN.split(), "", "\n", "\0"])
VALUES = st.recursive(
    st.one_of(WORDS, st.text(max_size=5), st.integers(), st.floats(), st.booleans(), st.dates(), st.times()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=6)),
    max_leaves=20,
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "device": VALUES,
        "source": st.one_of(VALUES, st.lists(st.dictionaries(WORDS, VALUES, max_size=8), max_size=3)),
        "model": st.one_of(VALUES, st.lists(st.dictionaries(WORDS, VALUES, max_size=8), max_size=3)),
        "upstream": VALUES,
        "http": VALUES,
        "outbox": VALUES,
    },
)


def to_toml(value: object) -> str:
    """A value as TOML, tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{to_toml(key)} = {to_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return value.isoformat() if isinstance(value, dt.date | dt.time) else repr(value)


@settings(max_examples=150)
@given(document=DOCUMENTS)
def test_whatever_a_file_holds_it_is_loaded_or_refused(document: dict[str, object], tmp_path: Path) -> None:
    """Any TOML document gives values or readable mistakes, never a traceback."""
    path = tmp_path / "device.toml"
    path.write_text("\n".join(f"{key} = {to_toml(value)}" for key, value in document.items()))
    try:
        load_config(path)
    except ConfigError as error:
        found = list(error.mistakes)
    else:
        return
    assert found
    assert [each for each in found if not (each.isprintable() and each.startswith(f"{path}: "))] == []


@settings(max_examples=100)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_loaded_or_refused(content: bytes, tmp_path: Path) -> None:
    """A file of arbitrary bytes is refused in readable lines."""
    path = tmp_path / "device.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.mistakes
    assert all(mistake.isprintable() for mistake in caught.value.mistakes)


def _two_sources(first: str, second: str) -> str:
    mqtt = '[[source]]\nname = "{}"\ntype = "mqtt"\n{}\n'
    return DEVICE.replace("[[model]]", mqtt.format("one", first) + mqtt.format("two", second) + "[[model]]")


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ('topics = ["z/+/climate", "z/hall/+"]', 'topics = ["other"]', ["z/+/climate", "z/hall/+", '"z/+/+"']),
        ('topics = ["a/+"]', 'topics = ["+/b"]', ['source "one"', "client_id"]),
        ('topics = ["a/#"]', 'topics = ["$share/g/a/{key}"]', ['source "one"', "twice"]),
        ('topics = ["$share/g/a", "$share/h/a"]', 'topics = ["other"]', ["$share/h/a", "take one of them out"]),
    ],
)
def test_topics_that_overlap_are_refused_with_the_remedy(
    folder: Path, first: str, second: str, words: list[str]
) -> None:
    """A broker may send what both catch once for each, and nothing in a message would tell."""
    (mistake,) = mistakes(write(folder, _two_sources(first, second)))
    assert all(word in mistake for word in ["topics", "expected", "found", *words]), mistake


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('topics = ["z/+/climate", "z/#"]', 'topics = ["z/{key}/climate"]'),  # one covers: it is subscribed to alone
        ('topics = ["$share/g/a/{key}"]', 'topics = ["$share/g/a/{key}"]'),
        ('topics = ["a/+"]', 'topics = ["+/b"]\nclient_id = "another"'),
        ('topics = ["a/+"]', 'topics = ["+/b"]\nurl = "mqtt://elsewhere"'),
        ('topics = ["a/b"]', 'topics = ["a/c", "a"]'),
    ],
)
def test_topics_that_cannot_bring_a_message_twice_are_taken(folder: Path, first: str, second: str) -> None:
    """Covered, apart, or on connections of their own."""
    assert len(load(folder, _two_sources(first, second)).source) == 3


@pytest.mark.parametrize("topic", ["$share/g", "$share/g/", "$share//a", "$share/+/a", "$share/{key}/a"])
def test_a_shared_topic_needs_a_group_and_a_topic(folder: Path, topic: str) -> None:
    """What is left out is reported."""
    (mistake,) = mistakes(write(folder, _two_sources(f'topics = ["{topic}"]', 'topics = ["x"]')))
    assert "$share/GROUP/TOPIC" in mistake


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ('time_zone = "Europe/Berln"', ["time_zone", "Europe/Berlin"]),
        ('identity = "site"\nkey = "site"', ["identity", "key"]),
        ('identity = "cont"\nformat = "csv"\nfields = ["count", "x"]', ["identity", "did you mean count?"]),
        ('time_unit = "m"', ["time_unit", '"ms"']),
        ('late = "keep"', ["late", '"take"']),
        ('retained = "twice"', ["retained", '"once"']),
    ],
)
def test_what_is_wrong_about_identity_and_time_is_said(folder: Path, key: str, words: list[str]) -> None:
    """Place, expectation, finding, and the nearest word that would do."""
    (mistake,) = mistakes(write(folder, _two_sources(f'topics = ["a"]\n{key}', 'topics = ["x"]')))
    assert all(word in mistake for word in words), mistake


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('status_topic = "edge/+/status"', ["upstream.status_topic", "without + and #"]),
        ('health_topic = "edge/{model}/health"', ["upstream.health_topic", "no other placeholder than {device}"]),
        ('models_topic = "all"\nstatus_topic = "all"', ["upstream.models_topic", "another topic than status_topic"]),
        ('health_topic = "mine/vibration"\ntopic = "mine/{model}"', ["upstream.topic", "does not use itself"]),
    ],
)
def test_topics_of_the_device_that_cannot_be_are_refused(folder: Path, lines: str, words: list[str]) -> None:
    """Where a device publishes about itself there is one topic, no filter, and no model's prediction."""
    with pytest.raises(ConfigError) as caught:
        load(folder, DEVICE + lines)
    assert len(caught.value.mistakes) == 1
    assert all(word in caught.value.mistakes[0] for word in words), caught.value.mistakes


def test_one_topic_may_take_all_where_nothing_is_retained(folder: Path) -> None:
    """Some brokers of a cloud take messages on one topic alone."""
    loaded = load(folder, DEVICE + 'models_topic = "all"\nstatus_topic = "all"\nhealth_topic = "all"\nretain = false')
    assert loaded.upstream.status_topic == "all"
