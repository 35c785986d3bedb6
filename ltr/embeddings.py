"""What a caller brings to be balanced: embeddings with their labels, and the linear head on them.

N images, D features, C classes. Everything is checked here, so that a mistake is one line that begins with the argument
and nothing has been done yet. Row k of a head belongs to class k of `classes`, and labels become rows of the head.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ltr.data.loader import epoch_generator
from ltr.errors import InputError, clip

# --- embeddings and labels ------------------------------------------------------------------------------------


def as_array(values: Any, name: str, what: str) -> np.ndarray:
    """Values as an array.

    Raises:
        InputError: their rows are of different lengths.
    """
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

    def mean_square(self) -> float:
        """Mean over the images of the squared norm of their features."""
        return float(self.features.square().sum(1).cpu().double().mean())  # a GPU of Apple's has no float64

    def scaled(self, factor: float) -> "Embeddings":
        """The same images with their features times a factor."""
        return Embeddings(self.features * factor, self.labels, self.num_classes)

    def at(self, positions: Tensor) -> "Embeddings":
        """Some of the images."""
        return Embeddings(self.features[positions], self.labels[positions], self.num_classes)

    def draw(self, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Features [N, D] and labels [N] in the order of an epoch."""
        order = torch.randperm(len(self), generator=epoch_generator(seed, epoch)).to(self.labels.device)
        return self.features[order], self.labels[order]


def read_features(values: Any, name: str) -> Tensor:
    """Features [N, D] of any real type, an array or a tensor, as float32.

    Raises:
        InputError: they are no matrix of finite numbers; the message names the row.
    """
    if isinstance(values, Tensor):
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
        raise InputError(f"{name}: features must be finite, got NaN or infinity in row {int(bad[0])}")
    return values


def read_labels(values: Any, size: int, name: str) -> np.ndarray:
    """Labels [N], integers (int64) or strings.

    Raises:
        InputError: they are neither, or not as many as the features.
    """
    values = values.detach().cpu().numpy() if isinstance(values, Tensor) else as_array(values, name, "labels")
    if values.dtype == object and all(isinstance(value, str) for value in values.flat):
        values = values.astype(str)  # a column of a data frame
    if values.ndim != 1 or values.dtype.kind not in "iuU":
        raise InputError(f"{name}: labels must be integers or strings [N], got {values.dtype} {list(values.shape)}")
    if len(values) != size:
        raise InputError(f"{name}: features and labels must be equally many, got {size} and {len(values)}")
    return values if values.dtype.kind == "U" else values.astype(np.int64)


def read_pair(pair: Any, name: str) -> tuple[Tensor, np.ndarray]:
    """Features and labels of one set.

    Raises:
        InputError: see `read_features` and `read_labels`; or this is no pair.
    """
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InputError(f"{name}: must be a pair (features, labels), got {clip(type(pair).__name__)}")
    features = read_features(pair[0], name)
    return features, read_labels(pair[1], len(features), name)


def order_of_classes(labels: np.ndarray, rows: int | None, classes: Any = None, names: Any = None) -> np.ndarray:
    """What each row of the head is called in the labels, [C].

    Args:
        labels: of the training images.
        rows: of the head; None where there is none.
        classes: the order, if the caller gives it. Otherwise integers are rows of the head, or of `names`, and
            strings stand in alphabetical order.
        names: what classes are called, which for labels that are strings is their order.

    Raises:
        InputError: a class is named twice, or there are more or fewer of them than rows.
    """
    text = labels.dtype.kind == "U"
    if classes is None and names is not None and text:
        classes = names
    if classes is not None:
        order = np.asarray(classes)
    elif text or (rows is None and names is None):
        order = np.unique(labels)
    else:
        order = np.arange(len(names) if rows is None else rows)
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


