"""Who may come in: a bounded number of requests at a time; the rest are turned away at once, told when to retry."""

from collections.abc import Iterator
from contextlib import contextmanager


class Overloaded(Exception):
    """No permit is free."""

    def __init__(self, limit: int, retry_seconds: float) -> None:
        super().__init__(f"all {limit} permits are taken; retry in {retry_seconds:g} s")
        self.retry_seconds = retry_seconds


class Admission:
    """Counts the requests inside."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.inside = 0

    @contextmanager
    def permit(self) -> Iterator[None]:
        """Hold a permit; raises `Overloaded` where none is free."""
        if self.inside >= self._limit:
            raise Overloaded(self._limit, retry_seconds=1.0)
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
