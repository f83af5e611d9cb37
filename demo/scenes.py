"""What the default checkpoints know: a scene as a value, scenes at random, and a scene as a picture of any size.

A scene says all that its picture shows; only small shifts of place and size come from its seed. Words are none of
this file's business (`captions.py`), nor is any model.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import skia

Colour = tuple[float, float, float]  # red, green, blue, 0..255
Point = tuple[float, float]  # x, y in pixels, y down

COLOURS: dict[str, Colour] = {
    "red": (226, 52, 48),
    "orange": (250, 134, 30),
    "yellow": (252, 214, 44),
    "green": (40, 160, 76),
    "blue": (40, 100, 220),
    "purple": (138, 70, 196),
    "pink": (248, 128, 176),
    "white": (248, 248, 244),
}
TIMES = ("day", "sunset", "night", "dawn")
PLACES = ("meadow", "sea", "desert", "snow")
SIDES: dict[str, float] = {"left": 0.26, "middle": 0.5, "right": 0.74}  # share of the width

# top of the sky, sky at the horizon
SKY: dict[str, tuple[Colour, Colour]] = {
    "day": ((84, 172, 240), (208, 238, 252)),
    "sunset": ((232, 84, 80), (255, 206, 110)),
    "night": ((16, 22, 66), (56, 66, 136)),
    "dawn": ((150, 136, 222), (252, 204, 214)),
}
# far, middle, near
GROUND: dict[str, tuple[Colour, Colour, Colour]] = {
    "meadow": ((140, 202, 108), (110, 186, 90), (82, 166, 74)),
    "sea": ((52, 140, 200), (38, 118, 182), (26, 96, 162)),
    "desert": ((242, 208, 140), (232, 188, 112), (218, 166, 92)),
    "snow": ((226, 236, 248), (244, 248, 252), (220, 230, 246)),
}
# the light's colour and how much of it lies on everything that does not shine itself
LIGHT: dict[str, tuple[Colour, float]] = {
    "day": ((255, 255, 255), 0.0),
    "sunset": ((150, 50, 60), 0.14),
    "night": ((20, 26, 80), 0.36),
    "dawn": ((190, 140, 200), 0.12),
}
HORIZON = 0.6  # share of the height
BROWN: Colour = (124, 80, 54)
DARK: Colour = (40, 40, 48)


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """`one` with `share` of `other` in it."""
    keep = 1 - share
    return (one[0] * keep + other[0] * share, one[1] * keep + other[1] * share, one[2] * keep + other[2] * share)


def lit(colour: Colour, time: str) -> Colour:
    """How a colour that does not shine itself looks at a time of day."""
    return mix(colour, *LIGHT[time])


def _darker(colour: Colour, share: float) -> Colour:
    return mix(colour, (20, 20, 40), share)


def _lighter(colour: Colour, share: float) -> Colour:
    return mix(colour, (255, 255, 255), share)


@dataclass(frozen=True)
class Thing:
    kind: str
    colour: str
    side: str


@dataclass(frozen=True)
class Scene:
    place: str
    time: str
    things: tuple[Thing, ...]  # none, one, or left and right
    sun: bool  # always there at sunset and dawn, never at night
    moon: bool  # at night only
    stars: bool  # at night only
    clouds: bool
    mountains: bool
    seed: int  # the small shifts


class Pen:
    """Draws on one canvas under one light, in pixels."""

    def __init__(self, canvas: skia.Canvas, time: str) -> None:
        self._canvas = canvas
        self._time = time

    @property
    def window(self) -> Colour:
        """A window's glass: lamplight at night."""
        return (255, 226, 120) if self._time == "night" else (200, 234, 252)

    def _paint(self, colour: Colour, shines: bool, opacity: float) -> skia.Paint:
        red, green, blue = (round(value) for value in (colour if shines else lit(colour, self._time)))
        return skia.Paint(AntiAlias=True, Color=skia.Color(red, green, blue, round(255 * opacity)))

    def polygon(self, points: list[Point], colour: Colour, shines: bool = False, opacity: float = 1.0) -> None:
        path = skia.Path()
        path.addPoly([skia.Point(*point) for point in points], True)
        self._canvas.drawPath(path, self._paint(colour, shines, opacity))

    def circle(self, x: float, y: float, r: float, colour: Colour, shines: bool = False, opacity: float = 1.0) -> None:
        self._canvas.drawCircle(x, y, r, self._paint(colour, shines, opacity))

    def box(
        self, x0: float, y0: float, x1: float, y1: float, colour: Colour, r: float = 0.0, shines: bool = False
    ) -> None:
        self._canvas.drawRoundRect(skia.Rect(x0, y0, x1, y1), r, r, self._paint(colour, shines, 1.0))

    def oval(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        self._canvas.drawOval(skia.Rect(x0, y0, x1, y1), self._paint(colour, False, 1.0))

    def curve(self, start: Point, cubics: list[tuple[Point, Point, Point]], colour: Colour) -> None:
        path = skia.Path()
        path.moveTo(*start)
        for one, two, end in cubics:
            path.cubicTo(*one, *two, *end)
        path.close()
        self._canvas.drawPath(path, self._paint(colour, False, 1.0))


# Every drawing below: x, y is the middle of the foot, h the height, all in pixels.


def _house(pen: Pen, x: float, y: float, h: float, colour: Colour) -> None:
    pen.box(x - h * 0.44, y - h * 0.56, x + h * 0.44, y, _lighter(colour, 0.55))
    pen.polygon([(x - h * 0.56, y - h * 0.54), (x, y - h), (x + h * 0.56, y - h * 0.54)], colour)
    pen.box(x - h * 0.1, y - h * 0.36, x + h * 0.1, y, _darker(colour, 0.4))
    for side in (-0.29, 0.29):
        pen.box(x + h * (side - 0.09), y - h * 0.4, x + h * (side + 0.09), y - h * 0.18, pen.window, shines=True)


def _tree(pen: Pen, x: float, y: float, h: float, colour: Colour) -> None:
    pen.box(x - h * 0.06, y - h * 0.45, x + h * 0.06, y, BROWN)
    for dx, dy, r in ((0.0, 0.68, 0.32), (-0.22, 0.52, 0.2), (0.22, 0.52, 0.2)):
        pen.circle(x + h * dx, y - h * dy, h * r, colour)


def _pine(pen: Pen, x: float, y: float, h: float, colour: Colour) -> None:
    pen.box(x - h * 0.05, y - h * 0.2, x + h * 0.05, y, BROWN)
    for low, high, wide, light in ((0.14, 0.56, 0.34, 0.0), (0.36, 0.78, 0.27, 0.12), (0.58, 1.0, 0.2, 0.24)):
        points = [(x - h * wide, y - h * low), (x, y - h * high), (x + h * wide, y - h * low)]
        pen.polygon(points, _lighter(colour, light))


def _sailboat(pen: Pen, x: float, y: float, h: float, colour: Colour) -> None:
    pen.box(x - h * 0.02, y - h, x + h * 0.02, y - h * 0.2, BROWN)
    pen.polygon([(x + h * 0.04, y - h * 0.96), (x + h * 0.04, y - h * 0.28), (x + h * 0.46, y - h * 0.28)], colour)
    pen.polygon([(x - h * 0.04, y - h * 0.84), (x - h * 0.04, y - h * 0.28), (x - h * 0.38, y - h * 0.28)], colour)
    hull = [(x - h * 0.46, y - h * 0.22), (x + h * 0.48, y - h * 0.22), (x + h * 0.33, y), (x - h * 0.31, y)]
    pen.polygon(hull, (150, 92, 56))


def _lighthouse(pen: Pen, x: float, y: float, h: float, colour: Colour) -> None:
    def half(height: float) -> float:
        return h * (0.17 - 0.08 * height)

    for band in range(4):
        low, high = band * 0.19, (band + 1) * 0.19
        points = [(x - half(low), y - h * low), (x + half(low), y - h * low)]
        points += [(x + half(high), y - h * high), (x - half(high), y - h * high)]
        pen.polygon(points, colour if band % 2 == 0 else (246, 244, 240) if colour != COLOURS["white"] else DARK)
    pen.box(x - h * 0.08, y - h * 0.88, x + h * 0.08, y - h * 0.76, (255, 230, 120), shines=True)
    pen.polygon([(x - h * 0.12, y - h * 0.88), (x, y - h), (x + h * 0.12, y - h * 0.88)], _darker(colour, 0.2))


def _flower(pen: Pen, x: float, y: float, h: float, colour: Colour) -> None:
    pen.box(x - h * 0.03, y - h * 0.6, x + h * 0.03, y, (50, 130, 60))
    pen.oval(x, y - h * 0.3, x + h * 0.24, y - h * 0.18, (50, 130, 60))
    for petal in range(6):
        angle = petal * math.pi / 3
        pen.circle(x + math.cos(angle) * h * 0.19, y - h * 0.68 + math.sin(angle) * h * 0.19, h * 0.13, colour)
    pen.circle(x, y - h * 0.68, h * 0.11, (252, 206, 60) if colour != COLOURS["yellow"] else (226, 110, 40))


def _mushroom(pen: Pen, x: float, y: float, h: float, colour: Colour) -> None:
    pen.box(x - h * 0.14, y - h * 0.5, x + h * 0.14, y, (246, 234, 214), r=h * 0.07)
    cap = ((x - h * 0.48, y - h * 1.18), (x + h * 0.48, y - h * 1.18), (x + h * 0.52, y - h * 0.42))
    pen.curve((x - h * 0.52, y - h * 0.42), [cap], colour)
    for dx, dy, r in ((-0.2, 0.57, 0.075), (0.02, 0.8, 0.08), (0.23, 0.57, 0.07)):
        pen.circle(x + h * dx, y - h * dy, h * r, (250, 246, 240) if colour != COLOURS["white"] else (226, 120, 110))


def _tent(pen: Pen, x: float, y: float, h: float, colour: Colour) -> None:
    pen.polygon([(x - h * 0.75, y), (x, y - h), (x + h * 0.75, y)], colour)
    pen.polygon([(x - h * 0.22, y), (x, y - h * 0.66), (x + h * 0.22, y)], _darker(colour, 0.5))


def _balloon(pen: Pen, x: float, y: float, h: float, colour: Colour) -> None:
    r, middle = h * 0.38, y - h * 0.62
    cone = [(x - r * 0.86, middle + r * 0.5), (x + r * 0.86, middle + r * 0.5)]
    pen.polygon([*cone, (x + h * 0.09, y - h * 0.14), (x - h * 0.09, y - h * 0.14)], colour)
    pen.circle(x, middle, r, colour)
    pen.oval(x - r * 0.36, middle - r, x + r * 0.36, middle + r, _lighter(colour, 0.45))
    pen.box(x - h * 0.1, y - h * 0.14, x + h * 0.1, y, BROWN)


def _windmill(pen: Pen, x: float, y: float, h: float, colour: Colour) -> None:
    tower = [(x - h * 0.2, y), (x + h * 0.2, y), (x + h * 0.12, y - h * 0.62), (x - h * 0.12, y - h * 0.62)]
    pen.polygon(tower, (244, 234, 218))
    pen.box(x - h * 0.06, y - h * 0.2, x + h * 0.06, y, BROWN)
    for blade in range(4):
        cos, sin = math.cos(math.pi / 4 + blade * math.pi / 2), math.sin(math.pi / 4 + blade * math.pi / 2)
        corners = ((0.02, -0.07), (0.42, -0.07), (0.42, 0.07), (0.02, 0.07))
        pen.polygon([(x + (cos * u - sin * v) * h, y - h * 0.62 + (sin * u + cos * v) * h) for u, v in corners], colour)
    pen.circle(x, y - h * 0.62, h * 0.04, DARK)


def _cactus(pen: Pen, x: float, y: float, h: float, colour: Colour) -> None:
    pen.box(x - h * 0.12, y - h, x + h * 0.12, y, colour, r=h * 0.12)
    for x0, x1, top, bottom in ((-0.42, -0.26, 0.76, 0.34), (0.26, 0.42, 0.84, 0.46)):
        pen.box(x + h * x0, y - h * top, x + h * x1, y - h * bottom, colour, r=h * 0.08)
        pen.box(x + h * min(x0, 0), y - h * (bottom + 0.14), x + h * max(x1, 0), y - h * bottom, colour, r=h * 0.07)


def _snowman(pen: Pen, x: float, y: float, h: float, colour: Colour) -> None:
    for height, r in ((0.26, 0.27), (0.62, 0.21)):
        pen.circle(x, y - h * height, h * r, (186, 204, 232))
        pen.circle(x, y - h * height, h * (r - 0.025), colour)
    pen.box(x - h * 0.22, y - h * 0.84, x + h * 0.22, y - h * 0.78, DARK)
    pen.box(x - h * 0.13, y - h, x + h * 0.13, y - h * 0.8, DARK)
    pen.box(x - h * 0.19, y - h * 0.5, x + h * 0.19, y - h * 0.42, (226, 52, 48))
    pen.polygon([(x, y - h * 0.67), (x + h * 0.18, y - h * 0.62), (x, y - h * 0.59)], (250, 134, 30))
    for dx in (-0.08, 0.08):
        pen.circle(x + h * dx, y - h * 0.69, h * 0.03, DARK)


def _cat(pen: Pen, x: float, y: float, h: float, colour: Colour) -> None:
    body = [
        ((x - h * 0.34, y - h * 0.5), (x - h * 0.14, y - h * 0.6), (x, y - h * 0.6)),
        ((x + h * 0.14, y - h * 0.6), (x + h * 0.34, y - h * 0.5), (x + h * 0.3, y)),
    ]
    tail = [
        ((x + h * 0.7, y - h * 0.02), (x + h * 0.62, y - h * 0.5), (x + h * 0.5, y - h * 0.5)),
        ((x + h * 0.46, y - h * 0.5), (x + h * 0.56, y - h * 0.14), (x + h * 0.2, y - h * 0.14)),
    ]
    pen.curve((x + h * 0.22, y), tail, _darker(colour, 0.12))
    pen.curve((x - h * 0.3, y), body, colour)
    pen.circle(x, y - h * 0.68, h * 0.25, colour)
    for side in (-1, 1):
        ear = [(x + side * h * 0.24, y - h * 0.7), (x + side * h * 0.22, y - h), (x + side * h * 0.03, y - h * 0.88)]
        pen.polygon(ear, colour)
        pen.circle(x + side * h * 0.1, y - h * 0.7, h * 0.04, DARK)
    pen.polygon([(x - h * 0.04, y - h * 0.62), (x + h * 0.04, y - h * 0.62), (x, y - h * 0.57)], DARK)


@dataclass(frozen=True)
class Kind:
    draw: Callable[[Pen, float, float, float, Colour], None]
    height: float  # share of the picture's shorter side
    natural: str  # its colour where none is said
    coloured: bool  # whether it comes in other colours
    places: tuple[str, ...]
    flies: bool = False


KINDS: dict[str, Kind] = {
    "house": Kind(_house, 0.40, "red", True, PLACES),
    "tree": Kind(_tree, 0.44, "green", True, ("meadow", "snow", "sea")),
    "pine tree": Kind(_pine, 0.48, "green", False, ("meadow", "snow", "sea")),
    "sailboat": Kind(_sailboat, 0.44, "white", True, ("sea",)),
    "lighthouse": Kind(_lighthouse, 0.56, "red", True, ("sea", "meadow")),
    "flower": Kind(_flower, 0.42, "pink", True, ("meadow",)),
    "mushroom": Kind(_mushroom, 0.34, "red", True, ("meadow",)),
    "tent": Kind(_tent, 0.30, "orange", True, PLACES),
    "hot air balloon": Kind(_balloon, 0.40, "yellow", True, PLACES, flies=True),
    "windmill": Kind(_windmill, 0.48, "blue", True, ("meadow", "sea", "desert")),
    "cactus": Kind(_cactus, 0.42, "green", False, ("desert",)),
    "snowman": Kind(_snowman, 0.44, "white", False, ("snow",)),
    "cat": Kind(_cat, 0.38, "orange", True, PLACES),
}
FLOATS = ("sailboat",)  # needs no island on the sea


def sample(rng: random.Random) -> Scene:
    """A scene at random; every one can be said in words without rest."""
    place = rng.choices(PLACES, (0.32, 0.32, 0.16, 0.20))[0]
    time = rng.choices(TIMES, (0.34, 0.26, 0.24, 0.16))[0]
    sides = rng.choices(((), ("left",), ("middle",), ("right",), ("left", "right")), (0.04, 0.11, 0.17, 0.11, 0.57))[0]
    names = [name for name, kind in KINDS.items() if place in kind.places]
    weights = [3.0 if name in FLOATS else 1.0 for name in names]
    things = []
    for side in sides:
        name = rng.choices(names, weights)[0]
        kind = KINDS[name]
        plain = not kind.coloured or rng.random() < 0.2
        things.append(Thing(name, kind.natural if plain else rng.choice(list(COLOURS)), side))
    if len(things) == 2 and rng.random() < 0.05:
        things[1] = Thing(things[0].kind, things[0].colour, "right")
    night = time == "night"
    return Scene(
        place=place,
        time=time,
        things=tuple(things),
        sun=time in ("sunset", "dawn") or (time == "day" and rng.random() < 0.4),
        moon=night and rng.random() < 0.5,
        stars=night and rng.random() < 0.5,
        clouds=rng.random() < 0.22,
        mountains=rng.random() < 0.2,
        seed=rng.randrange(1 << 30),
    )


def _sky(canvas: skia.Canvas, pen: Pen, scene: Scene, width: int, height: int, rng: random.Random) -> None:
    horizon, unit = height * HORIZON, min(width, height)
    top, bottom = (skia.Color(*(round(value) for value in colour)) for colour in SKY[scene.time])
    shader = skia.GradientShader.MakeLinear([skia.Point(0, 0), skia.Point(0, horizon)], [top, bottom])
    canvas.drawPaint(skia.Paint(Shader=shader))
    if scene.stars:
        for column in range(7):
            for row in range(2):
                x = width * (column + 0.25 + 0.5 * ((row + column) % 2) + rng.uniform(-0.12, 0.12)) / 7
                y = horizon * (0.1 + 0.42 * row + 0.1 * (column % 3) + rng.uniform(-0.03, 0.03))
                r = unit * 0.02
                points = [(x, y - r), (x + r * 0.3, y - r * 0.3), (x + r, y), (x + r * 0.3, y + r * 0.3)]
                points += [(x, y + r), (x - r * 0.3, y + r * 0.3), (x - r, y), (x - r * 0.3, y - r * 0.3)]
                pen.polygon(points, (255, 250, 210), shines=True)
    if scene.sun:
        low = scene.time != "day"
        r = unit * (0.12 if low else 0.085)
        x = width * 0.5 + unit * rng.uniform(-0.02, 0.02)
        y = horizon * (0.84 if low else 0.2)
        colour = {"day": (255, 214, 60), "sunset": (255, 232, 120), "dawn": (255, 168, 140)}[scene.time]
        pen.circle(x, y, r * 1.45, _lighter(colour, 0.3), shines=True, opacity=0.35)
        pen.circle(x, y, r, colour, shines=True)
    if scene.moon:
        x, y, r = width * 0.5 + unit * rng.uniform(-0.02, 0.02), horizon * 0.24, unit * 0.085
        pen.circle(x, y, r * 1.4, (200, 210, 255), shines=True, opacity=0.16)
        pen.circle(x, y, r, (250, 244, 214), shines=True)
    if scene.clouds:
        tone: Colour = {
            "day": (255, 255, 255), "sunset": (255, 190, 150), "night": (96, 106, 168), "dawn": (255, 234, 240)
        }[scene.time]  # fmt: skip
        for slot, level in ((0.22, 0.22), (0.8, 0.3)):
            x, y = width * slot + unit * rng.uniform(-0.03, 0.03), horizon * (level + rng.uniform(-0.03, 0.03))
            size = unit * 0.17
            for dx, dy, r in ((-0.5, 0, 0.28), (-0.12, -0.16, 0.36), (0.3, -0.06, 0.3), (0.6, 0.05, 0.2)):
                pen.circle(x + dx * size, y + dy * size, r * size, tone, shines=True)
            pen.box(x - 0.76 * size, y, x + 0.78 * size, y + 0.26 * size, tone, r=0.13 * size, shines=True)
    if scene.mountains:
        peaks = max(3, round(width / unit * 3))
        rock = mix((112, 122, 160), SKY[scene.time][1], 0.25)
        for index in range(peaks + 1):
            x = width * index / peaks + unit * rng.uniform(-0.015, 0.015)
            tall = unit * (0.3 if index % 2 == 0 else 0.22)
            wide = unit * 0.26
            pen.polygon(
                [(x - wide, horizon + unit * 0.03), (x, horizon - tall), (x + wide, horizon + unit * 0.03)], rock
            )
            slope = wide / (tall + unit * 0.03)
            cap = tall * 0.3
            pen.polygon(
                [(x - cap * slope, horizon - tall + cap), (x, horizon - tall), (x + cap * slope, horizon - tall + cap)],
                (244, 246, 252),
            )


def _ground(pen: Pen, scene: Scene, width: int, height: int, rng: random.Random) -> None:
    horizon, unit = height * HORIZON, min(width, height)
    depth, tones = height - horizon, GROUND[scene.place]
    if scene.place == "sea":
        tones = tuple(mix(tone, SKY[scene.time][1], 0.0 if scene.time == "day" else 0.2) for tone in tones)  # type: ignore[assignment]
        pen.box(0, horizon, width, height, tones[0])
    phase = rng.uniform(-0.5, 0.5)
    for level, tone, swell, waves in zip((0.0, 0.32, 0.68), tones, (0.01, 0.03, 0.03), (0.8, 1.1, 0.9), strict=True):
        if scene.place == "sea":
            if level == 0.0:
                continue
            swell, waves = 0.01, 5.0 * width / unit
        points: list[Point] = [(-1, height), (width + 1, height)]
        for step in range(96, -1, -1):
            share = step / 96
            wave = math.sin(phase + level * 9 + share * waves * 2 * math.pi)
            points.append((width * share, horizon + unit * 0.02 + depth * level + unit * swell * wave))
        pen.polygon(points, tone)


def _things(pen: Pen, scene: Scene, width: int, height: int, rng: random.Random) -> None:
    horizon, unit = height * HORIZON, min(width, height)
    for thing in scene.things:
        kind = KINDS[thing.kind]
        tall = unit * kind.height * (1 + rng.uniform(-0.05, 0.05))
        x = width * SIDES[thing.side] + unit * rng.uniform(-0.02, 0.02)
        foot = horizon + (height - horizon) * (0.48 + rng.uniform(-0.05, 0.05))
        if kind.flies:
            foot = horizon - unit * (0.02 + rng.uniform(-0.02, 0.02))
        elif scene.place == "sea" and thing.kind not in FLOATS:
            pen.oval(x - unit * 0.23, foot - unit * 0.04, x + unit * 0.23, foot + unit * 0.055, (226, 196, 134))
        kind.draw(pen, x, foot, tall, COLOURS[thing.colour])


def render(scene: Scene, width: int, height: int) -> np.ndarray:
    """The scene's picture."""
    pixels = np.empty((height, width, 4), np.uint8)
    canvas = skia.Surface(pixels, colorType=skia.kRGBA_8888_ColorType).getCanvas()
    pen, rng = Pen(canvas, scene.time), random.Random(scene.seed)
    _sky(canvas, pen, scene, width, height, rng)
    _ground(pen, scene, width, height, rng)
    _things(pen, scene, width, height, rng)
    return np.ascontiguousarray(pixels[..., :3])  # h w 3, uint8
