"""The coupling study in words and tables, for someone who has not run it."""

from collections.abc import Collection, Mapping, Sequence

import pandas as pd

from pipeline.reporting.study import ROW_NAMES, verdicts

_VERDICTS = {
    "helps": "**Help**: above FM continued with every training seed, each interval clear of zero",
    "harms": "**Harm**: below it with every training seed, each interval clear of zero",
    "neither": "Neither, or not with every training seed",
    "unfinished": "Not there yet with every training seed",
}

_ABOUT = """\
`make study` makes this, a cell at a time; what is there is not made again. The base models, one for each training seed,
are shipped in `data/checkpoints`.

- *FM base* is that model, *FM continued* the same trained on by flow matching;
- *FT, …* are fine-tuned from it, by loss (6) through the solve with the N evaluations of their column, with that
  coupling;
- *regression* and *MIP* (arXiv 2512.01809) are policies without a flow, on the same net, trained from scratch for the
  compute of the base model's steps and the fine-tuning together. Their NFE are 1 and 2.

FM continued and every fine-tuning cost the same compute, in passes of the net, with what a coupling's solves cost. Of
evenly spaced checkpoints of a trained row the best on validation seeds is rolled out on the test seeds, once. Couplings
that ignore what the model makes of a noise were tried at NFE 1 and 8 alone, since a prototype had found them to harm.
Settings were chosen on validation seeds with `python -m stages.study try`: `coupling_study_tried.csv` has what was
tried."""


def study_markdown(
    table: pd.DataFrame,
    answers: pd.DataFrame,
    *,
    train_seeds: Collection[int],
    chosen: Mapping[int, str],
    pictures: Sequence[str],
    title: str,
) -> str:
    """The Markdown twin of the study's ``table`` and ``answers``.

    Args:
        train_seeds: that the study is to have. chosen: NFE → the coupling chosen for it on validation seeds.
        pictures: file names, beside the report. title: of the evaluation.
    """
    first = table.iloc[0]
    seeds = ", ".join(str(seed) for seed in sorted(table["train_seed"].unique()))
    recipe = ", ".join(f"{coupling} at NFE {nfe}" for nfe, coupling in sorted(chosen.items()))
    parts = [
        f"# Which pairs help? The coupling study, scale `{first['scale']}`",
        _ABOUT,
        f"Scale `{first['scale']}`, data set `{first['dataset']}`, evaluation {title}, "
        f"training seeds {seeds}, {table['n_seeds'].max()} test seeds, one repeat.",
        "## What came out",
        _list_of_verdicts(table, train_seeds),
        *(f"![{name}]({name})" for name in pictures),
        "## Against the aims",
        f"*FT-FM* is the coupling chosen for each NFE on validation seeds: {recipe}.",
        _answers_table(answers),
        "*All* averages the training seeds for each test seed: its interval is over test seeds, for these models. "
        "Intervals are not corrected for their number.",
        "## Every cell",
        "*Against FM* is the difference in max score to FM continued at the same NFE and training seed, paired on test "
        "seeds, with its 95 % interval. *Spread* is the samples' spread over that of the base model at NFE 16. "
        "*Best of 16* is the error of the best of 16 samples on held-out observations, in normalised units.",
        _cells_table(table),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _list_of_verdicts(table: pd.DataFrame, train_seeds: Collection[int]) -> str:
    found = verdicts(table, train_seeds)
    return "\n".join(f"- {text}: {'; '.join(found[name])}." for name, text in _VERDICTS.items() if found[name])


def _answers_table(answers: pd.DataFrame) -> str:
    if answers.empty:
        return "None of the cells that are asked about are there yet."
    lines = ["| Aim | Measure | Training seed | Difference | Met |", "| --- | --- | --- | --- | --- |"]
    for _, row in answers.iterrows():
        shown = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        lines.append(
            f"| {row['question']} | {row['measure'].replace('_', ' ')} | {row['train_seed']} | {shown} "
            f"| {'yes' if row['met'] else '**no**'} |"
        )
    return "\n".join(lines)


def _cells_table(table: pd.DataFrame) -> str:
    names = ["Row", "NFE", "Training seed", "Max score", "Success", "Against FM", "τ", "Spread", "Best of 16"]
    names += ["Training steps", "Precision", "Update, ms"]
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
            f"{row['temperature']:g}",
            f"{row['spread_ratio']:.2f}",
            f"{row['best_of_k']:.3f}",
            str(row["train_steps"]),
            row["precision"] or "—",
            "—" if pd.isna(row["update_ms"]) else f"{row['update_ms']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
