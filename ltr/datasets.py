"""Long-tailed sets: three sources of images, two profiles of class counts.

Sources: CIFAR-100 through torchvision, any class-per-folder tree of images, and an embedded synthetic
set that needs no download. The test set is balanced and stays as it is. An order-free fingerprint
names what was loaded, whichever way it came.
"""

import contextlib
import dataclasses
import hashlib
import http.client
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR100, ImageFolder
from tqdm import tqdm

from ltr import InputError, synthetic

STATISTICS = {  # RGB mean and standard deviation of the training images, in 0..1
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),  # as in the released code
}
SOURCES = ("cifar100", "folder", "synthetic")
PROFILES = ("exp", "step")
CHOICES = ("first", "random")
CIFAR100_TEST = "6cd9e091e1ed15c6f0329fbb0bc38c5e386abe7325fcd1a9588e8e4b8b75f933"
SYNTHETIC = {"num_classes": 20, "train": 250, "test": 50, "size": 16}


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

    def fingerprint(self) -> str:
        """SHA-256 over the sorted list of label and pixel hash: the same for any order of the images."""
        rows = sorted(
            b"%02d" % label + hashlib.sha256(image.tobytes()).digest()
            for label, image in zip(self.labels.tolist(), self.images, strict=True)
        )
        return hashlib.sha256(b"".join(rows)).hexdigest()


@dataclass(frozen=True)
class LongTailed:
    """A long-tailed training set beside a balanced test set.

    Attributes:
        name: what the set is, by its fingerprint where that is known.
        class_names: [C].
        class_counts: int64 [C], training images of each class.
        train, test: the images; `validation` is None unless images were held out.
        mean, std: RGB statistics for normalisation, in 0..1.
    """

    name: str
    class_names: list[str]
    train: LabelledImages
    test: LabelledImages
    validation: LabelledImages | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def class_counts(self) -> np.ndarray:
        """int64 [C]."""
        return np.bincount(self.train.labels, minlength=len(self.class_names))

    def for_tuning(self) -> "LongTailed":
        """The same set with the held-out images in the place of the test images.

        Raises:
            InputError: no images were held out.
        """
        if self.validation is None:
            raise InputError("--hold-out: must be at least 1 to tune on held-out images, got 0")
        return dataclasses.replace(self, test=self.validation, validation=None)

    def describe(self) -> dict:
        """Name, class names, counts and fingerprints, as a run's config keeps them."""
        return {
            "name": self.name,
            "class_names": self.class_names,
            "class_counts": self.class_counts.tolist(),
            "test_images": len(self.test),
            "fingerprint": {
                split: images.fingerprint()
                for split in ("train", "test", "validation")
                if (images := getattr(self, split)) is not None
            },
        }


def class_counts(n_max: int, num_classes: int, imbalance_factor: float, profile: str = "exp") -> np.ndarray:
    r"""Training images of each class, from common to rare.

    .. math:: n_k = \lfloor n_{max} \, r^{k / (C - 1)} \rfloor, \quad r = 1 / \mathrm{IF}

    The step profile gives the first half of the classes n_max and the others n_max / IF.

    Args:
        n_max: images of the most common class.
        num_classes: C.
        imbalance_factor: IF, at least 1; 1 keeps every class at n_max.
        profile: one of `PROFILES`.

    Raises:
        InputError: a class would be left without images, or an argument is out of range.

    Source: Cui et al. 2019, section 5.1; Cao et al. 2019, section 4 (step).
    """
    if not imbalance_factor >= 1:
        raise InputError(f"--imbalance-factor: must be at least 1, got {imbalance_factor:g}")
    position = np.arange(num_classes)
    if profile == "exp":
        counts = n_max * (1 / imbalance_factor) ** (position / max(num_classes - 1, 1))
    elif profile == "step":
        counts = np.where(position < num_classes / 2, n_max, n_max / imbalance_factor)
    else:
        raise InputError(f"--profile: must be one of {', '.join(PROFILES)}, got {profile}")
    # 500 * 0.1 ** 1.0 may come out a hair below 50, and must not lose an image by it
    counts = np.floor(counts + 1e-9).astype(np.int64)
    if counts.min() < 1:
        rarest = f"{n_max} images of the largest class leave none for class {int(counts.argmin())}"
        raise InputError(f"--imbalance-factor: must be at most {n_max}: {rarest}")
    return counts


