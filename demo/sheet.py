"""The contact sheet: pictures of fixed prompts and seeds with the prompt under each."""

from pathlib import Path

from PIL import Image, ImageDraw

from demo.draw import Artist

PROMPTS = (
    "a red house and a sailboat at sunset",
    "a purple tent in a meadow at night, stars and the moon",
    "a snowman and a blue house in the snow",
    "a lighthouse by the sea at night with the moon",
    "an orange cat on the left and a green tree on the right",
    "a cactus and a pink tent in the desert at sunset",
    "a yellow hot air balloon and a windmill on a sunny day",
    "a green sailboat on the ocean at dawn, mountains",
    "a red mushroom and a white flower in a field",
    "two blue cats on the beach",
    "snowy mountains and pine tree in winter at night",
    "a sandy desert at sunrise with clouds",
)
TILE = 256


def compose(pictures: list[tuple[str, Image.Image]], columns: int) -> Image.Image:
    """Tiles with their captions below."""
    rows = (len(pictures) + columns - 1) // columns
    sheet = Image.new("RGB", (columns * (TILE + 8) + 8, rows * (TILE + 40) + 8), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (words, picture) in enumerate(pictures):
        x, y = 8 + index % columns * (TILE + 8), 8 + index // columns * (TILE + 40)
        small = picture.copy()
        small.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
        sheet.paste(small, (x, y))
        half = words.rfind(" ", 0, 42) if len(words) > 42 else len(words)
        pen.text((x, y + TILE + 4), words[:half] + "\n" + words[half:].strip(), fill="black")
    return sheet


def draw(artist: Artist, out: Path, side: int, steps: int, guidance: float) -> None:
    """Writes the contact sheet: square pictures of so many pixels, seed 1."""
    pictures = [(prompt, artist.draw(prompt, 1, side, side, steps, guidance)) for prompt in PROMPTS]
    out.parent.mkdir(parents=True, exist_ok=True)
    compose(pictures, 4).quantize(256).save(out, optimize=True)  # a fifth of the bytes
    print(out)
