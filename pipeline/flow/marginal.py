"""The exact marginal velocity field of a finite data set, which is the target of flow matching."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.flow.path import AffinePath


@dataclass(frozen=True)
class MarginalField:
    """v(t, x) = E[α'(t) x1 + σ'(t) x0 | x_t = x] for x0 ~ N(0, I) and x1 uniform on ``points``, independent of x0.

    Given x1 the path is Gaussian, N(α x1, s² I) with s² = σ² + spread². So the posterior of x1 is a softmax over the
    points. Given x and x1, the target's mean is α' x1 + σ σ' / s² (x − α x1) (Lipman et al. 2023, eq. 8).

    Attributes:
        points: the data, (M, D); the field has its precision.
        path: must have s(t) > 0 at every t at which the field is evaluated.
    """

    points: Tensor
    path: AffinePath

    def __call__(self, t: float | Tensor, x: Tensor) -> Tensor:
        """Velocity at ``t``, one time or (B,), of the states x (B, D), shaped as x."""
        t = torch.as_tensor(t, dtype=self.points.dtype, device=self.points.device).reshape(-1, 1)
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        variance = sigma**2 + self.path.spread**2
        away = x[:, None, :] - alpha[..., None] * self.points
        weights = torch.softmax(-(away**2).sum(-1) / (2 * variance), dim=-1)
        mean = weights @ self.points
        return self.path.alpha_rate(t) * mean + sigma * self.path.sigma_rate(t) / variance * (x - alpha * mean)

    def acceleration(self, t: float | Tensor, x: Tensor) -> Tensor:
        """x'' = ∂v/∂t + (∂v/∂x) v of the paths through x (B, D) at ``t``, one time or (B,); shaped as x."""
        time = torch.as_tensor(t, dtype=self.points.dtype, device=self.points.device)
        return torch.func.jvp(self, (time, x), (torch.ones_like(time), self(time, x)))[1]


def two_points() -> Tensor:
    """−1 and 1 on the line, (2, 1), in float64: the data of the paper's Figure 1(a)."""
    return torch.tensor([[-1.0], [1.0]], dtype=torch.float64)


def eight_points() -> Tensor:
    """Eight points evenly on the circle of radius 2, (8, 2), in float64."""
    angle = torch.arange(8, dtype=torch.float64) * torch.pi / 4
    return 2 * torch.stack([angle.cos(), angle.sin()], dim=-1)


POINT_SETS: dict[str, Callable[[], Tensor]] = {"two_points": two_points, "eight_points": eight_points}
