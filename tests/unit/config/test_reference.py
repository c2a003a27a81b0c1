"""The schema for editors and the key reference are made of the types, and current."""

import json
import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from device_configs import generate
from edge_runtime.config.load import load_config
from edge_runtime.config.tables import Config, DeviceTable
from edge_runtime.registered import CODECS

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "configuration.md"


def test_the_schema_is_current() -> None:
    """`config.schema.json` is what the types say; `python -m device_configs.generate` writes it."""
    assert generate.SCHEMA.read_text(encoding="utf-8") == generate.schema()


def test_the_reference_is_current() -> None:
    """`docs/configuration.md` has a row for every key; `python -m device_configs.generate` writes it."""
    assert PAGE.read_text(encoding="utf-8") == generate.reference(PAGE.read_text(encoding="utf-8"))


def test_the_reference_of_inventories_is_current() -> None:
    """`docs/inventory.md` has a row for every key of a `fleet.toml`, each with a sentence."""
    page = generate.INVENTORY.read_text(encoding="utf-8")
    listed = list(generate.tables_of_inventory())
    assert page == generate.reference(page, listed)
    assert [title for title, _ in listed] == ["[rollout]", "[defaults]", "[broker]", "[[device]]"]
    assert all(key.text.endswith(".") for _, struct in listed for key in generate.keys(struct).values())
    with pytest.raises(ValueError, match=r"inventory.md: expected a place for \[rollout\]"):
        generate.reference("# Inventory\n", listed)


def test_every_key_has_a_sentence_and_every_sentence_a_key() -> None:
    """The docstring of a table describes exactly its keys."""
    for _, struct in generate.tables():
        assert all(key.text.endswith(".") for key in generate.keys(struct).values())

    class Undescribed(DeviceTable, frozen=True, kw_only=True):
        """A table whose key is not described."""

        colour: str = "red"

    with pytest.raises(ValueError, match=r"differ in \['colour'\]"):
        generate.keys(Undescribed)


def test_a_table_without_a_place_on_the_page_is_noticed() -> None:
    """A new table needs a section of the reference."""
    with pytest.raises(ValueError, match=r"expected a place for \[device\]"):
        generate.reference("# Configuration\n")


def _keys(struct: type[msgspec.Struct]) -> set[str]:
    """The keys that a table of the file may hold: its own, and those of every format where it holds frames."""
    names = set(struct.__struct_encode_fields__)
    if "codec" in names:
        names = names - {"codec"} | {name for word in CODECS for name in CODECS.load(word).__struct_fields__}
    return names


def test_the_schema_knows_every_key_and_refuses_others() -> None:
    """An editor completes the keys of every table, with their sentences, and marks unknown ones."""
    parts = json.loads(generate.SCHEMA.read_text(encoding="utf-8"))["$defs"]
    for _, struct in generate.tables():
        part = parts[struct.__name__]
        assert part["additionalProperties"] is False
        words = {"format", *({"type"} - set(struct.__struct_fields__))}  # that choose a table, and are no keys of it
        assert set(part["properties"]) - words == _keys(struct) - {"format"}
        assert all("description" in each for name, each in part["properties"].items() if name not in words)
    assert "path" not in parts["Config"]["properties"]


@pytest.mark.parametrize(
    "number", range(len(re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)))
)
def test_every_example_of_the_reference_is_right(number: int, tmp_path: Path) -> None:
    """Each example on the page loads, completed by the smallest file where it is a part."""
    examples = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    smallest = tomllib.loads(examples[0])
    example = tomllib.loads(examples[number])
    if "repair" in example:
        example = {"source": [{**smallest["source"][0], **example}]}
    if "source" in example and "model" not in example:
        example["model"] = [{**smallest["model"][0], "source": example["source"][0]["name"]}]
    whole = json.loads(json.dumps({**smallest, **example}))
    text = json.dumps(whole)
    for name in re.findall(r'"(?:bundle|password_file|allowed_signers)": "([^"]+)"|"(\w+\.csv)"', text):
        path = tmp_path / Path(name[0] or name[1]).name
        path.write_text("x\n")
        text = text.replace(json.dumps(name[0] or name[1]), json.dumps(str(path)))
    device_file = tmp_path / "device.toml"
    device_file.write_text("\n".join(_lines(json.loads(text))))
    assert isinstance(load_config(device_file), Config)


def _lines(document: dict[str, object]) -> list[str]:
    return [f"{key} = {_inline(value)}" for key, value in document.items()]


def _inline(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_inline(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return msgspec.json.encode(value).decode()
