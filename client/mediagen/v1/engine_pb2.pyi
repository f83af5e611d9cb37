from mediagen.v1 import image_pb2 as _image_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EngineState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENGINE_STATE_UNSPECIFIED: _ClassVar[EngineState]
    ENGINE_STATE_READY: _ClassVar[EngineState]
    ENGINE_STATE_UNLOADED: _ClassVar[EngineState]
    ENGINE_STATE_UNAVAILABLE: _ClassVar[EngineState]
    ENGINE_STATE_LOADING: _ClassVar[EngineState]
ENGINE_STATE_UNSPECIFIED: EngineState
ENGINE_STATE_READY: EngineState
ENGINE_STATE_UNLOADED: EngineState
ENGINE_STATE_UNAVAILABLE: EngineState
ENGINE_STATE_LOADING: EngineState

class ListEnginesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListEnginesResponse(_message.Message):
    __slots__ = ("engines",)
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    engines: _containers.RepeatedCompositeFieldContainer[Engine]
    def __init__(self, engines: _Optional[_Iterable[_Union[Engine, _Mapping]]] = ...) -> None: ...

class Engine(_message.Message):
    __slots__ = ("name", "family", "title", "source", "state", "sizes", "default_size", "samplers", "style_presets", "models", "memory_bytes", "loaded_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_SIZE_FIELD_NUMBER: _ClassVar[int]
    SAMPLERS_FIELD_NUMBER: _ClassVar[int]
    STYLE_PRESETS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOADED_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    family: str
    title: str
    source: str
    state: EngineState
    sizes: _containers.RepeatedCompositeFieldContainer[_image_pb2.Size]
    default_size: _image_pb2.Size
    samplers: _containers.RepeatedScalarFieldContainer[_image_pb2.Sampler]
    style_presets: _containers.RepeatedScalarFieldContainer[str]
    models: _containers.RepeatedScalarFieldContainer[str]
    memory_bytes: int
    loaded_bytes: int
    def __init__(self, name: _Optional[str] = ..., family: _Optional[str] = ..., title: _Optional[str] = ..., source: _Optional[str] = ..., state: _Optional[_Union[EngineState, str]] = ..., sizes: _Optional[_Iterable[_Union[_image_pb2.Size, _Mapping]]] = ..., default_size: _Optional[_Union[_image_pb2.Size, _Mapping]] = ..., samplers: _Optional[_Iterable[_Union[_image_pb2.Sampler, str]]] = ..., style_presets: _Optional[_Iterable[str]] = ..., models: _Optional[_Iterable[str]] = ..., memory_bytes: _Optional[int] = ..., loaded_bytes: _Optional[int] = ...) -> None: ...
