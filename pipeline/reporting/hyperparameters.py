"""Tabulate the paper's Tables D.1 and D.2, of ``params.yaml``: the settings, beside those of the paper."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from pipeline.nets.registry import build_encoder, build_net
from pipeline.reporting.tables import Request, document, markdown_table, task_titles
from pipeline.settings.schema import ScaleSettings, TaskSettings
from pipeline.tasks.api import PaperFacts
from pipeline.utils.atomic import write_csv, write_text

NET_NAMES = {"mlp": "MLP", "unet1d": "ConditionalUnet1D", "transformer1d": "Transformer"}
ENCODER_NAMES = {"resnet18": "ResNet-18"}
MILLION = 1e6

D1_COLUMNS = (
    *("chunk", "prediction_horizon", "observation", "net", "net_millions", "encoder", "encoder_millions"),
    *("pretrain_lr", "finetune_lr"),
)
D2_COLUMNS = ("robots", "objects", "action_dim", "demonstrations", "max_steps", "images")


def report(asked: Request) -> None:
    """Write both tables of one scale."""
    settings, reports = asked.settings, asked.reports
    with asked.begin(deps=[], outs=[reports.table_d1, reports.table_d2, reports.tables_d]):
        d1, d2 = table_d1(settings, settings.tasks, max(settings.nfe)), table_d2(settings, settings.tasks)
        write_csv(reports.table_d1, d1)
        write_csv(reports.table_d2, d2)
        titles = task_titles(settings.chosen())
        write_text(reports.tables_d, hyperparameters_markdown(d1, d2, titles, scale=reports.scale))


def table_d1(settings: ScaleSettings, tasks: Sequence[str], nfe: int) -> pd.DataFrame:
    """Hyper-parameters, a row a task: those of ``settings``, and under ``paper_…`` the paper's where it has the task.

    Args:
        nfe: of the fine-tuning whose learning rate is told.
    """
    rows = [{"task": task} | _d1(settings.task(task), nfe) for task in tasks]
    return pd.DataFrame(rows, columns=_columns(D1_COLUMNS))


def table_d2(settings: ScaleSettings, tasks: Sequence[str]) -> pd.DataFrame:
    """The tasks, a row each; see ``table_d1``. Demonstrations are counted before any are held out."""
    rows = [{"task": task} | _d2(settings.task(task)) for task in tasks]
    counts = [name for name in _columns(D2_COLUMNS[:-1]) if name != "task"]
    # else one count that is not known would make fractions of all
    return pd.DataFrame(rows, columns=_columns(D2_COLUMNS)).astype(dict.fromkeys(counts, "Int64"))


def hyperparameters_markdown(d1: pd.DataFrame, d2: pd.DataFrame, titles: Mapping[str, str], *, scale: str) -> str:
    """The Markdown twin of both tables, with the ``titles`` of tasks."""
    return document(
        f"# Tables D.1 and D.2, scale `{scale}`",
        "What `params.yaml` sets, and in brackets the paper's value where it has the task and differs. Parameters are\n"
        "in millions, counted on the nets as they are built.",
        "## D.1 Hyper-parameters",
        _table(d1, D1_COLUMNS, titles),
        "## D.2 Tasks",
        _table(d2, D2_COLUMNS, titles),
    )


def _columns(own: Sequence[str]) -> list[str]:
    return ["task", *own, *(f"paper_{name}" for name in own)]


def _paper(columns: Sequence[str], values: Sequence[object] | None) -> dict[str, object]:
    return {f"paper_{name}": value for name, value in zip(columns, values or [None] * len(columns), strict=True)}


def _d1(settings: TaskSettings, nfe: int) -> dict[str, object]:
    data, task, paper = settings.data, settings.load_task(), _told(settings)
    observed = task.observations[data.observation]
    with torch.device("meta"):
        encoder = build_encoder(settings.data.vision) if settings.data.vision else None
        seen = observed.dim + (encoder.features if encoder else 0)
        condition = data.n_obs_steps * seen
        net = build_net(settings.net, data.horizon, task.action_dim, condition)
    shape = "96x96" if settings.data.vision else str(observed.dim)
    values = (
        *(data.n_action_steps, data.horizon, f"{data.n_obs_steps}x{shape}"),
        *(NET_NAMES[settings.net.kind], _millions(net)),
        ENCODER_NAMES[settings.data.vision.kind] if settings.data.vision else None,
        None if encoder is None else _millions(encoder),
        *(settings.pretrain.lr, settings.finetune[f"nfe{nfe}"].lr),
    )
    return dict(zip(D1_COLUMNS, values, strict=True)) | _paper(D1_COLUMNS, paper.d1 if paper else None)


def _told(settings: TaskSettings) -> PaperFacts | None:
    """The paper's facts of the task as it is observed here."""
    paper = settings.load_task().paper
    return paper if paper and settings.data.observation in paper.observations else None


def _d2(settings: TaskSettings) -> dict[str, object]:
    task, paper = settings.load_task(), _told(settings)
    values = (
        *(task.robots, task.objects, task.action_dim, task.datasets[settings.data.dataset].episodes),
        *(None if task.offline else settings.evaluation.max_steps, settings.data.vision is not None),
    )
    return dict(zip(D2_COLUMNS, values, strict=True)) | _paper(D2_COLUMNS, paper.d2 if paper else None)


def _millions(net: nn.Module) -> float:
    return round(sum(parameter.numel() for parameter in net.parameters()) / MILLION, 2)


def _table(table: pd.DataFrame, columns: Sequence[str], titles: Mapping[str, str]) -> str:
    rows = [
        [titles[row["task"]], *(_cell(row[name], row[f"paper_{name}"]) for name in columns)]
        for _, row in table.iterrows()
    ]
    return markdown_table(rows, ["Task", *(name.replace("_", " ") for name in columns)])


def _cell(own: Any, paper: Any) -> str:
    text = _text(own)
    return text if pd.isna(paper) or _text(paper) == text else f"{text} [{_text(paper)}]"


def _text(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if pd.isna(value):
        return "—"
    return f"{value:g}" if isinstance(value, float) else str(value)
