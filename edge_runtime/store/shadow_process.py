"""A model in a child process, called over two pipes: a crash, a hang or a leak ends the child alone.

The process is spawned, not forked. Its mapped memory is limited as in the self-test, it may write no byte to a disk, it
is preferred by the OOM killer, and has the lowest priority if the unit allows that. It ends by itself when the daemon
has ended: at the end of its input, or during an answer by its own alarm.

A question is a header (JSON) and the windows; an answer is a header and the arrays of the scores. For a recurrent
model the process keeps the state of each stream; the parent names streams with skipped windows.
"""

import contextlib
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from edge_runtime.bundle.measured import MIB
from edge_runtime.bundle.selftest import MAPPED_BY_RUNTIME
from edge_runtime.errors import EdgeError
from edge_runtime.system.child import module_command, start_child, step_back

MODEL_BYTES = 512 * MIB  # that a shadow may map beyond the runtime itself and eight times its file
LOAD_S = 120.0
ANSWER_S = 20.0
_MOST_STREAMS = 1024
_MOST_BYTES = 64 * MIB
_SIZES = struct.Struct("!II")


class ShadowError(EdgeError):
    """The process can no longer be used; the text is the reason."""


class ShadowProcess:
    """The parent's end. Every call blocks: never call it from the loop.

    Args:
        bundle: the file, already checked.
        digest: its expected digest.
        threads: of onnxruntime.

    Raises:
        ShadowError: it does not start.
    """

    def __init__(self, bundle: Path, digest: str, *, threads: int = 1) -> None:
        mapped = MAPPED_BY_RUNTIME + MODEL_BYTES + 8 * bundle.stat().st_size
        words = (str(bundle.absolute()), digest, str(threads), str(mapped))
        command = module_command("edge_runtime.store.shadow_process", *words)
        try:
            self._child = start_child(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise ShadowError(f"cannot be started: {error.strerror}") from error
        try:
            header, _ = self._read(LOAD_S)
        except ShadowError:
            self.end()
            raise
        if "error" in header:
            self.end()
            raise ShadowError(f"cannot be loaded: {header['error']}")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    def ask(
        self, shape: Sequence[int], windows: bytes, keys: Sequence[str | None], anew: Sequence[str | None] = ()
    ) -> tuple[dict[str, Any], bytes]:
        """The answer to float32 windows of this shape: a header with `took` and `arrays`, or with `error`.

        Args:
            shape: `[n, *shape of a window]`.
            windows: their bytes.
            keys: the stream of each window; used only by a recurrent model.
            anew: streams with skipped windows, which restart with the zero state.

        Raises:
            ShadowError: it crashed, hangs, or sends an invalid answer.
        """
        assert self._child.stdin is not None
        try:
            write_packet(self._child.stdin, {"shape": list(shape), "keys": list(keys), "anew": list(anew)}, windows)
        except OSError as error:
            raise ShadowError(self._post_mortem()) from error
        return self._read(ANSWER_S)

    def kill(self) -> None:
        """Kill it, and so end a waiting request. Any thread may call this."""
        self._child.kill()

    def end(self) -> None:
        """End it and release all resources; for the thread that sends the requests."""
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _read(self, patience_s: float) -> tuple[dict[str, Any], bytes]:
        assert self._child.stdout is not None
        deadline = time.monotonic() + patience_s
        sizes = self._read_exactly(_SIZES.size, deadline)
        header_bytes, body_bytes = _SIZES.unpack(sizes)
        if header_bytes + body_bytes > _MOST_BYTES:
            raise ShadowError("answers more than was asked for")
        header = self._read_exactly(header_bytes, deadline)
        return json.loads(header), self._read_exactly(body_bytes, deadline)

    def _read_exactly(self, count: int, deadline: float) -> bytes:
        assert self._child.stdout is not None
        found = bytearray()
        descriptor = self._child.stdout.fileno()
        while len(found) < count:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise ShadowError("hangs: no answer came in time")
            piece = os.read(descriptor, count - len(found))
            if not piece:
                raise ShadowError(self._post_mortem())
            found += piece
        return bytes(found)

    def _post_mortem(self) -> str:
        try:
            status = self._child.wait(5.0)
        except subprocess.TimeoutExpired:
            return "hangs: it does not listen any more"
        if status == -signal.SIGALRM:
            return "hangs: no answer came in time"
        if status == -signal.SIGKILL:
            return "was killed, most likely for want of memory"
        if status < 0:
            return f"crashed onnxruntime ({signal.Signals(-status).name})"
        return f"ended with exit code {status}"


def write_packet(pipe: IO[bytes], header: dict[str, Any], body: bytes) -> None:
    """One packet: two sizes, a header, a body."""
    text = json.dumps(header).encode()
    pipe.write(_SIZES.pack(len(text), len(body)) + text)
    pipe.write(body)
    pipe.flush()


# -- the child -----------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """The child: BUNDLE DIGEST THREADS MAPPED_BYTES; serve until the input ends."""
    bundle, digest, threads, mapped = (sys.argv[1:] if argv is None else argv)[:4]
    _step_back(int(mapped))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    signal.setitimer(signal.ITIMER_REAL, LOAD_S)
    try:
        server = _Server(Path(bundle), digest, int(threads))
    except Exception as error:  # noqa: BLE001 - process boundary: any error becomes the answer
        write_packet(sink, {"error": _words(error)}, b"")
        return 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    write_packet(sink, {}, b"")
    while len(sizes := source.read(_SIZES.size)) == _SIZES.size:
        header_bytes, body_bytes = _SIZES.unpack(sizes)
        header, body = json.loads(source.read(header_bytes)), source.read(body_bytes)
        signal.setitimer(signal.ITIMER_REAL, ANSWER_S + 1)  # ends this process even without the daemon
        answer = server.answer(header, body)
        signal.setitimer(signal.ITIMER_REAL, 0)
        write_packet(sink, *answer)
    return 0


def _step_back(mapped_bytes: int) -> None:
    step_back(mapped_bytes)  # if the service's unit prevents a lower priority, the parent's pauses bound the use
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


class _Server:
    """The model, and the states of its streams if it is recurrent."""

    def __init__(self, path: Path, digest: str, threads: int) -> None:
        # Imported late, so that the limits are set before the native libraries load.
        from edge_runtime.bundle.golden import check_golden  # noqa: PLC0415
        from edge_runtime.bundle.model import Model, ModelOptions  # noqa: PLC0415
        from edge_runtime.bundle.open import open_bundle  # noqa: PLC0415
        from edge_runtime.readings import Carry  # noqa: PLC0415

        bundle = open_bundle(path, digest=digest)
        self._model = Model(bundle, ModelOptions(threads=threads))
        check_golden(self._model)
        self._carries: OrderedDict[str | None, Carry] = OrderedDict()
        self._new_carry = Carry

    def answer(self, header: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        """The model's answer; a failure on a window is an answer too."""
        import numpy as np  # noqa: PLC0415 - as above

        from edge_runtime.bundle.model import ModelError  # noqa: PLC0415

        windows = np.frombuffer(body, np.float32).reshape(header["shape"])
        carries = self._streams(header) if self._model.manifest.state else None
        began = time.perf_counter()
        try:
            scores = self._model.run(windows, carries)
        except ModelError as error:
            return {"error": _words(error)}, b""
        took = time.perf_counter() - began
        arrays, parts = {}, []
        for name, found in scores.arrays().items():
            arrays[name] = [str(found.dtype), list(found.shape)]
            parts.append(np.ascontiguousarray(found).tobytes())
        return {"took": took, "arrays": arrays, "named": scores.is_named}, b"".join(parts)

    def _streams(self, header: dict[str, Any]) -> list[Any]:
        for key in header["anew"]:
            self._carries.pop(key, None)
        found = []
        for key in header["keys"]:
            carry = self._carries.setdefault(key, self._new_carry())
            self._carries.move_to_end(key)
            found.append(carry)
        while len(self._carries) > _MOST_STREAMS:
            self._carries.popitem(last=False)
        return found


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
