"""A body becomes a message, and a list of what could not become part of it. Pure: bytes in, values out."""

from collections.abc import Sequence, Set
from dataclasses import dataclass

from mediagen.v1 import image_pb2 as pb
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from server.http.body import NotJson, parse
from server.http.models import ImageGenerationRequest
from server.http.replies import Wrong
from server.http.values import SEED_KINDS

_NOT_IN_THE_PROTO = frozenset({"log_prompt"})
_ENUMS = {
    "sampler": "SAMPLER_",
    "image_encoding": "IMAGE_ENCODING_",
    "ip_adapter_method": "IP_ADAPTER_METHOD_",
    "ip_adapter_mode": "IP_ADAPTER_MODE_",
}


@dataclass(frozen=True)
class Demands:
    """What a route asks of a body beyond what its engine does."""

    required: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()


NO_DEMANDS = Demands()


@dataclass(frozen=True)
class Translated:
    """The message without the fields that are wrong, and what is wrong with those."""

    message: pb.GenerateRequest
    wrongs: Sequence[Wrong]


def translate(body: bytes | bytearray, engine: str, demands: Demands) -> Translated:
    """Raises `NotJson`."""
    values = parse(body)
    if not isinstance(values, dict):
        raise NotJson(Wrong((), 'not a JSON object, such as {"prompt": "a red house"}', "object_type"))
    wrongs: list[Wrong] = []
    try:
        model = ImageGenerationRequest.model_validate(values)
    except ValidationError as error:
        wrongs += map(wrong_of, error.errors(include_url=False, include_context=False))
        bad = {wrong.where[0] for wrong in wrongs}
        model = ImageGenerationRequest.model_validate({key: value for key, value in values.items() if key not in bad})
    message = _message(model, engine)
    wrongs += _unmet(message, demands, {wrong.where[0] for wrong in wrongs})
    return Translated(message, wrongs)


def wrong_of(error: ErrorDetails) -> Wrong:
    where = error["loc"]  # the caller's own keys: whatever may stand there
    if where[0] == "seed" and len(where) > 1 and where[1] in SEED_KINDS:
        where = (where[0], *where[2:])
    kind, message, given = error["type"], error["msg"], error["input"]
    if kind == "extra_forbidden":
        message = "no such key; see /docs for those there are"
    elif isinstance(given, str | int | float | None):
        message += f"; given was {_short(given)}"
    return Wrong(where, message, kind)


def _short(value: str | int | float | None) -> str:
    text = "null" if value is None else ascii(value[:70] if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _message(model: ImageGenerationRequest, engine: str) -> pb.GenerateRequest:
    message = pb.GenerateRequest(engine=engine)
    for name in model.model_fields_set - _NOT_IN_THE_PROTO:
        value = getattr(model, name)
        match name:
            case _ if value is None:
                continue
            case "seed" if isinstance(value, list):
                message.seeds.extend(pb.Seed(value=seed) for seed in value)
            case "loras":
                message.loras.update({key: 1.0 if weight is None else weight for key, weight in value.items()})
            case "textual_inversions":
                message.textual_inversions.update({key: key if word is None else word for key, word in value.items()})
            case "transfer_images":
                for word, images in value.items():
                    message.transfer_images[word].images.extend(images)
            case _ if name in _ENUMS:
                setattr(message, name, f"{_ENUMS[name]}{value.upper()}")
            case _:
                setattr(message, name, value)
    return message


def _unmet(message: pb.GenerateRequest, demands: Demands, told: Set[str | int]) -> Sequence[Wrong]:
    missing = [
        Wrong((name,), "required on this route", "missing")
        for name in sorted(demands.required - told)
        if not getattr(message, name)
    ]
    refused = [
        Wrong((name,), "not on this route; leave it out", "value_error")
        for name in sorted(demands.refused)
        if getattr(message, name)
    ]
    return [*missing, *refused]
