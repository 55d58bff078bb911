"""Report the study of precision: the effect of each change to a rollout on score, success and near misses."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.evaluation.diversity import Diversity
from pipeline.evaluation.precision import Variation
from pipeline.evaluation.rollouts import EpisodeResult
from pipeline.evaluation.statistics import paired_difference, shown
from pipeline.reporting.figures import drawing, in_percent
from pipeline.reporting.tables import METHOD_NAMES, document, interval_cell, interval_columns, markdown_table
from pipeline.training.checkpoint import CheckpointMetadata

NEAR_MISS = 0.9
"""An episode whose max score is from here up but that did not succeed: it found the goal and missed the precision."""

PRECISION_HEADER = (
    "evaluation,scale,dataset,method,made_for_nfe,train_steps,train_seed,checkpoint,"
    "change,nfe,noise_scale,held,chunk,n_seeds,repeats,max_score,success,near_misses,"
    "score_diff,score_diff_low,score_diff_high,success_diff,success_diff_low,success_diff_high,"
    "spread,sample_error,precision"
)


def precision_rows(
    metadata: CheckpointMetadata,
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
            **{name: getattr(metadata, name) for name in ("scale", "method", "train_steps", "train_seed", "precision")},
            "evaluation": evaluation,
            "dataset": metadata.data.dataset,
            "made_for_nfe": metadata.nfe,
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
        found |= interval_columns(difference, f"{name}_diff")
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
    head = ["Model", "Training steps", "Change", "Max score", "Difference", "Success", "Difference", "Near misses"]
    rows = [
        (
            *(_model(row), row["train_steps"], row["change"] or "—"),
            *(shown(row["max_score"]), interval_cell(row, "score_diff", "+.3f")),
            *(shown(row["success"], ".1%"), interval_cell(row, "success_diff", "+.3f")),
            *(shown(row["near_misses"], ".1%"), shown(row["spread"]), shown(row["sample_error"])),
        )
        for _, row in table.iterrows()
    ]
    return document(
        "# Where is precision lost?",
        about,
        f"![{picture}]({picture})",
        markdown_table(rows, [*head, "Spread", "Sample error"]),
    )


def _model(row: pd.Series) -> str:
    return f"{METHOD_NAMES[row['method']]}, NFE {row['made_for_nfe']}"


def precision_panels(table: pd.DataFrame, path: Path) -> None:
    """Success and near misses of every model and variation, stacked; ``path`` with the suffixes .png and .svg."""
    models = list(dict.fromkeys(_model(row) for _, row in table.iterrows()))
    names = table.apply(_model, axis=1)
    first = table.iloc[0]
    title = (
        f"One thing changed at a time: {first['evaluation']}, scale {first['scale']}, data set {first['dataset']}, "
        f"training seed {first['train_seed']}, {first['n_seeds']} validation seeds"
    )
    with drawing(path, 2.6 * len(models) + 1.2, 3.6, title) as figure:
        panels = figure.subplots(1, len(models), sharex=True, squeeze=False)[0]
        for panel, model in zip(panels, models, strict=True):
            of_model = table[names == model]
            labels = [change or "as made" for change in of_model["change"]]
            panel.barh(labels, of_model["success"], color="#0072B2", label="success")
            panel.barh(
                labels,
                of_model["near_misses"],
                left=of_model["success"],
                color="#E69F00",
                hatch="//",
                label=f"near miss: max score from {NEAR_MISS}",
            )
            panel.invert_yaxis()
            panel.set_title(model)
            in_percent(panel.xaxis)
            panel.set_xlabel("Episodes")
