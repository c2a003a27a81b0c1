"""Which of the lists of apt a clean Debian root comes from."""

from tests.support.debian_roots import mirror_in

OTHERS = "deb [signed-by=/k.gpg] http://node.example/x nodistro main\n"
LINE = "deb http://mirror.example/debian bookworm main contrib\n"
STANZA = """Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /k.gpg
"""


def test_the_mirror_is_that_of_the_suite_and_not_the_first_that_is_named() -> None:
    """In both forms of apt's lists, with packages of others before it."""
    assert mirror_in(OTHERS) is None
    assert mirror_in(OTHERS + LINE) == "http://mirror.example/debian"
    assert mirror_in(f"{STANZA.replace('bookworm', 'nodistro')}\n{STANZA}") == "http://mirror.example/debian"
    assert mirror_in(STANZA.replace("bookworm bookworm-updates", "bookworm-security")) is None
