"""Two small control problems, with states on the plane: a curve to follow by the clock, and two places to settle at."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.stability.system import Array, System

LAP = 4.0
"""Time of one lap of the curve."""

_OMEGA = 2 * math.pi / LAP

SETTLING_TIME = 4.0

PLACES = torch.tensor([[-1.0, -0.5], [1.0, 0.5]])
"""Where states are to settle: those left of zero at the first, the others at the second; (2, 2)."""


def curve(t: Tensor) -> Tensor:
    """A figure of eight, (B, 2), at times t (B,)."""
    return torch.stack([torch.sin(_OMEGA * t), 0.6 * torch.sin(2 * _OMEGA * t)], dim=-1)


def curve_velocity(t: Tensor) -> Tensor:
    """d curve / dt at t (B,), (B, 2)."""
    return _OMEGA * torch.stack([torch.cos(_OMEGA * t), 1.2 * torch.cos(2 * _OMEGA * t)], dim=-1)


def clock(t: Tensor) -> Tensor:
    """What a system that follows the curve is told of the time t (B,): sine and cosine of the lap and of half laps."""
    phase = _OMEGA * t
    return torch.stack([torch.sin(phase), torch.cos(phase), torch.sin(2 * phase), torch.cos(2 * phase)], dim=-1)


CLOCK = 4
"""Numbers that ``clock`` tells."""


def place_of(starts: Tensor) -> Tensor:
    """Where each of the states (B, 2) is to settle, (B, 2)."""
    return PLACES.to(starts)[(starts[:, 0] > 0).long()]


@dataclass(frozen=True)
class DrivenSystem:
    """x' = A0 x + Σ_j A_j f_j(W_j x) + g with g = gain · u + offset, trained, in float64.

    Attributes:
        system: the matrices. gain: of the input u, (n, m). offset: (n,).
        rate: λ at which it may contract, which is to be proved.
        metric, multipliers: P (n, n) and Γ (K,) that prove it, by construction; None: unknown.
    """

    system: System
    gain: Array
    offset: Array
    rate: float = 0.01
    metric: Array | None = None
    multipliers: Array | None = None

    def push(self, u: Array) -> Array:
        """g for the inputs u (…, m), (…, n)."""
        pushed: Array = u @ self.gain.T + self.offset
        return pushed
