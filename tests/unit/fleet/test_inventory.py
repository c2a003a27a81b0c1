"""The inventory of a fleet: what it says, and what is wrong with it."""

from pathlib import Path

import pytest

from edge_runtime.errors import CommandError, ConfigError
from edge_runtime.fleet.inventory import Fleet, find_inventory, load_inventory, select

ROOT = Path(__file__).resolve().parents[3]

TWO = """
[[device]]
name = "a"
address = "pi@a.local"
group = "hall"
class = "pi4"
[[device]]
name = "b"
address = "10.0.0.2"
port = 2222
service = "press"
store = "/data/models"
"""


def load(folder: Path, text: str) -> Fleet:
    """An inventory with this text."""
    path = folder / "fleet.toml"
    path.write_text(text)
    return load_inventory(path)


def mistakes(folder: Path, text: str) -> list[str]:
    """What is wrong with an inventory, without its file name."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    return [mistake.removeprefix(f"{folder}/fleet.toml: ") for mistake in caught.value.mistakes]


def test_a_device_is_completed_by_the_defaults(tmp_path: Path) -> None:
    """What a device does not say, the defaults say; its service is called like itself."""
    fleet = load(tmp_path, "[defaults]\naccount = 'sensor'\nport = 22\nssh_config = 'conf'\n" + TWO)
    a, b = select(fleet, [], everything=True)
    assert (a.account, a.port, a.service, a.kind, a.store) == ("sensor", 22, "a", "pi4", "/var/lib/edge-runtime/models")
    assert (b.account, b.port, b.service, b.kind, b.store) == ("sensor", 2222, "press", None, "/data/models")
    assert a.ssh_config == str(tmp_path / "conf")


def test_devices_are_named_one_by_one_by_group_and_by_class(tmp_path: Path) -> None:
    """Each device is chosen once, in the order of the inventory."""
    fleet = load(tmp_path, TWO)
    assert [each.name for each in select(fleet, ["b", "group:hall", "a"])] == ["a", "b"]
    assert [each.name for each in select(fleet, [], everything=True, kind="pi4")] == ["a"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["aa"], 'no device or group "aa": did you mean a?'),
        (["group:hal"], 'no device or group "group:hal": did you mean group:hall?'),
        (["x;rm"], "it knows a, b, group:hall"),
        ([], "no device is named: name some, or a group as group:NAME, or use --all"),
    ],
)
def test_a_wrong_name_is_told_with_the_nearest_one(tmp_path: Path, words: list[str], expected: str) -> None:
    """A word that names nothing stops the command before any device is touched."""
    with pytest.raises(CommandError) as caught:
        select(load(tmp_path, TWO), words)
    assert expected in str(caught.value)


def test_every_mistake_of_an_inventory_is_told_at_once(tmp_path: Path) -> None:
    """Unknown keys, addresses that would be options of ssh, names that are no names, and doubles."""
    text = (
        TWO.replace('"b"', '"a"').replace("pi@a.local", "-oProxyCommand=reboot")
        + '[[device]]\nname = "x y"\nadress = "h"\n'
    )
    assert mistakes(tmp_path, text + "[rollout]\nlimit = 0\n") == [
        "rollout.limit: expected a whole number of at least 1, found 0",
        (
            'device[0] "a".address: expected a host or a name in ~/.ssh/config, such as pi@press-07.local, '
            'found "-oProxyCommand=reboot"'
        ),
        'device[2] "x y".name: expected letters, digits and _ . -, found "x y"',
        'device[2] "x y".adress: unknown key: did you mean address?',
        'device[1] "a".name: expected a name of its own, found that of another device, device[0] "a"',
        (
            'device[2] "x y".address: expected a host or a name in ~/.ssh/config, such as pi@press-07.local, '
            "but the key is missing"
        ),
    ]


def test_a_missing_inventory_is_one_line(tmp_path: Path) -> None:
    """The file that is missing is named, with what it should be."""
    with pytest.raises(ConfigError, match=r"none.toml: expected an inventory of devices \(TOML\), found none"):
        load_inventory(tmp_path / "none.toml")


def test_the_inventory_is_looked_for_where_people_keep_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option goes before EDGE_FLEET, and that before device_configs/fleet.toml and fleet.toml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EDGE_FLEET", raising=False)
    assert find_inventory(None) == Path("fleet.toml")
    (tmp_path / "device_configs").mkdir()
    (tmp_path / "device_configs" / "fleet.toml").touch()
    assert find_inventory(None) == Path("device_configs/fleet.toml")
    monkeypatch.setenv("EDGE_FLEET", "/etc/fleet.toml")
    assert find_inventory(None) == Path("/etc/fleet.toml")
    assert find_inventory("mine.toml") == Path("mine.toml")


def test_the_sample_inventory_is_right() -> None:
    """The sample loads, and its devices name samples that are there."""
    fleet = load_inventory(ROOT / "device_configs" / "fleet.toml")
    assert len(fleet.device) == 4
    assert all(Path(device.config).is_file() for device in fleet.device if device.config)


def test_a_device_behind_a_router_needs_a_broker_and_no_address(tmp_path: Path) -> None:
    """What is reached over MQTT is met at the broker of the inventory; its address is checked like any other."""
    text = '[[device]]\nname = "roof"\ntransport = "mqtt"\n'
    (roof,) = select(load(tmp_path, text + '[broker]\nurl = "mqtts://broker.example"\n'), ["roof"])
    assert roof.transport == "mqtt"
    assert roof.broker is not None
    assert roof.broker.url == "mqtts://broker.example"
    assert mistakes(tmp_path, text + '[broker]\nurl = "broker.example"\n') == [
        'broker.url: expected mqtt://HOST:PORT or mqtts://HOST:PORT, found "broker.example": write mqtt://broker.example'
    ]
