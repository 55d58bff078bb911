"""A temporary project with settings so tiny that its whole DAG runs in minutes."""

import re
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np

from pipeline.settings import schema
from tests.project import ROOT, Project, copy_code, write_checksum, write_yaml

TRAINING: dict[str, Any] = {"batch_size": 16, "warmup": 5}
FP32 = TRAINING | {"precision": "fp32"}
NET: dict[str, Any] = {"width": 16, "depth": 1}
MLP = NET | {"expansion": 1, "time_features": 8}
LISTS: dict[str, Any] = {
    "tasks": ["pusht"],
    "offline": [],
    "nfe": [1, 2],
    "residual": ["resft_fm-nfe2", "resft_fm_unet-nfe2"],
    "robustness": ["fm-nfe2", "resft_fm-nfe2"],
    "diffusion": ["ddpm-nfe2", "ddim-nfe2"],
    "baselines": ["random", "nearest_demo"],
    "images": ["digits"],
    "image_nfe": [1, 2],
    "theory": ["starter"],
}
# differences from the blocks of scale starter
PUSHT: dict[str, Any] = {
    "threads": 1,
    "data": {"dataset": "pusht_starter", "validation_fraction": 0.2},
    "net": MLP,
    "pretrain": FP32 | {"steps": 400, "checkpoints": 2},
    "diffusion": FP32 | {"steps": 60},
    "select": {"nfe": 2, "seeds": 2},
    "evaluation": {
        "n_seeds": 20,
        "n_seeds_secondary": 3,
        "max_steps": 24,
        "workers": 1,
        "num_envs": 1,  # episodes end one by one, so that an evaluation can be interrupted
        "policy_batch_size": 4,
        "videos": False,
    },
    "robustness": {"seeds": 3},
}
FINETUNE = FP32 | {"candidates": 2, "steps": 200, "lr": 1e-3, "fm_lr": 1e-3, "collapse_below": 0.0}
FINETUNE |= {"history_points": 1, "history_seeds": 2}
RESIDUAL = FP32 | {"residual_steps": 1, "candidates": 2, "steps": 200, "reflow_nfe": 4, "precomputed_pairs": 1}
RESIDUAL |= {"guard_every": 100, "collapse_below": 0.0}
RESIDUAL_NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "resft_fm-nfe2": ("resft_fm-nfe4", {"state": "step", "widths": [3, 3], "input": NET}),
    "resft_fm_unet-nfe2": ("resft_fm_unet-nfe16", {"channels": [8], "groups": 2, "time_features": 8}),
}
"""Row → the row of scale starter that it is made of, and the differences of its net."""
DIGITS: dict[str, Any] = {
    "net": MLP,
    "extractor": {"channels": 4, "features": 8, "steps": 40, "batch_size": 16},
    "pretrain": TRAINING | {"steps": 60, "checkpoints": 3},
    "select": {"latest": 40, "nfe": 2, "n_samples": 40, "sampling_seeds": 2},
    "residual": TRAINING | {"nfe": 2, "residual_steps": 1, "coupling": "nearest", "candidates": 2, "steps": 20},
    "fid": {"n_samples": 40, "sampling_seeds": 2, "batch": 20, "tolerance": 0.01, "halves": 3, "shown": 3},
}
DIGITS["residual"] |= {"batch_size": 8, "net": {"channels": 8, "groups": 4, "head_channels": 8}}
DIGITS["fid"] |= {"solvers": ["euler-1", "euler-2", "dopri5"]}
IMAGE_FINETUNE: dict[str, dict[str, Any]] = {
    "nfe1": {"coupling": "nearest", "candidates": 2},
    "nfe2": {"reflow_nfe": 4, "precomputed_pairs": 0},
}
GAP: dict[str, Any] = {"net": NET, "train": TRAINING | {"steps": 60}, "trajectories": 4, "nfe": [4, 8]}
TOYS: dict[str, Any] = {"net": NET, "couplings": ["independent", "nearest"], "free": 2}
TOYS |= {key: TRAINING | {"steps": 60} for key in ("fm", "mle")}
TOYS |= {key: {"steps": 200, "warmup": 5, "batch_size": 32} for key in ("follow", "settle")}


