"""The bodies and replies of the asset library's JSON routes: those of the old API, and what is ours beside it."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from server.assets.asset import Asset, AssetState, AssetType
from server.http.values import Int, Text

TYPES = tuple(type.value for type in AssetType)
STATES = tuple(state.value for state in AssetState)
# What the old API called an engine that assets are for, and what is called so here.
OLD_ENGINES = {
    "image/stable-diffusion-v1-5": "sd15",
    "image/controlnet-sd15": "sd15",
    "image/stable-diffusion-xl-v1-0": "sdxl",
    "image/controlnet-sdxl": "sdxl",
    "image/stable-diffusion-ssd": "ssd",
}
_OLD_FAMILIES = {"sd15": "image/stable-diffusion-v1-5", "sdxl": "image/stable-diffusion-xl-v1-0"}
_OLD_TYPES = frozenset({"checkpoint", "lora", "textual_inversion", "vae"})


class CreateAsset(BaseModel):
    """An asset before its bytes. Unknown keys are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: Text = Field(
        description="Unique to its owner. 1 to 128 letters, digits, '.', '_' and '-', the first a letter or a digit."
    )
    asset_type: Literal["checkpoint", "lora", "textual_inversion", "vae", "controlnet", "ip_adapter"]
    description: Text | None = Field(default=None, description="Up to 1,000 characters.")
    is_public: bool | None = Field(default=None, description="Whether every tenant may use it. Default: false.")
    size_bytes: Int | None = Field(default=None, description="Bytes of the whole file. Default: told with the bytes.")
    sha256: Text | None = Field(default=None, description="Of the whole file, in hexadecimal. Default: not checked.")
    preprocessor: Text | None = Field(
        default=None, description="Of a ControlNet: what makes its control map. Default: told by its name."
    )
    data: dict[str, Any] | None = Field(
        default=None, description="Taken for the old API's sake: what an asset is for is told by its tensors."
    )
    transfer_api_type: Literal["presigned-url", "any"] | None = None
    url: Any = Field(default=None, description="Nothing is fetched: only null.")
    hf_repo: Any = Field(default=None, description="Nothing is fetched: only null.")
    hf_token_secret: Any = Field(default=None, description="Nothing is fetched: only null.")
    skip_validation: bool | None = Field(default=None, description="Every file is looked at: only false.")


class CompleteUpload(BaseModel):
    """All bytes were sent."""

    model_config = ConfigDict(strict=True, extra="forbid")

    skip_validation: bool | None = Field(default=None, description="Every file is looked at: only false.")
    token: Any = Field(default=None, description="Not looked at.")


class ToldAsset(BaseModel):
    """One asset."""

    id: str
    name: str
    asset_type: str = Field(json_schema_extra={"enum": list(TYPES)})
    status: str = Field(json_schema_extra={"enum": list(STATES)})
    status_details: str = Field(description="Why it was rejected or failed.")
    is_public: bool
    owned: bool = Field(description="Whether the caller owns it.")
    tenant_uuid: str = Field(description="Its owner; empty: the deployment.")
    description: str
    created_at: str = Field(description="ISO 8601, UTC.")
    size_bytes: int
    received_bytes: int = Field(description="Bytes that are here. An upload that broke goes on from there.")
    sha256: str
    family: str = Field(description="Engine family that it fits. Empty until it is ready.")
    engines: list[str] = Field(description="Engines that it fits. Empty until it is ready.")
    preprocessor: str = Field(description="Of a ControlNet: what makes its control map.")
    file_structure: str
    data: dict[str, Any] = Field(description="The same in the old API's words.")


class Assets(BaseModel):
    """One page of assets, newest first."""

    data: list[ToldAsset]
    has_more: bool
    total: int = Field(description="Of all pages together.")
    next_page_token: str = Field(description="Empty on the last page.")


class OneAsset(BaseModel):
    """An asset; while its bytes are awaited, where to send them."""

    asset: ToldAsset
    transfer_api: dict[str, str]
    upload_url: str | None = Field(
        description="PUT the bytes there: all of them, or with `Content-Range: bytes 100-199/200` a part that begins "
        "at or before `received_bytes`. It needs no other header, so keep it to yourself. null: none are awaited."
    )


class Completed(BaseModel):
    """What the upload became."""

    error: str | None = Field(description="Why the asset was refused.")
    asset: ToldAsset


class Deleted(BaseModel):
    """It is gone."""

    id: str
    status: str
    deleted_at: str


def told(asset: Asset, received: int, tenant: str) -> dict[str, Any]:
    """For JSON, by the keys of `ToldAsset`."""
    kind = asset.type.value
    old_type = {"asset_type": kind, "engine": _OLD_FAMILIES.get(asset.facts.family, "")} if kind in _OLD_TYPES else {}
    return {
        "id": asset.id,
        "name": asset.name,
        "asset_type": kind,
        "status": asset.state.value,
        "status_details": asset.reason,
        "is_public": asset.public,
        "owned": asset.owner == tenant,
        "tenant_uuid": asset.owner,
        "description": asset.description,
        "created_at": asset.create_time.isoformat(),
        "size_bytes": asset.size_bytes,
        "received_bytes": received,
        "sha256": asset.sha256,
        "family": asset.facts.family,
        "engines": list(asset.facts.engines),
        "preprocessor": asset.facts.preprocessor,
        "file_structure": "single_file",
        "data": {"file_format": "safetensors", **old_type},
    }
