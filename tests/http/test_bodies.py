"""Bodies that nobody should send: refused early, in little time and little memory."""

import asyncio
import json
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable

import httpx
import pytest
from json_service import Served

from server.http import body, facade
from server.http.body import NotJson, parse
from server.http.replies import Wrong, of_wrongs
from server.http.translate import NO_DEMANDS, translate

SECONDS = 0.05  # that a refusal may take
MIB = 2**20
JSON = {"content-type": "application/json"}


def wrong_with(content: bytes) -> Wrong:
    """The first thing wrong."""
    try:
        return translate(content, "sd15", NO_DEMANDS).wrongs[0]
    except NotJson as error:
        return error.wrong


def costs(content: bytes) -> tuple[float, int]:
    """Seconds and bytes that it takes to find that out; the best of some tries, since the machine has other work."""
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        wrong_with(content)
        seconds.append(time.perf_counter() - begin)
    tracemalloc.start()
    wrong_with(content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return min(seconds), peak


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 4 * MIB,
        b'{"a":' * MIB,
        b'{"prompt":"x","loras":' + b"[[" * MIB,
        b'{"prompt":"' + b"[" * MIB + b'","loras":' + b"{" * MIB,
        b'{"a":[' + b"{}," * MIB + b"[[[[[[[[[",
        b'{"seed":[' + b"1," * MIB + b"1]}",
        b'{"prompt":"' + b'\\"' * MIB + b'"}',
    ],
    ids=["lists", "objects", "in a field", "after brackets in a text", "many objects", "many numbers", "many quotes"],
)
def test_what_is_nested_deeply_or_has_too_many_values_is_refused_at_once(content: bytes) -> None:
    assert wrong_with(content).message == "more than 100,000 commas, brackets and quotes; no body needs so many"
    seconds, peak = costs(content)
    assert seconds < SECONDS
    assert peak < 2 * len(content) + MIB


@pytest.mark.parametrize("depth", [250, 900, 1100, 1990])
def test_what_is_nested_too_deeply_for_a_parser_is_told_as_that(depth: int) -> None:
    for content in (b"[" * depth, b'{"prompt":' * depth, b'["\\ud800",' + b"[" * depth + b"]" * (depth + 1)):
        assert wrong_with(content).message.startswith("not JSON: ")
        seconds, peak = costs(content)
        assert seconds < SECONDS
        assert peak < 2 * len(content) + MIB


def test_what_is_nested_less_deeply_is_a_value_of_another_kind() -> None:
    assert wrong_with(b'{"seed":' + b"[" * 150 + b"]" * 150 + b"}").where == ("seed", 0)


@pytest.mark.parametrize(
    "content",
    [
        b'{"prompt":"x","init_image":"' + b"A" * 2 * MIB + b'A"}',
        b'{"prompt":"x","init_image":"' + b"A" * 2 * MIB + b'%"}',
        b'{"prompt":"x","init_image":"' + b"A" * 2 * MIB,
        b'{"prompt":"x","init_image":"data:' + b"A" * 2 * MIB + b'"}',
        b'{"prompt":"x","steps":' + b"9" * 2 * MIB + b"}",
        b"\xff" * 2 * MIB,
        b'{"prompt":"x","' + b"k" * 2 * MIB + b'":1}',
        b'"' + b'\\"' * MIB + b"[" * 200,
    ],
    ids=[
        "cut base64",
        "bad base64",
        "cut body",
        "an endless prefix",
        "digits",
        "not UTF-8",
        "a long key",
        "an endless text",
    ],
)
def test_what_is_large_and_wrong_is_refused_at_once(content: bytes) -> None:
    wrong = wrong_with(content)
    assert len(of_wrongs([wrong]).content) < 1000
    seconds, peak = costs(content)
    assert seconds < SECONDS
    assert peak < 4 * len(content) + MIB  # its text, the value in it, and what that stands for


