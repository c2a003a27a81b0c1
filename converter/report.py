"""What `build` shows: the table of source, float and quantised forms on the same rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from converter.evaluate import Judgement


@dataclass(frozen=True, slots=True)
class Row:
    """One form of the model in the table."""

    name: str
    size: int | None
    judgement: Judgement
    kept: bool = False
    note: str = ""


def table(rows: Sequence[Row], metric: str) -> str:
    """The forms of a model, a line each."""
    head = ("", "model", "bytes", metric, "drop", "differing labels", "largest score difference", "")
    source = rows[0].judgement.metric
    body = [
        (
            "*" if row.kept else "",
            row.name,
            "-" if row.size is None else f"{row.size:,}",
            f"{row.judgement.metric:.4f}",
            f"{source - row.judgement.metric:+.4f}" if index else "-",
            str(row.judgement.differing) if index else "-",
            f"{row.judgement.difference:.2e}" if index else "-",
            row.note,
        )
        for index, row in enumerate(rows)
    ]
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    left = {0, 1, 7}
    lines = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, *body)
    ]
    return "\n".join((lines[0], "-" * max(len(line) for line in lines), *lines[1:]))
