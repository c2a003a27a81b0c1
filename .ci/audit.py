"""Every locked package against the advisory database, by `pip-audit` (`make audit`): 0 clean, 1 findings, 2 not asked.

What `tests/audit.toml` ignores is passed over until its day. A package that the database does not answer for counts
as not audited, never as clean.
"""  # noqa: INP001

import datetime as dt
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IGNORED = ROOT / "tests" / "audit.toml"


def judge(report: Mapping[str, Any], ignored: Sequence[Mapping[str, Any]], today: dt.date) -> Iterator[str]:
    """The findings of a report of pip-audit, one line each; nothing where all is well."""
    running = {each["id"]: each for each in ignored if each["until"] >= today}
    met = set()
    for package in report["dependencies"]:
        if "skip_reason" in package:
            yield f"{package['name']}: not audited: {package['skip_reason']}"
            continue
        for found in package["vulns"]:
            names = {found["id"], *found.get("aliases", ())}
            if names & set(running):
                met |= names
                continue
            late = next((each for each in ignored if each["id"] in names), None)
            over = f" (ignored until {late['until']}, which is over)" if late else ""
            fixed = ", ".join(found["fix_versions"]) or "no release yet"
            yield f"{package['name']} {package['version']}: {found['id']}, fixed in {fixed}{over}"
    for name in sorted(set(running) - met):
        yield f"{IGNORED.name}: {name} matches nothing: remove the entry"


def main(program: str) -> int:
    """Ask about every lock."""
    ignored = tomllib.loads(IGNORED.read_text())["ignored"]
    dependencies: dict[str, Any] = {}
    for lock in sorted((ROOT / "tests" / "locked").glob("*.txt")):
        words = [program, "--requirement", str(lock), "--require-hashes", "--disable-pip", "--format", "json"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        try:
            found = json.loads(done.stdout)["dependencies"]
        except (ValueError, KeyError):
            sys.stderr.write(f"{lock.name}: pip-audit gave no report: {done.stderr.strip()[-300:]}\n")
            return 2
        dependencies |= {each["name"]: each for each in found}
    lines = list(judge({"dependencies": dependencies.values()}, ignored, dt.datetime.now(tz=dt.UTC).date()))
    sys.stdout.writelines(f"{line}\n" for line in lines)
    unasked = [line for line in lines if ": not audited: " in line]
    sys.stdout.write(
        f"{len(dependencies)} packages, {len(lines) - len(unasked)} findings, {len(unasked)} not audited\n"
    )
    if len(unasked) == len(dependencies):
        return 2
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
