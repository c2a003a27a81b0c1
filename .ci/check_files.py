"""Checks every tracked file for what no other tool looks at: line ends, size, conflict marks, valid TOML, own paths."""  # noqa: INP001

import os
import subprocess
import sys
import tomllib
from pathlib import Path

MAX_BYTES = 1_000_000  # models and recordings are built or fetched, not kept in the history
# Golden files are as a test wants them, mistakes and all.
BINARY = {".onnx", ".npz", ".npy", ".parquet", ".png", ".skops", ".bin", ".sig", ".db", ".gz"}


def tracked_files() -> list[Path]:
    """Every file that git knows and that still exists."""
    listing = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True, text=True).stdout
    return [path for name in listing.split("\0") if name and (path := Path(name)).is_file()]


def mistakes_in(path: Path) -> list[str]:
    """What is wrong with one file, as lines of `place: expected, found`."""
    data = path.read_bytes()
    found = []
    if os.fsencode(Path.cwd()) + b"/" in data:
        found.append(f"{path}: names the folder of this very clone, {Path.cwd()}")
    if len(data) > MAX_BYTES:
        found.append(f"{path}: expected at most {MAX_BYTES} bytes, found {len(data)}")
    if path.suffix in BINARY or not data or "golden" in path.parts:
        return found
    if not data.endswith(b"\n") or data.endswith(b"\n\n"):
        found.append(f"{path}: expected exactly one line end at the end of the file")
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.rstrip() != line and path.suffix != ".csv":
            found.append(f"{path}:{number}: white space at the end of the line")
        if line.startswith((b"<<<<<<< ", b">>>>>>> ")):
            found.append(f"{path}:{number}: a mark of an unfinished merge")
    if path.suffix == ".toml":
        try:
            tomllib.loads(data.decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            found.append(f"{path}: not TOML: {error}")
    return found


def main() -> int:
    """Print every mistake; 1 when there was one."""
    paths = [Path(name) for name in sys.argv[1:]] or tracked_files()
    mistakes = [mistake for path in paths for mistake in mistakes_in(path)]
    sys.stderr.writelines(f"{mistake}\n" for mistake in mistakes)
    return 1 if mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
