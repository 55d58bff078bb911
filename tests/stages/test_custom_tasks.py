"""All stages of a task that is only a block of params.yaml, as ``stages.inspect`` suggests it."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pandas as pd
import pytest
import torch
from minari.data_collector import EpisodeBuffer
from numpy.typing import NDArray
from ruamel.yaml import YAML

from pipeline.tasks.formats.description import describe
from pipeline.tasks.formats.reading import open_recording
from pipeline.tasks.robomimic.simulator import has_egl
from pipeline.utils.code_deps import ROOT
from pipeline.utils.errors import UserError
from tests.project import write_settings

Controller = Callable[[Any], NDArray[np.float32]]
FEW: dict[str, Any] = {"steps": 4, "batch_size": 4, "warmup": 1}
TINY: dict[str, Any] = {
    "net": {"width": 16, "depth": 1, "time_features": 8},
    "pretrain": FEW | {"steps": 60, "batch_size": 16, "checkpoints": 2},
    "diffusion": FEW,
    "select": {"rule": "validation_loss"},
    "finetune": {"nfe1": FEW | {"history_points": 1, "history_seeds": 1, "guard_every": 4}},
    "residual": {"resft_fm-nfe16": FEW | {"guard_every": 4}},
    "evaluation": {"n_seeds": 2, "n_seeds_secondary": 2, "workers": 0, "num_envs": 2, "policy_batch_size": 2},
    "robustness": {"seeds": 1},
}
CHOICE = {"tasks": ["arm"], "nfe": [1], "residual": ["resft_fm-nfe16"], "robustness": ["fm-nfe1"], "images": []}
CHOICE |= {"diffusion": [], "baselines": ["random", "nearest_demo"]}


def reach(observation: Any) -> NDArray[np.float32]:
    """Move the two links of Reacher towards the target, by the transposed Jacobian."""
    first, second = np.arctan2(observation[2:4], observation[:2])
    both = first + second
    inner = np.array([-0.11 * np.sin(both), 0.11 * np.cos(both)])
    outer = inner + np.array([-0.1 * np.sin(first), 0.1 * np.cos(first)])
    torque = -8 * np.stack([outer, inner]) @ observation[8:10] - 0.06 * observation[6:8]
    return np.clip(torque, -1, 1).astype(np.float32)


def fetch(observation: Any) -> NDArray[np.float32]:
    """Move the gripper of FetchReach straight to its goal."""
    return np.append(np.clip(10 * (observation["desired_goal"] - observation["achieved_goal"]), -1, 1), 0).astype("f4")


def recorded(folder: Path, env: Any, controller: Controller, steps: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Record eight episodes in ``folder`` with Minari."""
    buffers = []
    for seed in range(8):
        seen, done, rewards = [env.reset(seed=seed)[0]], [], []
        for _ in range(steps):
            done.append(controller(seen[-1]))
            observation, reward, *_ = env.step(done[-1])
            seen.append(observation)
            rewards.append(reward)
        keys = seen[0].keys() if isinstance(seen[0], dict) else ()
        observations: Any = {key: np.stack([each[key] for each in seen]) for key in keys} or np.stack(seen)
        flags = [False] * steps
        buffers.append(EpisodeBuffer(seed, seed, None, observations, np.stack(done), rewards, flags, flags))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    minari.create_dataset_from_buffers("arm-v0", buffers, env=env)
    return folder / "arm-v0"


def block_of(path: Path) -> dict[str, Any]:
    """Return the block for params.yaml that the survey of the data set at ``path`` prints."""
    printed = describe(open_recording(path), path).partition("For params.yaml:\n\n")[2]
    (block,) = YAML(typ="safe").load(printed).values()
    return block


def write_params(block: dict[str, Any]) -> None:
    """Write the project's params.yaml, with ``block`` added, to the current folder."""
    settings = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    arm = {key: {**block.get(key, {}), **value} for key, value in TINY.items()} | {
        key: value for key, value in block.items() if key not in TINY
    }
    settings |= CHOICE | {"arm": arm, "scale": "starter"}
    settings["starter"]["lists"] |= CHOICE
    write_settings(settings)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Yield a function that runs a stage's program in a temporary folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWTUNE_TRACKING", "off")
    threads = torch.get_num_threads()

    def run(stage: str, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [stage, *arguments])
        importlib.import_module(f"stages.{stage}").main()

    yield run
    torch.set_num_threads(threads)
    capsys.readouterr()


def learn(run: Any, *rows: str) -> pd.DataFrame:
    """Run the stages from the data to Table 2."""
    of_arm = ("--scale", "starter", "--task", "arm")
    for stage, *arguments in (("fetch",), ("prepare",), ("train", "--method", "fm"), ("select",)):
        run(stage, *of_arm, *arguments)
    run("train", *of_arm, "--method", "ft_fm", "--nfe", "1")
    for row in rows:
        run("evaluate", *of_arm, "--row", row)
    run("report", "tabulate", "--scale", "starter")
    return pd.read_csv("reports/starter/table2.csv").set_index("method")


def test_reacher_from_minari_recordings(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    block = block_of(recorded(tmp_path / "data", gymnasium.make("Reacher-v5"), reach, 30, monkeypatch))
    block["custom"]["environment"]["returns"] = [-50, 0]
    block["select"]["evaluation"] = "arm"
    block["evaluation"]["max_steps"] = 30
    write_params(block)
    table = learn(run, "ft_fm-nfe1", "nearest_demo-nfe0", "random-nfe0")
    assert set(table["evaluation"]) == {"arm"} and set(table.index) == {"ft_fm", "nearest_demo", "random"}
    assert table["max_score"].between(0, 1, inclusive="neither").all()
    if not has_egl():
        return
    run(
        *("evaluate", "--checkpoint", "data/starter/arm/models/ft_fm-nfe1.safetensors", "--nfe", "1"),
        *("--evaluation", "arm", "--seeds", "7:9", "--repeats", "1", "--out", "episodes.csv", "--videos", "videos"),
    )
    assert len(pd.read_csv("episodes.csv")) == 2
    assert sorted(path.suffix for path in Path("videos").iterdir()) == [".gif"] * 3


def test_fetch_reach_with_dictionary_observations(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import gymnasium_robotics

    gymnasium.register_envs(gymnasium_robotics)
    block = block_of(recorded(tmp_path / "data", gymnasium.make("FetchReach-v4"), fetch, 20, monkeypatch))
    environment = block["custom"]["environment"]
    assert environment.pop("returns") and environment["observation"] == ["achieved_goal", "desired_goal", "observation"]
    environment["success"] = "is_success"
    block["select"]["evaluation"] = "arm"
    block["evaluation"]["max_steps"] = 20
    write_params(block)
    assert learn(run, "ft_fm-nfe1").loc["ft_fm", "evaluation"] == "arm"

    recording = recorded(tmp_path / "other", gymnasium.make("Reacher-v5"), reach, 20, monkeypatch)
    block["custom"]["datasets"] = block_of(recording)["custom"]["datasets"]
    write_params(block)
    run("fetch", "--scale", "starter", "--task", "arm")
    with pytest.raises(UserError, match="FetchReach-v4 have 16 numbers, those of the demonstrations 10; the data set"):
        run("prepare", "--scale", "starter", "--task", "arm")
