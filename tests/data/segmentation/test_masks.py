"""Masks: the ids that a file holds, or an error with file, ids and the setting to check."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from scenery import ids, write

from lightning_petl.data import ImageLimits
from lightning_petl.data.segmentation import IGNORED, MaskRule, read_mask
from lightning_petl.data.segmentation.masks import parse_colors
from lightning_petl.errors import ConfigError, DataError

TEN = MaskRule(10)
# Ids 3 and 7 become 18 and 48 in grey: what a reader that converts would take for ids.
GREYISH = [channel for id_ in range(256) for channel in (6 * id_ % 256,) * 3]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def shallow(pixels: np.ndarray, depth: int, color_type: int) -> bytes:
    """A PNG of 1, 2 or 4 bits a pixel, as optimisers write masks of few ids; Pillow writes no grey of those depths."""
    height, width = pixels.shape
    bits = (pixels[..., None] >> np.arange(depth - 1, -1, -1) & 1).reshape(height, width * depth).astype(np.uint8)
    rows = np.packbits(bits, axis=1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    palette = chunk(b"PLTE", bytes(range(255, 255 - 3 * 2**depth, -1))) if color_type == 3 else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + header + palette + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", ["grey.png", "palette.png", "grey.bmp", "palette.bmp"])
def test_eight_bits(tmp_path: Path, name: str) -> None:
    drawn = ids((9, 11), [0, 3, 7, 9, 255])
    path = write(tmp_path / name, drawn, GREYISH if "palette" in name else None)
    read = read_mask(path, TEN)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, drawn)
    if "palette" in name:
        assert set(np.unique(np.asarray(Image.open(path).convert("L")))) != set(np.unique(drawn))


def test_sixteen_bits(tmp_path: Path) -> None:
    drawn = ids((9, 11), [0, 3, 7]).astype(np.uint16)
    path = write(tmp_path / "deep.png", drawn)
    with Image.open(path) as file:
        assert file.mode == "I;16"
    np.testing.assert_array_equal(read_mask(path, TEN), drawn)
    path = write(tmp_path / "far.png", drawn * 300)
    with pytest.raises(DataError, match=r"ids without a class: 900, 2100; allowed are 0..9, 255"):
        read_mask(path, TEN)
    np.testing.assert_array_equal(read_mask(path, MaskRule(10, ids={0: 0, 900: 3, 2100: 7})), drawn)


@pytest.mark.parametrize(("depth", "color_type"), [(1, 0), (2, 0), (4, 0), (1, 3), (2, 3), (4, 3)])
def test_fewer_bits(tmp_path: Path, depth: int, color_type: int) -> None:
    """Stored ids come back, though Pillow spreads grey of 1, 2 and 4 bits over 0 to 255."""
    drawn = ids((7, 13), list(range(2**depth)))
    path = tmp_path / "shallow.png"
    path.write_bytes(shallow(drawn, depth, color_type))
    np.testing.assert_array_equal(read_mask(path, MaskRule(16)), drawn)
    if color_type == 0:
        assert np.asarray(Image.open(path).convert("L")).max() == 255


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_one_bit(tmp_path: Path, kind: str) -> None:
    """Black is 0 and white 1, as the bits are; a turned file and one of no class, too."""
    drawn = ids((7, 13), [0, 1])
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned left: the reader turns right
    path = tmp_path / "mask"
    Image.fromarray(255 * drawn).convert("1").save(path, kind)
    with Image.open(path) as file:
        assert file.mode == "1"
    read = read_mask(path, MaskRule(2))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, drawn)
    np.testing.assert_array_equal(read_mask(path, MaskRule(1, reduce_zero_label=True)), np.where(drawn, 0, IGNORED))
    with pytest.raises(DataError, match=r"ids without a class: 1; allowed are 0, 255"):
        read_mask(path, MaskRule(1))
    if kind == "PNG":
        Image.fromarray(255 * np.rot90(drawn)).convert("1").save(path, kind, exif=exif)
        np.testing.assert_array_equal(read_mask(path, MaskRule(2)), drawn)


def test_one_bit_with_a_palette_of_white_first(tmp_path: Path) -> None:
    """Ids are indices, whatever the colours are."""
    drawn = ids((7, 13), [0, 1])
    path = tmp_path / "mask.bmp"
    Image.fromarray(255 * drawn).convert("1").save(path)
    data = bytearray(path.read_bytes())
    start = data.index(b"\0\0\0\0\xff\xff\xff", 14)
    data[start : start + 8] = b"\xff\xff\xff\0\0\0\0\0"
    path.write_bytes(data)
    np.testing.assert_array_equal(read_mask(path, MaskRule(2)), drawn)


def saved(mode: str, kind: str = "PNG", **options: object) -> Callable[[Path], None]:
    return lambda path: Image.new(mode, (8, 8)).save(path, kind, **options)  # type: ignore[arg-type]


def two_frames(path: Path) -> None:
    Image.new("L", (8, 8)).save(path, "PNG", save_all=True, append_images=[Image.new("L", (8, 8), 1)])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (saved("RGB"), "has mode RGB, and colours are no ids .*data.color_map"),
        (saved("RGBA"), "mode RGBA, from which no ids are read .*without the alpha channel.*data.color_map"),
        (saved("LA"), "mode LA, from which no ids are read .*without the alpha channel as 8-bit or 16-bit grey$"),
        (saved("L", "JPEG"), "JPEG file, whose compression may change ids"),
        (saved("RGB", "WEBP", lossless=True), "WEBP file"),
        (two_frames, "has 2 frames"),
        (saved("I", "TIFF"), "the file is no PNG or BMP mask"),
        (lambda path: path.write_bytes(b""), "the mask file is empty"),
        (lambda path: path.write_text("hello"), "the file is no PNG or BMP mask"),
        (lambda path: path.mkdir(), "the mask file cannot be read: Is a directory"),
        (lambda path: None, "the mask file does not exist"),
    ],
)
def test_files_that_hold_no_ids(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    path = tmp_path / "mask.png"
    spoil(path)
    with pytest.raises(DataError, match=message) as caught:
        read_mask(path, TEN)
    assert str(path) in caught.value.where
    assert "\n" not in str(caught.value)
    assert "image" not in caught.value.what


def test_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "mask.png", ids((64, 64), list(range(10))))
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(DataError, match=r"the mask cannot be decoded.*truncated"):
        read_mask(path, TEN)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ConfigError, match="LOAD_TRUNCATED_IMAGES"):
        read_mask(path, TEN)


def test_size_is_checked_before_decoding(tmp_path: Path) -> None:
    path = write(tmp_path / "mask.png", ids((64, 64), [0]))
    with pytest.raises(DataError, match="the mask is 64x64 pixels, outside max_pixels=100"):
        read_mask(path, TEN, ImageLimits(max_pixels=100))


def test_exif_orientation(tmp_path: Path) -> None:
    drawn = ids((6, 9), list(range(10)))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned left: the reader turns right
    path = write(tmp_path / "mask.png", np.ascontiguousarray(np.rot90(drawn)), exif=exif)
    np.testing.assert_array_equal(read_mask(path, TEN), drawn)


def test_colors(tmp_path: Path) -> None:
    colors = np.array([[0, 0, 0], [128, 64, 128], [255, 0, 10]], dtype=np.uint8)
    drawn = ids((9, 11), [0, 1, 2])
    path = write(tmp_path / "colors.png", colors[drawn])
    table = parse_colors({"#000000": 255, "#804080": 4, "#FF000a": 9})
    np.testing.assert_array_equal(read_mask(path, MaskRule(10, colors=table)), np.array([255, 4, 9])[drawn])
    with pytest.raises(DataError, match="colours without an id: #804080, #ff000a"):
        read_mask(path, MaskRule(10, colors={(0, 0, 0): 1}))


@pytest.mark.parametrize("colors", [{"red": 1}, {"#ff00": 1}, {"#ff0000": -1}, {"#ff0000": 70000}])
def test_colors_that_are_none(colors: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="color_map"):
        parse_colors(colors)


def test_a_colour_has_one_id() -> None:
    with pytest.raises(ConfigError, match=r"'#ff0000' is id 1 and id 2 .*data.color_map"):
        parse_colors({"#FF0000": 1, "#00ff00": 1, "#ff0000": 2})
    assert parse_colors({"#FF0000": 1, "#ff0000": 1}) == {(255, 0, 0): 1}


@pytest.mark.parametrize(
    ("rule", "drawn", "bad", "allowed", "fix"),
    [
        (MaskRule(150), [0, 5, 150], "150", "0..149, 255", "reduce_zero_label, now false.*often count classes from 1"),
        (MaskRule(150), [0, 150, 200], "150, 200", "0..149, 255", "data.ignore_index.*reduce_zero_label, now false$"),
        (MaskRule(150, reduce_zero_label=True), [0, 150, 151], "151", "0..150, 255", "reduce_zero_label, now true"),
        (MaskRule(150, None), [0, 255], "255", "0..149", "data.ignore_index"),
        (MaskRule(3, 254), [0, 253, 254, 255], "253, 255", "0..2, 254", "data.ignore_index"),
        (MaskRule(2, ids={7: 0, 9: 1, 1: IGNORED}), [7, 9, 8, 1], "8", "1, 7, 9, 255", "data.ignore_index"),
    ],
)
def test_ids_out_of_range(tmp_path: Path, rule: MaskRule, drawn: list[int], bad: str, allowed: str, fix: str) -> None:
    path = write(tmp_path / "mask.png", ids((30, 30), drawn))
    with pytest.raises(DataError, match=f"ids without a class: {bad}; allowed are {allowed} .*{fix}") as caught:
        read_mask(path, rule)
    assert caught.value.where == str(path)


def test_minus_one(tmp_path: Path) -> None:
    """-1 becomes 65535 in 16 bits; in 8 bits it is 255, the usual id of pixels without a class."""
    drawn = np.array([[0, -1]] * 2)
    with pytest.raises(DataError, match=r"ids without a class: 65535; allowed are 0..9, 255"):
        read_mask(write(tmp_path / "deep.png", drawn.astype(np.uint16)), TEN)
    assert read_mask(write(tmp_path / "mask.png", drawn.astype(np.uint8)), TEN).tolist() == [[0, IGNORED]] * 2


def test_meanings(tmp_path: Path) -> None:
    path = write(tmp_path / "mask.png", np.array([[0, 1, 2, 3, 255]] * 2, dtype=np.uint8))
    read = {
        "plain": MaskRule(4),
        "from one": MaskRule(3, reduce_zero_label=True),
        "mapped": MaskRule(2, ids={0: IGNORED, 1: 1, 2: 0, 3: IGNORED}),
    }
    rows = {name: read_mask(path, rule)[0].tolist() for name, rule in read.items()}
    assert rows["plain"] == [0, 1, 2, 3, IGNORED]
    assert rows["from one"] == [IGNORED, 0, 1, 2, IGNORED]
    assert rows["mapped"] == [IGNORED, 1, 0, IGNORED, IGNORED]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 256}, "num_classes"),  # 255 is taken
        ({"num_classes": 4, "ignore_index": 3}, "ignore_index"),
        ({"num_classes": 4, "ignore_index": 4, "reduce_zero_label": True}, "ignore_index"),
        ({"num_classes": 4, "ignore_index": -1}, "ignore_index"),
    ],
)
def test_rules_that_contradict_themselves(options: dict[str, int], field: str) -> None:
    with pytest.raises(ConfigError, match=f"data.{field}"):
        MaskRule(**options)  # type: ignore[arg-type]


def test_zero_may_be_ignored_twice() -> None:
    assert MaskRule(4, ignore_index=0, reduce_zero_label=True).allowed() == "0..4"


def test_an_independent_reader_agrees(tmp_path: Path) -> None:
    """A palette PNG that another encoder could have written, read from its bytes by hand."""
    drawn = ids((5, 8), list(range(10)))
    buffer = io.BytesIO()
    image = Image.fromarray(drawn)
    image.putpalette(GREYISH)
    image.save(buffer, "PNG")
    data = buffer.getvalue()
    place = data.index(b"IDAT")
    length = int.from_bytes(data[place - 4 : place], "big")
    raw = np.frombuffer(zlib.decompress(data[place + 4 : place + 4 + length]), dtype=np.uint8).reshape(5, -1)
    depth = data[24]
    assert not raw[:, 0].any(), "this reader knows no filters"
    bits = np.unpackbits(raw[:, 1:], axis=1).reshape(5, -1, depth)[:, :8]
    np.testing.assert_array_equal(bits @ (1 << np.arange(depth - 1, -1, -1)), drawn)
    (tmp_path / "mask.png").write_bytes(data)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", TEN), drawn)
