"""Tests that failed at first and passed alone: kept in `.ci/races.txt`, and not for ever.

`record NAME...` notes what a run has tried again: a name that was in the list of the run before counts one more, a
name that was not seen again is dropped. `check` fails as long as a name stands there that came twice in a row: it is a
race in a test, or a fault, and the line goes when that is found. The list is committed, since a clone has no memory.
"""  # noqa: INP001

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

LIST = Path(__file__).with_name("races.txt")
HEAD = "# Tests that failed at first and passed alone, and how many runs in a row. See .ci/races.py.\n"
TOO_OFTEN = 2


def read(path: Path) -> dict[str, int]:
    """How often in a row each name was seen; none without a file."""
    if not path.exists():
        return {}
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {name: int(count) for count, name in (line.split(" ", 1) for line in lines)}


def after(before: Mapping[str, int], seen: Sequence[str]) -> dict[str, int]:
    """The list behind a run that has seen these names; what came too often stays until a person takes it out."""
    now = {name: before.get(name, 0) + 1 for name in seen}
    return now | {name: count for name, count in before.items() if count >= TOO_OFTEN and name not in now}


def main(arguments: Sequence[str] | None = None) -> int:
    """1 when a name came twice in a row."""
    parser = argparse.ArgumentParser(description="Tests that failed at first and passed alone.")
    parser.add_argument("--list", type=Path, default=LIST)
    parser.add_argument("action", choices=["check", "record"])
    parser.add_argument("name", nargs="*")
    options = parser.parse_args(arguments)
    found = read(options.list)
    if options.action == "record":
        found = after(found, options.name)
        lines = [f"{count} {name}\n" for name, count in sorted(found.items())]
        options.list.write_text(HEAD + "".join(lines))
        return 0
    for name, count in found.items():
        if count >= TOO_OFTEN:
            sys.stderr.write(
                f"{options.list}: {name}: failed at first and passed alone in {count} runs in a row: "
                "find the race, and take the line out\n"
            )
    return 1 if any(count >= TOO_OFTEN for count in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
