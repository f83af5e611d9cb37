"""What a checkpoint scores: pictures of captions that no training drew, judged by the probes."""

import random
import time

import numpy as np

from demo.captions import caption
from demo.draw import Artist
from demo.probes import examine, summary
from demo.scenes import Scene, sample

SEED = 20_000_001  # no training's


def prompts(count: int) -> list[tuple[str, Scene]]:
    """Captions with their scenes, each with a thing in it."""
    rng = random.Random(SEED)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample(rng)
        if scene.things:
            scenes.append(scene)
    return [(caption(scene, rng), scene) for scene in scenes]


def run(artist: Artist, count: int, width: int, height: int, steps: int, guidance: float) -> dict[str, float]:
    """Prints and returns the shares of probes passed, and tells failures as they come; picture k has seed k."""
    start = time.monotonic()
    facts = []
    for number, (prompt, scene) in enumerate(prompts(count)):
        picture = artist.draw(prompt, number, width, height, steps, guidance)
        facts.append(examine(np.asarray(picture), scene))
        if not facts[-1].all:
            print(f"{number + 1} of {count} fails: {prompt}: {facts[-1]}", flush=True)
    result = summary(facts)
    each = (time.monotonic() - start) / count
    print(
        f"{count} prompts, {width}x{height}, {steps} steps, guidance {guidance}: {result} ({each:.1f} s a picture)",
        flush=True,
    )
    return result
