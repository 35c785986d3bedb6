"""Image files into arrays: decoded once, kept in memory, cached beside the files."""

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from ltr.errors import InputError
from ltr.runtime.storage import remove_partial, write_whole

SPLITS = ("train", "test")
BITS_PER_SAMPLE = 258  # a tag of TIFF
PHOTOMETRIC = 262  # another, and a value of it
WHITE_IS_ZERO = 0


class Absent(InputError):
    """The images are not there at all: finished runs can still be read."""


@dataclass(frozen=True)
class LabelledImages:
    """Images uint8 [N, H, W, 3] and labels int64 [N]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "LabelledImages":
        """The images at these positions, in their order."""
        return LabelledImages(self.images[indices], self.labels[indices])

    @cached_property
    def hashes(self) -> list[bytes]:
        """SHA-256 of each image's pixels, [N]."""
        return [hashlib.sha256(image.tobytes()).digest() for image in self.images]

    def by_hash(self) -> "LabelledImages":
        """The images in the order of their pixels' hashes: the same from any source, and like a draw in all else."""
        return self.take(np.array(sorted(range(len(self)), key=self.hashes.__getitem__), dtype=int))

    def fingerprint(self) -> str:
        """SHA-256 over the sorted list of label and pixel hash: the same for any order of the images."""
        rows = zip(self.labels.tolist(), self.hashes, strict=True)
        return hashlib.sha256(b"".join(sorted(b"%02d" % label + pixels for label, pixels in rows))).hexdigest()


Parts = tuple[LabelledImages, LabelledImages, list[str]]  # training images, test images, class names


@dataclass(frozen=True)
class Listing:
    """A split's image files, none of them opened yet.

    With `resize` the shorter side is scaled to so many pixels, and the middle of the longer one is kept; without it
    images stay as they are, and must have one size.
    """

    name: str  # the split's, for messages and the cache
    paths: Sequence[str]  # [N]
    labels: Sequence[int]  # [N]
    resize: int | None = None

    def decode(self, path: str) -> np.ndarray:
        """An image of it, uint8 [H, W, 3]; see `decode`."""
        pixels = decode(path)
        if self.resize is None:
            return pixels
        return np.asarray(ImageOps.fit(Image.fromarray(pixels), (self.resize, self.resize)))


