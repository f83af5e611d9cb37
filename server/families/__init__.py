"""One file an engine family; a checkpoint of a family is a card (`card.py`), which is data.

Every module here that defines `FAMILY` is a family: a new one is one new file.
"""

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from server.families.base import Family


def families() -> Mapping[str, Family[Any]]:
    """All families, by name."""
    modules = (import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__))
    found: list[Family[Any]] = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return {family.name: family for family in found}
