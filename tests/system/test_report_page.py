"""The converter's report in a real browser; with EDGE_SCREENSHOTS=FOLDER it leaves its pictures there."""

import os
from pathlib import Path

import numpy as np
import pytest

from converter.cli import main
from tests.support.browser import CHROMIUM, Browser
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt install chromium"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a network over three states of a pump."""
    import skops.io  # noqa: PLC0415 - of the workstation
    from sklearn.neural_network import MLPClassifier  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(4)
    wear = rng.integers(0, 3, 900)
    x = (rng.normal(size=(900, 8)) + wear[:, None] * np.linspace(-1, 1, 8)).astype(np.float32)
    y = np.array(["ok", "worn", "loose"])[wear]
    skops.io.dump(MLPClassifier((24, 24), max_iter=60, random_state=0).fit(x[:600], y[:600]), folder / "pump.skops")
    np.savez(folder / "data.npz", x=x[600:], y=y[600:])
    (folder / "spec.toml").write_text('name = "pump"\nversion = "1.0.0"\ntask = "classification"\n')
    report = folder / "report.html"
    arguments = [str(folder / "pump.skops"), "--data", str(folder / "data.npz"), "-o", str(folder / "pump.onnx")]
    spec = ["--spec", str(folder / "spec.toml")]
    assert main(["build", *arguments, *spec, "--report", str(report), "--max-drop", "0.05"]) == 0
    return report


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("width", "height", "scheme"),
    [(1300, 1500, "light"), (1300, 1500, "dark"), (1100, 1500, "light"), (1000, 1500, "light"), (400, 3000, "light")],
)
def test_the_report_is_readable_on_every_screen(
    page: Path, tmp_path: Path, width: int, height: int, scheme: str
) -> None:
    """The verdict is seen first, and every column of every table is on the screen, at 1,000 px and on a phone."""
    browser = Browser(tmp_path / "browser", page.as_uri(), width=width, height=height, scheme=scheme)
    try:
        wait_until(lambda: browser.evaluate("document.querySelectorAll('table').length") >= 2, "the tables")
        top = browser.evaluate("document.querySelector('.verdict').getBoundingClientRect().bottom")
        assert top < 400
        assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        hidden = "[...document.querySelectorAll('.wide')].filter(box => box.scrollWidth > box.clientWidth).length"
        assert browser.evaluate(hidden) == 0
        if (pictures := os.environ.get("EDGE_SCREENSHOTS")) and width in {1300, 400}:
            name = "phone" if width < 600 else scheme
            browser.screenshot(Path(pictures) / f"converter-report-{name}.png")
        assert browser.errors() == []
    finally:
        browser.close()
