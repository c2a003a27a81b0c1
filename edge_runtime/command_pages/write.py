"""The files themselves: `python -m edge_runtime.command_pages.write FOLDER` puts them below FOLDER/share."""

import argparse
import gzip
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_runtime import __version__
from edge_runtime.cli import whole_parser
from edge_runtime.command_pages.man import pages
from edge_runtime.command_pages.parser_tree import command_of
from edge_runtime.command_pages.shells import bash, fish, zsh
from edge_runtime.errors import CommandError, EdgeError

NAME = "edge-runtime"


def write(share: Path, date: str) -> list[Path]:
    """Writes man pages and completions below a folder such as /usr/share; returns their paths.

    Args:
        share: the folder.
        date: of the man pages.

    Raises:
        CommandError: they cannot be written.
    """
    program = command_of(whole_parser())
    files = {
        share / "bash-completion/completions" / NAME: bash(program, NAME).encode(),
        share / "zsh/vendor-completions" / f"_{NAME}": zsh(program, NAME).encode(),
        share / "fish/vendor_completions.d" / f"{NAME}.fish": fish(program, NAME).encode(),
    }
    for name, text in pages(program, name=NAME, version=__version__, date=date).items():
        files[share / "man/man1" / f"{name}.gz"] = gzip.compress(text.encode(), mtime=0)
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as error:
        raise CommandError(f"{share}: cannot be written: {error.strerror}") from error
    return list(files)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes them below a folder of one's own, such as ~/.local."""
    parser = argparse.ArgumentParser(prog="write", description="Write man pages and completions of edge-runtime.")
    parser.add_argument("folder", type=Path, help="such as ~/.local; they are put below its share/")
    parser.add_argument("--date", default="", help="of the man pages")
    args = parser.parse_args(arguments)
    try:
        for path in write(args.folder / "share", args.date):
            sys.stdout.write(f"{path}\n")
    except EdgeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
