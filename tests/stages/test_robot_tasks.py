"""All stages of every robot task, from demonstrations to table rows, on tiny settings."""

import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from ruamel.yaml import YAML

from pipeline.evaluation.rollouts import episode_columns
from pipeline.settings import schema
from pipeline.utils.code_deps import ROOT
from tests.project import write_settings
from tests.tasks.test_loader import put_outside

LAB: dict[str, Any] = schema.load(ROOT / "params.yaml").lab.model_dump(exclude_none=True)
FEW = {"steps": 4, "batch_size": 4, "warmup": 1}
ROWS = ["ft_fm-nfe1", "ddpm-nfe2", "nearest_demo-nfe0"]  # the whole DAG has the others


def tiny(task: str) -> dict[str, Any]:
    """Return the lab settings of ``task`` with few training steps and short episodes."""
    settings: dict[str, Any] = json.loads(json.dumps(LAB[task]))
    settings["data"]["dataset"] = settings["data"]["dataset"].replace("_expert", "_starter")  # _expert is not shipped
    if "vision" in settings["data"]:
        settings["data"]["vision"] |= {"crop": 32}
    settings["net"] |= {"width": 8, "depth": 1, "time_features": 8}
    settings["pretrain"] |= FEW | {"checkpoints": 2}
    settings["diffusion"] |= FEW
    settings["select"] |= {"rule": "validation_loss"}
    for recipe in settings["finetune"].values():
        recipe |= FEW | {"candidates": 2, "history_points": 1, "history_seeds": 1, "guard_every": 4}
    for recipe in settings["residual"].values():
        recipe |= FEW | {"candidates": 2, "guard_every": 4}
    settings["evaluation"] |= {
        "n_seeds": 2,
        "n_seeds_secondary": 2,
        "max_steps": 6,
        "workers": 0,
        "num_envs": 2,
        "policy_batch_size": 2,
    }
    settings["robustness"] |= {"seeds": 2}
    return settings | {"threads": 1}


def of_a_file(path: Path, block: str) -> dict[str, Any]:
    """Return tiny settings of a ``block`` whose task is in the file ``path``."""
    settings = tiny("lift") | {"task": f"{path}:TASK", "select": tiny("lift")["select"] | {"evaluation": block}}
    settings["data"] |= {"dataset": "starts", "observation": "place"}
    return settings


def keep_episodes(store: Path, count: int) -> None:
    """Keep the first ``count`` episodes of a Push-T image store: encoding all takes minutes."""
    group = zarr.open_group(store, mode="r")
    ends = np.asarray(group["meta/episode_ends"])[:count]
    arrays = {name: np.asarray(group[name][: ends[-1]]) for name in ("data/state", "data/action", "data/img")}
    shutil.rmtree(store)
    short = zarr.create_group(store, zarr_format=2)
    for name, array in (arrays | {"meta/episode_ends": ends}).items():
        short.create_array(name, data=array)


def run(monkeypatch: pytest.MonkeyPatch, stage: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [stage, "--scale", "lab", *arguments])
    importlib.import_module(f"stages.{stage}").main()


@pytest.mark.parametrize("task", [*(task for task in LAB["tasks"] if task != "pusht"), "reach"])
def test_task_runs_from_demonstrations_to_table_rows(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if task == "pusht_image" and not os.environ.get("FLOWTUNE_MIRROR"):
        pytest.skip("needs the public data: set FLOWTUNE_MIRROR")
    # the residual of images would only encode all of them again
    rows, threads = [*ROWS, *(["resft_fm-nfe16"] if task != "pusht_image" else [])], torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWTUNE_TRACKING", "off")
    settings = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    block = tiny(task) if task in LAB else of_a_file(put_outside(tmp_path), task)
    choice = {"tasks": [task], "nfe": [1], "residual": ["resft_fm-nfe16"], "robustness": ["fm-nfe1"], "images": []}
    choice |= {"theory": ["lab"]}
    settings |= choice | {"scale": "lab"}
    settings["lab"] |= {"lists": settings["lab"]["lists"] | choice, task: block}
    write_settings(settings)
    try:
        run(monkeypatch, "fetch", "--task", task)
        if task == "pusht_image":
            keep_episodes(Path("data", "lab", task, "demonstrations"), 6)
        for stage in ("prepare", "train --method fm", "select", "train --method ddpm"):
            run(monkeypatch, *stage.split(), "--task", task)
        run(monkeypatch, "train", "--task", task, "--method", "ft_fm", "--nfe", "1")
        if "resft_fm-nfe16" in rows:
            run(monkeypatch, "train", "--task", task, "--row", "resft_fm-nfe16")
        for row in rows:
            run(monkeypatch, "evaluate", "--task", task, "--row", row)
        run(monkeypatch, "report", "tabulate")
        run(monkeypatch, "report", "tabulate_settings")
    finally:
        torch.set_num_threads(threads)
        capsys.readouterr()

    reports, spec = Path("reports", "lab"), schema.load().lab.task(task).load_task()
    evaluations = spec.evaluations(task)
    for row in rows:
        episodes = pd.read_csv(reports / "episodes" / f"{task}-{row}.csv")
        assert tuple(episodes.columns) == episode_columns(spec.subtasks)
        assert len(episodes) == 2 * len(evaluations)
        assert set(episodes["evaluation"]) == set(evaluations) and (episodes["steps"] <= 6).all()
    table = pd.read_csv(reports / "table2.csv")
    found = {f"{method}-nfe{nfe}" for method, nfe in zip(table["method"], table["nfe"], strict=True)}
    assert set(rows) - {"ddpm-nfe2"} <= found  # params.yaml has it at another NFE
    assert pd.read_csv(reports / "table_d1.csv")["task"].tolist() == [task]
    assert pd.read_csv(reports / "table_d2.csv")["action_dim"].tolist() == [spec.action_dim]
