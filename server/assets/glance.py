"""What requests need to know of the library's rows, on a connection of its own: it never waits for who writes.

Only looks, by indexes alone: microseconds, so that the event loop may ask.
"""

import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path

from server.assets.asset import AssetType
from server.assets.rows import Row, row_of
from server.assets.store import OWN_FIRST, VISIBLE

MOST_NAMES = 1000  # of a tenant's own, and as many public ones
_BUSY_SECONDS = 1.0  # readers wait for no writer, only where another process opens or closes the database


class Glance:
    """For any thread; a look takes its turn among looks alone."""

    def __init__(self, file: Path) -> None:
        """The store must have been opened. Raises `OSError`."""
        self._turn = threading.Lock()
        try:
            self._connection = sqlite3.connect(
                file, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            raise OSError(f"{file} cannot be opened as a database: {error}") from error

    def close(self) -> None:
        with self._turn:
            self._connection.close()

    def usable(self, tenant: str, asked: str, type: AssetType) -> Row | None:
        """Ready and of this type, by id, else by name: the tenant's own, the deployment's, the oldest public one."""
        where = f"{VISIBLE} AND state = 'ready' AND type = :type"
        given = {"tenant": tenant, "asked": asked, "type": type.value}
        rows = self._run(f"SELECT * FROM assets WHERE id = :asked AND {where}", given) or self._run(
            f"SELECT * FROM assets WHERE name = :asked AND {where} {OWN_FIRST} LIMIT 1", given
        )
        return row_of(rows[0]) if rows else None

    def names(self, tenant: str, type: AssetType) -> list[str]:
        """Of what is ready, in order."""
        given = {"tenant": tenant, "type": type.value, "most": MOST_NAMES}
        of_type = "state = 'ready' AND type = :type"
        own = f"SELECT name FROM assets WHERE owner = :tenant AND {of_type} ORDER BY name LIMIT :most"
        public = f"SELECT DISTINCT name FROM assets WHERE public AND {of_type} ORDER BY name LIMIT :most"
        return sorted({row["name"] for sql in (own, public) for row in self._run(sql, given)})

    def _run(self, sql: str, given: Mapping[str, str | int]) -> list[sqlite3.Row]:
        with self._turn:
            return self._connection.execute(sql, given).fetchall()
