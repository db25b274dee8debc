"""Decoding: the picture that the file holds, or an error that names the file."""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pictures import noise, photo
from PIL import Image, ImageFile

from lightning_petl.data import DataWarning, ImageLimits, open_image
from lightning_petl.errors import ConfigError, DataError


def encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    photo(size=(64, 80)).save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [("a.png", {}, 0), ("a.bmp", {}, 0), ("a.webp", {"lossless": True}, 0), ("a.jpg", {"quality": 95}, 12)],
)
def test_formats(tmp_path: Path, name: str, options: dict[str, object], tolerance: float) -> None:
    smooth = np.dstack([np.linspace(0, 255, 16 * 12).reshape(12, 16)] * 3).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / name, **options)  # type: ignore[arg-type]
    image = open_image(tmp_path / name)
    assert (image.mode, image.size) == ("RGB", (16, 12))
    assert np.abs(np.asarray(image).astype(int) - smooth).max() <= tolerance


def flipped(data: bytes) -> bytes:
    """PNG data with one damaged byte in the middle of the compressed pixels."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut.jpg": (lambda: encoded("JPEG")[:-400], "cannot be decoded"),
    "head.jpg": (lambda: encoded("JPEG")[:20], "no JPEG, PNG, WEBP or BMP image"),
    "cut.png": (lambda: encoded("PNG")[:-400], "cannot be decoded"),
    "damaged.png": (lambda: flipped(encoded("PNG")), "cannot be decoded"),
    "cut.webp": (lambda: encoded("WEBP", lossless=True)[:-400], "cannot be decoded"),
    "cut.bmp": (lambda: encoded("BMP")[:-400], "cannot be decoded"),
    "empty.jpg": (lambda: b"", "is empty"),
    "text.jpg": (lambda: b"not found\n", "no JPEG, PNG, WEBP or BMP image"),
    "gif.jpg": (lambda: encoded("GIF"), "no JPEG, PNG, WEBP or BMP image"),
    "tiff.jpg": (lambda: encoded("TIFF"), "no JPEG, PNG, WEBP or BMP image"),
    "eps.jpg": (lambda: encoded("EPS"), "no JPEG, PNG, WEBP or BMP image"),
    "fits.png": (lambda: b"SIMPLE  =                    T".ljust(2880), "no JPEG, PNG, WEBP or BMP image"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named(tmp_path: Path, name: str) -> None:
    make, message = BROKEN[name]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(DataError, match=message) as caught:
        open_image(tmp_path / name)
    assert caught.value.where == str(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist \[.*gone.png\]"):
        open_image(tmp_path / "gone.png")
    with pytest.raises(DataError, match="Is a directory"):
        open_image(tmp_path)


def test_truncated_images_switched_on_elsewhere_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo().save(tmp_path / "a.png")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ConfigError, match="LOAD_TRUNCATED_IMAGES"):
        open_image(tmp_path / "a.png")


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels: reading them would fail with another error."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + bytes([8, 2, 0, 0, 0])) + chunk(b"IDAT", b"")


@pytest.mark.parametrize(
    ("size", "limits", "field"),
    [
        ((8001, 8000), ImageLimits(), "max_pixels"),
        ((1, 1), ImageLimits(), "min_side"),
        ((20000, 3), ImageLimits(), "max_aspect"),
        ((3, 20000), ImageLimits(), "max_aspect"),
        ((16, 12), ImageLimits(max_pixels=191), "max_pixels"),
    ],
)
def test_sizes_are_refused_from_the_header(
    tmp_path: Path, size: tuple[int, int], limits: ImageLimits, field: str
) -> None:
    (tmp_path / "a.png").write_bytes(png_header(*size))
    with pytest.raises(DataError, match=f"{size[0]}x{size[1]} pixels, outside {field}="):
        open_image(tmp_path / "a.png", limits)


def test_size_at_the_limit_is_decoded(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png", ImageLimits(max_pixels=192, min_side=12)).size == (16, 12)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bomb_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(30000, 30000))
    with pytest.raises(DataError, match=r"exceeds limit.*\[.*bomb.png\]"):
        open_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("field", ["max_pixels", "min_side", "max_aspect"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_are_checked(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"data.limits.{field}"):
        ImageLimits(**{field: value})  # type: ignore[arg-type]


def test_grey16_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]] * 2, dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    red = np.asarray(open_image(tmp_path / "a.png"))[0, :, 0]
    assert red.tolist() == [0, 0, 1, 1, 128, 255]


def test_transparent_key_of_grey16_shows_the_background(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 300], [300, 65535]], dtype=np.uint16)).save(tmp_path / "a.png", transparency=300)
    assert np.asarray(open_image(tmp_path / "a.png"))[:, :, 1].tolist() == [[0, 255], [255, 255]]


def colour(image: Image.Image, path: Path, **options: object) -> tuple[int, ...]:
    image.save(path, **options)  # type: ignore[arg-type]
    decoded = open_image(path)
    assert decoded.mode == "RGB"
    return tuple(np.asarray(decoded)[2, 2].tolist())


def palette(**options: object) -> Image.Image:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    return image


@pytest.mark.parametrize(
    ("image", "name", "options", "expected", "tolerance"),
    [
        (Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "cyan.jpg", {}, (0, 255, 255), 3),
        (palette(), "palette.png", {}, (10, 200, 30), 0),
        (palette(), "hidden.png", {"transparency": 1}, (255, 255, 255), 0),
        (Image.new("RGBA", (8, 8), (200, 0, 0, 0)), "clear.png", {}, (255, 255, 255), 0),
        (Image.new("RGBA", (8, 8), (200, 0, 0, 128)), "half.png", {}, (227, 127, 127), 1),
        (Image.new("RGBA", (8, 8), (200, 0, 0, 255)), "full.webp", {"lossless": True}, (200, 0, 0), 0),
        (Image.new("LA", (8, 8), (100, 0)), "grey.png", {}, (255, 255, 255), 0),
        (Image.new("L", (8, 8), 100), "key.png", {"transparency": 100}, (255, 255, 255), 0),
        (Image.new("L", (8, 8), 100), "grey.jpg", {}, (100, 100, 100), 1),
        (Image.new("1", (8, 8), 1), "bit.png", {}, (255, 255, 255), 0),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_modes_have_a_defined_colour(
    tmp_path: Path,
    image: Image.Image,
    name: str,
    options: dict[str, object],
    expected: tuple[int, ...],
    tolerance: int,
) -> None:
    found = colour(image, tmp_path / name, **options)
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    # Where the tag says that row 0 and column 0 of the stored pixels are seen (TIFF 6.0, page 36).
    seen = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "lt", 6: "rt", 7: "rb", 8: "lb"}[orientation]
    stored = np.zeros((32, 48, 3), np.uint8)
    stored[:16, :16, 0] = 255  # red at row 0, column 0
    stored[:16, 32:, 1] = 255  # green at row 0, last column
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / f"a.{suffix}", exif=exif, **({"quality": 95} if suffix == "jpg" else {}))
    image = open_image(tmp_path / f"a.{suffix}")
    pixels = np.asarray(image).astype(int)
    corners = {"tl": pixels[3, 3], "tr": pixels[3, -4], "bl": pixels[-4, 3], "br": pixels[-4, -4]}
    swapped = seen[0] in "lr"  # rows are seen as columns
    assert image.size == ((32, 48) if swapped else (48, 32))
    red = "".join(sorted(seen, key="tblr".index))
    green = {"t": "b", "b": "t"}[red[0]] + red[1] if swapped else red[0] + {"l": "r", "r": "l"}[red[1]]
    assert corners[red][0] > 240
    assert corners[red][1] < 15
    assert corners[green][1] > 240


@pytest.mark.parametrize("suffix", ["webp", "png"])
def test_first_of_several_frames_with_a_warning(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    with pytest.warns(DataWarning, match="has 3 frames"):
        image = open_image(tmp_path / f"a.{suffix}")
    assert np.asarray(image)[0, 0].tolist() == [255, 0, 0]


def test_one_frame_is_no_warning(tmp_path: Path) -> None:
    pixels = noise()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(np.asarray(open_image(tmp_path / "a.png")), pixels)
