"""Cells of the coupling and one-step studies, made by their programs on tiny settings."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.settings.one_step import METHODS
from tests.project import ROOT, Project

CELL = ("stages.study", "coupling", "--scale", "starter", "--task", "pusht", "--train-seed", "0", "--row")
TEST_SEEDS = 5
STUDY = {
    "train_seeds": [0],
    "budget": 60,
    "checkpoints": 2,
    "seeds": 2,
    "fm_lr": 1e-3,
    "recipes": {
        f"nfe{nfe}": {"lr": 1e-3, "batch_size": 16, "candidates": 2, "reflow_nfe": 2 * nfe, "precomputed_pairs": 1}
        for nfe in (1, 2, 16)
    },
    "chosen": {"nfe1": "reflow", "nfe2": "nearest", "nfe16": "nearest"},
    "precision": {"seeds": 4, "noise_scales": [0.5, 0.0], "held_noises": 1, "fine_nfe": 8, "n_action_steps": 4},
}


@pytest.fixture(scope="module")
def studied(made: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project with a few cells of the coupling study."""
    project = made.copy(tmp_path_factory.mktemp("study") / "project")
    project.params("starter.pusht.study", STUDY)
    project.params("starter.pusht.evaluation.n_seeds", TEST_SEEDS)
    base = ("--train-seed", "0", "--model", "data/starter/pusht/base.safetensors")
    project.check("stages.study", "base", "--scale", "starter", "--task", "pusht", *base)
    for row, *numbers in (
        ("fm", "1", "2"),
        ("fm_continued", "1", "2"),
        ("mip", "2"),
        ("reflow", "1"),
        ("nearest", "2"),
    ):
        project.check(*CELL, row, "--nfe", *numbers)
    project.check("stages.report", "study_table", "--scale", "starter", "--task", "pusht")
    return project


def metrics(project: Project, row: str, nfe: int) -> dict[str, object]:
    folder = project.root / "reports" / "starter" / "coupling_study" / "seed0" / "metrics"
    return json.loads((folder / f"pusht_b-{row}-nfe{nfe}.json").read_text(encoding="utf-8"))


