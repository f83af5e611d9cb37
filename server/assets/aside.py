"""Work in threads that is never left half."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def to_its_end(work: Callable[[], T], undo: Callable[[T], object]) -> T:
    """In a thread; who is cancelled meanwhile waits for it, and undoes what it made."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        if working.exception() is None:
            undo(working.result())
        raise


def nothing(made: object) -> None:
    """There is nothing to undo."""
