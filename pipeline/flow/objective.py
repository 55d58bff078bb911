"""What is minimised: the conditional flow-matching loss, and the reconstruction loss of MLE fine-tuning."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from pipeline.flow.path import AffinePath
from pipeline.ode.gradient import Gradient, solve_for_training

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
    field: VelocityField,
    x0: Tensor,
    condition: Tensor,
    grid: Sequence[float],
    method: str = "euler",
    *,
    gradient: Gradient = "direct",
    last_steps: int | None = None,
) -> Tensor:
    """φ_N(x0, c): the numerical solve from noise to data, differentiable; shaped as x0.

    ``gradient`` and ``last_steps`` say how and through which steps, see ``pipeline.ode.gradient``; by default exactly
    and through all.
    """
    return solve_for_training(
        lambda t, x: field(x.new_full((len(x),), t), x, condition),
        x0,
        grid,
        method,
        gradient=gradient,
        last_steps=last_steps,
        parameters=(*(field.parameters() if isinstance(field, nn.Module) else ()), condition),
    )


def reconstruction_loss(
    field: VelocityField,
    x0: Tensor,
    x1: Tensor,
    condition: Tensor,
    grid: Sequence[float],
    method: str = "euler",
    *,
    gradient: Gradient = "direct",
    last_steps: int | None = None,
) -> Tensor:
    """E‖x1 − φ_N(x0, c)‖², averaged over batch and components: loss (6) of arXiv 2510.02081.

    It is the Gaussian negative log-likelihood of x1 around the reconstruction, up to scale and constant, where the
    covariance is a fixed multiple of the identity (Theorem 2 of the paper).
    """
    made = reconstruct(field, x0, condition, grid, method, gradient=gradient, last_steps=last_steps)
    return (made - x1).square().mean()
