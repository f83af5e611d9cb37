"""What is wrong with a request, as data, and how much of a caller's own words may stand in it."""

from collections.abc import Iterable
from dataclasses import dataclass

MAX_NAME = 100  # characters of a name that is repeated to the caller


@dataclass(frozen=True)
class Violation:
    """One thing wrong with a request: where, and what is allowed there."""

    field: str
    description: str
    judged_by: frozenset[str] = frozenset()  # other fields: were one of them another, nothing might be wrong here


class InvalidRequest(ValueError):
    """The request cannot be served; `violations` has every reason."""

    def __init__(self, violations: tuple[Violation, ...]) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = violations


def one_a_field(violations: Iterable[Violation]) -> tuple[Violation, ...]:
    """Of each field the first that holds whatever other fields have, else the first."""
    first: dict[str, Violation] = {}
    for violation in violations:
        held = first.setdefault(violation.field, violation)
        if held.judged_by and not violation.judged_by:
            first[violation.field] = violation
    return tuple(first.values())


def quoted(name: str) -> str:
    """A name of the caller's, as far as it is repeated."""
    text = repr(name[:MAX_NAME])
    return text if len(name) <= MAX_NAME and len(text) <= MAX_NAME + 2 else f"{text[:MAX_NAME]}..."
