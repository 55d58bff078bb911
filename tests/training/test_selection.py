"""Checkpoint selection by value, and the held-out loss with fixed draws."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.settings import schema
from pipeline.tasks.normalizer import Normalizer
from pipeline.training.data import PreparedData
from pipeline.training.selection import Candidate, held_out_loss, select
from pipeline.utils.code_deps import ROOT
from tests.training.helpers import vector_policy

SETTINGS = schema.load(ROOT / "params.yaml").starter.task("pusht").pretrain


def judge(path: Path) -> Candidate:
    values = {"step-1": 0.4, "step-2": 0.7, "step-3": 0.7, "step-4": 0.6}
    return Candidate(path.name, int(path.stem[-1]), values[path.stem], {"success": 0.1})


@pytest.mark.parametrize("order", [(1, 2, 3, 4), (4, 3, 2, 1)])
def test_selection_takes_the_best_and_among_ties_the_longest_trained(order: tuple[int, ...]) -> None:
    selection = select([Path(f"step-{i}.safetensors") for i in order], judge, "rollouts: highest mean max score")
    assert selection.selected == "step-3.safetensors"
    report = json.loads(json.dumps(selection.report()))
    assert report["rule"] == "rollouts: highest mean max score"
    assert len(report["candidates"]) == 4
    assert report["candidates"][0]["figures"] == {"success": 0.1}


class Scaled(nn.Module):
    """The exact field of data at 0, times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, t: Tensor, x: Tensor, _condition: Tensor) -> Tensor:
        return -self.factor * x / (1 - t)[:, None, None]


def loss_of(factor: float, seed: int = 0) -> float:
    zeros = torch.zeros(500, 4, 2)
    data = PreparedData(torch.ones(3, 1), torch.ones(3, 4, 2), torch.zeros(500, 1), zeros, Normalizer(1), Normalizer(2))
    return held_out_loss(vector_policy(Scaled(factor), action=2, horizon=4), data, SETTINGS, seed)


def test_held_out_loss_uses_held_out_data_and_fixed_draws() -> None:
    assert loss_of(1.0) < 1e-10
    # the error is (factor − 1) x0 at every t, so its mean square is (factor − 1)²
    assert loss_of(1.5) == pytest.approx(0.25, rel=0.05)
    assert loss_of(2.0) == pytest.approx(4 * loss_of(1.5), rel=1e-5)
    assert loss_of(1.5, seed=1) != loss_of(1.5, seed=0)
