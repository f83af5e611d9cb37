"""The tokenizer that the gateway reads gives the ids that the checkpoint's own gives to diffusers' pipeline."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from export import ExportError
from export.checkpoint import Checkpoint
from export.recipes import clip_tokenizer
from export.tokenizer import write_tokenizer
from server.prompts.weights import Span, Weighted
from server.tokenizer import TextTokenizer

CLIP = clip_tokenizer("tokenizer")
ODD = (
    "",
    " ",
    "the red sun",
    "The RED\tSun's\n\nring  ",
    "a" * 300,
    "the sun " * 60,
    "it's they've I'll we'd you're I'm don't 's 'S",
    "<|startoftext|> the <|endoftext|> sun",
    "<|endoftext|>",
    "12 345 1e-5 ½ ² ٣",
    "café cafe\u0301 ÅNGSTRÖM ﬁ ß İstanbul ΣΑΣ",
    "日本の赤い家 और नाव 🚤🏠👩‍👩‍👧 \U0001f1eb\U0001f1f7",
    "zero\u200bwidth non\u00a0breaking \ufeffmark \u202eback",
    "((red:1.3)) [blue] {a|b} \\( \\) --ar 3:2 , , ..!?",
    "\x00\x07\x7f null and bell",
    "under_score-and/slash\\back@at#hash",
)


def plain(text: str) -> Weighted:
    """Brackets and all as text."""
    return Weighted(text, (Span(0, len(text), 1.0),), False)


def odd_strings() -> list[str]:
    """200 of them, always the same."""
    letters = random.Random(7)
    alphabet = "abc the sun red in 12 's'\t\n.,!?-_()[]<>|éßİ日🚤\u0301\u200b\u00a0"
    return [*ODD, *("".join(letters.choices(alphabet, k=letters.randrange(1, 200))) for _ in range(200 - len(ODD)))]


def test_two_hundred_odd_strings_give_the_ids_of_the_checkpoints_own_tokenizer(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    write_tokenizer(CLIP, checkpoint, "text_encoder", 77, tmp_path / "tokenizer.json")
    ours = TextTokenizer(tmp_path / "tokenizer.json")
    theirs = CLIPTokenizer.from_pretrained(checkpoint.path("tokenizer"))
    for text in odd_strings():
        expected = theirs(text, padding="max_length", max_length=77, truncation=True).input_ids
        assert [chunk.ids for chunk in ours.chunks(plain(text), 1).chunks] == [tuple(expected)], repr(text)
        assert len(expected) == 77


def test_merges_and_words_ends_are_used(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write_tokenizer(CLIP, checkpoint, "text_encoder", 77, tmp_path / "tokenizer.json")
    vocabulary = json.loads(checkpoint.path("tokenizer/vocab.json").read_text())
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    (chunk,) = TextTokenizer(tmp_path / "tokenizer.json").chunks(plain("The  red sun"), 1).chunks
    assert chunk.ids == (start, vocabulary["the</w>"], vocabulary["red</w>"], vocabulary["sun</w>"], *[end] * 73)


def test_a_vocabulary_beyond_the_text_encoders_is_refused(changed: Callable[..., Checkpoint], tmp_path: Path) -> None:
    checkpoint = changed("text_encoder/config.json", vocab_size=100)
    with pytest.raises(ExportError, match="text_encoder knows 100 tokens"):
        write_tokenizer(CLIP, checkpoint, "text_encoder", 77, tmp_path / "tokenizer.json")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json"])
def test_a_missing_file_is_named(name: str, changed: Callable[..., Checkpoint], tmp_path: Path) -> None:
    checkpoint = changed()
    checkpoint.path(f"tokenizer/{name}").unlink()
    with pytest.raises(ExportError, match=f"{name} is missing"):
        write_tokenizer(CLIP, checkpoint, "text_encoder", 77, tmp_path / "tokenizer.json")


def test_a_damaged_vocabulary_is_refused(changed: Callable[..., Checkpoint], tmp_path: Path) -> None:
    checkpoint = changed()
    checkpoint.path("tokenizer/vocab.json").write_text("{")
    with pytest.raises(ExportError, match="is not a CLIPTokenizer"):
        write_tokenizer(CLIP, checkpoint, "text_encoder", 77, tmp_path / "tokenizer.json")
