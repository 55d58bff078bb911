"""Diffusion of actions against diffusers' own loops and closed forms for Gaussian data."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pipeline.flow.action_diffusion import LEVELS, ddim, ddpm, make_scheduler
from pipeline.flow.diffusion import noise_prediction_loss, timesteps

MEAN, DEVIATION = 0.2, 0.15
SHAPE = (3, 2)
CHAIN = make_scheduler().alphas_cumprod.double()
"""ᾱ_k."""


class ExactNoise:
    """ε(t, x) = σ (x − α m)/(α² s² + σ²) for data N(m, s²); so narrow that nothing is clipped."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        assert t.shape == (len(x),) and len(condition) == len(x)
        self.times.append(t[0].item())
        kept = CHAIN[((1 - t.double()) * LEVELS).round().long() - 1].view(-1, 1, 1)
        return (1 - kept).sqrt() * (x - kept.sqrt() * MEAN) / (kept * DEVIATION**2 + 1 - kept)


def some_noise(t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
    """A nonlinear prediction that depends on every argument and is often clipped."""
    return torch.tanh(x + condition[:, :1, None]) + t[:, None, None] * x.flip(1)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_schedule_is_the_squared_cosine_and_ends_in_noise() -> None:
    angle = ((torch.arange(LEVELS + 1, dtype=torch.float64) / LEVELS + 0.008) / 1.008) * math.pi / 2
    cosine = angle.cos().square()
    torch.testing.assert_close(CHAIN[:-1], (cosine / cosine[0])[1:-1], rtol=1e-3, atol=1e-6)
    assert CHAIN[-1].sqrt().item() == pytest.approx(0.0005, rel=0.02)


def test_loss_is_the_mean_squared_error_of_the_noise_at_its_level() -> None:
    x0, x1, condition, k = drawn(4, *SHAPE), drawn(4, *SHAPE, seed=1), drawn(4, 5, seed=2), torch.tensor([0, 9, 50, 99])
    asked = []

    def net(t: Tensor, x: Tensor, c: Tensor) -> Tensor:
        asked.append((t, x, c))
        return x0 + 0.5

    assert noise_prediction_loss(net, x0, x1, condition, k, make_scheduler()).item() == pytest.approx(0.25)
    ((t, x, c),) = asked
    kept = CHAIN[k].view(-1, 1, 1)
    torch.testing.assert_close(t, torch.tensor([0.99, 0.9, 0.49, 0.0], dtype=torch.float64))
    torch.testing.assert_close(x, kept.sqrt() * x1 + (1 - kept).sqrt() * x0, rtol=1e-6, atol=1e-6)
    assert c is condition


@pytest.mark.parametrize("steps", [1, 2, 16, 100])
def test_ddpm_takes_the_steps_of_diffusers(steps: int) -> None:
    start, condition = drawn(8, *SHAPE).float(), drawn(8, 4, seed=1).float()
    scheduler = make_scheduler()
    scheduler.set_timesteps(timesteps=timesteps(steps, LEVELS))
    generator, x = torch.Generator().manual_seed(5), start
    for k in scheduler.timesteps:
        prediction = some_noise(x.new_full((8,), 1 - (k + 1) / LEVELS), x, condition)
        x = scheduler.step(prediction, k, x, generator=generator).prev_sample

    again = torch.Generator().manual_seed(5)
    noises = torch.stack([start, *[torch.randn(8, *SHAPE, generator=again) for _ in range(steps - 1)]], dim=1)
    torch.testing.assert_close(ddpm(some_noise, noises, condition), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 20, 100])
