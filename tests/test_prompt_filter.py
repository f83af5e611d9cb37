"""The word list of the prompt filter: what counts as said, and that saying much takes no longer than it should."""

import time
from pathlib import Path

import pytest

from server.prompt_filter import _FOLDS, _KEPT, _PARTS, WordList, read_word_list, words

LIST = WordList(
    """
    # what this deployment does not draw
    gun
    red  barn   # with a reason
    Straße
    crème brûlée
    毒
    not a house
    """
)


@pytest.mark.parametrize(
    "text",
    [
        "gun",
        "a GUN, on a table",
        "a\u200b g\u00adu\u200dn",  # zero-width characters and a soft hyphen
        "a g\u034fu\ufe0fn",  # a joiner and a variation selector
        "a g\u3164u\U000e0100n",  # a filler and a selector beyond the first plane
        "\uff27\uff35\uff2e",  # full width
        "gun_on_table",
        "a red barn",
        "red\n\t-- barn",
        "Red/Barn!",
        "die STRASSE",
        "CRE\u0300ME bru\u0302le\u0301e",  # decomposed
        "cr\u00e8me brûle\u200b\u0301e",  # a mark parted from its letter
        "cr\u00e8me brûle\u0301e" + "-" * 100,
        "\U0001d420\U0001d414\U0001d427",  # mathematical letters
        "一瓶毒药",
        "not not a house",
    ],
)
def test_a_word_or_phrase_of_the_list_is_found_however_it_is_written(text: str) -> None:
    assert LIST.holds(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a gunner",
        "begun",
        "red",
        "barn red",
        "red old barn",
        "a redbarn",
        "creme brulee",
        "not a",
        "# with",
        "一瓶药",
    ],
)
def test_parts_of_words_and_other_orders_are_not_found(text: str) -> None:
    assert not LIST.holds(text)


def test_a_list_of_nothing_finds_nothing() -> None:
    assert not WordList("\n# nothing\n  ,.\n").holds("anything, nothing")


def test_words_are_letters_digits_and_the_marks_on_them() -> None:
    assert words("हिन्दी 2x4 ไทย") == ["हिन्दी", "2x4", *"ไทย"]


def test_a_long_text_and_a_long_list_take_milliseconds() -> None:
    lines = [f"word{number} of the list {number}" for number in range(99_900)] + [f"a {'b ' * n}c" for n in range(100)]
    long_list = WordList("\n".join(lines))
    for text in (
        "a b " * 2500,
        "a " * 5000,
        "word7 of the list " * 555,
        "毒" * 10_000,
        "\ufdfa" * 10_000,
        "\u0301" * 10_000,
    ):
        begin = time.process_time()
        assert not long_list.holds(text[:10_000])
        assert time.process_time() - begin < 1
    assert long_list.holds("x " * 4000 + "word99899, of the list 99899")


@pytest.mark.parametrize(
    "text",
    [
        "\ufdfa" * 10_000,  # one character that stands for 18
        "\ufdfb" * 10_000,  # for 8
        "\u3316" * 10_000,  # for 6 words
        "a" + "\u0301\u0316" * 4999,  # marks in the wrong order
        "\u0344" * 10_000,
        "\U0001d160" * 10_000,
        "".join(map(chr, range(0xAC00, 0xAC00 + 10_000))),
        "".join(map(chr, range(0x20000, 0x20000 + 10_000))),
    ],
    ids=lambda text: ascii(text[:3]),
)
def test_no_text_takes_long_whatever_its_characters_stand_for(text: str) -> None:
    def seconds() -> float:
        begin = time.thread_time()
        assert not LIST.holds(text)
        return time.thread_time() - begin

    assert min(seconds() for _ in range(3)) < 0.04


def test_as_many_characters_as_there_are_leave_no_memory_behind() -> None:
    for begin in range(0x80, 0x30000, 10_000):
        words("".join(map(chr, range(begin, begin + 10_000))).encode("utf-8", "ignore").decode())
    assert len(_FOLDS) <= _KEPT
    assert len(_PARTS) <= _KEPT
    assert LIST.holds("\uff27\uff35\uff2e")


def test_a_file_is_read_as_utf8_and_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(b"\xef\xbb\xbfgun\r\nred barn\r\n")  # as an editor on Windows leaves it
    assert read_word_list(path).holds("a gun")
    assert read_word_list(path).holds("a red barn")
    path.write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"MEDIAGEN_PROMPT_FILTER: .*words.txt is not UTF-8"):
        read_word_list(path)
    with pytest.raises(ValueError, match=r"MEDIAGEN_PROMPT_FILTER: .*absent cannot be read: No such file"):
        read_word_list(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"cannot be read: Is a directory"):
        read_word_list(tmp_path)
