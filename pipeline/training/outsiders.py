"""Policies that are no flows, on the same net: what a fine-tuned flow has to beat to be worth its noise.

Each is trained by an objective of its own and wrapped as a velocity field, so that rollouts and diversity are measured
by the same code and function evaluations are counted the same way.
"""

import torch
from torch import Tensor, nn

from pipeline.flow.pairing import Source
from pipeline.training.loop import Objective
from pipeline.utils.seeding import Generators

INTERMEDIATE_TIME = 0.9
"""t* of the minimal iterative policy, as its authors set it."""


class Regression(Objective):
    """E‖f(0, 0, c) − x1‖²: behaviour cloning, the net being given neither noise nor time."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """condition: (B, C), data: (B, …) → scalar loss."""
        return (_first_guess(self.net, condition, data) - data).square().mean()


class MinimalIterative(Objective):
    """The minimal iterative policy, MIP (Pan et al. 2025, arXiv 2512.01809).

    One net learns to guess, E‖f(0, 0, c) − x1‖², and to mend a guess, E‖f(t*, x_t*, c) − x1‖² with
    x_t* = t* x1 + (1 − t*) z and z standard normal.

    Args:
        generators: stream ``noise`` is drawn from.
    """

    def __init__(self, net: nn.Module, generators: Generators) -> None:
        super().__init__()
        self.net = net
        self.generators = generators

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """condition: (B, C), data: (B, …) → scalar loss, the sum of both errors."""
        t = INTERMEDIATE_TIME
        disturbed = t * data + (1 - t) * Source(self.generators["noise"]).like(data)
        guess = (_first_guess(self.net, condition, data) - data).square().mean()
        mended = (self.net(data.new_full((len(data),), t), disturbed, condition) - data).square().mean()
        return guess + mended


class RegressionField(nn.Module):
    """The field whose single Euler step from anywhere ends at f(0, 0, c): use it at NFE 1."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        """t: (B,), x: (B, …), condition: (B, C) → velocity, shaped as x."""
        del t
        return _first_guess(self.net, condition, x) - x


class MinimalIterativeField(nn.Module):
    """Its two Euler steps are MIP's guess â = f(0, 0, c) and its mending f(t*, t* â, c): use it at NFE 2."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        """t: (B,) of one value, 0 or ½, x: (B, …), condition: (B, C) → velocity, shaped as x."""
        if t[0] < 0.25:
            aim = _first_guess(self.net, condition, x)
        else:
            aim = self.net(torch.full_like(t, INTERMEDIATE_TIME), INTERMEDIATE_TIME * x, condition)
        return 2 * (aim - x)


def _first_guess(net: nn.Module, condition: Tensor, like: Tensor) -> Tensor:
    return net(like.new_zeros(len(like)), torch.zeros_like(like), condition)
