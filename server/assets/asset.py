"""What an asset is, and where its bytes lie. Knows neither how assets are kept nor who asks for them."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path

DEPLOYMENT = ""  # the owner of what lies in the model repository


class AssetType(Enum):
    """What an asset's tensors are for."""

    CHECKPOINT = "checkpoint"
    LORA = "lora"
    TEXTUAL_INVERSION = "textual_inversion"
    VAE = "vae"
    CONTROLNET = "controlnet"
    IP_ADAPTER = "ip_adapter"


class AssetState(Enum):
    """Where an asset is on its way."""

    READY_TO_UPLOAD = "ready_to_upload"  # described; no bytes yet
    UPLOADING = "uploading"  # some bytes are here, or all of them and nobody has said so
    UPLOADED = "uploaded"  # all bytes are here and are being looked at
    READY = "ready"
    REJECTED = "rejected"  # looked at and refused; its bytes are gone
    ERROR = "error"  # the service failed to take it; its bytes are gone
    DELETED = "deleted"  # what a deletion tells; no asset is kept in it


class BadAsset(Exception):
    """A file is not what it should be; the text says what was found and what is allowed."""


@dataclass(frozen=True)
class Facts:
    """What was found in an asset's file."""

    engines: tuple[str, ...]  # names of cards whose networks it fits; none where those that it fitted are gone
    family: str  # of the first of them: "sd15" or "sdxl"
    components: tuple[str, ...]  # it changes or brings: "unet", "text_encoder", "vae", "controlnet", "ip_adapter" ...
    vectors: int  # of a textual inversion; 0 for others
    preprocessor: str  # of a ControlNet: "canny", "depth" ...; "" where it is not known, and for others
    projection: str  # of an IP-Adapter: "linear" or "plus"; "" for others


NO_FACTS = Facts((), "", (), 0, "", "")  # of an asset that nobody has looked at, or that was refused


@dataclass(frozen=True)
class Asset:
    """One asset, as it was when it was asked for."""

    id: str
    name: str  # unique to its owner
    type: AssetType
    owner: str  # tenant; DEPLOYMENT: the model repository
    public: bool
    state: AssetState
    reason: str  # why it was rejected or failed; "" otherwise
    size_bytes: int  # declared, and true from UPLOADED on
    sha256: str  # declared, and true from READY on; lower case hexadecimal
    description: str
    create_time: datetime  # UTC
    facts: Facts


def blob(folder: Path, sha256: str) -> Path:
    """Where a library in this folder keeps a file of this content; whoever has the hash can find it."""
    return folder / "blobs" / sha256[:2] / f"{sha256}.safetensors"
