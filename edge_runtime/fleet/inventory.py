"""`fleet.toml` -> the devices of the fleet. Reports every mistake at once, as for a device file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edge_runtime.config.addresses import parse_endpoint
from edge_runtime.config.convert import ConfigConversion, Converted, Mistake, nearest, quote
from edge_runtime.config.load import parse_toml
from edge_runtime.config.tables import Count, FilePath, Name, NewPath, Port16, SomeSeconds, Table, Text
from edge_runtime.errors import CommandError, ConfigError

HOST = "a host or a name in ~/.ssh/config, such as pi@press-07.local"
# A host that begins with a dash would be an option of ssh, and one with a space two words.
Address = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=255,
        pattern=r"^[^\s\x00-\x1f\x7f-][^\s\x00-\x1f\x7f]*$",
        extra={"expected": HOST},
    ),
]
# Part of a unit's name and of file names on the device.
Service = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9_.][A-Za-z0-9_.-]{0,99}$", extra={"expected": "letters, digits and _ . -"})
]


# A model and the version that a device keeps.
Pin = Annotated[
    str,
    Meta(
        max_length=200,
        pattern=r"^[^\s]{1,100} [^\s]{1,99}$",
        extra={"expected": 'a model and a version, such as "vibration 1.4.0"'},
    ),
]


class RolloutTable(Table, frozen=True, kw_only=True):
    """`[rollout]`: how many devices are changed at once, and in which order.

    Attributes:
        limit: How many devices are worked on at the same time.
        canaries: How many devices go first, alone. The rest follow only if all of them succeeded.
        wave: How many devices follow in each later wave; a wave in which one fails is the last. Left out, all at once.
        soak (s): How long a wave must run the new model before the next begins. Left out, 30 s, and nothing after the
            last one.
        max_failures: How many devices may fail before no further one is started, as a number or as `N%` of all. Devices
            that are away or busy do not count.
    """

    limit: Count = 8
    canaries: Annotated[int, Meta(ge=0)] = 1
    wave: Count | None = None
    soak: Annotated[float, Meta(ge=0)] | None = None
    max_failures: Annotated[str, Meta(pattern=r"^[0-9]{1,6}%?$", extra={"expected": "a number or N%"})] = "0"


class DefaultsTable(Table, frozen=True, kw_only=True):
    """`[defaults]`: the settings of devices that have none of their own.

    Attributes:
        account: The user that the daemon runs as, and that the model store belongs to.
        runtime: The runtime's command on the device.
        store: The model store on the device.
        allowed_signers: The keys whose bundles the device trusts, on the device.
        port: The port of the device's ssh server, where `~/.ssh/config` has none.
        connect_timeout (s): A device that does not answer for so long is unreachable.
        stall_timeout (s): A device that is silent during a step for so long has failed.
        ssh_config: A configuration file for ssh, instead of the user's own.
    """

    account: Service = "edge-runtime"
    runtime: Text = "/opt/edge-runtime/bin/edge-runtime"
    store: Text = "/var/lib/edge-runtime/models"
    allowed_signers: Text = "/etc/edge-runtime/allowed_signers"
    port: Port16 | None = None
    connect_timeout: SomeSeconds = 10.0
    stall_timeout: SomeSeconds = 15.0
    ssh_config: FilePath | None = None


class FleetBrokerTable(Table, frozen=True, kw_only=True):
    """`[broker]`: the broker of devices with `transport = "mqtt"`.

    Attributes:
        url: `mqtt://HOST:PORT`, or `mqtts://` with TLS.
        username: An account that may do what `docs/ota.md` lists.
        password_file: A file whose first line is its password.
        ca_file: The authority of the broker's certificate, where this machine does not know it.
    """

    url: Text
    username: Text | None = None
    password_file: FilePath | None = None
    ca_file: FilePath | None = None


class FleetDeviceTable(Table, frozen=True, kw_only=True):
    """`[[device]]`: one device.

    Attributes:
        name: What the commands call it. Over MQTT it is the `id` in its device file.
        address: A host, USER@HOST or a name in `~/.ssh/config`. Not needed over MQTT.
        group: Devices that are flashed together, as `group:NAME`.
        labels: Words for `--where`, such as `["line-2", "outdoor"]`.
        pins: Models that stay at a version, such as `["vibration 1.4.0"]`: no other version is brought there.
        class_: What kind of device it is, such as `pi4`: for `--class`, and a bundle for another kind is refused.
        transport: How it is reached: `ssh`, or `mqtt` where only the broker of `[broker]` can reach it.
        service: The instance of the service, `edge-runtime@SERVICE`; the device's name when left out.
        config: The device file that `provision` installs, here on this machine.
        port: As in `[defaults]`.
        account: As in `[defaults]`.
        runtime: As in `[defaults]`.
        store: As in `[defaults]`.
        allowed_signers: As in `[defaults]`.
    """

    name: Service
    address: Address | None = None
    group: Name | None = None
    labels: tuple[Name, ...] = ()
    pins: tuple[Pin, ...] = ()
    class_: Name | None = msgspec.field(default=None, name="class")
    transport: Literal["ssh", "mqtt"] = "ssh"
    service: Service | None = None
    config: NewPath | None = None
    port: Port16 | None = None
    account: Service | None = None
    runtime: Text | None = None
    store: Text | None = None
    allowed_signers: Text | None = None


class Fleet(Table, frozen=True, kw_only=True):
    """A whole inventory.

    Attributes:
        rollout: How many devices are changed at once.
        defaults: What holds for every device.
        broker: Where devices behind a router are met.
        device: The devices.
        path: The file itself. No key of it.
    """

    rollout: RolloutTable = RolloutTable()
    defaults: DefaultsTable = DefaultsTable()
    broker: FleetBrokerTable | None = None
    device: tuple[FleetDeviceTable, ...]
    path: str = ""


class FleetDevice(msgspec.Struct, frozen=True):
    """A device with everything that is needed to talk to it; `broker` only where `transport` is `mqtt`."""

    name: str
    address: str
    group: str | None
    kind: str | None
    service: str
    config: str | None
    port: int | None
    account: str
    runtime: str
    store: str
    allowed_signers: str
    connect_timeout: float
    stall_timeout: float
    ssh_config: str | None
    transport: Literal["ssh", "mqtt"] = "ssh"
    broker: FleetBrokerTable | None = None
    labels: tuple[str, ...] = ()
    pins: tuple[str, ...] = ()


def find_inventory(given: str | None) -> Path:
    """The inventory that was given, else that of EDGE_FLEET, else `device_configs/fleet.toml` or `fleet.toml` here."""
    named = given or os.environ.get("EDGE_FLEET")
    if named:
        return Path(named)
    nearby = Path("device_configs/fleet.toml")
    return nearby if nearby.exists() else Path("fleet.toml")


def load_inventory(path: Path) -> Fleet:
    """Reads and checks an inventory.

    Raises:
        ConfigError: every mistake, a line each.
    """
    conversion = ConfigConversion(str(path.absolute().parent))
    whole = conversion.table(Fleet, parse_toml(path, "an inventory of devices (TOML)"), "", omit=frozenset({"path"}))
    mistakes = [*conversion.mistakes, *_rules(conversion.tables)]
    if mistakes:
        raise ConfigError([f"{path}: {mistake}" for mistake in mistakes])
    fleet: Fleet = msgspec.structs.replace(whole.value, path=str(path.absolute()))
    return fleet


def _rules(tables: list[Converted]) -> list[Mistake]:
    seen: dict[str, str] = {}
    found = []
    for table in tables:
        device = table.value
        if isinstance(device, FleetBrokerTable) and "url" not in table.wrong:
            try:
                parse_endpoint(device.url)
            except ValueError as error:
                found.append(Mistake(table.key("url"), str(error)))
        if not isinstance(device, FleetDeviceTable):
            continue
        if device.transport == "ssh" and device.address is None and not table.wrong & {"address", "transport"}:
            found.append(Mistake(table.key("address"), f"expected {HOST}, but the key is missing"))
        if "name" in table.wrong:
            continue
        if device.name in seen:
            found.append(
                Mistake(
                    table.key("name"), f"expected a name of its own, found that of another device, {seen[device.name]}"
                )
            )
        seen.setdefault(device.name, table.place)
    return found


def select(
    fleet: Fleet,
    words: Sequence[str],
    *,
    everything: bool = False,
    kind: str | None = None,
    labels: Sequence[str] = (),
    without: Sequence[str] = (),
) -> list[FleetDevice]:
    """The devices that a command names, in the order of the inventory, each once.

    Args:
        fleet: the inventory.
        words: names of devices, or `group:NAME`.
        everything: all devices.
        kind: of these, only devices of this class.
        labels: of these, only devices with each of these labels.
        without: of these, not the devices of these names or groups.

    Raises:
        CommandError: a word names nothing, or nothing is named.
    """
    left_out = _named(fleet, without)
    known = {label for device in fleet.device for label in device.labels}
    for label in labels:
        if label not in known:
            near = nearest(label, sorted(known))
            hint = f"did you mean {near}?" if near else f"it knows {', '.join(sorted(known)) or 'none'}"
            raise CommandError(f"{fleet.path}: no device has the label {quote(label)}: {hint}")
    wanted = {device.name for device in fleet.device} if everything or (labels and not words) else set()
    wanted = (wanted | _named(fleet, words)) - left_out
    chosen = [
        each
        for each in fleet.device
        if each.name in wanted and kind in {None, each.class_} and set(labels) <= set(each.labels)
    ]
    if not chosen:
        raise CommandError(f"{fleet.path}: no device is named: name some, or a group as group:NAME, or use --all")
    return [target(fleet, device) for device in chosen]


def _named(fleet: Fleet, words: Sequence[str]) -> set[str]:
    """The names of devices that these words stand for.

    Raises:
        CommandError: a word names nothing.
    """
    names = [device.name for device in fleet.device]
    groups = {device.group for device in fleet.device if device.group is not None}
    wanted: set[str] = set()
    for word in words:
        group = word.removeprefix("group:")
        if word.startswith("group:") and group in groups:
            wanted |= {device.name for device in fleet.device if device.group == group}
        elif word in names:
            wanted.add(word)
        else:
            known = [*names, *(f"group:{each}" for each in groups)]
            near = nearest(word, known)
            hint = f"did you mean {near}?" if near else f"it knows {', '.join(known[:20])}"
            raise CommandError(f"{fleet.path}: no device or group {quote(word)}: {hint}")
    return wanted


def target(fleet: Fleet, device: FleetDeviceTable) -> FleetDevice:
    """One device, completed by the defaults."""
    base = fleet.defaults
    return FleetDevice(
        name=device.name,
        address=device.address or "",
        group=device.group,
        kind=device.class_,
        service=device.service or device.name,
        config=device.config,
        port=device.port or base.port,
        account=device.account or base.account,
        runtime=device.runtime or base.runtime,
        store=device.store or base.store,
        allowed_signers=device.allowed_signers or base.allowed_signers,
        connect_timeout=base.connect_timeout,
        stall_timeout=base.stall_timeout,
        ssh_config=base.ssh_config,
        transport=device.transport,
        broker=fleet.broker,
        labels=device.labels,
        pins=device.pins,
    )
