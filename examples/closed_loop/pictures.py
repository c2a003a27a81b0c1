"""The pictures of the closed loop, as SVG: accuracy over time, and windows that a device kept."""

import html
from collections.abc import Sequence

from converter.captured import MergedWindow

BLOCK = 12  # windows that one point of the line is made of
WIDE, TALL = 860, 300
LEFT, RIGHT, TOP, BOTTOM = 60, 840, 40, 240
NAMES = {"usual": "as trained", "changed": "the sensor is mounted anew", "later": "version 1.2.0"}
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#5b6570}.strong{fill:#1c2126;font-weight:600}"
    "line,polyline{fill:none;stroke-width:1}.grid{stroke:#d8dde2}.line{stroke:#1f5fa8;stroke-width:2}"
    ".alarm{stroke:#a8201a;stroke-dasharray:4 3}.bad{fill:#a8201a}rect{fill:#fff}.shade{fill:#f6f1ea}"
)

Part = tuple[str, Sequence[tuple[float, str, bool]], str]


def timeline(parts: Sequence[Part]) -> str:
    """The accuracy of blocks of windows, and where drift was an alarm at the end of a part."""
    total = sum(len(windows) for _, windows, _ in parts)
    marks: list[str] = []
    for share in (0.0, 0.5, 1.0):
        y = _up(share)
        marks.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(_text(LEFT - 8, y + 4, f"{share:.1f}", anchor="end"))
    points: list[str] = []
    at = 0
    for number, (name, windows, drift) in enumerate(parts):
        left, right = _across(at, total), _across(at + len(windows), total)
        if number % 2:
            marks.insert(
                0, f'<rect class="shade" x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" height="{BOTTOM - TOP}"/>'
            )
        marks.append(_text((left + right) / 2, TOP - 12, NAMES.get(name, name), anchor="middle", kind="strong"))
        for first in range(0, len(windows), BLOCK):
            block = windows[first : first + BLOCK]
            accuracy = sum(right_ for _, _, right_ in block) / len(block)
            points.append(f"{_across(at + first + len(block) / 2, total):.1f},{_up(accuracy):.1f}")
        if drift == "alarm":
            marks.append(
                f'<line class="alarm" x1="{left + 6:.1f}" x2="{right - 6:.1f}" y1="{BOTTOM + 18}" y2="{BOTTOM + 18}"/>'
            )
            marks.append(_text((left + right) / 2, BOTTOM + 36, "drift: alarm", anchor="middle", kind="bad"))
        at += len(windows)
    marks.append(f'<polyline class="line" points="{" ".join(points)}"/>')
    marks.append(_text(LEFT, TALL - 8, f"accuracy of {BLOCK} windows, one after the other"))
    return _svg(WIDE, TALL, marks, "accuracy over time")


def captured_windows(windows: Sequence[MergedWindow], channels: Sequence[str]) -> str:
    """Some windows as the label page draws them, one channel over another, with the prediction and the truth."""
    wide, tall = 200, 46
    marks: list[str] = []
    for column, window in enumerate(windows):
        x0 = 70 + column * (wide + 14)
        scores = max(window.entry.answer["scores"])
        marks.append(_text(x0, 16, f"predicted {window.entry.label} ({scores:.2f})", kind="strong"))
        marks.append(_text(x0, 33, f"was {window.label}", kind="" if window.label == window.entry.label else "bad"))
        for row, _ in enumerate(channels):
            numbers = window.numbers[:, row].tolist()
            low, high = min(numbers), max(numbers)
            y0 = 44 + row * (tall + 8)
            across, up = wide / (len(numbers) - 1), tall / (high - low or 1)
            points = " ".join(
                f"{x0 + place * across:.1f},{y0 + tall - (value - low) * up:.1f}" for place, value in enumerate(numbers)
            )
            marks.append(f'<polyline class="line" points="{points}"/>')
    marks += [_text(2, 44 + row * (tall + 8) + 28, name) for row, name in enumerate(channels)]
    return _svg(70 + 4 * (wide + 14), 44 + len(channels) * (tall + 8) + 6, marks, "windows that the device kept")


def _across(place: float, total: int) -> float:
    return LEFT + (RIGHT - LEFT) * place / total


def _up(share: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * share


def _text(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{html.escape(text)}</text>'


def _svg(wide: int, tall: int, marks: Sequence[str], title: str) -> str:
    body = "\n".join(marks)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" role="img" aria-label="{title}">\n'
        f'<style>{STYLE}</style>\n<rect width="{wide}" height="{tall}"/>\n{body}\n</svg>\n'
    )
