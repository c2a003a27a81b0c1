"""`make mutants`: break a module of the product in one small place, and see whether its tests notice; again and again.

`tests/mutants/modules.toml` says which modules, which tests concern each, and what share has to be noticed.
`tests/mutants/judged.toml` holds every break that survived and was looked at: `equivalent` (no test could notice), or
`accepted` with the reason why it is left. A survivor that is not in there fails the run.

How a break is tried stands in `mutation_try.py`. A long module is tried in parts: `--resume` keeps what is known of
this source (in `build/mutants/`) and tries what is left, or has survived and was not judged; `--only Outbox._send` or
`--only 120-180` tries one function or some lines.

Why no tool from elsewhere: cosmic-ray starts a whole pytest for each break (some seconds of imports, for 0.1 s of
tests) and edits the work tree in place; mutmut wants a copy of the tree that it rewrites itself.

Weak point: `--resume` believes a break to be noticed by tests that may have been changed since.
"""
# ruff: noqa: T201 - a command, which prints

import argparse
import hashlib
import json
import os
import random
import secrets
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.mutants import Mutant, changed_lines, mutants_of, those_in
from tests.support.mutation_try import ROOT, Module, Verdict, key_of, run_module

PLACE = ROOT / "tests" / "mutants"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- mutants: begin -->", "<!-- mutants: end -->"
KNOWN = ROOT / "build" / "mutants"


def load_modules(place: Path = PLACE) -> list[Module]:
    """The modules that are broken, with what was judged of each."""
    found = tomllib.loads((place / "modules.toml").read_text())["module"]
    modules = [Module(item["path"], item["tests"], item["floor"]) for item in found]
    for item in tomllib.loads((place / "judged.toml").read_text()).get("survivor", []):
        for module in modules:
            if module.path == item["module"]:
                module.judged[f"{item['where']}: {item['change']}"] = item
    return modules


