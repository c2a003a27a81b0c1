"""The process: start, signals, reload, stop, and the watchdog that real progress feeds.

One assembly runs at a time; signals only set flags, which the loop checks between two passes. An exception that ends a
thread ends the process, and systemd starts a new one.
"""

import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edge_runtime import __version__
from edge_runtime.config.load import differences, load_config
from edge_runtime.config.tables import Config
from edge_runtime.daemon.assembly import Assembly
from edge_runtime.daemon.claim import Claim
from edge_runtime.daemon.documents import status_document, status_line
from edge_runtime.daemon.plan import Plan, describe_plan, make_plan, plan_warnings
from edge_runtime.daemon.state import outbox_path
from edge_runtime.daemon.status_file import StatusFile
from edge_runtime.errors import EXIT_FAILED, EXIT_OK, ConfigError, EdgeError
from edge_runtime.system.background import run_beside
from edge_runtime.system.clock import Clock
from edge_runtime.system.log import fields, get_logger, setup
from edge_runtime.system.loop import Loop
from edge_runtime.system.memory import give_back
from edge_runtime.system.systemd import Notifier
from edge_runtime.system.watchdog import overdue

HOUSEKEEPING_S = 30.0
STATUS_DELAY_S = 0.5
GARBAGE_LOOK = 5000  # objects; more than a source remembers of its messages, which come and go and are no garbage
PLAN_HANG_S = 600.0  # to read and load every bundle on the slowest board

_log = get_logger("daemon")