def is_deep(image: Image.Image) -> bool:
    """Whether Pillow keeps more than 8 bits a pixel; `convert("RGB")` would make every value above 255 white."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def eight_bits(path: str, image: Image.Image) -> Image.Image:
    """The upper 8 bits of a deep image's pixels.

    So does Pillow itself read 16-bit colour (PNG, TIFF), and 8-bit pixels that were stored as 256 v or as 257 v both
    come back; v / 257, rounded, would give back the latter alone. PNG and PGM have at most 16 bits, under a mode that
    depends on Pillow's version; a TIFF of mode "I" is signed or of 32 bits. Pillow spreads the fewer bits of PGM and
    JPEG 2000 over 16, those of TIFF (12) it leaves as they are.

    Raises:
        InputError: nothing says which value is white, as of floats.
    """
    unsigned = image.mode != "F" and (image.mode != "I" or image.format in ("PNG", "PPM"))
    if not unsigned or image.format not in ("PNG", "PPM", "JPEG2000", "TIFF"):
        kind = "floating-point numbers" if image.mode == "F" else "signed or 32-bit integers"
        raise InputError(f"--data-root: {path} must have unsigned pixels of at most 16 bits, got {kind}")
    bits = image.tag_v2[BITS_PER_SAMPLE][0] if image.format == "TIFF" else 16
    pixels = np.asarray(image)
    if image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow minds it in 8 bits alone
        pixels = 2**bits - 1 - pixels
    return Image.fromarray((pixels >> (bits - 8)).astype(np.uint8))


def decode(path: str) -> np.ndarray:
    """Read one PNG, JPEG or WebP file, or another that Pillow knows, as RGB: uint8 [H, W, 3].

    Grayscale of 12 or 16 bits is scaled to 8, alpha is dropped. Pixels are as they are stored: the orientation that
    EXIF may note is ignored.

    Raises:
        InputError: the file is no readable image, or its pixels have no defined range.
    """
    try:
        with Image.open(path) as image:
            shallow = eight_bits(path, image) if is_deep(image) else image
            return np.asarray(shallow.convert("RGB"))
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders answer damage with a dozen kinds of exceptions
        reason = getattr(error, "strerror", None) or "it cannot be decoded"
        raise InputError(f"--data-root: {path} must be a whole image, as PNG, JPEG or WebP ({reason})") from error


def unequal(name: str, image: np.ndarray, other: str, reference: np.ndarray) -> InputError:
    """What to raise where two images [..., H, W, 3] have not one size."""
    sizes = [f"{width}x{height}" for height, width in (each.shape[-3:-1] for each in (image, reference))]
    where = f"{name} is {sizes[0]}, {other} {sizes[1]}"
    return InputError(f"--data-root: all images must have one size, unless --resize is given; {where}")


def decode_all(listing: Listing) -> np.ndarray:
    """Decode every image of a split: uint8 [N, H, W, 3].

    Raises:
        InputError: an image is broken or of another size, or they do not fit into memory.
    """
    first = listing.decode(listing.paths[0])
    try:
        images = np.empty((len(listing.paths), *first.shape), np.uint8)
    except MemoryError as error:
        need = f"{len(listing.paths)} images take {len(listing.paths) * first.nbytes / 2**30:.1f} GiB"
        raise InputError(f"--data-root: all images must fit into memory; {listing.name}'s {need}") from error
    for row, path in enumerate(tqdm(listing.paths, desc=f"decode {listing.name}", disable=None, leave=False)):
        image = listing.decode(path)
        if image.shape != first.shape:
            raise unequal(path, image, "the first", first)
        images[row] = image
    return images


def signature(root: Path, paths: Sequence[str]) -> str:
    """Sixteen hexadecimal digits that change when one of the files does.

    Size and modification time alone do not tell: bitmaps of one shape have one size, and copying tools set the time.
    Nobody sets the time of the last change (ctime), and a file that is renamed into the place of another keeps its own
    inode. A tree that is copied or restored therefore counts as changed, and is decoded once more.

    Raises:
        InputError: a file is absent, or no regular file: a pipe would be waited for.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise InputError(f"--data-root: {path} must be an image file ({error.strerror})") from error
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"--data-root: {path} must be an image file (it is no regular file)")
        marks = status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
        digest.update(os.fsencode(f"{os.path.relpath(path, root)} {marks}\n"))
    return digest.hexdigest()[:16]


def read_cache(path: Path, count: int) -> np.ndarray | None:
    """The cached pixels, uint8 [count, H, W, 3]; None where they are absent or damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            images = stored["images"]
    except Exception:  # absent, or damaged in one of many ways, each with its own kind of exception
        return None
    whole = images.dtype == np.uint8 and images.ndim == 4 and (len(images), images.shape[3]) == (count, 3)
    return images if whole else None


def read_listing(root: Path, listing: Listing) -> LabelledImages:
    """Decode a split once and keep its pixels below `root`, until one of its files changes.

    Raises:
        InputError: see `decode_all` and `signature`.
    """
    size = "" if listing.resize is None else f"-{listing.resize}"
    cache = root / f".ltr-{listing.name}-{signature(root, listing.paths)}{size}.npz"
    images = read_cache(cache, len(listing.paths))
    if images is None:
        images = decode_all(listing)
        caches = f".ltr-{listing.name}-*.npz"
        with contextlib.suppress(OSError):  # a read-only or full disk: they are decoded each time
            write_whole(cache, lambda file: np.savez(file, images=images))
            remove_partial(root, caches)
            for other in set(root.glob(caches)) - {cache}:
                if re.fullmatch(rf"{re.escape(f'.ltr-{listing.name}')}-\w+{size}\.npz", other.name):
                    other.unlink()  # of an earlier state of its files
    return LabelledImages(images, np.asarray(listing.labels, np.int64))


def check_root(root: Path) -> None:
    """Raises Absent where there is no folder `root`."""
    if not os.path.isdir(root):
        raise Absent(f"--data-root: must be a folder with train and test images, there is no folder {root}")


def read_pair(root: Path, *listings: Listing) -> tuple[LabelledImages, LabelledImages]:
    """Decode training and test images.

    Raises:
        InputError: an image is broken, or not all have one size.
    """
    train, test = (read_listing(root, listing) for listing in listings)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise unequal("train", train.images, "test", test.images)
    return train, test
