"""Words for a scene: every caption says all of it, by name or by what is taken for granted.

Taken for granted: day; the place of the first thing that has one of its own, else a meadow; a thing's natural colour;
one thing stands in the middle, of two the first is on the left; sunset and dawn have their sun. Everything else that
is not named is not there.
"""

import random

from demo.scenes import KINDS, Scene, Thing

NAMES: dict[str, tuple[str, ...]] = {
    "house": ("house", "house", "house", "home", "cottage", "cabin", "hut"),
    "tree": ("tree", "tree", "oak tree"),
    "pine tree": ("pine tree", "pine tree", "fir tree", "pine", "christmas tree"),
    "sailboat": ("sailboat", "sailboat", "sailboat", "boat", "ship", "sailing boat", "yacht"),
    "lighthouse": ("lighthouse",),
    "flower": ("flower", "flower", "blossom"),
    "mushroom": ("mushroom", "mushroom", "toadstool"),
    "tent": ("tent", "tent", "camping tent"),
    "hot air balloon": ("hot air balloon", "hot air balloon", "balloon"),
    "windmill": ("windmill", "windmill", "mill"),
    "cactus": ("cactus",),
    "snowman": ("snowman",),
    "cat": ("cat", "cat", "cat", "kitten", "kitty"),
}
PLURAL = {"cactus": "cacti", "snowman": "snowmen", "kitty": "kitties"}
OWN_PLACE = {"sailboat": "sea", "lighthouse": "sea", "snowman": "snow", "cactus": "desert"}
AT_PLACE: dict[str, tuple[str, ...]] = {
    "meadow": ("in a meadow", "in a green meadow", "on green hills", "in a field", "on the grass", "in the meadow"),
    "sea": ("on the sea", "at sea", "on the ocean", "by the sea", "at the beach", "on the water", "on a lake"),
    "desert": ("in the desert", "in a sandy desert", "on the sand dunes", "in a desert"),
    "snow": ("in the snow", "in a snowy field", "in winter", "in a snowy landscape"),
}
PLACE_ALONE: dict[str, tuple[str, ...]] = {
    "meadow": ("a meadow", "green hills", "a green meadow", "a field", "grassland"),
    "sea": ("the sea", "the ocean", "a calm sea", "a lake", "open water"),
    "desert": ("the desert", "a sandy desert", "sand dunes", "a desert"),
    "snow": ("a snowy landscape", "a winter landscape", "a snowy field", "snow"),
}
AT_TIME: dict[str, tuple[str, ...]] = {
    "day": ("", "", "", "during the day", "under a blue sky", "at noon", "in daylight"),
    "sunset": ("at sunset", "at sunset", "in the evening", "under an orange sky", "at dusk"),
    "night": ("at night", "at night", "under a night sky", "in the dark", "at midnight"),
    "dawn": ("at dawn", "at sunrise", "in the early morning", "in the morning", "under a pink sky"),
}
SHORT_TIME = {
    "day": ("day", "daylight"),
    "sunset": ("sunset", "evening"),
    "night": ("night",),
    "dawn": ("dawn", "sunrise"),
}
SHORT_PLACE = {
    "meadow": ("meadow", "green hills", "field", "grass"),
    "sea": ("sea", "ocean", "beach"),
    "desert": ("desert", "sand dunes"),
    "snow": ("snow", "winter"),
}
SUN = ("the sun", "a bright sun", "sunshine", "a sun")
MOON = ("the moon", "a full moon", "moonlight", "a moon")
STARS = ("stars", "many stars", "a starry sky", "bright stars")
CLOUDS = ("clouds", "white clouds", "a cloudy sky", "two clouds")
MOUNTAINS = ("mountains", "snowy mountains", "mountains in the background", "distant mountains")
ON_SIDE: dict[str, tuple[str, ...]] = {
    "left": ("on the left", "on the left", "on the left side", "to the left"),
    "middle": ("in the middle", "in the center", "in the centre"),
    "right": ("on the right", "on the right", "on the right side", "to the right"),
}
BEFORE = ("a picture of ", "an illustration of ", "a drawing of ", "a painting of ", "a photo of ", "an image of ")
BEFORE += ("flat illustration, ", "vector art of ", "a beautiful painting of ", "a cute drawing of ", "simple art, ")
AFTER = (", highly detailed", ", flat design", ", vector art", ", digital art", ", beautiful", ", 4k", ", masterpiece")
EMPTY_ADJECTIVES = ("small ", "big ", "little ", "large ", "cute ", "beautiful ", "old ", "lovely ", "tiny ", "single ")


def own_place(things: tuple[Thing, ...]) -> str:
    """Where things are when nobody says."""
    return next((OWN_PLACE[thing.kind] for thing in things if thing.kind in OWN_PLACE), "meadow")


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _thing(thing: Thing, rng: random.Random) -> str:
    """Colour and name without article."""
    kind = KINDS[thing.kind]
    said = kind.coloured and (thing.colour != kind.natural or rng.random() < 0.6)
    adjective = rng.choice(EMPTY_ADJECTIVES) if rng.random() < 0.08 else ""
    return f"{adjective}{thing.colour + ' ' if said else ''}{rng.choice(NAMES[thing.kind])}"