class Daemon:
    """The process: signals, reload, watchdog, and one `Assembly` at a time.

    Args:
        path: the device file, read again at SIGHUP.
        notifier: sends states to systemd.
    """

    def __init__(self, path: Path, notifier: Notifier) -> None:
        self._path = path
        self._notifier = notifier
        self._claim: Claim | None = None
        self._loop = Loop()
        self._clock = Clock()
        self._started = time.monotonic()
        self._assembly: Assembly | None = None
        self._stop_signal = ""
        self._reload_wanted = False
        self._is_reloading = False
        self._next_plan: Plan | None = None
        self._announced = ""
        self._was_ready = False
        self._began = False
        self._status_due = False
        self._stuck: list[str] = []

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT.

        Raises:
            ConfigError: the file, or a bundle that it names, is wrong.
        """
        config = load_config(self._path)
        setup(config.device.log_level, config.device.log_format)
        plan = make_plan(config, starting=True)
        _log.info("starting", extra=fields(version=__version__, device=config.device.id, pid=os.getpid()))
        for line in describe_plan(plan):
            _log.info(line)
        self._claim_outbox(config)
        for line in plan_warnings(plan):
            _log.warning(line)
        self._watch_threads()
        self._status_file = StatusFile(config.device.id)
        self._assembly = self._assemble(plan)
        self._assembly.begin()
        self._catch_signals()
        self._notifier.ready(status_line(self._assembly))
        self._began = True
        gc.freeze()  # these objects stay: the collector need not scan them again and again
        gc.set_threshold(GARBAGE_LOOK)
        gc.enable()
        self._watch()
        self._housekeep()
        while not self._stop_signal:
            self._loop.run_once()
            if self._next_plan is not None:
                self._finish_reload(self._next_plan)
            elif self._reload_wanted and not self._is_reloading:
                self._begin_reload()
        _log.info("stopping", extra=fields(signal=self._stop_signal))
        self._notifier.stopping("stopping")
        clean = self._assembly.end(self._run_until)
        self._status_file.remove()
        _log.info("stopped", extra=fields(published=self._assembly.counters["outbox"].counts["published"]))
        return EXIT_OK if clean else EXIT_FAILED

    def _assemble(self, plan: Plan) -> Assembly:
        return Assembly(
            plan,
            self._loop,
            clock=self._clock,
            started=self._started,
            last_start=0 if self._assembly is None else self._assembly.start_number,
            on_change=self._say_status,
            reload=self._want_reload,
        )

    def _claim_outbox(self, config: Config) -> None:
        """Make sure that no other daemon uses the outbox; release the previous claim.

        Raises:
            ConfigError: another one does.
        """
        path, present = outbox_path(config), self._claim
        if present is None or present.outbox != path:
            try:
                self._claim = None if path is None else Claim(path, config.device.id)
            except ConfigError as error:
                raise ConfigError([f"{config.path}: {mistake}" for mistake in error.mistakes]) from error
            if present is not None:
                present.release()

    def _want_reload(self) -> None:
        self._reload_wanted = True

    def _watch_threads(self) -> None:
        """End the process when an exception ends a thread, since a restart is better than half a daemon."""

        def fail(args: threading.ExceptHookArgs) -> None:
            if args.exc_type is SystemExit:
                return  # a thread that ends on purpose
            name = args.thread.name if args.thread is not None else "?"
            why = args.exc_value

            def end() -> None:
                raise EdgeError(f"thread {name} has died: {type(why).__name__}: {why}") from why

            self._loop.call_soon_threadsafe(end)

        threading.excepthook = fail

    def _catch_signals(self) -> None:
        def stop(number: int, _frame: object) -> None:
            self._stop_signal = signal.Signals(number).name
            self._loop.wake()

        def reload(_number: int, _frame: object) -> None:
            self._reload_wanted = True
            self._loop.wake()

        self._loop.wake_on_signals()
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGHUP, reload)

    def _run_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Serve the loop until `condition` holds; False if it does not hold after `seconds`."""
        deadline = self._loop.time() + seconds
        while not condition():
            left = deadline - self._loop.time()
            if left <= 0:
                return False
            self._loop.run_once(min(left, 0.05))
        return True

    def _begin_reload(self) -> None:
        """SIGHUP: read the file and open the bundles again, in a thread, so that no port waits for it."""
        self._reload_wanted = False
        self._notifier.reloading()
        self._is_reloading = True
        assert self._assembly is not None
        running = self._assembly.running()
        run_beside(
            "reload",
            self._loop.call_soon_threadsafe,
            lambda: make_plan(load_config(self._path), running=running),  # no start: the store counts none
            done=self._planned,
            failed=self._not_planned,
            what="reading the configuration again",
            most_s=PLAN_HANG_S,
        )

    def _planned(self, plan: Plan) -> None:
        self._next_plan = plan  # run between two passes of the loop: a stop of everything serves the loop itself

    def _not_planned(self, error: Exception) -> None:
        if not isinstance(error, ConfigError):
            raise error
        for mistake in error.mistakes:
            _log.error(mistake)
        _log.error("the new configuration is wrong: running on with the old one")
        self._end_reload()

    def _finish_reload(self, plan: Plan) -> None:
        """Log the changes, and run the new plan."""
        self._next_plan = None
        old = self._assembly
        assert old is not None
        try:
            self._claim_outbox(plan.config)
        except ConfigError as error:
            self._not_planned(error)
            return
        changes = differences(old.config, plan.config) + _changed_bundles(old, plan)
        for change in changes:
            _log.info(f"reloaded: {change}")
        for line in plan_warnings(plan):
            _log.warning(line)
        if not changes:
            _log.info("reloaded: nothing changed")
        elif old.can_change_to(plan.config):
            setup(plan.config.device.log_level, plan.config.device.log_format)
            old.change(plan)
        else:
            setup(plan.config.device.log_level, plan.config.device.log_format)
            old.end(self._run_until)
            self._assembly = self._assemble(plan)
            self._status_file.remove()
            self._status_file = StatusFile(plan.config.device.id)
            self._assembly.begin()
        self._end_reload()

    def _end_reload(self) -> None:
        self._is_reloading = False
        give_back()  # what the models before had
        assert self._assembly is not None
        self._notifier.ready(status_line(self._assembly))

    def _watch(self) -> None:
        """Feed the watchdog from the loop, so that a loop that hangs starves it; so do a model and a disk that hang."""
        interval = self._notifier.watchdog_interval
        if interval is None:
            return
        stuck = overdue()
        if not stuck:
            self._notifier.watchdog()
        elif stuck != self._stuck:
            _log.error("the watchdog is not fed: something hangs", extra=fields(what=", ".join(stuck)))
        self._stuck = stuck
        self._loop.call_later(interval, self._watch)

    def _housekeep(self) -> None:
        if self._assembly is not None:
            self._assembly.housekeeping()
            self._say_status()
            self._write_status()
        self._loop.call_later(HOUSEKEEPING_S, self._housekeep)

    def _say_status(self) -> None:
        assembly = self._assembly
        if assembly is None:
            return
        state = assembly.upstream_connection.state
        if state != self._announced:
            self._announced = state
            calm = assembly.upstream_connection.connected or state.startswith("connecting")
            (_log.info if calm else _log.warning)(state)
        ready = assembly.is_ready()
        if ready and not self._was_ready:
            _log.info("online", extra=fields(device=assembly.config.device.id))
        self._was_ready = ready
        if self._began:
            self._notifier.status(status_line(assembly))
            if not self._status_due:
                self._status_due = True  # one file for all the changes of a moment
                self._loop.call_later(STATUS_DELAY_S, self._write_status)

    def _write_status(self) -> None:
        self._status_due = False
        if self._assembly is not None:
            self._status_file.write(status_document(self._assembly))


def _changed_bundles(old: Assembly, new: Plan) -> list[str]:
    """Models whose file holds another bundle than before, though its name is the same."""
    before = {pipeline.config.name: pipeline.model.bundle for pipeline in old.pipelines}
    found = []
    for model in new.models:
        bundle = before.get(model.config.name)
        if bundle is not None and bundle.digest != model.bundle.digest:
            versions = f"{bundle.manifest.version} to {model.bundle.manifest.version}"
            found.append(f'model "{model.config.name}" changed its bundle from version {versions}')
    return found
