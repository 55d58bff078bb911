"""Cost of fine-tuning recipes, and the equal-compute settings of continued flow matching."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.settings import schema
from pipeline.settings.schema import FinetuneRecipe
from pipeline.training.loop import Batches
from pipeline.training.recipe import equal_compute, fallback_share, maximum_likelihood, path_of, within_budget
from pipeline.utils.errors import UserError
from pipeline.utils.seeding import Generators

SETTINGS = schema.load().starter.task("pusht")
PRETRAIN = SETTINGS.pretrain


def recipe(**changes: Any) -> FinetuneRecipe:
    plain = {"steps": 60, "batch_size": 4, "candidates": 1, "coupling": "independent", "precision": "fp32"}
    return SETTINGS.finetune["nfe1"].model_copy(update=plain | changes)


class Counting(nn.Module):
    """Counts the rows that all its copies evaluate."""

    rows = 0

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.3))

    def forward(self, _t: Tensor, x: Tensor, _condition: Tensor) -> Tensor:
        Counting.rows += len(x)
        return self.rate * x


@pytest.mark.parametrize(("coupling", "draws"), [("reflow", 3), ("inversion", 3)])
def test_precomputed_solves_are_counted_once(coupling: str, draws: int) -> None:
    """50 windows: reflow solves each 3 times in 20 evaluations, inversion once in 8."""
    given = recipe(coupling=coupling, precomputed_pairs=draws, reflow_nfe=20, inversion_nfe=8, typical_quantile=0.9999)
    Counting.rows = 0
    objective, batches = maximum_likelihood(
        Counting(), given, 1, path_of(PRETRAIN), Generators(0), Batches(torch.zeros(50, 1), torch.randn(50, 2, 2))
    )
    ahead = Counting.rows
    assert ahead == {"reflow": 50 * 3 * 20, "inversion": 50 * 8}[coupling]
    objective(*batches.draw(4, torch.Generator()))
    assert Counting.rows - ahead == 4  # one evaluation of each row, and no solve by the teacher
    fm = equal_compute(given, PRETRAIN, 1, 50)
    assert fm.steps == round((60 * 4 * 3 + ahead) / (3 * 4))
    assert fm.lr == given.fm_lr and fm.ema_decay == PRETRAIN.ema_decay


def test_online_teacher_is_counted_in_every_step() -> None:
    assert equal_compute(recipe(coupling="reflow", reflow_nfe=30), PRETRAIN, 2, 50).steps == 60 * (2 * 3 + 30) / 3


@pytest.mark.parametrize("coupling", ["independent", "nearest", "reflow", "inversion"])
@pytest.mark.parametrize("nfe", [1, 8])
def test_a_budget_is_kept_and_used_up(coupling: str, nfe: int) -> None:
    given = recipe(coupling=coupling, candidates=4, precomputed_pairs=2, reflow_nfe=16, batch_size=PRETRAIN.batch_size)
    steps = within_budget(given, nfe, 500, PRETRAIN, 1000).steps
    spent = equal_compute(given.model_copy(update={"steps": steps}), PRETRAIN, nfe, 1000).steps
    one_update = equal_compute(given.model_copy(update={"steps": 1, "precomputed_pairs": 2}), PRETRAIN, nfe, 0).steps
    assert 500 - one_update - 1 <= spent <= 500


def test_inversion_budget_counts_the_fallback_searches() -> None:
    """10 of 40 rows are atypical, so a quarter of the rows searches among 8 candidates at 2 evaluations each."""
    given = recipe(coupling="inversion", precomputed_pairs=1, candidates=8, inversion_nfe=8, typical_quantile=0.999)
    noise = torch.ones(40, 2, 2)
    noise[:10] = 100.0
    share = fallback_share(given, Batches(torch.zeros(40, 1), torch.stack([noise, noise], dim=1)))
    assert share == 0.25
    found = within_budget(given, 2, 500, PRETRAIN, 40, share)
    passes = 500 * 3 * PRETRAIN.batch_size - 40 * 8
    assert found.steps == int(passes / (4 * (2 * 3 + 2 * 8 * 0.25)))
    assert fallback_share(recipe(coupling="nearest"), Batches(noise, noise)) == 1


def test_warmup_shrinks_with_a_short_budget() -> None:
    found = within_budget(recipe(warmup=50, batch_size=PRETRAIN.batch_size), 16, 500, PRETRAIN, 100)
    assert (found.steps, found.warmup) == (31, 3)


def test_budget_below_the_precomputed_solves_is_refused() -> None:
    with pytest.raises(UserError, match=r"^budget: given 1, allowed: more than reflow's solves made ahead cost"):
        within_budget(recipe(coupling="reflow", precomputed_pairs=9), 1, 1, PRETRAIN, 10_000)
