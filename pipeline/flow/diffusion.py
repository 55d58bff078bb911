"""The diffusion baseline: DDPM (Ho et al. 2020) on diffusers' scheduler, and the probability-flow ODE of its limit.

A net here predicts noise, ε_θ(t, x, c), and is called like a velocity field. The scheduler counts k = 0 … 999 from data
to noise. The net is called at t = 1 − (k + 1)/1000, which is 0 at k = 999 and 0.999 at k = 0. With linear β_k from 1e-4
to 0.02 the chain is the Euler-Maruyama discretisation, with s = 1 − t, of the variance-preserving diffusion of rate
β(s) = 0.1 + 19.9 s (Song et al. 2021, appendix B): ᾱ_k and exp(−∫_0^s β) differ by less than 0.001.
"""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.flow.objective import VelocityField
from pipeline.flow.path import variance_preserving
from pipeline.nets.sharing import in_solve

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

TRAINING_STEPS = 1000
"""Noise levels of the chain, K."""

END = 1 - 1 / TRAINING_STEPS
"""End time of a solve of ``probability_flow``: the least noise that the net was trained on, of deviation 0.01."""


def make_scheduler(*, clip: bool = True) -> "DDPMScheduler":
    """Make a scheduler with linear β from 1e-4 to 0.02 in 1000 steps that expects noise prediction.

    The values are of Ho et al. (2020, section 4). Reverse steps add noise of the posterior's variance β̃_k
    (``fixed_small``). The other choice of Ho et al., β_k, is better at 1000 steps but fails at few (Song, Meng & Ermon
    2021, table 1: FID of CIFAR-10 3.2 against 4.7 at 1000 steps, 367 against 41 at 10). With β_k diffusers also leaves
    noise in the result if the last k is not 0.

    Args:
        clip: whether each step's estimate of the data is clipped to [-1, 1], as Ho et al. do with images.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler  # here: it takes seconds; other paths do not need it

    return DDPMScheduler(
        num_train_timesteps=TRAINING_STEPS,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        variance_type="fixed_small",
        prediction_type="epsilon",
        clip_sample=clip,
    )


_training_scheduler = cache(make_scheduler)  # can be shared: adding noise changes only the device of its table


def noise_prediction_loss(
    net: VelocityField,
    x0: Tensor,
    x1: Tensor,
    condition: Tensor,
    k: Tensor,
    scheduler: "DDPMScheduler | None" = None,
) -> Tensor:
    """Compute E‖ε_θ(x_k) − x0‖² with x_k = √ᾱ_k x1 + √(1 − ᾱ_k) x0, averaged over batch and components.

    This is L_simple of Ho et al. (2020, eq. 14).

    Args:
        net: ε_θ(t, x, c). x0: standard normal noise, x1: data, (B, …) each. condition: (B, C).
        k: noise levels, (B,) integers in 0 … K − 1.
        scheduler: defines the K levels; None: the 1000 of ``make_scheduler``.
    """
    scheduler = _training_scheduler() if scheduler is None else scheduler
    noisy = scheduler.add_noise(x1, x0, k)  # type: ignore[arg-type]  # annotated as IntTensor
    return (net(1 - (k + 1).to(x1.dtype) / len(scheduler), noisy, condition) - x0).square().mean()


def timesteps(steps: int, levels: int = TRAINING_STEPS) -> list[int]:
    """List the k of a chain of ``steps``, evenly spaced from the noisiest down ("trailing"; Lin et al. 2024, table 2).

    The first step has to be at the noisiest level, because the chain starts from pure noise. The usual "leading"
    spacing would tell the net that there is less noise (of 1000 levels k = 875 in 8 steps, k = 0 in a single one).
    diffusers' own trailing spacing adds a timestep −1 by rounding at 62 numbers of steps, the first of them 61.

    Raises:
        ValueError: ``steps`` is not within 1 … ``levels``.
    """
    if not 1 <= steps <= levels:
        raise ValueError(f"steps: given {steps}, allowed: 1 to {levels}")
    return [round(levels * left / steps) - 1 for left in range(steps, 0, -1)]


@torch.no_grad()
def ancestral(
    net: VelocityField,
    noise: Tensor,
    condition: Tensor,
    steps: int,
    generator: torch.Generator | Sequence[torch.Generator],
    *,
    clip: bool = True,
) -> Tensor:
    """Sample by the reverse chain (Ho et al. 2020, algorithm 2); evaluates the net ``steps`` times.

    Args:
        net: ε_θ(t, x, c). noise: standard normal, (B, …). condition: (B, C).
        steps: length of the chain, see ``timesteps``.
        generator: on the CPU, where each step's noise is drawn for any device. One for the whole batch, or one for each
            row: then a sample depends only on its own generator, not on the batch.
        clip: see ``make_scheduler``.

    Returns:
        Samples shaped as ``noise``.

    Raises:
        ValueError: ``steps`` is not within 1 … 1000, or several generators are given but not one for each row.
    """
    if not isinstance(generator, torch.Generator) and len(generator) != len(noise):
        raise ValueError(f"generators: given {len(generator)}, allowed: one, or one for each of {len(noise)} rows")
    scheduler = make_scheduler(clip=clip)
    scheduler.set_timesteps(timesteps=timesteps(steps))
    chance = generator if isinstance(generator, torch.Generator) else list(generator)
    x, predicted = noise, in_solve(net, condition, len(noise))
    for k in scheduler.timesteps.tolist():
        prediction = predicted(1 - (k + 1) / TRAINING_STEPS, x).to(x.dtype)
        x = scheduler.step(prediction, k, x, generator=chance, return_dict=False)[0]  # type: ignore[arg-type]
    return x


def probability_flow(net: VelocityField) -> VelocityField:
    """Make the velocity field of the probability-flow ODE, from t = 0 to ``END`` (Song et al. 2021, eq. 13).

    v = ½ β (x − ε_θ/σ), since the score is −ε_θ/σ. If the noise prediction is exact, v is the marginal field of the
    path ``vp``. At ``END`` samples keep noise of deviation 0.01.

    Args:
        net: ε_θ(t, x, c).
    """
    return _ProbabilityFlow(net)


class _ProbabilityFlow:
    """The field that ``probability_flow`` makes; see there."""

    def __init__(self, net: VelocityField) -> None:
        self.net = net
        self.path = variance_preserving()
        self.broadcasts = getattr(net, "broadcasts", False)

    def __call__(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        time = t.view(-1, *[1] * (x.dim() - 1))
        half_beta = self.path.alpha_rate(time) / self.path.alpha(time)
        return half_beta * (x - self.net(t, x, condition) / self.path.sigma(time))
