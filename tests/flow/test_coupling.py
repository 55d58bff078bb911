"""Couplings of noise and data: pairs, fallbacks and options."""

import pytest
import torch
from scipy.stats import chi2, kstest
from torch import Tensor

from pipeline.flow.coupling import independent, inversion, make_coupling, nearest, reflow
from pipeline.flow.objective import reconstruct
from pipeline.flow.pairing import NO_MODELS, Models, Pair, Solve, Source, no_model
from pipeline.nets.sharing import repeated
from pipeline.ode.fixed_step import uniform_grid


def source(seed: int = 0) -> Source:
    return Source(torch.Generator().manual_seed(seed))


def batch(rows: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 3, 2, generator=generator), torch.randn(rows, 4, generator=generator)


def bend(x0: Tensor, condition: Tensor) -> Tensor:
    """A reconstruction that depends on both of its inputs."""
    return torch.tanh(1.5 * x0) + repeated(condition, len(x0))[:, :1, None]


def models(reconstruct: Solve = no_model, invert: Solve = no_model, teach: Solve = no_model) -> Models:
    return Models(reconstruct, invert, teach)


BENDING = models(reconstruct=bend)


def test_one_candidate_is_the_independent_coupling_and_costs_no_solve() -> None:
    x1, condition = batch(7)
    one, none = (pair(x1, condition, source(), NO_MODELS) for pair in (nearest(1), independent))
    assert torch.equal(one.x0, none.x0)
    assert one.x1 is x1


def test_nearest_takes_the_candidate_of_least_reconstruction_error() -> None:
    x1, condition = batch(9)
    noise = source()
    candidates = torch.stack([noise.like(x1) for _ in range(5)])
    errors = torch.stack([(bend(x0, condition) - x1).flatten(1).square().sum(1) for x0 in candidates])
    chosen = nearest(5)(x1, condition, source(), BENDING).x0
    assert torch.equal((bend(chosen, condition) - x1).flatten(1).square().sum(1), errors.amin(0))
    assert torch.equal(chosen, candidates[errors.argmin(0), torch.arange(9)])


@pytest.mark.parametrize("chunk", [1, 5, 12, 1000])
def test_chunk_size_changes_only_the_rows_solved_at_once(chunk: int) -> None:
    x1, condition = batch(9)
    rows = []

    def watched(x0: Tensor, c: Tensor) -> Tensor:
        rows.append(len(x0))
        return bend(x0, c)

    chunked = nearest(4, chunk)(x1, condition, source(), models(reconstruct=watched))
    assert torch.equal(chunked.x0, nearest(4)(x1, condition, source(), BENDING).x0)
    assert max(rows) <= max(chunk, 4)
    assert sum(rows) == 36


def test_more_candidates_reduce_the_mean_error() -> None:
    x1, condition = batch(500)
    errors = [
        (bend(nearest(k)(x1, condition, source(), BENDING).x0, condition) - x1).square().mean().item()
        for k in (1, 2, 4, 16)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_inversion_recovers_typical_noise_of_a_linear_field() -> None:
    """x' = −x/2 and 400 steps: noise of deviation 1 from data of deviation e^(−1/2)."""
    grid = uniform_grid(400)
    shrink = models(invert=lambda x, c: reconstruct(lambda _t, x, _c: -x / 2, x, c, grid[::-1]))
    noise = source(5).like(torch.empty(4000, 3, 2))
    x1 = noise * torch.tensor(-0.5).exp()
    pair = inversion(0.9, fallback=independent)(x1, torch.zeros(4000, 1), source(), shrink)
    norm = noise.flatten(1).square().sum(1)
    clearly = (norm > chi2.ppf(0.05, 6) + 0.1) & (norm < chi2.ppf(0.95, 6) - 0.1)
    assert torch.allclose(pair.x0[clearly], noise[clearly], rtol=0.01)
    assert torch.equal(pair.x1, x1)
    # the quantile makes a tenth of true noise atypical: 400 of 4000, standard deviation 19
    assert pair.metrics["fallback_share"].item() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("scale", [0.0, 0.1, 10.0, float("nan"), float("inf")])
def test_inversion_falls_back_where_the_source_has_no_mass(scale: float) -> None:
    x1, condition = batch(6)
    away = models(reconstruct=bend, invert=lambda x, _c: torch.where(x.isnan(), x, scale * torch.ones_like(x)))
    pair = inversion(0.99, fallback=nearest(3))(x1, condition, source(), away)
    assert torch.equal(pair.x0, nearest(3)(x1, condition, source(), BENDING).x0)
    assert pair.metrics["fallback_share"] == 1


def test_rows_that_fall_back_leave_the_others_alone() -> None:
    x1 = torch.ones(5, 3, 2)  # ‖1‖² = 6, the mean of its χ² law
    x1[1], x1[4] = 100.0, 0.0
    pair = inversion(0.9, fallback=independent)(x1, torch.zeros(5, 1), source(), models(invert=lambda x, _c: x))
    assert torch.equal(pair.x0[[0, 2, 3]], x1[[0, 2, 3]])
    assert torch.equal(pair.x0[[1, 4]], source().like(x1[[1, 4]]))
    assert torch.equal(pair.x1[[1, 4]], torch.stack([torch.full((3, 2), 100.0), torch.zeros(3, 2)]))


def test_reflow_pairs_fresh_noise_with_the_teachers_solve() -> None:
    x1, condition = batch(8)
    pair = reflow(x1, condition, source(), models(teach=bend))
    assert torch.equal(pair.x0, source().like(x1))
    assert torch.equal(pair.x1, bend(pair.x0, condition))


@pytest.mark.parametrize("kind", ["nearest", "inversion", "reflow"])
def test_pairs_carry_no_gradient(kind: str) -> None:
    x1, condition = batch(4)
    scale = torch.tensor(1.0, requires_grad=True)
    solves = Models(*3 * [lambda x, _c: scale * x])
    pair = make_coupling(kind, 3, typical_quantile=0.5)(x1, condition, source(), solves)
    assert not pair.x0.requires_grad
    assert not pair.x1.requires_grad


@pytest.mark.parametrize("kind", ["nearest", "inversion", "reflow"])
def test_couplings_without_their_model_raise(kind: str) -> None:
    with pytest.raises(RuntimeError, match="asks for a solve by a model"):
        make_coupling(kind)(*batch(3), source(), NO_MODELS)


def test_noise_that_is_not_selected_stays_standard_normal() -> None:
    x1, condition = batch(800)
    for kind in ("independent", "minibatch_ot", "conditional_ot", "reflow"):
        pair: Pair = make_coupling(kind)(x1, condition, source(), models(teach=bend))
        assert kstest(pair.x0.flatten().numpy(), "norm").pvalue > 0.01, kind


def test_couplings_are_made_by_name_with_their_options() -> None:
    x1, condition = batch(12)
    for kind, option in (
        ("nearest", {"candidates": 2}),
        ("sinkhorn", {"regularization": 1e-3}),
        ("conditional_ot", {"condition_weight": 0.0}),
        ("inversion", {"typical_quantile": 0.01}),
    ):
        solves = models(reconstruct=bend, invert=lambda x, _c: x)
        usual, changed = (make_coupling(kind, **given)(x1, condition, source(), solves) for given in ({}, option))
        assert not torch.equal(usual.x0, changed.x0), kind
    assert make_coupling("independent") is independent
    with pytest.raises(ValueError, match=r"^coupling: given 'neares', allowed: independent, .*, nearest, "):
        make_coupling("neares")
