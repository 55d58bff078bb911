"""Diffusion of action chunks as in Diffusion Policy (Chi et al. 2023): DDPM and DDIM on diffusers' schedulers.

A net predicts noise, ε_θ(t, x, c), as in ``pipeline.flow.diffusion``; here there are K = 100 noise levels unless said
otherwise, k = 0 … K − 1 from data to noise, and the net is asked at t = 1 − (k + 1)/K, which is 0 at pure noise.

Samplers visit some of the levels: as many as they take steps, evenly spaced from the noisiest downwards
(``timesteps``). The spacing of Diffusion Policy ("leading") starts 16 steps at k = 90, where the net was taught that
data are left with a seventh of their amplitude, while the start has nothing of them. At k = 99 it is 1/2000: there the
first estimate of the data is hardly more than the net's error, clipped to [-1, 1]; it counts by what the second level
keeps of the data, 9 % at 16 steps. A single step returns that estimate, so at NFE 1 such a model is of no use.

All randomness is an argument: a sample depends on its own noise alone, however samples are batched.
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
    """Squared-cosine ᾱ_k (Nichol & Dhariwal 2021, eq. 17), noise prediction, data clipped to [-1, 1].

    That is where ``Normalizer`` puts the actions trained on. The variance of reverse steps is the posterior's.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler  # seconds that flows need not spend

    return DDPMScheduler(
        num_train_timesteps=levels,
        beta_schedule="squaredcos_cap_v2",
        variance_type="fixed_small",
        prediction_type="epsilon",
        clip_sample=True,
    )


def ddim(net: VelocityField, noise: Tensor, condition: Tensor, steps: int, levels: int = LEVELS) -> Tensor:
    """Samples by DDIM with η = 0 (Song, Meng & Ermon 2021, eq. 12), which evaluates the net ``steps`` times.

    Args:
        net: ε_θ(t, x, c). noise: standard normal, (B, …). condition: (B, C).
        levels: how many the net was trained on.

    Returns:
        Samples shaped as ``noise``.

    Raises:
        ValueError: ``steps`` is not within 1 … ``levels``.
    """
    return _reverse(net, noise, condition, steps, levels, added=())


def ddpm(net: VelocityField, noises: Tensor, condition: Tensor, levels: int = LEVELS) -> Tensor:
    """Samples by the reverse chain of DDPM (Ho et al. 2020, algorithm 2), which evaluates the net N times.

    Args:
        net: ε_θ(t, x, c). condition: (B, C).
        noises: standard normal, (B, N, …): the start, and what is added after each step but the last.
        levels: how many the net was trained on.

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
    """From noise to data; deterministic without noises to be ``added``.

    diffusers' DDPM draws its noise itself; its DDIM can be given noise, and with η = 1 and ε taken from the clipped
    estimate of the data its step is DDPM's (Song et al., section 4.1). The last step leaves no noise.
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
    """The chain of the visited levels alone, which it counts from 0 at the least noisy.

    diffusers' DDIM always steps down by ⌊K/N⌋ levels, whichever are visited: at 16 of 100 it would lower the noise to
    k − 6 and then ask the net at k − 7. In a chain of its own each step ends where the next one begins.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    scheduler = DDIMScheduler(
        num_train_timesteps=steps, prediction_type="epsilon", clip_sample=True, set_alpha_to_one=True, steps_offset=0
    )
    scheduler.alphas_cumprod = make_scheduler(levels).alphas_cumprod[timesteps(steps, levels)[::-1]]
    scheduler.set_timesteps(steps)
    return scheduler
