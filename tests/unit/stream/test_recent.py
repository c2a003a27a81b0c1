"""The memory of what came last, against a plain list of everything that was put."""

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.stream.recent import Recent


@given(size=st.integers(1, 8), names=st.lists(st.integers(0, 20), max_size=100))
def test_the_last_things_are_known_and_no_more_than_twice_as_many_are_kept(size: int, names: list[int]) -> None:
    """Under each name what was put last, and the oldest first."""
    recent: Recent[int, int] = Recent(size)
    for number, name in enumerate(names):
        recent.put(name, number)
        latest = {name: number for number, name in enumerate(names[: number + 1])}
        last = sorted(latest, key=latest.__getitem__)[-size:]
        assert {name: recent.get(name) for name in last} == {name: latest[name] for name in last}
        found = dict(recent.items())
        assert found.items() <= latest.items()
        assert len(found) == len(list(recent.items())) <= len(recent) <= 2 * size
        assert list(recent.values()) == [value for _, value in recent.items()]
        assert recent.get(99) is None


def test_a_generation_is_forgotten_when_the_next_one_is_whole() -> None:
    """With a size of 3: the first three are there until six have come."""
    recent: Recent[str, int] = Recent(3)
    for number, name in enumerate("abcde"):
        recent.put(name, number)
    assert [name for name, _ in recent.items()] == ["a", "b", "c", "d", "e"]
    recent.put("a", 9)
    assert list(recent.items()) == [("d", 3), ("e", 4), ("a", 9)]
    assert len(recent) == 3


def test_what_is_put_again_is_known_once_under_its_last_value() -> None:
    """Although its first one has not been forgotten."""
    recent: Recent[str, int] = Recent(2)
    for number, name in enumerate("aba"):
        recent.put(name, number)
    assert recent.get("a") == 2
    assert list(recent.items()) == [("b", 1), ("a", 2)]


def test_what_is_needed_is_kept_as_long_as_it_is() -> None:
    """It takes no place from what comes later: a generation is so much longer."""
    needed = {"a"}
    recent: Recent[str, str] = Recent(2, lambda value: value in needed)
    for name in "abcd":
        recent.put(name, name)
    assert list(dict(recent.items())) == ["c", "d", "a"]
    assert (recent.limit, len(recent.young)) == (3, 1)
    for name in "ef":
        recent.put(name, name)
    assert recent.get("a") == "a"
    needed.clear()
    for name in "ghij":
        recent.put(name, name)
    assert recent.get("a") is None
    assert recent.limit == 2


def test_what_is_needed_and_put_again_is_known_under_its_last_value() -> None:
    """However many generations have ended since: what is kept is never older than what is known."""
    recent: Recent[str, int] = Recent(2, lambda _: True)
    for number, name in enumerate("abacdefgh"):
        recent.put(name, number)
        assert recent.get("a") == (0 if number < 2 else 2)


def test_things_are_looked_at_only_where_that_is_asked_for_and_something_can_look() -> None:
    """By default each is asked about once, when it would be forgotten."""
    seen: list[str] = []

    def look(value: str) -> bool:
        seen.append(value)
        return False

    recent: Recent[str, str] = Recent(2, look)
    nothing_looks: Recent[str, str] = Recent(2, looks=True)
    for name in "abcd":
        recent.put(name, name)
        nothing_looks.put(name, name)
    assert seen == ["a", "b"]
    assert list(nothing_looks.values()) == ["c", "d"]


def test_each_thing_of_a_generation_that_ends_is_looked_at_where_that_is_asked_for() -> None:
    """So that it may drop parts of it."""
    for looks in (False, True):
        seen: list[str] = []

        def look(value: str, seen: list[str] = seen) -> bool:
            seen.append(value)
            return False

        recent: Recent[str, str] = Recent(2, look, looks=looks)
        for name in "ab":
            recent.put(name, name)
        assert seen == (["a", "b"] if looks else [])
        for name in "cd":
            recent.put(name, name)
        assert seen == (["a", "b", "a", "b", "c", "d"] if looks else ["a", "b"])
