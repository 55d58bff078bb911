"""A diffusion policy: its net predicts noise, and DDPM or DDIM samples from it."""

from typing import Literal

from torch import Tensor

from pipeline.evaluation.policy import ActingPolicy, FlowPolicy
from pipeline.flow.action_diffusion import LEVELS, ddim, ddpm
from pipeline.nets.modes import in_evaluation_mode
from pipeline.utils.errors import UserError

Sampler = Literal["ddpm", "ddim"]


class DiffusionPolicy(FlowPolicy):
    """Policy that samples action chunks by the reverse chain of a diffusion; one net serves both samplers.

    Args:
        base: provides the net, used as ε_θ(t, x, c), the normalisers and the horizons.
        sampler: ``ddpm`` adds noise after every step but the last; ``ddim`` adds none.
        levels: noise levels that the net was trained on.
    """

    def __init__(self, base: FlowPolicy, sampler: Sampler, levels: int = LEVELS) -> None:
        super().__init__(
            base.net,
            base.observe,
            base.observation_normalizer,
            base.action_normalizer,
            n_obs_steps=base.n_obs_steps,
            horizon=base.horizon,
            n_action_steps=base.n_action_steps,
        )
        self.sampler: Sampler = sampler
        self.levels = levels

    def noise_shape(self, nfe: int) -> tuple[int, ...]:
        """Shape of a plan's noise as in ``FlowPolicy``; DDPM takes one for each step: (nfe, horizon, A)."""
        one = super().noise_shape(nfe)
        return (nfe, *one) if self.sampler == "ddpm" else one

    @in_evaluation_mode
    def sample(self, condition: Tensor, noise: Tensor, nfe: int) -> Tensor:
        """Sample normalised actions (B, horizon, A) from ``noise`` (B, *noise_shape(nfe))."""
        if self.sampler == "ddpm":
            return ddpm(self.net, noise, condition, self.levels)
        return ddim(self.net, noise, condition, nfe, self.levels)

    def acting(self, nfe: int) -> ActingPolicy:
        """Fix the number of evaluations, as ``FlowPolicy.acting`` does.

        Raises:
            UserError: ``nfe`` is not within 1 … number of noise levels.
        """
        if not 1 <= nfe <= self.levels:
            raise UserError(f"--nfe: given {nfe}, allowed for {self.sampler}: 1 to {self.levels}, the noise levels")
        return ActingPolicy(self, nfe)