def tiny_settings() -> dict[str, Any]:
    """Return params.yaml with the same tiny blocks at every scale."""
    starter = schema.load(ROOT / "params.yaml").starter.model_dump(exclude_none=True)
    pusht, digits = starter["pusht"], starter["digits"]
    finetune = dict.fromkeys(("nfe1", "nfe2"), pusht["finetune"]["nfe1"] | FINETUNE)
    residual = {
        row: _merged(pusht["residual"][like], RESIDUAL | {"net": net}) for row, (like, net) in RESIDUAL_NETS.items()
    }
    of_images = {"batch_size": 16, "warmup": 2, "history_points": 2}
    image_finetune = {row: digits["finetune"][row] | of_images | more for row, more in IMAGE_FINETUNE.items()}
    blocks = {
        "pusht": _merged(pusht, PUSHT) | {"finetune": finetune, "residual": residual},
        "digits": _merged(digits, DIGITS) | {"finetune": image_finetune},
        "gap": _merged(starter["gap"], GAP),
        "toys": _merged(starter["toys"], TOYS),
    }
    scales = {name: blocks | {"lists": LISTS | {"theory": [name]}} for name in get_args(schema.Scale)}
    return {"scale": "starter", **LISTS, **scales}


def make_project(root: Path) -> Project:
    """Make this project in the new folder ``root``: its code, tiny settings, demonstrations made on the spot."""
    root.mkdir()
    copy_code(root)
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / ".dvc" / "no_git", root / ".dvc" / "no_git")
    config = (ROOT / ".dvc" / "config").read_text(encoding="utf-8")
    (root / ".dvc" / "config").write_text(f"{config}    no_scm = true\n", encoding="utf-8")
    write_yaml(tiny_settings(), root / "params.yaml")
    _save_often(root / "pipeline" / "training" / "loop.py")
    (root / "data" / "recordings").mkdir(parents=True)
    demonstrations = root / "data" / "demonstrations"
    write_demonstrations(demonstrations / "pusht_starter.npz")
    for checksum in (ROOT / "data" / "demonstrations").glob("*.sha256"):  # fetch depends on those of all tasks
        if not (demonstrations / checksum.name).exists():
            shutil.copy(checksum, demonstrations)
    return Project(root)


def _merged(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return ``settings`` with ``changes``, block by block."""
    return settings | {
        key: _merged(settings[key], value) if isinstance(value, dict) else value for key, value in changes.items()
    }


def _save_often(loop: Path) -> None:
    """Save the state of a training at every step, so that an interruption leaves one to resume from."""
    text = loop.read_text(encoding="utf-8")
    for name, value in (("SAVE_EVERY_S", "0.0"), ("LOG_EVERY", "10")):
        text, found = re.subn(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
        assert found
    loop.write_text(text, encoding="utf-8")


def write_demonstrations(path: Path) -> None:
    """Write six short Push-T episodes in which the agent moves to random places, and their checksum."""
    from pipeline.tasks.pusht.env import PushT, initial_state

    random = np.random.default_rng(0)
    simulation = PushT()
    states, actions, ends, scores = [], [], [], []
    for seed in range(6):
        state, best = simulation.reset(initial_state("b", seed)), 0.0
        for step in range(length := int(random.integers(20, 41))):
            if step % 5 == 0:
                target = random.uniform(100, 400, 2)
            states.append(state)
            actions.append(target)
            state, score, _, _ = simulation.step(target)
            best = max(best, score)
        ends.append(length)
        scores.append(best)
    path.parent.mkdir(parents=True)
    np.savez_compressed(
        path,
        state=np.array(states, dtype=np.float32),
        action=np.array(actions, dtype=np.float32),
        episode_ends=np.cumsum(ends),
        seed=np.arange(6),
        max_score=np.array(scores, dtype=np.float32),
    )
    write_checksum(path)
