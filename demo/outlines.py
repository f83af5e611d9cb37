"""Does the refiner do what it was trained to do? It was shown that a low score means soft outlines."""

import numpy as np
from PIL import Image

from demo.draw import Artist
from demo.scenes import render
from demo.score import prompts

STEEPEST = 0.02  # share of a picture's places that are looked at


def steepness(picture: np.ndarray) -> float:
    """Mean difference of neighbouring pixels (0..255) where it is greatest. picture: h w 3, uint8."""
    levels = picture.astype(np.float32)
    across = np.abs(np.diff(levels, axis=1)).mean(2)[:-1]
    down = np.abs(np.diff(levels, axis=0)).mean(2)[:, :-1]
    steps = np.sort(np.maximum(across, down), axis=None)
    return float(steps[-max(1, int(len(steps) * STEEPEST)) :].mean())


def compare(base: Artist, refined: Artist, count: int, steps: int, guidance: float) -> tuple[float, float, float]:
    """Prints and returns the mean steepness of outlines without and with the refiner, and of drawn scenes."""
    rows = []
    for seed, (prompt, scene) in enumerate(prompts(count)):
        pictures = [artist.draw(prompt, seed, 1024, 1024, steps, guidance) for artist in (base, refined)]
        drawn = render(scene, 1024, 1024)
        rows.append([steepness(np.asarray(picture)) for picture in (*pictures, Image.fromarray(drawn))])
    without, with_it, truth = (float(value) for value in np.mean(rows, axis=0))
    print(f"{count} prompts: steepness {without:.1f} without, {with_it:.1f} with the refiner, {truth:.1f} as drawn")
    return without, with_it, truth
