"""The rows of the library, in SQLite, and which of them a tenant may see. Knows no file of an asset."""

import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from server.assets.asset import DEPLOYMENT, Asset, AssetState, AssetType, Facts
from server.assets.faults import LibraryFull
from server.assets.rows import Row, row_of, stamp

log = logging.getLogger(__name__)

# `number` grows and is never used again: pages end at one. A size or hash that was not declared is NULL.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS assets (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    type TEXT NOT NULL,
    owner TEXT NOT NULL,
    public INTEGER NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    size_bytes INTEGER,
    sha256 TEXT,
    description TEXT NOT NULL,
    preprocessor TEXT NOT NULL,
    created INTEGER NOT NULL, -- microseconds since 1970, UTC
    changed INTEGER NOT NULL, -- the same; of the state
    facts TEXT NOT NULL, -- JSON
    source TEXT NOT NULL DEFAULT '', -- what it was looked at against, and how a file of the deployment's looked then
    UNIQUE (owner, name)
);
CREATE INDEX IF NOT EXISTS assets_by_content ON assets (sha256);
CREATE INDEX IF NOT EXISTS assets_by_state ON assets (state, changed);
CREATE INDEX IF NOT EXISTS assets_by_name ON assets (name);
CREATE INDEX IF NOT EXISTS assets_of_all ON assets (type, name) WHERE public AND state = 'ready';
"""
_VERSION = 1
_BUSY_SECONDS = 10.0  # another process may hold the database while it moves a file
# What a tenant may know of: its own, and what is public and usable.
VISIBLE = "(owner = :tenant OR (public AND state = 'ready'))"
OWN_FIRST = "ORDER BY owner = :tenant DESC, owner = '' DESC, number"


@dataclass(frozen=True)
class Wanted:
    """Which assets a list is to have; an empty filter lets all through."""

    types: Sequence[AssetType] = ()
    family: str = ""
    engines: Sequence[str] = ()
    name: str = ""
    name_prefix: str = ""
    ids: Sequence[str] = ()
    owners: Sequence[str] = ()
    public: bool | None = None


class Store:
    """One connection, for all threads; transactions are one after the other, those of other processes too."""

    def __init__(self, file: Path) -> None:
        """Raises `OSError` where it cannot be opened, or is none of ours."""
        self._turn = threading.RLock()
        self._afterwards: list[Callable[[], None]] = []
        try:
            self._connection = sqlite3.connect(
                file, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute(
                "PRAGMA synchronous = FULL"
            )  # files go when their rows have: rows must not come back
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _VERSION):
                raise OSError(f"{file} is of another version of this service ({version}, not {_VERSION})")
            self._connection.executescript(_SCHEMA)
            if version == 0:  # otherwise nothing is written, so that a full disk can be opened
                self._connection.execute(f"PRAGMA user_version = {_VERSION}")
        except sqlite3.Error as error:
            raise OSError(f"{file} cannot be opened as a database: {error}") from error

    def close(self) -> None:
        with self._turn:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block or nothing, and nobody else meanwhile. May be nested: the outermost counts."""
        with self._turn:
            if self._connection.in_transaction:
                yield
                return
            self._run("BEGIN IMMEDIATE")
            try:
                yield
                self._run("COMMIT")
            except BaseException:
                self._afterwards.clear()
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            works, self._afterwards = self._afterwards, []
            for work in works:
                self._try(work)

    def afterwards(self, work: Callable[[], None]) -> None:
        """Once the transaction that this is in has been kept, in one of its own; never where it has not. What fails is
        logged: the rows are as they were to be."""
        self._afterwards.append(work)

    def _try(self, work: Callable[[], None]) -> None:
        try:
            with self.transaction():
                work()
        except (OSError, sqlite3.Error, LibraryFull):
            log.exception("a file of nobody is left; the next start removes it")

    def add(
        self, asset: Asset, declared_bytes: int | None, sha256: str | None, preprocessor: str, source: str = ""
    ) -> None:
        created = stamp(asset.create_time)
        self._run(
            "INSERT INTO assets (id, name, type, owner, public, state, reason, size_bytes, sha256, description, "
            "preprocessor, created, changed, facts, source) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(asset.id, asset.name, asset.type.value, asset.owner, asset.public, asset.state.value, asset.reason),
            *(declared_bytes, sha256, asset.description, preprocessor, created, created),
            *(json.dumps(asdict(asset.facts)), source),
        )

    def change(self, id: str, state: AssetState, now: datetime, reason: str = "") -> None:
        self._run(
            "UPDATE assets SET state = ?, reason = ?, changed = ? WHERE id = ?", state.value, reason, stamp(now), id
        )

    def set_size(self, id: str, size_bytes: int) -> None:
        self._run("UPDATE assets SET size_bytes = ? WHERE id = ?", size_bytes, id)

    def set_content(self, id: str, size_bytes: int, sha256: str) -> None:
        self._run("UPDATE assets SET size_bytes = ?, sha256 = ? WHERE id = ?", size_bytes, sha256, id)

    def set_facts(self, id: str, facts: Facts, source: str) -> None:
        self._run("UPDATE assets SET facts = ?, source = ? WHERE id = ?", json.dumps(asdict(facts)), source, id)

    def remove(self, id: str) -> None:
        self._run("DELETE FROM assets WHERE id = ?", id)

    def by_id(self, id: str) -> Row | None:
        return self._one("SELECT * FROM assets WHERE id = :id", id=id)

    def by_name(self, owner: str, name: str) -> Row | None:
        return self._one("SELECT * FROM assets WHERE owner = :owner AND name = :name", owner=owner, name=name)

    def visible(self, tenant: str, asked: str) -> Row | None:
        """By id, else by name: the tenant's own, the deployment's, the oldest public one."""
        return self._one(
            f"SELECT * FROM assets WHERE id = :asked AND {VISIBLE}", tenant=tenant, asked=asked
        ) or self._one(
            f"SELECT * FROM assets WHERE name = :asked AND {VISIBLE} {OWN_FIRST} LIMIT 1", tenant=tenant, asked=asked
        )

    def page(self, tenant: str, wanted: Wanted, below: int | None, size: int, skip: int = 0) -> list[Row]:
        """Newest first, those whose number is below the given one."""
        where, given = _where(tenant, wanted)
        if below is not None:
            where, given = f"{where} AND number < :below", given | {"below": below}
        rows = self._run(
            f"SELECT * FROM assets WHERE {where} ORDER BY number DESC LIMIT :size OFFSET :skip",
            **given,
            size=size,
            skip=skip,
        )
        return [row_of(row) for row in rows]

    def count(self, tenant: str, wanted: Wanted) -> int:
        where, given = _where(tenant, wanted)
        return int(self._run(f"SELECT COUNT(*) FROM assets WHERE {where}", **given)[0][0])

    def owned(self, owner: str) -> list[Row]:
        return [row_of(row) for row in self._run("SELECT * FROM assets WHERE owner = :owner", owner=owner)]

    def count_owned(self, owner: str) -> int:
        return int(self._run("SELECT COUNT(*) FROM assets WHERE owner = :owner", owner=owner)[0][0])

    def in_state(self, *states: AssetState, before: datetime | None = None) -> list[Row]:
        """Those that came into it before a time."""
        marks = ", ".join("?" * len(states))
        until = 2**62 if before is None else stamp(before)
        found = self._run(
            f"SELECT * FROM assets WHERE state IN ({marks}) AND changed < ?", *(s.value for s in states), until
        )
        return [row_of(row) for row in found]

    def is_content(self, sha256: str) -> bool:
        """Whether an asset that has its bytes is made of this."""
        found = self._run("SELECT 1 FROM assets WHERE sha256 = :sha256 AND state = 'ready' LIMIT 1", sha256=sha256)
        return bool(found)

    def taken(self) -> int:
        """Bytes of what callers have brought and of what they announced; equal contents count once."""
        ready, coming = self._run(
            "SELECT (SELECT COALESCE(SUM(size), 0) FROM (SELECT MAX(size_bytes) AS size FROM assets "
            "WHERE state = 'ready' AND owner != :deployment GROUP BY sha256)), "
            "(SELECT COALESCE(SUM(size_bytes), 0) FROM assets WHERE state IN ('ready_to_upload', 'uploading', "
            "'uploaded'))",
            deployment=DEPLOYMENT,
        )[0]
        return int(ready) + int(coming)

    def _one(self, sql: str, **given: object) -> Row | None:
        rows = self._run(sql, **given)
        return row_of(rows[0]) if rows else None

    def _run(self, sql: str, *values: object, **given: object) -> list[sqlite3.Row]:
        with self._turn:
            try:
                return self._connection.execute(sql, values or given).fetchall()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
                    raise LibraryFull(
                        f"the disk of the asset library takes no more ({error}); delete assets"
                    ) from error
                raise


