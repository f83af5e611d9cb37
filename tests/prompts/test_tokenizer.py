"""A text in chunks of tokens: what frames them, where they end, what a token weighs, what is cut."""

import re
import time
import timeit
from collections.abc import Callable
from pathlib import Path

import pytest
from parity.tiny_sd3 import t5_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from server.catalog import Catalog
from server.prompts.weights import parse
from server.tokenizer import Chunk, Repeated, Replaced, TextTokenizer, Tokens

START, END, BANG = "<|startoftext|>", "<|endoftext|>", "!"


@pytest.fixture(scope="module")
def clip(catalog: Catalog) -> TextTokenizer:
    """Of the default SD 1.5: a word of its captions is one token."""
    return catalog["sd15"].tokenizers["sd15_text_encoder"]


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """Unigram, as SentencePiece's, 20 ids a chunk: red, house, a, by, the, sea are words, else letters."""
    tokenizer = Tokenizer.from_str(t5_tokenizer().backend_tokenizer.to_str())
    tokenizer.enable_truncation(20)
    tokenizer.enable_padding(length=20, pad_id=0, pad_token="<pad>")
    path = tmp_path_factory.mktemp("t5") / "tokenizer.json"
    tokenizer.save(str(path))
    return TextTokenizer(path)


@pytest.fixture(scope="module")
def words(repository: Path) -> Callable[[Chunk], list[str]]:
    """A chunk's ids in words."""
    tokenizer = Tokenizer.from_file(str(repository / "sd15_text_encoder" / "tokenizer.json"))
    return lambda chunk: [tokenizer.id_to_token(number).removesuffix("</w>") for number in chunk.ids]


def read(tokenizer: TextTokenizer, text: str, most: int = 3) -> Tokens:
    return tokenizer.chunks(parse(text), most)


def test_a_short_text_is_one_chunk_between_start_and_end(
    clip: TextTokenizer, words: Callable[[Chunk], list[str]]
) -> None:
    found = read(clip, "The red  sun")
    assert [words(chunk) for chunk in found.chunks] == [[START, "the", "red", "sun", END, *[END] * 72]]
    assert found.chunks[0].weights == (1.0,) * 77
    assert found.cut == ""


@pytest.mark.parametrize("text", ["", " ", "()", "(:1.5)"])
def test_no_text_is_one_empty_chunk(clip: TextTokenizer, t5: TextTokenizer, text: str) -> None:
    for tokenizer in (clip, t5):
        assert read(tokenizer, text) == Tokens((tokenizer.empty,), "", ())


def test_the_frame_and_the_padding_are_the_files_own(sdxl_catalog: Catalog, t5: TextTokenizer) -> None:
    first, second = (
        sdxl_catalog["sdxl"].tokenizers[name].empty for name in ("sdxl_text_encoder", "sdxl_text_encoder_2")
    )
    assert first.ids[:2] == second.ids[:2]
    assert set(first.ids[2:]) == {first.ids[1]}
    assert set(second.ids[2:]) == {0}
    assert t5.empty == Chunk((1, *[0] * 19), (1.0,) * 20)  # </s>, <pad>


