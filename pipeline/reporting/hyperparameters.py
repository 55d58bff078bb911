"""Tables D.1 and D.2 of the paper, made from ``params.yaml``: what was set, beside what the paper set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from pipeline.nets.registry import build_encoder, build_net
from pipeline.reporting.tables import TASK_NAMES
from pipeline.settings.schema import ScaleSettings, TaskSettings
from pipeline.tasks.download import DATA_SETS
from pipeline.tasks.registry import TASKS

NET_NAMES = {"mlp": "MLP", "unet1d": "ConditionalUnet1D", "transformer1d": "Transformer"}
ENCODER_NAMES = {"resnet18": "ResNet-18"}
MILLION = 1e6

PAPER_D1 = {  # Ta, Tp, observation, net, its millions of parameters, encoder, its millions, learning rates
    "pusht_image": (8, 16, "1x96x96", "ConditionalUnet1D", 80, "ResNet-18", 11, 1e-4, 5e-6),
    "kitchen": (8, 16, "1x60", "ConditionalUnet1D", 66, None, None, 1e-4, 5e-6),
    "transport": (8, 16, "1x50", "ConditionalUnet1D", 66, None, None, 1e-4, 5e-6),
}
PAPER_D2 = {  # robots, objects, components of an action, demonstrations, steps, images
    "pusht_image": (1, 1, 2, 200, 300, True),
    "kitchen": (1, 7, 9, 566, 280, False),
    "transport": (2, 3, 20, 200, 700, False),
}
D1_COLUMNS = (
    *("chunk", "prediction_horizon", "observation", "net", "net_millions", "encoder", "encoder_millions"),
    *("pretrain_lr", "finetune_lr"),
)
D2_COLUMNS = ("robots", "objects", "action_dim", "demonstrations", "max_steps", "images")


@dataclass(frozen=True)
class Scene:
    """What a task is about."""

    robots: int
    objects: int


SCENES = {
    "pusht": Scene(1, 1),
    "pusht_image": Scene(1, 1),
    "kitchen": Scene(1, 7),
    "lift": Scene(1, 1),
    "can": Scene(1, 1),
    "square": Scene(1, 1),
    "transport": Scene(2, 3),
}


def table_d1(settings: ScaleSettings, tasks: Sequence[str], nfe: int) -> pd.DataFrame:
    """Hyper-parameters, a row a task: those of ``settings``, and under ``paper_…`` the paper's where it has the task.

    Args:
        nfe: of the fine-tuning whose learning rate is told.
    """
    rows = [{"task": task} | _d1(settings.task(task), task, nfe) | _paper(PAPER_D1, D1_COLUMNS, task) for task in tasks]
    return pd.DataFrame(rows, columns=_columns(D1_COLUMNS))


def table_d2(settings: ScaleSettings, tasks: Sequence[str]) -> pd.DataFrame:
    """The tasks, a row each; see ``table_d1``. Demonstrations are counted before any are held out."""
    rows = [{"task": task} | _d2(settings.task(task), task) | _paper(PAPER_D2, D2_COLUMNS, task) for task in tasks]
    counts = [name for name in _columns(D2_COLUMNS[:-1]) if name != "task"]
    # else one count that is not known would make fractions of all
    return pd.DataFrame(rows, columns=_columns(D2_COLUMNS)).astype(dict.fromkeys(counts, "Int64"))


def hyperparameters_markdown(d1: pd.DataFrame, d2: pd.DataFrame, *, scale: str) -> str:
    """The Markdown twin of both tables."""
    parts = [
        f"# Tables D.1 and D.2, scale `{scale}`",
        "What `params.yaml` sets, and in brackets the paper's value where it has the task and differs. Parameters are\n"
        "in millions, counted on the nets as they are built.",
        "## D.1 Hyper-parameters",
        _table(d1, D1_COLUMNS),
        "## D.2 Tasks",
        _table(d2, D2_COLUMNS),
    ]
    return "\n\n".join(parts) + "\n"


def _columns(own: Sequence[str]) -> list[str]:
    return ["task", *own, *(f"paper_{name}" for name in own)]


def _paper(tables: Mapping[str, tuple[object, ...]], columns: Sequence[str], task: str) -> dict[str, object]:
    values = tables.get(task, (None,) * len(columns))
    return {f"paper_{name}": value for name, value in zip(columns, values, strict=True)}


def _d1(settings: TaskSettings, task: str, nfe: int) -> dict[str, object]:
    data, spec = settings.data, TASKS[task]
    with torch.device("meta"):
        encoder = build_encoder(settings.data.vision) if settings.data.vision else None
        seen = spec.observation_dim(data.observation) + (encoder.features if encoder else 0)
        condition = data.n_obs_steps * seen
        net = build_net(settings.net, data.horizon, spec.action_dim, condition)
    shape = "96x96" if settings.data.vision else str(spec.observation_dim(data.observation))
    values = (
        *(data.n_action_steps, data.horizon, f"{data.n_obs_steps}x{shape}"),
        *(NET_NAMES[settings.net.kind], _millions(net)),
        ENCODER_NAMES[settings.data.vision.kind] if settings.data.vision else None,
        None if encoder is None else _millions(encoder),
        *(settings.pretrain.lr, settings.finetune[f"nfe{nfe}"].lr),
    )
    return dict(zip(D1_COLUMNS, values, strict=True))


def _d2(settings: TaskSettings, task: str) -> dict[str, object]:
    scene = SCENES[task]
    values = (
        *(scene.robots, scene.objects, TASKS[task].action_dim, DATA_SETS[settings.data.dataset].episodes),
        *(settings.evaluation.max_steps, settings.data.vision is not None),
    )
    return dict(zip(D2_COLUMNS, values, strict=True))


def _millions(net: nn.Module) -> float:
    return round(sum(parameter.numel() for parameter in net.parameters()) / MILLION, 2)


def _table(table: pd.DataFrame, columns: Sequence[str]) -> str:
    lines = [["Task", *(name.replace("_", " ") for name in columns)], ["---"] * (len(columns) + 1)]
    for _, row in table.iterrows():
        lines.append([TASK_NAMES[row["task"]], *(_cell(row[name], row[f"paper_{name}"]) for name in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(own: Any, paper: Any) -> str:
    text = _text(own)
    return text if pd.isna(paper) or _text(paper) == text else f"{text} [{_text(paper)}]"


def _text(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if pd.isna(value):
        return "—"
    return f"{value:g}" if isinstance(value, float) else str(value)
