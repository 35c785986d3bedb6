"""Long-tailed sets: images of one of the sources, cut to a profile of class counts.

The test set stays as it is. An order-free fingerprint names what was loaded, whichever way it came.
"""

import dataclasses
import warnings
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from ltr.data import large_sets
from ltr.data.folders import read_folder
from ltr.data.images import Absent as Absent  # for the notebooks, which read finished runs without images
from ltr.data.images import LabelledImages, Parts
from ltr.data.large_sets import LARGE_SETS
from ltr.data.lists import read_list
from ltr.data.loader import RGB
from ltr.data.streaming import ListedImages
from ltr.data.synthetic import read_synthetic
from ltr.errors import InputError
from ltr.recipes import OWN_IMAGES

STATISTICS = {  # RGB mean and standard deviation of the training images, in 0..1
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),  # as in the released code
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
PROFILES = ("exp", "step", "as-is")
CHOICES = ("first", "random", "hash")
CIFAR100_TEST = "6cd9e091e1ed15c6f0329fbb0bc38c5e386abe7325fcd1a9588e8e4b8b75f933"


def read_cifar(name: str, root: Path) -> Parts:
    """See `ltr.data.cifar`."""
    from ltr.data import cifar  # here, as torchvision alone takes two seconds to import

    return cifar.read(root, kind=cifar.KINDS[name])


def to_be_fetched(source: str, root: Path) -> bool:
    """Whether reading a source would first unpack, or download, what is not there; nothing is touched."""
    if source not in ("cifar100", "cifar10"):
        return False
    from ltr.data import cifar

    return cifar.stored(root, cifar.KINDS[source]) is None


READERS = {
    **{name: partial(read_cifar, name) for name in ("cifar100", "cifar10")},
    "folder": read_folder,
    "list": read_list,
    "synthetic": lambda _: read_synthetic(),
}
SOURCES = (*READERS, *LARGE_SETS)


@dataclass(frozen=True)
class LongTailed:
    """A long-tailed training set beside its test set."""

    name: str  # what the set is, by its fingerprint where that is known
    class_names: list[str]  # [C]
    train: LabelledImages | ListedImages
    test: LabelledImages | ListedImages
    validation: LabelledImages | ListedImages | None  # None unless images were held out, or the set has a list of them
    mean: RGB
    std: RGB
    workers: int | None = None  # processes that decode streamed images; None for as many as suit the machine

    @property
    def class_counts(self) -> np.ndarray:
        """int64 [C], training images of each class."""
        return np.bincount(self.train.labels, minlength=len(self.class_names))

    def for_tuning(self) -> "LongTailed":
        """The same set with the held-out images in the place of the test images.

        Raises:
            InputError: no images were held out.
        """
        if self.validation is None:
            raise InputError("--hold-out: must be at least 1 to tune on held-out images, got 0")
        return dataclasses.replace(self, test=self.validation, validation=None)

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Of the images of each split that is there; all of them are hashed, once."""
        splits = {split: getattr(self, split) for split in ("train", "test", "validation")}
        return {split: images.fingerprint() for split, images in splits.items() if images is not None}

    def describe(self) -> dict:
        """Name, class names, counts and fingerprints, as a run's config keeps them."""
        return {
            "name": self.name,
            "class_names": self.class_names,
            "class_counts": self.class_counts.tolist(),
            "test_images": len(self.test),
            "fingerprint": self.fingerprint,
        }


def class_counts(n_max: int, num_classes: int, imbalance_factor: float, profile: str = "exp") -> np.ndarray:
    r"""Training images of each class, from common to rare.

    .. math:: n_k = \lfloor n_{max} \, r^{k / (C - 1)} \rfloor, \quad r = 1 / \mathrm{IF}

    The step profile gives the first half of the classes n_max and the others n_max / IF. The as-is profile cuts
    nothing, so that no formula belongs to it, see `split_indices`.

    Args:
        n_max: images of the most common class.
        num_classes: C.
        imbalance_factor: IF, at least 1; 1 keeps every class at n_max.
        profile: "exp" or "step".

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
        raise InputError(f"--profile: must be exp or step, which cut, got {profile}")
    # 500 * 0.1 ** 1.0 may come out a hair below 50, and must not lose an image by it
    counts = np.floor(counts + 1e-9).astype(np.int64)
    if counts.min() < 1:
        rarest = f"{n_max} images of the first class leave none for class {int(counts.argmin())}"
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

    Of each class `hold_out` images go to validation, before the tail is cut and by the same choice; class 0 then says
    how many a full class holds, and the profile takes from what follows. The as-is profile takes all
    that follows, in the source's order, whichever class is the largest.

    Args:
        labels: int [N], of all training images of the source.
        names: [C].
        imbalance_factor: plays no part in the as-is profile.
        choice: "first" takes a class's images in their order, as does "hash", whose order is `LabelledImages.by_hash`;
            "random" draws them with `seed`.

    Returns:
        indices of training and of validation images.

    Raises:
        InputError: a class holds fewer images than the profile takes.
    """
    if choice not in CHOICES:
        raise InputError(f"--choice: must be one of {', '.join(CHOICES)}, got {choice}")
    available = np.bincount(labels, minlength=len(names))
    if not available.all():
        raise InputError(f"--data-root: every class must have an image, got none of {names[int(available.argmin())]}")
    full = int(available.min() if profile == "as-is" else available[0])
    if not 0 <= hold_out < full:
        raise InputError(f"--hold-out: must be between 0 and {full - 1}, got {hold_out}")
    cut = full - hold_out, len(names), imbalance_factor, profile
    counts = available - hold_out if profile == "as-is" else class_counts(*cut)
    check_enough(available, counts, hold_out, names)
    train, validation = [], []
    for k in range(len(names)):
        members = np.flatnonzero(labels == k)
        if choice == "random":
            members = np.random.default_rng([seed, k]).permutation(members)
        validation.append(members[:hold_out])
        train.append(members[hold_out:][: counts[k]])
    chosen = np.concatenate(train)
    return np.sort(chosen) if profile == "as-is" else chosen, np.concatenate(validation)


