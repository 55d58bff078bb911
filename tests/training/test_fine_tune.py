"""Fine-tuning any module in one call: arguments, result and refusals."""

import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from pipeline.flow.coupling import independent
from pipeline.training import loop
from pipeline.training.fine_tune import fine_tune, sample
from pipeline.utils import precision

COUPLINGS = ["independent", "minibatch_ot", "sinkhorn", "conditional_ot", "nearest", "inversion", "reflow"]


def two_ways(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """x1 at (+1, c) or (−1, −c) for a condition c, with deviation 0.05."""
    generator = torch.Generator().manual_seed(seed)
    condition = 2 * torch.rand(rows, 1, generator=generator) - 1
    way = torch.randint(2, (rows, 1), generator=generator) * 2.0 - 1
    return torch.cat([way, way * condition], 1) + 0.05 * torch.randn(rows, 2, generator=generator), condition


DATA, HELD_OUT = two_ways(2000, 0), two_ways(100, 1)


class Plain(nn.Module):
    """A user's field of any x and condition, flattened, with dropout. Records the conditions of its calls."""

    conditions: ClassVar[list[Tensor | None]] = []

    def __init__(self, dim: int = 2, condition_dim: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.inp = nn.Linear(1 + dim + condition_dim, 64)
        self.net = nn.Sequential(nn.SiLU(), nn.Dropout(dropout), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, dim))

    def forward(self, t: Tensor, x: Tensor, condition: Tensor | None) -> Tensor:
        self.conditions.append(condition)
        known = [] if condition is None else [condition.flatten(1).to(x.dtype)]
        return self.net(self.inp(torch.cat([t[:, None], x.flatten(1), *known], 1))).view_as(x)


@pytest.fixture(scope="module")
def base() -> nn.Module:
    """Train a field by flow matching in a plain loop."""
    torch.manual_seed(0)
    field, (data, conditions) = Plain(), DATA
    optimizer = torch.optim.Adam(field.parameters(), lr=5e-3)
    for _ in range(500):
        rows = torch.randint(len(data), (256,))
        x1, x0, t = data[rows], torch.randn(256, 2), torch.rand(256)
        velocity = field(t, torch.lerp(x0, x1, t[:, None]), conditions[rows])
        (velocity - (x1 - x0)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return field


def weights(net: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()]).clone()


def interrupt_at(at: int) -> Callable[[dict[str, float], int], None]:
    def log(_metrics: dict[str, float], step: int) -> None:
        if step == at:
            raise KeyboardInterrupt

    return log


def test_fine_tuning_moves_samples_to_the_data_and_keeps_diversity(base: nn.Module) -> None:
    before = weights(base)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tuned = fine_tune(base, DATA, nfe=1, steps=200, lr=2e-3, held_out=HELD_OUT, readings=2)
    assert list(tuned.history) == [0, 100, 200]
    assert tuned.history[0].diversity.best_of_k > 0.3 > 0.15 > tuned.history[200].diversity.best_of_k
    assert tuned.history[200].spread_ratio > 0.7
    assert torch.equal(weights(base), before) and base.training and not tuned.net.training

    noise = torch.randn(100, 2, generator=torch.Generator().manual_seed(2))
    ways = torch.cat([torch.ones(100, 1), HELD_OUT[1]], 1)
    taken = [sample(net, noise, HELD_OUT[1], nfe=1) for net in (base, tuned.net)]
    distances = [torch.minimum((x - ways).norm(dim=1), (x + ways).norm(dim=1)).median() for x in taken]
    assert distances[1] < 0.5 * distances[0]


@pytest.mark.parametrize("on_collapse", ["stop", "warn"])
def test_collapse_warns_and_only_warn_mode_returns_collapsed_weights(
    base: nn.Module, on_collapse: Literal["stop", "warn"]
) -> None:
    arguments: dict[str, Any] = {"coupling": "independent", "steps": 200, "lr": 2e-3, "held_out": HELD_OUT}
    with pytest.warns(RuntimeWarning, match="the samples are collapsing: at step "):
        tuned = fine_tune(base, DATA, nfe=2, on_collapse=on_collapse, **arguments)
    last = max(tuned.history)
    assert tuned.history[last].spread_ratio < 0.2 < tuned.history[0].spread_ratio
    assert tuned.steps == last == 200 if on_collapse == "warn" else tuned.steps < last
    assert tuned.history[tuned.steps].spread_ratio > 0.2 or on_collapse == "warn"


def test_lora_collapse_at_the_first_reading_restores_the_given_weights(base: nn.Module) -> None:
    arguments: dict[str, Any] = {"coupling": "independent", "steps": 300, "lr": 2e-2, "lora_rank": 8, "readings": 1}
    with pytest.warns(RuntimeWarning, match="at step 300 .*; the last healthy weights are kept"):
        tuned = fine_tune(base, DATA, nfe=2, held_out=HELD_OUT, **arguments)
    assert tuned.steps == 0
    assert all(weight.equal(base.state_dict()[name]) for name, weight in tuned.net.state_dict().items())


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize(
    ("x1", "condition"),
    [
        (torch.randn(32, 3, 2), None),
        (torch.randn(32, 2), torch.randn(32, 3, 2)),
        (torch.randn(32, 1, 4, 4), torch.randint(256, (32, 3, 4, 4), dtype=torch.uint8)),
        (torch.randn(32, 2), torch.randint(4, (32, 1))),
    ],
)
def test_every_coupling_takes_any_shape(coupling: str, x1: Tensor, condition: Tensor | None) -> None:
    torch.manual_seed(0)
    Plain.conditions.clear()
    field = Plain(x1[0].numel(), 0 if condition is None else condition[0].numel())
    data = x1 if condition is None else (x1, condition)
    if coupling == "conditional_ot" and condition is not None and not condition.is_floating_point():
        with pytest.raises(
            ValueError, match=r"^data: given a condition of .*, allowed for coupling 'conditional_ot': "
        ):
            fine_tune(field, data, nfe=2, coupling=coupling, steps=3)
        return
    tuned = fine_tune(field, data, nfe=2, coupling=coupling, candidates=3, steps=3, batch_size=16, held_out=data)
    assert not torch.equal(weights(tuned.net), weights(field))
    if condition is None:
        assert field.conditions == [None] * len(field.conditions)
    else:
        assert {(c.dtype, c.shape[1:]) for c in field.conditions if c is not None} == {
            (condition.dtype, condition.shape[1:])
        }


def test_endless_generator_of_batches_is_accepted(base: nn.Module) -> None:
    def batches() -> Any:
        seed = 10
        while seed := seed + 1:
            yield two_ways(64, seed)

    tuned = fine_tune(base, batches(), nfe=2, solver="heun", gradient="checkpointed", coupling=independent, steps=20)
    assert tuned.history == {} and not torch.equal(weights(tuned.net), weights(base))


def test_training_runs_without_dropout_and_leaves_frozen_weights(base: nn.Module) -> None:
    field = Plain(dropout=0.9)
    field.load_state_dict(base.state_dict())
    field.inp.requires_grad_(False)
    plain = Plain()
    plain.load_state_dict(base.state_dict())
    plain.inp.requires_grad_(False)
    with_dropout, without = (fine_tune(f, DATA, nfe=1, steps=5).net for f in (field, plain))
    assert torch.equal(weights(with_dropout), weights(without))
    assert torch.equal(weights(with_dropout.inp), weights(base.inp)) and field.training
    assert not torch.equal(weights(with_dropout.net), weights(base.net))


def test_double_precision_field_stays_in_double_precision(base: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda _kind: True)
    tuned = fine_tune(deepcopy(base).double(), DATA, nfe=1, steps=2, held_out=HELD_OUT)
    assert weights(tuned.net).dtype == torch.float64


@pytest.mark.parametrize("began", ["bf16", "fp32"])
def test_resumed_run_equals_uninterrupted_on_machines_with_and_without_bf16(
    began: str, base: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda _kind: began == "bf16")
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    path, steps = tmp_path / "state.pt", []
    settings: dict[str, Any] = {"nfe": 1, "steps": 150, "batch_size": 32, "candidates": 2}
    settings |= {"held_out": HELD_OUT, "readings": 3}
    undisturbed = fine_tune(base, DATA, **settings)

    with pytest.raises(KeyboardInterrupt):
        fine_tune(base, DATA, **settings, state_path=path, log=interrupt_at(100))
    with pytest.raises(ValueError, match=f"^state_path: {path} is of a run with other settings or weights; "):
        fine_tune(base, DATA, **settings, state_path=path, lr=1e-3)
    with pytest.raises(ValueError, match=r"^state_path: "):
        fine_tune(Plain(), DATA, **settings, state_path=path)
    monkeypatch.setattr(precision, "has_bf16", lambda _kind: began != "bf16")
    resumed = fine_tune(base, DATA, **settings, state_path=path, log=lambda _metrics, step: steps.append(step))
    assert resumed.precision == undisturbed.precision == began
    assert steps == [100, 150]
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(weights(resumed.net), weights(undisturbed.net))
    assert resumed.history[150] == undisturbed.history[150]
    elsewhere = fine_tune(base, DATA, **settings)
    assert elsewhere.precision != began and not torch.equal(weights(elsewhere.net), weights(undisturbed.net))


def test_resumed_run_restores_healthy_weights_from_before_the_interruption(
    base: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(loop, "LOG_EVERY", 5)
    settings: dict[str, Any] = {"nfe": 2, "coupling": "independent", "steps": 200, "lr": 2e-3, "batch_size": 64}
    settings |= {"held_out": HELD_OUT, "readings": 20}  # every 10 steps
    with pytest.warns(RuntimeWarning, match="collapsing"):
        whole = fine_tune(base, DATA, **settings)
    assert 0 < whole.steps < 200

    interrupt = interrupt_at(whole.steps + 10)  # before the reading that finds the collapse
    with pytest.raises(KeyboardInterrupt):
        fine_tune(base, DATA, **settings, state_path=tmp_path / "state.pt", log=interrupt)
    with pytest.warns(RuntimeWarning, match="collapsing"):
        resumed = fine_tune(base, DATA, **settings, state_path=tmp_path / "state.pt")
    assert resumed.steps == whole.steps
    assert torch.equal(weights(resumed.net), weights(whole.net))
    assert list(tmp_path.iterdir()) == []


def test_loss_terms_and_lora_change_the_result(base: nn.Module) -> None:
    plain: dict[str, Any] = {"nfe": 2, "steps": 20, "lr": 1e-3, "batch_size": 32}
    usual = weights(fine_tune(base, DATA, **plain).net)
    for option in ({"covariance": "profiled"}, {"fm_weight": 0.5}, {"energy_weight": 0.5}, {"lora_rank": 2}):
        tuned = fine_tune(base, DATA, **plain, **option).net
        assert tuned.state_dict().keys() == base.state_dict().keys()
        assert not torch.equal(weights(tuned), usual) and not torch.equal(weights(tuned), weights(base)), option


class Wrong(Plain):
    def forward(self, t: Tensor, x: Tensor, condition: Tensor | None) -> Tensor:
        return super().forward(t, x, condition)[:, :1]


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        (
            {"coupling": "reflow", "teacher_nfe": 1},
            "teacher_nfe: given 1, allowed for coupling 'reflow': more than nfe = ",
        ),
        ({"coupling": "inversion", "teacher_nfe": 30}, "teacher_nfe: given 30, allowed for coupling 'inversion': mult"),
        ({"covariance": "full"}, "covariance: given 'full', allowed: identity, fixed, learned, profiled"),
        ({"fm_weight": -1.0}, "fm_weight: given -1.0, allowed: 0 or more"),
        ({"collapse_below": 5}, "collapse_below: given 5, allowed: at least 0 and below 1"),
        ({"field": Wrong()}, r"field: .* it returned \(2, 1\), allowed: \(2, 2\)"),
        (
            {"field": Plain(3)},
            r"field: called on data with t \(2,\), x \(2, 2\), condition .*, it failed: RuntimeError: mat1",
        ),
        ({"field": Plain().requires_grad_(False)}, "field: none of its parameters requires a gradient, allowed: "),
        ({"data": DATA[0]}, r"field: called on data with .*, condition None.*, it failed: "),
        ({"data": []}, "data: given an iterable without a batch, allowed: "),
        ({"data": (DATA[0] / 0, DATA[1])}, "data: x1 holds NaN or infinity, allowed: "),
        ({"held_out": HELD_OUT[0]}, r"field: called on held_out with .*, condition None.*, it failed: "),
        ({"held_out": (HELD_OUT[0], HELD_OUT[0][:3])}, "held_out: given a condition of shape "),
        ({"nfe": 3, "solver": "heun"}, "heun spends 2 evaluations a step: nfe = 3 is no positive multiple of that"),
        ({"nfe": 0}, "nfe: given 0, allowed: whole numbers from 1"),
        ({"solver": "dopri5"}, "solver: given 'dopri5', allowed: euler, midpoint, heun, rk4"),
        ({"gradient": "exact"}, "gradient: given 'exact', allowed: direct, checkpointed, adjoint"),
        ({"coupling": "closest"}, "coupling: given 'closest', allowed: independent, "),
        ({"candidates": 0}, "candidates: given 0, allowed: whole numbers from 1"),
        ({"steps": 0}, "steps: given 0, allowed: at least 1"),
        ({"lr": 0.0}, "lr: given 0.0, allowed: greater than 0"),
        ({"ema_decay": 1.0}, "ema_decay: given 1.0, allowed: less than 1"),
        ({"last_steps": 3}, "last_steps: given 3, allowed: 1 to 2, "),
    ],
)
def test_invalid_arguments_are_refused_in_one_line(changed: dict[str, Any], complaint: str) -> None:
    arguments: dict[str, Any] = {"field": Plain(), "data": DATA, "nfe": 2, "steps": 1} | changed
    with pytest.raises(ValueError, match=f"^{complaint}") as refusal:
        fine_tune(**arguments)
    assert "\n" not in str(refusal.value)
