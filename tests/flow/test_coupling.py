"""Couplings: what is paired with what, and what never changes by pairing."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.flow.coupling import Source, independent, make_coupling, minibatch_ot, nearest


def source(seed: int = 0) -> Source:
    return Source(torch.Generator().manual_seed(seed))


def batch(rows: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 3, 2, generator=generator), torch.randn(rows, 4, generator=generator)


def bend(x0: Tensor, condition: Tensor) -> Tensor:
    """A reconstruction that depends on both of its inputs."""
    return torch.tanh(1.5 * x0) + condition[:, :1, None]


def no_model(_x0: Tensor, _condition: Tensor) -> Tensor:
    raise AssertionError("asked for a reconstruction")


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(0, 10_000))
def test_minibatch_ot_is_the_best_of_all_permutations(rows: int, seed: int) -> None:
    x1, condition = batch(rows, seed + 10_001)  # never the noise's own seed
    x0 = independent(x1, condition, source(seed), no_model)
    paired = minibatch_ot(x1, condition, source(seed), no_model)
    cost = torch.cdist(x0.flatten(1).double(), x1.flatten(1).double()).square()
    best = min(sum(cost[i, j].item() for j, i in enumerate(order)) for order in itertools.permutations(range(rows)))
    assert (paired - x1).double().square().sum().item() == pytest.approx(best, rel=1e-5)
    assert sorted(map(tuple, paired.flatten(1).tolist())) == sorted(map(tuple, x0.flatten(1).tolist()))


@pytest.mark.parametrize("x1", [torch.zeros(5, 2), 1e30 * torch.arange(10.0).view(5, 2)], ids=["duplicates", "huge"])
def test_minibatch_ot_stays_a_permutation_of_duplicate_and_of_huge_rows(x1: Tensor) -> None:
    paired = minibatch_ot(x1, torch.zeros(5, 1), source(), no_model)
    drawn = source().like(x1)
    assert sorted(paired.tolist()) == sorted(drawn.tolist())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_minibatch_ot_refuses_data_that_are_not_numbers(value: float) -> None:
    x1 = torch.ones(5, 2)
    x1[2, 1] = value
    with pytest.raises(ValueError, match=r"invalid numeric entries|infeasible"):
        minibatch_ot(x1, torch.zeros(5, 1), source(), no_model)


def test_one_candidate_is_the_independent_coupling_and_costs_no_solve() -> None:
    x1, condition = batch(7)
    assert torch.equal(nearest(1)(x1, condition, source(), no_model), independent(x1, condition, source(), no_model))


def test_nearest_chooses_the_candidate_whose_reconstruction_errs_least() -> None:
    x1, condition = batch(9)
    noise = source()
    candidates = torch.stack([noise.like(x1) for _ in range(5)])
    errors = torch.stack([(bend(x0, condition) - x1).flatten(1).square().sum(1) for x0 in candidates])
    chosen = nearest(5)(x1, condition, source(), bend)
    assert torch.equal((bend(chosen, condition) - x1).flatten(1).square().sum(1), errors.amin(0))
    assert torch.equal(chosen, candidates[errors.argmin(0), torch.arange(9)])


@pytest.mark.parametrize("chunk", [1, 5, 12, 1000])
def test_the_chunk_of_the_search_changes_nothing(chunk: int) -> None:
    x1, condition = batch(9)
    assert torch.equal(nearest(4, chunk)(x1, condition, source(), bend), nearest(4)(x1, condition, source(), bend))


def test_more_candidates_lie_nearer_on_average() -> None:
    x1, condition = batch(500)
    errors = [
        (bend(nearest(k)(x1, condition, source(), bend), condition) - x1).square().mean().item() for k in (1, 2, 4, 16)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_the_search_leaves_no_trace_in_autograd() -> None:
    x1, condition = batch(4)
    scale = torch.tensor(1.0, requires_grad=True)
    chosen = nearest(3)(x1, condition, source(), lambda x0, _c: scale * x0)
    assert not chosen.requires_grad


def test_couplings_are_made_by_name() -> None:
    assert make_coupling("independent", 8) is independent
    assert make_coupling("minibatch_ot", 8) is minibatch_ot
    x1, condition = batch(3)
    assert torch.equal(
        make_coupling("nearest", 8)(x1, condition, source(), bend), nearest(8)(x1, condition, source(), bend)
    )
