"""Given files: what a person expects of their pixels, and how what is no picture is refused."""

import contextlib
import random
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from server.images import BadImage, decode, decode_mask
from server.images.header import ALLOWED, MAX_BYTES, MAX_PARTS

WIDTH, HEIGHT = 48, 32
REFUSAL_SECONDS = 0.05
GROWTH_MIB = 12  # of a process that refuses: nothing like the 150 MB of the largest picture


def picture(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Smooth, no two corners alike."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return Image.fromarray(np.stack((255 * x, 255 * y, 255 * (1 - x) * (1 - y)), axis=2).round().astype(np.uint8))


def file(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(rows: bytes, width: int, height: int, depth: int, colour: int, *others: bytes, before: bytes = b"") -> bytes:
    """Of rows with their filter types; `others` stand before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + before + chunk(b"IHDR", header) + b"".join(others) + pixels + chunk(b"IEND", b"")


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def gap(found: np.ndarray, expected: object) -> float:
    return float(np.abs(found.astype(float) - np.asarray(expected).astype(float)).max())


# What a person expects


@pytest.mark.parametrize(
    ("format", "options", "tolerance"),
    [("PNG", {}, 0), ("WEBP", {"lossless": True}, 0), ("JPEG", {"quality": 100, "subsampling": 0}, 4),
     ("JPEG", {"quality": 100, "subsampling": 0, "progressive": True}, 4)],
)  # fmt: skip
def test_a_picture_comes_out_as_it_was_saved(format: str, options: dict[str, object], tolerance: int) -> None:
    pixels = decode(file(picture(), format, **options))
    assert (pixels.shape, pixels.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)
    assert gap(pixels, picture()) <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_picture_is_turned_upright(format: str, orientation: int) -> None:
    data = file(picture(), format, exif=oriented(orientation))
    with Image.open(BytesIO(data)) as image:
        assert np.array_equal(decode(data), ImageOps.exif_transpose(image).convert("RGB"))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01"]
)
def test_broken_metadata_does_not_cost_the_picture(exif: bytes) -> None:
    assert gap(decode(file(picture(), "JPEG", quality=100, subsampling=0, exif=exif)), picture()) <= 4


def test_what_is_transparent_is_white_in_a_picture_and_black_in_a_mask() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 255, 0, 0))
    for data in (file(image, "PNG"), file(image, "WEBP", lossless=True)):
        assert decode(data).tolist() == [[[255, 0, 0], [255, 255, 255]]]
        assert decode_mask(data).tolist() == [[76, 0]]  # 0.299 * 255
    image.putpixel((1, 0), (0, 0, 0, 127))
    assert decode(file(image, "PNG"))[0, 1].tolist() == [128] * 3


def test_palettes_with_and_without_transparency_are_seen_through() -> None:
    paletted = picture().quantize(8, dither=Image.Dither.NONE)
    assert np.array_equal(decode(file(paletted, "PNG")), paletted.convert("RGB"))
    one = decode(file(paletted, "PNG", transparency=2))  # a colour of the palette
    assert (one[np.asarray(paletted) == 2] == 255).all()
    assert np.array_equal(
        one[np.asarray(paletted) != 2], np.asarray(paletted.convert("RGB"))[np.asarray(paletted) != 2]
    )
    half = decode(file(paletted, "PNG", transparency=bytes((128,) * 8)))  # an opacity for each
    assert gap(half, (np.asarray(paletted.convert("RGB")).astype(float) * 128 + 255 * 127) / 255) <= 1
    assert gap(decode_mask(file(Image.new("P", (3, 3)), "PNG", transparency=0)), 0) == 0


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_greys_of_every_depth_keep_their_scale_and_their_transparent_value(bits: int) -> None:
    """Pillow clips 16 bits at 255, and does not scale the transparent value of 2 and 4 bits."""
    most = 2**bits - 1
    values = (0, most // 3, 2 * most // 3, most) if bits > 1 else (0, 1, 0, 1)
    packed = sum(value << bits * (3 - place) for place, value in enumerate(values)).to_bytes(max(bits // 2, 1), "big")
    row = b"\0" + (packed if bits > 1 else bytes([packed[0] << 4]))
    expected = [value * 255 // most if bits <= 8 else value >> 8 for value in values]
    assert decode_mask(png(row, 4, 1, bits, 0)).tolist() == [expected]
    keyed = decode(png(row, 4, 1, bits, 0, chunk(b"tRNS", struct.pack(">H", values[1]))))[0, :, 0]
    assert keyed.tolist() == [255 if value == values[1] else grey for value, grey in zip(values, expected, strict=True)]


def test_sixteen_bit_colours_and_their_transparent_one_are_read() -> None:
    row = b"\0" + struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0xFFFF, 0, 0x8000)
    assert decode(png(row, 2, 1, 16, 2)).tolist() == [[[0x12, 0x56, 0x9A], [255, 0, 0x80]]]
    key = chunk(b"tRNS", row[1:7])
    assert decode(png(row, 2, 1, 16, 2, key)).tolist() == [[[255] * 3, [255, 0, 0x80]]]
    assert decode(png(b"\0" + struct.pack(">2H", 0x8000, 0), 1, 1, 16, 4)).tolist() == [[[255] * 3]]  # grey and opacity


def test_a_printers_jpeg_and_a_grey_one_are_read() -> None:
    assert gap(decode(file(picture().convert("CMYK"), "JPEG", quality=100, subsampling=0)), picture()) <= 6
    grey = picture().convert("L")
    assert gap(decode(file(grey, "JPEG", quality=100)), grey.convert("RGB")) <= 2


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_of_an_animation_the_first_picture_counts(format: str) -> None:
    data = file(picture(), format, save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))] * 3, lossless=True)
    assert gap(decode(data), picture()) <= 0


def test_what_follows_a_picture_is_not_looked_at() -> None:
    """A JPEG of several pictures, a polyglot file: the picture at its begin is what was given."""
    data = file(picture(), "JPEG", quality=100)
    assert np.array_equal(decode(data + file(Image.new("L", (9, 9)), "JPEG") + b"PK\3\4"), decode(data))
    for format in ("PNG", "WEBP"):
        assert np.array_equal(decode(file(picture(), format) + b"<html>"), decode(file(picture(), format)))


def test_the_smallest_picture_and_the_longest_side_are_taken() -> None:
    assert decode(file(Image.new("RGB", (1, 1), "red"), "PNG")).tolist() == [[[255, 0, 0]]]
    assert decode(file(Image.new("L", (16_384, 1)), "PNG")).shape == (1, 16_384, 3)


def test_markers_are_found_wherever_they_lie() -> None:
    """A JPEG is searched window by window."""
    data = file(picture(), "JPEG")
    begin = data.index(b"\xff\xdb")
    for length in (2**18 - 8, 2**18 - 5, 2**18 - 4, 2**18 - 3, 2**18 - 2, 2**18 - 1, 2**18):
        padded = data[:begin] + bytes(length) + data[begin:]  # what lies between segments is not looked at
        assert np.array_equal(decode(padded), decode(data))


def test_threads_decode_side_by_side() -> None:
    data = [file(picture(60 + 7 * size, 40 + size), "PNG") for size in range(24)]
    with ThreadPoolExecutor(8) as pool:
        for found, given_file in zip(pool.map(decode, data * 4), data * 4, strict=True):
            assert np.array_equal(found, np.asarray(Image.open(BytesIO(given_file))))


# What is refused


def _endless_exif() -> bytes:
    return b"MM\0*\0\0\0\x08\xff\xff" + bytes(12 * 0xFFFF)


def _app1(exif: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", 8 + len(exif)) + b"Exif\0\0" + exif


def _webp_of_many_chunks() -> bytes:
    body = file(picture(), "WEBP")[8:] + b"XXXX\0\0\0\0" * 1_000_000
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.fixture(scope="module")
def bad() -> Mapping[str, tuple[bytes, str]]:
    """Files by what they are, with a part of the sentence."""
    whole = {format: file(picture(1200, 900), format) for format in ("PNG", "JPEG", "WEBP")}
    frame = re.compile(rb"\xff\xc0\0\x11\x08(....)", re.DOTALL)
    huge_jpeg = frame.sub(b"\xff\xc0\0\x11\x08" + struct.pack(">HH", 65_000, 65_000), whole["JPEG"])
    hollow_jpeg = frame.sub(b"\xff\xc0\0\x11\x08" + struct.pack(">HH", 7_000, 7_000), file(picture(), "JPEG"))
    progressive = file(picture(), "JPEG", progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    animated = file(picture(), "WEBP", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))])
    canvas = animated.index(b"VP8X") + 12
    huge_webp = animated[:canvas] + b"\xfe\x3f\0\xfe\x3f\0" + animated[canvas + 6 :]
    return {
        "nothing": (b"", "empty"),
        "a text": (b"a red house", "no picture that is known"),
        "a GIF": (file(picture(), "GIF"), "a GIF"),
        "an SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        "a PDF": (file(picture(), "PDF"), "a PDF"),
        "a BMP": (file(picture(), "BMP"), "a BMP"),
        "a TIFF": (file(picture(), "TIFF"), "a TIFF"),
        "a WAV": (b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0" + bytes(28), "no WebP"),
        "a GIF with a PNG behind": (file(picture(), "GIF") + whole["PNG"], "a GIF"),
        "too many bytes": (whole["PNG"] + bytes(MAX_BYTES), f"{len(whole['PNG']) + MAX_BYTES:,} bytes"),
        **{f"a {format} cut short": (data[: len(data) // 2], "ends too early") for format, data in whole.items()},
        **{f"a {format} without its end": (data[:-3], "ends too early") for format, data in whole.items()},
        **{f"the begin of a {format}": (data[:16], "ends too early") for format, data in whole.items()},
        "a JPEG of 4 gigapixels": (huge_jpeg, "65000x65000"),
        "a WebP of 268 megapixels": (huge_webp, "16383x16383"),
        "a PNG of 10 gigapixels": (png(b"", 100_000, 100_000, 8, 2), "100000x100000"),
        "a PNG of 400 black megapixels": (png(bytes(2_501 * 20_000), 20_000, 20_000, 1, 0), "20000x20000"),
        "a PNG that is too long": (png(bytes(2_501), 20_000, 1, 1, 0), "20000x1"),
        "a PNG of 49 megapixels without any": (png(bytes(99), 7_000, 7_000, 8, 2), "ends too early"),
        "a PNG whose pixels end in the middle": (png(bytes(500), 100, 100, 8, 0), "cannot be read"),
        "a PNG of no height": (png(b"", 5, 0, 8, 2), "no PNG can be"),
        "a PNG of a million chunks": (png(b"", 5, 5, 8, 2, chunk(b"tEXt", b"") * 1_000_000), f"{MAX_PARTS:,} chunks"),
        "a PNG with a wrong checksum": (whole["PNG"].replace(b"IEND\xae", b"IEND\xaf"), "checksum"),
        "a PNG with two headers": (png(b"\0\0", 1, 1, 8, 0, before=png(b"", 1, 1, 8, 3)[8:33]), "header"),
        "a PNG without its palette": (png(b"\0\0", 1, 1, 8, 3), "palette"),
        "a JPEG of 49 megapixels without any": (hollow_jpeg, "ends too early"),
        "a JPEG of a thousand scans": (progressive[:-2] + scan * 1_000 + b"\xff\xd9", "scans"),
        "a JPEG of a million segments": (b"\xff\xd8" + b"\xff\xfe\0\2" * 1_000_000, f"{MAX_PARTS:,} segments"),
        "a JPEG of nothing but fill": (b"\xff\xd8" + b"\xff" * 2**20, "ends too early"),
        "a JPEG of nothing but stuffing": (whole["JPEG"][:-2] + b"\xff\0" * 2**19, "ends too early"),
        "a PNG of metadata": (png(b"", 5, 5, 8, 2, chunk(b"eXIf", _endless_exif()) * 40)[:-9], "ends too early"),
        "a JPEG of metadata": (b"\xff\xd8" + _app1(_endless_exif()[:65_000]) * 500, "ends too early"),
        "a PNG with 8 MiB to check": (png(b"", 5, 5, 8, 2, chunk(b"IDAT", bytes(2**23)))[:-2] + b"??", "checksum"),
        "a JPEG of 12 bits": (whole["JPEG"].replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), "12 bits"),
        "a lossless JPEG": (whole["JPEG"].replace(b"\xff\xc0", b"\xff\xc3"), "lossless"),
        "a WebP of a million chunks": (_webp_of_many_chunks(), f"{MAX_PARTS:,} chunks"),
    }  # fmt: skip


def test_what_is_no_picture_is_refused_with_one_sentence(bad: Mapping[str, tuple[bytes, str]]) -> None:
    for kind, (data, expected) in bad.items():
        for read in (decode, decode_mask):
            with pytest.raises(BadImage) as refused:
                read(data)
            assert expected in str(refused.value), kind
            assert str(refused.value).endswith(ALLOWED), kind
            assert len(str(refused.value)) < 250, kind


MEASURE = """
import resource, sys, time
from pathlib import Path
from server.images import BadImage, decode
files = {path.name: path.read_bytes() for path in sorted(Path(sys.argv[1]).iterdir())}
for small in ("small.png", "small.jpeg", "small.webp"):  # so that what is loaded once is loaded
    decode(files.pop(small))
begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, data in files.items():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        try:
            decode(data)
            outcome = "taken"
        except BadImage:
            outcome = "refused"
        seconds.append(time.perf_counter() - start)
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begin) / 1024
    print(outcome, min(seconds), growth, name, flush=True)
"""


def measured(folder: Path, files: Mapping[str, bytes]) -> list[tuple[str, float, float, str]]:
    """Outcome, seconds and growth in MiB so far, of each, in a process of its own."""
    small = {f"small.{format}": file(picture(), format) for format in ("png", "jpeg", "webp")}
    for name, data in {**files, **small}.items():
        (folder / name).write_bytes(data)
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder)],
        env={"PYTHONPATH": f"{root}"}, check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    rows = (line.split(maxsplit=3) for line in done.stdout.splitlines())
    return [(outcome, float(seconds), float(growth), name) for outcome, seconds, growth, name in rows]


def test_refusing_takes_no_time_and_no_memory(tmp_path: Path, bad: Mapping[str, tuple[bytes, str]]) -> None:
    found = measured(tmp_path, {name: data for name, (data, _) in bad.items()})
    assert {name for _, _, _, name in found} == bad.keys()
    for outcome, seconds, growth, name in found:
        assert outcome == "refused", name
        assert seconds < REFUSAL_SECONDS, (name, seconds)
        assert growth < GROWTH_MIB, (name, growth)


def test_texts_and_profiles_are_not_unpacked(tmp_path: Path) -> None:
    """A gigabyte of them within a small picture costs nothing, and the picture is taken."""
    text = chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(2**26), 9))
    profile = chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2**28), 9))
    data = png(b"\0\xff", 1, 1, 8, 0, profile, text * 12)
    ((outcome, seconds, growth, _),) = measured(tmp_path, {"texts": data})
    assert (outcome, seconds < REFUSAL_SECONDS, growth < GROWTH_MIB) == ("taken", True, True), (seconds, growth)


def test_the_largest_picture_takes_a_bounded_memory_however_small_its_file(tmp_path: Path) -> None:
    """A valid one is decoded: its bytes say nothing of its pixels."""
    files = {
        "a PNG": file(Image.new("L", (8_000, 6_000)), "PNG"),
        "a WebP": file(Image.new("RGB", (8_000, 6_000)), "WEBP", lossless=True),  # after the others: it takes most
    }
    assert len(files["a WebP"]) < 2_048
    for (outcome, _, growth, name), most in zip(measured(tmp_path, files), (600, 900), strict=True):
        assert outcome == "taken", name
        assert growth < most, (name, growth)


def test_reading_files_changes_no_warnings_of_the_process() -> None:
    look = (
        "import warnings, numpy, PIL.Image; before = [*warnings.filters]; import server.images; "
        "print(before == warnings.filters)"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", look], env={"PYTHONPATH": f"{root}"}, check=True, capture_output=True, text=True
    )
    assert done.stdout == "True\n"


# Whatever the bytes: pixels or `BadImage`


def _whole() -> tuple[bytes, ...]:
    """One file of every kind."""
    image = picture(24, 16)
    translucent = image.convert("RGBA")
    translucent.putalpha(image.convert("L"))
    animation = {"save_all": True, "append_images": [image.rotate(180)]}
    return (
        file(image, "PNG"), file(image.quantize(16), "PNG"), file(image.quantize(16), "PNG", transparency=3),
        file(image.convert("1"), "PNG"), file(image.convert("LA"), "PNG"), file(translucent, "PNG"),
        file(Image.fromarray(np.arange(384, dtype=np.uint16).reshape(16, 24) * 99), "PNG"),
        file(image, "PNG", exif=oriented(6), transparency=(1, 2, 3)), file(image, "PNG", **animation),
        file(image, "JPEG", exif=oriented(8)), file(image, "JPEG", progressive=True),
        file(image.convert("CMYK"), "JPEG"), file(image.convert("L"), "JPEG"),
        file(image, "WEBP", exif=oriented(5)), file(translucent, "WEBP"), file(translucent, "WEBP", lossless=True),
        file(image, "WEBP", **animation),
    )  # fmt: skip


WHOLE = _whole()


def _with_right_checksums(data: bytes) -> bytes:
    """So that damage in a PNG gets behind the first door."""
    repaired, begin = bytearray(data), 8
    while begin + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, begin)
        end = begin + 8 + length
        if end + 4 > len(data):
            break
        repaired[end : end + 4] = struct.pack(">I", zlib.crc32(repaired[begin + 4 : end]))
        begin = end + 4
    return bytes(repaired)


def _taken_or_refused(data: bytes) -> None:
    for read in (decode, decode_mask):
        with contextlib.suppress(BadImage):
            pixels = read(data)
            assert pixels.dtype == np.uint8
            assert pixels.size


DAMAGE = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255))


@settings(max_examples=1_000, derandomize=True, deadline=None, database=None)
@given(st.sampled_from(WHOLE), st.lists(DAMAGE, min_size=1, max_size=12), st.booleans())
def test_damaged_bytes_give_pixels_or_a_refusal(data: bytes, damage: list[tuple[float, int]], repaired: bool) -> None:
    changed = bytearray(data)
    for place, value in damage:
        changed[int(place * len(changed))] = value
    _taken_or_refused(_with_right_checksums(changed) if repaired and data.startswith(b"\x89PNG") else bytes(changed))


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.sampled_from(WHOLE), st.floats(0, 1), st.floats(0, 1), st.binary(max_size=40))
def test_cut_and_filled_bytes_give_pixels_or_a_refusal(data: bytes, one: float, other: float, filling: bytes) -> None:
    first, last = sorted((int(one * len(data)), int(other * len(data))))
    _taken_or_refused(data[:first] + filling + data[last:])
    _taken_or_refused(data[:first] + filling)


@settings(max_examples=500, derandomize=True, deadline=None, database=None)
@given(
    st.sampled_from([(depth, colour) for depth in (1, 2, 4, 8, 16) for colour in (0, 2, 3, 4, 6)]),
    st.integers(1, 9), st.integers(1, 9), st.binary(max_size=800), st.binary(max_size=300), st.integers(0, 2**32),
)  # fmt: skip
def test_any_palette_and_transparency_gives_pixels_or_a_refusal(
    kind: tuple[int, int], width: int, height: int, palette: bytes, transparent: bytes, seed: int
) -> None:
    rows = random.Random(seed).randbytes(9 * 80)
    others = (chunk(b"PLTE", palette), chunk(b"tRNS", transparent))
    _taken_or_refused(png(rows, width, height, *kind, *others))
    _taken_or_refused(png(rows, width, height, *kind, *reversed(others)))


@pytest.mark.thorough
def test_many_thousands_of_damaged_files_give_pixels_or_a_refusal() -> None:
    chance = random.Random(0)
    for _ in range(100_000):
        changed = bytearray(chance.choice(WHOLE))
        for _ in range(chance.choice((1, 1, 2, 5, 20))):
            changed[chance.randrange(len(changed))] = chance.choice((0, 255, chance.randrange(256)))
        png_given = changed.startswith(b"\x89PNG") and chance.random() < 0.8
        _taken_or_refused(_with_right_checksums(changed) if png_given else bytes(changed))
