"""The diffusion baseline with the exact noise prediction for Gaussian data."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from pipeline.flow.diffusion import (
    END,
    TRAINING_STEPS,
    ancestral,
    make_scheduler,
    noise_prediction_loss,
    probability_flow,
    timesteps,
)
from pipeline.flow.path import variance_preserving
from pipeline.ode import dopri5

MEAN, DEVIATION = 0.3, 0.5
SHAPE = (1, 2, 2)
CHAIN = make_scheduler().alphas_cumprod.double()
"""ᾱ_k."""


@dataclass
class ExactNoise:
    """ε(t, x) = σ (x − α m)/(α² s² + σ²) for data N(m, s²), with the chain's coefficients or the diffusion's."""

    chain: bool
    times: list[float] = field(default_factory=list)

    def __call__(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        assert t.shape == (len(x),) and condition.shape == (len(x), 0)
        self.times.append(t[0].item())
        t = t.double().view(-1, 1, 1, 1)
        path = variance_preserving()
        kept = CHAIN[((1 - t) * TRAINING_STEPS).round().long() - 1] if self.chain else path.alpha(t) ** 2
        alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
        return (sigma * (x - alpha * MEAN) / (kept * DEVIATION**2 + 1 - kept)).to(x.dtype)


def noise(count: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def no_condition(count: int) -> Tensor:
    return torch.zeros(count, 0, dtype=torch.float64)


def test_the_chain_discretises_the_diffusion_of_path_vp() -> None:
    t = 1 - (torch.arange(TRAINING_STEPS, dtype=torch.float64) + 1) / TRAINING_STEPS
    path = variance_preserving()
    torch.testing.assert_close(CHAIN, path.alpha(t) ** 2, rtol=0, atol=1e-3)
    torch.testing.assert_close((1 - CHAIN).sqrt(), path.sigma(t), rtol=0.05, atol=0)
    torch.testing.assert_close((1 - CHAIN[50:]).sqrt(), path.sigma(t[50:]), rtol=0.01, atol=0)
    assert t[-1] == 0 and t[0] == END


@pytest.mark.parametrize("k", [20, 200, 600])
def test_the_exact_prediction_has_the_least_loss(k: int) -> None:
    x0, x1 = noise(100_000, shape=(1, 1, 1)), MEAN + DEVIATION * noise(100_000, seed=1, shape=(1, 1, 1))
    exact = ExactNoise(chain=True)

    def loss(factor: float) -> float:
        def net(t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
            return factor * exact(t, x, condition)

        return noise_prediction_loss(net, x0, x1, no_condition(len(x0)), torch.full((len(x0),), k)).item()

    losses = {factor: loss(factor) for factor in (0.9, 1.0, 1.1)}
    kept = CHAIN[k].item()
    assert losses[1.0] == pytest.approx(kept * DEVIATION**2 / (kept * DEVIATION**2 + 1 - kept), rel=0.02)
    assert min(losses, key=lambda factor: losses[factor]) == 1.0


def test_timesteps_are_distinct_and_descend_from_999() -> None:
    for steps in range(1, TRAINING_STEPS + 1):
        chosen = timesteps(steps)
        assert len(set(chosen)) == len(chosen) == steps
        assert chosen[0] == TRAINING_STEPS - 1 and chosen[-1] >= 0 and chosen == sorted(chosen, reverse=True)
    for steps in (0, TRAINING_STEPS + 1):
        with pytest.raises(ValueError, match=f"steps: given {steps}, allowed: 1 to 1000"):
            timesteps(steps)


@pytest.mark.parametrize(("steps", "rel"), [(250, 0.04), (1000, 0.02)])
def test_the_reverse_chain_samples_gaussian_data(steps: int, rel: float) -> None:
    count, net = 4000, ExactNoise(chain=True)
    made = ancestral(net, noise(count), no_condition(count), steps, torch.Generator().manual_seed(1), clip=False)
    error = DEVIATION / math.sqrt(made.numel())
    assert made.shape == (count, *SHAPE)
    assert made.mean().item() == pytest.approx(MEAN, abs=4 * error)
    assert made.std().item() == pytest.approx(DEVIATION, rel=rel)
    assert len(net.times) == steps


def test_chain_of_one_step_returns_the_clipped_estimate_of_the_data() -> None:
    start, net = noise(8), ExactNoise(chain=True)
    estimate = (start - math.sqrt(1 - CHAIN[-1]) * net(torch.zeros(8), start, no_condition(8))) / CHAIN[-1].sqrt()
    for clip, expected in ((True, estimate.clamp(-1, 1)), (False, estimate)):
        net.times.clear()
        made = ancestral(net, start, no_condition(8), 1, torch.Generator().manual_seed(1), clip=clip)
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
        assert net.times == [0.0]


def test_generators_per_row_make_samples_independent_of_the_batch() -> None:
    def sample(rows: list[int]) -> Tensor:
        generators = [torch.Generator().manual_seed(row) for row in rows]
        return ancestral(ExactNoise(chain=True), noise(6)[rows], no_condition(len(rows)), 20, generators)

    together = sample([0, 1, 2, 3, 4, 5])
    torch.testing.assert_close(torch.cat([sample([3]), sample([1, 5])]), together[[3, 1, 5]], rtol=0, atol=1e-12)
    assert not torch.equal(together[0], together[1])
    with pytest.raises(ValueError, match="generators: given 2, allowed: one, or one for each of 6 rows"):
        ancestral(ExactNoise(chain=True), noise(6), no_condition(6), 4, [torch.Generator(), torch.Generator()])


def test_the_probability_flow_is_the_marginal_field_of_path_vp() -> None:
    # for Gaussian data α' m + (α α' s² + σ σ')/V · (x − α m)
    x, t = noise(16), torch.linspace(0, END, 16, dtype=torch.float64)
    found = probability_flow(ExactNoise(chain=False))(t, x, no_condition(16))
    path, time = variance_preserving(), t.view(-1, 1, 1, 1)
    alpha, rate = path.alpha(time), path.alpha_rate(time)
    variance = (alpha * DEVIATION) ** 2 + path.sigma(time) ** 2
    slope = (alpha * rate * DEVIATION**2 + path.sigma(time) * path.sigma_rate(time)) / variance
    torch.testing.assert_close(found, rate * MEAN + slope * (x - alpha * MEAN))


@pytest.mark.parametrize("chain", [True, False])
def test_the_solved_probability_flow_carries_noise_to_gaussian_data(chain: bool) -> None:
    # the flow is affine, so three states determine it; a net trained on the chain has the chain's coefficients
    net = ExactNoise(chain)
    velocity = probability_flow(net)
    start = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64).view(-1, 1, 1, 1)
    tolerance = 1e-4 if chain else 1e-8
    found = dopri5.solve(
        lambda t, x: velocity(x.new_full((len(x),), t), x, no_condition(len(x))),
        start,
        end=END,
        rtol=tolerance,
        atol=tolerance,
    )
    low, middle, high = found.end.flatten().tolist()
    assert middle == pytest.approx(MEAN, abs=0.01)
    assert (high - low) / 2 == pytest.approx(DEVIATION, rel=0.02 if chain else 0.001)
    assert found.nfe == len(net.times) and max(net.times) <= END
