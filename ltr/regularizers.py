"""Balancing the norms of a classifier's rows: L2- and tau-normalisation, and the MaxNorm projection.

Row k of a weight matrix [C, D] is class k's weight vector. The functions are pure and take stacks of matrices too,
[..., C, D]; a `Constraint` projects a matrix in place and counts how often it had to. Biases are left alone, as in
the released code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

EVERY = ("step", "epoch")  # of training: the paper projects after each step, the released code once an epoch


def row_norms(weight: Tensor) -> Tensor:
    """Euclidean norm of each row: [..., C, D] -> [..., C].

    Rows whose squares would under- or overflow are scaled by a power of two first, which rounds nothing.
    """
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))  # half precision holds no such scale
    norms = torch.linalg.vector_norm(weight, dim=-1)
    if norms.device.type == "cpu" and ((norms > 1e-15) & (norms < 1e15)).all():
        return norms  # elsewhere a look would wait for the device, and cost more than it saves
    largest = torch.maximum(weight.detach().amax(-1), -weight.detach().amin(-1))
    scale = torch.ones_like(largest).masked_fill(largest > 1e15, 2.0**-80)
    scale = scale.masked_fill((largest < 1e-15) & (largest > 0), 2.0**80)
    return torch.linalg.vector_norm(weight * scale[..., None], dim=-1) / scale


def tau_normalize(weight: Tensor, tau: float) -> Tensor:
    r"""Divide each row of a weight [..., C, D] by its norm to the power tau; rows of zeros stay zeros.

    tau = 1 brings each row to unit norm: L2-normalisation. Of half precision the result is float32.

    .. math:: w_k \leftarrow w_k / \lVert w_k \rVert^\tau

    Source: Kang et al. 2020, equation 3; the paper's section 4.3.
    """
    norms = row_norms(weight)
    norms = torch.where(norms > 0, norms, torch.ones_like(norms))
    scale, root = norms**-tau, norms ** (-tau / 2)
    extreme = (scale == 0) | scale.isinf()  # one factor would under- or overflow, two of its root need not
    first = torch.where(extreme, root, scale)
    second = torch.where(extreme, root, 1.0)
    return weight * first[..., None] * second[..., None]


def max_norm_project(weight: Tensor, radius: float | Tensor) -> Tensor:
    r"""Project each row onto the ball of the given radius.

    .. math:: w_k \leftarrow \min\left(1, \delta / \lVert w_k \rVert\right) w_k

    Args:
        weight: [..., C, D].
        radius: delta, not negative: a number, or a tensor that broadcasts against [..., C].

    Returns:
        [..., C, D], of half precision in float32.

    Source: the paper's section 4.3 (projected gradient descent on the MaxNorm constraint).
    """
    norms = row_norms(weight)
    scale = radius / norms.clamp(min=radius)  # clamped, as a row of zeros would have no gradient but NaN
    return weight * scale.masked_fill(norms <= radius, 1)[..., None]


def outside(norms: Tensor, radius: float | Tensor) -> Tensor:
    """Which norms exceed the radius by more than rounding: a row just projected lies on the ball."""
    return norms > radius * (1 + 1e-6)


def relative_radius(weight: Tensor, fraction: float) -> float:
    """The released radius: min + fraction * (max - min) of the row norms (its fraction is 0.1)."""
    norms = row_norms(weight)
    return float(norms.min() + fraction * (norms.max() - norms.min()))


@dataclass
class Constraint:
    """What every class's weights must satisfy after an update, and a count of how often they did not.

    Attributes:
        radius: the largest norm that a row may have.
        every: one of `EVERY`, when to project.
        checked, projected: rows looked at so far, and those of them that the projection moved; int64 tensors, so
            that counting waits for no device and goes on in a captured step.
    """

    radius: float
    every: str = "step"
    checked: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    projected: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))

    def __post_init__(self) -> None:
        if self.every not in EVERY:
            raise ValueError(f"every: must be step or epoch, got {self.every}")
        if not self.radius >= 0:
            raise ValueError(f"radius: must not be negative, got {self.radius}")

    def moves(self, weight: Tensor) -> Tensor:
        """Which rows [C] of a weight matrix [C, D] the projection moves, by more than rounding."""
        raise NotImplementedError

    def project(self, weight: Tensor) -> Tensor:
        """A weight matrix [C, D] as it shall be."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What a checkpoint must agree with."""
        return {"max_norm": self.radius, "max_norm_every": self.every}

    def to(self, device: torch.device) -> "Constraint":
        """Count anew, from zero, on a device, the one where the weights are; in place."""
        self.checked, self.projected = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))
        return self

    def counts(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"checked": int(self.checked), "projected": int(self.projected)}

    def go_on_from(self, counts: Mapping[str, int]) -> None:
        """Count on from a checkpoint's `counts`, in place."""
        self.checked.fill_(counts["checked"])
        self.projected.fill_(counts["projected"])

    @torch.no_grad()
    def apply(self, weight: Tensor) -> None:
        """Project a weight matrix [C, D] in place, and count.

        Raises:
            ValueError: the weight is no matrix of rows.
        """
        if weight.dim() != 2:
            raise ValueError(f"weight: must be a classifier's [C, D], got {list(weight.shape)}")
        self.projected += self.moves(weight).sum()
        self.checked += len(weight)
        weight.copy_(self.project(weight))

    @property
    def projected_share(self) -> float:
        """Share of the rows checked so far that the projection moved, in 0..1; 0 before the first check."""
        return int(self.projected) / int(self.checked) if self.checked else 0.0


class MaxNorm(Constraint):
    """A ball for every class's weights, its radius delta not negative.

    Source: the paper's section 4.3.
    """

    def moves(self, weight: Tensor) -> Tensor:
        """Rows outside the ball."""
        return outside(row_norms(weight), self.radius)

    def project(self, weight: Tensor) -> Tensor:
        """Rows outside the ball brought to its surface; of half precision just below, as rounding may lengthen them."""
        kind = torch.finfo(weight.dtype)
        return max_norm_project(weight, self.radius * (1 - kind.eps) if kind.bits < 32 else self.radius)


class L2Norm(Constraint):
    """The unit sphere for every class's weights: L2-normalisation as a constraint, held after each update.

    Source: the paper's section 4.3 and the rows "CE & L2norm", "CB & L2norm" of its Table 1.
    """

    def __init__(self, every: str = "step") -> None:
        super().__init__(1.0, every)

    def moves(self, weight: Tensor) -> Tensor:
        """Rows whose norm is neither 1 nor 0."""
        norms = row_norms(weight)
        return ((norms - 1).abs() > max(1e-6, torch.finfo(weight.dtype).eps)) & (norms > 0)

    def project(self, weight: Tensor) -> Tensor:
        """Every row brought to unit norm."""
        return tau_normalize(weight, 1.0)

    def describe(self) -> dict[str, Any]:
        """As a ball's, and that it is none."""
        return {**super().describe(), "constraint": "L2Norm"}
