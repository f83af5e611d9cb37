from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PartKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PART_KIND_UNSPECIFIED: _ClassVar[PartKind]
    PART_KIND_CHECKPOINT: _ClassVar[PartKind]
    PART_KIND_VAE: _ClassVar[PartKind]
    PART_KIND_LORA: _ClassVar[PartKind]
    PART_KIND_CONTROLNET: _ClassVar[PartKind]
    PART_KIND_IP_ADAPTER: _ClassVar[PartKind]
PART_KIND_UNSPECIFIED: PartKind
PART_KIND_CHECKPOINT: PartKind
PART_KIND_VAE: PartKind
PART_KIND_LORA: PartKind
PART_KIND_CONTROLNET: PartKind
PART_KIND_IP_ADAPTER: PartKind

class Part(_message.Message):
    __slots__ = ("kind", "sha256", "weight")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    kind: PartKind
    sha256: str
    weight: float
    def __init__(self, kind: _Optional[_Union[PartKind, str]] = ..., sha256: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class EnsureVariantRequest(_message.Message):
    __slots__ = ("graph", "name", "parts", "keep", "idle")
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    IDLE_FIELD_NUMBER: _ClassVar[int]
    graph: str
    name: str
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    keep: _containers.RepeatedScalarFieldContainer[str]
    idle: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, graph: _Optional[str] = ..., name: _Optional[str] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ..., keep: _Optional[_Iterable[str]] = ..., idle: _Optional[_Iterable[str]] = ...) -> None: ...

class EnsureVariantResponse(_message.Message):
    __slots__ = ("built", "milliseconds", "bytes", "leave")
    BUILT_FIELD_NUMBER: _ClassVar[int]
    MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    built: bool
    milliseconds: float
    bytes: int
    leave: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, built: _Optional[bool] = ..., milliseconds: _Optional[float] = ..., bytes: _Optional[int] = ..., leave: _Optional[_Iterable[str]] = ...) -> None: ...
