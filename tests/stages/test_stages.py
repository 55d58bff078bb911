"""Stage programs on the command line."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from pipeline.training.checkpoint import read_metadata
from tests.project import Project

EVALUATE = ("stages.evaluate", "--evaluation", "pusht_b", "--nfe", "1")
SEEDS = ("--seeds", "100000:100003", "--repeats", "2")


def test_evaluation_does_not_depend_on_workers_and_batch_size(made: Project, tmp_path: Path) -> None:
    checkpoint = ("--checkpoint", "data/starter/pusht/models/ft_fm-nfe1.safetensors")
    alone, together = tmp_path / "alone.csv", tmp_path / "together.csv"
    result = made.check(*EVALUATE, *checkpoint, *SEEDS, "--workers", "1", "--num-envs", "1", "--out", str(alone))
    made.check(*EVALUATE, *checkpoint, *SEEDS, "--workers", "2", "--num-envs", "500", "--out", str(together))

    assert alone.read_bytes() == together.read_bytes()
    episodes = pd.read_csv(alone)
    pairs = [(seed, repeat) for seed in range(100_000, 100_003) for repeat in range(2)]
    assert list(zip(episodes["seed"], episodes["repeat"], strict=True)) == pairs
    assert set(episodes["method"]) == {"ft_fm"}
    assert f"pusht_b, ft_fm at NFE 1: max score {episodes['max'].mean():.3f} [" in result.stdout
    assert f"success {100 * episodes['success'].mean():.1f} % [" in result.stdout
    assert result.stdout.endswith(f"3 seeds → {alone}\n")


def test_first_repeat_does_not_depend_on_the_number_of_repeats(made: Project, tmp_path: Path) -> None:
    out = tmp_path / "episodes.csv"
    base = ("--checkpoint", "data/starter/pusht/base.safetensors")
    made.check(*EVALUATE, *base, "--seeds", "100000:100002", "--repeats", "1", "--out", str(out))
    once = pd.read_csv(out)
    made.check(*EVALUATE, *base, "--seeds", "100000:100002", "--repeats", "2", "--out", str(out))
    twice = pd.read_csv(out)
    assert once["final"].tolist() == pytest.approx(twice.loc[twice["repeat"] == 0, "final"].tolist(), abs=0)


def test_fine_tuned_model_is_evaluated_with_the_solver_of_its_recipe(made: Project, tmp_path: Path) -> None:
    project = made.copy(tmp_path / "heun")
    recipe = {"solver": "heun", "gradient": "checkpointed", "last_steps": 1, "steps": 3, "warmup": 1}
    for key, value in recipe.items():
        project.params(f"starter.pusht.finetune.nfe2.{key}", value)
    of_task = ("--scale", "starter", "--task", "pusht", "--nfe", "2")
    project.check("stages.train", *of_task, "--method", "ft_fm")
    model = "data/starter/pusht/models/ft_fm-nfe2.safetensors"
    assert read_metadata(project.root / model).solver == "heun"
    refused = project.run(*EVALUATE, *SEEDS, "--checkpoint", model, "--out", str(tmp_path / "episodes.csv"))
    assert refused.returncode != 0
    assert refused.stderr.splitlines()[-1].endswith(
        "heun spends 2 evaluations a step: nfe = 1 is no positive multiple of that"
    )
    assert not (tmp_path / "episodes.csv").exists()


def test_model_tuned_with_all_loss_terms_and_lora_has_plain_weights(made: Project, tmp_path: Path) -> None:
    project = made.copy(tmp_path / "terms")
    recipe = {"covariance": "profiled", "fm_weight": 0.1, "energy_weight": 0.01, "lora_rank": 2, "steps": 10}
    for key, value in recipe.items():
        project.params(f"starter.pusht.finetune.nfe1.{key}", value)
    project.check("stages.train", "--scale", "starter", "--task", "pusht", "--nfe", "1", "--method", "ft_fm")
    models = "data/starter/pusht"
    base, tuned = (
        load_file(project.root / models / name) for name in ("base.safetensors", "models/ft_fm-nfe1.safetensors")
    )
    assert tuned.keys() == base.keys()
    changed = {name for name, value in tuned.items() if not torch.equal(value, base[name].to(value.dtype))}
    assert changed == {
        name for name in base if name.startswith("net.") and name.endswith("weight") and "norm" not in name
    }
