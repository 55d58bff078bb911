"""Define two small control problems in the plane: follow a curve in time, and settle at one of two points."""

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
"""(2, 2) the points to settle at: the first for starts left of zero, the second for the others."""


def curve(t: Tensor) -> Tensor:
    """Return the points (B, 2) of a figure of eight at times t (B,)."""
    return torch.stack([torch.sin(_OMEGA * t), 0.6 * torch.sin(2 * _OMEGA * t)], dim=-1)


def curve_velocity(t: Tensor) -> Tensor:
    """Return the velocities d curve / dt (B, 2) at times t (B,)."""
    return _OMEGA * torch.stack([torch.cos(_OMEGA * t), 1.2 * torch.cos(2 * _OMEGA * t)], dim=-1)


def clock(t: Tensor) -> Tensor:
    """Encode times t (B,) as the input (B, 4) of a system that follows the curve: sine and cosine, lap and half lap."""
    phase = _OMEGA * t
    return torch.stack([torch.sin(phase), torch.cos(phase), torch.sin(2 * phase), torch.cos(2 * phase)], dim=-1)


CLOCK = 4
"""Size of the encoding by ``clock``."""


def place_of(starts: Tensor) -> Tensor:
    """Return the points (B, 2) where systems with starts (B, 2) must settle."""
    return PLACES.to(starts)[(starts[:, 0] > 0).long()]


@dataclass(frozen=True)
class DrivenSystem:
    """Trained system x' = A0 x + Σ_j A_j f_j(W_j x) + g with g = gain · u + offset, in float64.

    Attributes:
        system: the matrices. gain: (n, m), the gain of the input u. offset: (n,).
        rate: λ, the contraction rate to prove.
        metric, multipliers: P (n, n) and Γ (K,) that prove it, by construction; None: unknown.
    """

    system: System
    gain: Array
    offset: Array
    rate: float = 0.01
    metric: Array | None = None
    multipliers: Array | None = None

    def push(self, u: Array) -> Array:
        """Compute g (…, n) for the inputs u (…, m)."""
        pushed: Array = u @ self.gain.T + self.offset
        return pushed