def split_indices(
    labels: np.ndarray,
    names: list[str],
    imbalance_factor: float,
    profile: str = "exp",
    choice: str = "first",
    hold_out: int = 0,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the validation and the long-tailed training images.

    The first `hold_out` images of each class go to validation, before the tail is cut; class 0 then
    says how many a full class holds, and the profile takes from what follows.

    Args:
        labels: int [N], of all training images of the source.
        names: [C].
        choice: "first" takes a class's images in their order, "random" draws them with `seed`.

    Returns:
        indices of training and of validation images.

    Raises:
        InputError: a class holds fewer images than the profile takes.
    """
    if choice not in CHOICES:
        raise InputError(f"--choice: must be one of {', '.join(CHOICES)}, got {choice}")
    available = np.bincount(labels, minlength=len(names))
    if not 0 <= hold_out < available[0]:
        raise InputError(f"--hold-out: must be between 0 and {available[0] - 1}, got {hold_out}")
    counts = class_counts(int(available[0]) - hold_out, len(names), imbalance_factor, profile)
    train, validation = [], []
    for k, name in enumerate(names):
        members = np.flatnonzero(labels == k)
        if len(members) < counts[k] + hold_out:
            need = f"{counts[k]} training images" + (f" and {hold_out} to hold out" if hold_out else "")
            raise InputError(f"--data-root: class {name} has {len(members)} images, the profile takes {need}")
        validation.append(members[:hold_out])
        members = members[hold_out:]
        if choice == "random":
            members = np.random.default_rng([seed, k]).permutation(members)
        train.append(members[: counts[k]])
    return np.concatenate(train), np.concatenate(validation)


def read_cifar100(root: Path) -> tuple[LabelledImages, LabelledImages, list[str]]:
    """CIFAR-100 through torchvision, which checks the files' MD5 and downloads them where absent.

    Raises:
        Absent: the files are neither there nor to be had.
    """
    try:
        parts = [CIFAR100(root, train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())
        raise Absent(
            f"--data-root: CIFAR-100 is not in {root} and could not be downloaded ({reason}); put "
            f"cifar-100-python.tar.gz (MD5 {CIFAR100.tgz_md5}) there, or use --dataset folder or synthetic"
        ) from error
    train, test = (LabelledImages(part.data, np.asarray(part.targets, np.int64)) for part in parts)
    return train, test, parts[0].classes


def decode(path: str) -> np.ndarray:
    """Read one PNG, JPEG or WebP file as RGB: uint8 [H, W, 3].

    Raises:
        InputError: the file is no readable image.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"--data-root: cannot read the image {path}") from error


def list_split(folder: Path) -> ImageFolder:
    """List a split's images by class, classes and files in alphabetical order.

    Raises:
        InputError: the folder is absent, or has no class or a class without images.
    """
    try:
        return ImageFolder(str(folder))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"--data-root: {folder}: {' '.join(str(error).split())}") from error


def decode_split(listing: ImageFolder) -> LabelledImages:
    """Decode every image of a split; all must have one size.

    Raises:
        InputError: an image is broken or of another size.
    """
    first = decode(listing.samples[0][0])
    images = np.empty((len(listing), *first.shape), np.uint8)
    progress = tqdm(listing.samples, desc=f"decode {Path(listing.root).name}", disable=None, leave=False)
    for row, (path, _) in enumerate(progress):
        image = decode(path)
        if image.shape != first.shape:
            size, expected = image.shape[1::-1], first.shape[1::-1]
            raise InputError(f"--data-root: {path} is {size[0]}x{size[1]}, the others {expected[0]}x{expected[1]}")
        images[row] = image
    return LabelledImages(images, np.asarray(listing.targets, np.int64))


