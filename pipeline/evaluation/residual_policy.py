"""A policy whose solve continues after the base model's, on [1, end], with a residual field."""

from collections.abc import Sequence

from torch import Tensor

from pipeline.evaluation.policy import ActingPolicy, FlowPolicy
from pipeline.nets.modes import in_evaluation_mode
from pipeline.nets.residual import Residual
from pipeline.ode.fixed_step import solve
from pipeline.utils.errors import UserError


def solve_residual(
    residual: Residual, anchor: Tensor, condition: Tensor, noise: Tensor, grid: Sequence[float]
) -> Tensor:
    """Solve x(end) from x(1) = ``anchor`` by Euler steps on ``grid``, differentiably.

    For the arguments see ``PersidskiiResidual.begin``.
    """
    return solve(residual.begin(anchor, condition, noise), anchor, grid)


class ResidualPolicy(FlowPolicy):
    """Policy that solves the field of ``base`` and then the residual; a solve's NFE is the sum of both.

    Args:
        base: the frozen policy; provides the net, the normalisers, the horizons, the solver and the temperature.
        residual: see ``pipeline.nets.residual``. grid: the times of its Euler steps, from 1 on.
    """

    def __init__(self, base: FlowPolicy, residual: Residual, grid: Sequence[float]) -> None:
        super().__init__(
            base.net,
            base.observe,
            base.observation_normalizer,
            base.action_normalizer,
            n_obs_steps=base.n_obs_steps,
            horizon=base.horizon,
            n_action_steps=base.n_action_steps,
            solver=base.solver,
            temperature=base.temperature,
        )
        self.residual: Residual = residual
        self.grid = list(grid)

    @property
    def steps(self) -> int:
        """Evaluations of the residual field."""
        return len(self.grid) - 1

    @in_evaluation_mode
    def sample(self, condition: Tensor, noise: Tensor, nfe: int) -> Tensor:
        """Sample as ``FlowPolicy.sample`` does: ``nfe`` − ``steps`` evaluations of the base field, then ``steps``."""
        anchor = self.anchor(condition, noise, nfe)
        return solve_residual(self.residual, anchor, condition, noise, self.grid)

    @in_evaluation_mode
    def anchor(self, condition: Tensor, noise: Tensor, nfe: int) -> Tensor:
        """Sample x(1), the start of the residual's solve; shaped as the noise."""
        return self._solve(condition, noise, nfe - self.steps)

    def acting(self, nfe: int) -> ActingPolicy:
        """Fix the number of evaluations, as ``FlowPolicy.acting`` does.

        Raises:
            UserError: ``nfe`` leaves no evaluation for the base model, or a number that its solver cannot take.
        """
        if nfe <= self.steps:
            raise UserError(f"--nfe: given {nfe}, allowed: more than the {self.steps} evaluations of the residual")
        super().acting(nfe - self.steps)  # raises if the base's solver cannot take so many
        return ActingPolicy(self, nfe)
