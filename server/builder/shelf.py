"""The folder of variants on disk: which there are, which were used last, and what makes room for the next.

A variant is a folder named by it. What it takes is what no other folder holds: its files with one link, since the rest
is the repository's own. Its last use is the time of its `variant.json`. Knows nothing of what is in the files.
"""

import os
import shutil
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from server.builder.faults import NoDisk

MANIFEST = "variant.json"  # the last file of a variant that is whole
_SHARED = "base"  # files of the repository that could not be linked, once for all variants


class Shelf:
    """Variants in one folder, which nobody else may change."""

    def __init__(self, folder: Path, budget: int) -> None:
        """`budget` is what all of them together may take, in bytes. What a killed builder has left is removed."""
        self.folder = folder
        self.budget = budget
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            whole = path.name == _SHARED or (not path.name.startswith(".") and (path / MANIFEST).is_file())
            if path.is_dir() and not whole:
                shutil.rmtree(path)
        for path in (folder / _SHARED).rglob("*"):
            if path.is_file() and path.stat().st_nlink == 1:  # no variant has it any more
                path.unlink()

    def touch(self, name: str) -> int | None:
        """The bytes of a variant, which is used now; None where it is not there."""
        manifest = self.folder / name / MANIFEST
        if not manifest.is_file():
            return None
        now = time.time_ns()  # the kernel's own clock for files would show two calls at one moment
        os.utime(manifest, ns=(now, now))
        return _own_bytes(manifest.parent)

    def are_used(self, names: Sequence[str]) -> None:
        """All of them are used still, the last one last: what is loaded needs no `touch` for long."""
        for name in self.those_here(names, ()):
            now = time.time_ns()
            os.utime(self.folder / name / MANIFEST, ns=(now, now))

    def remove(self, name: str) -> None:
        """At once it is no variant any more, whatever happens while its files go."""
        folder = self.folder / name
        if folder.is_dir():
            gone = folder.rename(self.folder / f".gone-{name}")
            shutil.rmtree(gone)

    def make_room(self, name: str, keep: Collection[str], idle: Sequence[str] = ()) -> Sequence[str]:
        """For a variant that is written: those go that were used least recently and are neither in `keep` nor `idle`.

        Where that is not enough, returns those of `idle`, from its begin, without which there is room; nothing of them
        is removed. Raises `NoDisk` where even that is not enough; the variant is then removed.
        """
        while (missing := self._taken() - self.budget) > 0 and self.drop_oldest({name, *keep, *idle}):
            continue
        leaving: list[str] = []
        for other in self.those_here(idle, {name, *keep}):
            if missing <= 0:
                break
            leaving.append(other)
            missing -= _own_bytes(self.folder / other)
        if missing > 0:
            needed = _own_bytes(self.folder / name)
            self.remove(name)
            raise NoDisk(
                f"variant {name} takes {needed} bytes of disk, and variants may take {self.budget} together, of "
                "which others that are in use take the rest: ask later, or set MEDIAGEN_VARIANT_DISK to more"
            )
        return leaving

    def drop_oldest(self, keep: Collection[str]) -> bool:
        """Remove the least recently used variant of those that may go; whether there was one."""
        others = [path for path in self._variants() if path.name not in keep]
        if not others:
            return False
        self.remove(min(others, key=lambda path: (path / MANIFEST).stat().st_mtime_ns).name)
        return True

    def those_here(self, names: Sequence[str], keep: Collection[str]) -> list[str]:
        """Those of `names` that are variants on disk and not in `keep`, in order."""
        return [name for name in names if name not in keep and (self.folder / name / MANIFEST).is_file()]

    def _variants(self) -> list[Path]:
        return [path.parent for path in self.folder.glob(f"[!.]*/{MANIFEST}")]

    def _taken(self) -> int:
        shared = sum(path.stat().st_size for path in (self.folder / _SHARED).rglob("*") if path.is_file())
        return shared + sum(map(_own_bytes, self._variants()))


def _own_bytes(variant: Path) -> int:
    """What is freed with it."""
    stats = [path.stat() for path in variant.rglob("*") if path.is_file()]
    return sum(stat.st_size for stat in stats if stat.st_nlink == 1)
