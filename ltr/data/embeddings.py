"""What a caller brings to be balanced: embeddings with their labels, and (`heads`) the linear head on them.

N images, D features, C classes. Everything is checked here, before anything is done: what does not fit raises
`InputError`, one line that begins with the argument. Row k of a head belongs to class k of `classes`, and labels become
rows of the head.

Methods see features that are scaled so that their mean squared norm is `MEAN_SQUARE`, and a head that gives the same
logits on them; the scale is folded back. So learning rates, weight decays and what tau-normalisation does beside a bias
fit any features, and features ten times as large lead to the same conclusions.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ltr.data.heads import Head, is_balanced, read_head
from ltr.data.loader import epoch_generator
from ltr.errors import InputError, clip
from ltr.models import linear
from ltr.regularizers import row_norms

MEAN_SQUARE = 176.0  # of the features that the grids of `BALANCERS` were made on, ResNet-32's of CIFAR100-LT

# --- embeddings and labels ------------------------------------------------------------------------------------


def as_array(values: Any, name: str, what: str) -> np.ndarray:
    """Values as an array, whose rows must be of one length."""
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InputError(f"{name}: {what} must be an array, got {clip(type(values).__name__)} ({error})") from error


@dataclass(frozen=True)
class Embeddings:
    """Features of images and their classes; what methods of the second stage learn from.

    Attributes:
        features: float32 [N, D].
        labels: int64 [N], rows of the head.
        num_classes: C.
    """

    features: Tensor
    labels: Tensor
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def class_counts(self) -> np.ndarray:
        """Images of each class, [C]."""
        return self.labels.bincount(minlength=self.num_classes).cpu().numpy()

    def scale(self) -> float:
        """What brings the features to a mean squared norm of `MEAN_SQUARE`."""
        square = float(row_norms(self.features).cpu().double().square().mean())  # Apple's GPUs have no float64
        return math.sqrt(MEAN_SQUARE / square) if square else 1.0

    def scaled(self, factor: float) -> "Embeddings":
        """The same images with their features times a factor."""
        return Embeddings(self.features * factor, self.labels, self.num_classes)

    def at(self, rows: Tensor) -> "Embeddings":
        """Some of the images, where a mask [N] is true."""
        return Embeddings(self.features[rows], self.labels[rows], self.num_classes)

    def draw(self, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Features [N, D] and labels [N] in the order of an epoch."""
        order = torch.randperm(len(self), generator=epoch_generator(seed, epoch)).to(self.labels.device)
        return self.features[order], self.labels[order]


def read_features(values: Any, name: str) -> Tensor:
    """Features [N, D] of any real type, an array or a tensor, as float32; all must be finite."""
    if isinstance(values, Tensor):
        if values.layout != torch.strided or values.is_meta:
            raise InputError(f"{name}: features must be a plain tensor, got {values.layout} on {values.device}")
        values = values.detach()
        number = not (values.is_complex() or values.dtype == torch.bool)
    else:
        values = as_array(values, name, "features")
        number = values.dtype.kind in "fiu"
    if values.ndim != 2 or 0 in values.shape or not number:
        raise InputError(f"{name}: features must be numbers [N, D], got {values.dtype} {list(values.shape)}")
    if isinstance(values, np.ndarray):
        with np.errstate(over="ignore"):  # what float32 cannot hold is found below
            values = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    values = values.float()
    bad = (~values.isfinite().all(1)).nonzero()
    if len(bad):
        got = "NaN, infinity or what float32 cannot hold"
        raise InputError(f"{name}: features must be finite, got {got} in row {int(bad[0])}")
    return values


def plain_text(values: np.ndarray) -> np.ndarray:
    """Strings or integers that came as objects, and NumPy's strings of any length, as plain ones; all else as it is."""
    if values.dtype.kind == "T":
        return values.astype(str)
    kinds = {type(value) for value in values.flat} if values.dtype == object else set()
    for own in (str, int):
        if kinds and all(issubclass(kind, own) and kind is not bool for kind in kinds):
            return values.astype(own)
    return values


def read_labels(values: Any, size: int, name: str) -> np.ndarray:
    """As many labels [N] as features, integers (int64) or strings."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()  # NumPy has no bfloat16
    values = plain_text(as_array(values, name, "labels"))
    if values.ndim != 1 or values.dtype.kind not in "iuU":
        raise InputError(f"{name}: labels must be integers or strings [N], got {values.dtype} {list(values.shape)}")
    if len(values) != size:
        raise InputError(f"{name}: features and labels must be equally many, got {size} and {len(values)}")
    return values if values.dtype.kind == "U" else values.astype(np.int64)


def read_pair(pair: Any, name: str) -> tuple[Tensor, np.ndarray]:
    """Features and labels of one set."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InputError(f"{name}: must be a pair (features, labels), got {clip(type(pair).__name__)}")
    features = read_features(pair[0], name)
    return features, read_labels(pair[1], len(features), name)


