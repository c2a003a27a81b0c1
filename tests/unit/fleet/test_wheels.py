"""Which wheels go to which device."""

from pathlib import Path

import pytest

from edge_runtime.errors import CommandError
from edge_runtime.fleet.provision import extras_of
from edge_runtime.fleet.wheels import Machine, bundle, choose, fits, needed_of, newest_wheel

PI = Machine("aarch64", (3, 11))
NAMES = (
    "edge_inference_runtime-0.1.0-py3-none-any.whl",
    "numpy-2.4.6-cp311-cp311-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl",
    "onnxruntime-1.32.0-cp311-cp311-manylinux_2_28_aarch64.whl",
    "paho_mqtt-2.2.0-py3-none-any.whl",
    "pyserial-3.5-py2.py3-none-any.whl",
    "msgspec-0.22.0-cp311-cp311-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
    "protobuf-6.33.6-cp39-abi3-manylinux2014_aarch64.whl",
)


@pytest.mark.parametrize(
    ("name", "good"),
    [
        *((name, True) for name in NAMES),
        ("numpy-2.4.6-cp313-cp313-manylinux_2_27_aarch64.whl", False),
        ("numpy-2.4.6-cp311-cp311-manylinux_2_27_x86_64.whl", False),
        ("numpy-2.4.6-cp311-cp311-musllinux_1_2_aarch64.whl", False),
        ("numpy-2.4.6-cp311-cp311-macosx_14_0_arm64.whl", False),
        ("protobuf-6.33.6-cp313-abi3-manylinux2014_aarch64.whl", False),
        ("x-1.0-1-py3-none-any.whl", True),
        ("x-1.0.tar.gz", False),
        ("nonsense.whl", False),
    ],
)
def test_a_wheel_fits_by_its_name(name: str, *, good: bool) -> None:
    """Processor, Python and C library stand in a wheel's name."""
    assert fits(name, PI) is good


def fill(folder: Path, *names: str) -> Path:
    """A folder of files with these names."""
    for name in names:
        (folder / name).write_text(name)
    return folder


def test_of_each_package_the_newest_that_fits_is_taken(tmp_path: Path) -> None:
    """A wheelhouse may serve several kinds of devices and hold several versions."""
    others = (
        "numpy-2.10.0-cp311-cp311-manylinux_2_28_aarch64.whl",
        "numpy-3.0.0-cp313-cp313-manylinux_2_28_aarch64.whl",
    )
    wheels = choose(fill(tmp_path, *NAMES, *others), PI)
    assert [path.name for path in wheels.files if path.name.startswith("numpy")] == [others[0]]
    assert len(wheels.files) == len(NAMES)
    assert wheels.version == "0.1.0"


def test_what_is_missing_is_named_before_anything_is_sent(tmp_path: Path) -> None:
    """A wheelhouse for other devices is named as such."""
    fill(tmp_path, *NAMES)
    with pytest.raises(CommandError) as caught:
        choose(tmp_path, Machine("x86_64", (3, 11)))
    assert str(caught.value) == (
        f"{tmp_path}: expected wheels for x86_64 with Python 3.11, found none of numpy, onnxruntime, msgspec: "
        "`make wheelhouse`"
    )


def test_a_package_of_an_extra_goes_to_devices_that_need_it(tmp_path: Path) -> None:
    """Others do not get it; a device file that needs it is refused while it is not in the wheelhouse."""
    fill(tmp_path, *NAMES)
    with pytest.raises(CommandError, match="found none of pymodbus"):
        choose(tmp_path, PI, frozenset({"modbus"}))
    name = "pymodbus-3.16.1-py3-none-any.whl"
    fill(tmp_path, name)
    assert name not in [path.name for path in choose(tmp_path, PI, frozenset()).files]
    with_it = choose(tmp_path, PI, frozenset({"modbus"}))
    assert name in [path.name for path in with_it.files]
    assert with_it == choose(tmp_path, PI)


def test_over_the_network_as_well(tmp_path: Path) -> None:
    """The list for pip holds the package only where it is needed, and another list is another installation."""
    lock = "# made\nmsgspec==0.21 \\\n    --hash=sha256:a\npymodbus==3.16.1 \\\n    --hash=sha256:b\npyserial==3.5\n"
    assert needed_of(lock, frozenset({"modbus"})) == lock
    assert needed_of(lock, frozenset()) == "# made\nmsgspec==0.21 \\\n    --hash=sha256:a\npyserial==3.5\n"
    fill(tmp_path, NAMES[0])
    wheel = tmp_path / NAMES[0]
    assert bundle([wheel]).tag != bundle([wheel], ["modbus"]).tag


def test_the_extras_of_a_device_file_are_known_by_its_sources(tmp_path: Path) -> None:
    """Whatever else stands in it; a broken one is for `check` to judge."""
    path = tmp_path / "device.toml"
    assert extras_of(None) == frozenset()
    for text, expected in [
        ('[[source]]\ntype = "mqtt"\n[[source]]\ntype = "modbus"\n', {"modbus"}),
        ('[[source]]\ntype = "mqtt"\n[[source]]\ntype = "x"\n[[source]]\ntype = 5\n', set()),
        ("source = 1\n", set()),
    ]:
        path.write_text(text)
        assert extras_of(str(path)) == expected


def test_the_tag_changes_with_any_byte(tmp_path: Path) -> None:
    """A device that has the same wheels is known by the tag; one with a rebuilt runtime is not."""
    fill(tmp_path, *NAMES)
    before = choose(tmp_path, PI).tag
    assert choose(tmp_path, PI).tag == before
    (tmp_path / NAMES[0]).write_text("rebuilt")
    assert choose(tmp_path, PI).tag != before


def test_the_newest_wheel_is_found_by_number(tmp_path: Path) -> None:
    """0.10.0 is newer than 0.9.0, and an empty folder says what to type."""
    with pytest.raises(CommandError, match="expected a wheel of the runtime, found none: `make wheel`"):
        newest_wheel(tmp_path)
    fill(tmp_path, *(f"edge_inference_runtime-{version}-py3-none-any.whl" for version in ("0.9.0", "0.10.0")))
    assert newest_wheel(tmp_path).name == "edge_inference_runtime-0.10.0-py3-none-any.whl"
    assert bundle([newest_wheel(tmp_path)]).version == "0.10.0"
