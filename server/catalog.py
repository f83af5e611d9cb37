"""What this deployment can draw with: the cards of a model repository, each joined to its family's code."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.adapters.control import preprocessor
from server.engines.port import Spec
from server.families import families
from server.families.base import Family
from server.families.card import Card, read_card
from server.levels import Schedule, noise_schedule
from server.safety import NO_SAFETY, Safety, with_checker
from server.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Engine:
    """One checkpoint and everything needed to plan and run a request on it."""

    card: Card
    family: Family[Any]  # of the card's own type
    specs: tuple[Spec, ...]  # preprocessors, the family's, the safety stage's
    templates: tuple[Spec, ...]  # graphs that are run as variants alone
    preprocessors: tuple[Spec, ...]  # of the deployment, where a template takes their maps; in `specs`, too
    refuses: frozenset[str]  # request fields that ask for what it does not have
    schedule: Schedule
    tokenizers: Mapping[str, TextTokenizer]  # by text engine
    safety: Safety


Catalog = Mapping[str, Engine]  # by the name a request gives


def read_catalog(repository: Path, checked: Collection[str] = ()) -> Catalog:
    """Every `<name>.json` of a model repository; the engines named in `checked` get a safety stage.

    Raises `ValueError` with what is wrong and what to do.
    """
    paths = sorted(repository.glob("*.json"))
    if not paths:
        raise ValueError(f"{repository} holds no engine card (*.json): render it with `python -m export`")
    known = families()
    cards = [read_card(path, {name: family.card for name, family in known.items()}) for path in paths]
    _expect_checkers(checked, cards, repository)
    return {card.name: _engine(card, known[card.family], repository, card.name in checked) for card in cards}


def _expect_checkers(checked: Collection[str], cards: Sequence[Card], repository: Path) -> None:
    unknown = sorted(set(checked) - {card.name for card in cards})
    if unknown:
        names = ", ".join(card.name for card in cards)
        raise ValueError(f"MEDIAGEN_SAFETY names {', '.join(unknown)}; this repository has {names}")
    without = [card.name for card in cards if card.name in checked and not card.safety_checker]
    if without:
        raise ValueError(
            f"MEDIAGEN_SAFETY names {', '.join(without)}, and {repository} holds no safety checker for it: render one "
            "by `python -m export ... --safety-checker`, or leave the name out"
        )


# Request fields that ask for a network which not every repository holds, by the end of its name.
_ASK_FOR = {
    "unet_control": (
        "controlnet",
        "controlnet_image",
        "controlnet_preprocess",
        "controlnet_conditioning_scale",
        "controlnet_early_stop",
    ),
    "unet_ip": (
        "ip_adapter",
        "ip_adapter_image",
        "ip_adapter_mask_image",
        "ip_adapter_method",
        "ip_adapter_mode",
        "ip_adapter_scale",
    ),
    "transfer_encoder": ("transfer_images",),
}


def _missing(card: Card, networks: Sequence[Spec]) -> frozenset[str]:
    """Request fields whose network is not there."""
    held = {spec.name for spec in networks}
    absent = (fields for end, fields in _ASK_FOR.items() if f"{card.name}_{end}" not in held)
    return frozenset(field for fields in absent for field in fields)


def _engine(card: Card, family: Family[Any], repository: Path, checked: bool) -> Engine:
    safety = with_checker(card) if checked else NO_SAFETY
    templates = family.templates(card)
    networks = family.engines(card)
    preprocessors = _preprocessors(repository) if any(_takes_maps(spec) for spec in templates) else ()
    specs = (*preprocessors, *networks, *safety.specs)
    names = dict.fromkeys(text.engine for text in family.texts(card))
    return Engine(
        card=card,
        family=family,
        specs=specs,
        templates=templates,
        preprocessors=preprocessors,
        refuses=family.refuses(card) | _missing(card, (*networks, *templates)),
        schedule=noise_schedule(card.scheduler),
        tokenizers={name: TextTokenizer(repository / name / "tokenizer.json") for name in names},
        safety=safety,
    )


def _takes_maps(spec: Spec) -> bool:
    return any(port.name == "control" for port in spec.inputs)


def _preprocessors(repository: Path) -> tuple[Spec, ...]:
    """Engines of no card: the export of each is a folder of its own."""
    found = sorted(path.parent.name for path in repository.glob("preprocessor_*/config.pbtxt"))
    return tuple(preprocessor(name.removeprefix("preprocessor_")) for name in found)
