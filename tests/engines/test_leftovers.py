"""What a killed gateway leaves is found by its mark and removed, and nothing else is."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

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
    reader = "-c", "read _", f"{tmp_path}/{dead}/triton.log"
    try:
        with (
            subprocess.Popen(["/x/tritonserver", *reader], executable="/bin/sh", stdin=subprocess.PIPE) as orphan,
            subprocess.Popen(["/bin/sh", *reader], stdin=subprocess.PIPE) as bystander,
        ):
            leftovers.sweep(tmp_path)
            assert orphan.wait(5) == -signal.SIGKILL
            assert bystander.poll() is None
            bystander.communicate(b"\n")
        assert bystander.returncode == 0
        assert {path.name for path in tmp_path.iterdir()} == {mine, elsewhere}
        assert [len(regions(mark)) for mark in (mine, dead, reused, elsewhere)] == [1, 0, 0, 1]
    finally:
        for mark in (mine, elsewhere):
            leftovers.remove(mark)
    assert regions(mine) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_what_another_user_left_is_left_to_that_user(tmp_path: Path) -> None:
    foreign = f"mediagen_{leftovers.new_mark().split('_')[1]}_{os.getpid()}_1_000000_"
    region = Path("/dev/shm", f"{foreign}region")
    region.touch()
    (tmp_path / foreign).mkdir()
    try:
        for path in (region, tmp_path / foreign):
            os.chown(path, 65534, 65534)
        leftovers.sweep(tmp_path)
        assert region.exists()
        leftovers.remove(foreign)
        assert region.exists()
        assert (tmp_path / foreign).exists()
    finally:
        region.unlink(missing_ok=True)


def regions(mark: str) -> list[Path]:
    return list(Path("/dev/shm").glob(f"{mark}*"))
