"""The counters that every stage keeps, and the health document that is made of them.

A stage gets a `Counters` of its own and counts; nobody else writes to it. Reasons are words of the glossary.
"""

from collections import Counter


class Counters:
    """What happened at one stage since the start: plain counts, and counts by reason.

    Attributes:
        counts: what went well, such as `readings` or `published`.
        rejected: readings out of the contract, by reason.
        dropped: what was lost for want of room or time, by reason.
        errors: faults of the outside world, by reason, such as `disconnected` or `disk_full`.
    """

    __slots__ = ("counts", "dropped", "errors", "rejected")

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
