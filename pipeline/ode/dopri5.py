"""The adaptive solver dopri5 (Dormand & Prince 1980), by torchdiffeq, with its accepted grid and exact NFE."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.ode.fixed_step import STEPS, Field

EVALUATIONS = STEPS["dopri5"][1]
"""Evaluations of one step on a given grid. The adaptive solver's seventh, for its error estimate, is the next step's
first."""


@dataclass(frozen=True)
class AdaptiveSolve:
    """What an adaptive solve found.

    Attributes:
        end: state at the final time, (B, …), without gradient.
        grid: times between which the accepted steps were taken; the first is the start, the last the end.
        nfe: evaluations spent, those of rejected steps and of the choice of the first step size included.
    """

    end: Tensor
    grid: list[float]
    nfe: int


class _Recorder:
    """A field as torchdiffeq calls it, which counts the calls and notes where accepted steps begin."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.nfe = 0
        self.starts: list[float] = []

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        self.nfe += 1
        return self.field(t.item(), x)

    def callback_accept_step(self, t0: Tensor, x0: Tensor, dt: Tensor) -> None:
        del x0, dt
        self.starts.append(t0.item())


@torch.no_grad()
def solve(
    field: Field, x: Tensor, *, start: float = 0.0, end: float = 1.0, rtol: float = 1e-5, atol: float = 1e-5
) -> AdaptiveSolve:
    """Integrate ``field`` from ``x`` at ``start`` to ``end`` with steps chosen by their estimated error.

    The error norm is taken over the whole batch, so that all its rows share one grid. The last step ends at ``end``
    exactly: torchdiffeq by itself steps past it and interpolates, and a flow-matching field knows no t > 1.

    Args:
        x: (B, …). start, end: times; end < start integrates backwards. rtol, atol: relative and absolute tolerance.
    """
    from torchdiffeq import odeint  # most users never solve adaptively

    recorder = _Recorder(field)
    times = torch.tensor([start, end], dtype=torch.float64, device=x.device)
    states = odeint(recorder, x, times, rtol=rtol, atol=atol, method="dopri5", options={"step_t": times[1:]})
    return AdaptiveSolve(states[-1], [*recorder.starts, end], recorder.nfe)
