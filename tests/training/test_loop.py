"""The training loop: an interrupted run equals an uninterrupted one, and two processes agree."""

import json
import math
import os
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.training.loop import Batches, Objective, evenly_spaced, learning_rate_factor, train
from pipeline.utils.code_deps import ROOT
from pipeline.utils.seeding import Generators
from tests.training.drill import MILESTONES, STEPS
from tests.training.helpers import optimization

KILLS = (
    *(f"killed in step {step}" for step in (1, 6, 19, 30)),
    "killed in a milestone",
    "killed within a save",
    "killed before a save's rename",
    "killed at any moment",
)


@pytest.fixture(scope="module")
def drill(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("drill")
    command = [sys.executable, "-m", "tests.training.drill", str(folder)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ["mle", "flow_matching"])
@pytest.mark.parametrize("kill", KILLS)
def test_killed_and_resumed_run_equals_uninterrupted(drill: dict[str, Any], kind: str, kill: str) -> None:
    undisturbed, resumed = drill[kind], drill[f"{kind}, {kill}"]
    if kill != "killed at any moment":
        assert resumed["codes"] == [-9, 0]
    (expected,), (made,) = undisturbed["made"], resumed["made"]
    assert made["weights"] == expected["weights"]
    assert made["log"] == expected["log"]
    assert made["last_batch"] == expected["last_batch"]
    # the resumed run repeats no milestone from before the kill
    assert made["milestones"].items() <= expected["milestones"].items()
    assert sorted(map(int, expected["milestones"])) == list(MILESTONES)


def test_resumed_run_skips_completed_steps(drill: dict[str, Any]) -> None:
    for kind in ("mle", "flow_matching"):
        assert drill[kind]["made"][0]["steps"] == STEPS
        assert drill[f"{kind}, killed in step 6"]["made"][0]["steps"] == STEPS - 4
        assert drill[f"{kind}, killed in step 30"]["made"][0]["steps"] == STEPS - 28


def test_two_processes_agree_and_draw_different_batches(drill: dict[str, Any]) -> None:
    first, second = drill["two processes"]["made"]
    assert drill["two processes"]["codes"] == [0, 0]
    assert first["weights"] == second["weights"]
    assert len(first["milestones"]) == len(MILESTONES)  # only the first process visits milestones and logs
    assert not second["milestones"] and not second["log"]
    assert first["last_batch"] != second["last_batch"]
    assert first["weights"] != drill["mle"]["made"][0]["weights"]


def test_two_resumed_processes_equal_uninterrupted(drill: dict[str, Any]) -> None:
    undisturbed, resumed = drill["two processes"], drill["two processes, one killed"]
    assert resumed["codes"][1:] == [-9, 0, 0]
    for expected, made in zip(undisturbed["made"], resumed["made"], strict=True):
        assert made["weights"] == expected["weights"]
        assert made["log"] == expected["log"]
        assert made["steps"] == STEPS - 16


@pytest.mark.parametrize("kind", ["learned", "profiled"])
def test_two_processes_resume_a_shared_covariance_with_every_loss_term(drill: dict[str, Any], kind: str) -> None:
    undisturbed, resumed = drill[f"two processes, {kind}"], drill[f"two processes, {kind}, one killed"]
    assert resumed["codes"][1:] == [-9, 0, 0]
    first, second = undisturbed["made"]
    assert (first["weights"], first["beside"]) == (second["weights"], second["beside"])
    for expected, made in zip(undisturbed["made"], resumed["made"], strict=True):
        assert (made["weights"], made["beside"]) == (expected["weights"], expected["beside"])
        assert made["steps"] < expected["steps"]


def test_state_of_another_number_of_processes_is_not_resumed(drill: dict[str, Any]) -> None:
    assert drill["one process after two"]["made"][0]["weights"] == drill["mle"]["made"][0]["weights"]


class Quadratic(Objective):
    """E‖w − y‖², whose minimum is the mean of the data."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.net = nn.Linear(1, 2, bias=False)
        self.factor = factor

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        return self.factor * (self.net(condition) - data).square().mean()


_NOISE = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
BATCHES = Batches(torch.ones(100, 1), torch.tensor([2.0, -3.0]) + 0.1 * (_NOISE - _NOISE.mean(0)))


settings = partial(optimization, steps=300, batch_size=32, lr=0.1, warmup=10, max_grad_norm=10.0)


# in this order in one process: the precision of a run must not affect the next
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp32"])
def test_training_finds_the_minimum_in_either_precision(precision: str) -> None:
    dtypes: set[torch.dtype] = set()
    objective = Quadratic()
    objective.net.register_forward_hook(lambda _module, _inputs, output: dtypes.add(output.dtype))
    net = train(objective, BATCHES, settings(precision=precision), Generators(0))
    assert dtypes == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert net.weight.dtype == torch.float32
    assert net.weight.flatten().tolist() == pytest.approx([2.0, -3.0], abs=0.05)


class Counting(Quadratic):
    """A quadratic whose metric is its number of calls."""

    calls = 0

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        self.calls += 1
        self.metrics = {"calls": torch.tensor(self.calls)}
        return super().forward(condition, data)


def test_metrics_of_the_objective_are_logged_with_the_loss() -> None:
    logged = {}
    train(Counting(), BATCHES, settings(steps=60), Generators(0), log=lambda row, step: logged.update({step: row}))
    assert {step: row["calls"] for step, row in logged.items()} == {50: 50, 60: 60}
    assert logged[60].keys() == {"loss", "gradient_norm", "lr", "calls"}


def test_divergence_raises_a_one_line_error() -> None:
    with pytest.raises(FloatingPointError) as raised:
        train(Quadratic(factor=float("nan")), BATCHES, settings(), Generators(0))
    assert str(raised.value) == "training diverged: the loss at step 50 is nan; lower lr or clip"


def test_milestones_are_visited_in_order_and_can_end_training() -> None:
    seen: list[int] = []

    def look(step: int, _net: nn.Module) -> bool:
        seen.append(step)
        return step < 40

    logged: list[int] = []
    train(
        Quadratic(), BATCHES, settings(), Generators(0), milestones=[0, 7, 40, 80], on_milestone=look,
        log=lambda _metrics, step: logged.append(step),
    )  # fmt: skip
    assert seen == [0, 7, 40]
    assert logged == []


def test_log_holds_mean_loss_since_last_entry_and_learning_rate() -> None:
    losses: list[float] = []
    objective = Quadratic()
    objective.register_forward_hook(lambda _module, _inputs, loss: losses.append(loss.item()))
    rows: dict[int, dict[str, float]] = {}
    train(objective, BATCHES, settings(steps=120), Generators(0), log=lambda row, step: rows.update({step: row}))
    assert sorted(rows) == [50, 100, 120]
    assert rows[100]["loss"] == pytest.approx(sum(losses[50:100]) / 50, rel=1e-5)
    assert rows[120]["loss"] == pytest.approx(sum(losses[100:]) / 20, rel=1e-5)
    assert rows[50]["lr"] == pytest.approx(0.1 * learning_rate_factor(50, 10, 120))
    assert rows[120]["lr"] == 0


def test_the_learning_rate_warms_up_and_falls_as_a_cosine() -> None:
    factors = [learning_rate_factor(step, 10, 110) for step in range(111)]
    assert factors[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert factors[10] == 1
    assert factors[60] == pytest.approx(0.5)
    assert factors[35] == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert factors[110] == 0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert learning_rate_factor(0, 0, 1) == 1


@pytest.mark.parametrize(
    ("steps", "count", "expected"), [(100, 4, [25, 50, 75, 100]), (10, 3, [3, 7, 10]), (2, 5, [1, 2])]
)
def test_milestones_are_spread_evenly_and_hold_the_last_step(steps: int, count: int, expected: list[int]) -> None:
    assert evenly_spaced(steps, count) == expected
