"""The assets that a caller may use, for whoever reads requests. Knows neither how they are kept nor whose they are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from server.assets.asset import Asset, AssetType


class Shelf(Protocol):
    """The assets that a caller may use."""

    def find(self, name_or_id: str, type: AssetType, /) -> Asset | None:
        """The ready asset of a name or id; the caller's own before a public one."""

    def names(self, type: AssetType, /) -> Sequence[str]:
        """Of all of a kind, in order."""

    def path(self, asset: Asset, /) -> Path:
        """Its file."""


class EmptyShelf:
    """Where no asset library is."""

    def find(self, name_or_id: str, type: AssetType, /) -> Asset | None:
        """See `Shelf`."""
        return None

    def names(self, type: AssetType, /) -> Sequence[str]:
        """See `Shelf`."""
        return ()

    def path(self, asset: Asset, /) -> Path:
        """See `Shelf`."""
        raise LookupError(asset.name)


NO_ASSETS = EmptyShelf()
