"""Table 2, from episodes with known scores."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.reporting.episodes import EPISODES_HEADER
from pipeline.reporting.table2 import PAPER, TABLE2_HEADER, quoted, table2_markdown, task_table
from pipeline.reporting.tables import evaluation_titles, markdown_table, missing_rows, read_csv
from pipeline.settings import schema
from pipeline.settings.paths import Entry
from pipeline.utils.atomic import write_csv
from pipeline.utils.code_deps import ROOT
from pipeline.utils.errors import UserError

SEEDS = range(100000, 100040)
FM, FT = Entry("pusht_b", "fm", 16), Entry("pusht_b", "ft_fm", 16)
FAST = Entry("pusht_b", "ft_fm", 1)
BLOCKS = schema.load(ROOT / "params.yaml").lab.robots
TITLES, QUOTED = evaluation_titles(BLOCKS), quoted(BLOCKS)


def difficulty(seed: int) -> float:
    return np.random.default_rng(seed).uniform(0.2, 0.8)


def write_row(
    reports: Path,
    entry: Entry,
    gain: float,
    *,
    seeds: range = SEEDS,
    repeats: int = 1,
    scale: str = "starter",
    dataset: str = "pusht_starter",
) -> None:
    """Write episodes in which repeat r of a seed scores its difficulty + gain + r / 100."""
    rows = []
    for seed in seeds:
        for repeat in range(repeats):
            score = round(difficulty(seed) + gain + repeat / 100, 6)
            key = (scale, entry.evaluation, entry.method, entry.nfe, 7, entry.stem, "none", seed, repeat)
            rows.append((*key, score / 2, score, int(seed % 4 == 0), 300))
    metrics = {"scale": scale, "evaluation": entry.evaluation, "method": entry.method, "nfe": entry.nfe}
    metrics |= {"dataset": dataset, "train_steps": 4000, "train_seed": 7}
    metrics |= {"n_seeds": len(seeds), "repeats": repeats, "spread_ratio": None if entry.method == "fm" else 0.8}
    for path in (entry.episodes(reports), entry.metrics(reports)):
        path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=EPISODES_HEADER.split(",")).to_csv(entry.episodes(reports), index=False)
    entry.metrics(reports).write_text(json.dumps(metrics), encoding="utf-8")


def test_row_has_mean_scores_and_paired_difference(tmp_path: Path) -> None:
    write_row(tmp_path, FM, 0.0)
    write_row(tmp_path, FT, 0.1)
    table = task_table(tmp_path, [FM, FT])
    assert ",".join(table.columns) == TABLE2_HEADER
    fm, ft = table.iloc[0], table.iloc[1]
    expected = np.mean([difficulty(seed) for seed in SEEDS])
    assert (fm["max_score"], fm["mean"], fm["success"]) == pytest.approx((expected, expected, 0.25), abs=1e-6)
    assert fm["max_score_low"] < expected < fm["max_score_high"]
    assert pd.isna(fm[["best", "diff_vs_fm", "diff_low", "diff_high", "spread_ratio"]]).all()
    # every seed gains the same, so the pairing leaves no uncertainty
    assert tuple(ft[["diff_vs_fm", "diff_low", "diff_high"]]) == pytest.approx((0.1, 0.1, 0.1), abs=1e-6)
    assert (ft["dataset"], ft["train_steps"], ft["train_seeds"], ft["n_seeds"]) == ("pusht_starter", 4000, "7", 40)


def test_repeats_give_best_and_mean_of_the_papers_protocol(tmp_path: Path) -> None:
    write_row(tmp_path, FM, 0.0, repeats=3)
    row = task_table(tmp_path, [FM]).iloc[0]
    expected = np.mean([difficulty(seed) for seed in SEEDS])
    assert (row["repeats"], row["best"], row["mean"]) == pytest.approx((3, expected + 0.02, expected + 0.01), abs=1e-6)


def test_fewer_seeds_are_paired_with_the_same_seeds_of_fm(tmp_path: Path) -> None:
    write_row(tmp_path, FM, 0.0)
    write_row(tmp_path, FT, -0.05, seeds=SEEDS[:10])
    ft = task_table(tmp_path, [FM, FT]).iloc[1]
    assert (ft["n_seeds"], ft["diff_vs_fm"], ft["diff_high"]) == pytest.approx((10, -0.05, -0.05), abs=1e-6)


def test_seeds_that_fm_lacks_are_refused(tmp_path: Path) -> None:
    write_row(tmp_path, FM, 0.0)
    write_row(tmp_path, FT, 0.1, seeds=range(100001, 100041))
    with pytest.raises(UserError, match=r"pusht_b-ft_fm-nfe16\.csv: has seeds that the fm row lacks"):
        task_table(tmp_path, [FM, FT])


def test_paper_numbers_are_quoted_at_their_nfe_and_comparable_on_the_same_data(tmp_path: Path) -> None:
    image = [replace(entry, evaluation="pusht_image_b") for entry in (FT, FAST)]
    for entry in image:
        write_row(tmp_path, entry, 0.1, scale="paper", dataset="pusht_human_image")
    table = task_table(tmp_path, image, paper=QUOTED)
    assert table["paper_best"].tolist() == pytest.approx([0.7567, np.nan], nan_ok=True)
    assert table["paper_mean"].tolist() == pytest.approx([0.6496, np.nan], nan_ok=True)
    assert table["paper_comparable"].tolist() == [True, False]
    write_row(tmp_path, image[0], 0.1, scale="lab", dataset="pusht_human_image")
    write_row(tmp_path, FT, 0.1, scale="paper", dataset="pusht_human")
    assert not task_table(tmp_path, [image[0], FT], paper=QUOTED)["paper_comparable"].any()


def test_baselines_without_nfe_are_compared_with_fm_at_the_largest_nfe(tmp_path: Path) -> None:
    random, fm_fast = Entry("pusht_b", "random", 0), replace(FM, nfe=1)
    for entry, gain in ((FM, 0.1), (fm_fast, 0.05), (random, 0.0)):
        write_row(tmp_path, entry, gain)
    assert task_table(tmp_path, [random, fm_fast, FM])["diff_vs_fm"].iloc[0] == pytest.approx(-0.1)


def test_files_of_a_task_contain_all_its_evaluations(tmp_path: Path) -> None:
    both = [Entry(f"pusht_{which}", "fm", 16, within="pusht") for which in "ab"]
    texts, about = [], {}
    for gain, entry in enumerate(both):
        write_row(tmp_path, entry, gain / 10)
        texts.append(entry.episodes(tmp_path).read_text(encoding="utf-8"))
        about[entry.evaluation] = json.loads(entry.metrics(tmp_path).read_text(encoding="utf-8"))
    both[0].episodes(tmp_path).write_text(texts[0] + texts[1].partition("\n")[2], encoding="utf-8")
    both[0].metrics(tmp_path).write_text(json.dumps(about), encoding="utf-8")
    table = task_table(tmp_path, both)
    assert table["evaluation"].tolist() == ["pusht_a", "pusht_b"]
    assert table["max_score"].diff().iloc[1] == pytest.approx(0.1)


def test_quoted_numbers_match_the_papers_table_2() -> None:
    mirror = os.environ.get("FLOWTUNE_MIRROR")
    source = Path(mirror).resolve().parent / "paper" / "table2.csv" if mirror else None
    if source is None or not source.exists():
        pytest.skip("the paper's tables are not beside FLOWTUNE_MIRROR")
    published = pd.read_csv(source)
    for values, (_, row) in zip(PAPER.values(), published.iterrows(), strict=True):
        for name, (column, _) in QUOTED.items():
            name = name.replace("_image", "")  # the paper has Push-T from images only
            assert values[column] == (row[f"{name}_best"], row[f"{name}_mean"])


def test_precision_comes_from_the_checkpoint_or_an_explicit_setting(tmp_path: Path) -> None:
    for entry in (FM, FT, FAST):
        write_row(tmp_path, entry, 0.0)
    path = FT.metrics(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"precision": "bf16"}), encoding="utf-8")
    asked = {FM: "auto", FT: "auto", FAST: "fp32"}
    assert task_table(tmp_path, [FM, FT, FAST], asked)["precision"].tolist() == ["", "bf16", "fp32"]
    asked[FT] = "fp32"  # changed after the training
    assert task_table(tmp_path, [FT], asked)["precision"].tolist() == ["bf16"]


def test_table_round_trips_through_csv(tmp_path: Path) -> None:
    write_row(tmp_path, FM, 0.0)
    write_row(tmp_path, FT, 0.1)
    table = task_table(tmp_path, [FM, FT])
    write_csv(tmp_path / "rows.csv", table)
    read = read_csv(tmp_path / "rows.csv", TABLE2_HEADER).fillna({"precision": ""}).astype({"train_seeds": str})
    pd.testing.assert_frame_equal(read, table, check_dtype=False)


def test_empty_table_has_a_header_and_a_list_of_missing_rows(tmp_path: Path) -> None:
    table = task_table(tmp_path, [FM])
    write_csv(tmp_path / "table2.csv", table)
    assert (tmp_path / "table2.csv").read_text(encoding="utf-8") == TABLE2_HEADER + "\n"
    text = table2_markdown(table, missing_rows(tmp_path, [FM]), scale="starter", titles=TITLES)
    assert "- Push-T (b), FM continued, NFE 16: `episodes/pusht_b-fm-nfe16.csv` was not made" in text


def test_only_rows_without_episodes_are_missing(tmp_path: Path) -> None:
    write_row(tmp_path, FM, 0.0)
    assert list(missing_rows(tmp_path, [FM, FT, FAST])) == [FT, FAST]


def test_table_without_a_required_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"rows\.csv: column c is missing, expected a,c; make it again$"):
        read_csv(tmp_path / "rows.csv", "a,c", "make it again")


def test_markdown_describes_each_row(tmp_path: Path) -> None:
    write_row(tmp_path, FM, 0.0)
    write_row(tmp_path, FT, 0.1)
    table = task_table(tmp_path, [FM, FT], paper=QUOTED)
    text = table2_markdown(table, {FAST: "because"}, scale="starter", titles=TITLES)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert cells[:3] == ["Push-T (b)", "FT-FM", "16"]
    assert "+0.100 [+0.100, +0.100]" in cells
    assert cells[-8:] == ["starter", "pusht_starter", "4000", "—", "7", "40", "1", "0.7567 / 0.6496 *"]
    assert "No row here is comparable with the paper" in text
    assert text.endswith("- Push-T (b), FT-FM, NFE 1: because.\n")


def test_markdown_has_no_warning_when_all_rows_are_comparable(tmp_path: Path) -> None:
    image = replace(FM, evaluation="pusht_image_b")
    write_row(tmp_path, image, 0.0, scale="paper", dataset="pusht_human_image")
    text = table2_markdown(task_table(tmp_path, [image], paper=QUOTED), {}, scale="paper")
    assert "comparable with the paper" not in text
    assert "0.7363 / 0.6218 |" in text


def test_markdown_table_has_the_columns_of_its_rows_or_those_given() -> None:
    assert markdown_table([{"a": 1, "b": "x"}, {"a": 2, "b": "—"}]) == "| a | b |\n| --- | --- |\n| 1 | x |\n| 2 | — |"
    assert markdown_table([], ["a", "a"]) == "| a | a |\n| --- | --- |"
    assert markdown_table([]) == ""
