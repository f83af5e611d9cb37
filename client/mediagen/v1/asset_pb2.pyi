import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AssetType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ASSET_TYPE_UNSPECIFIED: _ClassVar[AssetType]
    ASSET_TYPE_CHECKPOINT: _ClassVar[AssetType]
    ASSET_TYPE_LORA: _ClassVar[AssetType]
    ASSET_TYPE_TEXTUAL_INVERSION: _ClassVar[AssetType]
    ASSET_TYPE_VAE: _ClassVar[AssetType]
    ASSET_TYPE_CONTROLNET: _ClassVar[AssetType]
    ASSET_TYPE_IP_ADAPTER: _ClassVar[AssetType]

class AssetState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ASSET_STATE_UNSPECIFIED: _ClassVar[AssetState]
    ASSET_STATE_READY_TO_UPLOAD: _ClassVar[AssetState]
    ASSET_STATE_UPLOADING: _ClassVar[AssetState]
    ASSET_STATE_UPLOADED: _ClassVar[AssetState]
    ASSET_STATE_READY: _ClassVar[AssetState]
    ASSET_STATE_REJECTED: _ClassVar[AssetState]
    ASSET_STATE_ERROR: _ClassVar[AssetState]
    ASSET_STATE_DELETED: _ClassVar[AssetState]
ASSET_TYPE_UNSPECIFIED: AssetType
ASSET_TYPE_CHECKPOINT: AssetType
ASSET_TYPE_LORA: AssetType
ASSET_TYPE_TEXTUAL_INVERSION: AssetType
ASSET_TYPE_VAE: AssetType
ASSET_TYPE_CONTROLNET: AssetType
ASSET_TYPE_IP_ADAPTER: AssetType
ASSET_STATE_UNSPECIFIED: AssetState
ASSET_STATE_READY_TO_UPLOAD: AssetState
ASSET_STATE_UPLOADING: AssetState
ASSET_STATE_UPLOADED: AssetState
ASSET_STATE_READY: AssetState
ASSET_STATE_REJECTED: AssetState
ASSET_STATE_ERROR: AssetState
ASSET_STATE_DELETED: AssetState

class Asset(_message.Message):
    __slots__ = ("id", "name", "type", "family", "state", "reason", "size_bytes", "sha256", "public", "description", "create_time", "engines", "preprocessor", "received_bytes", "owned")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSOR_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    OWNED_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    type: AssetType
    family: str
    state: AssetState
    reason: str
    size_bytes: int
    sha256: str
    public: bool
    description: str
    create_time: _timestamp_pb2.Timestamp
    engines: _containers.RepeatedScalarFieldContainer[str]
    preprocessor: str
    received_bytes: int
    owned: bool
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., type: _Optional[_Union[AssetType, str]] = ..., family: _Optional[str] = ..., state: _Optional[_Union[AssetState, str]] = ..., reason: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., public: _Optional[bool] = ..., description: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., engines: _Optional[_Iterable[str]] = ..., preprocessor: _Optional[str] = ..., received_bytes: _Optional[int] = ..., owned: _Optional[bool] = ...) -> None: ...

class ListAssetsRequest(_message.Message):
    __slots__ = ("type", "family", "name_prefix", "page_size", "page_token")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    NAME_PREFIX_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    type: AssetType
    family: str
    name_prefix: str
    page_size: int
    page_token: str
    def __init__(self, type: _Optional[_Union[AssetType, str]] = ..., family: _Optional[str] = ..., name_prefix: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListAssetsResponse(_message.Message):
    __slots__ = ("assets", "next_page_token")
    ASSETS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    assets: _containers.RepeatedCompositeFieldContainer[Asset]
    next_page_token: str
    def __init__(self, assets: _Optional[_Iterable[_Union[Asset, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetAssetRequest(_message.Message):
    __slots__ = ("asset",)
    ASSET_FIELD_NUMBER: _ClassVar[int]
    asset: str
    def __init__(self, asset: _Optional[str] = ...) -> None: ...

class GetAssetResponse(_message.Message):
    __slots__ = ("asset",)
    ASSET_FIELD_NUMBER: _ClassVar[int]
    asset: Asset
    def __init__(self, asset: _Optional[_Union[Asset, _Mapping]] = ...) -> None: ...

class UploadAssetRequest(_message.Message):
    __slots__ = ("description", "chunk")
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    description: AssetDescription
    chunk: bytes
    def __init__(self, description: _Optional[_Union[AssetDescription, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class AssetDescription(_message.Message):
    __slots__ = ("name", "type", "size_bytes", "sha256", "public", "description", "offset", "preprocessor")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSOR_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: AssetType
    size_bytes: int
    sha256: str
    public: bool
    description: str
    offset: int
    preprocessor: str
    def __init__(self, name: _Optional[str] = ..., type: _Optional[_Union[AssetType, str]] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., public: _Optional[bool] = ..., description: _Optional[str] = ..., offset: _Optional[int] = ..., preprocessor: _Optional[str] = ...) -> None: ...

class UploadAssetResponse(_message.Message):
    __slots__ = ("asset",)
    ASSET_FIELD_NUMBER: _ClassVar[int]
    asset: Asset
    def __init__(self, asset: _Optional[_Union[Asset, _Mapping]] = ...) -> None: ...

class DeleteAssetRequest(_message.Message):
    __slots__ = ("asset",)
    ASSET_FIELD_NUMBER: _ClassVar[int]
    asset: str
    def __init__(self, asset: _Optional[str] = ...) -> None: ...

class DeleteAssetResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
