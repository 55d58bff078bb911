"""The precision table: what each change to a rollout does to score, success and near misses, paired on seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from pipeline.evaluation.diversity import Diversity
from pipeline.evaluation.precision import Variation
from pipeline.evaluation.rollouts import EpisodeResult
from pipeline.evaluation.statistics import paired_difference
from pipeline.reporting.figures import STYLE, legend_below, save_figure
from pipeline.reporting.tables import METHOD_NAMES
from pipeline.training.checkpoint import Record

NEAR_MISS = 0.9
"""An episode whose max score is from here up but that did not succeed: it found the goal and missed the precision."""

PRECISION_HEADER = (
    "evaluation,scale,dataset,method,made_for_nfe,train_steps,train_seed,checkpoint,"
    "change,nfe,noise_scale,held,chunk,n_seeds,repeats,max_score,success,near_misses,"
    "score_diff,score_diff_low,score_diff_high,success_diff,success_diff_low,success_diff_high,"
    "spread,sample_error,precision"
)


def precision_rows(
    record: Record,
    checkpoint: str,
    evaluation: str,
    outcomes: Mapping[Variation, Sequence[EpisodeResult]],
    samples: Mapping[Variation, Diversity],
) -> list[dict[str, object]]:
    """The rows of one model.

    Args:
        checkpoint: the model file's fingerprint.
        outcomes: the episodes of each variation, in the order of the rows; the first is what the others are compared
            with. samples: their samples on held-out observations.
    """
    unchanged = next(iter(outcomes.values()))
    rows: list[dict[str, object]] = []
    for variation, results in outcomes.items():
        near = [result.max_score >= NEAR_MISS and not result.success for result in results]
        row: dict[str, object] = {
            "evaluation": evaluation,
            "scale": record.scale,
            "dataset": record.data.dataset,
            "method": record.method,
            "made_for_nfe": record.nfe,
            "train_steps": record.train_steps,
            "train_seed": record.train_seed,
            "checkpoint": checkpoint,
            "change": variation.change,
            "nfe": variation.nfe,
            "noise_scale": variation.noise_scale,
            "held": variation.held,
            "chunk": variation.n_action_steps,
            "n_seeds": len(results),
            "repeats": 1,
            "max_score": np.mean([result.max_score for result in results]),
            "success": np.mean([result.success for result in results]),
            "near_misses": np.mean(near),
            "spread": samples[variation].spread,
            "sample_error": samples[variation].reconstruction_error,
            "precision": record.precision,
        }
        if results is not unchanged:
            row |= _differences(results, unchanged)
        rows.append(row)
    return rows


def _differences(ours: Sequence[EpisodeResult], theirs: Sequence[EpisodeResult]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, measure in (("score", "max_score"), ("success", "success")):
        difference = paired_difference(
            [float(getattr(result, measure)) for result in ours],
            [float(getattr(result, measure)) for result in theirs],
            [result.seed for result in ours],
            [result.seed for result in theirs],
        )
        found |= {
            f"{name}_diff": difference.mean,
            f"{name}_diff_low": difference.low,
            f"{name}_diff_high": difference.high,
        }
    return found


def precision_table(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """``rows`` of all models, rounded."""
    return pd.DataFrame(rows, columns=PRECISION_HEADER.split(",")).round(6)


_ABOUT = """\
`make study` makes this from the checkpoints in `data/checkpoints`. An episode falls short of full score for several
reasons at once; here one thing of a rollout is changed at a time, from the same initial states:

- *noise x s*: every solve starts from s times its noise, a start that a field has not met in training;
- *one noise*: every solve of every episode starts from the same draw, numbered in brackets, so that the policy is
  deterministic. The interval is for that draw, and draws differ;
- *k actions a plan*: the policy predicts again after k actions, where it was made to carry out {chunk};
- *NFE n*: the solve has next to no discretisation error (only of a model trained by flow matching: one fine-tuned
  through a solve is good for that solve).

*Near misses* are episodes that reach a max score of {near} but not success: they found the goal and missed the
precision. *Spread* and *sample error* (root mean square) are of samples for held-out observations, in normalised action
units. Differences are to the same model unchanged, paired on seeds, with 95 % intervals not corrected for their number.

Scale `{scale}`, data set `{dataset}`, evaluation {evaluation}, training seed {train_seed}, {n_seeds} validation seeds
that nothing was chosen on before, one repeat."""


def precision_markdown(table: pd.DataFrame, picture: str, title: str) -> str:
    """The Markdown twin of ``table`` of the evaluation called ``title``; ``picture`` is a file name beside it."""
    first = table.iloc[0]
    about = _ABOUT.format(
        chunk=first["chunk"],
        near=NEAR_MISS,
        scale=first["scale"],
        dataset=first["dataset"],
        evaluation=title,
        train_seed=first["train_seed"],
        n_seeds=first["n_seeds"],
    )
    lines = [
        "| Model | Training steps | Change | Max score | Difference | Success | Difference | Near misses "
        "| Spread | Sample error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for _, row in table.iterrows():
        lines.append(
            f"| {_model(row)} | {row['train_steps']} | {row['change'] or '—'} "
            f"| {row['max_score']:.3f} | {_difference(row, 'score')} "
            f"| {100 * row['success']:.1f} % | {_difference(row, 'success')} "
            f"| {100 * row['near_misses']:.1f} % | {row['spread']:.3f} | {row['sample_error']:.3f} |"
        )
    return "\n\n".join(["# Where is precision lost?", about, f"![{picture}]({picture})", "\n".join(lines)]) + "\n"


def _model(row: pd.Series) -> str:
    return f"{METHOD_NAMES[row['method']]}, NFE {row['made_for_nfe']}"


def _difference(row: pd.Series, name: str) -> str:
    if pd.isna(row[f"{name}_diff"]):
        return "—"
    return f"{row[f'{name}_diff']:+.3f} [{row[f'{name}_diff_low']:+.3f}, {row[f'{name}_diff_high']:+.3f}]"


def precision_panels(table: pd.DataFrame, path: Path) -> None:
    """Success and near misses of every model and variation, stacked; ``path`` with the suffixes .png and .svg."""
    models = list(dict.fromkeys(_model(row) for _, row in table.iterrows()))
    names = table.apply(_model, axis=1)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * len(models) + 1.2, 3.6), layout="constrained")
        panels = figure.subplots(1, len(models), sharex=True, squeeze=False)[0]
        for panel, model in zip(panels, models, strict=True):
            shown = table[names == model]
            labels = [change or "as made" for change in shown["change"]]
            panel.barh(labels, shown["success"], color="#0072B2", label="success")
            panel.barh(
                labels,
                shown["near_misses"],
                left=shown["success"],
                color="#E69F00",
                hatch="//",
                label=f"near miss: max score from {NEAR_MISS}",
            )
            panel.invert_yaxis()
            panel.set_title(model)
            panel.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
            panel.set_xlabel("Episodes")
        first = table.iloc[0]
        figure.suptitle(
            f"One thing changed at a time: {first['evaluation']}, scale {first['scale']}, data set {first['dataset']}, "
            f"training seed {first['train_seed']}, {first['n_seeds']} validation seeds",
            fontsize=10,
        )
        legend_below(figure)
        save_figure(figure, path)
