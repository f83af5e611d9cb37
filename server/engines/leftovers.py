"""What a killed Triton leaves behind (processes, shared-memory regions, run folders), found by its owner's mark.

A mark is in the command line of Triton and of each of its stubs, in the names of its regions under /dev/shm and in the
name of its run folder, and says whose it is: pid namespace, pid and start time of the gateway. So nothing has to be
written down to be found again, and a recycled pid is not mistaken for its predecessor. What another user owns is left
to that user. Linux only.
"""

import os
import re
import secrets
import select
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from server.engines import launcher

_MARK = re.compile(r"mediagen_(\d+)_(\d+)_(\d+)_[0-9a-f]{6}_")
_PROGRAMS = frozenset({"tritonserver", "triton_python_backend_stub"})
_LAUNCHER = Path(launcher.__file__).name
_SHARED_MEMORY = Path("/dev/shm")
_GONE_SECONDS = 5.0  # a killed process that still exists after this long hangs in the kernel


def new_mark() -> str:
    """A mark of this process, different at each call."""
    pid = os.getpid()
    return f"mediagen_{_pid_namespace()}_{pid}_{_start_time(pid)}_{secrets.token_hex(3)}_"


def remove(mark: str) -> None:
    """Kill every process that bears the mark, wait until they are gone, unlink their shared memory."""
    for pid, text in command_lines():
        if _is_ours(text, mark):
            _kill(pid, mark)
    for region in _SHARED_MEMORY.glob(f"{mark}*"):
        if _is_mine(region):
            region.unlink(missing_ok=True)


def sweep(cache: Path) -> None:
    """Remove everything whose owner died without stopping its Triton, run folders in `cache` included."""
    for mark in sorted(_marks(cache)):
        namespace, pid, started = (int(part) for part in _MARK.fullmatch(mark).groups())  # type: ignore[union-attr]
        if namespace != _pid_namespace() or _start_time(pid) == started:
            continue
        remove(mark)
        shutil.rmtree(cache / mark, ignore_errors=True)


def _marks(cache: Path) -> set[str]:
    names = [
        path.name
        for folder in (_SHARED_MEMORY, cache)
        if folder.is_dir()
        for path in folder.iterdir()
        if _is_mine(path)
    ]
    texts = [*names, *(text for _, text in command_lines())]
    return {found.group() for text in texts for found in _MARK.finditer(text)}


def _is_ours(text: str, mark: str) -> bool:
    """Triton, a stub of it, or what becomes Triton in a moment; not whoever reads its log."""
    program, *arguments = text.split("\0")
    launches = any(Path(argument).name == _LAUNCHER for argument in arguments[:3])
    return mark in text and (Path(program).name in _PROGRAMS or launches)


def _is_mine(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.getuid()
    except OSError:  # gone meanwhile
        return False


def command_lines() -> Iterator[tuple[int, str]]:
    """Pid and command line, arguments ended by NUL, of every process that may be looked at."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                yield int(folder.name), _command_line(int(folder.name))
            except OSError:  # ended meanwhile, or another user's
                continue


def _command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")


def _kill(pid: int, mark: str) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not _is_ours(_command_line(pid), mark):  # it ended, and the pid was another's before the handle was opened
            return
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        select.select([handle], [], [], _GONE_SECONDS)
    except OSError:  # ended meanwhile, or another user's
        return
    finally:
        os.close(handle)


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _start_time(pid: int) -> int | None:
    """In clock ticks since boot; None when there is no such process."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(status.rpartition(")")[2].split()[19])  # field 22 of proc(5); the name in brackets may hold spaces
