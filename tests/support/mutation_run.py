"""`make mutants`: break a module of the product in one small place, and see whether its tests notice; again and again.

`tests/mutants/modules.toml` says which modules, which tests concern each, and what share has to be noticed.
`tests/mutants/judged.toml` holds every break that survived and was looked at: `equivalent` (no test could notice), or
`accepted` with the reason why it is left. A survivor that is not in there fails the run.

How it works. Per module one process collects the tests once, runs them once to learn which test reaches which line, and
then forks for each break: the child gets the broken function in place of the sound one, runs the tests that reach it,
the quickest first, and ends at the first that fails. What stands outside of functions is broken before anything is
imported, in a process of its own.

Why no tool from elsewhere: cosmic-ray starts a whole pytest for each break (some seconds of imports, for 0.1 s of
tests) and edits the work tree in place; mutmut wants a copy of the tree that it rewrites itself.

Weak points: tests that start another process test the sound module there. A test that reaches a line only by way of a
thread that outlives it is not seen to reach it.
"""
# ruff: noqa: T201 - a command, which prints

import argparse
import contextlib
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import resource
import secrets
import signal
import subprocess
import sys
import time
import tomllib
import types
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import coverage
import pytest

from tests.support.mutants import Mutant, changed_lines, mutants_of, mutated, those_in

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "tests" / "mutants"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- mutants: begin -->", "<!-- mutants: end -->"
MORE_TIME = 4  # a break may make its tests take so much longer, and some seconds, before it counts as a hang
SPARE_S = 10.0
WALL_PER_CPU = 6  # on a busy machine


