"""A flow-matching policy: velocity field, normalisers and solver behind one call from observations to actions."""

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
    """Action chunks by solving x' = v(t, x, c) from τ x0, c being the encoded, normalised observation history.

    x0 is standard normal noise and τ the temperature.

    Args:
        net: v(t (B,), x (B, horizon, A), c (B, n_obs_steps · D)).
        observe: the task's encoding of raw states.
        observation_normalizer, action_normalizer: fitted on training data; D and A components.
        n_obs_steps, horizon, n_action_steps: observations seen, actions predicted, actions executed.
        solver: one of ``pipeline.ode.fixed_step.SOLVERS``; a fine-tuned field is good for the solver it was tuned with.
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
        """This policy with ``net`` in place of its own, and all of it moved to where ``net`` is."""
        self.net = net
        return self.to(next(net.parameters()).device)

    @in_evaluation_mode
    def condition(self, states: NDArray[np.floating]) -> Tensor:
        """Raw states (B, n_obs_steps, S) → condition (B, n_obs_steps · D)."""
        observed = torch.from_numpy(self.observe(states)).to(self.device)
        return self.observation_normalizer.normalize(observed).flatten(1)

    @in_evaluation_mode
    def sample(self, condition: Tensor, noise: Tensor, nfe: int) -> Tensor:
        """Normalised actions (B, horizon, A) by ``nfe`` evaluations from ``temperature`` · ``noise``, of that shape.

        condition: (B, C), or (B / K, C) where K successive noises share one.
        """
        return self._solve(condition, noise, nfe)

    def _solve(self, condition: Tensor, noise: Tensor, nfe: int) -> Tensor:
        start = self.temperature * noise
        return reconstruct(self.net, start, condition, uniform_grid(nfe, self.solver), self.solver)

    def noise_shape(self, nfe: int) -> tuple[int, ...]:
        """Shape of the noise that a plan of ``nfe`` evaluations starts from."""
        del nfe
        return self.horizon, self.action_dim

    def in_precision(self, precision: PrecisionSetting = "auto") -> Self:
        """This policy, or for bf16 a copy that evaluates its field in bfloat16, weights kept in it.

        For speed; all else stays in float32. Reported evaluations do not use it, since actions change by rounding,
        about a hundredth of their range.

        Args:
            precision: bf16, fp32, or auto: bf16 where the policy's device has instructions for it, else fp32.
        """
        if (native(self.device.type) if precision == "auto" else precision) == "fp32":
            return self
        rounded = copy.deepcopy(self)
        rounded.net = _InBfloat16(self.net)
        return rounded

    def acting(self, nfe: int) -> "ActingPolicy":
        """This policy at ``nfe`` evaluations, as rollouts call it.

        Raises:
            UserError: its solver cannot spend exactly so many.
        """
        try:
            uniform_grid(nfe, self.solver)
        except ValueError as error:
            raise UserError(str(error)) from None
        return ActingPolicy(self, nfe)


class _InBfloat16(nn.Module):
    """A field whose weights are a copy in bfloat16; float32 in and out."""

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
