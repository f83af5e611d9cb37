"""The JSON routes' port: taken or free, on or off, and its drain."""

import asyncio
import socket
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from conftest import HANG_SECONDS, RunningService, hold_a_step, start_service
from json_service import Served

from server.app import AddressTaken, _listen_http
from server.http.listener import Listener, listen

BODY = {"prompt": "a red house", "steps": 3, "width": 384, "height": 704}


def test_a_port_that_is_taken_is_told_in_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(AddressTaken, match=f"cannot listen on {address}: .* MEDIAGEN_HTTP_ADDRESS .* 'none'"):
            _listen_http(address)
    with pytest.raises(AddressTaken, match="the host is not this machine's"):
        _listen_http("192.0.2.1:1")


def test_any_port_and_ipv6_will_do() -> None:
    for address in ("127.0.0.1:0", "[::1]:0"):
        with listen(address) as listening:
            assert listening.getsockname()[1] > 0


def test_a_service_whose_json_port_is_taken_does_not_start(service: RunningService, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"mediagen cannot start: cannot listen on .* MEDIAGEN_HTTP_ADDRESS"):
        start_service(tmp_path, MEDIAGEN_HTTP_ADDRESS=service.http_address)


async def test_a_call_under_way_ends_well_when_the_service_drains_and_new_ones_find_nobody(served: Served) -> None:
    own = listen("127.0.0.1:0")
    listener = Listener(served.routes.app, own, grace_seconds=HANG_SECONDS)
    url = f"http://127.0.0.1:{own.getsockname()[1]}"
    async with httpx.AsyncClient(timeout=HANG_SECONDS) as client, httpx.AsyncClient() as idle:
        await idle.get(f"{url}/healthz")  # its connection stays open and must not hold the stop
        call = asyncio.create_task(client.post(f"{url}/generate/sd", json=BODY))
        await hold_a_step(served.engines, served.unet)
        stopping = asyncio.create_task(listener.stop())
        async with asyncio.timeout(HANG_SECONDS):
            while own.fileno() != -1:  # noqa: ASYNC110  # uvicorn closes it, and tells nobody
                await asyncio.sleep(0.01)
        async with httpx.AsyncClient() as late:
            with pytest.raises(httpx.ConnectError):
                await late.get(f"{url}/healthz")
        assert not stopping.done()
        served.engines.go.set()
        assert (await call).status_code == 200
        await asyncio.wait_for(stopping, HANG_SECONDS)


async def test_a_call_that_outlasts_the_grace_time_is_broken_off(served: Served) -> None:
    own = listen("127.0.0.1:0")
    listener = Listener(served.routes.app, own, grace_seconds=0.1)
    async with httpx.AsyncClient(timeout=HANG_SECONDS) as client:
        call = asyncio.create_task(
            client.post(f"http://127.0.0.1:{own.getsockname()[1]}/generate/sd", json=BODY | {"steps": 200})
        )
        await hold_a_step(served.engines, served.unet)
        await asyncio.wait_for(listener.stop(), HANG_SECONDS)
        with suppress(httpx.HTTPError):  # the connection ends, with or without a last word
            assert (await asyncio.wait_for(call, HANG_SECONDS)).status_code == 500
    assert served.admission.inside == 0
