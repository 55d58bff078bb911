"""Training objectives: the conditional flow-matching loss, and the reconstructions of MLE fine-tuning."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pipeline.flow.path import AffinePath
from pipeline.nets.sharing import in_solve
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
    """Compute E‖v(t, x_t, c) − u_t‖², averaged over batch and components (Lipman et al. 2023, eq. 14).

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
    """Solve numerically from noise to data, φ_N(x0, c), differentiably; shaped as x0.

    The condition is (B, C), or (B / K, C) if K successive x0 share one. ``gradient`` is the way to differentiate, and
    ``last_steps`` the number of steps to differentiate through, see ``pipeline.ode.gradient``; the default is exact,
    through all steps.
    """
    return solve_for_training(
        in_solve(field, condition, len(x0)),
        x0,
        grid,
        method,
        gradient=gradient,
        last_steps=last_steps,
        parameters=_parameters(field, condition),
    )


def reconstruct_with_energy(
    field: VelocityField,
    x0: Tensor,
    condition: Tensor,
    grid: Sequence[float],
    method: str = "euler",
    *,
    gradient: Gradient = "direct",
    last_steps: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute φ_N(x0, c) and the kinetic energy ∫‖v‖² dt / d of each row's path, (B,), by the same field evaluations.

    The energy is one more component of the state, with rate ‖v‖²/d. So each solver integrates it by its own rule
    (Euler: Σ_k h ‖v_k‖²/d), and each way to differentiate applies to it. As a penalty it keeps paths short and
    straight, hence easy to solve in few steps (Finlay et al. 2020, RNODE; Onken et al. 2021, OT-Flow). Arguments: see
    ``reconstruct``.
    """

    velocity_at = in_solve(field, condition, len(x0))

    def augmented(t: float, state: Tensor) -> Tensor:
        velocity = velocity_at(t, state[:, :-1].view_as(x0)).flatten(1).to(state.dtype)
        return torch.cat([velocity, velocity.square().mean(1, keepdim=True)], dim=1)

    end = solve_for_training(
        augmented,
        torch.cat([x0.flatten(1), x0.new_zeros(len(x0), 1)], dim=1),
        grid,
        method,
        gradient=gradient,
        last_steps=last_steps,
        parameters=_parameters(field, condition),
    )
    return end[:, :-1].view_as(x0), end[:, -1]


def _parameters(field: VelocityField, condition: Tensor) -> tuple[Tensor, ...]:
    """List the tensors that the adjoint needs gradients of but cannot find by itself."""
    return (*(field.parameters() if isinstance(field, nn.Module) else ()), condition)
