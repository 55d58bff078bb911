"""Image models of all methods, with one interface from noise to images."""

from typing import cast

import torch
from torch import Tensor, nn

from pipeline.evaluation.residual_policy import solve_residual
from pipeline.flow.diffusion import END, ancestral, probability_flow
from pipeline.flow.image_methods import no_condition
from pipeline.flow.objective import VelocityField, reconstruct
from pipeline.nets.modes import in_evaluation_mode
from pipeline.nets.residual import Residual
from pipeline.nets.sharing import in_solve
from pipeline.ode import dopri5
from pipeline.ode.fixed_step import uniform_grid

ADAPTIVE = "dopri5"


def fixed_nfe(solver: str) -> int | None:
    """Parse the evaluations n of ``euler-<n>``; None: the solver is adaptive."""
    return None if solver == ADAPTIVE else int(solver.removeprefix("euler-"))


class ImageModel(nn.Module):
    """Base class: one or more nets, and a way to make images with them."""

    fixed_solver = "euler"
    """Name of ``euler-<n>`` in tables."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def least_nfe(self) -> int:
        """The fewest evaluations that the model can sample with."""
        return 1

    def sample(self, noise: Tensor, solver: str, generator: torch.Generator) -> tuple[Tensor, float]:
        """Make images in about [-1, 1] from standard normal ``noise`` (B, C, H, W).

        Args:
            solver: ``euler-<n>``, or ``dopri5`` with the error norm over the batch.
            generator: on the CPU; draws further noise, if the model needs it.

        Returns:
            The images, on the model's device, and the number of evaluations.
        """
        raise NotImplementedError


class FieldModel(ImageModel):
    """Base class of models with a single net.

    Args:
        field: v(t, x, c), or another net that the subclass samples with.
        tolerance: relative and absolute, of ``dopri5``.
    """

    def __init__(self, field: nn.Module, tolerance: float = 1e-5) -> None:
        super().__init__()
        self.field = field
        self.tolerance = tolerance

    def _adaptive(self, field: VelocityField, x: Tensor, end: float) -> tuple[Tensor, float]:
        solved = dopri5.solve(
            in_solve(field, no_condition(x), len(x)),
            x,
            end=end,
            rtol=self.tolerance,
            atol=self.tolerance,
        )
        return solved.end, float(solved.nfe)


class FlowModel(FieldModel):
    """A velocity field solved from the source, which is ``scale`` times standard normal noise."""

    def __init__(self, field: nn.Module, scale: float = 1.0, tolerance: float = 1e-5) -> None:
        super().__init__(field, tolerance)
        self.scale = scale

    @in_evaluation_mode
    def sample(self, noise: Tensor, solver: str, generator: torch.Generator) -> tuple[Tensor, float]:
        del generator
        nfe, source = fixed_nfe(solver), self.scale * noise.to(self.device)
        if nfe is None:
            return self._adaptive(self.field, source, 1.0)
        return reconstruct(self.field, source, no_condition(source), uniform_grid(nfe)), float(nfe)


class DiffusionModel(FieldModel):
    """DDPM: ``euler-<n>`` is ancestral sampling in n steps, ``dopri5`` the probability-flow ODE."""

    fixed_solver = "ancestral"

    @in_evaluation_mode
    def sample(self, noise: Tensor, solver: str, generator: torch.Generator) -> tuple[Tensor, float]:
        nfe, noise = fixed_nfe(solver), noise.to(self.device)
        if nfe is None:
            return self._adaptive(probability_flow(self.field), noise, END)
        return ancestral(self.field, noise, no_condition(noise), nfe, generator), float(nfe)


class ResidualModel(ImageModel):
    """A frozen flow on [0, 1], then Euler steps of a residual on ``grid``, which starts at 1; NFE counts both."""

    def __init__(self, base: FlowModel, residual: nn.Module, grid: list[float]) -> None:
        super().__init__()
        self.base = base
        self.residual = residual
        self.grid = grid

    @property
    def least_nfe(self) -> int:
        return len(self.grid)

    @in_evaluation_mode
    def sample(self, noise: Tensor, solver: str, generator: torch.Generator) -> tuple[Tensor, float]:
        nfe, steps, noise = fixed_nfe(solver), len(self.grid) - 1, noise.to(self.device)
        anchor, spent = self.base.sample(noise, solver if nfe is None else f"euler-{nfe - steps}", generator)
        residual = cast(Residual, self.residual)
        return solve_residual(residual, anchor, no_condition(noise), noise, self.grid), spent + steps
