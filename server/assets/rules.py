"""What may be said of an asset by who brings it: names, types, sizes, hashes. Pure; knows no database and no disk."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from server.assets.asset import AssetType
from server.violations import Violation, quoted

MAX_NAME = 128
MAX_DESCRIPTION = 1000  # characters
MAX_BYTES = 2**40  # of one asset, so that sums stay numbers; what fits is the disk's to say
# ControlNets whose control map this service, or an engine of a deployment, makes from a picture.
PREPROCESSORS = ("canny", "depth", "openpose", "lineart", "scribble", "tile", "inpaint", "ip2p")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_PREPROCESSOR = re.compile(r"[a-z0-9_]{1,32}")


@dataclass(frozen=True)
class Described:
    """An asset before its bytes."""

    name: str
    type: AssetType
    size_bytes: int | None  # None: it is told with the bytes
    sha256: str | None  # lower case; None: whatever arrives
    public: bool
    description: str
    preprocessor: str  # of a ControlNet; "" for others, and where the name tells none


def is_name(text: str) -> bool:
    """Whether an asset may be called so."""
    return len(text) <= MAX_NAME and _NAME.fullmatch(text) is not None


def violations(
    name: str, size_bytes: int | None, sha256: str | None, description: str, preprocessor: str, type: AssetType | None
) -> Sequence[Violation]:
    """Everything that is wrong, by the API's field names; a type of None is told elsewhere."""
    wrong = []
    if not is_name(name):
        allowed = f"a name has 1 to {MAX_NAME} letters, digits, '.', '_' and '-', the first a letter or a digit"
        wrong.append(Violation("name", f"{quoted(name)} is no name: {allowed}"))
    if size_bytes is not None and not 0 < size_bytes <= MAX_BYTES:
        wrong.append(Violation("size_bytes", f"{size_bytes} is not in 1..{MAX_BYTES}, the bytes of the whole file"))
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        wrong.append(
            Violation("sha256", f"{quoted(sha256)} is no SHA-256: 64 hexadecimal digits, as `sha256sum FILE` prints")
        )
    if len(description) > MAX_DESCRIPTION:
        wrong.append(Violation("description", f"{len(description)} characters; at most {MAX_DESCRIPTION:,}"))
    if preprocessor and type not in (AssetType.CONTROLNET, None):
        wrong.append(Violation("preprocessor", "only a ControlNet has one, and this is of another type; leave it out"))
    elif preprocessor and not _PREPROCESSOR.fullmatch(preprocessor):
        known = ", ".join(PREPROCESSORS)
        wrong.append(Violation("preprocessor", f"{quoted(preprocessor)} is none; known are {known}"))
    return wrong


def preprocessor_of(declared: str, found: str, name: str, type: AssetType) -> str:
    """Of a ControlNet: as declared, as its file says, or the first known one that its name has in it."""
    if type is not AssetType.CONTROLNET:
        return ""
    named = {name.lower().find(known): known for known in PREPROCESSORS if known in name.lower()}
    return declared or found or (named[min(named)] if named else "")
