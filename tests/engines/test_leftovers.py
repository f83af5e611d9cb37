"""What a killed gateway leaves is found by its mark and removed, and nothing else is."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from server.engines import leftovers


def test_what_a_dead_owner_left_is_swept_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    mine = leftovers.new_mark()
    _, namespace, _, started, *_ = mine.split("_")
    dead = f"mediagen_{namespace}_{ended.pid}_{started}_000000_"
    reused = f"mediagen_{namespace}_{os.getpid()}_1_000000_"  # this pid, but another process had it then
    elsewhere = f"mediagen_1_{ended.pid}_{started}_000000_"  # another container's pid
    for mark in (mine, dead, reused, elsewhere):
        (tmp_path / mark).mkdir()
        Path("/dev/shm", f"{mark}region").write_bytes(b"x")
    with subprocess.Popen([sys.executable, "-c", "input()", dead], stdin=subprocess.PIPE) as orphan:
        leftovers.sweep(tmp_path)
        assert orphan.wait(5) == -signal.SIGKILL
    try:
        assert {path.name for path in tmp_path.iterdir()} == {mine, elsewhere}
        assert [len(regions(mark)) for mark in (mine, dead, reused, elsewhere)] == [1, 0, 0, 1]
    finally:
        for mark in (mine, elsewhere):
            leftovers.remove(mark)
    assert regions(mine) == []


def regions(mark: str) -> list[Path]:
    return list(Path("/dev/shm").glob(f"{mark}*"))