def check_enough(available: np.ndarray, counts: np.ndarray, hold_out: int, names: list[str]) -> None:
    """Every class [C] must have as many images as train and are held out.

    Raises:
        InputError: one has fewer; the message names the first.
    """
    for name, there, taken in zip(names, available, counts, strict=True):
        if there < taken + hold_out:
            need = f"{taken} training images" + (f" and {hold_out} to hold out" if hold_out else "")
            raise InputError(f"--data-root: class {name} has {there} images, the profile takes {need}")


def load(
    source: str,
    root: Path,
    imbalance_factor: float,
    profile: str = "exp",
    choice: str = "first",
    hold_out: int = 0,
    seed: int = 0,
    normalization: str = "cifar100",
    workers: int | None = None,
    resize: int | None = None,
) -> LongTailed:
    """Read a source and cut its tail.

    Args:
        source: one of `SOURCES`.
        root: CIFAR's download folder, the tree that holds `train` and `test`, or the list files' folder.
        imbalance_factor: images of the largest class over those of the smallest; of no effect with "as-is".
        profile: one of `PROFILES`.
        choice: which n images of a class: the "first" of the source, a "random" draw, or the first by the "hash" of
            their pixels, which are the same from every source.
        hold_out: images a class for a balanced validation set, taken before the tail is cut.
        seed: of the random choice only; the synthetic set's pixels do not depend on it.
        normalization: a key of `STATISTICS`.
        workers: see `LongTailed`.
        resize: see `data.images.Listing`; of a folder or a list only.

    Raises:
        InputError: see the readers; every message is one line that names the option.
    """
    check_options(source, profile, choice, resize)
    if source in LARGE_SETS:
        return load_large_set(source, Path(root), hold_out, normalization, workers)
    own = source in OWN_IMAGES
    train, test, names = READERS[source](Path(root), **({"resize": resize} if own else {}))
    if len(names) < 2:
        raise InputError(f"--data-root: must hold images of two classes or more, got {len(names)}")
    if choice == "hash":
        train = train.by_hash()
    chosen, held = split_indices(train.labels, names, imbalance_factor, profile, choice, hold_out, seed)
    validation = train.take(held) if hold_out else None
    train = train.take(chosen)
    name = name_of(Path(root)) if own else source
    if test.fingerprint() == CIFAR100_TEST:
        name = "cifar100"
    elif own:
        warn_of_shared(train, test)
    return LongTailed(name, names, train, test, validation, *STATISTICS[normalization])


def warn_of_shared(train: LabelledImages, test: LabelledImages) -> None:
    """Say how many test images a network has learned: known sets have a few, one's own should have none."""
    if shared := sum(map({*train.hashes}.__contains__, test.hashes)):
        warnings.warn(f"{shared:,} of {len(test):,} test images are training images, too", stacklevel=3)


def name_of(root: Path) -> str:
    """What one's own images are called in tables: as their folder, which must not be taken for a known set."""
    name = root.resolve().name or "images"  # a drive has no name
    return f"own {name}" if name in SOURCES else name


def check_options(source: str, profile: str, choice: str | None, resize: int | None) -> None:
    """The large sets are long-tailed as they were published, so that all images stay; only one's own images are brought
    to another size.

    Raises:
        InputError: the source does not have what is asked of it.
    """
    if source in LARGE_SETS and profile != "as-is":
        raise InputError(f"--profile: must be as-is with {source}, which is long-tailed already, got {profile}")
    if source in LARGE_SETS and choice not in (None, "first"):
        raise InputError(f"--choice: must be first with {source}, all of whose images stay, got {choice}")
    if resize is not None and source not in OWN_IMAGES:
        raise InputError(
            f"--resize: must be given with --dataset {' or '.join(OWN_IMAGES)}, got {resize} with {source}"
        )


def load_large_set(source: str, root: Path, hold_out: int, normalization: str, workers: int | None) -> LongTailed:
    """Read one of the large sets; its own validation list is the validation set.

    Raises:
        InputError: see `large_sets.read`; or images are to be held out of a set that has a validation list.
    """
    if hold_out and "validation" in LARGE_SETS[source].files:
        raise InputError(f"--hold-out: must be 0 with {source}, which has a validation list, got {hold_out}")
    train, test, names, validation = large_sets.read(source, root)
    if hold_out:
        chosen, held = split_indices(train.labels, names, 1.0, "as-is", hold_out=hold_out)
        train, validation = train.take(chosen), train.take(held)
    return LongTailed(source, names, train, test, validation, *STATISTICS[normalization], workers)
