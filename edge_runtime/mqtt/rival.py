"""Detects another client with our client id: the broker then ends each connection for the other one. Pure.

MQTT 5 has a reason for it. A broker of 3.1.1 closes without a word: links that it closes soon after it had accepted
them, more than once in a row, are taken for a sign. Weak point: a broker that closes for another cause looks the same,
so the hint names a probable cause and no fact.
"""

CUTS = 2  # links in a row that the broker closed soon
SESSION_TAKEN_OVER = 0x8E  # MQTT 5 section 3.14.2.1


class RivalWatch:
    """What the ends of a connection's links say about its client id.

    Args:
        client_id: that of the connection.
    """

    def __init__(self, client_id: str) -> None:
        self._client_id = client_id
        self._cut_short = 0
        self._was_taken_over = False

    def parted(self, reason: int) -> None:
        """The broker gave a reason for the end that is about to come."""
        self._was_taken_over = reason == SESSION_TAKEN_OVER

    def hint(self, *, cut_soon: bool) -> str:
        """What to add to the line about a link that ended; empty where nothing points to a rival.

        Args:
            cut_soon: the broker closed it, soon after it had accepted it.
        """
        taken_over, self._was_taken_over = self._was_taken_over, False
        self._cut_short = self._cut_short + 1 if cut_soon else 0
        if not taken_over and self._cut_short < CUTS:
            return ""
        return (
            f": another client of this broker probably uses the client id {self._client_id!r} too, "
            "give each a client_id of its own"
        )