def test_a_file_without_a_frame_has_none(tmp_path: Path) -> None:
    tokenizer = Tokenizer(WordLevel({"<pad>": 0, "red": 1}, unk_token="<pad>"))
    tokenizer.enable_padding(length=4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert read(TextTokenizer(tmp_path / "tokenizer.json"), "red").chunks == (Chunk((1, 0, 0, 0), (1.0,) * 4),)


def test_a_file_that_does_not_say_how_many_is_refused(tmp_path: Path) -> None:
    Tokenizer(WordLevel({"red": 0}, unk_token="red")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="does not say how many tokens"):
        TextTokenizer(tmp_path / "tokenizer.json")


def test_a_long_text_goes_on_in_the_next_chunk_and_what_no_chunk_holds_is_told(
    clip: TextTokenizer, words: Callable[[Chunk], list[str]]
) -> None:
    colours = ["red", "blue", "green", "white", "pink"] * 50
    found = read(clip, " ".join([*colours[:225], "a", "yellow", "cat"]))
    assert [words(chunk) for chunk in found.chunks] == [
        [START, *colours[begin : begin + 75], END] for begin in (0, 75, 150)
    ]
    assert found.cut == "a yellow cat"
    assert read(clip, " ".join(colours[:75])).chunks == found.chunks[:1]
    assert len(read(clip, " ".join(colours[:76])).chunks) == 2


def test_a_word_that_does_not_fit_begins_the_next_chunk(
    clip: TextTokenizer, words: Callable[[Chunk], list[str]]
) -> None:
    found = read(clip, "red " * 73 + "qqqq, blue")
    assert [words(chunk)[:76] for chunk in found.chunks] == [
        [START, *["red"] * 73, END, END],
        [START, "q", "q", "q", "q", ",", "blue", *[END] * 69],
    ]


def test_a_word_longer_than_a_chunk_is_split_and_comes_whole(
    clip: TextTokenizer, words: Callable[[Chunk], list[str]]
) -> None:
    chunks = [words(chunk) for chunk in read(clip, "red " + "q" * 100 + " sun").chunks]
    assert [[word for word in chunk if word not in (START, END)] for chunk in chunks] == [
        ["red"], ["q"] * 75, [*["q"] * 25, "sun"],
    ]  # fmt: skip


def test_the_last_chunk_is_full_to_the_last_id_as_diffusers_cuts(clip: TextTokenizer, repository: Path) -> None:
    theirs = Tokenizer.from_file(str(repository / "sd15_text_encoder" / "tokenizer.json"))
    for text in ("red " * 73 + "qqqq, blue", "q" * 200, "🚤" * 100, "a red house " * 40):
        found = read(clip, text, most=1)
        assert [chunk.ids for chunk in found.chunks] == [tuple(theirs.encode(text).ids)]
        assert text.rstrip().endswith(found.cut)
        assert found.cut


def test_a_token_weighs_what_its_first_character_does(clip: TextTokenizer, words: Callable[[Chunk], list[str]]) -> None:
    (chunk,) = read(clip, "a (red:1.5) house, qq(qq:2) (🚤:0.5)").chunks
    found = list(zip(words(chunk), chunk.weights, strict=True))
    assert found[:10] == [
        (START, 1.0), ("a", 1.0), ("red", 1.5), ("house", 1.0), (",", 1.0), ("q", 1.0), ("q", 1.0), ("q", 2.0),
        ("q", 2.0), (found[9][0], 0.5),
    ]  # fmt: skip
    assert {weight for word, weight in found if word == END} == {1.0}


def test_t5s_tokens_weigh_what_their_words_do_and_not_the_space_before(t5: TextTokenizer) -> None:
    (chunk,) = read(t5, "a (red house:1.5) by the (sea)").chunks
    assert chunk.weights[:7] == (1.0, 1.5, 1.5, 1.0, 1.0, 1.1, 1.0)
    assert chunk.ids[6:] == (1, *[0] * 13)


def test_t5_is_cut_to_its_one_chunk(t5: TextTokenizer) -> None:
    found = read(t5, "a red house by the sea " * 5, most=1)
    (chunk,) = found.chunks
    assert len(chunk.ids) == 20
    assert chunk.ids[-1] == 1
    assert found.cut == "red house by the sea a red house by the sea"  # 19 of 30 words fit


def test_marks_cut_a_text_into_pieces_and_put_their_ids_between(
    clip: TextTokenizer, words: Callable[[Chunk], list[str]]
) -> None:
    text = "a <c> house, (qq<c>:1.5)"
    weighted = parse(text)
    marks = [Replaced(match.start(), match.end(), (-1, -2)) for match in re.finditer("<c>", weighted.text)]
    (chunk,) = clip.chunks(weighted, 3, marks).chunks
    pieces = [read(clip, piece).chunks[0] for piece in ("a", "house, qq")]
    a, house = (tuple(words(piece)[1 : words(piece).index(END)]) for piece in pieces)
    assert (a, house) == (("a",), ("house", ",", "q", "q"))
    assert chunk.ids[:10] == (pieces[0].ids[0], pieces[0].ids[1], -1, -2, *pieces[1].ids[1:5], -1, -2)
    assert chunk.weights[:10] == (1.0,) * 6 + (1.5,) * 4
    assert chunk.ids[10] == clip.empty.ids[1]


def test_a_piece_is_read_as_if_it_stood_alone(clip: TextTokenizer) -> None:
    """As in diffusers: an added token cuts the text before its words are looked for."""
    weighted = parse("redxhouse")
    (chunk,) = clip.chunks(weighted, 1, [Replaced(3, 4, (-1,))]).chunks
    red, house = (read(clip, word).chunks[0].ids[1] for word in ("red", "house"))
    assert chunk.ids[1:4] == (red, -1, house)


def test_what_a_mark_puts_in_begins_the_next_chunk_where_it_does_not_fit(clip: TextTokenizer) -> None:
    weighted = parse("red " * 73 + "<c> sun")
    mark = Replaced(weighted.text.index("<"), weighted.text.index(">") + 1, (-1, -2, -3))
    first, second = clip.chunks(weighted, 3, [mark]).chunks
    assert first.ids[74] == first.ids[75] == first.ids[76] == clip.empty.ids[1]
    assert second.ids[1:4] == (-1, -2, -3)
    full = clip.chunks(weighted, 1, [mark])
    assert full.chunks[0].ids[74:76] == (-1, -2)
    assert full.cut == "<c> sun"


def test_a_repeated_token_is_the_one_before_and_its_places_are_told(clip: TextTokenizer) -> None:
    weighted = parse("red " * 73 + "man (bob:1.5) sun")
    (at,) = [match.start() for match in re.finditer("bob", weighted.text)]
    man, sun = (read(clip, word).chunks[0].ids[1] for word in ("man", "sun"))
    found = clip.chunks(weighted, 3, [Repeated(at, at + 3, 3)])
    first, second = found.chunks
    assert found.repeats == ((78, 79, 80),)
    assert first.ids[73:75] == (first.ids[73], clip.empty.ids[1])
    assert second.ids[1:5] == (man, man, man, sun)
    assert second.weights[1:5] == (1.5, 1.5, 1.5, 1.0)
    cut = clip.chunks(weighted, 1, [Repeated(at, at + 3, 3)])
    assert cut.repeats == ((74, 75),)
    assert cut.cut == "bob sun"


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("a (house:1.5) bob sun", (1.0, 1.5, 1.5, 1.0)),  # the word's own stays
        ("a house (bob:0.5) sun", (1.0, 0.5, 0.5, 1.0)),
        ("a (house:1.5) (bob:0.5) sun", (1.0, 0.5, 0.5, 1.0)),
        ("a (house bob:1.5) (sun:2)", (1.0, 1.5, 1.5, 2.0)),
    ],
)
def test_a_repeated_token_has_the_marks_weight_or_else_its_own(
    clip: TextTokenizer, text: str, weights: tuple[float, ...]
) -> None:
    weighted = parse(text)
    at = weighted.text.index("bob")
    assert clip.chunks(weighted, 3, [Repeated(at, at + 3, 2)]).chunks[0].weights[1:5] == weights
    (once,) = clip.chunks(weighted, 3, [Repeated(at, at + 3, 1)]).chunks
    assert once.weights[1:4] == (weights[0], *weights[2:])
    cut = clip.chunks(parse("red " * 73 + text.removeprefix("a ")), 1, [Repeated(at + 290, at + 293, 3)])
    assert cut.cut == "bob sun"
    assert cut.chunks[0].weights[74:76] == weights[1:3]


def test_a_repeated_token_at_the_texts_begin_is_none(clip: TextTokenizer) -> None:
    found = clip.chunks(parse("bob sun"), 3, [Repeated(0, 3, 3)])
    assert found.repeats == ((),)
    assert found.chunks == read(clip, "sun").chunks


def test_ten_thousand_emojis_take_tens_of_milliseconds(clip: TextTokenizer) -> None:
    def once() -> None:
        assert len(read(clip, "🚤🏠" * 5000).chunks) == 3
        assert len(read(clip, "(🚤:1.5)🏠 " * 1000).chunks) == 3

    assert min(timeit.repeat(once, timer=time.thread_time, repeat=3, number=1)) < 0.2
