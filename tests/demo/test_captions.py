"""Captions say the whole scene: two scenes that look different never share a caption."""

import random
from dataclasses import replace

from demo.captions import AT_PLACE, caption, own_place
from demo.scenes import COLOURS, KINDS, Scene, sample


def test_no_caption_belongs_to_two_scenes() -> None:
    rng = random.Random(3)
    said: dict[str, Scene] = {}
    for _ in range(20000):
        scene = replace(sample(rng), seed=0)
        words = caption(scene, rng)
        assert said.setdefault(words, scene) == scene, words


def test_captions_of_one_scene_vary() -> None:
    rng = random.Random(4)
    scene = next(scene for scene in iter(lambda: sample(rng), None) if len(scene.things) == 2)
    assert len({caption(scene, rng) for _ in range(100)}) > 60


def test_a_colour_that_is_not_natural_is_always_named() -> None:
    rng = random.Random(6)
    for _ in range(3000):
        scene = sample(rng)
        words = caption(scene, rng)
        for thing in scene.things:
            if thing.colour != KINDS[thing.kind].natural:
                assert thing.colour in words


def test_a_place_that_is_not_taken_for_granted_is_always_named() -> None:
    rng = random.Random(7)
    names = {
        "meadow": ("meadow", "hills", "field", "grass"),
        "sea": ("sea", "ocean", "beach", "water", "lake"),
        "desert": ("desert", "dunes"),
        "snow": ("snow", "winter"),
    }
    assert names.keys() == AT_PLACE.keys()
    for _ in range(3000):
        scene = sample(rng)
        if scene.place != own_place(scene.things) or not scene.things:
            words = caption(scene, rng)
            assert any(name in words for name in names[scene.place]), words


def test_captions_use_every_colour() -> None:
    rng = random.Random(8)
    words = " ".join(caption(sample(rng), rng) for _ in range(2000))
    assert all(colour in words for colour in COLOURS)
