"""Balancing the norms of a classifier's rows: L2- and tau-normalisation, and the MaxNorm projection.

Row k of a weight matrix [C, D] is class k's weight vector. The functions are pure; `MaxNorm` projects a
matrix in place and counts how often it had to. Biases are left alone, as in the released code.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


def row_norms(weight: Tensor) -> Tensor:
    """Euclidean norm of each row: [C, D] -> [C]."""
    return torch.linalg.vector_norm(weight, dim=1)


def tau_normalize(weight: Tensor, tau: float) -> Tensor:
    r"""Divide each row by its norm to the power tau; rows of zeros stay zeros.

    .. math:: w_k \leftarrow w_k / \lVert w_k \rVert^\tau

    Source: Kang et al. 2020, equation 3; the paper's section 4.3.
    """
    norms = row_norms(weight)
    scale = torch.where(norms > 0, norms, torch.ones_like(norms)) ** -tau
    return weight * scale[:, None]


def l2_normalize(weight: Tensor) -> Tensor:
    """Bring each row to unit norm (the paper's section 4.3); rows of zeros stay zeros."""
    return tau_normalize(weight, 1.0)


def max_norm_project(weight: Tensor, radius: float | Tensor) -> Tensor:
    r"""Project each row onto the ball of the given radius.

    .. math:: w_k \leftarrow \min\left(1, \delta / \lVert w_k \rVert\right) w_k

    Args:
        weight: [C, D].
        radius: delta, a number or [C], not negative.

    Source: the paper's section 4.3 (projected gradient descent on the MaxNorm constraint).
    """
    norms = row_norms(weight)
    return weight * (radius / norms).masked_fill(norms <= radius, 1)[:, None]


def outside(norms: Tensor, radius: float | Tensor) -> Tensor:
    """Which norms exceed the radius by more than rounding: a row just projected lies on the ball."""
    return norms > radius * (1 + 1e-6)


def relative_radius(weight: Tensor, fraction: float) -> float:
    """The released radius: min + fraction * (max - min) of the row norms (its fraction is 0.1)."""
    norms = row_norms(weight)
    return float(norms.min() + fraction * (norms.max() - norms.min()))


@dataclass
class MaxNorm:
    """A ball for every class's weights, and a count of how often it was left.

    Args:
        radius: delta.
        every: "step" to project after each update (the paper), "epoch" once an epoch (the released code).

    Attributes:
        checked, fired: rows looked at so far, and those of them that lay outside and were pulled back; int64
            tensors, so that counting waits for no device and goes on in a captured step.
    """

    radius: float
    every: str = "step"
    checked: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    fired: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))

    def __post_init__(self) -> None:
        if not self.radius >= 0:
            raise ValueError(f"radius: must not be negative, got {self.radius}")
        if self.every not in ("step", "epoch"):
            raise ValueError(f"every: must be step or epoch, got {self.every}")

    def to(self, device: torch.device) -> "MaxNorm":
        """Count on a device, the one where the weights are."""
        self.checked, self.fired = self.checked.to(device), self.fired.to(device)
        return self

    def moves(self, norms: Tensor) -> Tensor:
        """Which rows the projection moves, by their norms [C]."""
        return outside(norms, self.radius)

    def project(self, weight: Tensor) -> Tensor:
        """A weight matrix [C, D] as it shall be."""
        return max_norm_project(weight, self.radius)

    @torch.no_grad()
    def apply(self, weight: Tensor) -> None:
        """Project a weight matrix [C, D] in place, and count."""
        self.fired += self.moves(row_norms(weight)).sum()
        self.checked += len(weight)
        weight.copy_(self.project(weight))

    @property
    def fired_share(self) -> float:
        """Share of the rows checked so far that the projection moved, in 0..1; 0 before the first check."""
        return int(self.fired) / int(self.checked) if self.checked else 0.0


class L2Norm(MaxNorm):
    """The unit sphere for every class's weights: L2-normalisation as a constraint, held after each update.

    Source: the paper's section 4.3 and the rows "CE & L2norm", "CB & L2norm" of its Table 1.
    """

    def __init__(self, every: str = "step") -> None:
        super().__init__(1.0, every)

    def moves(self, norms: Tensor) -> Tensor:
        """Rows whose norm is not 1, beyond rounding."""
        return (norms - 1).abs() > 1e-6

    def project(self, weight: Tensor) -> Tensor:
        """Every row brought to unit norm."""
        return l2_normalize(weight)
