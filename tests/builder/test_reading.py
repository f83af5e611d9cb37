"""Files that break the format's rules are refused before their tensors are looked at."""

import json
import os
import re
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from server.builder.reading import MOST_HEADER_BYTES, MOST_TENSORS, BadFile, Tensors


def written(path: Path, header: str | bytes | dict[str, Any], body: bytes = b"") -> Path:
    text = json.dumps(header) if isinstance(header, dict) else header
    raw = text.encode() if isinstance(text, str) else text
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)
    return path


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: str = "F16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 2] if shape is None else shape, "data_offsets": [begin, end]}


def test_what_the_library_writes_is_read_as_it_was(tmp_path: Path) -> None:
    given = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.ones((4,), np.float16),
        "n": np.zeros(2, np.int64),
    }
    save_file(given, tmp_path / "file", {"made": "here"})

    with Tensors(tmp_path / "file") as tensors:
        assert set(tensors.stored) == {"a", "b", "n"}
        assert tensors.metadata == {"made": "here"}
        assert np.array_equal(tensors.float32("a"), given["a"])
        assert np.array_equal(tensors.float16("b"), given["b"])
        with pytest.raises(BadFile, match="n is I64; weights are F16, BF16, F32, F64"):
            tensors.float32("n")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_dtype_is_read_as_torch_reads_it(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.randn(7, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    save_torch({"x": values}, tmp_path / "file")

    with Tensors(tmp_path / "file") as tensors:
        assert np.array_equal(tensors.float32("x"), values.float().numpy())
        assert np.array_equal(tensors.float16("x"), values.float().half().numpy())


def test_a_tensor_may_be_a_scalar(tmp_path: Path) -> None:
    save_file({"alpha": np.array(4, np.float32)}, tmp_path / "file")
    with Tensors(tmp_path / "file") as tensors:
        assert tensors.float32("alpha") == 4


LIST = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
HOSTILE: dict[str, tuple[str | bytes | dict[str, Any], bytes, str]] = {
    "no tensors": ({}, b"", "holds no tensors"),
    "only metadata": ({"__metadata__": {"a": "b"}}, b"", "holds no tensors"),
    "not JSON": (b"\x80\x02}q\x00.", b"", "not JSON"),
    "not UTF-8": (b'{"\xff":1}', b"", "not JSON"),
    "a list": ("[1, 2]", b"", "not a JSON object"),
    "deep": (b'{"a":' * 15_000 + b"1" + b"}" * 15_000, b"", "not JSON"),
    "lists without end": (LIST, b"", "lists for more than"),
    "a name twice": ('{"a": %s, "a": %s}' % ((json.dumps(entry(0, 2)),) * 2), b"ab", "'a' twice"),
    "a field twice": ('{"a": {"dtype": "F16", "dtype": "F16", "shape": []}}', b"ab", "'dtype' twice"),
    "metadata of numbers": ({"__metadata__": {"a": 1}, "a": entry(0, 2)}, b"ab", "object of texts"),
    "overlap": ({"a": entry(0, 4), "b": entry(2, 6)}, b"abcdef", "b overlaps"),
    "the same bytes": ({"a": entry(0, 4), "b": entry(0, 4)}, b"abcd", "overlaps"),
    "a hole": ({"a": entry(0, 2), "b": entry(4, 6)}, b"abcdef", "b leaves a hole"),
    "a hole at first": ({"a": entry(2, 4)}, b"abcd", "a leaves a hole"),
    "something behind": ({"a": entry(0, 2)}, b"abcd", "something behind the last tensor"),
    "cut short": ({"a": entry(0, 4)}, b"ab", "cut short"),
    "beyond": ({"a": entry(0, 1 << 40)}, b"ab", "cut short"),
    "backwards": ({"a": {"dtype": "F16", "shape": [1], "data_offsets": [4, 2]}}, b"abcd", "2 bytes, and lies on -2"),
    "negative offset": ({"a": entry(-2, 0, [1])}, b"", "none negative"),
    "negative shape": ({"a": entry(0, 2, [-1])}, b"ab", "none negative"),
    "empty tensor": ({"a": entry(0, 0, [0])}, b"", "0 bytes"),
    "of no such type": ({"a": entry(0, 2, dtype="FLOAT")}, b"ab", "the dtype 'FLOAT'; the format has"),
    "a type that is no text": ({"a": {**entry(0, 2), "dtype": ["F16"]}}, b"ab", "the dtype"),
    "true as an offset": ({"a": {**entry(0, 2), "data_offsets": [False, 2]}}, b"ab", "none negative"),
    "fractions": ({"a": entry(0, 2, [1.0])}, b"ab", "none negative"),
    "a product too large": ({"a": entry(0, 2, [1 << 61] * 8)}, b"ab", "lies on 2"),
    "many axes": ({"a": entry(0, 2, [1] * 9)}, b"ab", "up to 8"),
    "a field more": ({"a": {**entry(0, 2), "code": "x"}}, b"ab", "not described by"),
    "a long name": ({"a" * 257: entry(0, 2)}, b"ab", "up to 256 printable"),
    "a name of nothing": ({"": entry(0, 2)}, b"ab", "printable"),
    "a name that moves the cursor": ({"a\x1b[2J": entry(0, 2)}, b"ab", "printable"),
    "too many": ({f"t{i}": entry(2 * i, 2 * i + 2) for i in range(MOST_TENSORS + 10)}, b"", "more than 20000"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_against_the_rules_is_refused_and_told_why(tmp_path: Path, name: str) -> None:
    header, body, reason = HOSTILE[name]
    with pytest.raises(BadFile, match=re.escape(reason)) as told:
        Tensors(written(tmp_path / "file", header, body))
    assert len(str(told.value)) < 400
    assert str(told.value).isprintable()


@pytest.mark.parametrize("raw", [b"", b"\x01", b"PK\x03\x04" * 9, struct.pack("<Q", 1 << 63) + b"{}", bytes(8) + b"{}"])
def test_what_is_no_safetensors_file_at_all_is_refused(tmp_path: Path, raw: bytes) -> None:
    tmp_path.joinpath("file").write_bytes(raw)
    with pytest.raises(BadFile, match="cut short, or not a safetensors file"):
        Tensors(tmp_path / "file")


def test_a_huge_header_is_refused_by_its_length_alone(tmp_path: Path) -> None:
    with tmp_path.joinpath("file").open("wb") as file:
        file.write(struct.pack("<Q", MOST_HEADER_BYTES + 1))
        file.truncate(MOST_HEADER_BYTES + 100)  # a hole on the disk
    with pytest.raises(BadFile, match=f"at most {MOST_HEADER_BYTES}"):
        Tensors(tmp_path / "file")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_not_finite_is_refused_by_the_tensor_s_name(tmp_path: Path, value: float, dtype: type) -> None:
    values = np.ones(9, dtype)
    values[5] = value
    save_file({"good": np.ones(2, dtype), "bad": values}, tmp_path / "file")
    with Tensors(tmp_path / "file") as tensors:
        tensors.float32("good")
        for read in (tensors.float32, tensors.float16):
            with pytest.raises(BadFile, match="bad holds NaN or infinity"):
                read("bad")


def test_values_beyond_half_precision_are_told(tmp_path: Path) -> None:
    save_file({"x": np.array([1, 7e4], np.float32), "y": np.array([1e300])}, tmp_path / "file")
    with Tensors(tmp_path / "file") as tensors:
        with pytest.raises(BadFile, match=r"x comes to 7e\+04; .* up to 65504"):
            tensors.float16("x")
        with pytest.raises(BadFile, match="y holds NaN or infinity"):
            tensors.float32("y")


def test_a_file_that_shrinks_while_it_is_read_is_a_fault_and_no_crash(tmp_path: Path) -> None:
    save_file({"x": np.ones(4096, np.float32)}, tmp_path / "file")
    with Tensors(tmp_path / "file") as tensors:
        os.truncate(tmp_path / "file", 300)
        with pytest.raises(BadFile, match="became shorter"):
            tensors.float32("x")


def test_no_file_stays_open(tmp_path: Path) -> None:
    written(tmp_path / "bad", {})
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(BadFile):
            Tensors(tmp_path / "bad")
    assert len(os.listdir("/proc/self/fd")) == before


def test_names_without_end_are_refused_at_once_wherever_one_is_twice(tmp_path: Path) -> None:
    for count, reason in ((MOST_TENSORS // 2, "twice"), (1_000_000, "at most 20000 are read")):
        names = ",".join(f'"{i}":1' for i in [*range(count), count - 1])
        began = time.thread_time()
        with pytest.raises(BadFile, match=reason):
            Tensors(written(tmp_path / "file", "{" + names + "}"))
        assert time.thread_time() - began < 5  # a second where it grows with the names, minutes with their square


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_large_tensor_is_looked_through_without_being_held(tmp_path: Path, dtype: type) -> None:
    values = (np.arange((48 << 20) // np.dtype(dtype).itemsize) % 1000).astype(dtype)
    save_file({"x": values, "y": np.ones(3, dtype)}, tmp_path / "file")
    with Tensors(tmp_path / "file") as tensors:
        assert np.array_equal(np.concatenate(list(tensors.pieces("x"))), tensors.float32("x"))
        tracemalloc.start()
        for _ in tensors.pieces("x"):
            pass
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < 40 << 20  # as read and in float32, two at a time
