"""Bytes that arrive, from the first to the verdict. Knows neither gRPC nor HTTP: chunks come from whoever has them."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Self

from server.assets.aside import nothing, to_its_end
from server.assets.asset import Asset, AssetState, BadAsset
from server.assets.faults import (
    AssetFault,
    BadUpload,
    Incomplete,
    LibraryFull,
    NoSuchAsset,
    NotUploading,
    Rejected,
    Stalled,
    TooManyUploads,
    WrongOffset,
)
from server.assets.library import COMING, Library
from server.assets.partial import Closed, Partial, no_room, sha256_of
from server.assets.rows import Row
from server.assets.rules import preprocessor_of

PIECE_BYTES = 2**20  # written at once
SILENCE_SECONDS = 60.0  # after which a sender is taken for gone
UNDER_WAY = 16  # uploads at a time: each has up to a piece in memory
LOOKING = 2  # files that are looked at at the same time: each takes a core


class Upload:
    """One asset's bytes while one sender has them. Close it, or finish it."""

    def __init__(self, library: Library, id: str, offset: int | None, size_bytes: int | None = None) -> None:
        """Go on at `offset` (None: where it ends), which may be before the end of what is here.

        `size_bytes` is what the sender says of the whole file now. Raises `NoSuchAsset`, `NotUploading`,
        `UploadRunning`, `WrongOffset`, `BadUpload`, `LibraryFull`.
        """
        self._library = library
        self.id = id
        _uploading(library, id)
        self._partial = Partial(library.partial(id))
        try:
            with library.store.transaction():
                row = _uploading(library, id)  # again: now nobody else can end it
                offset = self._partial.size if offset is None else offset
                if not 0 <= offset <= self._partial.size:
                    here = f"{self._partial.size} bytes are here"
                    raise WrongOffset(f"offset is {offset} and {here}: go on from there, or from before")
                self._size = self._whole(row, size_bytes)
                self._partial.cut(offset)
                library.store.change(id, AssetState.UPLOADING, library.now())
        except BaseException:
            self._partial.close()
            if library.store.by_id(id) is None:  # deleted a moment ago, and the file made anew
                self._partial.path.unlink(missing_ok=True)
            raise

    def write(self, content: bytes) -> None:
        """The next bytes. Raises `BadUpload` for too many, `LibraryFull`, `NoSuchAsset` once it was deleted."""
        excess = self._partial.size + len(content) - self._size
        if excess > 0:
            told = f"more bytes than the {self._size} that were described"
            self._library.give_up(self.id, AssetState.ERROR, told)
            raise BadUpload(f"{told}; describe it again and send all of it")
        with _failing(self._library, self.id):
            self._partial.write(content)

    def finish(self) -> Asset:
        """All bytes were sent: look at them. May take as long as reading them. Raises `Incomplete`, `BadUpload`,
        `Rejected`, `LibraryFull`, `NoSuchAsset` once it was deleted."""
        try:
            return self._finish()
        finally:
            self.close()

    def close(self) -> None:
        """The sender is gone; another may go on."""
        self._partial.close()

    def __enter__(self) -> Self:
        """The upload itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _whole(self, row: Row, said: int | None) -> int:
        """Bytes of the whole file; 0 while nobody has told."""
        if said is None:
            return row.declared_bytes or 0
        if row.declared_bytes is None:
            self._library.refuse_too_much(said)
            self._library.store.set_size(self.id, said)
        elif row.declared_bytes != said:
            raise BadUpload(f"a file of {said} bytes is sent and one of {row.declared_bytes} was described")
        return said

    def _finish(self) -> Asset:
        library, path = self._library, self._partial.path
        if self._partial.size < self._size or self._size == 0:
            told = f"{self._partial.size} of {self._size} bytes are here" if self._size else "no bytes were sent"
            raise Incomplete(f"{told}; go on from there")
        with library.store.transaction():
            row = _uploading(library, self.id)
            library.store.change(self.id, AssetState.UPLOADED, library.now())
        with _failing(library, self.id):
            sha256 = sha256_of(path)
            if row.declared_sha256 not in (None, sha256):
                told = f"the bytes that arrived have the SHA-256 {sha256}, and {row.declared_sha256} was described"
                library.give_up(self.id, AssetState.ERROR, told)
                raise BadUpload(f"{told}; describe it again and send all of it")
            try:
                facts = library.inspect(path, row.asset.type)
            except BadAsset as bad:
                library.give_up(self.id, AssetState.REJECTED, str(bad))
                raise Rejected(str(bad)) from bad
            self._partial.settle()
            preprocessor = preprocessor_of(row.preprocessor, facts.preprocessor, row.asset.name, row.asset.type)
            return library.keep(self.id, sha256, replace(facts, preprocessor=preprocessor), library.against)


class Uploads:
    """Uploads from the event loop. What takes a core has threads of its own, so that no picture waits for them."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._lookers = ThreadPoolExecutor(LOOKING, "assets")
        self._under_way = 0

    async def receive(
        self, id: str, offset: int, chunks: AsyncIterator[bytes], size_bytes: int | None = None
    ) -> Upload:
        """All chunks, written; the upload is open still. What a sender who leaves has sent is kept. Raises what
        `Upload` does, `TooManyUploads`, and `Stalled`."""
        with self._place():
            return await self._receive(id, offset, chunks, size_bytes)

    async def complete(self, id: str) -> Asset:
        """The verdict on what is here. Raises what `Upload` and its end do, and `TooManyUploads`."""
        with self._place():
            upload = await to_its_end(partial(Upload, self._library, id, None), Upload.close)
        return await self.finish(upload)

    async def _receive(self, id: str, offset: int, chunks: AsyncIterator[bytes], size_bytes: int | None) -> Upload:
        upload = await to_its_end(partial(Upload, self._library, id, offset, size_bytes), Upload.close)
        waiting = bytearray()
        try:
            async for chunk in _spoken(chunks):
                waiting += chunk
                if len(waiting) >= PIECE_BYTES:
                    piece, waiting = bytes(waiting), bytearray()
                    await to_its_end(partial(upload.write, piece), nothing)
            piece, waiting = bytes(waiting), bytearray()
            await to_its_end(partial(upload.write, piece), nothing)
        except BaseException as error:
            with upload:
                if not isinstance(error, AssetFault) or isinstance(error, Stalled):
                    upload.write(bytes(waiting))  # a piece at most
            raise
        return upload

    async def finish(self, upload: Upload) -> Asset:
        """The verdict; it is reached even where nobody waits for it any more."""
        verdict = asyncio.wrap_future(self._lookers.submit(upload.finish))
        self._under_way += 1  # it follows what had a place: none is refused here
        verdict.add_done_callback(lambda _: self._leave())
        return await asyncio.shield(verdict)

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._under_way >= UNDER_WAY:
            raise TooManyUploads(f"{self._under_way} uploads are under way, as many as may be; retry in a few seconds")
        self._under_way += 1
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        self._under_way -= 1

    def close(self) -> None:
        """Waits for the verdicts under way; files that nobody looked at are looked at when they are asked for again."""
        self._lookers.shutdown(cancel_futures=True)


async def _spoken(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Raises `Stalled` for a sender who says nothing for too long."""
    while True:
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Stalled(f"no bytes came for {SILENCE_SECONDS:g} s; go on from what is here") from None
        yield chunk


def _uploading(library: Library, id: str) -> Row:
    row = library.store.by_id(id)
    if row is None:
        raise NoSuchAsset(id)
    asset = row.asset
    if asset.state not in COMING:
        why = f" ({asset.reason})" if asset.reason else ""
        raise NotUploading(f"{asset.name} is {asset.state.value}{why} and takes no bytes; describe a new asset")
    return row


@contextmanager
def _failing(library: Library, id: str) -> Iterator[None]:
    """What goes wrong on our side ends the upload: its bytes go, and its row says why."""
    try:
        yield
    except (BadUpload, Rejected, NoSuchAsset, Closed):
        raise
    except Exception as error:
        if library.store.by_id(id) is None:  # deleted meanwhile, its file with it
            raise NoSuchAsset(id) from error
        full = error if isinstance(error, LibraryFull) else no_room(error) if isinstance(error, OSError) else None
        told = "the service failed to take it; its log says why" if full is None else str(full)
        library.give_up(id, AssetState.ERROR, told)
        if full is None or full is error:
            raise
        raise full from error