def cached_split(root: Path, listing: ImageFolder) -> LabelledImages:
    """Decode a split once and keep the pixels beside the tree, until a file of it changes."""
    stamp = hashlib.sha256()
    for path, _ in listing.samples:
        status = os.stat(path)
        stamp.update(f"{os.path.relpath(path, root)} {status.st_size} {status.st_mtime_ns}\n".encode())
    split = Path(listing.root).name
    cache = root / f".ltr-{split}-{stamp.hexdigest()[:16]}.npz"
    try:
        with np.load(cache, allow_pickle=False) as stored:
            return LabelledImages(stored["images"], stored["labels"])
    except (OSError, KeyError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile):
        pass  # absent or damaged: decode anew
    decoded = decode_split(listing)
    partial = cache.with_name(f"{cache.stem}.{os.getpid()}.tmp.npz")
    try:
        np.savez(partial, images=decoded.images, labels=decoded.labels)
        os.replace(partial, cache)
        for stale in set(root.glob(f".ltr-{split}-*.npz")) - {cache}:
            stale.unlink()
    except OSError:  # a read-only tree is decoded each time
        with contextlib.suppress(OSError):
            partial.unlink()
    return decoded


def read_folder(root: Path) -> tuple[LabelledImages, LabelledImages, list[str]]:
    """Images of `root/train/<class>/*` and `root/test/<class>/*`.

    Raises:
        Absent: there is no such folder.
        InputError: a split, a class or an image is missing or broken.
    """
    if not root.is_dir():
        raise Absent(f"--data-root: there is no folder {root}")
    listings = {split: list_split(root / split) for split in ("train", "test")}
    names = listings["train"].classes
    if odd := sorted(set(names) ^ set(listings["test"].classes)):
        where = "test" if odd[0] in names else "train"
        raise InputError(f"--data-root: {root / where} has no folder for the class {odd[0]}")
    train, test = (cached_split(root, listing) for listing in listings.values())
    if train.images.shape[1:] != test.images.shape[1:]:
        raise InputError(f"--data-root: training and test images of {root} differ in size")
    return train, test, names


def read_synthetic(seed: int = 0) -> tuple[LabelledImages, LabelledImages, list[str]]:
    """Draw the embedded set, see `ltr.synthetic`."""
    num_classes, size = SYNTHETIC["num_classes"], SYNTHETIC["size"]
    parts = []
    for split in ("train", "test"):
        count = SYNTHETIC[split]
        images = [synthetic.draw_images(k, count, num_classes, size, seed, split) for k in range(num_classes)]
        parts.append(LabelledImages(np.concatenate(images), np.repeat(np.arange(num_classes), count)))
    return parts[0], parts[1], synthetic.class_names(num_classes)


def load(
    source: str,
    root: Path,
    imbalance_factor: float,
    profile: str = "exp",
    choice: str = "first",
    hold_out: int = 0,
    seed: int = 0,
    normalization: str = "cifar100",
) -> LongTailed:
    """Read a source and cut its tail.

    Args:
        source: one of `SOURCES`.
        root: CIFAR-100's download folder, or the tree that holds `train` and `test`.
        imbalance_factor: images of the largest class over those of the smallest.
        profile: "exp" or "step".
        choice: "first" n images of a class or "random" ones.
        hold_out: images a class for a balanced validation set, taken before the tail is cut.
        seed: of the random choice only; the synthetic set's pixels do not depend on it.
        normalization: a key of `STATISTICS`.

    Raises:
        InputError: see the readers; every message is one line that names the option.
    """
    readers = {"cifar100": read_cifar100, "folder": read_folder, "synthetic": lambda _: read_synthetic()}
    train, test, names = readers[source](Path(root))
    kept, held = split_indices(train.labels, names, imbalance_factor, profile, choice, hold_out, seed)
    name = {"folder": Path(root).resolve().name}.get(source, source)
    if test.fingerprint() == CIFAR100_TEST:
        name = "cifar100"
    mean, std = STATISTICS[normalization]
    return LongTailed(name, names, train.take(kept), test, train.take(held) if hold_out else None, mean, std)
