"""All stages of offline tasks on tiny settings, while no simulator can be imported."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML

from pipeline.reporting.offline import OFFLINE_HEADER
from pipeline.training.data import PreparedData
from pipeline.utils.code_deps import ROOT
from tests.project import write_settings
from tests.stages.test_robot_tasks import LAB, run, tiny
from tests.tasks.formats.files import CAMERA, V3_VIDEO, episodes, with_camera, write_v3, write_video
from tests.test_architecture import SIMULATORS

ROWS = ["nearest_demo-nfe0", "persistence-nfe0", "ddim-nfe2", "fm-nfe1", "ft_fm-nfe1", "resft_fm-nfe16"]
SO101 = {"observation": {"observation.state": 6}, "action": {"action": 6}}


def offline(source: dict[str, Any]) -> dict[str, Any]:
    """Return lab's settings of a task defined by the recordings ``source`` only."""
    block: dict[str, Any] = json.loads(json.dumps(LAB["pusht"] | {"study": None}))
    del block["study"], block["evaluation"]["options"]
    block["data"] |= {"dataset": "recorded", "observation": "state", "validation_fraction": 0.5}
    block["select"] = {"rule": "validation_loss", "nfe": 2, "seeds": 1}
    return block | {"task": "custom", "custom": {"datasets": {"recorded": source}}}


def arm(_: Path) -> dict[str, Any]:
    """Return the settings of recordings of a real arm."""
    mirror = os.environ.get("FLOWTUNE_MIRROR")
    path = Path(mirror or "", "lerobot_so101_v3")
    if not mirror or not path.exists():
        pytest.skip("needs lerobot_so101_v3 in FLOWTUNE_MIRROR")
    return offline(SO101 | {"path": str(path)})


def filmed(folder: Path) -> dict[str, Any]:
    """Return the settings of synthetic recordings with videos of a camera."""
    lengths = (40,) * 6
    path = with_camera(folder, write_v3, episodes(lengths))
    write_video(path / V3_VIDEO, list(np.random.default_rng(0).uniform(0, 255, sum(lengths))))
    keys = {"observation": {"observation.state": 4}, "action": {"action": 2}, "image": {CAMERA: 32}}
    block = offline(keys | {"path": str(path)})
    block["data"] |= {"observation": "image", "vision": {"kind": "resnet18", "width": 16, "crop": 32}}
    return block


@pytest.mark.parametrize(
    ("task", "settings"), [("seattle_weather", lambda _: LAB["seattle_weather"]), ("arm", arm), ("filmed", filmed)]
)
def test_offline_task_runs_from_data_to_table(
    task: str, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(LAB, task, settings(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWTUNE_TRACKING", "off")
    for name in SIMULATORS:
        monkeypatch.setitem(sys.modules, name, None)
    values = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    choice = {"tasks": [task], "offline": [task], "nfe": [1], "residual": ["resft_fm-nfe16"], "images": []}
    choice |= {"theory": ["lab"]}
    choice |= {"robustness": ["fm-nfe1"], "diffusion": ["ddim-nfe2"], "baselines": ["nearest_demo", "persistence"]}
    values |= choice | {"scale": "lab"}
    few = tiny(task)
    few["evaluation"]["policy_batch_size"] = 64
    for recipe in few["finetune"].values():
        recipe |= {"coupling": "nearest", "candidates": 2}  # the solves of reflow would give FM as many updates
    values["lab"] |= {"lists": values["lab"]["lists"] | choice, task: few}
    write_settings(values)
    threads = torch.get_num_threads()
    try:
        for stage in ("fetch", "prepare", "train --method fm", "select", "train --method ddpm"):
            run(monkeypatch, *stage.split(), "--task", task)
        for method in ("fm", "ft_fm"):
            run(monkeypatch, "train", "--task", task, "--method", method, "--nfe", "1")
        run(monkeypatch, "train", "--task", task, "--row", "resft_fm-nfe16")
        for row in ROWS:
            run(monkeypatch, "evaluate", "--task", task, "--row", row)
        run(monkeypatch, "evaluate", "--task", task, "--row", "fm-nfe1", "--disturbed")
        run(monkeypatch, "report", "tabulate_offline", "--task", task)
        for stage in ("tabulate", "tabulate_settings", "report_stability", "draw"):
            run(monkeypatch, "report", stage)
        first = Path("reports/lab/episodes", f"{task}-ft_fm-nfe1.csv").read_bytes()
        run(monkeypatch, "evaluate", "--task", task, "--row", "ft_fm-nfe1")
    finally:
        torch.set_num_threads(threads)
        capsys.readouterr()

    reports = Path("reports", "lab")
    assert (reports / "episodes" / f"{task}-ft_fm-nfe1.csv").read_bytes() == first
    table = pd.read_csv(reports / "offline" / f"{task}.csv")
    assert tuple(table.columns) == OFFLINE_HEADER
    plain = table[table["perturbation"] == "none"]
    assert [f"{method}-nfe{nfe}" for method, nfe in zip(plain["method"], plain["nfe"], strict=True)] == ROWS
    assert set(table.loc[table["perturbation"] != "none", "perturbation"]) >= {"action_noise=0.1"}
    data = PreparedData.load(Path("data", "lab", task, "prepared.npz"))
    assert data.reported is not None and (table["n_windows"] == len(data.reported.row)).all()
    assert (plain["n_episodes"] == len(np.unique(data.reported.episode))).all()
    compared = [row in ("nearest_demo-nfe0", "persistence-nfe0", "ft_fm-nfe1") for row in ROWS]  # FM is at NFE 1 alone
    assert plain["error_diff_vs_fm"].notna().tolist() == compared
    assert plain["repeats"].tolist() == [1, 1, 16, 16, 16, 16]
    assert np.isfinite(plain[["error", "best_of_k", "mean_error", "nll", "crps", "spread", "jump"]]).all(axis=None)
    assert "Missing rows" not in (reports / "offline" / f"{task}.md").read_text(encoding="utf-8")
    history = pd.read_csv(reports / "history" / f"{task}-ft_fm-nfe1.csv")
    assert history["max_score"].isna().all() and np.isfinite(history[["best_of_k", "reconstruction_error"]]).all(
        axis=None
    )
    for name in (f"offline/{task}", "figure_2b", "score_vs_nfe"):
        assert (reports / f"{name}.png").read_bytes().startswith(b"\x89PNG")
