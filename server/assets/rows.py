"""One row of the library's database, as values. Knows no query."""

import json
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from server.assets.asset import Asset, AssetState, AssetType, Facts

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Row:
    """An asset with what only the library needs to know of it."""

    number: int
    asset: Asset
    declared_bytes: int | None
    declared_sha256: str | None
    preprocessor: str  # declared; "" for none
    source: str
    changed: datetime  # of its state


def stamp(time: datetime) -> int:
    """As times are kept."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def _time(stamp: int) -> datetime:
    return _EPOCH + timedelta(microseconds=stamp)


def row_of(row: sqlite3.Row) -> Row:
    """With all columns."""
    facts = json.loads(row["facts"])
    asset = Asset(
        id=row["id"],
        name=row["name"],
        type=AssetType(row["type"]),
        owner=row["owner"],
        public=bool(row["public"]),
        state=AssetState(row["state"]),
        reason=row["reason"],
        size_bytes=row["size_bytes"] or 0,
        sha256=row["sha256"] or "",
        description=row["description"],
        create_time=_time(row["created"]),
        facts=Facts(
            engines=tuple(facts["engines"]),
            family=facts["family"],
            components=tuple(facts["components"]),
            vectors=facts["vectors"],
            preprocessor=facts["preprocessor"],
            projection=facts["projection"],
        ),
    )
    return Row(
        row["number"],
        asset,
        row["size_bytes"],
        row["sha256"],
        row["preprocessor"],
        row["source"],
        _time(row["changed"]),
    )
