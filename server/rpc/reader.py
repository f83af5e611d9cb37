"""Requests to plans while others' steps go on: what takes long is read in threads, and of what takes much memory little
at a time. Knows no admission: whoever asks bounds how many wait here.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from mediagen.v1 import image_pb2 as pb

from server.asked.shelf import NO_ASSETS, Shelf
from server.catalog import Catalog
from server.plan import Plan
from server.request import carries_pictures, plan, positive_texts

SHORT_BYTES = 4096  # of a request that is read in a few milliseconds
AT_A_TIME = 2  # requests with pictures: each takes up to 0.8 GiB for the largest files, whatever these weigh


class Reader:
    """Two threads of its own: what else runs in threads (files written, pictures put together) does not wait behind."""

    def __init__(self, catalog: Catalog, shelf: Callable[[], Shelf] = lambda: NO_ASSETS) -> None:
        """`shelf` tells which assets the current call may use."""
        self._catalog = catalog
        self._shelf = shelf
        self._pictures = ThreadPoolExecutor(AT_A_TIME, "pictures")
        self._free = asyncio.Semaphore(AT_A_TIME)  # threads

    async def plan(self, request: pb.GenerateRequest) -> Plan:
        """Raises `InvalidRequest`. Who is cancelled while waiting is not read; reading that has begun is finished."""
        if carries_pictures(request):
            return await self._with_pictures(request)
        if request.ByteSize() <= SHORT_BYTES:
            return plan(request, self._catalog, self._shelf())
        return await asyncio.to_thread(plan, request, self._catalog, self._shelf())

    async def texts(self, request: pb.GenerateRequest) -> Mapping[str, str]:
        """`positive_texts`."""
        if request.ByteSize() <= SHORT_BYTES:
            return positive_texts(request)
        return await asyncio.to_thread(positive_texts, request)

    async def _with_pictures(self, request: pb.GenerateRequest) -> Plan:
        """The executor is given what it begins at once: its row would keep the requests of those who left it."""
        await self._free.acquire()
        try:
            loop, shelf = asyncio.get_running_loop(), self._shelf()
            reading = loop.run_in_executor(self._pictures, plan, request, self._catalog, shelf)
        except RuntimeError:  # it is closed
            self._free.release()
            raise
        reading.add_done_callback(lambda _: self._free.release())  # once the thread has ended, whoever was cancelled
        return await asyncio.shield(reading)

    def close(self) -> None:
        """Nothing more is begun; who waits gets a `RuntimeError`."""
        self._pictures.shutdown(wait=False)
