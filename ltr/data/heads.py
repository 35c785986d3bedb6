"""The linear head that a caller brings, read from any of its forms, and written back.

C classes, D features. What does not fit raises `InputError`, one line that begins with the argument.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ltr.errors import InputError, clip


@dataclass(frozen=True)
class Head:
    """A linear classifier as its owner has it, on the CPU.

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
            if values is not None and (values.layout != torch.strided or values.is_meta):
                raise InputError(f"head: {name} must be a plain tensor, got {values.layout} on {values.device}")
            if values is not None and not values.float().isfinite().all():
                raise InputError(f"head: {name} must be finite, got NaN or infinity")


def layer_of(state: Mapping[str, Any], layer: str | None, features: int) -> str:
    """The name of a state dict's layer; where none is given, of the only one that takes so many features."""
    widths = {
        key.removesuffix("weight").removesuffix("."): value.shape[1]
        for key, value in state.items()
        if isinstance(key, str) and key.split(".")[-1] == "weight" and isinstance(value, Tensor) and value.dim() == 2
    }
    fitting = [name for name, width in widths.items() if width == features]
    if layer is None and len(fitting) == 1:
        return fitting[0]
    if layer is None and len(widths) == 1:
        return next(iter(widths))  # of another width, as is said then
    if layer is None or layer not in widths:
        known = ", ".join(name or "weight" for name in (fitting or list(widths))[-5:]) or "none here"
        raise InputError(f"layer: must name a linear layer of the head ({known}), got {clip(layer or '')}")
    return layer


def parts_of(estimator: Any) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of a fitted linear estimator of scikit-learn's kind, whose decision values are its logits."""
    if hasattr(estimator, "dual_coef_") or not hasattr(estimator, "classes_"):
        got = clip(type(estimator).__name__)
        raise InputError(f"head: must be a linear classifier with a row for each class, got {got}")
    coefficients = estimator.coef_.toarray() if hasattr(estimator.coef_, "toarray") else estimator.coef_
    weight = np.array(coefficients, ndmin=2)
    bias = np.broadcast_to(np.asarray(estimator.intercept_), len(weight)).astype(weight.dtype)
    if len(weight) == 1 and len(estimator.classes_) == 2:  # a row of their difference, whose sigmoid is their softmax
        weight, bias = (np.concatenate([-each, each]) / 2 for each in (weight, bias))
    return weight, bias


def as_tensors(weight: Any, bias: Any) -> list[Tensor | None]:
    """A head's parts, arrays or tensors."""
    try:
        each = (np.ascontiguousarray(part) if isinstance(part, np.ndarray) else part for part in (weight, bias))
        return [None if part is None else torch.as_tensor(part).detach() for part in each]
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"{clip(type(weight).__name__)} and {clip(type(bias).__name__)}"
        raise InputError(f"head: must be numbers, weight [C, D] and bias [C] or None, got {got}") from error


MARK = "_balanced"  # an attribute of a layer or an estimator: the sum of its weights when it was balanced


def total(weight: Any) -> float:
    """The sum of a head's weights, by which it is known again."""
    weight = weight.toarray() if hasattr(weight, "toarray") else weight
    return float(torch.as_tensor(weight).detach().cpu().double().sum())


def is_balanced(head: Any, layer: str) -> bool:
    """Whether a model's layer, a layer itself or an estimator still has the weights that `mark` has seen."""
    if isinstance(head, nn.Module) and not isinstance(head, nn.Linear):
        head = dict(head.named_modules()).get(layer)
    weight = getattr(head, "coef_", getattr(head, "weight", None))
    return hasattr(head, MARK) and getattr(head, MARK) == total(weight)


def check_plain(layer: nn.Module, name: str) -> None:
    """Raises InputError where a linear layer's class computes something else than x @ weight.T + bias, as cosines."""
    if isinstance(layer, nn.Linear) and type(layer).forward is not nn.Linear.forward:
        got = f"{clip(type(layer).__name__)}, which computes something else of its weight"
        raise InputError(f"{name}: must end in a linear layer x @ weight.T + bias, got {got}")


def layer_of_model(model: nn.Module, layer: str | None, features: int) -> tuple[str, Mapping[str, Tensor]]:
    """The name of a model's layer, see `layer_of`, and the model's state dict."""
    state = model.state_dict()
    named = dict(model.named_modules()).get(layer)
    if isinstance(named, nn.Linear) and "weight" not in named._parameters:
        fold = "fold it by torch.nn.utils.parametrize.remove_parametrizations, or give the layer itself"
        raise InputError(f"layer: must have plain weights, got {clip(layer)}, which is parametrised: {fold}")
    layer = layer_of(state, layer, features)
    check_plain(model.get_submodule(layer), "head")
    return layer, state


