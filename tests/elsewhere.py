"""A device that is not there, and like Apple's GPU has no float64: its tensors' values lie on the CPU.

Whole computations run on it. What would make a float64 tensor there raises, as does what takes tensors of both devices.
"""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("lazy")  # a name that PyTorch knows everywhere, with nothing behind it
CROSS = ("_to_copy", "copy_")  # operations that take tensors of both devices


class Elsewhere(torch.Tensor):
    """A tensor on `DEVICE`, whose values are a tensor on the CPU."""

    @staticmethod
    def __new__(cls, values: torch.Tensor):
        if values.dtype == torch.float64:
            raise TypeError("the device has no float64")
        layout = values.shape, values.stride(), values.storage_offset()
        return torch.Tensor._make_wrapper_subclass(cls, *layout, dtype=values.dtype, device=DEVICE)

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func, args, kwargs):
    """An operation on values on the CPU; its results lie where its inputs do, or where it is told."""
    inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [values for values in inputs if isinstance(values, Elsewhere)]
    here = [values for values in inputs if not isinstance(values, Elsewhere) and values.dim()]
    name, device = func.__name__.split(".")[0], kwargs.get("device")
    if here and there and name not in CROSS:
        raise RuntimeError(f"{name} of tensors on two devices")
    goes = bool(there) if device is None else torch.device(device) == DEVICE
    args, kwargs = tree_map(lambda leaf: leaf.values if isinstance(leaf, Elsewhere) else leaf, (args, kwargs))
    results = func(*args, **(kwargs if device is None else kwargs | {"device": torch.device("cpu")}))
    changed = {id(values.values): values for values in there} | {id(values): values for values in here}

    def place(leaf):
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return changed.get(id(leaf)) if id(leaf) in changed else Elsewhere(leaf) if goes else leaf

    return tree_map(place, results)


class Running(TorchDispatchMode):
    """Operations."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Making(TorchFunctionMode):
    """From numbers to tensors and back, which goes by way of the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.tolist:
            return func(args[0].cpu())
        if func is torch.Tensor.new_tensor:
            kwargs = {"dtype": args[0].dtype, "device": args[0].device, **kwargs}
            func, args = torch.tensor, args[1:]
        if func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], torch.Tensor):
            return func(*args, **kwargs | {"device": "cpu"}).to(kwargs.get("device") or "cpu")
        return func(*args, **kwargs)


@contextmanager
def no_float64():
    """While it lasts, `DEVICE` is there."""
    with Making(), Running():
        yield DEVICE
