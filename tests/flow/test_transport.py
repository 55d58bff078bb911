"""Couplings by optimal transport: permutations, entropic relaxation and conditions."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, kstest
from torch import Tensor

from pipeline.flow.pairing import NO_MODELS, Coupling, Source
from pipeline.flow.transport import conditional_ot, minibatch_ot, sinkhorn
from tests.flow.test_coupling import batch

ALL = {"minibatch_ot": minibatch_ot, "conditional_ot": conditional_ot(1.0), "sinkhorn": sinkhorn(0.05)}
PERMUTING = {kind: ALL[kind] for kind in ("minibatch_ot", "conditional_ot")}


def noise(x1: Tensor, seed: int = 0) -> Tensor:
    """Return the noise that every coupling draws first."""
    return Source(torch.Generator().manual_seed(seed)).like(x1)


def paired(coupling: Coupling, x1: Tensor, condition: Tensor | None = None, seed: int = 0) -> Tensor:
    """Return the noise that ``coupling`` pairs with the unchanged rows of ``x1``."""
    condition = torch.zeros(len(x1), 1) if condition is None else condition
    pair = coupling(x1, condition, Source(torch.Generator().manual_seed(seed)), NO_MODELS)
    assert pair.x1 is x1
    return pair.x0


def cost(x0: Tensor, x1: Tensor) -> float:
    return (x0 - x1).double().square().sum().item()


def rows_of(x: Tensor) -> list[tuple[float, ...]]:
    return sorted(map(tuple, x.flatten(1).tolist()))


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.sampled_from([0.0, 0.7, 30.0]), st.integers(0, 10_000))
def test_the_assignment_is_the_best_of_all_permutations(rows: int, weight: float, seed: int) -> None:
    x1, condition = batch(rows, seed + 10_001)  # never the noise's own seed
    x0 = noise(x1, seed)

    def joint(order: tuple[int, ...]) -> float:
        return cost(x0[list(order)], x1) + weight * cost(condition[list(order)], condition)

    best = x0[list(min(itertools.permutations(range(rows)), key=joint))]
    assert torch.equal(paired(conditional_ot(weight), x1, condition, seed), best)
    if weight == 0:
        assert torch.equal(paired(minibatch_ot, x1, condition, seed), best)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    "x1",
    [torch.zeros(5, 2), 1e30 * torch.arange(10.0).view(5, 2), 1e-30 * torch.ones(5, 2), torch.ones(1, 2)],
    ids=["duplicates", "huge", "tiny", "one row"],
)
def test_degenerate_batches_are_paired_with_drawn_noise(x1: Tensor, kind: str) -> None:
    x0, drawn = paired(ALL[kind], x1), noise(x1)
    assert set(rows_of(x0)) <= set(rows_of(drawn))
    if kind in PERMUTING:
        assert rows_of(x0) == rows_of(drawn)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_data_are_refused(value: float, kind: str) -> None:
    x1 = torch.ones(5, 2)
    x1[2, 1] = value
    with pytest.raises(ValueError, match=r"invalid numeric entries|infeasible|NaN or infinity"):
        paired(ALL[kind], x1)


def test_sinkhorn_becomes_the_assignment_as_the_entropy_vanishes() -> None:
    x1, _ = batch(48)
    least, blind = cost(paired(minibatch_ot, x1), x1), cost(noise(x1), x1)
    excess = [(cost(paired(sinkhorn(r), x1), x1) - least) / (blind - least) for r in (1.0, 0.1, 0.01, 0.002)]
    assert excess == sorted(excess, reverse=True)
    assert excess[-1] < 0.05
    few, _ = batch(6)
    assert torch.equal(paired(sinkhorn(1e-4), few), paired(minibatch_ot, few))


def test_sinkhorn_becomes_independent_at_large_regularization() -> None:
    """Each datum gets each noise equally often: χ² over 4 × 4 pairs."""
    x1 = torch.tensor([[-3.0], [-1.0], [1.0], [3.0]])
    counts, draws = torch.zeros(4, 4), 1500
    for seed in range(draws):
        order = noise(x1, seed).argsort(dim=0)[:, 0]  # by rank, since each draw has noise of its own
        chosen = paired(sinkhorn(1e6), x1, seed=seed)
        counts[torch.arange(4), (chosen == noise(x1, seed)[order].T).int().argmax(1)] += 1
    statistic = ((counts - draws / 4).square() / (draws / 4)).sum().item()
    assert statistic < chi2.ppf(0.999, 12)


def test_sinkhorn_uses_noise_uniformly_on_average() -> None:
    """The plan's noise marginal is uniform: over many draws of one plan every noise serves once a batch."""
    x1, condition = batch(8)

    class Fixed(Source):
        def like(self, x: Tensor) -> Tensor:
            return noise(x)

    source, draws = Fixed(torch.Generator().manual_seed(3)), 600
    drawn = noise(x1).flatten(1)
    counts = torch.zeros(8)
    for _ in range(draws):
        x0 = sinkhorn(0.2)(x1, condition, source, NO_MODELS).x0.flatten(1)
        counts += (x0[:, None] == drawn).all(-1).float().sum(0)
    assert counts.sum() == 8 * draws
    # at most binomial, deviation 23; a softmax over the noise instead of the plan would be off by hundreds
    assert (counts - draws).abs().max() < 90


def sectors(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Eight Gaussians on a circle of radius 3, and the sector of each as a one-hot condition."""
    generator = torch.Generator().manual_seed(seed)
    sector = torch.randint(8, (rows,), generator=generator)
    angle = sector * math.pi / 4
    x1 = 3 * torch.stack([angle.cos(), angle.sin()], dim=1) + 0.2 * torch.randn(rows, 2, generator=generator)
    return x1, torch.nn.functional.one_hot(sector, 8).float()


def angle_to_sector(x0: Tensor, condition: Tensor) -> Tensor:
    """Angle from the condition's sector to the noise, over 2π: uniform on [0, 1) where p(x0 | c) is the source's."""
    angle = torch.atan2(x0[:, 1], x0[:, 0]) - condition.argmax(1) * math.pi / 4
    return (angle / (2 * math.pi)) % 1


def test_only_conditional_ot_keeps_the_noise_distribution_given_the_condition() -> None:
    x1, condition = sectors(800, seed=1)
    kept, lost = paired(conditional_ot(1e3), x1, condition), paired(minibatch_ot, x1, condition)
    assert kstest(angle_to_sector(kept, condition), "uniform").pvalue > 0.01
    assert kstest(kept.square().sum(1), chi2(2).cdf).pvalue > 0.01
    assert kstest(angle_to_sector(lost, condition), "uniform").pvalue < 1e-12
    assert cost(kept, x1) < 0.95 * cost(noise(x1), x1)


def test_condition_weight_interpolates_between_minibatch_ot_and_independent() -> None:
    x1, condition = batch(64)
    costs = [cost(paired(conditional_ot(weight), x1, condition), x1) for weight in (0.0, 0.1, 1.0, 10.0, 1e9)]
    assert costs == sorted(costs)
    assert torch.equal(paired(conditional_ot(0.0), x1, condition), paired(minibatch_ot, x1, condition))
    assert torch.equal(paired(conditional_ot(1e9), x1, condition), noise(x1))


def test_equal_conditions_give_minibatch_ot_at_any_weight() -> None:
    x1, _ = batch(40)
    condition = torch.full((40, 3), 0.1)
    assert torch.equal(paired(conditional_ot(1e15), x1, condition), paired(minibatch_ot, x1, condition))
