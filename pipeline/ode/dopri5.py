"""Solve adaptively by torchdiffeq's dopri5 (Dormand & Prince 1980), with the accepted grid and the exact NFE."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.ode.fixed_step import STEPS, Field
from pipeline.utils.errors import UserError

EVALUATIONS = STEPS["dopri5"][1]
"""Evaluations of one step on a given grid. The adaptive solver needs a seventh for its error estimate, which is also
the first of the next step."""


MAX_STEPS = 10_000
"""Default limit of a solve's steps; the stiffest flows here need tens of times fewer."""


@dataclass(frozen=True)
class AdaptiveSolve:
    """Result of an adaptive solve.

    Attributes:
        end: state at the final time, (B, …), without gradient.
        grid: times of the accepted steps, from the start to the end.
        nfe: evaluations of the field, including those of rejected steps and of the choice of the first step size.
    """

    end: Tensor
    grid: list[float]
    nfe: int


class _Recorder:
    """Field for torchdiffeq that counts calls, records the times of accepted steps, and ends a solve that is stuck.

    torchdiffeq's own assertions for a stuck solve say little, and ``python -O`` removes them.
    """

    def __init__(self, field: Field, x: Tensor, end: float, max_steps: int) -> None:
        self.field = field
        self.time = math.nan
        self.velocity = x
        self.end = end
        self.max_steps = max_steps
        self.nfe = 0
        self.steps = 0
        self.starts: list[float] = []

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        self.nfe += 1
        velocity = self.field(t.item(), x)
        if t.isfinite():  # else torchdiffeq continued after a velocity that was not finite
            self.time, self.velocity = t.item(), velocity
        return velocity

    def callback_step(self, t0: Tensor, x0: Tensor, dt: Tensor) -> None:
        """Check a step before it is taken, including steps that will be rejected."""
        t, step = t0.item(), dt.item()
        _require_finite(x0, t)
        if t + step == t or t - step == t:  # the error of every step tried was too large or not a number
            if not self.velocity.isfinite().all():
                raise FloatingPointError(f"dopri5: the field returned NaN or infinity at t = {self.time:.6g}")
            raise FloatingPointError(f"dopri5: no step is small enough at t = {t:.6g}: the solution blows up or jumps")
        if self.steps == self.max_steps:
            raise UserError(
                f"dopri5: {self.steps} steps led to t = {t:.6g} of {self.end:g} only; a larger tolerance needs fewer"
            )
        self.steps += 1

    def callback_accept_step(self, t0: Tensor, x0: Tensor, dt: Tensor) -> None:
        del x0, dt
        self.starts.append(t0.item())


@torch.no_grad()
def solve(
    field: Field,
    x: Tensor,
    *,
    start: float = 0.0,
    end: float = 1.0,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = MAX_STEPS,
) -> AdaptiveSolve:
    """Integrate ``field`` from ``x`` at ``start`` to ``end`` with steps chosen by their estimated error.

    The error norm is over the whole batch, so all rows share one grid. The last step ends exactly at ``end``. By
    default torchdiffeq steps past it and interpolates, but a flow-matching field is not defined for t > 1.

    Args:
        x: (B, …). start, end: times; end < start integrates backwards. rtol, atol: relative and absolute tolerance.
        max_steps: limit of the steps tried, including rejected ones.

    Raises:
        FloatingPointError: the field returned NaN or infinity, or its solution blows up.
        UserError: the solve did not reach ``end`` within ``max_steps`` steps.
    """
    from torchdiffeq import odeint  # here: most users never solve adaptively

    recorder = _Recorder(field, x, end, max_steps)
    times = torch.tensor([start, end], dtype=torch.float64, device=x.device)
    states = odeint(recorder, x, times, rtol=rtol, atol=atol, method="dopri5", options={"step_t": times[1:]})
    _require_finite(states[-1], end)
    return AdaptiveSolve(states[-1], [*recorder.starts, end], recorder.nfe)


def _require_finite(x: Tensor, t: float) -> None:
    if not x.isfinite().all():
        raise FloatingPointError(f"dopri5: the state is not finite at t = {t:.6g}")
