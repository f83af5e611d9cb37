"""The probes pass what was drawn for a scene and fail pictures of anything else."""

import random
from dataclasses import replace

import numpy as np
import pytest

from demo.probes import examine, summary
from demo.scenes import Scene, Thing, render, sample

SCENE = Scene(
    "sea", "sunset", (Thing("house", "red", "left"), Thing("sailboat", "white", "right")),
    sun=True, moon=False, stars=False, clouds=False, mountains=False, seed=11,
)  # fmt: skip


def _scenes(count: int) -> list[Scene]:
    rng = random.Random(12)
    return [scene for scene in (sample(rng) for _ in range(2 * count)) if scene.things][:count]


def test_drawn_scenes_pass_and_shuffled_ones_fail() -> None:
    scenes = _scenes(12)
    pictures = [render(scene, 256, 256) for scene in scenes]
    assert summary([examine(*pair) for pair in zip(pictures, scenes, strict=True)])["all"] >= 0.93
    shuffled = pictures[5:] + pictures[:5]
    assert summary([examine(*pair) for pair in zip(shuffled, scenes, strict=True)])["all"] == 0


@pytest.mark.parametrize("size", [(384, 704), (768, 512)])
def test_other_shapes_of_picture_pass_too(size: tuple[int, int]) -> None:
    assert examine(render(SCENE, *size), SCENE).all


def test_each_wrong_fact_fails_its_own_probe() -> None:
    house, boat = SCENE.things
    right = examine(render(SCENE, 256, 256), SCENE)
    assert right.all
    assert all(right.extras)
    night = replace(SCENE, time="night", sun=False)
    assert not examine(render(night, 256, 256), SCENE).time
    assert not examine(render(replace(SCENE, place="snow"), 256, 256), SCENE).place
    blue = replace(SCENE, things=(replace(house, colour="blue"), boat))
    assert examine(render(blue, 256, 256), SCENE).colours == (False, True)
    tent = replace(SCENE, things=(replace(house, kind="tent"), boat))
    assert examine(render(tent, 256, 256), SCENE).kinds == (False, True)
    alone = replace(SCENE, things=(boat,))
    assert examine(render(alone, 256, 256), SCENE).kinds == (False, True)
    swapped = replace(SCENE, things=(replace(boat, side="left"), replace(house, side="right")))
    assert examine(render(swapped, 256, 256), SCENE).kinds == (False, False)
    assert not all(examine(render(replace(SCENE, mountains=True), 256, 256), SCENE).extras)


def test_an_even_picture_fails() -> None:
    assert not examine(np.full((256, 256, 3), 128, np.uint8), SCENE).all
