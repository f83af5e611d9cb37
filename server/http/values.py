"""Kinds of values in the bodies: what JSON may write, and what it becomes. Whether one is allowed is the plan's to say.

Every check is linear in the text: who sends megabytes is answered as fast as they can be read.
"""

import binascii
import math
from dataclasses import dataclass
from typing import Annotated

from google.protobuf.descriptor import EnumDescriptor
from mediagen.v1 import image_pb2 as pb
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from server.prompts.styles import STYLES

_ENUMS = pb.DESCRIPTOR.enum_types_by_name
_MAX_SEEDS = 100  # items of a list that are looked at; how many are allowed is the plan's to say, far below
_PREFIX = 200  # characters: what may stand before the base64 of a data URL
_LINE_ENDS = str.maketrans("", "", "\r\n")


def _text(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise PydanticCustomError(
                "string_unicode", "Half of a surrogate pair at position {at}", {"at": error.start}
            ) from None
    return value


def _whole(value: object) -> object:
    """JSON has one kind of number: 30.0 is 30."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        raise PydanticCustomError("finite_number", "Too large for a number")
    return int(value) if value.is_integer() else value


def _of_bits(bits: int) -> AfterValidator:
    """A whole number that the proto's field can hold; what is allowed is far within."""

    def check(value: int) -> int:
        if not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
            raise PydanticCustomError("number_range", "{given} is far from what is allowed", {"given": str(value)[:60]})
        return value

    return AfterValidator(check)


def _few(value: list[object]) -> list[object]:
    if len(value) > _MAX_SEEDS:
        raise PydanticCustomError("too_long", "{given} seeds; give at most one for each picture", {"given": len(value)})
    return value


def _real(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    try:
        real = float(value)
    except OverflowError:
        real = math.inf
    if not math.isfinite(real):
        raise PydanticCustomError("finite_number", "Too large for a number")
    return real


def _image(value: object) -> bytes:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "Input should be a string: a picture file in base64")
    comma = value.find(",", 0, _PREFIX)
    prefix = value[: comma + 1].lower()
    text = value[len(prefix) :] if prefix.startswith("data:") and prefix.endswith(";base64,") else value
    if "\n" in text or "\r" in text:  # as command line tools wrap it
        text = text.translate(_LINE_ENDS)
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise PydanticCustomError(
            "base64",
            "Not base64: {why}. Send a PNG, JPEG or WebP file in base64 (letters, digits, +, /, = at the end), with or "
            "without data:image/png;base64, before it",
            {"why": str(error)[:100]},
        ) from None


@dataclass(frozen=True)
class _OneOf:
    """A name of an enum of the proto."""

    names: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "enum": list(self.names)}

    def _check(self, value: str) -> str:
        if value not in self.names:
            raise PydanticCustomError("enum", "Input should be one of {names}", {"names": ", ".join(self.names)})
        return value


def _names(enum: EnumDescriptor, prefix: str) -> tuple[str, ...]:
    names = (value.name for value in enum.values)
    return tuple(name.removeprefix(prefix) for name in names if not name.endswith("_UNSPECIFIED"))


def _lower(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.lower() for name in names)


def _kind(value: object) -> str:
    return "list" if isinstance(value, list) else "one"


Text = Annotated[str, AfterValidator(_text)]
Int = Annotated[int, BeforeValidator(_whole), _of_bits(32)]
Float = Annotated[float, BeforeValidator(_real)]
Image = Annotated[bytes, BeforeValidator(_image), WithJsonSchema({"type": "string", "contentEncoding": "base64"})]
_Seed = Annotated[int, BeforeValidator(_whole), _of_bits(64)]
_Seeds = Annotated[list[_Seed | None], BeforeValidator(_few)]
Seed = Annotated[Annotated[_Seed, Tag("one")] | Annotated[_Seeds, Tag("list")], Discriminator(_kind)]
SEED_KINDS = ("one", "list")  # pydantic tells which of the two it read; no caller asked
Sampler = Annotated[str, _OneOf(_names(_ENUMS["Sampler"], "SAMPLER_"))]
Encoding = Annotated[str, _OneOf(_lower(_names(_ENUMS["ImageEncoding"], "IMAGE_ENCODING_")))]
Method = Annotated[str, _OneOf(_lower(_names(_ENUMS["IpAdapterMethod"], "IP_ADAPTER_METHOD_")))]
# an unknown one is told by the plan, with the nearest
Style = Annotated[Text, WithJsonSchema({"type": "string", "enum": list(STYLES)})]
Mode = Annotated[str, _OneOf(_lower(_names(_ENUMS["IpAdapterMode"], "IP_ADAPTER_MODE_")))]
