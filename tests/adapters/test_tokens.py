"""Textual inversions: which files hold which vectors, where a trigger word stands, what its ids are."""

import numpy as np
import pytest

from server.adapters.tokens import Found, Inversion, find, inversion, table
from server.engines.port import Array


def vectors(count: int, width: int = 4) -> Array:
    return np.random.RandomState(count).normal(size=(count, width)).astype(np.float32)


@pytest.mark.parametrize("name", ["<cat>", "emb_params", "anything"])
def test_one_tensor_of_whatever_name_is_for_the_first_encoder(name: str) -> None:
    read = inversion("cat", {name: vectors(3)})
    assert read.trigger == "cat"
    assert list(read.vectors) == ["text_encoder"]
    assert np.array_equal(read.vectors["text_encoder"], vectors(3))


def test_sdxls_files_have_one_for_each_encoder() -> None:
    read = inversion("cat", {"clip_g": vectors(2, 6), "clip_l": vectors(2)}).vectors
    assert {name: rows.shape for name, rows in read.items()} == {"text_encoder": (2, 4), "text_encoder_2": (2, 6)}
    assert np.array_equal(read["text_encoder_2"], vectors(2, 6))


def test_a_single_vector_may_have_one_axis() -> None:
    (read,) = inversion("cat", {"<cat>": vectors(1)[0]}).vectors.values()
    assert (read.shape, read.dtype) == ((1, 4), np.float32)
    assert np.array_equal(read, vectors(1))


@pytest.mark.parametrize(
    ("text", "trigger", "places"),
    [
        ("a cat on a mat", "cat", [2]),
        ("cat", "cat", [0]),
        ("a concatenation of cats, bobcat", "cat", []),
        ("a cat, cat-like; Cat", "cat", [2, 7]),
        ("a cat_1 cat2 éclat", "cat", []),
        ("a éclatcat écat", "cat", []),
        ("my-style and my-styles", "my-style", [0]),
        ("a <cat>s <cat>", "<cat>", [2, 9]),
        ("two  words", "two  words", [0]),
        ("two words", "two  words", []),
        ("a.c abc", "a.c", [0]),
        ("", "cat", []),
    ],
)
def test_a_trigger_word_stands_where_it_is_written_exactly_and_alone(
    text: str, trigger: str, places: list[int]
) -> None:
    assert [found.begin for found in find(text, [trigger])] == places
    assert all(text[found.begin : found.end] == found.trigger == trigger for found in find(text, [trigger]))


def test_of_trigger_words_that_begin_alike_it_is_the_longest() -> None:
    assert find("red cat, red cat boat, red", ["red", "red cat boat", "red cat"]) == (
        Found(0, 7, "red cat"),
        Found(9, 21, "red cat boat"),
        Found(23, 26, "red"),
    )


def test_no_trigger_words_are_found_nowhere() -> None:
    assert find("a cat", []) == ()


def test_ids_count_through_the_vectors_that_an_engine_reads() -> None:
    cat = Inversion("cat", {"text_encoder": vectors(2), "text_encoder_2": vectors(1, 6)})
    dog = Inversion("dog", {"text_encoder": vectors(3)})
    ids, rows = table([cat, dog], "sdxl_text_encoder")
    assert ids == {"cat": (-1, -2), "dog": (-3, -4, -5)}
    assert np.array_equal(rows, np.concatenate([vectors(2), vectors(3)]))
    ids, rows = table([dog, cat], "sdxl_text_encoder_2")
    assert ids == {"cat": (-1,)}
    assert np.array_equal(rows, vectors(1, 6))
    assert table([], "sdxl_text_encoder")[0] == {}
