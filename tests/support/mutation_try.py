"""Tries the breaks of one module: which tests reach each, and whether one of them fails with it.

One process collects the tests once, runs them once to learn which test reaches which line, and then forks for each
break: the child gets the broken function in place of the sound one, runs the tests that reach it, the quickest first,
and ends at the first that fails. What stands outside of functions is broken before anything is imported, in a process
of its own. Temporary folders stand in memory, since no break is found by a slow disk. A test that takes much more CPU
time than it does without a break ends by a signal.

Weak points: tests that start another process test the sound module there. A test that reaches a line only by way of a
thread that outlives it is not seen to reach it.
"""

import contextlib
import ctypes
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import coverage
import pytest

from tests.support.mutants import Mutant, mutated

ROOT = Path(__file__).resolve().parents[2]
MEMORY = Path("/dev/shm")
MORE_TIME = 4  # a break may make a test take so much longer, and some seconds of CPU, before it counts as a hang
SPARE_S = 2.0
WALL_PER_CPU = 15  # on a busy machine
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


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


# --- one module ---------------------------------------------------------------------------------------------------


class _Session:
    """A plugin of pytest: instead of running the tests once, run them for each break."""

    def __init__(
        self, module: Module, mutants: list[Mutant], report: Callable[[Verdict], None], *, until: float, folders: Path
    ) -> None:
        self._module = module
        self._folders = folders
        self._functions: dict[tuple[str, int], list[types.FunctionType]] = {}
        self._source = (ROOT / module.path).read_text()
        self._mutants = mutants
        self._report = report
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
        importlib.import_module(self._module.name)  # where tests do so late
        self._functions = _functions_of(str(ROOT / self._module.path))
        gc.collect()
        gc.freeze()
        for mutant in self._mutants:
            if time.monotonic() > self._until:
                break
            names = set().union(*(reached.get(line, set()) for line in range(mutant.lines[0], mutant.lines[1] + 1)))
            if not names:
                self._report(Verdict(mutant, noticed=False, how="no test reaches it"))
                continue
            concerned = sorted((item for item in items if item.nodeid in names), key=lambda item: took[item.nodeid])
            self._report(self._try(mutant, concerned, took))
            for left in self._folders.iterdir():
                shutil.rmtree(left, ignore_errors=True)
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

    def _try(self, mutant: Mutant, items: Sequence[pytest.Item], took: dict[str, float]) -> Verdict:
        code = _code_of(mutated(self._source, mutant), str(ROOT / self._module.path), mutant)
        sound = self._functions.get((code.co_qualname, code.co_firstlineno), [])
        functions = [function for function in sound if function.__code__.co_freevars == code.co_freevars]
        if not functions:
            return _verdict(mutant, 3)

        def run() -> int:
            for function in functions:
                function.__code__ = code
            for item, follower in zip(items, [*items[1:], None], strict=True):
                _limit(took[item.nodeid])
                if _fails(item, follower):
                    return 1
            return 0

        return _verdict(mutant, _in_child(run, sum(took[item.nodeid] + SPARE_S for item in items)))


def _limit(seconds: float) -> None:
    """A test that takes much longer than it did without a break ends its process by a signal."""
    for timer, end, most in (
        (signal.ITIMER_PROF, signal.SIGPROF, MORE_TIME * seconds + SPARE_S),
        (signal.ITIMER_REAL, signal.SIGALRM, WALL_PER_CPU * (MORE_TIME * seconds + SPARE_S)),
    ):
        signal.signal(end, signal.SIG_DFL)
        signal.setitimer(timer, most)


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


def _functions_of(path: str) -> dict[tuple[str, int], list[types.FunctionType]]:
    """Every function object that was made of a module's source, by name and first line."""
    found: dict[tuple[str, int], list[types.FunctionType]] = {}
    for thing in gc.get_objects():
        if isinstance(thing, types.FunctionType) and thing.__code__.co_filename == path:
            found.setdefault((thing.__code__.co_qualname, thing.__code__.co_firstlineno), []).append(thing)
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
            _end_with_parent()
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


def _end_with_parent() -> None:
    """A run that is ended from outside leaves no child that waits for ever, with the run's locks."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


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
        _end_with_parent()
        os.close(reader)
        with os.fdopen(writer, "w", buffering=1) as out:

            def tell(verdict: Verdict) -> None:
                print(json.dumps([verdict.mutant.number, verdict.noticed, verdict.how]), file=out)

            inside = [mutant for mutant in mutants if mutant.function is not None]
            folders = Path(tempfile.mkdtemp(prefix="mutants-", dir=MEMORY if MEMORY.is_dir() else None))
            session = _Session(module, inside, tell, until=until, folders=folders)
            _be_quiet()
            code = pytest.main(["-q", f"--basetemp={folders}", *_OPTIONS, *module.tests], plugins=[session])
            shutil.rmtree(folders, ignore_errors=True)
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
