"""When the end of a link is a sign of another client with the same client id."""

from edge_runtime.mqtt.rival import CUTS, SESSION_TAKEN_OVER, RivalWatch

HINT = ": another client of this broker probably uses the client id 'press' too, give each a client_id of its own"


def test_a_broker_of_mqtt_5_names_the_reason() -> None:
    """Once: the next end has a reason of its own, and another reason is no sign."""
    assert SESSION_TAKEN_OVER == 142
    watch = RivalWatch("press")
    assert watch.hint(cut_soon=False) == ""
    watch.parted(142)
    assert watch.hint(cut_soon=False) == HINT
    assert watch.hint(cut_soon=False) == ""
    watch.parted(142)
    watch.parted(139)
    assert watch.hint(cut_soon=False) == ""


def test_two_links_in_a_row_that_are_closed_soon_are_a_sign() -> None:
    """One that lasted longer between them starts the count again."""
    assert CUTS == 2
    watch = RivalWatch("press")
    found = [watch.hint(cut_soon=soon) for soon in (True, False, True, True, True, False, True)]
    assert found == ["", "", "", HINT, HINT, "", ""]
