"""Gradients through a solve: exact ones of the discrete map, with much memory or little, and the continuous adjoint.

``direct`` and ``checkpointed`` differentiate the steps that were really taken (discretise, then optimise), so that a
gradient step improves the very map that inference runs. ``adjoint`` discretises the adjoint equation instead (Chen et
al. 2018): its gradient belongs to no map that is ever run, and on the coarse grids of few-step models the difference is
of the size of the gradient itself. It is here for comparison only.
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
"""Names of the same solvers there; its rk4 is the 3/8 rule, another method of the same order and cost."""


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
    """As ``fixed_step.solve``, with a choice of how its result is differentiated.

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
        field, x, grid, method: see ``fixed_step.solve``. The field must give the same result when called again, without
            random numbers of its own.
        last_steps: differentiate through so many last steps only (truncated back-propagation): the steps before run
            without gradient, and the result no longer depends on ``x`` as far as autograd knows. None: all.
        parameters: for ``adjoint`` alone, which cannot see into ``field``: every tensor that it depends on and that is
            to receive a gradient.

    Returns:
        The state at ``grid[-1]``, shaped as ``x``.

    Raises:
        ValueError: ``last_steps`` is not one of 1 … number of steps, or ``adjoint`` does not have ``method``.
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
            use_reentrant=False,  # the re-entrant variant loses gradients where x requires none, and DDP's hooks
            preserve_rng_state=False,
            determinism_check="none",
        )
    # the last step's activations are the first that backward needs: dropping them would save nothing
    return solve(field, x, grid[-2:], method)


def _adjoint(field: Field, x: Tensor, grid: Sequence[float], method: str, parameters: Sequence[Tensor]) -> Tensor:
    from torchdiffeq import odeint_adjoint  # only this comparison needs it

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
    """An adaptive solve taken again, with gradient, on the steps that it accepted.

    Attributes:
        end: the final state, differentiable. solved: the solve without gradient, its end state, grid and NFE.
        nfe: evaluations of the replay, which come on top of those of the solve.
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
    """Solve adaptively without gradient, then take the accepted steps again with gradient.

    The step sizes count as constants: the gradient is that of the discrete map on the grid found. Nothing of rejected
    steps is kept, nor differentiated.

    Args:
        x: (B, …). start, end: times. rtol, atol, max_steps: of ``dopri5.solve``, whose errors are raised.
        gradient, last_steps: as in ``solve_for_training``; ``adjoint`` does not apply.
    """
    solved = dopri5.solve(field, x.detach(), start=start, end=end, rtol=rtol, atol=atol, max_steps=max_steps)
    replayed = solve_for_training(field, x, solved.grid, "dopri5", gradient=gradient, last_steps=last_steps)
    return Replay(replayed, solved, dopri5.EVALUATIONS * (len(solved.grid) - 1))


def update_passes(nfe: int, method: str = "euler", gradient: Gradient = "direct", last_steps: int | None = None) -> int:
    """Cost of ``solve_for_training`` and its backward, in forward passes of the field; a backward pass counts as two.

    Args:
        nfe: evaluations of the solve. method, gradient, last_steps: as given to ``solve_for_training``.
    """
    _, evaluations = STEPS[method]
    tracked = nfe if last_steps is None else last_steps * evaluations
    again = {"direct": 0, "checkpointed": tracked - evaluations, "adjoint": tracked}[gradient]
    return nfe + again + 2 * tracked
