"""What the library says no with. The texts are for callers: what was given, what is allowed, what to do."""

from server.violations import quoted


class AssetFault(Exception):
    """Any of the following."""


class NoSuchAsset(AssetFault):
    """It is not there, or is nothing that this tenant may know of: the text does not tell which."""

    def __init__(self, asked: str) -> None:
        super().__init__(
            f"no asset {quoted(asked)} that you may use; see ListAssets, GET /v1/assets or `mediagen assets list`"
        )


class NameTaken(AssetFault):
    """The owner has an asset of this name."""


class NotOwner(AssetFault):
    """The asset may be used, but it is another's."""


class LibraryFull(AssetFault):
    """There is no room for it: on the disk, or in what assets may take of it."""


class UploadRunning(AssetFault):
    """Somebody else sends, or looks at, this asset's bytes."""


class TooManyUploads(AssetFault):
    """As many are under way as this service takes at a time."""


class NotUploading(AssetFault):
    """The asset takes no bytes in the state it has."""


class WrongOffset(AssetFault):
    """The bytes would not follow those that are here."""


class Incomplete(AssetFault):
    """The upload ended before its end; it may go on."""


class Stalled(AssetFault):
    """No bytes came for too long; the upload may go on."""


class BadUpload(AssetFault):
    """The bytes are not those that were described; what was here of them is gone."""


class Rejected(AssetFault):
    """All bytes arrived, and they are not what the asset was said to be; they are gone."""


def size_of(count: int) -> str:
    """For people; small ones to the byte."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count:,} bytes"