def test_brackets_in_a_text_nest_nothing() -> None:
    assert parse(json.dumps({"prompt": '[{(\\"' * 2000}).encode()) == {"prompt": '[{(\\"' * 2000}
    assert parse(b'{"loras": {"a": 1}, "seed": ' + b"[1]}") == {"loras": {"a": 1}, "seed": [1]}
    assert parse(b"[" + b"[],{}," * 400 + b"1]") == [*[[], {}] * 400, 1]


def test_texts_may_have_as_many_commas_and_quotes_as_they_are_long() -> None:
    texts = {
        "prompt": "," * 10_000,
        "prompt_2": '"' * 10_000,
        "negative_prompt": '\\",[' * 2_500,
        "negative_prompt_2": "{" * 10_000,
    }
    assert parse(json.dumps(texts).encode()) == texts


MANY: dict[str, dict[str, object]] = {
    "bad seeds": {"seed": [-1] * 95_000},
    "seeds of another kind": {"seed": ["x"] * 1_900},
    "unknown keys": {f"k{i}": 0 for i in range(95_000)},
    "unknown keys, fewer": {f"k{i}": 0 for i in range(20_000)},
    "unknown keys, as many as are looked at": {f"k{i}": 0 for i in range(1_900)},
    "unknown keys that are long": {"\U0001f600" * 100 + f"{i}": 0 for i in range(1_900)},
    "weights of another kind": {"loras": {f"k{i}": "x" for i in range(1_900)}},
    "pictures of another kind": {"transfer_images": {"x": [0] * 1_900}},
    "words of another kind": {"textual_inversions": {f"k{i}": [] for i in range(900)}},
    "null pictures": {"transfer_images": {f"k{i}": None for i in range(1_900)}},
}


async def longest_stall(work: Awaitable[object]) -> float:
    """Seconds that the event loop was held at once while the work went on."""
    longest, last = 0.0, time.perf_counter()

    async def tick() -> None:
        nonlocal longest, last
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0)
    await work
    await asyncio.sleep(0.002)
    ticking.cancel()
    return longest


@pytest.mark.parametrize("body", MANY.values(), ids=MANY.keys())
async def test_very_much_that_is_wrong_is_told_in_few_words_and_holds_up_nobody(
    served: Served, body: dict[str, object]
) -> None:
    content = json.dumps({"prompt": "x"} | body).encode()
    reply = await served.http.post("/generate/sd", content=content, headers=JSON)
    assert reply.status_code == 422
    assert len(reply.content) < 300_000
    assert len(reply.json()["detail"]) <= 101
    stalls = [await longest_stall(served.http.post("/generate/sd", content=content, headers=JSON)) for _ in range(3)]
    assert min(stalls) < SECONDS


async def test_how_much_more_is_wrong_is_told_last(served: Served) -> None:
    for many, told, kind in ((100, 100, "extra_forbidden"), (150, 101, "and_more")):
        body = {"prompt": "x"} | {f"k{i}": 0 for i in range(many)}
        detail = (await served.http.post("/generate/sd", json=body)).json()["detail"]
        assert len(detail) == told
        assert detail[-1]["type"] == kind
    assert detail[-1]["msg"] == "and 50 more mistakes, not told one by one"


async def test_a_list_of_more_seeds_than_anybody_draws_is_told_by_its_length(served: Served) -> None:
    (wrong,) = (await served.http.post("/generate/sd", json={"prompt": "x", "seed": [-1] * 101})).json()["detail"]
    assert wrong["loc"] == ["body", "seed"]
    assert wrong["msg"].startswith("101 seeds; give at most one for each picture")


