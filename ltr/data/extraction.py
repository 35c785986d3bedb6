"""Features of any network that ends in a linear layer: what goes into that layer, image by image."""

import contextlib
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ltr.data.heads import check_plain
from ltr.errors import InputError, clip


def output_layer(model: nn.Module, names: Iterable[str], images: Tensor) -> tuple[str, Tensor]:
    """Of some of a model's layers the last whose output is the model's, by its name, and what goes into it."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor, name: str) -> None:
        seen[name] = next(iter((*inputs, *named.values()))), output

    with contextlib.ExitStack() as hooks:
        for name in names:
            hook = partial(keep, name=name)
            hooks.enter_context(model.get_submodule(name).register_forward_hook(hook, with_kwargs=True))
        logits = model(images)
    for name, (inputs, output) in reversed(seen.items()):
        if isinstance(logits, Tensor) and output.dim() == 2 and torch.equal(output, logits):
            check_plain(model.get_submodule(name), "model")
            return name, inputs
    if isinstance(logits, Tensor) and not logits.isfinite().all():
        raise InputError("model: must give finite outputs, got NaN or infinity for a batch")
    if not isinstance(logits, Tensor):
        what = f"got a {clip(type(logits).__name__)} from {clip(type(model).__name__)}: wrap it to give its logits"
        raise InputError(f"model: must give a tensor [B, C], {what}")
    what = f"got {clip(type(model).__name__)}, whose output is of no linear layer as it is"
    raise InputError(f"model: must end in a linear layer that makes its output [B, C], {what}")


def check_batch(batch: Any) -> tuple[Tensor, list[Any]]:
    """A batch's images [B, ...] and labels [B]; raises InputError where it is none."""
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise InputError(f"loader: must give batches (images, labels), got {clip(type(batch).__name__)}")
    images = batch[0]
    labels = batch[1].tolist() if isinstance(batch[1], (Tensor, np.ndarray)) else batch[1]
    if not isinstance(images, Tensor):
        raise InputError(f"loader: images must be tensors [B, ...], got {clip(type(images).__name__)}")
    if not isinstance(labels, (list, tuple)) or len(labels) != len(images):
        got = f"{len(labels)} labels" if isinstance(labels, (list, tuple)) else clip(repr(labels))
        raise InputError(f"loader: must give batches, a label for each image, got {list(images.shape)} and {got}")
    return images, list(labels)


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
    if not isinstance(model, nn.Module):
        raise InputError(f"model: must be a torch.nn.Module, got {clip(type(model).__name__)}")
    if not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
        raise InputError(f"loader: must give batches (images, labels), got {clip(type(loader).__name__)}")
    names = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    if not names:
        raise InputError(f"model: must end in a linear layer, got {clip(type(model).__name__)} without one")
    device = next(model.parameters()).device
    found: list[Tensor] = []
    labels: list[Any] = []
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        for batch in tqdm(loader, "features", leave=False, disable=None):
            images, its = check_batch(batch)
            name, inputs = output_layer(model, names, images.to(device))
            names = [name]
            found.append(inputs.float().cpu())
            labels.extend(its)
    finally:
        for part in training:
            part.training = True
    if not found:
        raise InputError("loader: must give at least one batch, got none")
    return torch.cat(found), np.array(labels) if isinstance(labels[0], str) else torch.tensor(labels), names[0]