def order_of_classes(labels: np.ndarray, rows: int | None, classes: Any = None, names: Any = None) -> np.ndarray:
    """What each row of the head is called in the labels, [C].

    Args:
        labels: of the training images.
        rows: how many the head has; None where there is none.
        classes, names: see `balance`; where labels are strings, names are their order too.
    """
    text = labels.dtype.kind == "U"
    if classes is None and names is not None and text:
        classes = names
    if classes is not None:
        order = plain_text(as_array(classes, "classes", "names"))
    elif text or (rows is None and names is None):
        order = np.unique(labels)
        if text and all(label.isdecimal() for label in order.tolist()):
            order = np.array(sorted(order.tolist(), key=int))  # as the head's rows are, 2 before 10
    else:
        order = np.arange(len(names) if rows is None else rows)
        if rows is None and labels.max() >= len(order):
            raise InputError(f"names: must be one for each of {labels.max() + 1} classes, got {len(order)}")
    if order.ndim != 1 or len(np.unique(order)) != len(order):
        raise InputError("classes: must be a list that names each class once")
    if text != (order.dtype.kind == "U"):
        raise InputError(f"classes: must be of the labels' kind, got {order.dtype} for labels of {labels.dtype}")
    if rows is not None and len(order) != rows:
        hint = "" if classes is not None else "; classes (in a file: names) gives the order of rows"
        raise InputError(f"head: must have a row for each of {len(order)} classes, got {rows} rows{hint}")
    if len(order) < 2:
        raise InputError(f"train: must have at least 2 classes, got {len(order)}")
    return order


def labelled(x: Tensor, labels: np.ndarray, classes: np.ndarray, name: str, like: Tensor) -> Embeddings:
    """A set whose labels are rows of the head; its features must be as wide as `like`, whose device it gets."""
    if x.shape[1] != like.shape[1]:
        raise InputError(f"{name}: features must be [N, {like.shape[1]}] as those of train, got {list(x.shape)}")
    position = {label: row for row, label in enumerate(classes.tolist())}
    rows = np.array([position.get(label, -1) for label in labels.tolist()])
    unknown = np.flatnonzero(rows < 0)
    if len(unknown):
        text = classes.dtype.kind == "U"
        row = unknown[0]
        known = f"of the {len(classes)} classes of training"
        if text != (labels.dtype.kind == "U"):
            raise InputError(f"{name}: labels must be {'text' if text else 'integers'}, as in train")
        if not text and (classes == np.arange(len(classes))).all():
            known = f"rows of the head, 0 to {len(classes) - 1}"
        got = repr(clip(labels[row])) if text else labels[row]
        raise InputError(f"{name}: labels must be {known}, got {got} in row {row}")
    return Embeddings(x.to(like.device), torch.from_numpy(rows).to(like.device), len(classes))


def check_classes(data: Embeddings, names: Sequence[str]) -> None:
    """Every class must have a training image."""
    missing = np.flatnonzero(data.class_counts == 0)
    if len(missing):
        what = f"{clip(names[missing[0]])} has none ({len(missing)} such)"
        raise InputError(f"train: each class must have at least one image, {what}")


def digests(features: Tensor) -> dict[bytes, int]:
    """A digest of each row's values, and the first row that has it."""
    found: dict[bytes, int] = {}
    for row, values in enumerate(features.cpu().numpy()):
        found.setdefault(hashlib.blake2b(values.tobytes(), digest_size=16).digest(), row)
    return found


