"""Detects another client with our client id: the broker then closes one connection when the other one opens. Pure.

MQTT 5 has a reason code for it. A 3.1.1 broker closes without a reason: links closed soon after they were accepted,
more than once in a row, count as a sign. Weak point: a broker that closes for another cause looks the same, so the hint
names only a probable cause.
"""

CUTS = 2  # links in a row that the broker closed soon
SESSION_TAKEN_OVER = 0x8E  # MQTT 5 section 3.14.2.1


class RivalWatch:
    """Judges from the ends of a connection's links whether its client id is used twice.

    Args:
        client_id: that of the connection.
    """

    def __init__(self, client_id: str) -> None:
        self._client_id = client_id
        self._cut_short = 0
        self._was_taken_over = False

    def parted(self, reason: int) -> None:
        """Note the broker's reason for the coming end."""
        self._was_taken_over = reason == SESSION_TAKEN_OVER

    def hint(self, *, cut_soon: bool) -> str:
        """The addition to the message about an ended link; empty without a sign of a rival.

        Args:
            cut_soon: the broker closed the link soon after it had accepted it.
        """
        taken_over, self._was_taken_over = self._was_taken_over, False
        self._cut_short = self._cut_short + 1 if cut_soon else 0
        if not taken_over and self._cut_short < CUTS:
            return ""
        return (
            f": another client of this broker probably uses the client id {self._client_id!r} too, "
            "give each a client_id of its own"
        )
