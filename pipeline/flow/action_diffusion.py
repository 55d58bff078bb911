"""Diffusion of action chunks as in Diffusion Policy (Chi et al. 2023): DDPM and DDIM on diffusers' schedulers.

A net predicts noise, ε_θ(t, x, c), as in ``pipeline.flow.diffusion``. Here there are K = 100 noise levels by default,
k = 0 … K − 1 from data to noise. The net is called at t = 1 − (k + 1)/K, which is 0 at pure noise.

A sampler of N steps visits N of the levels, evenly spaced from the noisiest downwards (``timesteps``). The spacing of
Diffusion Policy ("leading") starts 16 steps at k = 90. The net was trained there on data scaled by 1/7, but the start
is pure noise. At k = 99 the scale is 1/2000, and the first estimate of the data is hardly more than the net's error,
clipped to [-1, 1]. The second level weighs that estimate by its own scale of the data, 9 % at 16 steps. A single step
returns the estimate itself, so such a model is of no use at NFE 1.

All randomness is an argument: a sample depends only on its own noise, not on the batch.
"""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from torch import Tensor

from pipeline.flow.diffusion import timesteps
from pipeline.flow.objective import VelocityField
from pipeline.nets.sharing import in_solve

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

LEVELS = 100
"""Noise levels that Diffusion Policy trains on, K."""


def make_scheduler(levels: int = LEVELS) -> "DDPMScheduler":
    """Make a scheduler with squared-cosine ᾱ_k (Nichol & Dhariwal 2021, eq. 17) that expects noise prediction.

    It clips data to [-1, 1], the range of actions after ``Normalizer``. Reverse steps have the posterior's variance.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler  # here: it takes seconds, and flows do not need it

    return DDPMScheduler(
        num_train_timesteps=levels,
        beta_schedule="squaredcos_cap_v2",
        variance_type="fixed_small",
        prediction_type="epsilon",
        clip_sample=True,
    )


def ddim(net: VelocityField, noise: Tensor, condition: Tensor, steps: int, levels: int = LEVELS) -> Tensor:
    """Sample by DDIM with η = 0 (Song, Meng & Ermon 2021, eq. 12); evaluates the net ``steps`` times.

    Args:
        net: ε_θ(t, x, c). noise: standard normal, (B, …). condition: (B, C).
        levels: number of noise levels that the net was trained on.

    Returns:
        Samples shaped as ``noise``.

    Raises:
        ValueError: ``steps`` is not within 1 … ``levels``.
    """
    return _reverse(net, noise, condition, steps, levels, added=())


def ddpm(net: VelocityField, noises: Tensor, condition: Tensor, levels: int = LEVELS) -> Tensor:
    """Sample by the reverse chain of DDPM (Ho et al. 2020, algorithm 2); evaluates the net N times.

    Args:
        net: ε_θ(t, x, c). condition: (B, C).
        noises: standard normal, (B, N, …): the start, then the noise added after each step but the last.
        levels: number of noise levels that the net was trained on.

    Returns:
        Samples (B, …).

    Raises:
        ValueError: N is not within 1 … ``levels``.
    """
    start, *added = noises.unbind(1)
    return _reverse(net, start, condition, noises.shape[1], levels, added)


def _reverse(
    net: VelocityField, x: Tensor, condition: Tensor, steps: int, levels: int, added: Sequence[Tensor]
) -> Tensor:
    """Run the reverse chain from noise to data; it is deterministic if ``added`` is empty.

    diffusers' DDPM draws its noise itself, but its DDIM accepts noise. With η = 1 and ε taken from the clipped
    estimate of the data, a DDIM step is a DDPM step (Song et al., section 4.1). The last step leaves no noise.
    """
    visited = timesteps(steps, levels)
    scheduler, predicted = _sampling_scheduler(steps, levels), in_solve(net, condition, len(x))
    for i, k in enumerate(visited):
        fresh = added[i] if i < len(added) else None
        prediction = predicted(1 - (k + 1) / levels, x).to(x.dtype)
        x = scheduler.step(
            prediction,
            steps - 1 - i,
            x,
            eta=0.0 if fresh is None else 1.0,
            use_clipped_model_output=fresh is not None,
            variance_noise=fresh,
            return_dict=False,
        )[0]
    return x


@cache
def _sampling_scheduler(steps: int, levels: int) -> "DDIMScheduler":
    """Make a scheduler that has only the visited levels, counted from 0 at the least noisy.

    diffusers' DDIM always steps down by ⌊K/N⌋ levels, whichever are visited: with 16 of 100 it would lower the noise to
    level k − 6 and then call the net at k − 7. In this shorter chain each step ends where the next one begins.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    scheduler = DDIMScheduler(
        num_train_timesteps=steps, prediction_type="epsilon", clip_sample=True, set_alpha_to_one=True, steps_offset=0
    )
    scheduler.alphas_cumprod = make_scheduler(levels).alphas_cumprod[timesteps(steps, levels)[::-1]]
    scheduler.set_timesteps(steps)
    return scheduler