def test_ddim_takes_the_steps_of_diffusers_where_those_are_even(steps: int) -> None:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    start, condition = drawn(8, *SHAPE).float(), drawn(8, 4, seed=1).float()
    scheduler = DDIMScheduler(LEVELS, beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    x = start
    for k in scheduler.timesteps:
        x = scheduler.step(some_noise(x.new_full((8,), 1 - (k + 1) / LEVELS), x, condition), k, x).prev_sample
    torch.testing.assert_close(ddim(some_noise, start, condition, steps), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [2, 16, 100])
def test_ddim_of_gaussian_data_is_the_affine_map_known_in_closed_form(steps: int) -> None:
    # x − α m is multiplied by (α₊ α s² + σ₊ σ)/(α² s² + σ²) in each step, + being the level it ends at, at last α = 1
    start, net = drawn(1000, *SHAPE), ExactNoise()
    made = ddim(net, start, torch.zeros(1000, 0), steps)
    kept = [*CHAIN[timesteps(steps, LEVELS)].tolist(), 1.0]
    expected = start - math.sqrt(kept[0]) * MEAN
    for now, then in pairwise(kept):
        variance = now * DEVIATION**2 + 1 - now
        expected *= (math.sqrt(then * now) * DEVIATION**2 + math.sqrt((1 - then) * (1 - now))) / variance
    torch.testing.assert_close(made, MEAN + expected, rtol=0, atol=2e-4)
    assert net.times == pytest.approx([1 - (k + 1) / LEVELS for k in timesteps(steps, LEVELS)])
    if steps == LEVELS:
        assert made.std().item() == pytest.approx(DEVIATION, rel=0.06)  # up to the discretisation by 100 levels


@pytest.mark.parametrize("steps", [2, 16, 100])
def test_ddpm_of_gaussian_data_has_the_posteriors_mean_and_variance(steps: int) -> None:
    count = 4000
    made = ddpm(ExactNoise(), drawn(count, steps, *SHAPE), torch.zeros(count, 0))
    kept = [*CHAIN[timesteps(steps, LEVELS)].tolist(), 1.0]
    mean, deviation = 0.0, 1.0  # of x, carried along by eq. 7 of Ho et al.
    for now, then in pairwise(kept):
        slope = math.sqrt(now) * DEVIATION**2 / (now * DEVIATION**2 + 1 - now)  # of E[data | x]
        beta = 1 - now / then
        of_data, of_x = math.sqrt(then) * beta / (1 - now), math.sqrt(now / then) * (1 - then) / (1 - now)
        mean = of_data * (MEAN + slope * (mean - math.sqrt(now) * MEAN)) + of_x * mean
        deviation = math.hypot((of_data * slope + of_x) * deviation, math.sqrt(beta * (1 - then) / (1 - now)))
    assert made.mean().item() == pytest.approx(mean, abs=5 * deviation / math.sqrt(made.numel()))
    assert made.std().item() == pytest.approx(deviation, rel=0.02)
    assert mean == pytest.approx(MEAN, rel=0.01)
    if steps == LEVELS:
        assert deviation == pytest.approx(DEVIATION, rel=0.1)


def test_sample_depends_on_all_of_its_own_noise_and_no_other() -> None:
    noises, condition = drawn(6, 5, *SHAPE), drawn(6, 4, seed=1)
    together = ddpm(some_noise, noises, condition)
    torch.testing.assert_close(
        ddpm(some_noise, noises[[4, 1]], condition[[4, 1]]), together[[4, 1]], rtol=0, atol=1e-12
    )
    for step in range(5):
        other = noises.clone()
        other[2, step] += 0.1
        changed = (ddpm(some_noise, other, condition) != together).flatten(1).any(1)
        assert changed.tolist() == [False, False, True, False, False, False]


def test_number_of_levels_sets_the_times_of_evaluation() -> None:
    asked = []

    def net(t: Tensor, x: Tensor, _condition: Tensor) -> Tensor:
        asked.append(t[0].item())
        return x

    ddim(net, drawn(1, *SHAPE), torch.zeros(1, 0), 5, levels=10)
    assert asked == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])


@pytest.mark.parametrize("steps", [0, LEVELS + 1])
def test_step_counts_outside_the_levels_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps: given {steps}, allowed: 1 to 100"):
        ddim(some_noise, drawn(1, *SHAPE), drawn(1, 4), steps)
