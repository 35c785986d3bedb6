"""What decoding makes of each kind of pixel: 8 bits as they are, deep grayscale scaled to 8, no undefined ranges."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import SHAPE, complaint, random_images

from ltr.data.images import decode, eight_bits, is_deep

SIDES = SHAPE[:2]
DEEP = np.array([[0, 255, 256, 257, 511], [4095, 4096, 32767, 32768, 51400], [65280, 65534, 65535, 128, 1000]], "u2")
UPPER = np.array([[0, 0, 1, 1, 1], [15, 16, 127, 128, 200], [255, 255, 255, 0, 3]], "u1")  # of each of DEEP's pixels


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(path: Path, pixels: np.ndarray) -> None:
    """16-bit PNG of [H, W] or, in colour, [H, W, 3]."""
    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, 2 * (pixels.ndim == 3), 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


def write_pgm(path: Path, pixels: np.ndarray, largest: int = 65535) -> None:
    """PGM of two bytes a pixel."""
    height, width = pixels.shape
    head = f"P5 {width} {height} {largest}\n".encode()
    path.write_bytes(head + pixels.astype(">u2").tobytes())


def write_tiff(path: Path, content: bytes, sides: tuple[int, ...], bits: int, order: str = "<", **tags: int) -> None:
    """Uncompressed TIFF in one strip; black is zero (`photometric` 1) and pixels unsigned (`kind` 1) unless given."""
    height, width = sides
    entries = [(256, width), (257, height), (258, bits), (259, 1), (262, tags.get("photometric", 1)), (273, 8)]
    entries += [(277, 1), (278, height), (279, len(content)), (339, tags.get("kind", 1))]
    directory = struct.pack(f"{order}H", len(entries))
    for tag, value in entries:
        directory += struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)
    first = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(content))
    path.write_bytes(first + content + directory + bytes(4))


def same_in_three(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=2)


# ---- deep images


WRITERS = {
    "PNG": lambda path: write_png(path, DEEP),
    "PGM": lambda path: write_pgm(path, DEEP),
    "TIFF, little-endian": lambda path: write_tiff(path, DEEP.astype("<u2").tobytes(), DEEP.shape, 16),
    "TIFF, big-endian": lambda path: write_tiff(path, DEEP.astype(">u2").tobytes(), DEEP.shape, 16, ">"),
    "TIFF, white is zero": lambda path: write_tiff(path, (65535 - DEEP).tobytes(), DEEP.shape, 16, photometric=0),
    "TIFF, compressed": lambda path: Image.fromarray(DEEP).save(path, "TIFF", compression="tiff_adobe_deflate"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_sixteen_bits_are_scaled_to_their_upper_eight(tmp_path, kind):
    WRITERS[kind](tmp_path / "image")
    pixels = decode(str(tmp_path / "image"))
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, same_in_three(UPPER))


@pytest.mark.parametrize("factor", [256, 257])
def test_eight_bits_that_were_stored_in_sixteen_come_back(tmp_path, factor):
    every = np.arange(256, dtype=np.uint16).reshape(16, 16)
    write_png(tmp_path / "image.png", factor * every)
    assert np.array_equal(decode(str(tmp_path / "image.png")), same_in_three(every.astype(np.uint8)))


def test_gray_has_the_same_value_as_gray_and_as_colour(tmp_path):
    write_png(tmp_path / "gray.png", DEEP)
    write_png(tmp_path / "colour.png", same_in_three(DEEP))
    assert np.array_equal(decode(str(tmp_path / "gray.png")), decode(str(tmp_path / "colour.png")))


def test_fewer_than_sixteen_bits_are_scaled_from_their_own_range(tmp_path):
    ten = np.array([[0, 512, 1023]])
    write_pgm(tmp_path / "ten.pgm", ten, 1023)
    assert decode(str(tmp_path / "ten.pgm"))[0, :, 0].tolist() == [0, 128, 255]
    write_tiff(tmp_path / "twelve.tif", bytes.fromhex("000800fff00f"), (1, 4), 12)
    assert decode(str(tmp_path / "twelve.tif"))[0, :, 0].tolist() == [0, 128, 255, 0]


@pytest.mark.parametrize("form", ["PNG", "PPM"])
def test_pillows_versions_agree_on_sixteen_bits(form):
    """They open such files as "I;16" or as "I"."""
    for pixels in (DEEP, DEEP.astype(np.int32)):
        image = Image.fromarray(pixels)
        image.format = form
        assert is_deep(image)
        assert np.array_equal(np.asarray(eight_bits("image", image)), UPPER)


UNDEFINED = {
    "unsigned, 32 bits": (DEEP.astype("<u4"), 1, "signed or 32-bit integers"),
    "signed, 32 bits": (DEEP.astype("<i4"), 2, "signed or 32-bit integers"),
    "signed, 16 bits": (DEEP.astype("<i2"), 2, "signed or 32-bit integers"),
    "floating point": (DEEP.astype("<f4") / 65535, 3, "floating-point numbers"),
}


@pytest.mark.parametrize("kind", UNDEFINED)
def test_pixels_without_a_defined_range_are_refused(tmp_path, kind):
    pixels, code, says = UNDEFINED[kind]
    path = tmp_path / "image.tif"
    write_tiff(path, pixels.tobytes(), pixels.shape, 8 * pixels.itemsize, kind=code)
    expected = f"--data-root: {path} must have unsigned pixels of at most 16 bits, got {says}"
    assert complaint(decode, str(path)) == expected


def test_a_portable_float_map_is_refused(tmp_path):
    path = tmp_path / "image.pfm"
    path.write_bytes(b"Pf\n5 3\n-1.0\n" + DEEP.astype("<f4").tobytes())
    assert complaint(decode, str(path)).endswith(
        "must have unsigned pixels of at most 16 bits, got floating-point numbers"
    )


# ---- all others are as Pillow converts them


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *[("1", "png"), ("L", "png"), ("P", "png"), ("LA", "png"), ("RGB", "png"), ("RGBA", "png")],
        *[("CMYK", "jpg"), ("L", "jpg"), ("L", "tif"), ("CMYK", "tif"), ("RGB", "bmp"), ("L", "pgm"), ("P", "gif")],
    ],
)
def test_shallow_pixels_are_as_pillow_converts_them(tmp_path, mode, suffix):
    path = tmp_path / f"image.{suffix}"
    colour = Image.fromarray(random_images(1)[0])
    (colour.convert("L").convert(mode) if mode == "LA" else colour.convert(mode)).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
        assert not is_deep(image)
        assert np.array_equal(decode(str(path)), np.asarray(image.convert("RGB")))


def test_alpha_is_dropped(tmp_path):
    pixels = random_images(1)[0]
    alpha = np.zeros((*SIDES, 1), np.uint8)
    Image.fromarray(np.concatenate([pixels, alpha], axis=2)).save(tmp_path / "image.png")
    assert np.array_equal(decode(str(tmp_path / "image.png")), pixels)


def test_the_orientation_of_exif_is_ignored(tmp_path):
    image = Image.fromarray(random_images(1)[0])
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(tmp_path / "image.png", exif=exif)
    assert np.array_equal(decode(str(tmp_path / "image.png")), np.asarray(image))