def test_cells_use_all_test_seeds_and_count_steps_from_the_base_model(studied: Project) -> None:
    base = metrics(studied, "fm", 1)["train_steps"]
    assert isinstance(base, int)
    for row, nfe, steps in (("fm_continued", 1, 60), ("nearest", 2, None), ("reflow", 1, None)):
        found = metrics(studied, row, nfe)
        assert found["n_seeds"] == TEST_SEEDS and found["update_ms"] and found["spread_ratio"] > 0  # type: ignore[operator]
        trained = found["train_steps"] - base  # type: ignore[operator]
        assert trained in (steps, steps // 2) if steps else 0 < trained <= 60
    mip = metrics(studied, "mip", 2)["train_steps"]
    assert mip in ((base + 60) // 2, round((base + 60) // 2 / 2))  # two evaluations an update, from scratch
    assert metrics(studied, "mip", 2)["spread_ratio"] == 0  # MIP is deterministic


def test_table_and_report_contain_the_evaluated_cells(studied: Project) -> None:
    reports = studied.root / "reports" / "starter"
    table = pd.read_csv(reports / "coupling_study.csv")
    assert sorted(zip(table["coupling"], table["nfe"], strict=True)) == sorted(
        [("fm", 1), ("fm", 2), ("fm_continued", 1), ("fm_continued", 2), ("mip", 2), ("nearest", 2), ("reflow", 1)]
    )
    assert "| FT, reflow | 1 | 0 |" in (reports / "coupling_study.md").read_text(encoding="utf-8")
    asked = pd.read_csv(reports / "coupling_study_answers.csv")
    assert {"fm_continued", "mip"} == set(asked["against"])
    for name in ("coupling_study", "coupling_study_differences"):
        assert (reports / f"{name}.png").stat().st_size > 0 and (reports / f"{name}.svg").stat().st_size > 0


@pytest.mark.parametrize(
    ("row", "numbers", "error"),
    [
        ("nearest", ["1", "2"], "error: --nfe: given [1, 2], allowed for nearest: one number, which it is trained for"),
        (
            "nearest",
            ["3"],
            "error: data/inputs/starter/coupling-pusht-3.json: not found; `dvc repro resolve` makes the inputs of what "
            "params.yaml lists at its scale; there are those of pusht-1, pusht-16, pusht-2",
        ),
    ],
)
def test_invalid_cells_are_refused(studied: Project, row: str, numbers: list[str], error: str) -> None:
    refused = studied.run(*CELL, row, "--nfe", *numbers)
    assert (refused.returncode, refused.stderr) == (2, f"{error}\n")


def test_tried_settings_are_recorded_on_validation_seeds(studied: Project) -> None:
    tried = ("stages.study", "try", "--scale", "starter", "--task", "pusht", "--method", "ft_fm", "--nfe", "2")
    before = studied.files("reports/starter/coupling_study")
    common = ["seeds=3", "coupling=nearest", "temperatures=[1.0, 0.5]"]
    for changes in (["lr=1e-2", "candidates=1"], ["ema_decay=0.5"]):
        studied.check(*tried, "--set", *common, *changes)
    noted = pd.read_csv(studied.root / "reports" / "starter" / "coupling_study_tried.csv")
    shared = " ".join(common)
    assert list(noted["changed"]) == 4 * [f"{shared} lr=1e-2 candidates=1"] + 4 * [f"{shared} ema_decay=0.5"]
    assert sorted(noted["temperature"]) == 4 * [0.5] + 4 * [1.0]
    # one candidate needs no search, so it gets more steps for the same compute
    assert noted["train_steps"].iloc[:4].max() > noted["train_steps"].iloc[4:].max()
    assert (noted["n_seeds"] == 3).all()
    assert studied.files("reports/starter/coupling_study") == before
    refused = studied.run(*tried, "--set", "lr=fast")
    assert refused.returncode == 2 and refused.stderr.startswith(
        "error: --set: one_step.recipes.nfe2.lr: given 'fast', allowed: "
    )
    refused = studied.run(*tried, "--set", "samples=3")
    assert (
        refused.returncode == 2 and "error: --set: given 'samples=3', allowed: KEY=VALUE with one of" in refused.stderr
    )
    refused = studied.run(*tried, "--train-seed", "9")
    assert refused.returncode == 2 and "base-seed9.safetensors: not found" in refused.stderr
    refused = studied.run(*tried[:-1], "3")
    assert refused.stderr == "error: --nfe: given 3, allowed for ft_fm: 1, 2, 16\n"


ONE_STEP: dict[str, Any] = {
    "train_seeds": [0],
    "budget": 60,
    "seeds": 2,
    "temperatures": [1.0, 0.5],
    "recipes.nfe1": {"coupling": "reflow", "reflow_nfe": 2, "precomputed_pairs": 1, "batch_size": 16},
    **{name: {"batch_size": 16} for name in ("regression", "mip", "lsd")},
    "imle": {"batch_size": 8, "samples": 3},
    "drifting": {"batch_size": 8, "samples": 3},
}


def test_one_step_study_tabulates_every_method(studied: Project, tmp_path: Path) -> None:
    project = studied.copy(tmp_path / "project")
    for key, value in ONE_STEP.items():
        of = project.value(f"starter.pusht.one_step.{key}")
        project.params(f"starter.pusht.one_step.{key}", of | value if isinstance(value, dict) else value)
    project.check("stages.resolve")
    cells = ["fm", "fm_continued", "ft_fm-nfe1", "regression", "mip", "imle", "drifting", "lsd"]
    at = ("--scale", "starter", "--task", "pusht", "--train-seed", "0", "--cell")
    for cell in cells:
        project.check("stages.study", "one_step", *at, cell)
    project.check("stages.study", "times", *at[:-1])
    project.check("stages.report", "one_step_table", "--scale", "starter")
    reports = project.root / "reports" / "starter"
    table = pd.read_csv(reports / "one_step.csv").set_index(["method", "nfe"])
    expected = [(method, nfe) for method in METHODS for nfe in (METHODS[method].nfe if method != "ft_fm" else (1,))]
    assert list(table.index) == expected
    assert (table["n_seeds"] == TEST_SEEDS).all() and (table["ms_per_plan"] > 0).all()
    assert (table.loc[["regression", "mip"], "spread_ratio"] == 0).all() and (
        table.loc[["imle", "fm"], "spread_ratio"] > 0
    ).all()
    assert set(table["temperature"]) <= {0.5, 1.0} and (table.loc[["regression", "mip"], "temperature"] == 1).all()
    assert table["train_passes"].nunique() == 2  # one of the base model, one of all compared models
    answered = pd.read_csv(reports / "one_step_answers.csv")
    assert {"regression", "imle", "drifting", "lsd", "mip", "fm", "fm_continued"} == set(answered["against"])
    aggregated = pd.read_csv(reports / "one_step_aggregates.csv").set_index(["method", "nfe", "measure"])
    assert aggregated.loc[("imle", 1, "max_score"), "improvement_of_ft_fm"] in (0.0, 0.5, 1.0)
    assert "| pusht | pusht_b | Drifting | 1 |" in (reports / "one_step.md").read_text(encoding="utf-8")
    assert all((reports / f"one_step{name}.svg").stat().st_size > 0 for name in ("", "_aggregates", "_profiles"))
    journals = list((project.root / ".flowtune" / "resume").rglob("validation-*.jsonl"))
    seeds = {json.loads(line)["seed"] for path in journals for line in path.read_text(encoding="utf-8").splitlines()}
    assert seeds <= set(range(200_000, 200_100))  # no choice uses test seeds, which begin at 100000


def test_cell_needs_the_base_model_of_its_training_seed(studied: Project, tmp_path: Path) -> None:
    refused = studied.run(*CELL[:-2], "9", "--row", "fm", "--nfe", "1")
    assert (
        refused.returncode == 2
        and "base-seed9.safetensors: not found; `python -m stages.study base --help` says how" in refused.stderr
    )
    project = studied.copy(tmp_path / "project")
    (project.root / "data/checkpoints/starter/pusht/base-seed0.safetensors").unlink()
    refused = project.run(*CELL, "fm", "--nfe", "1")
    assert refused.returncode == 2 and "not found; `python -m stages.study base --help` says how" in refused.stderr


def test_scale_without_a_study_gives_an_error(made: Project) -> None:
    refused = made.run(*CELL, "fm", "--nfe", "1")
    assert refused.stderr.startswith(
        "error: data/inputs/starter/flow_matching-pusht.json: not found; `dvc repro resolve`"
    )


def test_replica_is_another_model_in_its_own_folder(made: Project, tmp_path: Path) -> None:
    project = made.copy(tmp_path / "project")
    before = project.files("data/starter/pusht/pretrain")
    project.check("stages.train", "--scale", "starter", "--task", "pusht", "--method", "fm", "--replica", "7")
    project.check("stages.select", "--scale", "starter", "--task", "pusht", "--replica", "7")
    assert project.files("data/starter/pusht/pretrain") == before
    replica = project.files("data/starter/pusht/seed7/pretrain")
    assert len(replica) == len(before) and not set(replica.values()) & set(before.values())
    assert (project.root / "data/starter/pusht/seed7/base.safetensors").is_file()
    assert (project.root / "reports/starter/selection/pusht-seed7.json").is_file()


def test_precision_study_changes_one_factor_at_a_time(studied: Project) -> None:
    models = [f"data/starter/pusht/models/{name}.safetensors" for name in ("fm-nfe2", "ft_fm-nfe2")]
    studied.check("stages.study", "precision", "--scale", "starter", "--task", "pusht", "--models", *models)
    reports = studied.root / "reports" / "starter"
    table = pd.read_csv(reports / "precision.csv").fillna({"change": ""})
    changes = ["", "noise x 0.5", "noise x 0", "one noise (1)", "4 actions a plan", "NFE 8"]
    assert list(table["change"]) == changes + [change for change in changes if change != "NFE 8"]
    assert (table["n_seeds"] == 4).all()
    assert (table["score_diff"].isna() == (table["change"] == "")).all()
    spread = table.set_index(["method", "change"])["spread"]
    for method in ("fm", "ft_fm"):
        assert all(spread[method, calm] == 0 for calm in ("noise x 0", "one noise (1)"))
        assert 0 < spread[method, "noise x 0.5"] < spread[method, ""]
    assert "| FT-FM, NFE 2 |" in (reports / "precision.md").read_text(encoding="utf-8")
    assert (reports / "precision.png").stat().st_size > 0 and (reports / "precision.svg").stat().st_size > 0


@pytest.mark.parametrize(
    ("models", "error"),
    [
        (["data/checkpoints/starter/pusht/base-seed0.safetensors"], "a model of fm for 0 evaluations, allowed: fm and"),
        (2 * ["data/starter/pusht/models/fm-nfe2.safetensors"], "fm at NFE 2, as data/starter"),
        ([f"{ROOT}/data/checkpoints/lab/pusht/fm-nfe1.safetensors"], "checkpoint of another architecture: its net."),
    ],
)
def test_precision_study_refuses_incompatible_models(studied: Project, models: list[str], error: str) -> None:
    refused = studied.run("stages.study", "precision", "--scale", "starter", "--task", "pusht", "--models", *models)
    assert refused.returncode == 2 and error in refused.stderr and refused.stderr.count("\n") == 1


def test_base_model_of_another_training_seed_is_refused(studied: Project) -> None:
    base = ("--train-seed", "1", "--model", "data/starter/pusht/base.safetensors")
    refused = studied.run("stages.study", "base", "--scale", "starter", "--task", "pusht", *base)
    assert refused.returncode == 2 and "allowed: ('starter', 'pusht', 'fm', 1, 0)" in refused.stderr
    assert not (studied.root / "data/checkpoints/starter/pusht/base-seed1.safetensors").exists()
