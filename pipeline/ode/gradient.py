"""Differentiate through a solve: exactly, with much or little memory, or by the continuous adjoint.

``direct`` and ``checkpointed`` differentiate the steps that were taken (discretise, then optimise), so a gradient step
improves exactly the map that inference runs. ``adjoint`` discretises the adjoint equation instead (Chen et al. 2018).
Its gradient is not that of any map that is run. On the coarse grids of few-step models the error is as large as the
gradient itself. It is here only for comparison.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pipeline.ode import dopri5
from pipeline.ode.fixed_step import STEPS, Field, solve

Gradient = Literal["direct", "checkpointed", "adjoint"]
GRADIENTS: tuple[Gradient, ...] = get_args(Gradient)

_IN_TORCHDIFFEQ = {"euler": "euler", "midpoint": "midpoint", "heun": "heun2", "rk4": "rk4"}
"""torchdiffeq's names of the solvers. Its rk4 is the 3/8 rule, another method of the same order and cost."""


def solve_for_training(
    field: Field,
    x: Tensor,
    grid: Sequence[float],
    method: str = "euler",
    *,
    gradient: Gradient = "direct",
    last_steps: int | None = None,
    parameters: Sequence[Tensor] = (),
) -> Tensor:
    """Solve as ``fixed_step.solve`` does, with a choice of the gradient.

    ==============  =========================  ==================================  =============================
    ``gradient``    kept for backward          cost, forward and backward          gradient
    ==============  =========================  ==================================  =============================
    direct          all activations            3 passes an evaluation              exact
    checkpointed    the state x_k of a step,   4, and 3 in the last step           exact, the same bits as direct
                    and one step's activations
    adjoint         the state x_k of a step    4                                   of the continuous flow: wrong
                                                                                   to the order of the solver
    ==============  =========================  ==================================  =============================

    Args:
        field, x, grid, method: see ``fixed_step.solve``. The field must be deterministic: the same call gives the same
            result.
        last_steps: number of last steps to differentiate through (truncated back-propagation). Earlier steps run
            without gradient, so autograd sees no dependence on ``x``. None: all steps.
        parameters: only for ``adjoint``: the tensors that ``field`` depends on and that should receive a gradient.

    Returns:
        The state at ``grid[-1]``, shaped as ``x``.

    Raises:
        ValueError: ``last_steps`` is not within 1 … number of steps, or ``adjoint`` does not support ``method``.
    """
    if last_steps is not None:
        first = len(grid) - 1 - last_steps
        if not 0 <= first < len(grid) - 1:
            raise ValueError(f"last_steps: given {last_steps}, allowed: 1 to {len(grid) - 1}, the number of steps")
        with torch.no_grad():
            x = solve(field, x, grid[: first + 1], method)
        grid = grid[first:]
    match gradient:
        case "direct":
            return solve(field, x, grid, method)
        case "checkpointed":
            return _checkpointed(field, x, grid, method)
        case "adjoint":
            return _adjoint(field, x, grid, method, parameters)


def _checkpointed(field: Field, x: Tensor, grid: Sequence[float], method: str) -> Tensor:
    step, _ = STEPS[method]
    for t, t_next in pairwise(grid[:-1]):
        x = checkpoint(
            step,
            field,
            t,
            x,
            t_next - t,
            use_reentrant=False,  # the re-entrant variant skips DDP's hooks, and gradients if x requires none
            preserve_rng_state=False,
            determinism_check="none",
        )
    # backward needs the last step's activations first, so dropping them would save nothing
    return solve(field, x, grid[-2:], method)


def _adjoint(field: Field, x: Tensor, grid: Sequence[float], method: str, parameters: Sequence[Tensor]) -> Tensor:
    from torchdiffeq import odeint_adjoint  # here: only this comparison needs it

    if method not in _IN_TORCHDIFFEQ:
        raise ValueError(f"adjoint: given method {method!r}, allowed: {', '.join(_IN_TORCHDIFFEQ)}")
    states = odeint_adjoint(
        lambda t, y: field(t.item(), y),
        x,
        torch.tensor(grid, dtype=torch.float64, device=x.device),
        method=_IN_TORCHDIFFEQ[method],
        adjoint_params=tuple(tensor for tensor in parameters if tensor.requires_grad),
    )
    return states[-1]


@dataclass(frozen=True)
class Replay:
    """An adaptive solve repeated with gradient on its accepted steps.

    Attributes:
        end: the final state, differentiable. solved: the solve without gradient, its end state, grid and NFE.
        nfe: evaluations of the replay, in addition to those of the solve.
    """

    end: Tensor
    solved: dopri5.AdaptiveSolve
    nfe: int


def replay_dopri5(
    field: Field,
    x: Tensor,
    *,
    start: float = 0.0,
    end: float = 1.0,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = dopri5.MAX_STEPS,
    gradient: Gradient = "direct",
    last_steps: int | None = None,
) -> Replay:
    """Solve adaptively without gradient, then repeat the accepted steps with gradient.

    The step sizes are constants: the gradient is that of the discrete map on the grid found. Rejected steps are neither
    kept nor differentiated.

    Args:
        x: (B, …). start, end: times. rtol, atol, max_steps: of ``dopri5.solve``.
        gradient, last_steps: as in ``solve_for_training``; ``adjoint`` does not apply.

    Raises:
        FloatingPointError, UserError: as ``dopri5.solve``.
    """
    solved = dopri5.solve(field, x.detach(), start=start, end=end, rtol=rtol, atol=atol, max_steps=max_steps)
    replayed = solve_for_training(field, x, solved.grid, "dopri5", gradient=gradient, last_steps=last_steps)
    return Replay(replayed, solved, dopri5.EVALUATIONS * (len(solved.grid) - 1))


def update_passes(nfe: int, method: str = "euler", gradient: Gradient = "direct", last_steps: int | None = None) -> int:
    """Count the cost of ``solve_for_training`` and its backward in forward passes; a backward pass counts as two.

    Args:
        nfe: evaluations of the solve. method, gradient, last_steps: as in ``solve_for_training``.
    """
    _, evaluations = STEPS[method]
    tracked = nfe if last_steps is None else last_steps * evaluations
    again = {"direct": 0, "checkpointed": tracked - evaluations, "adjoint": tracked}[gradient]
    return nfe + again + 2 * tracked