def table(modules: list[Module], results: dict[str, dict[str, Any]]) -> str:
    """The table of `docs/reliability.md`."""
    lines = ["| Module | Mutants | Killed | Equivalent | Accepted | Killed of those that could be | Floor |"]
    lines.append("|---|---|---|---|---|---|---|")
    for module in modules:
        found = results.get(module.path)
        if found is None:
            lines.append(f"| `{module.path}` | not yet run | | | | | {module.floor:g} % |")
            continue
        judged = Counter(item["judged"] for item in module.judged.values())
        share = 100 * found["killed"] / max(1, found["mutants"] - judged["equivalent"])
        lines.append(
            f"| `{module.path}` | {found['mutants']} | {found['killed']} | {judged['equivalent']} "
            f"| {judged['accepted']} | {share:.1f} % | {module.floor:g} % |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, show, and judge; 1 when a survivor was not judged or a floor is not reached."""
    parser = argparse.ArgumentParser(description="Break the product in small places, and see whether its tests notice.")
    parser.add_argument("module", nargs="*", help="paths from modules.toml; all when left out")
    parser.add_argument("--changed", metavar="REVISION", help="only statements that changed since then")
    parser.add_argument("--seconds", type=float, default=1e9, help="a sample: stop after so long")
    parser.add_argument("--seed", type=int, default=None, help="of the sample's order")
    parser.add_argument("--only", metavar="WHERE", help="one function or class (`Outbox._send`), or lines (`120-180`)")
    parser.add_argument("--resume", action="store_true", help="keep what is known, try what is left or has survived")
    parser.add_argument("--place", type=Path, default=PLACE, help="where modules.toml and judged.toml are")
    parser.add_argument("--write", action="store_true", help="keep the figures, and the table in docs/reliability.md")
    options = parser.parse_args(arguments)
    os.chdir(ROOT)
    modules = load_modules(options.place)
    chosen = [module for module in modules if not options.module or module.path in options.module]
    if len(chosen) < len(options.module):
        unknown = ", ".join(set(options.module) - {module.path for module in modules})
        parser.error(f"expected modules of modules.toml, found {unknown}")
    lines = _changed_since(options.changed) if options.changed else None
    seed = options.seed if options.seed is not None else secrets.randbits(32)
    until = time.monotonic() + options.seconds
    is_sample = (options.seconds < 1e9 and not options.resume) or lines is not None
    is_bad = False
    results_path = options.place / "results.json"
    results = json.loads(results_path.read_text()) if results_path.exists() else {}
    todo: list[tuple[Module, list[Mutant]]] = []
    for module in chosen:
        if is_sample and module.path not in results:
            continue  # its survivors were not judged yet: nothing new could be learned from them
        mutants = mutants_of((ROOT / module.path).read_text())
        if lines is not None:
            mutants = list(those_in(mutants, lines.get(module.path, set())))
        if options.only:
            mutants = _only(mutants, options.only)
        if mutants:
            todo.append((module, mutants))
    if is_sample:
        print(f"{sum(len(mutants) for _, mutants in todo)} breaks of changed statements; --seed {seed}")
        random.Random(seed).shuffle(todo)
    for place, (module, mutants) in enumerate(todo):
        left = until - time.monotonic()
        if left <= 0:
            print(f"{module.path}: no time left for {len(mutants)} breaks")
            continue
        if is_sample:
            random.Random(seed).shuffle(mutants)
        until_then = time.monotonic() + left / (len(todo) - place)
        known_in = KNOWN if options.place == PLACE else options.place / "known"
        keeps = options.resume or bool(options.only)
        known = _Known(module, known_in, keeps=keeps) if not is_sample else None
        found = _one_module(module, mutants, until_then, known, resume=options.resume)
        is_bad |= found.is_bad(is_whole=not is_sample and not options.only)
        if found.is_whole and not is_sample and not options.only:
            results[module.path] = {"mutants": len(found.verdicts), "killed": found.killed}
    if options.write and not is_sample:
        results_path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        write_table(modules, results)
    return 1 if is_bad else 0


def _only(mutants: list[Mutant], where: str) -> list[Mutant]:
    """Those of one function or class, or of some lines."""
    first, _, last = where.partition("-")
    if first.isdecimal():
        return list(those_in(mutants, set(range(int(first), int(last or first) + 1))))
    return [mutant for mutant in mutants if f"{mutant.where}.".startswith(f"{where}.")]


class _Known:
    """What earlier runs have found of the same source: a line for each break, in `build/mutants/`."""

    def __init__(self, module: Module, folder: Path, *, keeps: bool) -> None:
        self._path = folder / f"{module.name}.jsonl"
        digest = hashlib.sha256((ROOT / module.path).read_bytes()).hexdigest()
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        self.found: dict[str, tuple[bool, str]] = {}  # by break: whether it was noticed, and how
        if keeps and lines[:1] == [digest]:
            self.found = {key: (noticed, how) for key, noticed, how in map(json.loads, lines[1:])}
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(f"{digest}\n")

    def add(self, verdict: Verdict) -> None:
        """For the next run."""
        with self._path.open("a") as out:
            print(json.dumps([key_of(verdict.mutant), verdict.noticed, verdict.how]), file=out)


@dataclass
class _Found:
    """What came of a module's breaks."""

    module: Module
    mutants: list[Mutant]
    verdicts: list[Verdict]

    @property
    def killed(self) -> int:
        """How many were noticed."""
        return sum(verdict.noticed for verdict in self.verdicts)

    @property
    def is_whole(self) -> bool:
        """The time allowed all of them."""
        return len(self.verdicts) == len(self.mutants)

    def is_bad(self, *, is_whole: bool) -> bool:
        """Say what is wrong; True when something is."""
        survived = [key_of(verdict.mutant) for verdict in self.verdicts if not verdict.noticed]
        new = [key for key in survived if key not in self.module.judged]
        if not is_whole:
            return bool(new)
        if not self.is_whole:
            print(f"{self.module.path}: {len(self.mutants) - len(self.verdicts)} breaks were not tried")
            return True
        names = {key_of(mutant) for mutant in self.mutants}
        for key, item in self.module.judged.items():
            if key not in names:
                print(f"{self.module.path}: judged.toml names a break that is not there any more: {key}")
            elif key not in survived:
                print(f"{self.module.path}: judged {item['judged']}, but noticed: {key}")
        equivalent = sum(item["judged"] == "equivalent" for item in self.module.judged.values())
        share = 100 * self.killed / max(1, len(self.verdicts) - equivalent)
        if share < self.module.floor:
            print(f"{self.module.path}: expected {self.module.floor:g} % noticed, found {share:.1f} %")
        return bool(new) or share < self.module.floor


def _one_module(module: Module, mutants: list[Mutant], until: float, known: _Known | None, *, resume: bool) -> _Found:
    """Run one, and show what survives."""

    def show(verdict: Verdict) -> None:
        if known is not None:
            known.add(verdict)
        if not verdict.noticed and key_of(verdict.mutant) not in module.judged:
            first = verdict.mutant.lines[0]
            print(f"{module.path}:{first}: SURVIVED ({verdict.how}): {key_of(verdict.mutant)}", flush=True)

    began = time.monotonic()
    earlier = known.found if known is not None and resume else {}
    earlier = {key: verdict for key, verdict in earlier.items() if verdict[0] or key in module.judged}
    found = _Found(module, mutants, [])
    found.verdicts = [Verdict(each, *earlier[key_of(each)]) for each in mutants if key_of(each) in earlier]
    todo = [mutant for mutant in mutants if key_of(mutant) not in earlier]
    if todo:
        found.verdicts += run_module(module, todo, until, show)
    new = sum(not verdict.noticed and key_of(verdict.mutant) not in module.judged for verdict in found.verdicts)
    took = time.monotonic() - began
    shares = f"{found.killed} of {len(found.verdicts)} breaks noticed"
    print(f"{module.path}: {shares}, {new} survivors not judged, {took:.0f} s")
    return found


def write_table(modules: list[Module], results: dict[str, dict[str, Any]]) -> None:
    """Put the table between its marks in `docs/reliability.md`."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table(modules, results)}\n{END}{after}")


def _changed_since(revision: str) -> dict[str, set[int]]:
    done = subprocess.run(
        ["git", "diff", "--unified=0", revision, "--", "edge_runtime", "converter"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return changed_lines(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