def check_apart(sets: Mapping[str, Embeddings]) -> int:
    """The sets must be of different images: settings that are chosen on what was learned say nothing.

    Public test sets hold a few images twice, or some of the training ones, so that one in a hundred is only counted.

    Returns:
        test images that stand in another set too.
    """
    found = {name: digests(sets[name].features) for name in ("train", "validation", "test") if name in sets}
    for (other, theirs), (name, own) in combinations(found.items(), 2):
        shared = own.keys() & theirs.keys()
        if len(shared) > (len(own) // 100 if name == "test" else 0):
            digest = min(shared, key=own.__getitem__)
            where = f"row {own[digest]} is its row {theirs[digest]} ({len(shared)} shared)"
            raise InputError(f"{name}: must share no row of features with {other}, but {where}")
    return len(found.get("test", {}).keys() & (found["train"].keys() | found["validation"].keys()))


def split(data: Embeddings, share: Any, names: Sequence[str], seed: int) -> tuple[Embeddings, Embeddings]:
    """Take a share of each class's images away for validation, at least one and never all.

    Returns:
        what remains for training, and the validation set.
    """
    if share is None:
        raise InputError("validation: must be given, or without a head validation_share")
    if not isinstance(share, (int, float)) or not 0 < share < 1:
        raise InputError(f"validation_share: must be above 0 and below 1, got {clip(repr(share))}")
    found = digests(data.features)
    if len(found) < len(data):
        again = min(set(range(len(data))) - set(found.values()))
        what = f"row {again} is there before ({len(data) - len(found)} such)"
        raise InputError(f"validation_share: train must have no row of features twice, but {what}")
    if data.class_counts.min() < 2:
        alone = names[int(data.class_counts.argmin())]
        raise InputError(f"validation_share: each class must have at least 2 training images, {clip(alone)} has 1")
    order = torch.randperm(len(data), generator=epoch_generator(seed, 0)).to(data.labels.device)
    taken = []
    for row, count in enumerate(data.class_counts):
        wanted = min(max(1, round(share * int(count))), int(count) - 1)
        taken.append(order[data.labels[order] == row][:wanted])
    train = torch.ones(len(data), dtype=torch.bool, device=data.labels.device)
    train[torch.cat(taken)] = False
    return data.at(train), data.at(~train)


# --- with the head --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """Everything that is to be balanced, checked.

    Attributes:
        head: as its owner has it; None where there is none yet.
        train, validation: what is learned from and chosen by, scaled.
        tested: as they came, the test images, or the validation ones where there are no others (`has_test`).
        scale: of the features.
        classes: what the head's rows are called in the labels, [C]; names: what to call them, [C].
        repeated: test images that stand in another set too.
        again: whether the head is one that was balanced before.
    """

    head: Head | None
    train: Embeddings
    validation: Embeddings
    tested: Embeddings
    has_test: bool
    scale: float
    classes: np.ndarray
    names: tuple[str, ...]
    repeated: int
    again: bool = False

    def start(self) -> nn.Linear:
        """The head for scaled features, in float32; zeros where there is none."""
        if self.head is None:
            zeros = self.train.features.new_zeros(len(self.names), self.train.features.shape[1])
            return linear(zeros, zeros[:, 0])
        bias = None if self.head.bias is None else self.head.bias.float()
        return linear(self.head.weight.float() / self.scale, bias).to(self.train.features.device)

    def finished(self, classifier: nn.Linear, temperature: float) -> tuple[Tensor, Tensor | None]:
        """A classifier of scaled features as the owner's head, of the owner's type and on the CPU, with a temperature
        folded in."""
        weight = classifier.weight.detach().cpu() * (self.scale / temperature)
        like = weight.dtype if self.head is None else self.head.weight.dtype
        if self.head is not None and self.head.bias is None:
            return weight.to(like), None
        return weight.to(like), (classifier.bias.detach().cpu() / temperature).to(like)


def read(head: Any, given: Mapping[str, Any], options: Mapping[str, Any]) -> Problem:
    """Check everything that the caller brings, and scale its features.

    Args:
        given: train, validation and test, each a pair or None.
        options: layer, classes, names, validation_share and seed, see `balance`.
    """
    pairs = {name: read_pair(pair, name) for name, pair in given.items() if name == "train" or pair is not None}
    x, labels = pairs["train"]
    found = read_head(head, options["layer"], x)
    classes = options["classes"]
    if found is not None and found.classes is not None:
        if classes is not None and np.asarray(classes).tolist() != found.classes.tolist():
            got = clip(str(np.asarray(classes).tolist()))
            raise InputError(f"classes: must be the estimator's own or left out, got {got}")
        classes = found.classes
    names, share = options["names"], options["validation_share"]
    order = order_of_classes(labels, None if found is None else len(found.weight), classes, names)
    names = order if names is None else np.asarray(names)
    if names.ndim != 1 or len(names) != len(order):
        raise InputError(f"names: must be one for each of {len(order)} classes, got {list(names.shape)}")
    names = tuple(map(str, names))
    sets = {name: labelled(*pair, order, name, x) for name, pair in pairs.items()}
    check_classes(sets["train"], names)
    if "validation" in sets and share is not None:
        raise InputError("validation_share: must not be given with validation")
    if "validation" not in sets:
        if found is not None:
            raise InputError("validation: must be given with a head, which has learned the training images")
        sets["train"], sets["validation"] = split(sets["train"], share, names, options["seed"])
    repeated, scale = check_apart(sets), sets["train"].scale()
    scaled = (sets[name].scaled(scale) for name in ("train", "validation"))
    tested = sets.get("test", sets["validation"])
    again = found is not None and is_balanced(head, found.layer)
    return Problem(found, *scaled, tested, "test" in sets, scale, order, names, repeated, again)
