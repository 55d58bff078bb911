"""Maximum-likelihood fine-tuning: cost of an update, loss terms, gradient and resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.flow.coupling import added_solves, independent, make_coupling, nearest, reflow
from pipeline.flow.covariance import COVARIANCES, scaled_negative_log_likelihood
from pipeline.flow.path import i_cfm
from pipeline.nets.lora import add_lora
from pipeline.nets.mlp import MLP
from pipeline.ode.gradient import Gradient
from pipeline.settings.schema import Optimization
from pipeline.training import loop
from pipeline.training.loop import Batches
from pipeline.training.mle import FM_UPDATE, Reconstruction, update_cost
from pipeline.utils.seeding import Generators


class Counting(nn.Module):
    """A linear field that counts the rows it evaluates, with and without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.3))
        self.rows = self.rows_with_gradient = 0

    def forward(self, _t: Tensor, x: Tensor, _condition: Tensor) -> Tensor:
        self.rows += len(x)
        self.rows_with_gradient += len(x) * torch.is_grad_enabled()
        return self.rate * x


@pytest.mark.parametrize("nfe", [1, 3, 16])
@pytest.mark.parametrize(
    ("coupling", "candidates"),
    [
        ("independent", 5), ("minibatch_ot", 5), ("sinkhorn", 5), ("conditional_ot", 5),
        ("nearest", 1), ("nearest", 5), ("inversion", 1), ("inversion", 5), ("reflow", 5),
    ],
)  # fmt: skip
def test_equal_compute_counts_every_forward_pass_of_an_update(nfe: int, coupling: str, candidates: int) -> None:
    net, batch, teacher_nfe = Counting(), 4, 20
    never_typical = make_coupling(coupling, candidates, typical_quantile=1e-9)
    objective = Reconstruction(net, never_typical, nfe, Generators(0), teacher_nfe=teacher_nfe)
    objective(torch.randn(batch, 1), torch.randn(batch, 2, 2)).backward()
    # a backward pass costs two forward passes
    teacher = objective.teacher.net
    assert isinstance(teacher, Counting)
    cost = (net.rows + teacher.rows + 2 * net.rows_with_gradient) / batch
    solves = added_solves(coupling, candidates, teacher_nfe / nfe)
    assert update_cost(nfe, solves) == cost


@pytest.mark.parametrize("solver", ["euler", "heun", "rk4"])
@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
@pytest.mark.parametrize("last_steps", [None, 1, 3])
def test_equal_compute_counts_recomputation_and_truncated_gradients(
    solver: str, gradient: Gradient, last_steps: int | None
) -> None:
    net, batch, nfe = Counting(), 4, 16
    how: dict[str, Any] = {"solver": solver, "gradient": gradient, "last_steps": last_steps}
    loss = Reconstruction(net, independent, nfe, Generators(0), **how)(torch.randn(batch, 1), torch.randn(batch, 2, 2))
    followed = net.rows_with_gradient  # the backward pass adds what it computes again
    loss.backward()
    cost = (net.rows + 2 * followed) / batch
    assert update_cost(nfe, 0, **how) == cost


@pytest.mark.parametrize("nfe", [1, 16])
def test_equal_compute_counts_a_flow_matching_term_and_energy_costs_nothing(nfe: int) -> None:
    net, batch = Counting(), 4
    terms: dict[str, Any] = {"fm_weight": 0.5, "path": i_cfm(0.1), "energy_weight": 0.1}
    objective = Reconstruction(
        net, independent, nfe, Generators(0), covariance=COVARIANCES["profiled"]((2, 2)), **terms
    )
    objective(torch.randn(batch, 1), torch.randn(batch, 2, 2)).backward()
    cost = (net.rows + 2 * net.rows_with_gradient) / batch
    assert update_cost(nfe, 0, fm_term=True) == cost == FM_UPDATE * (nfe + 1)


@pytest.mark.parametrize("nfe", [1, 4])
def test_the_loss_and_its_gradient_are_those_of_the_discrete_solve(nfe: int) -> None:
    net, condition, data = Counting(), torch.randn(6, 1), torch.randn(6, 2, 2)
    Reconstruction(net, independent, nfe, generators := Generators(3))(condition, data).backward()
    assert list(generators.state_dict()) == ["noise"]
    x0 = torch.randn(data.shape, generator=Generators(3)["noise"])
    growth = 1 + 0.3 / nfe
    expected = 2 * (growth**nfe * x0 - data) * growth ** (nfe - 1) * x0
    assert net.rate.grad is not None
    assert net.rate.grad.item() == pytest.approx(expected.mean().item(), rel=1e-4)


def test_reflow_teacher_is_a_frozen_copy_of_the_initial_net() -> None:
    net, condition = Counting(), torch.zeros(6, 1)
    objective = Reconstruction(net, reflow, 1, generators := Generators(3), teacher_nfe=50)
    with torch.no_grad():
        net.rate.fill_(-2.0)
    x0 = torch.randn(6, 2, 2, generator=Generators(3)["noise"])
    expected = (x0 * (1 - 2.0) - x0 * (1 + 0.3 / 50) ** 50).square().mean()
    loss = objective(condition, torch.full((6, 2, 2), 9.0))  # the data themselves do not matter
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    assert objective.teacher.net.rate.grad is None
    assert list(generators.state_dict()) == ["noise"]