def rows_of(labels: np.ndarray, classes: np.ndarray, name: str) -> Tensor:
    """The head's row of each label, [N].

    Raises:
        InputError: a label is none of the classes.
    """
    position = {label: row for row, label in enumerate(classes.tolist())}
    rows = np.array([position.get(label, -1) for label in labels.tolist()])
    unknown = np.flatnonzero(rows < 0)
    if len(unknown):
        row = unknown[0]
        raise InputError(
            f"{name}: labels must be of the {len(classes)} classes of training, got {clip(labels[row])} in row {row}"
        )
    return torch.from_numpy(rows)


def digests(features: Tensor) -> dict[bytes, int]:
    """A digest of each row's values, and the first row that has it."""
    found: dict[bytes, int] = {}
    for row, values in enumerate(features.cpu().numpy()):
        found.setdefault(hashlib.blake2b(values.tobytes(), digest_size=16).digest(), row)
    return found


def check_once(data: Embeddings) -> None:
    """See that no training image stands there twice, where a share of them is to validate.

    Raises:
        InputError: two rows of features are equal.
    """
    found = digests(data.features)
    if len(found) < len(data):
        again = min(set(range(len(data))) - set(found.values()))
        raise InputError(
            f"validation_share: train must have no row of features twice, but row {again} is there before "
            f"({len(data) - len(found)} such)"
        )