def _two(scene: Scene, rng: random.Random) -> str:
    left, right = scene.things
    if left.kind == right.kind and left.colour == right.colour and rng.random() < 0.8:
        *adjectives, noun = _thing(left, rng).split()
        plural = PLURAL.get(noun, noun + "es" if noun.endswith("sh") else noun + "s")
        return " ".join(["two", *adjectives, plural])
    first, second = _article(_thing(left, rng)), _article(_thing(right, rng))
    on_left, on_right = rng.choice(ON_SIDE["left"]), rng.choice(ON_SIDE["right"])
    forms = (
        f"{first} and {second}",
        f"{first} and {second}",
        f"{first} with {second}",
        f"{first} next to {second}",
        f"{first} beside {second}",
        f"{first}, {second}",
        f"{first} {on_left} and {second} {on_right}",
        f"{first} {on_left} and {second} {on_right}",
        f"{first} {on_left}, {second} {on_right}",
        f"{first} and {second} {on_right}",
        f"{first} {on_left} and {second}",
        f"{second} {on_right} and {first} {on_left}",
        f"{second} {on_right}, {first} {on_left}",
        f"{second} and {first} {on_left}",
        f"{first} to the left of {second}",
        f"{second} to the right of {first}",
        f"{second} {on_right} of {first}" if on_right.endswith("right") else f"{first} and {second}",
    )
    return rng.choice(forms)


def _extras(scene: Scene, rng: random.Random) -> list[str]:
    low_sun = scene.time in ("sunset", "dawn")
    words = []
    if scene.sun and (not low_sun or rng.random() < 0.25):
        words.append(rng.choice(SUN))
    for there, choices in (
        (scene.moon, MOON),
        (scene.stars, STARS),
        (scene.clouds, CLOUDS),
        (scene.mountains, MOUNTAINS),
    ):
        if there:
            words.append(rng.choice(choices))
    rng.shuffle(words)
    return words


def _tags(scene: Scene, rng: random.Random) -> str:
    """A list of key words."""
    words = []
    for thing in scene.things:
        words.append(_thing(thing, rng))
        if len(scene.things) == 1 and thing.side != "middle":
            words[-1] += " " + rng.choice(ON_SIDE[thing.side])
    if not scene.things or scene.place != own_place(scene.things) or rng.random() < 0.8:
        words.append(rng.choice(SHORT_PLACE[scene.place]))
    if scene.time != "day" or rng.random() < 0.4:
        words.append(rng.choice(SHORT_TIME[scene.time]))
    return ", ".join(words + [word.removeprefix("a ").removeprefix("the ") for word in _extras(scene, rng)])


def _sentence(scene: Scene, rng: random.Random) -> str:
    time, place, extras = rng.choice(AT_TIME[scene.time]), rng.choice(AT_PLACE[scene.place]), _extras(scene, rng)
    if scene.time == "day" and scene.sun and rng.random() < 0.4:
        time = rng.choice(("on a sunny day", "on a bright sunny day", "under the sun"))
        extras = [word for word in extras if word not in SUN]
    if scene.time == "night" and scene.stars and rng.random() < 0.3:
        time = rng.choice(("on a starry night", "under a starry night sky"))
        extras = [word for word in extras if word not in STARS]
    if not scene.things:
        words = rng.choice(PLACE_ALONE[scene.place])
    else:
        words = _two(scene, rng) if len(scene.things) == 2 else _article(_thing(scene.things[0], rng))
        if len(scene.things) == 1 and (scene.things[0].side != "middle" or rng.random() < 0.15):
            words += " " + rng.choice(ON_SIDE[scene.things[0].side])
        if scene.place == own_place(scene.things) and rng.random() < 0.3:
            place = ""
        words = rng.choice((f"{words} {place}", f"{words} {place}", f"{words}, {place}" if place else words)).strip()
    if time:
        words = rng.choice(
            (f"{words} {time}", f"{words} {time}", f"{words}, {time}", f"{time}, {words}", f"{time} {words}")
        )
    if extras:
        named = ", ".join(extras[:-1]) + (" and " if len(extras) > 1 else "") + extras[-1]
        words += rng.choice((" with ", ", ", " and ")) + named
    return words


def caption(scene: Scene, rng: random.Random) -> str:
    """One of the many ways to say the scene."""
    words = _tags(scene, rng) if rng.random() < 0.15 else _sentence(scene, rng)
    if rng.random() < 0.15:
        words = rng.choice(BEFORE) + words
    if rng.random() < 0.1:
        words += rng.choice(AFTER)
    if rng.random() < 0.1:
        words += "."
    return words
