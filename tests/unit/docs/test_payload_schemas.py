"""`docs/schemas/`: what subscribers receive. `tests/conftest.py` holds the system tests' real messages to them."""

import copy
import json
import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from edge_runtime.config.rules import RESERVED, RESERVED_BELOW
from tests.support.payload_examples import examples
from tests.support.payload_schemas import FOLDER, SCHEMAS, faults, name_of, write

EXAMPLES = examples()


def test_the_files_are_what_the_code_publishes() -> None:
    """`python -m tests.support.payload_examples` writes them anew."""
    wanted = write(EXAMPLES)
    assert {path.name for path in FOLDER.glob("*.json")} == {path.name for path in wanted}
    for path, text in wanted.items():
        assert path.read_text(encoding="utf-8") == text, "run: python -m tests.support.payload_examples"


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_a_schema_is_one_and_its_examples_keep_to_it(name: str) -> None:
    """By the dialect's own meta-schema, and by another library's validator."""
    document = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(document)
    assert document["examples"]
    for example in document["examples"]:
        Draft202012Validator(document).validate(example)


def topic(name: str) -> str:
    """A topic of this kind."""
    return re.sub(r"\{(\w+)\}", r"\1", SCHEMAS[name][1])


@pytest.mark.parametrize("name", sorted(set(SCHEMAS) - {"status"}))
def test_a_message_with_a_member_more_or_less_is_found(name: str) -> None:
    """A check that takes everything would show nothing."""
    example: Any = copy.deepcopy(EXAMPLES[name][0])
    assert name_of(topic(name), example) == name
    assert list(faults(topic(name), example)) == []
    one = example[0] if isinstance(example, list) else example
    strange = {**one, "strange": 1}
    assert list(faults(topic(name), [strange] if isinstance(example, list) else strange))
    dropped = {member: value for member, value in one.items() if member not in {"version", "transfer", "time", "state"}}
    assert list(faults(topic(name), [dropped] if isinstance(example, list) else dropped))


def test_every_topic_of_the_device_has_a_schema_or_is_sent_to_it() -> None:
    """`desired`, `predict` and the like are what a device receives; others are reserved for what is to come."""
    published = {SCHEMAS[name][1].split("/")[2] for name in SCHEMAS}
    received = {"desired", "predict", "answers", "capture", "truth", "accuracy"}
    assert {*RESERVED, *RESERVED_BELOW} <= published | received
