"""A policy whose solve goes on beyond the base model's, on [1, end], with a residual field."""

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
    """x(end) from x(1) = ``anchor`` by Euler steps on ``grid``, differentiable; see ``PersidskiiResidual.begin``."""
    return solve(residual.begin(anchor, condition, noise), anchor, grid)


class ResidualPolicy(FlowPolicy):
    """``base`` at its number of evaluations, then the residual's; a solve's NFE is the sum of both.

    Args:
        base: the frozen policy; its net, normalisers and horizons become this one's.
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
        """As ``FlowPolicy.sample``: ``nfe`` − ``steps`` evaluations of the base's field, then ``steps``."""
        anchor = self.anchor(condition, noise, nfe)
        return solve_residual(self.residual, anchor, condition, noise, self.grid)

    @in_evaluation_mode
    def anchor(self, condition: Tensor, noise: Tensor, nfe: int) -> Tensor:
        """x(1), where the residual's solve begins; shaped as the noise."""
        return self._solve(condition, noise, nfe - self.steps)

    def acting(self, nfe: int) -> ActingPolicy:
        """As ``FlowPolicy.acting``.

        Raises:
            UserError: nothing is left for the base model.
        """
        if nfe <= self.steps:
            raise UserError(f"--nfe: given {nfe}, allowed: more than the {self.steps} evaluations of the residual")
        super().acting(nfe - self.steps)  # its solver may not be able to spend so many
        return ActingPolicy(self, nfe)
