"""Which assets a list is to have, from the query of a URL. Pure."""

from collections.abc import Sequence
from typing import Any

from fastapi import Request

from server.assets.asset import AssetType
from server.assets.library import MAX_PAGE, PAGE
from server.assets.store import Wanted
from server.http.asset_models import OLD_ENGINES, TYPES
from server.violations import Violation, quoted

MAX_VALUES = 100  # of one filter
Asked = tuple[Wanted, int | None, int, int]


def asked_of(request: Request) -> tuple[Asked, Sequence[Violation]]:
    """Which assets: filter, below which number, how many, how many of them to leave out; and what is wrong."""
    given: dict[str, list[str]] = {}
    for key, value in request.query_params.multi_items():
        given.setdefault(key, []).append(value)
    wrong = [Violation(quoted(key), "no such filter") for key in given if key not in KEYS]
    wrong += [Violation(key, f"at most {MAX_VALUES} times") for key, all in given.items() if len(all) > MAX_VALUES]

    def number(key: str, default: int | None, least: int, most: int) -> int | None:
        text = given.get(key, [""])[-1]
        if text == "":
            return default
        if not (text.isascii() and text.isdecimal() and len(text) < 19 and least <= int(text) <= most):
            wrong.append(Violation(key, f"{quoted(text)} is not in {least}..{most}"))
            return default
        return int(text)

    types = given.get("asset_type", [])
    if unknown := [type for type in types if type not in TYPES]:
        wrong.append(Violation("asset_type", f"{quoted(unknown[0])} is none; allowed are {', '.join(TYPES)}"))
    public = given.get("is_public", [""])[-1].lower()
    if public not in ("", "true", "false"):
        wrong.append(Violation("is_public", f"{quoted(public)} is neither true nor false"))
    ids = [id for text in given.get("asset_ids", []) for id in text.split(",")]
    if len(ids) > MAX_PAGE:
        wrong.append(Violation("asset_ids", f"{len(ids)} are more than {MAX_PAGE}"))
    wanted = Wanted(
        types=[AssetType(type) for type in types if type in TYPES],
        family=given.get("family", [""])[-1],
        engines=[OLD_ENGINES.get(engine, engine) for engine in given.get("engine", [])],
        name=given.get("name", [""])[-1],
        name_prefix=given.get("name_prefix", [""])[-1],
        ids=ids,
        owners=given.get("owner", []),
        public=None if public == "" else public == "true",
    )
    below = number("page_token", None, 0, 10**18)
    size, skip = number("limit", PAGE, 1, MAX_PAGE), number("offset", 0, 0, 10**9)
    assert size is not None
    assert skip is not None
    return (wanted, below, size, skip), wrong


def _parameter(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


PARAMETERS = [
    _parameter("name", "Only this name.", type="string"),
    _parameter("name_prefix", "Only names with this beginning.", type="string"),
    _parameter("asset_type", "Only these types.", type="array", items={"type": "string", "enum": list(TYPES)}),
    _parameter(
        "engine",
        "Only what fits one of these, by their names here or in the old API.",
        type="array",
        items={"type": "string"},
    ),
    _parameter("family", "Only this engine family.", type="string"),
    _parameter("is_public", "Only public ones, or only private ones.", type="boolean"),
    _parameter("owner", "Only of these owners.", type="array", items={"type": "string"}),
    _parameter("asset_ids", "Only these, parted by commas.", type="string"),
    _parameter("limit", f"Default {PAGE}.", type="integer", minimum=1, maximum=MAX_PAGE),
    _parameter("offset", "How many to leave out.", type="integer", minimum=0, maximum=10**9),
    _parameter(
        "page_token",
        "`next_page_token` of the page before: what comes and goes meanwhile moves nothing.",
        type="string",
    ),
]
KEYS = frozenset(parameter["name"] for parameter in PARAMETERS)
