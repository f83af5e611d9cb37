"""The styles: one of each name, words around a prompt, and help with a name that is none."""

import pytest

from server.catalog import Catalog
from server.prompts.styles import STYLES, Style, nearest
from server.prompts.weights import parse

NAMES = """base, 3d-model, analog-film, anime, cinematic, comic-book, Craft Clay, modeling-compound, digital-art,
enhance, fantasy-art, isometric, line-art, low-poly, neon-punk, origami, photographic, pixel-art, tile-texture,
Advertising, Food Photography, Real Estate, Abstract, Cubist, Graffiti, Hyperrealism, Impressionist, Pointillism,
Pop Art, Psychedelic, Renaissance, Steampunk, Surrealist, Typography, Watercolor, Fighting Game, GTA, Super Mario,
Minecraft, Pokémon, Retro Arcade, Retro Game, RPG Fantasy Game, Strategy Game, Street Fighter, Legend of Zelda,
Architectural, Disco, Dreamscape, Dystopian, Fairy Tale, Gothic, Grunge, Horror, Minimalist, Monochrome, Nautical,
Space, Stained Glass, Techwear Fashion, Tribal, Zentangle, Collage, Flat Papercut, Kirigami, Paper Mache,
Paper Quilling, Papercut Collage, Papercut Shadow Box, Stacked Papercut, Thick Layered Papercut, Alien, Film Noir, HDR,
Long Exposure, Neon Noir, Silhouette, Tilt-Shift"""  # of the API


def test_there_is_a_style_of_each_name_of_the_api_in_its_order() -> None:
    assert list(STYLES) == [name.strip() for name in NAMES.replace("\n", " ").split(",")]
    assert len(STYLES) == 78


@pytest.mark.parametrize("name", STYLES)
def test_a_style_adds_words_to_both_texts_and_weighs_nothing(name: str, catalog: Catalog) -> None:
    style = STYLES[name]
    styled, negated = style.applied("a red house"), style.negated("fog")
    assert "a red house" in styled != "a red house"
    assert negated.startswith("fog, ")
    assert len(negated) > len("fog, ")
    for text in (styled, negated):
        assert parse(text).text == text
        assert parse(text).spans[0].weight == 1.0
        assert "{" not in text
    (tokenizer,) = catalog["sd15"].tokenizers.values()
    assert len(tokenizer.chunks(parse(styled), 3).chunks) == 1


def test_no_two_styles_say_the_same() -> None:
    assert len({style.prompt for style in STYLES.values()}) == len({style.negative_prompt for style in STYLES.values()})
    assert len({style.prompt for style in STYLES.values()}) == 78


def test_a_callers_own_braces_stay(catalog: Catalog) -> None:
    assert Style("art of {prompt}", "x").applied("{prompt} {a|b} %s") == "art of {prompt} {a|b} %s"
    assert Style("x {prompt}", "blurry").negated("") == "blurry"


@pytest.mark.parametrize(
    ("given", "meant"),
    [("Anime", "anime"), ("film noir", "Film Noir"), ("pokemon", "Pokémon"), ("3d model", "3d-model"),
     ("water color", "Watercolor")],
)  # fmt: skip
def test_a_name_that_is_none_is_answered_with_what_was_meant(given: str, meant: str) -> None:
    assert nearest(given)[0] == meant
    assert len(nearest(given)) <= 3


def test_a_name_like_none_has_no_answer() -> None:
    assert nearest("qqqqqqqq") == ()
    assert nearest("x" * 10_000) == ()
