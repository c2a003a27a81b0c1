"""A line for each answer, as JSON on stdout (`access_log = "json"`), where the log itself goes to stderr.

Guarantee: text of clients is cut at `MOST_TEXT` characters and escaped by JSON, so that no request can forge a line.
Weak point: a blocked stdout blocks the server's thread, as with any log; a closed one loses lines.
"""

import sys
import time
from typing import TextIO

import msgspec

from edge_runtime.http.responses import Request, Response
from edge_runtime.system.log import get_logger

MOST_TEXT = 200

_log = get_logger("http")
_encode = msgspec.json.Encoder().encode


class AccessLog:
    """Writes the lines.

    Attributes:
        lost: lines that could not be written.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self.lost = 0

    def __call__(self, client: str, request: Request | None, answer: Response, size: int) -> None:
        """An answer to a client; `request` is None where what came was none."""
        now = time.time()
        line = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03d}Z",
            "client": client,
            "status": answer.status,
            "bytes": size,
        }
        if request is not None:
            headers = request.headers
            line |= {
                "method": request.method,
                "path": request.path[:MOST_TEXT],
                "route": request.route,
                "ms": round((time.perf_counter_ns() - request.began) / 1e6, 3),
            }
            if request.model is not None:
                line["model"] = request.model
            for name in ("user-agent", "x-forwarded-for", "x-request-id"):
                if name in headers:
                    line[name.replace("-", "_")] = headers[name][:MOST_TEXT]
        try:
            self._stream.write(_encode(line).decode() + "\n")
            self._stream.flush()
        except (OSError, ValueError) as error:
            if not self.lost:
                _log.warning("the access log cannot be written: %s", error)
            self.lost += 1
