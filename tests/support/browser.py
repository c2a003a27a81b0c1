"""A headless Chromium, driven over its DevTools protocol with nothing but a socket."""

import base64
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.waiting import Deadline, patient

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


class Browser:
    """One page. What the console reported, and what was loaded, is kept."""

    def __init__(self, folder: Path, url: str, *, width: int = 1200, height: int = 900, scheme: str = "light") -> None:
        assert CHROMIUM is not None
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "chromium.log"
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [
                    CHROMIUM,
                    "--headless",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-dev-shm-usage",
                    "--remote-debugging-port=0",
                    f"--user-data-dir={folder / 'profile'}",
                    "about:blank",
                ],
                stdout=file,
                stderr=file,
            )
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        found = None
        deadline = Deadline(30.0)
        while found is None and not deadline.over:
            found = re.search(r"DevTools listening on ws://127\.0\.0\.1:(\d+)/", log.read_text(errors="replace"))
            time.sleep(0.05)
        assert found is not None, log.read_text(errors="replace")
        with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/json", timeout=patient(20)) as answer:
            target = next(each for each in json.load(answer) if each["type"] == "page")
        self._connect(int(found[1]), target["webSocketDebuggerUrl"].partition(found[1])[2])
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.do(f"{domain}.enable")
        self.do(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.do("Page.navigate", url=url)

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command, and its result."""
        number = next(self._numbers)
        self._send(json.dumps({"id": number, "method": method, "params": parameters}).encode())
        while (message := json.loads(self._receive())).get("id") != number:
            self.events.append(message)
        assert "error" not in message, message
        return dict(message["result"])

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        return self.do("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def errors(self) -> list[Any]:
        """What the page's script has thrown or complained about."""
        self.evaluate("0")
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [event["params"] for event in self.events if event.get("method") in kinds]

    def hosts(self) -> set[str]:
        """Where the page has loaded from."""
        requests = [event["params"]["request"]["url"] for event in self.events if "request" in event.get("params", {})]
        return {url.split("/")[2] for url in requests if url.startswith("http")}

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        data = self.do("Page.captureScreenshot", captureBeyondViewport=False)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        """End it."""
        self._socket.close()
        self._process.kill()
        self._process.wait(patient(10))

    def _connect(self, port: int, path: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=patient(30))
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._file = self._socket.makefile("rb")
        assert b"101" in self._file.readline()
        while self._file.readline().strip():
            pass

    def _send(self, data: bytes) -> None:
        """One masked text frame (RFC 6455, 5.2); the mask is zero, which leaves the data as it is."""
        size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
        self._socket.sendall(b"\x81" + size + bytes(4) + data)

    def _receive(self) -> bytes:
        """One message; its frames are put together."""
        message = b""
        while True:
            first, second = self._file.read(2)
            size = second & 0x7F
            if size > 125:
                size = int.from_bytes(self._file.read(2 if size == 126 else 8), "big")
            message += self._file.read(size)
            if first & 0x80:
                return message