def check_apart(sets: Mapping[str, Embeddings]) -> int:
    """See that the sets are of different images: settings that are chosen on what was learned say nothing.

    Public test sets hold a few images twice, or some of the training ones, so that one in a hundred is only counted.

    Args:
        sets: train, validation and, if there is one, test.

    Returns:
        test images that stand in another set too.

    Raises:
        InputError: training and validation share a row of features, or the test more than a few.
    """
    train, validation = digests(sets["train"].features), digests(sets["validation"].features)
    check_shared("validation", validation, "train", train, 0)
    if "test" not in sets:
        return 0
    test = digests(sets["test"].features)
    for other, theirs in {"train": train, "validation": validation}.items():
        check_shared("test", test, other, theirs, len(test) // 100)
    return len(test.keys() & (train.keys() | validation.keys()))


def check_shared(name: str, own: Mapping[bytes, int], other: str, theirs: Mapping[bytes, int], allowed: int) -> None:
    """See that two sets, given by their `digests`, share no more rows than allowed.

    Raises:
        InputError: they do.
    """
    shared = own.keys() & theirs.keys()
    if len(shared) > allowed:
        digest = min(shared, key=own.__getitem__)
        where = f"row {own[digest]} is its row {theirs[digest]} ({len(shared)} shared)"
        raise InputError(f"{name}: must share no row of features with {other}, but {where}")


def split(data: Embeddings, share: float, names: Sequence[str], seed: int) -> tuple[Embeddings, Embeddings]:
    """Take a share of each class's images away for validation, at least one and never all.

    Args:
        share: between 0 and 1.
        names: of the classes, for the message.

    Returns:
        what remains for training, and the validation set.

    Raises:
        InputError: a class has one image alone.
    """
    if data.class_counts.min() < 2:
        alone = names[int(data.class_counts.argmin())]
        raise InputError(f"validation_share: each class must have at least 2 training images, {clip(alone)} has 1")
    order = torch.randperm(len(data), generator=epoch_generator(seed, 0)).to(data.labels.device)
    taken = []
    for row, count in enumerate(data.class_counts):
        wanted = min(max(1, round(share * int(count))), int(count) - 1)
        taken.append(order[data.labels[order] == row][:wanted])
    kept = torch.ones(len(data), dtype=torch.bool, device=data.labels.device)
    kept[torch.cat(taken)] = False
    return data.at(kept.nonzero().squeeze(1)), data.at((~kept).nonzero().squeeze(1))


# --- heads ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """A linear classifier as its owner has it.

    Attributes:
        weight: [C, D], of the owner's type.
        bias: [C], or None.
        classes: [C], what the rows are called, where the owner says so.
        layer: its name in the owner's state dict; empty where there is none.
    """

    weight: Tensor
    bias: Tensor | None
    classes: np.ndarray | None = None
    layer: str = ""

    def __post_init__(self) -> None:
        if self.weight is None or self.weight.dim() != 2 or not self.weight.is_floating_point() or len(self.weight) < 2:
            got = "None" if self.weight is None else f"{self.weight.dtype} {list(self.weight.shape)}"
            raise InputError(f"head: weight must be numbers [C, D] with a row for each of several classes, got {got}")
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise InputError(f"head: bias must be [{len(self.weight)}], got {list(self.bias.shape)}")
        for name in ("weight", "bias"):
            values = getattr(self, name)
            if values is not None and not values.isfinite().all():
                raise InputError(f"head: {name} must be finite, got NaN or infinity")

    def layer_for(self, scale: float) -> nn.Linear:
        """In float32, for features that are `scale` times the owner's; zeros where it has no bias."""
        weight = self.weight.float()
        bias = weight.new_zeros(len(weight)) if self.bias is None else self.bias.float()
        return layer_of(weight / scale, bias)


def layer_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer with copies of these, of their type; nothing is drawn from the global generator."""
    like = {"device": weight.device, "dtype": weight.dtype}
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None, **like)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def from_state(state: Mapping[str, Any], layer: str | None, features: int) -> Head:
    """A layer of a state dict; without a name the only one that takes so many features.

    Raises:
        InputError: there is no such layer, or several.
    """
    names = [
        key.removesuffix("weight").removesuffix(".")
        for key, value in state.items()
        if key.split(".")[-1] == "weight" and isinstance(value, Tensor) and value.dim() == 2
    ]
    fitting = [name for name in names if state[f"{name}.weight" if name else "weight"].shape[1] == features]
    if layer is None and len(fitting) == 1:
        layer = fitting[0]
    if layer is None or layer not in names:
        known = ", ".join(name or "weight" for name in (fitting or names)[-5:]) or "none here"
        raise InputError(f"layer: must name a linear layer of the head's file ({known}), got {clip(layer)}")
    prefix = f"{layer}." if layer else ""
    return Head(state[f"{prefix}weight"].detach(), state.get(f"{prefix}bias"), layer=layer)


def from_estimator(estimator: Any) -> Head:
    """The head of a fitted linear estimator of scikit-learn's kind, whose decision values are its logits.

    Raises:
        InputError: it has one row for two classes.
    """
    weight, bias = np.atleast_2d(estimator.coef_), np.asarray(estimator.intercept_)
    if len(weight) == 1:
        raise InputError("head: coef_ must have a row for each class, got one row, as of two classes")
    weight = torch.from_numpy(weight.copy())
    bias = torch.from_numpy(np.broadcast_to(bias, len(weight)).astype(estimator.coef_.dtype))
    return Head(weight, bias, np.asarray(estimator.classes_))


def from_pair(weight: Any, bias: Any, layer: str) -> Head:
    """A head of arrays or tensors.

    Raises:
        InputError: they are something else.
    """
    try:
        parts = [None if values is None else torch.as_tensor(values).detach() for values in (weight, bias)]
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"{clip(type(weight).__name__)} and {clip(type(bias).__name__)}"
        raise InputError(f"head: must be numbers, weight [C, D] and bias [C] or None, got {got}") from error
    return Head(*parts, layer=layer)


def read_head(head: Any, layer: str | None, features: int) -> Head | None:
    """A head in any of its forms.

    Args:
        head: a linear layer; a pair of weight [C, D] and bias [C] or None; an estimator with `coef_`, `intercept_` and
            `classes_`; a state dict or a model, with the layer's name; or None.
        layer: the name.
        features: D.

    Raises:
        InputError: it is none of these, or takes another number of features.
    """
    if head is None:
        return None
    if isinstance(head, nn.Module) and not isinstance(head, nn.Linear):
        head = head.state_dict()
    if isinstance(head, nn.Linear):
        found = Head(head.weight.detach(), None if head.bias is None else head.bias.detach(), layer=layer or "")
    elif hasattr(head, "coef_"):
        found = from_estimator(head)
    elif isinstance(head, Mapping):
        found = from_state(head, layer, features)
    elif isinstance(head, (tuple, list)) and len(head) == 2:
        found = from_pair(*head, layer or "")
    else:
        forms = "a linear layer, (weight, bias or None), an estimator with coef_, or a state dict and a layer's name"
        raise InputError(f"head: must be {forms}, got {clip(type(head).__name__)}")
    if found.weight.shape[1] != features:
        raise InputError(f"head: must take the {features} features of train, got {found.weight.shape[1]}")
    return found


def write(layer: Any, weight: Tensor, bias: Tensor | None) -> None:
    """Put a head into the layer or the estimator that it is for, in place and in its type.

    Raises:
        InputError: it is no linear layer of this shape with plain weights, or has no place for the bias.
    """
    if hasattr(layer, "coef_"):
        layer.coef_ = weight.cpu().numpy().astype(layer.coef_.dtype)
        layer.intercept_ = (
            (weight.new_zeros(len(weight)) if bias is None else bias).cpu().numpy().astype(layer.coef_.dtype)
        )
        return
    if not isinstance(layer, nn.Linear) or "weight" not in layer._parameters:  # parametrised, it would be computed anew
        raise InputError(f"layer: must be a linear layer with plain weights, got {clip(type(layer).__name__)}")
    if layer.weight.shape != weight.shape:
        raise InputError(f"layer: must be {list(weight.shape)}, got {list(layer.weight.shape)}")
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    if layer.bias is None and bias.any():
        raise InputError("layer: must have a bias for this method, without which its balance is lost, got one without")
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(bias)


# --- both -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Brought:
    """Everything that is to be balanced, checked.

    Attributes:
        head: None where there is none yet.
        test: None where there is none.
        names: of the classes, [C].
        repeated: test images that stand in another set too.
    """

    head: Head | None
    train: Embeddings
    validation: Embeddings
    test: Embeddings | None
    names: tuple[str, ...]
    repeated: int


def read(head: Any, given: Mapping[str, Any], options: Mapping[str, Any]) -> Brought:
    """Check everything that the caller brings.

    Args:
        given: train, validation and test, each a pair or None.
        options: layer, classes, names, validation_share and seed, see `balance`.

    Raises:
        InputError: something does not fit.
    """
    pairs = {name: read_pair(pair, name) for name, pair in given.items() if name == "train" or pair is not None}
    x, labels = pairs["train"]
    found = read_head(head, options["layer"], x.shape[1])
    classes = options["classes"] if found is None or found.classes is None else found.classes
    names = options["names"]
    order = order_of_classes(labels, None if found is None else len(found.weight), classes, names)
    names = order if names is None else np.asarray(names)
    if names.ndim != 1 or len(names) != len(order):
        raise InputError(f"names: must be one for each of {len(order)} classes, got {list(names.shape)}")
    names = tuple(map(str, names))
    sets = {name: labelled(*pair, order, name, x) for name, pair in pairs.items()}
    check_classes(sets["train"], names)
    if "validation" not in sets:
        share = check_share(options["validation_share"], found)
        check_once(sets["train"])
        sets["train"], sets["validation"] = split(sets["train"], share, names, options["seed"])
    elif options["validation_share"] is not None:
        raise InputError("validation_share: must not be given with validation")
    repeated = check_apart(sets)
    if found is not None:
        found = replace(found, **on_device(found, x.device))
    return Brought(found, sets["train"], sets["validation"], sets.get("test"), names, repeated)


def on_device(head: Head, device: torch.device) -> dict[str, Tensor | None]:
    """Copies of a head's parts where the features are: the caller may write over what was brought."""
    bias = None if head.bias is None else head.bias.to(device, copy=True)
    return {"weight": head.weight.to(device, copy=True), "bias": bias}


def labelled(x: Tensor, labels: np.ndarray, order: np.ndarray, name: str, like: Tensor) -> Embeddings:
    """A set whose labels are rows of the head, on the device of the training features.

    Raises:
        InputError: a label is unknown to training, or the features are of another dimension.
    """
    if x.shape[1] != like.shape[1]:
        raise InputError(f"{name}: features must be [N, {like.shape[1]}] as those of train, got {list(x.shape)}")
    rows = rows_of(labels, order, name)
    return Embeddings(x.to(like.device), rows.to(like.device), len(order))


def check_classes(data: Embeddings, names: Sequence[str]) -> None:
    """See that every class can be learned.

    Raises:
        InputError: one has no training images.
    """
    missing = np.flatnonzero(data.class_counts == 0)
    if len(missing):
        raise InputError(
            f"train: each class must have at least one image, {clip(names[missing[0]])} has none ({len(missing)} such)"
        )


def check_share(share: Any, head: Head | None) -> float:
    """See that validation images may be taken away from the training ones.

    Raises:
        InputError: there is no share, or the head has learned from these images.
    """
    if head is not None:
        raise InputError("validation: must be given with a head, which has learned the training images")
    if share is None:
        raise InputError("validation: must be given, or without a head validation_share")
    if not isinstance(share, (int, float)) or not 0 < share < 1:
        raise InputError(f"validation_share: must be above 0 and below 1, got {clip(share)}")
    return float(share)


# --- features of a model --------------------------------------------------------------------------------------


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards each part's own again."""
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def output_layer(model: nn.Module, images: Tensor) -> str:
    """The name of the linear layer whose output is the model's.

    Raises:
        InputError: there is none.
    """
    outputs: dict[str, Tensor] = {}

    def keep(layer: nn.Module, given: Any, output: Tensor, name: str) -> None:
        outputs[name] = output

    layers = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    hooks = [layer.register_forward_hook(partial(keep, name=name)) for name, layer in layers.items()]
    try:
        logits = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    for name, output in reversed(outputs.items()):
        if isinstance(logits, Tensor) and output.dim() == 2 and torch.equal(output, logits):
            return name
    raise InputError(
        f"model: must end in a linear layer that makes its output [B, C], got {clip(type(model).__name__)} without one"
    )


@torch.no_grad()
def features(model: nn.Module, loader: Iterable[Any]) -> tuple[Tensor, Any, str]:
    """What goes into the linear layer that makes a model's output, image by image, in evaluation mode.

    The layer is found by what it gives, so that any network of torchvision or timm will do that ends in one.

    Args:
        model: on any device; its mode is as before afterwards.
        loader: gives images [B, ...] and labels [B], as it should see them in a test: without augmentation.

    Returns:
        features float32 [N, D] and labels [N] on the CPU, an array where they are strings; and the layer's name.

    Raises:
        InputError: no linear layer makes the output, or the loader gives something else.
    """
    device = next(model.parameters()).device
    given: list[Tensor] = []
    found: list[Tensor] = []
    labels: list[Any] = []
    layer, hook = None, None
    with evaluating(model):
        try:
            for batch in tqdm(loader, "features", leave=False, disable=None):
                images, theirs = read_batch(batch)
                images = images.to(device)
                if layer is None:
                    layer = output_layer(model, images)
                    last = model.get_submodule(layer)
                    hook = last.register_forward_pre_hook(lambda part, inputs: given.append(inputs[0]))
                model(images)
                found.append(given[-1].float().cpu())
                given.clear()
                labels.extend(theirs)
        finally:
            if hook:
                hook.remove()
    if layer is None:
        raise InputError("loader: must give at least one batch, got none")
    return torch.cat(found), join(labels), layer


def read_batch(batch: Any) -> tuple[Tensor, list[Any]]:
    """Images and labels of a batch.

    Raises:
        InputError: it begins with anything else.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) < 2 or not isinstance(batch[0], Tensor):
        raise InputError(f"loader: must give batches (images, labels), got {clip(type(batch).__name__)}")
    labels = batch[1].tolist() if isinstance(batch[1], Tensor) else list(batch[1])
    return batch[0], labels


def join(labels: list[Any]) -> Any:
    """Labels of all batches: a tensor of integers, an array of strings."""
    return np.array(labels) if isinstance(labels[0], str) else torch.tensor(labels)
