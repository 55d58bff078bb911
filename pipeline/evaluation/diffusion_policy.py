"""A policy whose net predicts noise, sampled by DDPM or DDIM."""

from typing import Literal

from torch import Tensor

from pipeline.evaluation.policy import ActingPolicy, FlowPolicy
from pipeline.flow.action_diffusion import LEVELS, ddim, ddpm
from pipeline.nets.modes import in_evaluation_mode
from pipeline.utils.errors import UserError

Sampler = Literal["ddpm", "ddim"]


class DiffusionPolicy(FlowPolicy):
    """Action chunks by the reverse chain of a diffusion; one net serves both samplers.

    Args:
        base: its net, taken as ε_θ(t, x, c), its normalisers and horizons become this one's.
        sampler: ``ddpm`` adds noise after every step but the last, ``ddim`` none.
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
        """As ``FlowPolicy.noise_shape``; one noise for each step of DDPM: (nfe, horizon, A)."""
        one = super().noise_shape(nfe)
        return (nfe, *one) if self.sampler == "ddpm" else one

    @in_evaluation_mode
    def sample(self, condition: Tensor, noise: Tensor, nfe: int) -> Tensor:
        """Normalised actions (B, horizon, A) from ``noise`` (B, *noise_shape(nfe))."""
        if self.sampler == "ddpm":
            return ddpm(self.net, noise, condition, self.levels)
        return ddim(self.net, noise, condition, nfe, self.levels)

    def acting(self, nfe: int) -> ActingPolicy:
        """As ``FlowPolicy.acting``.

        Raises:
            UserError: there are fewer noise levels than steps.
        """
        if not 1 <= nfe <= self.levels:
            raise UserError(f"--nfe: given {nfe}, allowed for {self.sampler}: 1 to {self.levels}, the noise levels")
        return ActingPolicy(self, nfe)
