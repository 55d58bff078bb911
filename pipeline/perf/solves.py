"""Time solves of a net's ODE against peers: actions from noise, and gradients through an adaptive solve."""

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from numpy.typing import NDArray
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

from pipeline.evaluation.policy import FlowPolicy
from pipeline.nets.registry import build_net
from pipeline.ode.gradient import replay_dopri5
from pipeline.perf.comparison import Comparison, DiffersError, Floor, in_turns, median_seconds, nearly_equal
from pipeline.perf.updates import ACTION_DIM, CONDITION_DIM, HORIZON, UNET1D
from pipeline.settings.blocks import Unet1dSettings
from pipeline.tasks.normalizer import Normalizer
from pipeline.training.checkpoint import load_policy
from pipeline.utils.precision import native

NFE = 16
CHECKPOINT = Path("data/checkpoints/lab/pusht/fm-nfe1.safetensors")


SAMPLED = ((1, UNET1D, 15), (500, UNET1D.model_copy(update={"channels": [64, 128, 256]}), 3))
"""Batch size, net and turns: one robot with the paper's policy net, 500 episodes with a smaller net."""


def sampling_comparisons(sampled: Sequence[tuple[int, Unet1dSettings, int]] = SAMPLED) -> Iterator[Comparison]:
    """Yield the comparisons of sampling, from observations to actions."""
    peers = {"diffusers' scheduler in a pipeline's loop": _by_scheduler, "torchdiffeq odeint": _by_odeint}
    for size, settings, count in sampled:
        torch.manual_seed(0)
        policy = policy_of(build_net(settings, HORIZON, ACTION_DIM, CONDITION_DIM))
        generator = np.random.default_rng(size)
        observations = generator.standard_normal((size, 2, CONDITION_DIM // 2), dtype=np.float32)
        noise = generator.standard_normal((size, HORIZON, ACTION_DIM), dtype=np.float32)
        precisions = {"float32": (policy, 1e-4)}  # with tolerance
        if native(policy.device.type) == "bf16":  # on other machines bf16 takes minutes and is of no use
            precisions["bfloat16"] = (policy.in_precision("bf16"), 3e-2)
        for (precision, (used, tolerance)), (peer, sample) in product(precisions.items(), peers.items()):
            ours = partial(used.acting(NFE).act, observations, noise)
            theirs = partial(sample, policy, observations, noise)
            floor = Floor(
                f"{NFE} × the net in {precision}, and nothing else",
                partial(_evaluations_s, used, policy.condition(observations), torch.from_numpy(noise)),
            )
            yield Comparison(
                f"sampling in {precision}, {NFE} Euler steps, ConditionalUnet1D {settings.channels}, {size} at once",
                peer,
                0.6,
                lambda ours=ours, theirs=theirs, tolerance=tolerance: nearly_equal(  # type: ignore[misc]
                    ours(), theirs(), tolerance, "actions"
                ),
                in_turns(ours, theirs),
                count,
                floor=floor,
            )


@torch.inference_mode()
def _evaluations_s(policy: FlowPolicy, condition: Tensor, x: Tensor) -> float:
    t = torch.rand(len(x))
    return NFE * median_seconds(lambda: policy.net(t, x, condition), NFE)


def policy_of(net: nn.Module) -> FlowPolicy:
    """Make a policy from ``net`` with two observations and without normalisation."""
    return FlowPolicy(
        net,
        np.asarray,
        Normalizer(CONDITION_DIM // 2),
        Normalizer(ACTION_DIM),
        n_obs_steps=2,
        horizon=HORIZON,
        n_action_steps=8,
    ).eval()


@torch.no_grad()
def _by_scheduler(policy: FlowPolicy, observations: NDArray[np.float32], noise: NDArray[np.float32]) -> object:
    """Sample as a pipeline of diffusers does: time runs from 1 (noise) to 0, and the net predicts noise minus data."""
    condition, x = policy.condition(observations), torch.from_numpy(noise)
    scheduler: Any = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / NFE, NFE).tolist())
    for timestep in scheduler.timesteps:
        t = 1 - timestep / scheduler.config["num_train_timesteps"]
        x = scheduler.step(-policy.net(t.expand(len(x)), x, condition), timestep, x).prev_sample
    return policy.action_normalizer.denormalize(x).numpy()


@torch.no_grad()
def _by_odeint(policy: FlowPolicy, observations: NDArray[np.float32], noise: NDArray[np.float32]) -> object:
    condition = policy.condition(observations)
    made = odeint(
        lambda t, x: policy.net(t.expand(len(x)), x, condition),
        torch.from_numpy(noise),
        torch.linspace(0, 1, NFE + 1),
        method="euler",
    )[-1]
    return policy.action_normalizer.denormalize(made).numpy()


def adaptive_comparisons(batch_size: int = 64, tolerance: float = 1e-3) -> Iterator[Comparison]:
    """Yield the comparison of gradients of the reconstruction loss through dopri5, for lab's shipped Push-T net.

    Ours has a tenth of the peer's ``tolerance``: at equal tolerances, neither gradient has always the smaller error.
    With a lower tolerance the adjoint takes minutes per update.
    """
    policy = load_policy(CHECKPOINT)[0]
    generator = torch.Generator().manual_seed(0)
    x0, x1 = (torch.randn(batch_size, HORIZON, ACTION_DIM, generator=generator) for _ in range(2))
    condition_dim = policy.n_obs_steps * len(policy.observation_normalizer.offset)
    condition = 2 * torch.rand(batch_size, condition_dim, generator=generator) - 1
    work = _AdaptiveGradient(policy.net, x0, x1, condition, tolerance)
    yield Comparison(
        f"MLE gradient through dopri5, tolerance {tolerance / 10:.0e}, lab's Push-T net, batch {batch_size}",
        f"torchdiffeq odeint_adjoint, tolerance {tolerance:.0e}",
        0.5,
        work.same,
        in_turns(work.ours, work.theirs),
        5,
    )


class _AdaptiveGradient:
    """Gradient of mean ‖φ(x0, c) − x1‖² with respect to the weights; φ is the adaptive solve."""

    def __init__(self, net: nn.Module, x0: Tensor, x1: Tensor, condition: Tensor, tolerance: float) -> None:
        self.net = net
        self.x0 = x0
        self.x1 = x1
        self.condition = condition
        self.tolerance = tolerance

    def ours(self) -> Tensor:
        """Compute the gradient by repeating the accepted steps with gradient."""
        field = lambda t, x: self.net(x.new_full((len(x),), t), x, self.condition)  # noqa: E731
        end = replay_dopri5(field, self.x0, rtol=self.tolerance / 10, atol=self.tolerance / 10).end
        return self._gradient(end)

    def theirs(self) -> Tensor:
        """Compute the gradient by solving the adjoint equation backwards."""
        end = odeint_adjoint(
            lambda t, x: self.net(t.expand(len(x)).to(x.dtype), x, self.condition),
            self.x0,
            torch.tensor([0.0, 1.0]),
            method="dopri5",
            rtol=self.tolerance,
            atol=self.tolerance,
            adjoint_params=tuple(self.net.parameters()),
        )[-1]
        return self._gradient(end)

    def same(self) -> str:
        """Compare both with the gradient of a much finer solve in float64."""
        x0, x1, condition = (x.double() for x in (self.x0, self.x1, self.condition))
        reference = _AdaptiveGradient(copy.deepcopy(self.net).double(), x0, x1, condition, 1e-6).ours()
        ours, theirs = (float((g.double() - reference).norm() / reference.norm()) for g in (self.ours(), self.theirs()))
        if ours > theirs:
            raise DiffersError(f"gradient: error {ours:.1e}, and only {theirs:.1e} of the peer's")
        return f"gradient: error {ours:.1e}, the peer's {theirs:.1e}"

    def _gradient(self, end: Tensor) -> Tensor:
        loss = (end - self.x1).square().mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(self.net.parameters()))])
