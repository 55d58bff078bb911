"""What is minimised: the conditional flow-matching loss, and the reconstruction loss of MLE fine-tuning."""

from collections.abc import Callable, Sequence

from torch import Tensor

from pipeline.flow.path import AffinePath
from pipeline.ode.fixed_step import solve

VelocityField = Callable[[Tensor, Tensor, Tensor], Tensor]
"""v(t, x, c): t (B,), x (B, …), c (B, C) → velocity, shaped as x."""


def flow_matching_loss(
    field: VelocityField,
    path: AffinePath,
    x0: Tensor,
    x1: Tensor,
    condition: Tensor,
    t: Tensor,
    epsilon: Tensor | None = None,
) -> Tensor:
    """E‖v(t, x_t, c) − u_t‖², averaged over batch and components (Lipman et al. 2023, eq. 14).

    Args:
        x0, x1: a coupled pair, (B, …). condition: (B, C). t: (B,). epsilon: see ``AffinePath.sample``.
    """
    x_t, target = path.sample(x0, x1, t, epsilon)
    return (field(t, x_t, condition) - target).square().mean()


def reconstruct(
    field: VelocityField, x0: Tensor, condition: Tensor, grid: Sequence[float], method: str = "euler"
) -> Tensor:
    """φ_N(x0, c): the numerical solve from noise to data, differentiable through every step; shaped as x0."""
    return solve(lambda t, x: field(x.new_full((len(x),), t), x, condition), x0, grid, method)


def reconstruction_loss(
    field: VelocityField,
    x0: Tensor,
    x1: Tensor,
    condition: Tensor,
    grid: Sequence[float],
    method: str = "euler",
) -> Tensor:
    """E‖x1 − φ_N(x0, c)‖², averaged over batch and components: loss (6) of arXiv 2510.02081.

    It is the Gaussian negative log-likelihood of x1 around the reconstruction, up to scale and constant, where the
    covariance is a fixed multiple of the identity (Theorem 2 of the paper).
    """
    return (reconstruct(field, x0, condition, grid, method) - x1).square().mean()
