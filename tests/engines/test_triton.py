"""How Triton's own refusals come out of `TritonEngines`: each as the fault that its cause deserves."""

import asyncio
import socket
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio
from engines import toy

from server.engines.port import EngineFault, EngineOverloaded, EngineTimeout, EngineUnavailable
from server.engines.supervisor import EmbeddedTriton
from server.engines.triton import TritonEngines

pytestmark = pytest.mark.asyncio(loop_scope="session")

LONG = {"turns": np.array([60_000])}  # 0.6 s and more


@pytest_asyncio.fixture(loop_scope="session")
async def narrow(triton: EmbeddedTriton) -> AsyncIterator[TritonEngines]:
    """The engine with the short queue, loaded."""
    engines = TritonEngines(triton.address, (toy.NARROW,))
    await engines.load(toy.NARROW.name)
    yield engines
    await engines.close()


async def test_a_full_queue_is_overload_and_a_long_wait_in_it_is_a_timeout(narrow: TritonEngines) -> None:
    calls = []
    for _ in range(4):  # the first is executed, the second takes the only place
        calls.append(asyncio.create_task(narrow.run(toy.NARROW.name, LONG)))
        await asyncio.wait(calls[-1:], timeout=0.05)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [dict, EngineTimeout, EngineOverloaded, EngineOverloaded]


async def test_a_message_above_the_limit_names_the_engine_and_the_limit(triton: EmbeddedTriton) -> None:
    engines = TritonEngines(triton.address, (toy.MIX, toy.SPIN), message_bytes=10_000)
    await asyncio.gather(engines.load(toy.MIX.name), engines.load(toy.SPIN.name))
    with pytest.raises(EngineFault, match=r"toy_spin: a message above the limit of 10000 bytes: .*larger than max"):
        await engines.run(toy.SPIN.name, {"turns": np.array([1])})  # 16 KiB come back
    with pytest.raises(EngineFault, match=r"toy_mix: a message above the limit of 10000 bytes: .*larger than max"):
        await engines.run(toy.MIX.name, toy.example(toy.MIX, height=64, width=64))  # 64 KiB are sent
    await engines.close()


async def test_a_picture_of_1536_by_1024_passes_in_both_directions(triton: EmbeddedTriton) -> None:
    engines = TritonEngines(triton.address, (toy.PICTURE,))
    await engines.load(toy.PICTURE.name)
    inputs = toy.example(toy.PICTURE, height=1024, width=1536)  # 18 MiB of float32
    pixels = (await engines.run(toy.PICTURE.name, inputs))["pixels"]
    assert np.array_equal(pixels, toy.picture(inputs)["pixels"])
    await engines.close()


async def test_where_no_triton_listens_every_call_is_unavailable_at_once() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        engines = TritonEngines(f"127.0.0.1:{probe.getsockname()[1]}", (toy.WORDS,))
        async with asyncio.timeout(1):
            assert await engines.ready() == ()
            assert not await engines.answers()
            for call in (engines.load(toy.WORDS.name), engines.run(toy.WORDS.name, toy.example(toy.WORDS))):
                with pytest.raises(EngineUnavailable, match=r"127\.0\.0\.1"):
                    await call
            with pytest.raises(EngineUnavailable):
                await engines.usage()
        await engines.close()