@dataclass
class Module:
    """One row of `modules.toml`, and what was judged of it."""

    path: str
    tests: list[str]
    floor: float
    judged: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As it is imported; a path that is not of this tree is a module by itself."""
        if Path(self.path).is_absolute():
            return Path(self.path).stem
        return self.path.removesuffix(".py").replace("/", ".")


@dataclass
class Verdict:
    """What became of one break."""

    mutant: Mutant
    noticed: bool
    how: str


def key_of(mutant: Mutant) -> str:
    """Names a break in `judged.toml`."""
    return f"{mutant.where}: {mutant.change}"


def load_modules(place: Path = PLACE) -> list[Module]:
    """The modules that are broken, with what was judged of each."""
    found = tomllib.loads((place / "modules.toml").read_text())["module"]
    modules = [Module(item["path"], item["tests"], item["floor"]) for item in found]
    for item in tomllib.loads((place / "judged.toml").read_text()).get("survivor", []):
        for module in modules:
            if module.path == item["module"]:
                module.judged[f"{item['where']}: {item['change']}"] = item
    return modules


# --- one module ---------------------------------------------------------------------------------------------------


class _Session:
    """A plugin of pytest: instead of running the tests once, run them for each break."""

    def __init__(self, module: Module, mutants: list[Mutant], told: Callable[[Verdict], None], until: float) -> None:
        self._module = module
        self._source = (ROOT / module.path).read_text()
        self._mutants = mutants
        self._told = told
        self._until = until
        self.fault = ""

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Everything is collected: learn, then break."""
        items = session.items
        if not items or session.testsfailed:
            self.fault = "nothing was collected"
            return True
        reached, took = self._learn(items)
        if self.fault:
            return True
        gc.collect()
        gc.freeze()
        for mutant in self._mutants:
            if time.monotonic() > self._until:
                break
            names = set().union(*(reached.get(line, set()) for line in range(mutant.lines[0], mutant.lines[1] + 1)))
            if not names:
                self._told(Verdict(mutant, noticed=False, how="no test reaches it"))
                continue
            concerned = sorted((item for item in items if item.nodeid in names), key=lambda item: took[item.nodeid])
            self._told(self._try(mutant, concerned, sum(took[item.nodeid] for item in concerned)))
        return True

    def _learn(self, items: Sequence[pytest.Item]) -> tuple[dict[int, set[str]], dict[str, float]]:
        """Which tests reach each line, and the seconds that each takes; in a child, so that nothing is left behind."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _be_quiet()
            measured = coverage.Coverage(include=[str(ROOT / self._module.path)], data_file=None)
            took: dict[str, float] = {}
            failed = []
            for item, follower in zip(items, [*items[1:], None], strict=True):
                measured.start()
                measured.switch_context(item.nodeid)
                began = time.process_time()
                if _fails(item, follower):
                    failed.append(item.nodeid)
                took[item.nodeid] = time.process_time() - began
                measured.stop()
            lines = measured.get_data().contexts_by_lineno(str(ROOT / self._module.path))
            with os.fdopen(writer, "w") as out:
                json.dump({"lines": lines, "took": took, "failed": failed}, out)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as answer:
            text = answer.read()
        os.waitpid(child, 0)
        found: dict[str, Any] = json.loads(text) if text else {"failed": ["the tests end the process"]}
        if found["failed"]:
            self.fault = f"red without any break: {', '.join(found['failed'])}"
            return {}, {}
        return {int(line): set(names) - {""} for line, names in found["lines"].items()}, found["took"]

    def _try(self, mutant: Mutant, items: Sequence[pytest.Item], seconds: float) -> Verdict:
        code = _code_of(mutated(self._source, mutant), str(ROOT / self._module.path), mutant)

        def run() -> int:
            if not _put_in(code):
                return 3
            for item, follower in zip(items, [*items[1:], None], strict=True):
                if _fails(item, follower):
                    return 1
            return 0

        return _verdict(mutant, _in_child(run, seconds))


def _fails(item: pytest.Item, follower: pytest.Item | None) -> bool:
    """Run one test with its fixtures."""
    from _pytest.runner import runtestprotocol  # noqa: PLC0415 - the one way to run an item and see its reports

    reports = runtestprotocol(item, nextitem=follower, log=False)
    return any(report.failed for report in reports)


def _code_of(tree: Any, path: str, mutant: Mutant) -> types.CodeType:
    """The compiled outermost function of a break."""
    assert mutant.function is not None
    todo = [compile(tree, path, "exec", dont_inherit=True)]
    while todo:
        code = todo.pop()
        if (code.co_qualname, code.co_firstlineno) == mutant.function:
            return code
        todo += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    raise LookupError(f"{mutant.function} is not in {path}")


def _put_in(code: types.CodeType) -> bool:
    """Every function object that was made of the sound code gets the broken one; False when there is none."""
    found = False
    gc.unfreeze()
    for thing in gc.get_objects():
        if isinstance(thing, types.FunctionType):
            sound = thing.__code__
            if (sound.co_qualname, sound.co_firstlineno, sound.co_filename) == (
                code.co_qualname,
                code.co_firstlineno,
                code.co_filename,
            ) and sound.co_freevars == code.co_freevars:
                thing.__code__ = code
                found = True
    return found


# --- what stands outside of functions -----------------------------------------------------------------------------


class _BrokenLoader(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports one module from a broken tree, and every other as ever."""

    def __init__(self, module: Module, tree: Any) -> None:
        self._module = module
        self._tree = tree

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """As every finder."""
        if fullname != self._module.name:
            return None
        return importlib.util.spec_from_file_location(fullname, ROOT / self._module.path, loader=self)

    def get_source(self, fullname: str) -> str | None:
        """Not needed: the tree is there."""
        return None

    def get_code(self, fullname: str) -> types.CodeType:
        """As every loader."""
        return compile(self._tree, str(ROOT / self._module.path), "exec", dont_inherit=True)


def _try_outside(module: Module, mutant: Mutant, seconds: float) -> Verdict:
    tree = mutated((ROOT / module.path).read_text(), mutant)

    def run() -> int:
        sys.meta_path.insert(0, _BrokenLoader(module, tree))
        return int(pytest.main(["-x", "-q", *_OPTIONS, *module.tests]))

    return _verdict(mutant, _in_child(run, seconds))


_NOT_FOUND = "no function object to be broken"  # one that is made anew, or whose variables would be others
_OPTIONS = ["-n", "0", "-p", "no:cacheprovider", "-o", "timeout=0"]


# --- children -----------------------------------------------------------------------------------------------------


