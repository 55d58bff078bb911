"""Build residual fields from settings; a residual's solve starts at the end of the base model's solve."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from pipeline.nets.mlp import MLP
from pipeline.nets.persidskii import FixedMatrices, PersidskiiResidual
from pipeline.nets.registry import build_net
from pipeline.nets.sharing import in_solve
from pipeline.nets.unet1d import ConditionalUnet1D
from pipeline.ode.fixed_step import Field
from pipeline.ode.grids import time_grid
from pipeline.settings.schema import PersidskiiSettings, ResidualRecipe, ResidualSolve
from pipeline.stability.parameterization import (
    ContractingFlow,
    ContractingStep,
    Parameterization,
    UnconstrainedSystem,
)


class PlainResidual(nn.Module):
    """h(t, x, c) by any net, on times from 1; its stability is unknown. Used for images and in the ablation."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def begin(self, anchor: Tensor, condition: Tensor, noise: Tensor) -> Field:
        """Return the field as ``PersidskiiResidual.begin`` does; only the condition is used."""
        del noise
        return in_solve(self.net, condition, len(anchor))

    def fixed(self) -> "PlainResidual":
        """Return itself: there is nothing to fix."""
        return self


Residual = PersidskiiResidual | PlainResidual
"""A field on [1, end] that starts from the base model's sample."""


def build_residual(
    recipe: ResidualRecipe, horizon: int, action_dim: int, condition_dim: int, *, fixed: bool = False
) -> Residual:
    """Build the residual that ``recipe`` describes; its output is zero until it is trained.

    Args:
        fixed: build the stored form, whose matrices are plain numbers in place of their trained parameterization.

    Raises:
        UserError: the horizon does not fit the net.
    """
    settings = recipe.net
    if not isinstance(settings, PersidskiiSettings):
        net = build_net(settings, horizon, action_dim, condition_dim)
        assert isinstance(net, ConditionalUnet1D)
        silence(net.out[-1])
        return PlainResidual(net)
    n = action_dim if settings.state == "step" else horizon * action_dim
    sees = horizon * action_dim if settings.sees_noise else 0
    input_net = build_net(settings.input, horizon, action_dim, condition_dim + sees)
    assert isinstance(input_net, MLP)
    silence(input_net.out)
    source = FixedMatrices(n, settings.widths) if fixed else _parameterization(settings, n, longest_step(recipe))
    return PersidskiiResidual(source, settings.functions, input_net, sees_noise=settings.sees_noise)


def residual_grid(recipe: ResidualSolve) -> list[float]:
    """List the times of the residual's Euler steps, from 1 to ``recipe.end``."""
    return time_grid(recipe.grid, recipe.residual_steps, "euler", recipe.end, start=1.0)


def longest_step(recipe: ResidualSolve) -> float:
    """Return h of the longest Euler step; if that step contracts, so does every shorter one (``shorter_ratio``)."""
    return max(end - start for start, end in pairwise(residual_grid(recipe)))


def shorter_ratio(ratio: float, share: float) -> float:
    """Return the contraction of an Euler step of θh, if a step of h contracts by ρ in the same norm.

    The norm of I + θhJ = (1 − θ)I + θ(I + hJ) is at most 1 − θ + θρ.

    Args:
        ratio: ρ. share: θ, in (0, 1].

    Raises:
        ValueError: ``share`` is not within (0, 1].
    """
    if not 0 < share <= 1 + 1e-9:
        raise ValueError(f"share: given {share}, allowed: above 0, at most 1")
    return 1 - share * (1 - ratio)


def step_ratio(settings: PersidskiiSettings, step: float) -> float:
    """Return ρ = e^{−λh}: the contraction required of an Euler step of length h for a flow of rate λ."""
    return math.exp(-settings.rate * step)


def _parameterization(settings: PersidskiiSettings, n: int, step: float) -> Parameterization:
    """Make the trainable matrices in the parameterization that ``settings.stability`` names."""
    widths, functions, rate = settings.widths, settings.functions, settings.rate
    match settings.stability:
        case "step":
            return ContractingStep(n, widths, functions, step, step_ratio(settings, step))
        case "flow":
            return ContractingFlow(n, widths, functions, rate)
        case "step_penalty" | "contraction_penalty" | "dominance_penalty" | "free":
            system = UnconstrainedSystem(n, widths, functions, rate)
            if settings.stability in ("dominance_penalty", "free"):  # their losses do not depend on P and Γ
                for unused in (system.C, *system.raw_gamma):
                    unused.requires_grad_(False)
            return system


@torch.no_grad()
def silence(layer: nn.Module) -> None:
    """Set a layer's parameters to zero, so that its output is zero; it stays trainable."""
    for parameter in layer.parameters():
        parameter.zero_()
