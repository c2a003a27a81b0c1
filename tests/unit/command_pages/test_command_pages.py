"""Man pages and completions: each shell's own answer to what a person types, and groff's opinion of the pages."""

import argparse
import gzip
import shutil
import subprocess
from pathlib import Path

import pytest

from edge_runtime.cli import COMMANDS, whole_parser
from edge_runtime.command_pages.man import pages
from edge_runtime.command_pages.parser_tree import command_of
from edge_runtime.command_pages.write import main, write
from tests.support.waiting import patient

# What is typed, and what has to be offered; the last word is not finished.
TYPED = {
    "": {"run", "check", "models", "flash", "demo"},
    "ro": {"rollback", "rollout"},
    "models ": {"list", "install", "activate", "rollback", "promote", "withdraw", "selftest"},
    "models in": {"install"},
    "models --store here li": {"list"},
    "models install --un": {"--unsigned"},
    "models install --unsigned ": {"refuse", "allow"},
    "flash --over m": {"mqtt"},
    "predict --on-rate r": {"resample", "reject"},
    "check de": {"device.toml"},
    "init --bundle de": {"device.toml"},
}


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything, written once."""
    folder = tmp_path_factory.mktemp("share")
    write(folder, "2020-01-01")
    return folder


def offered_by_bash(share: Path, words: list[str], folder: Path) -> set[str]:
    """What bash puts into COMPREPLY."""
    typed = 'shift; COMP_WORDS=(edge-runtime "$@"); COMP_CWORD=$#; _edge_runtime; printf "%s\n" "${COMPREPLY[@]}"'
    script = f'source "$1"; {typed}'
    return asked(
        ["bash", "-c", script, "bash", str(share / "bash-completion/completions/edge-runtime"), *words], folder
    )


def offered_by_fish(share: Path, words: list[str], folder: Path) -> set[str]:
    """What `complete -C` prints, without the descriptions."""
    line = " ".join(["edge-runtime", *words])
    script = f"source {share}/fish/vendor_completions.d/edge-runtime.fish; complete -C '{line}'"
    return {each.partition("\t")[0] for each in asked(["fish", "--no-config", "-c", script], folder)}


def offered_by_zsh(share: Path, words: list[str], folder: Path) -> set[str]:
    """What the script hands to zsh's own functions, which are stood in for here: a real one needs a terminal."""
    script = """
        file=$1; shift
        compadd() { shift; print -l -- $@ }
        _describe() { local -a all=("${(P@)@[-1]}"); print -l -- "${all[@]%%:*}" }
        _files() { print -l -- *(N) }
        complete_it() { local -a words=(edge-runtime "$@"); local CURRENT=$#words; source $file }
        complete_it "$@"
    """
    path = share / "zsh/vendor-completions/_edge-runtime"
    found = asked(["zsh", "-f", "-c", script, "zsh", str(path), *words], folder)
    return {each for each in found if each.startswith(words[-1])}


def asked(words: list[str], folder: Path) -> set[str]:
    """The lines of a shell's answer."""
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=patient(30), check=False)
    assert done.stderr == ""
    return set(done.stdout.split("\n")) - {""}


@pytest.mark.parametrize("typed", TYPED)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_what_is_typed(shell: str, typed: str, share: Path, tmp_path: Path) -> None:
    """Commands, options, the words of an option, and files where a file is wanted."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "device.toml").touch()
    words = typed.split(" ")
    offered = {"bash": offered_by_bash, "zsh": offered_by_zsh, "fish": offered_by_fish}[shell](share, words, tmp_path)
    if typed:
        assert offered == TYPED[typed]
    else:
        assert offered >= TYPED[typed]
        assert offered == set(COMMANDS)


def test_groff_accepts_every_page_without_a_warning(share: Path) -> None:
    """At every level of warnings but those about line breaks."""
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    found = sorted((share / "man/man1").glob("*.gz"))
    assert {path.name for path in found} == {"edge-runtime.1.gz", *(f"edge-runtime-{name}.1.gz" for name in COMMANDS)}
    for path in found:
        text = gzip.decompress(path.read_bytes())
        done = subprocess.run(
            ["groff", "-man", "-ww", "-z", "-"], input=text, capture_output=True, timeout=patient(30), check=True
        )
        assert done.stderr == b"", f"{path.name}: {done.stderr.decode()}"


def test_a_page_has_every_option_and_exit_code(share: Path) -> None:
    """What `--help` lists stands in the page of the command, with the commands below it."""
    text = gzip.decompress((share / "man/man1/edge-runtime-models.1.gz").read_bytes()).decode()
    for flag in ("--store", "--allowed-signers", "--unsigned", "--allow-older", "--json"):
        assert flag.replace("-", "\\-") in text
    assert ".SH EXIT STATUS\n.TP\n\\fB0\\fR\ndone\n" in text
    assert '.SH "ROLLBACK"' in text


def test_a_line_of_help_never_becomes_a_command_of_roff() -> None:
    """A help that begins with a dot, backslashes and dashes are text."""
    parser = argparse.ArgumentParser(prog="p", description="Does a\\b.")
    parser.add_argument("--path", help=".onnx or 'x', 100%%")
    page = pages(command_of(parser), name="p", version="1", date="2020-01-01")["p.1"]
    assert "\n\\&.onnx or 'x', 100%\n" in page
    assert "Does a\\eb." in page


def test_what_is_hidden_from_help_is_hidden_here() -> None:
    """An option without help of its own is there, one that is suppressed is not."""
    parser = argparse.ArgumentParser(prog="p")
    parser.add_argument("--seen")
    parser.add_argument("--hidden", help=argparse.SUPPRESS)
    assert [option.flags for option in command_of(parser).options] == [("-h", "--help"), ("--seen",)]


def test_every_command_of_the_program_is_in_the_tree() -> None:
    """With those below it; argparse's private names, which the tree is read by, are there."""
    tree = command_of(whole_parser())
    assert [each.path for each in tree.commands] == [(name,) for name in COMMANDS]
    assert ("models", "install") in [each.path for each in tree.walk()]
    assert all(each.usage.startswith("edge-runtime") for each in tree.walk())


def test_the_files_are_written_below_a_folder_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As pip users need it; a folder that cannot be written is one line."""
    assert main([str(tmp_path)]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert all(path.is_file() and path.is_relative_to(tmp_path / "share") for path in written)
    (tmp_path / "file").touch()
    assert main([str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err == f"{tmp_path}/file/share: cannot be written: Not a directory\n"
