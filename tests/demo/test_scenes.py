"""The drawn scenes: what is said is in the picture, at every size, and the same seed gives the same picture."""

import random
from dataclasses import replace

import numpy as np
import pytest

from demo.scenes import COLOURS, KINDS, LIGHT, PLACES, TIMES, Scene, Thing, lit, render, sample

PLAIN = Scene("meadow", "day", (), sun=False, moon=False, stars=False, clouds=False, mountains=False, seed=1)


def _near(picture: np.ndarray, colour: tuple[float, float, float]) -> np.ndarray:
    return np.abs(picture.astype(float) - np.array(colour)).max(-1) < 12


def test_a_scene_and_a_size_give_one_picture() -> None:
    scene = sample(random.Random(5))
    assert np.array_equal(render(scene, 128, 192), render(scene, 128, 192))


@pytest.mark.parametrize("size", [(384, 704), (1536, 1024), (512, 512)])
def test_a_picture_has_the_size_that_was_asked_for(size: tuple[int, int]) -> None:
    picture = render(PLAIN, *size)
    assert picture.shape == (size[1], size[0], 3)
    assert picture.dtype == np.uint8


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.coloured])
@pytest.mark.parametrize("time", TIMES)
def test_a_coloured_thing_shows_its_colour_on_its_side_only(kind: str, time: str) -> None:
    # purple is in no background at any time of day
    with_it = render(replace(PLAIN, time=time, things=(Thing(kind, "purple", "left"),)), 256, 256)
    seen = _near(with_it, lit(COLOURS["purple"], time))
    assert seen[:, :128].mean() > 0.02
    assert seen[:, 160:].mean() < 0.002


def test_every_fact_of_a_scene_changes_its_picture() -> None:
    night = replace(PLAIN, time="night")
    day = render(PLAIN, 128, 128)
    for other in (replace(PLAIN, sun=True), replace(PLAIN, clouds=True), replace(PLAIN, mountains=True)):
        assert (render(other, 128, 128) != day).any(-1).mean() > 0.01
    for other in (replace(night, moon=True), replace(night, stars=True)):
        assert (render(other, 128, 128) != render(night, 128, 128)).any(-1).mean() > 0.005
    assert len({render(replace(PLAIN, place=place), 64, 64)[60].tobytes() for place in PLACES}) == len(PLACES)
    assert len({render(replace(PLAIN, time=time), 64, 64)[2].tobytes() for time in TIMES}) == len(TIMES)


def test_the_night_is_the_darkest_light_and_day_leaves_colours_alone() -> None:
    assert lit(COLOURS["red"], "day") == COLOURS["red"]
    assert min(TIMES, key=lambda time: sum(lit((255.0, 255.0, 255.0), time))) == "night"
    assert LIGHT["day"][1] == 0


def test_scenes_at_random_keep_their_own_rules() -> None:
    rng = random.Random(2)
    for _ in range(2000):
        scene = sample(rng)
        assert scene.sun or scene.time not in ("sunset", "dawn")
        assert scene.time == "night" or not (scene.moon or scene.stars)
        assert scene.time != "night" or not scene.sun
        sides = [thing.side for thing in scene.things]
        assert sides in ([], ["left"], ["middle"], ["right"], ["left", "right"])
        for thing in scene.things:
            kind = KINDS[thing.kind]
            assert scene.place in kind.places
            assert kind.coloured or thing.colour == kind.natural