def _in_child(run: Callable[[], int], seconds: float) -> int:
    """Run it in a fork with a bound of CPU and wall time; its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 4
        with contextlib.suppress(BaseException):
            os.setsid()
            _be_quiet()
            most = int(MORE_TIME * seconds + SPARE_S)
            resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))
            code = run()
        os._exit(code)
    deadline = time.monotonic() + WALL_PER_CPU * (MORE_TIME * seconds + SPARE_S)
    pause = 0.002
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            break
        time.sleep(pause)
        pause = min(0.05, pause * 1.5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what its tests have started
    return os.waitstatus_to_exitcode(status)


def _be_quiet() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)


def _verdict(mutant: Mutant, code: int) -> Verdict:
    if code == 0:
        return Verdict(mutant, noticed=False, how="the tests pass")
    if code == 3:
        return Verdict(mutant, noticed=False, how=_NOT_FOUND)
    how = {1: "a test fails", 2: "no import", 4: "the process ends"}.get(code, f"signal {-code}" if code < 0 else "end")
    return Verdict(mutant, noticed=True, how=how)


# --- the whole run ------------------------------------------------------------------------------------------------


def run_module(module: Module, mutants: list[Mutant], until: float, show: Callable[[Verdict], None]) -> list[Verdict]:
    """Try these breaks; those that the time allows.

    Raises:
        RuntimeError: the tests are red without any break.
    """
    verdicts: list[Verdict] = []
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        with os.fdopen(writer, "w", buffering=1) as out:

            def tell(verdict: Verdict) -> None:
                print(json.dumps([verdict.mutant.number, verdict.noticed, verdict.how]), file=out)

            inside = [mutant for mutant in mutants if mutant.function is not None]
            session = _Session(module, inside, tell, until)
            _be_quiet()
            code = pytest.main(["-q", *_OPTIONS, *module.tests], plugins=[session])
            if session.fault or code not in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
                print(json.dumps([-1, False, session.fault or f"pytest ended with {code}"]), file=out)
        os._exit(0)
    os.close(writer)
    by_number = {mutant.number: mutant for mutant in mutants}
    outside = [mutant for mutant in mutants if mutant.function is None]
    with os.fdopen(reader) as answers:
        for line in answers:
            number, noticed, how = json.loads(line)
            if number < 0:
                os.waitpid(child, 0)
                raise RuntimeError(f"{module.path}: {how}")
            if how == _NOT_FOUND:
                outside.append(by_number[number])
                continue
            verdicts.append(Verdict(by_number[number], noticed, how))
            show(verdicts[-1])
    os.waitpid(child, 0)
    for mutant in outside:
        if time.monotonic() < until:
            verdicts.append(_try_outside(module, mutant, 30.0))
            show(verdicts[-1])
    return verdicts


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
    is_sample = options.seconds < 1e9 or lines is not None
    is_bad = False
    results_path = options.place / "results.json"
    results = json.loads(results_path.read_text()) if results_path.exists() else {}
    todo: list[tuple[Module, list[Mutant]]] = []
    for module in chosen:
        if is_sample and module.path not in results:
            continue  # its survivors were not judged yet: nothing new could be told from them
        mutants = mutants_of((ROOT / module.path).read_text())
        if lines is not None:
            mutants = list(those_in(mutants, lines.get(module.path, set())))
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
        is_bad |= _one_module(module, mutants, time.monotonic() + left / (len(todo) - place), is_sample, results)
    if options.write and not is_sample:
        results_path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        write_table(modules, results)
    return 1 if is_bad else 0


def _one_module(
    module: Module, mutants: list[Mutant], until: float, is_sample: bool, results: dict[str, dict[str, Any]]
) -> bool:
    """Run one, and say what is wrong; True when something is."""

    def show(verdict: Verdict) -> None:
        if not verdict.noticed and key_of(verdict.mutant) not in module.judged:
            first = verdict.mutant.lines[0]
            print(f"{module.path}:{first}: SURVIVED ({verdict.how}): {key_of(verdict.mutant)}", flush=True)

    began = time.monotonic()
    verdicts = run_module(module, mutants, until, show)
    killed = sum(verdict.noticed for verdict in verdicts)
    survived = [key_of(verdict.mutant) for verdict in verdicts if not verdict.noticed]
    new = [key for key in survived if key not in module.judged]
    took = time.monotonic() - began
    print(f"{module.path}: {killed} of {len(verdicts)} breaks noticed, {len(new)} survivors not judged, {took:.0f} s")
    if is_sample:
        return bool(new)
    results[module.path] = {"mutants": len(verdicts), "killed": killed}
    names = {key_of(mutant) for mutant in mutants}
    for key, item in module.judged.items():
        if key not in names:
            print(f"{module.path}: judged.toml names a break that is not there any more: {key}")
        elif key not in survived:
            print(f"{module.path}: judged {item['judged']}, but noticed: {key}")
    equivalent = sum(item["judged"] == "equivalent" for item in module.judged.values())
    share = 100 * killed / max(1, len(verdicts) - equivalent)
    if share < module.floor:
        print(f"{module.path}: expected {module.floor:g} % noticed, found {share:.1f} %")
    return bool(new) or share < module.floor


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
