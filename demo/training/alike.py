"""Scenes that share something with a scene, and the words for the rest: what image prompts are trained and judged with.

Knows no network.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from demo.captions import AT_TIME, caption
from demo.scenes import COLOURS, KINDS, TIMES, Scene, Thing


def sky(scene: Scene, rng: random.Random) -> Scene:
    """With the lights that its time allows."""
    night = scene.time == "night"
    return replace(
        scene,
        sun=scene.time in ("sunset", "dawn") or (scene.time == "day" and rng.random() < 0.4),
        moon=night and rng.random() < 0.5,
        stars=night and rng.random() < 0.5,
        seed=rng.randrange(1 << 30),
    )


def same(scene: Scene, rng: random.Random) -> Scene:
    """The scene drawn again."""
    return replace(scene, seed=rng.randrange(1 << 30))


def alike_in_style(scene: Scene, rng: random.Random) -> Scene:
    """Another scene in the same place and light, its things others, elsewhere, in the same colours."""
    colours = [thing.colour for thing in scene.things] or list(COLOURS)
    kinds = [name for name, kind in KINDS.items() if kind.coloured and scene.place in kind.places]
    sides = rng.choice((("left",), ("middle",), ("right",), ("left", "right"), ("left", "right")))
    rng.shuffle(colours)
    things = tuple(Thing(rng.choice(kinds), colours[n % len(colours)], side) for n, side in enumerate(sides))
    return sky(replace(scene, things=things, clouds=rng.random() < 0.22, mountains=rng.random() < 0.2), rng)


def alike_in_composition(scene: Scene, rng: random.Random) -> Scene:
    """The same things at the same places in another light and in other colours."""
    things = [t if not KINDS[t.kind].coloured else replace(t, colour=rng.choice(list(COLOURS))) for t in scene.things]
    return sky(replace(scene, things=tuple(things), time=rng.choice([t for t in TIMES if t != scene.time])), rng)


def what_stands_where(scene: Scene, rng: random.Random) -> str:
    """Words for everything but light and colours."""
    natural = tuple(replace(thing, colour=KINDS[thing.kind].natural) for thing in scene.things)
    plain = replace(scene, things=natural, time="day", sun=False, moon=False, stars=False)
    unsaid = {*filter(None, AT_TIME["day"]), *(f"{t.colour} " for t in natural), "daylight", " day", "day,"}
    text = caption(plain, rng)
    while any(words in text for words in unsaid):
        text = caption(plain, rng)
    return text


def which_light(scene: Scene, rng: random.Random) -> str:
    """Words for the place and its light."""
    return caption(replace(scene, things=()), rng)


@dataclass(frozen=True)
class Method:
    """One way to use an adapter."""

    share: float  # of the batches
    reference: Callable[[Scene, random.Random], Scene]
    other_half: Callable[[Scene, random.Random], str]  # words for what the image does not tell
    silent: float  # share of pictures without words; half of the others have the other half's, half all words


METHODS: Mapping[str, Method] = {
    "full": Method(0.24, same, caption, 0.8),
    "style": Method(0.4, alike_in_style, what_stands_where, 0.5),
    "composition": Method(0.36, alike_in_composition, which_light, 0.6),
}
