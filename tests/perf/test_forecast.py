"""The forecast of a scale counts every training, builds its nets, and predicts in proportion to steps."""

from pathlib import Path

import pytest
import torch

from pipeline.perf import forecast
from pipeline.perf.forecast import Forecast, _extrapolated, forecasts
from pipeline.perf.trainings import trainings
from pipeline.settings import schema
from pipeline.settings.layers import Scale
from pipeline.settings.schema import ScaleSettings
from pipeline.utils.code_deps import ROOT
from pipeline.utils.seeding import Generators


def block(scale: Scale) -> ScaleSettings:
    return schema.load(ROOT / "params.yaml").block(scale)


def test_fixed_cost_is_not_scaled_with_the_batch() -> None:
    assert _extrapolated(2.0 + 2 * 0.5, 2.0 + 8 * 0.5, rows=8, size=64) == pytest.approx(2.0 + 64 * 0.5)


def without_tasks(settings: ScaleSettings) -> ScaleSettings:
    return settings.model_copy(update={"tasks": []})


def test_forecast_measures_the_image_trainings_of_starter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    # earlier tests leave threads of autograd, which cannot be forked
    monkeypatch.setattr(forecast, "_apart", lambda work: work())
    made = {row.name: row for row in forecasts(without_tasks(block("starter")), measured_steps=1, rows=8)}
    methods = {f"pretrain {method}" for method in ("ddpm", "vp_fm", "ve_fm", "ot_fm", "si", "i_cfm", "ot_cfm")}
    tuned = {f"ft_fm nfe{nfe}" for nfe in (1, 2, 4, 8)}
    assert methods | tuned | {"extractor", "resft_fm", "images of Table 1"} <= set(made)
    assert all(row.hours > 0 and row.core_hours > 0 and not row.note for row in made.values() if row.batch_size > 1)
    one: Forecast = made["pretrain si"]
    assert one.hours == pytest.approx(one.steps * one.seconds / 3600)
    assert made["pretrain i_cfm"].seconds == one.seconds  # they cost the same and are measured once
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("scale", ["starter", "lab", "paper"])
def test_every_training_of_a_scale_takes_a_step(scale: Scale) -> None:
    """The paper's trainings are measured by `stages.plan`, which takes too long for a test."""
    settings = block(scale)
    if scale == "paper":
        settings = settings.model_copy(update={"tasks": ["pusht"], "images": [], "nfe": [1], "residual": []})
    for training in trainings(settings, "fp32"):
        if training.like in ("fm", "pretrain vp_fm"):
            continue
        torch.manual_seed(0)
        objective, batches = training.build(Generators(0))
        loss = objective(*batches.draw(2, torch.Generator().manual_seed(0)))
        loss.backward()
        assert loss.isfinite(), training.name
        assert training.optimization.precision in ("fp32", "bf16") and training.optimization.steps > 0
