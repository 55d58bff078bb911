"""Residual fine-tuning: the reconstruction loss (6) through a residual field behind the frozen base model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.evaluation.residual_policy import solve_residual
from pipeline.flow.objective import reconstruct
from pipeline.flow.pairing import NO_MODELS, Coupling, Source
from pipeline.nets.modes import evaluating
from pipeline.nets.persidskii import PersidskiiResidual
from pipeline.nets.residual import Residual, longest_step, residual_grid, step_ratio
from pipeline.ode.fixed_step import uniform_grid
from pipeline.settings.schema import PersidskiiSettings, ResidualRecipe, ResidualSolve
from pipeline.stability.parameterization import (
    UnconstrainedSystem,
    contraction_penalty,
    diagonal_dominance_penalty,
    step_penalty,
)
from pipeline.training.loop import Batches, Objective
from pipeline.training.teacher import Teacher, paired
from pipeline.utils.seeding import Generators


class ResidualReconstruction(Objective):
    """Loss (6) of arXiv 2510.02081 on the extended time; the gradient goes through the residual's solve alone.

    Metrics beside the coupling's: ``reconstruction`` and ``penalty``, if there is a penalty.

    Args:
        residual: the trained field. base: the frozen field. coupling: pairs noise with data, through both solves.
        base_nfe: Euler evaluations of the base. recipe: the residual's grid, the teacher's NFE and the penalty.
        generators: stream ``noise`` is drawn from.
    """

    def __init__(
        self,
        residual: Residual,
        base: nn.Module,
        coupling: Coupling,
        base_nfe: int,
        recipe: ResidualSolve,
        generators: Generators,
    ) -> None:
        super().__init__()
        self.net = residual
        self.base = base.requires_grad_(False)
        self.coupling = coupling
        self.base_grid = uniform_grid(base_nfe)
        self.grid = residual_grid(recipe)
        self.generators = generators
        self.penalty = _penalty(recipe)
        self.models = replace(NO_MODELS, reconstruct=self._reconstruct)
        if recipe.teacher_nfe and not recipe.solves_ahead:
            teacher = self.teacher = Teacher(base, recipe.teacher_nfe, recipe.reflow_temperature)
            self.models = replace(self.models, teach=teacher.teach, invert=teacher.invert)

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """Return the scalar loss. condition: (B, C), data: (B, …)."""
        pair = self.coupling(data, condition, Source(self.generators["noise"]), self.models)
        loss = (self._reconstruct(pair.x0, condition) - pair.x1).square().mean()
        self.metrics = dict(pair.metrics)
        if self.penalty is not None:
            penalty = self.penalty(self._residual)
            self.metrics |= {"reconstruction": loss.detach(), "penalty": penalty.detach()}
            loss = loss + penalty
        return loss

    @property
    def _residual(self) -> Residual:
        return cast(Residual, self.net)

    def _reconstruct(self, x0: Tensor, condition: Tensor) -> Tensor:
        with torch.no_grad(), evaluating(self.base):
            anchor = reconstruct(self.base, x0, condition, self.base_grid)
        return solve_residual(self._residual, anchor, condition, x0, self.grid)


def residual_training(
    residual: Residual,
    base: nn.Module,
    recipe: ResidualSolve,
    nfe: int,
    generators: Generators,
    windows: Batches,
    *,
    keep: Path | None = None,
) -> tuple[ResidualReconstruction, Batches]:
    """Build the objective that trains ``residual`` by ``recipe``, and its batches.

    Args:
        nfe: of both solves together. windows: the batches, unless ``recipe`` makes solves ahead of them.
        keep: file that keeps the solves made ahead for a resume.
    """
    coupling, windows = paired(recipe, base, windows, generators, keep)
    return ResidualReconstruction(residual, base, coupling, nfe - recipe.residual_steps, recipe, generators), windows


def _penalty(recipe: ResidualSolve) -> Callable[[Residual], Tensor] | None:
    """Return the penalty that is added to the loss, as a function of the residual; None: no penalty."""
    settings = recipe.net if isinstance(recipe, ResidualRecipe) else None
    if not isinstance(settings, PersidskiiSettings) or not settings.stability.endswith("_penalty"):
        return None
    step = longest_step(recipe)

    def penalty(residual: Residual) -> Tensor:
        assert isinstance(residual, PersidskiiResidual) and isinstance(residual.source, UnconstrainedSystem)
        source = residual.source
        linear, outer, inner = source.matrices()
        if settings.stability == "dominance_penalty":
            return settings.penalty_weight * diagonal_dominance_penalty(linear, settings.rate)
        of_system = (linear, outer, inner, source.upper, *source.certificate_matrices())
        if settings.stability == "step_penalty":
            return settings.penalty_weight * step_penalty(*of_system, step, step_ratio(settings, step))
        return settings.penalty_weight * contraction_penalty(*of_system, settings.rate)

    return penalty
