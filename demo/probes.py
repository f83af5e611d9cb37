"""Does a picture show its scene? No model judges: of all scenes that differ in one fact, the said one is nearest.

For each fact the said scene and its alternatives are drawn, and the picture is compared with all of them there, and
only there, where they tell it. Small shifts of place are forgiven. A picture passes as a whole if all facts hold.
"""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from demo.scenes import COLOURS, HORIZON, KINDS, PLACES, SIDES, TIMES, Scene, Thing, render

SIDE = 64  # pictures are compared at 64 px on the shorter side
SHIFTS = [(dx, dy) for dy in range(-4, 5) for dx in range(-3, 4)]  # in those pixels


@dataclass(frozen=True)
class Facts:
    """What holds in a picture."""

    time: bool
    place: bool
    kinds: tuple[bool, ...]  # of each thing: its kind stands on its side
    colours: tuple[bool, ...]  # of each thing: in its colour
    extras: tuple[bool, ...]  # of clouds, mountains, sun by day, moon by night: there or not, as said

    @property
    def all(self) -> bool:
        """Time, place, and every thing's kind and colour."""
        return self.time and self.place and all(self.kinds) and all(self.colours)


def _small(picture: np.ndarray) -> np.ndarray:
    """h w 3 float32, about 64 px on the shorter side."""
    height, width = picture.shape[:2]
    scale = SIDE / min(width, height)
    size = (round(width * scale), round(height * scale))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX), np.float32)


def _drawn(scene: Scene, picture: np.ndarray) -> np.ndarray:
    """The scene as small as the picture in `_small`, shifts of its own left out."""
    height, width = picture.shape[:2]
    scale = 4 * SIDE / min(width, height)
    return _small(render(scene, round(width * scale), round(height * scale)))


def _strip(small: np.ndarray, top: float, bottom: float) -> np.ndarray:
    """The middle colour of a horizontal strip."""
    rows = small[int(len(small) * top) : max(int(len(small) * bottom), int(len(small) * top) + 1)]
    return np.median(rows.reshape(-1, 3), axis=0)


def _distance(small: np.ndarray, other: np.ndarray, x0: int, x1: int, y0: int, y1: int) -> float:
    """Mean colour distance within a window, the least over small shifts of the other."""
    height, width = small.shape[:2]
    window = small[y0:y1, x0:x1]
    best = np.inf
    for dx, dy in SHIFTS:
        rows, columns = np.arange(y0, y1) + dy, np.arange(x0, x1) + dx
        moved = other[rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)]
        best = min(best, float(np.abs(window - moved).mean()))
    return best


def _with(scene: Scene, side: str, thing: Thing | None) -> Scene:
    others = [other for other in scene.things if other.side != side]
    things = sorted([*others, thing] if thing is not None else others, key=lambda each: SIDES[each.side])
    return replace(scene, things=tuple(things))


def _thing_holds(small: np.ndarray, picture: np.ndarray, scene: Scene, thing: Thing) -> tuple[bool, bool]:
    """Whether its kind, and whether its colour, is the nearest on its side."""
    height, width = small.shape[:2]
    middle = SIDES[thing.side] * width
    x0, x1 = max(0, int(middle - SIDE * 0.25)), min(width, int(middle + SIDE * 0.25) + 1)
    horizon = height * HORIZON
    y0, y1 = max(0, int(horizon - SIDE * 0.46)), min(height, int(horizon + (height - horizon) * 0.48 + SIDE * 0.1))

    def distance(candidate: Thing | None) -> float:
        return _distance(small, _drawn(_with(scene, thing.side, candidate), picture), x0, x1, y0, y1)

    said = distance(thing)
    kinds = [replace(thing, kind=name) for name in KINDS if name != thing.kind]
    colours = [replace(thing, colour=name) for name in COLOURS if name != thing.colour]
    nothing = distance(None)
    kind = said < nothing and all(said < distance(other) for other in kinds)
    return kind, said < nothing and all(said < distance(other) for other in colours)


def _extra_holds(small: np.ndarray, picture: np.ndarray, scene: Scene, opposite: Scene) -> bool:
    """Whether the picture is nearer to the scene than to its opposite in one extra, where they differ clearly."""
    said, other = _drawn(scene, picture), _drawn(opposite, picture)
    where = np.abs(said - other).sum(-1) > 60
    if not where.any():
        return True
    return bool(np.abs(small - said)[where].mean() < np.abs(small - other)[where].mean())


def examine(picture: np.ndarray, scene: Scene) -> Facts:
    """Judges one picture. picture: h w 3, uint8."""
    scene = replace(scene, seed=0)
    small = _small(picture)

    def nearest(top: float, bottom: float, scenes: list[Scene]) -> Scene:
        seen = _strip(small, top, bottom)
        return min(scenes, key=lambda each: float(np.abs(_strip(_drawn(each, picture), top, bottom) - seen).sum()))

    times = [
        replace(scene, time=time, sun=time in ("sunset", "dawn"), moon=False, stars=False, clouds=False)
        for time in TIMES
    ]
    places = [replace(scene, place=place) for place in PLACES]
    things = [_thing_holds(small, picture, scene, thing) for thing in scene.things]
    opposites = [replace(scene, clouds=not scene.clouds), replace(scene, mountains=not scene.mountains)]
    if scene.time == "night":
        opposites.append(replace(scene, moon=not scene.moon))
    if scene.time == "day":
        opposites.append(replace(scene, sun=not scene.sun))
    return Facts(
        time=nearest(0.0, 0.06, times).time == scene.time,
        place=nearest(0.9, 1.0, places).place == scene.place,
        kinds=tuple(kind for kind, _ in things),
        colours=tuple(colour for _, colour in things),
        extras=tuple(_extra_holds(small, picture, scene, opposite) for opposite in opposites),
    )


def summary(facts: list[Facts]) -> dict[str, float]:
    """Shares over pictures (time, place, all) and over things and extras."""
    kinds = [value for each in facts for value in each.kinds]
    colours = [value for each in facts for value in each.colours]
    extras = [value for each in facts for value in each.extras]
    columns = {
        "time": [each.time for each in facts], "place": [each.place for each in facts], "kind": kinds,
        "colour": colours, "extras": extras, "all": [each.all for each in facts],
    }  # fmt: skip
    return {name: round(float(np.mean(values)), 3) for name, values in columns.items()}
