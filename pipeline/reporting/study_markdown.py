"""The coupling study in words and tables, for someone who has not run it."""

from collections.abc import Mapping

import pandas as pd

from pipeline.reporting.study import ROW_NAMES, verdicts
from pipeline.reporting.tables import EVALUATION_NAMES

_VERDICTS = {
    "helps": "**Help**: above FM continued with every training seed, each interval clear of zero",
    "harms": "**Harm**: below it with every training seed, each interval clear of zero",
    "neither": "Neither, or not with every seed",
}

_ABOUT = """\
`make study` makes this, a cell at a time; what is there is not made again. Every row starts from the base model of its
training seed (three seeds, each with its own pretraining and selection) and is trained for the same compute:

- *FM base* is that model, *FM continued* the same trained on by flow matching;
- *FT, …* are fine-tuned through the solve with the N evaluations of their column, by loss (6), with that coupling;
- *regression* and *MIP* (arXiv 2512.01809) are policies without a flow, on the same net, trained from scratch for the
  compute of the base model and the fine-tuning together. Their NFE are 1 and 2.

Of evenly spaced checkpoints of every trained row the best on validation seeds is rolled out on the test seeds, once.
Couplings that clearly harm were tried at NFE 1 and 8 only."""


def study_markdown(
    table: pd.DataFrame, answers: pd.DataFrame, *, chosen: Mapping[int, str], pictures: list[str]
) -> str:
    """The Markdown twin of the study's ``table`` and ``answers``.

    Args:
        chosen: NFE → the coupling chosen for it on validation seeds.
        pictures: file names, beside the report.
    """
    first = table.iloc[0]
    seeds = ", ".join(str(seed) for seed in sorted(table["train_seed"].unique()))
    recipe = ", ".join(f"{coupling} at NFE {nfe}" for nfe, coupling in sorted(chosen.items()))
    parts = [
        f"# Which pairs help? The coupling study, scale `{first['scale']}`",
        _ABOUT,
        f"Scale `{first['scale']}`, data set `{first['dataset']}`, evaluation {EVALUATION_NAMES[first['evaluation']]}, "
        f"training seeds {seeds}, {table['n_seeds'].max()} test seeds, one repeat.",
        "## What came out",
        _list_of_verdicts(table),
        *(f"![{name}]({name})" for name in pictures),
        "## Against the aims",
        f"*FT-FM* is the coupling chosen for each NFE on validation seeds: {recipe}.",
        _answers_table(answers),
        "*All* averages the training seeds for each test seed: its interval is over test seeds, for these models.",
        "## Every cell",
        "*Against FM* is the difference in max score to FM continued at the same NFE and training seed, paired on test "
        "seeds, with its 95 % interval. *Spread* is the samples' spread over that of the base model at NFE 16. "
        "*Best of 16* is the error of the best of 16 samples on held-out observations, in normalised units.",
        _cells_table(table),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _list_of_verdicts(table: pd.DataFrame) -> str:
    found = verdicts(table)
    return "\n".join(f"- {text}: {'; '.join(found[name])}." for name, text in _VERDICTS.items() if found[name])


def _answers_table(answers: pd.DataFrame) -> str:
    if answers.empty:
        return "Not all of the cells that are asked about are there yet."
    lines = ["| Aim | Measure | Training seed | Difference | Met |", "| --- | --- | --- | --- | --- |"]
    for _, row in answers.iterrows():
        shown = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        lines.append(
            f"| {row['question']} | {row['measure'].replace('_', ' ')} | {row['train_seed']} | {shown} "
            f"| {'yes' if row['met'] else '**no**'} |"
        )
    return "\n".join(lines)


def _cells_table(table: pd.DataFrame) -> str:
    names = ["Row", "NFE", "Training seed", "Max score", "Success", "Against FM", "Spread", "Best of 16"]
    names += ["Training steps", "Update, ms"]
    lines = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    for _, row in table.iterrows():
        difference = "—"
        if pd.notna(row["diff_vs_fm"]):
            difference = f"{row['diff_vs_fm']:+.3f} [{row['diff_low']:+.3f}, {row['diff_high']:+.3f}]"
        cells = [
            ROW_NAMES[row["coupling"]],
            str(row["nfe"]),
            str(row["train_seed"]),
            f"{row['max_score']:.3f}",
            f"{row['success']:.1%}".replace("%", " %"),
            difference,
            f"{row['spread_ratio']:.2f}",
            f"{row['best_of_k']:.3f}",
            str(row["train_steps"]),
            "—" if pd.isna(row["update_ms"]) else f"{row['update_ms']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
