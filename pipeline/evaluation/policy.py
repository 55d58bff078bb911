"""A flow-matching policy: velocity field, normalisers and solver in one call from observations to actions."""

import copy
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.flow.objective import reconstruct
from pipeline.nets.modes import in_evaluation_mode
from pipeline.ode.fixed_step import uniform_grid
from pipeline.tasks.normalizer import Normalizer
from pipeline.tasks.types import Observe
from pipeline.utils.errors import UserError
from pipeline.utils.precision import PrecisionSetting, autocast, native


class FlowPolicy(nn.Module):
    """Policy that samples action chunks by solving x' = v(t, x, c) from τ x0.

    c is the encoded, normalised observation history, x0 is standard normal noise and τ the temperature.

    Args:
        net: v(t (B,), x (B, horizon, A), c (B, n_obs_steps · D)).
        observe: the task's encoding of raw states.
        observation_normalizer, action_normalizer: fitted on training data; D and A components.
        n_obs_steps, horizon, n_action_steps: observations seen, actions predicted, actions executed.
        solver: one of ``pipeline.ode.fixed_step.SOLVERS``; a fine-tuned field needs the solver that it was tuned with.
        temperature: τ, at least 0. Below 1 samples vary less and lie nearer to the mode; 0 makes them deterministic.
    """

    def __init__(
        self,
        net: nn.Module,
        observe: Observe,
        observation_normalizer: Normalizer,
        action_normalizer: Normalizer,
        *,
        n_obs_steps: int,
        horizon: int,
        n_action_steps: int,
        solver: str = "euler",
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.net = net
        self.observe = observe
        self.observation_normalizer = observation_normalizer
        self.action_normalizer = action_normalizer
        self.n_obs_steps = n_obs_steps
        self.horizon = horizon
        self.n_action_steps = n_action_steps
        self.solver = solver
        self.temperature = temperature

    @property
    def action_dim(self) -> int:
        return len(self.action_normalizer.offset)

    @property
    def device(self) -> torch.device:
        return self.action_normalizer.offset.device

    def with_net(self, net: nn.Module) -> "FlowPolicy":
        """Replace the policy's net by ``net``, and move the policy to the device of ``net``."""
        self.net = net
        return self.to(next(net.parameters()).device)

    @in_evaluation_mode
    def condition(self, states: NDArray[np.floating]) -> Tensor:
        """Encode raw states (B, n_obs_steps, S) to a condition (B, n_obs_steps · D)."""
        observed = torch.from_numpy(self.observe(states)).to(self.device)
        return self.observation_normalizer.normalize(observed).flatten(1)

    @in_evaluation_mode
    def sample(self, condition: Tensor, noise: Tensor, nfe: int) -> Tensor:
        """Sample normalised actions (B, horizon, A) in ``nfe`` evaluations, from ``temperature`` · ``noise``.

        Args:
            condition: (B, C), or (B / K, C) if K successive noises share one. noise: shaped as the result.
        """
        return self._solve(condition, noise, nfe)

    def _solve(self, condition: Tensor, noise: Tensor, nfe: int) -> Tensor:
        start = self.temperature * noise
        return reconstruct(self.net, start, condition, uniform_grid(nfe, self.solver), self.solver)

    def noise_shape(self, nfe: int) -> tuple[int, ...]:
        """Shape of the noise for one plan of ``nfe`` evaluations."""
        del nfe
        return self.horizon, self.action_dim

    def in_precision(self, precision: PrecisionSetting = "auto") -> Self:
        """Return this policy for fp32, or for bf16 a copy with the field and its weights in bfloat16.

        bf16 is faster; all else stays in float32. Reported evaluations do not use it, because its rounding changes
        actions by about a hundredth of their range.

        Args:
            precision: bf16, fp32, or auto: bf16 if the policy's device has instructions for it, else fp32.
        """
        if (native(self.device.type) if precision == "auto" else precision) == "fp32":
            return self
        rounded = copy.deepcopy(self)
        rounded.net = _InBfloat16(self.net)
        return rounded

    def acting(self, nfe: int) -> "ActingPolicy":
        """Fix the number of evaluations and return the policy in the form that rollouts call.

        Raises:
            UserError: its solver cannot take exactly ``nfe`` evaluations.
        """
        try:
            uniform_grid(nfe, self.solver)
        except ValueError as error:
            raise UserError(str(error)) from None
        return ActingPolicy(self, nfe)


class _InBfloat16(nn.Module):
    """A field with a copy of the weights in bfloat16; its inputs and outputs are float32."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).to(torch.bfloat16)
        self.broadcasts = getattr(net, "broadcasts", False)

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        with autocast(x.device.type, "bf16"):
            return self.net(t, x, condition).to(x.dtype)


class ActingPolicy:
    """A ``FlowPolicy`` with its number of function evaluations fixed: numpy in, numpy out."""

    def __init__(self, policy: FlowPolicy, nfe: int) -> None:
        self.policy = policy
        self.nfe = nfe
        self.n_obs_steps = policy.n_obs_steps
        self.horizon = policy.horizon
        self.n_action_steps = policy.n_action_steps
        self.noise_shape = policy.noise_shape(nfe)

    @torch.inference_mode()
    def act(self, observations: NDArray[np.floating], noise: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raw states (B, n_obs_steps, S), noise (B, *noise_shape) → actions (B, horizon, A)."""
        condition = self.policy.condition(observations)
        actions = self.policy.sample(condition, torch.from_numpy(noise).to(self.policy.device), self.nfe)
        return self.policy.action_normalizer.denormalize(actions).cpu().numpy()