@pytest.mark.parametrize(
    ("content", "where", "kind"),
    [
        (b"", (0,), "json_invalid"),
        (b"{", (1,), "json_invalid"),
        (b'{"prompt": NaN}', (), "json_invalid"),
        (b'{"cfg_scale": -Infinity}', (), "json_invalid"),
        (b'{"prompt": "a", "prompt": "b"}', ("prompt",), "duplicate_key"),
        (b'{"loras": {"a": 1, "a": 2}}', ("a",), "duplicate_key"),
        (b'{"prompt": "\xff"}', (12,), "json_invalid"),
        (b'{"\\ud800": 1}', (), "string_unicode"),
        (b"\xef\xbb\xbf{}", (0,), "json_invalid"),
        (b"[]", (), "object_type"),
        (b"null", (), "object_type"),
        (b'"prompt"', (), "object_type"),
    ],
)
async def test_what_is_no_clean_json_object_is_422(
    served: Served, content: bytes, where: tuple[str | int, ...], kind: str
) -> None:
    reply = await served.http.post("/generate/sd", content=content, headers=JSON)
    assert reply.status_code == 422
    (wrong,) = reply.json()["detail"]
    assert (wrong["loc"], wrong["type"]) == (["body", *where], kind)


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": ""},
        JSON | {"content-encoding": "gzip"},
    ],
)
async def test_what_is_not_sent_as_json_is_415(served: Served, headers: dict[str, str]) -> None:
    reply = await served.http.post("/generate/sd", content=b'{"prompt": "x"}', headers=headers)
    assert (reply.status_code, reply.json()["reason"]) == (415, "CONTENT_TYPE")


@pytest.mark.parametrize("kind", ["application/json; charset=UTF-8", "Application/JSON", "application/vnd.me+json"])
async def test_json_may_be_called_what_it_may_be_called(served: Served, kind: str) -> None:
    reply = await served.http.post("/generate/sd", content=b"{}", headers={"content-type": kind})
    assert reply.status_code == 422


async def spoken(url: str, text: bytes) -> tuple[bytes, float]:
    """What a socket answers to these bytes, and after how many seconds."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    begin = time.perf_counter()
    writer.write(text)
    reply = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    seconds = time.perf_counter() - begin
    writer.close()
    return reply, seconds


async def test_a_body_announced_as_too_large_is_refused_before_any_of_it_comes(on_a_port: str) -> None:
    head = b"POST /generate/sd HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    answers = [await spoken(on_a_port, head % length) for length in (10**12, body.BODY_BYTES + 1, 10**18)]
    assert all(b" 413 " in reply for reply, _ in answers)
    assert min(seconds for _, seconds in answers) < SECONDS


async def test_a_bomb_is_refused_before_the_rest_of_it_comes(on_a_port: str) -> None:
    head = b"POST /generate/sd HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    answers = [await spoken(on_a_port, head % (60 * MIB) + b"[" * 100_001) for _ in range(3)]
    assert all(b" 422 " in reply for reply, _ in answers)
    assert min(seconds for _, seconds in answers) < SECONDS


async def test_a_body_of_unknown_length_is_refused_once_it_is_too_large(
    on_a_port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "BODY_BYTES", MIB)
    chunk = b" " * 2**16
    sent = 0

    async def long() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 20 * MIB:  # it is read to its end, so that the sender hears why
            sent += len(chunk)
            yield chunk

    tracemalloc.start()
    async with httpx.AsyncClient() as client:
        reply = await client.post(f"{on_a_port}/generate/sd", content=long(), headers=JSON)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (reply.status_code, reply.json()["reason"]) == (413, "BODY_TOO_LARGE")
    assert peak < 8 * MIB


async def test_bodies_together_have_bounded_memory_and_give_it_back(served: Served) -> None:
    served.routes.facade._room.left = 100
    small, large = b'{"prompt": ""}', b'{"prompt": "' + b"x" * 100 + b'"}'
    for _ in range(3):
        reply = await served.http.post("/generate/sd", content=large, headers=JSON)
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")
        assert (await served.http.post("/generate/sd", content=small, headers=JSON)).status_code == 422
    assert served.routes.facade._room.left == 100


async def test_a_body_that_does_not_come_is_given_up(on_a_port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facade, "READ_SECONDS", 0.05)
    head = b"POST /generate/sd HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
    reply, _ = await spoken(on_a_port, head)
    assert b" 408 " in reply


async def test_what_is_not_http_is_refused_and_the_next_is_served(on_a_port: str) -> None:
    reply, _ = await spoken(on_a_port, b"\x16\x03\x01\r\n\r\n")
    assert b" 400 " in reply
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{on_a_port}/healthz")).status_code == 200