def test_metrics_of_the_coupling_are_metrics_of_the_objective() -> None:
    objective = Reconstruction(
        Counting(), make_coupling("inversion", 1, typical_quantile=1e-9), 2, Generators(0), teacher_nfe=4
    )
    assert objective.metrics == {}
    objective(torch.zeros(4, 1), torch.ones(4, 2, 2))
    assert {name: value.item() for name, value in objective.metrics.items()} == {"fallback_share": 1.0}


def test_loss_terms_add_up_with_their_own_metrics_and_random_streams() -> None:
    net, condition, data = Counting(), torch.randn(6, 1), torch.randn(6, 2, 2)
    plain = Reconstruction(net, independent, 2, Generators(3))
    alone = plain(condition, data)
    assert plain.metrics == {}
    weights: dict[str, Any] = {"fm_weight": 0.5, "path": i_cfm(0.1), "energy_weight": 0.25}
    objective = Reconstruction(net, independent, 2, generators := Generators(3), **weights)
    loss = objective(condition, data)
    figures = {name: value.item() for name, value in objective.metrics.items()}
    assert list(figures) == ["energy", "fm_term", "reconstruction"]
    assert figures["reconstruction"] == alone.item()
    assert loss.item() == pytest.approx(alone.item() + 0.5 * figures["fm_term"] + 0.25 * figures["energy"])

    def drawn(name: str) -> Tensor:
        return torch.randn(data.shape, generator=Generators(3)[name])

    x0 = drawn("noise")
    energy = 0.5 * ((0.3 * x0).square() + (0.3 * 1.15 * x0).square()).mean()
    assert figures["energy"] == pytest.approx(energy.item(), rel=1e-5)
    noise, t = (
        drawn("regularization noise"),
        torch.rand(6, generator=Generators(3)["regularization time"])[:, None, None],
    )
    x_t = t * data + (1 - t) * noise + 0.1 * drawn("regularization path")
    assert figures["fm_term"] == pytest.approx((0.3 * x_t - (data - noise)).square().mean().item(), rel=1e-5)
    streams = {"noise", *(f"regularization {name}" for name in ("noise", "time", "path"))}
    assert generators.state_dict().keys() == streams
    with pytest.raises(ValueError, match=r"^path: given None, allowed with fm_weight = 0\.5: the path used in pretra"):
        Reconstruction(net, independent, 2, Generators(3), fm_weight=0.5)


@pytest.mark.parametrize("kind", ["fixed", "learned"])
def test_initial_covariance_follows_the_residuals_of_the_coupling(kind: str) -> None:
    data = torch.randn(512, 2, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.2, 2.0])
    batches = Batches(torch.zeros(512, 1), data)
    variances = {}
    for name, coupling in {"independent": independent, "nearest": nearest(16)}.items():
        covariance = COVARIANCES[kind]((2, 2))
        objective = Reconstruction(Counting(), coupling, 1, generators := Generators(3), covariance=covariance)
        objective.begin(batches, 512)
        assert generators.state_dict().keys() == {"covariance batches", "covariance noise"}
        variances[name] = covariance.log_variance.exp()
        loss, x0 = objective(torch.zeros(512, 1), data), torch.randn(data.shape, generator=Generators(3)["noise"])
        if name == "independent":
            expected = scaled_negative_log_likelihood(1.3 * x0 - data, covariance.log_variance)
            assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    # the variance of 1.3 x0 − x1 in each component
    assert variances["independent"][:, 0].tolist() == pytest.approx([1.73] * 2, rel=0.1)
    assert variances["independent"][:, 1].tolist() == pytest.approx([5.69] * 2, rel=0.1)
    assert (variances["nearest"] < 0.5 * variances["independent"]).all()


RECIPE = Optimization(
    steps=24, batch_size=16, lr=1e-3, weight_decay=1e-2, warmup=3, max_grad_norm=1.0, ema_decay=0.9, precision="fp32"
)
DATA = Batches(torch.zeros(64, 3), torch.randn(64, 4, 2, generator=torch.Generator().manual_seed(0)))


def tuned(kind: str, state_path: Path | None, killed_at: int = 0) -> tuple[Reconstruction, nn.Module]:
    """Train an objective with every loss term; call ``killed_at`` raises. Return it and its averaged net."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = MLP(4, 2, 3, width=16, depth=1, expansion=2, time_features=8)
    terms: dict[str, Any] = {"fm_weight": 0.5, "path": i_cfm(0.1), "energy_weight": 0.1}
    objective = Reconstruction(
        net, nearest(2), 2, generators := Generators(7), covariance=COVARIANCES[kind]((4, 2)), **terms
    )
    add_lora(net, 4, 8.0, generators["lora"])
    calls = 0

    def kill(_module: nn.Module, _inputs: object) -> None:
        nonlocal calls
        calls += 1
        if calls == killed_at:
            raise KeyboardInterrupt

    objective.register_forward_pre_hook(kill)
    return objective, loop.train(objective, DATA, RECIPE, generators, state_path=state_path)


@pytest.mark.parametrize("kind", ["learned", "profiled"])
def test_resumed_run_with_every_loss_term_equals_uninterrupted(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY", 4)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        tuned(kind, tmp_path / "state.pt", killed_at=15)
    states = [objective.state_dict() | average.state_dict(prefix="average.") for objective, average in (
        tuned(kind, None), tuned(kind, tmp_path / "state.pt")
    )]  # fmt: skip
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_log_variances_learn_faster_than_the_net() -> None:
    (learned, _), (fixed, _) = tuned("learned", None), tuned("fixed", None)
    moved = (learned.covariance.log_variance - fixed.covariance.log_variance).abs()
    assert moved.max() > 5 * RECIPE.steps * RECIPE.lr