def read_head(head: Any, layer: str | None, like: Tensor) -> Head | None:
    """A head in any of the forms that `balance` takes, for features like these [N, D].

    It is apart from the caller's, who may write over what was brought, and on the CPU, as a type such as float64 is not
    everywhere to be had.
    """
    if head is None:
        return None
    classes = None
    if isinstance(head, nn.Module) and not isinstance(head, nn.Linear):
        layer, head = layer_of_model(head, layer, like.shape[1])
    if isinstance(head, nn.Linear):
        check_plain(head, "head")
        weight, bias = head.weight, head.bias
    elif hasattr(head, "coef_"):
        weight, bias = parts_of(head)
        classes = np.asarray(head.classes_)
        layer = ""
    elif isinstance(head, Mapping):
        layer = layer_of(head, layer, like.shape[1])
        weight, bias = (head.get(f"{layer}.{name}" if layer else name) for name in ("weight", "bias"))
    elif isinstance(head, (tuple, list)) and len(head) == 2:
        weight, bias = head
    elif hasattr(head, "fit"):
        got = clip(type(head).__name__)
        raise InputError(f"head: must be a fitted linear estimator, of a pipeline its last step, got {got}")
    else:
        forms = "a linear layer, (weight, bias or None), an estimator with coef_, or a state dict and a layer's name"
        raise InputError(f"head: must be {forms}, got {clip(type(head).__name__)}")
    parts = (values if values is None else values.to("cpu", copy=True) for values in as_tensors(weight, bias))
    found = Head(*parts, classes, layer or "")
    if found.weight.shape[1] != like.shape[1]:
        raise InputError(f"head: must take the {like.shape[1]} features of train, got {found.weight.shape[1]}")
    return found


def write(layer: Any, weight: Tensor, bias: Tensor | None, classes: np.ndarray) -> None:
    """Put a head into the layer or the estimator that it is for, in place and in its type.

    Args:
        classes: what its rows are called in the labels, [C]; an estimator gets them in the order of its own.

    Raises:
        InputError: it is no linear layer of this shape with plain weights, has no place for the bias, or other classes.
    """
    if hasattr(layer, "coef_"):
        return write_estimator(layer, weight, weight.new_zeros(len(weight)) if bias is None else bias, classes)
    check_plain(layer, "layer")
    if not isinstance(layer, nn.Linear) or "weight" not in layer._parameters:  # parametrised, it would be computed anew
        raise InputError(f"layer: must be a linear layer with plain weights, got {clip(type(layer).__name__)}")
    if layer.weight.shape != weight.shape:
        raise InputError(f"layer: must be {list(weight.shape)}, got {list(layer.weight.shape)}")
    if layer.bias is None and bias is not None and bias.any():
        raise InputError("layer: must have a bias for this method, without which its balance is lost, got one without")
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(weight.new_zeros(len(weight)) if bias is None else bias)
    return None


def write_estimator(estimator: Any, weight: Tensor, bias: Tensor, classes: np.ndarray) -> None:
    """Put a head into an estimator with `coef_`, of two classes as the difference of their rows; see `write`."""
    row = {name: row for row, name in enumerate(classes.tolist())}
    wanted = np.asarray(getattr(estimator, "classes_", classes)).tolist()
    if set(wanted) != row.keys():
        got = clip(", ".join(map(str, wanted)))
        raise InputError(f"layer: must have the {len(row)} classes of the head, got {got}")
    weight, bias = (each[[row[name] for name in wanted]] for each in (weight, bias))
    shape = np.shape(estimator.coef_)
    rows = shape if len(shape) == 2 else (1, *shape)  # a single one may come as [D]
    if rows[0] == 1 and len(wanted) == 2:
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    if rows != tuple(weight.shape):
        raise InputError(f"layer: must be {list(weight.shape)}, got coef_ {list(shape)}")
    kind = estimator.coef_.dtype
    estimator.coef_ = weight.cpu().numpy().astype(kind).reshape(shape)
    estimator.intercept_ = bias.cpu().numpy().astype(kind)


def mark(head: Any, balanced: bool) -> Any:
    """Note on a layer or an estimator that its weights are balanced, or that they are not, and give it back."""
    if balanced:
        setattr(head, MARK, total(getattr(head, "coef_", getattr(head, "weight", None))))
    elif hasattr(head, MARK):
        delattr(head, MARK)
    return head
