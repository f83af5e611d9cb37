"""What a caller gets: a status, headers, JSON. Faults keep the code and the reason that gRPC's callers get."""

import binascii
import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from google.rpc import error_details_pb2
from mediagen.v1 import image_pb2 as pb

from server.rpc.errors import Fault, fault_of
from server.rpc.interceptor import request_id
from server.violations import InvalidRequest, Violation

log = logging.getLogger(__name__)

UNPROCESSABLE = 422  # the status whose body lists what is wrong
MAX_KEY = 100  # characters of a key that are repeated
MAX_WRONGS = 100  # that one reply tells
_PATH = re.compile(r"(\w+)(?:\[(.+)\])?")  # of a field in a violation: "steps", "seeds[3]", "loras[name]"
# JSON has one key where the proto has two fields.
_KEYS: Mapping[str, str] = {"seeds": "seed"}


@dataclass(frozen=True)
class Answer:
    """A finished reply."""

    status: int
    content: bytes  # JSON
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def retry_seconds(self) -> float | None:
        """None where trying again is no use."""
        after = self.headers.get("retry-after")
        return None if after is None else float(after)


@dataclass(frozen=True)
class Wrong:
    """One thing wrong with a body."""

    where: tuple[str | int, ...]  # path of keys and positions; empty: the body
    message: str
    kind: str  # stable, for programs


class Refused(Exception):
    """Turned away before there was a request."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def of_json(status: int, value: object) -> Answer:
    """Any value that JSON has."""
    return Answer(status, json.dumps(value, separators=(",", ":")).encode())


def of_message(status: int, message: str, reason: str, retry_seconds: float | None = None) -> Answer:
    """A sentence for people and a reason for programs."""
    headers = {} if retry_seconds is None else {"retry-after": str(max(1, math.ceil(retry_seconds)))}
    content = json.dumps({"message": message, "reason": reason}).encode()
    return Answer(status, content, headers)


def of_wrongs(wrongs: Sequence[Wrong]) -> Answer:
    """422, everything at once; of very much the first, and how much more there is."""
    told = list(wrongs[:MAX_WRONGS])
    if len(told) < len(wrongs):
        told.append(Wrong((), f"and {len(wrongs) - len(told):,} more mistakes, not told one by one", "and_more"))
    detail = [{"loc": ["body", *map(_printable, w.where)], "msg": w.message, "type": w.kind} for w in told]
    return of_json(UNPROCESSABLE, {"detail": detail})


def of_places(place: str, violations: Iterable[Violation]) -> Answer:
    """422 for what is wrong outside of a body: in the "query", in a "header"."""
    detail = [{"loc": [place, v.field], "msg": v.description, "type": "value_error"} for v in violations]
    return of_json(UNPROCESSABLE, {"detail": detail})


def of_error(error: Exception) -> Answer:
    """By the table of faults; what is not in it is a bug of ours and is logged."""
    if isinstance(error, InvalidRequest):
        return of_wrongs(wrongs_of(error.violations))
    fault = fault_of(error)
    if fault is None:
        log.error("request %s failed", request_id.get(), exc_info=error)
        return of_message(
            500, f"a bug in the service; its log has the cause under request id {request_id.get()}", "BUG"
        )
    return of_message(fault.http, fault.message, fault.reason, _retry_seconds(fault))


def wrongs_of(violations: Iterable[Violation], told: Set[str | int] = frozenset()) -> list[Wrong]:
    """The violations of an invalid request, in the words of JSON.

    Keys that are `told` to be wrong already were not in it: they are not told again, nor is what is judged by them.
    """
    wrongs = [Wrong(_where(v.field), v.description, "value_error") for v in violations if told.isdisjoint(v.judged_by)]
    return [wrong for wrong in wrongs if wrong.where[0] not in told]


def of_pictures(reply: pb.GenerateResponse) -> Answer:
    """200. Base64 needs no escapes, so a picture is copied once."""
    parts = [b'{"images":[']
    for position, image in enumerate(reply.images):
        removed = image.safety_check == pb.SAFETY_CHECK_REMOVED
        score = image.safety_score if image.HasField("safety_score") else None
        parts += (
            b',{"image_b64":' if position else b'{"image_b64":',
            *((b"null",) if removed else (b'"', binascii.b2a_base64(image.data, newline=False), b'"')),
            f',"removed_for_safety":{json.dumps(removed)},"safety_score":{json.dumps(score)},"seed":{image.seed}}}'.encode(),
        )
    end = {
        "prediction_time_ms": reply.timings.total_ms,
        "notices": list(reply.notices),
        "variants": [_variant(variant) for variant in reply.variants],
    }
    parts += (b"],", json.dumps(end, separators=(",", ":")).encode()[1:])
    return Answer(200, b"".join(parts))


def _variant(told: pb.Variant) -> dict[str, object]:
    source = pb.VariantSource.Name(told.source).removeprefix("VARIANT_SOURCE_").lower()
    times = {"build_ms": told.build_ms, "load_ms": told.load_ms}
    return {"model": told.model, "graph": told.graph, "source": source, **times}


def _retry_seconds(fault: Fault) -> float | None:
    for detail in fault.details:
        if isinstance(detail, error_details_pb2.RetryInfo):
            return float(detail.retry_delay.ToTimedelta().total_seconds())
    return None


def _where(path: str) -> tuple[str | int, ...]:
    found = _PATH.fullmatch(path)
    if found is None:
        return (path,)
    name, inside = _KEYS.get(found[1], found[1]), found[2]
    return (name,) if inside is None else (name, int(inside) if inside.isdecimal() else inside)


def _printable(part: str | int) -> str | int:
    """A key of the caller's may be long, and half of a surrogate pair can be in no UTF-8."""
    return part if isinstance(part, int) else part[:MAX_KEY].encode("utf-8", "backslashreplace").decode()
