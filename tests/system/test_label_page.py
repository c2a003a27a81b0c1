"""The label page in a real browser: windows drawn, a key a label, undo, progress; decisions that stay."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_runtime.capture.entries import Labelled
from edge_runtime.recordings.folder import About, RecordedChannel, write_about
from tests.support.browser import CHROMIUM, Browser
from tests.support.captured import FACTS, captured, numbered, write_captures
from tests.support.installed import ROOT
from tests.support.waiting import patient, wait_until

pytestmark = pytest.mark.system
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt install chromium")

MakePage = Callable[..., "Page"]


class Page:
    """`edge-convert label` at work."""

    def __init__(self, *words: str | Path) -> None:
        command = [sys.executable, "-m", "converter.cli", "label", "--no-browser", *map(str, words)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        found = re.search(r"(\d+) to label: (http://127\.0\.0\.1:\d+/\S+/)", first)
        assert found is not None, first
        self.count, self.url = int(found[1]), found[2]

    def ask(self, path: str, body: object = None, **headers: str) -> tuple[int, dict[str, object]]:
        """A request past the page: status and document."""
        host, _, rest = self.url.removeprefix("http://").partition("/")
        connection = http.client.HTTPConnection(host, timeout=patient(20))
        try:
            text = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", f"/{rest}{path}", text, headers)
            answer = connection.getresponse()
            return answer.status, json.load(answer)
        finally:
            connection.close()

    def end(self) -> str:
        """Ctrl-C, and what was printed then."""
        self.process.send_signal(signal.SIGINT)
        out = self.process.communicate(timeout=patient(30))[0]
        assert self.process.returncode == 0
        return out


@pytest.fixture
def make_page() -> Iterator[MakePage]:
    """Pages that end with the test."""
    made: list[Page] = []

    def make(*words: str | Path) -> Page:
        made.append(Page(*words))
        return made[-1]

    yield make
    for page in made:
        page.process.kill()
        page.process.communicate(timeout=patient(30))


def _data_set(folder: Path, below: Path) -> dict[str, NDArray[Any]]:
    """What `edge-convert dataset` makes of the folder."""
    command = [sys.executable, "-m", "converter.cli", "dataset", str(folder), "-o", str(below / "data.npz")]
    subprocess.run(command, check=True, cwd=ROOT, timeout=60)
    with np.load(below / "data.npz") as found:
        return {name: found[name] for name in found.files}


def _labels(folder: Path) -> dict[str, str | None]:
    decisions = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
    return {each["id"].rpartition("/")[2]: each.get("label") for each in decisions}


def _press(browser: Browser, *keys: str) -> None:
    for key in keys:
        done = browser.evaluate("state.done.length + ':' + state.place")
        for kind in ("keyDown", "keyUp"):
            browser.do("Input.dispatchKeyEvent", type=kind, key=key, text=key if len(key) == 1 else "")
        wait_until(lambda done=done: browser.evaluate("state.done.length + ':' + state.place") != done, key)  # type: ignore[misc]
        wait_until(lambda: browser.evaluate("!state.busy && values.dataset.place == state.place"), "the values")


@needs_browser
@pytest.mark.parametrize(("width", "height", "scheme"), [(1100, 800, "light"), (400, 900, "dark")])
def test_windows_are_labelled_by_keys_in_a_browser(
    make_page: MakePage, tmp_path: Path, width: int, height: int, scheme: str
) -> None:
    """Drawn, decided, taken back and skipped; after a restart the page goes on where it was. No script error."""
    folder = write_captures(tmp_path / "captures", numbered(6, key="<b>cellar</b>"))
    page = make_page(folder)
    browser = Browser(tmp_path / "browser", page.url, width=width, height=height, scheme=scheme)
    try:
        wait_until(
            lambda: browser.evaluate("document.querySelectorAll('polyline').length") == 2, lambda: str(browser.errors())
        )
        text = browser.evaluate("document.body.innerText")
        assert "0 of 6 labelled, 0 skipped" in text
        assert "<b>cellar</b>" in text
        assert "temperature (C)" in text
        _press(browser, "1", "2", "2", "s", "u", "1")
        assert _labels(folder) == {"0": "low", "1": "high", "2": "high", "3": "low"}
        assert browser.evaluate("progress.textContent") == "4 of 6 labelled, 0 skipped"
        assert browser.evaluate("bar.value") == 4
        _press(browser, "ArrowLeft", "2")
        assert _labels(folder)["3"] == "high"
        _press(browser, "s", "u", "u")
        assert _labels(folder) == {"0": "low", "1": "high", "2": "high", "3": "low", "4": None}
        if pictures := os.environ.get("EDGE_SCREENSHOTS"):
            browser.screenshot(Path(pictures) / f"label-page-{scheme}.png")
        assert browser.errors() == []
        assert browser.hosts() == {page.url.split("/")[2]}
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    finally:
        browser.close()
    assert page.end().strip().endswith("labels.jsonl: 4 of 6 labelled, 0 skipped")
    again = make_page(folder)
    states = again.ask("items")[1]["items"]
    assert isinstance(states, list)
    assert [each["label"] for each in states] == ["low", "high", "high", "low", None, None]


@needs_browser
def test_another_label_and_a_frame(make_page: MakePage, tmp_path: Path) -> None:
    """A label that the bundle does not have is added on the page; what has no channels is drawn as a picture."""
    facts = msgspec.structs.replace(FACTS, channels=(), shape=(2, 2))
    folder = write_captures(tmp_path / "captures", numbered(2), facts)
    page = make_page(folder)
    browser = Browser(tmp_path / "browser", page.url)
    try:
        wait_until(
            lambda: browser.evaluate("document.querySelectorAll('canvas').length") == 1, lambda: str(browser.errors())
        )
        browser.evaluate("document.getElementById('name').value = 'new'; more.requestSubmit()")
        _press(browser, "3")
        assert _labels(folder) == {"0": "new"}
        assert browser.errors() == []
    finally:
        browser.close()


@needs_browser
def test_several_labels_are_switched_by_keys_and_stored_by_enter(make_page: MakePage, tmp_path: Path) -> None:
    """Each key switches a label; none at all is an answer too. A data set has 1 and 0 for each."""
    facts = msgspec.structs.replace(FACTS, task="multilabel", labels=("hot", "wet", "loud"))
    folder = write_captures(tmp_path / "captures", numbered(4), facts)
    page = make_page(folder)
    browser = Browser(tmp_path / "browser", page.url)
    try:
        wait_until(lambda: browser.evaluate("values.dataset.place == 0"), lambda: str(browser.errors()))
        for key in ("1", "3", "1"):
            browser.do("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
        pressed = "[...document.querySelectorAll('#labels [aria-pressed=true]')].map((each) => each.textContent)"
        assert browser.evaluate(pressed) == ["3loud"]
        _press(browser, "Enter", "Enter")
        _press(browser, "Enter", "u")
        browser.do("Input.dispatchKeyEvent", type="keyDown", key="2", text="2")
        _press(browser, "Enter")
        assert browser.errors() == []
        assert browser.evaluate("progress.textContent") == "3 of 4 labelled, 0 skipped"
    finally:
        browser.close()
    page.end()
    assert _data_set(folder, tmp_path)["y"].tolist() == [[0, 0, 1], [0, 0, 0], [0, 1, 0]]


@needs_browser
def test_the_numbers_of_a_regression_are_typed(make_page: MakePage, tmp_path: Path) -> None:
    """One field for each target; what is no number is named and not stored; undo takes the last one back."""
    facts = msgspec.structs.replace(FACTS, task="regression", labels=(), targets=("power", "load"))
    folder = write_captures(tmp_path / "captures", numbered(3), facts)
    page = make_page(folder)
    browser = Browser(tmp_path / "browser", page.url)
    fill = "document.querySelectorAll('#labels input').forEach((each, place) => { each.value = %s[place]; })"
    enter = "document.querySelector('#labels input').dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter' }))"
    try:
        wait_until(lambda: browser.evaluate("values.dataset.place == 0"), lambda: str(browser.errors()))
        browser.evaluate(fill % "['1,5', 'much']")
        browser.evaluate(enter)
        assert 'expected a number for load, found "much"' in browser.evaluate("element('trouble').textContent")
        browser.evaluate(fill % "['1,5', '-2']")
        browser.evaluate(enter)
        wait_until(lambda: browser.evaluate("values.dataset.place == 1"), "the next window")
        browser.evaluate(fill % "['7', '8']")
        _press(browser, "ArrowRight", "u")
        assert browser.evaluate("state.place") == 0
        browser.evaluate(fill % "['2', '3']")
        browser.evaluate(enter)
        wait_until(lambda: browser.evaluate("values.dataset.place == 1"), "the next window")
        assert browser.errors() == []
    finally:
        browser.close()
    page.end()
    assert _data_set(folder, tmp_path)["y"].tolist() == [[2.0, 3.0]]


@needs_browser
def test_a_long_window_is_drawn(make_page: MakePage, tmp_path: Path) -> None:
    """300,000 readings: a few thousand points that keep the extremes and the gap."""
    values = np.sin(np.arange(300_000, dtype=np.float32) / 1000)
    values[150_000], values[200_000:250_000] = 9.0, np.nan
    facts = msgspec.structs.replace(FACTS, channels=FACTS.channels[:1], shape=(len(values), 1))
    folder = write_captures(tmp_path / "captures", [captured(values.reshape(-1, 1), "room/comfort/-/1/1")], facts)
    page = make_page(folder)
    browser = Browser(tmp_path / "browser", page.url)
    try:
        wait_until(lambda: browser.evaluate("values.dataset.place == 0"), lambda: str(browser.errors()))
        lines = browser.evaluate("[...document.querySelectorAll('polyline')].map((each) => each.points.numberOfItems)")
        assert len(lines) == 2, "the gap divides the line"
        assert 1000 < sum(lines) <= 4000
        assert browser.evaluate("document.querySelector('.axis').textContent") == "9-1"
        assert browser.errors() == []
    finally:
        browser.close()


def test_two_commands_at_one_folder_keep_the_decisions_of_both(make_page: MakePage, tmp_path: Path) -> None:
    """Each reads what the other has added before it writes, and shows it when its page is loaded again."""
    folder = write_captures(tmp_path / "captures", numbered(4))
    pages = make_page(folder), make_page(folder)
    for place in range(4):
        body = {"id": f"room/comfort/-/1/{place}", "label": "low" if place % 2 else "new"}
        assert pages[place % 2].ask("decisions", body)[0] == 200
    assert _labels(folder) == {"0": "new", "1": "low", "2": "new", "3": "low"}
    for page in pages:
        found = page.ask("items")[1]
        assert found["labels"] == ["low", "high", "new"]
        assert [each["label"] for each in found["items"]] == ["new", "low", "new", "low"]  # type: ignore[attr-defined]


def test_undo_brings_back_the_truth_that_the_device_received(make_page: MakePage, tmp_path: Path) -> None:
    """A decision replaces it; without the decision it counts again, on the page as in a data set."""
    identity = "room/comfort/-/1/0"
    answered = Labelled(id=identity, model="comfort", label="high", time=1.0)
    folder = write_captures(tmp_path / "captures", [*numbered(1), answered])
    page = make_page(folder)
    assert page.ask("decisions", {"id": identity, "label": "low"})[1]["label"] == "low"
    undone = {"label": "high", "values": {}, "skipped": False, "decided": False}
    assert page.ask("decisions", {"id": identity})[1] == undone
    assert page.end().strip().endswith("1 of 1 labelled, 0 skipped")
    assert _data_set(folder, tmp_path)["y"].tolist() == ["high"]


def test_labels_of_every_version_are_offered(make_page: MakePage, tmp_path: Path) -> None:
    """A folder with captures of two versions of a model, of which the second has another label."""
    folder = write_captures(tmp_path / "captures", numbered(1))
    write_captures(folder / "other", numbered(1, start=1), version="2.0.0", digest="cd" * 32, labels=("low", "huge"))
    assert make_page(folder).ask("items")[1]["labels"] == ["low", "high", "huge"]


def test_a_folder_that_is_read_only_is_one_sentence_on_the_page(make_page: MakePage, tmp_path: Path) -> None:
    """The decision does not count, and the page shows why."""
    folder = write_captures(tmp_path / "captures", numbered(2))
    (folder / "labels.jsonl").mkdir()
    command = [sys.executable, "-m", "converter.cli", "label", "--no-browser", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "labels.jsonl: cannot be read" in done.stderr
    (folder / "labels.jsonl").rmdir()
    page = make_page(folder)
    (folder / "labels.jsonl").mkdir()
    status, found = page.ask("decisions", {"id": "room/comfort/-/1/0", "label": "low"})
    assert status == 500
    assert "labels.jsonl: cannot be written" in str(found["error"])


def test_a_recording_is_labelled_later(make_page: MakePage, tmp_path: Path) -> None:
    """In segments; a data set has the labels of their readings."""
    folder = tmp_path / "recording"
    folder.mkdir()
    about = About(device="d", source="s", channels=[RecordedChannel("a")], rate_hz=4.0, sessions=[1])
    write_about(folder, about)
    lines = "".join(f"{100 + number},{number}\n" for number in range(10))
    (folder / "part-000001.csv").write_text(f"time,a\n{lines}")
    page = make_page(folder, "--labels", "walk,run")
    assert page.count == 3
    assert page.ask("items/2")[1] == {"rows": [[8.0], [9.0]]}
    items = page.ask("items")[1]["items"]
    assert isinstance(items, list)
    for item, label in zip(items[1:], ("walk", "run"), strict=True):
        assert page.ask("decisions", {"id": item["id"], "label": label})[0] == 200
    page.end()
    command = [sys.executable, "-m", "converter.cli", "dataset", str(folder), "-o", str(tmp_path / "data.npz")]
    subprocess.run(command, check=True, cwd=ROOT, timeout=patient(60))
    with np.load(tmp_path / "data.npz") as found:
        assert found["x"][:, 0].tolist() == list(range(4, 10))
        assert found["y"].tolist() == ["walk"] * 4 + ["run"] * 2


def test_others_are_kept_out_and_nonsense_is_refused(make_page: MakePage, tmp_path: Path) -> None:
    """Without the path of this run, for another host or from another site; decisions that are none."""
    folder = write_captures(tmp_path / "captures", numbered(3))
    page = make_page(folder)
    assert page.ask("../wrong/items")[0] == 404
    assert page.ask("items", Host="evil.example")[0] == 403
    good = {"id": "room/comfort/-/1/1", "label": "low"}
    assert page.ask("decisions", good, Origin="https://evil.example")[0] == 403
    assert page.ask("items/3")[0] == page.ask("items/x")[0] == page.ask("other")[0] == 404
    long, more = good | {"label": "x" * 201}, good | {"more": "1"}
    bodies: list[object] = [{}, [], {"id": "other"}, good | {"label": "\n"}, long, more]
    for body in bodies:
        assert page.ask("decisions", body)[0] == 400, body
    assert not (folder / "labels.jsonl").exists()
    assert page.ask("decisions", good)[1] == {"label": "low", "values": {}, "skipped": False, "decided": True}


@pytest.mark.parametrize("kind", ["none", "empty", "file"])
def test_a_folder_that_is_none_is_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    """What was expected and found."""
    folder = tmp_path / "folder"
    if kind == "empty":
        folder.mkdir()
    elif kind == "file":
        folder.write_text("x")
    command = [sys.executable, "-m", "converter.cli", "label", "--no-browser", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=patient(60))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "expected" in done.stderr