def _where(tenant: str, wanted: Wanted) -> tuple[str, dict[str, object]]:
    """Only placeholders are made here; every value is bound."""
    parts, given = [VISIBLE], {"tenant": tenant}

    def one_of(column: str, values: Sequence[str]) -> None:
        if values:
            names = {f"v{len(given) + i}": value for i, value in enumerate(values)}
            parts.append(f"{column} IN ({', '.join(f':{name}' for name in names)})")
            given.update(names)

    one_of("type", [type.value for type in wanted.types])
    one_of("id", wanted.ids)
    one_of("owner", wanted.owners)
    one_of("json_extract(facts, '$.family')", [wanted.family] if wanted.family else [])
    one_of("name", [wanted.name] if wanted.name else [])
    if wanted.engines:
        names = {f"v{len(given) + i}": engine for i, engine in enumerate(wanted.engines)}
        inside = ", ".join(f":{name}" for name in names)
        parts.append(f"EXISTS (SELECT 1 FROM json_each(facts, '$.engines') WHERE value IN ({inside}))")
        given.update(names)
    if wanted.name_prefix:
        parts.append("substr(name, 1, length(:prefix)) = :prefix")
        given["prefix"] = wanted.name_prefix
    if wanted.public is not None:
        parts.append("public" if wanted.public else "NOT public")
    return " AND ".join(parts), dict(given)
