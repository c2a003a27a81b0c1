"""What test processes share is made by one of them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.installed import ROOT
from tests.support.once import made_once

ASK = """
import os, sys, time
from pathlib import Path
from tests.support.once import made_once

def make(folder):
    (folder / str(os.getpid())).touch()
    time.sleep(0.1)  # long enough for the others to ask meanwhile
    (folder / "whole").touch()

assert (made_once(Path(sys.argv[1]), make) / "whole").exists()
"""


def test_one_of_several_processes_makes_it(tmp_path: Path) -> None:
    """The others get it whole, and none makes it a second time."""
    asking = [subprocess.Popen([sys.executable, "-c", ASK, tmp_path / "shared" / "thing"], cwd=ROOT) for _ in range(4)]
    assert [each.wait() for each in asking] == [0] * 4
    assert len(list((tmp_path / "shared" / "thing").iterdir())) == 2


def test_what_fails_is_tried_again_from_the_beginning(tmp_path: Path) -> None:
    """A half-made folder is not taken for a whole one."""
    folder = tmp_path / "thing"

    def fail(made: Path) -> None:
        (made / "half").touch()
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        made_once(folder, fail)
    made_once(folder, lambda made: (made / "whole").touch())
    assert [each.name for each in folder.iterdir()] == ["whole"]
    made_once(folder, fail)
    assert [each.name for each in folder.iterdir()] == ["whole"]
