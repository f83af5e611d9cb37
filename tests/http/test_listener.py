"""The JSON routes' port: taken or free, on or off, and its drain."""

import asyncio
import json
import socket
from pathlib import Path

import httpx
import pytest
from conftest import HANG_SECONDS, RunningService, hold_a_step, start_service
from json_service import Served

from server.app import AddressTaken, _listen_http
from server.http import connections
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
        assert served.admission.inside == 0
        reply = await asyncio.wait_for(call, HANG_SECONDS)
    assert (reply.status_code, reply.headers["retry-after"], reply.json()["reason"]) == (503, "1", "STOPPING")


async def test_a_connection_beyond_the_most_is_told_to_come_again_and_those_there_are_are_served(
    on_a_port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)
    async with httpx.AsyncClient() as first, httpx.AsyncClient() as second:
        for client in (first, second):
            assert (await client.get(f"{on_a_port}/healthz")).status_code == 200
        for _ in range(3):
            async with httpx.AsyncClient() as third:
                reply = await third.get(f"{on_a_port}/healthz")
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
            assert reply.json()["reason"] == "OVERLOADED"
        assert (await first.get(f"{on_a_port}/healthz")).status_code == 200
    async with asyncio.timeout(HANG_SECONDS), httpx.AsyncClient() as fourth:
        # until it has seen that they left
        while (await fourth.get(f"{on_a_port}/healthz")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"", b""),
        (b"POST /generate/sd HTTP/1.1\r\nhost: x\r\nx-slow: ", b"HTTP/1.1 408 "),
        (b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /hea", b"HTTP/1.1 200 "),
    ],
    ids=["silent", "slow headers", "slow second headers"],
)
async def test_who_does_not_say_what_it_wants_is_not_waited_for(
    on_a_port: str, monkeypatch: pytest.MonkeyPatch, sent: bytes, told: bytes
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.05)
    host, _, port = on_a_port.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent[:10])
    await writer.drain()
    writer.write(sent[10:])
    if told.startswith(b"HTTP/1.1 200"):
        await reader.readuntil(b"}")
        writer.write(b"lthz HTTP/1.1\r\n")  # and no more
        told = b"HTTP/1.1 408 "
    reply = await asyncio.wait_for(reader.read(), HANG_SECONDS)
    writer.close()
    assert reply.startswith(told)
    assert bool(reply) == bool(told)


EARLY = [
    (b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n", b"HTTP/1.1 404 "),
    (b"POST /generate/sdxl HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n", b"HTTP/1.1 404 "),
    (b"POST /generate/sd HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n", b"HTTP/1.1 415 "),
    (
        b"POST /generate/sd HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 999999999\r\n\r\n",
        b"HTTP/1.1 413 ",
    ),
    (b"GET /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n", b"HTTP/1.1 200 "),
]


@pytest.mark.parametrize(("head", "told"), EARLY)
async def test_a_body_whose_answer_was_given_before_it_is_not_waited_for(
    on_a_port: str, monkeypatch: pytest.MonkeyPatch, head: bytes, told: bytes
) -> None:
    monkeypatch.setattr(connections, "REST_SECONDS", 0.05)
    host, _, port = on_a_port.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head)
    assert (await reader.readuntil(b"}")).startswith(told)
    writer.write(b"{")  # and no more
    assert await asyncio.wait_for(reader.read(), HANG_SECONDS) == b""
    writer.close()


async def test_who_has_sent_such_a_body_is_served_again(on_a_port: str) -> None:
    host, _, port = on_a_port.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head, told = EARLY[0]
    for _ in range(2):
        writer.write(head)
        assert (await reader.readuntil(b"}")).startswith(told)
        writer.write(b"123")
        await writer.drain()
        writer.write(b"456789")
    writer.close()


async def test_who_does_not_take_its_answer_is_not_waited_for(on_a_port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "WRITE_SECONDS", 0.05)
    lost = asyncio.Event()
    goodbye = connections.BoundedProtocol.connection_lost

    def told(self: connections.BoundedProtocol, exc: Exception | None) -> None:
        goodbye(self, exc)
        lost.set()

    monkeypatch.setattr(connections.BoundedProtocol, "connection_lost", told)
    host, _, port = on_a_port.removeprefix("http://").rpartition(":")
    with socket.socket() as caller:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        caller.setblocking(False)
        await asyncio.get_running_loop().sock_connect(caller, (host, int(port)))
        ask = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nhost: x\r\n\r\n"
        await asyncio.get_running_loop().sock_sendall(caller, ask * 20)  # 20 MB and more: no socket holds them
        await asyncio.wait_for(lost.wait(), HANG_SECONDS)


async def test_who_takes_its_answer_has_it_whole(on_a_port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "WRITE_SECONDS", HANG_SECONDS)
    async with httpx.AsyncClient() as client:
        files = [await client.get(f"{on_a_port}/docs/swagger-ui-bundle.js") for _ in range(2)]
    assert all(len(file.content) == int(file.headers["content-length"]) > 10**6 for file in files)


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /generate/sd HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["no request", "no host", "no length of a part"],
)
async def test_what_is_not_http_is_told_as_the_rest(on_a_port: str, sent: bytes) -> None:
    host, _, port = on_a_port.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    head, _, content = (await asyncio.wait_for(reader.read(), HANG_SECONDS)).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head
    assert json.loads(content)["reason"] == "NOT_HTTP"


async def test_a_request_that_came_may_take_longer_than_its_headers(
    served: Served, on_a_port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.05)
    async with httpx.AsyncClient(timeout=HANG_SECONDS) as client:
        call = asyncio.create_task(client.post(f"{on_a_port}/generate/sd", json=BODY))
        await hold_a_step(served.engines, served.unet)
        await asyncio.sleep(0.1)  # that nothing happens in this time
        served.engines.go.set()
        assert (await call).status_code == 200
