"""The whole DAG through DVC: its reports, what a change reruns, and what a failure leaves."""

import json
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest

from pipeline.reporting.episodes import EPISODES_HEADER
from pipeline.reporting.figure_2b import HISTORY_HEADER
from pipeline.reporting.gap import GAP_HEADER
from pipeline.reporting.robustness import ROBUSTNESS_HEADER
from pipeline.reporting.table1 import TABLE1_HEADER
from pipeline.reporting.table2 import TABLE2_HEADER
from pipeline.settings.images import ImageMethod
from pipeline.stability.recheck import recheck
from tests.project import ALONE, Project, commit_all, executed

METRICS = {"scale", "task", "evaluation", "method", "nfe", "dataset", "train_steps", "train_seed", "n_seeds", "repeats"}
METRICS |= {"max_score", "final_score", "success", "temperature", "spread_ratio", "best_of_k", "precision"}
AFTER_ANOTHER_RATE_AT_NFE_1 = {
    "resolve",
    *(f"finetune@starter-pusht-{method}-1" for method in ("fm", "ft_fm")),
    # fm has a learning rate of its own, so its model stays the same
    "evaluate_rollouts@starter-pusht-ft_fm-1",
    "tabulate@starter",
    "tabulate_settings@starter",  # reads all settings
    "report_stability@starter",
    "draw@starter",
}


def header(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0]


def test_one_run_makes_every_report(made: Project) -> None:
    reports = made.root / "reports" / "starter"
    rows = [f"pusht-{method}-nfe{nfe}" for method in ("fm", "ft_fm") for nfe in (1, 2)]
    residuals = ["resft_fm-nfe2", "resft_fm_unet-nfe2"]
    others = ["ddpm-nfe2", "ddim-nfe2", "random-nfe0", "nearest_demo-nfe0"]
    beside = [f"pusht-{row}" for row in [*residuals, *others]]
    figures = ("figure_1", "figure_2a", "figure_2b", "figure_e2", "score_vs_nfe", "gap")
    pictures = [f"{name}.{kind}" for name in figures for kind in ("png", "svg")]
    trained = [*get_args(ImageMethod), "resft_fm"]
    assert {str(path.relative_to(reports)) for path in reports.rglob("*") if path.is_file()} == {
        *pictures,
        "table1.csv",
        "table1.md",
        "table2.csv",
        "table2.md",
        *(f"images/digits-{name}.csv" for name in ["halves", "untrained", "ft_fm", *trained]),
        *(f"images/history/digits-ft_fm-nfe{nfe}.csv" for nfe in (1, 2)),
        *(f"images/training/digits-{method}.csv" for method in trained),
        "images/digits-selection.json",
        "images/history/digits-i_cfm.csv",
        "figure_1.csv",
        "figure_1.md",
        "gap.csv",
        "gap.md",
        "pretrain/pusht.csv",
        "pretrain/pusht-diffusion.csv",
        "table_d1.csv",
        "table_d2.csv",
        "tables_d.md",
        "selection/pusht.json",
        "table2_robustness.csv",
        "table2_robustness.md",
        "certificates.md",
        *(f"episodes/{row}.csv" for row in [*rows, *beside]),
        *(f"metrics/{row}.json" for row in [*rows, *beside]),
        *(f"residual/pusht-{row}.csv" for row in residuals),
        *(f"certificates/pusht-{row}.json" for row in residuals),
        *(f"robustness/pusht-{row}.csv" for row in ("fm-nfe2", "resft_fm-nfe2")),
        *(f"history/pusht-{method}-nfe{nfe}.csv" for method in ("fm", "ft_fm") for nfe in (1, 2)),
    }
    for row in [*rows, *beside]:
        assert header(reports / "episodes" / f"{row}.csv") == EPISODES_HEADER
        episodes = pd.read_csv(reports / "episodes" / f"{row}.csv")
        seeds = list(range(100_000, 100_020 if row in rows else 100_003))
        metrics = json.loads((reports / "metrics" / f"{row}.json").read_text(encoding="utf-8"))
        for evaluation in ("pusht_a", "pusht_b"):
            assert list(episodes.loc[episodes["evaluation"] == evaluation, "seed"]) == seeds
            assert metrics[evaluation].keys() == METRICS
        assert len(episodes) == 2 * len(seeds) and len(metrics) == 2
    for path in (reports / "history").iterdir():
        assert header(path) == HISTORY_HEADER
        assert pd.read_csv(path)["loss"].isna().tolist() == [True, False]  # there is no training loss before step 0
    assert {"scale", "task", "step", "loss"} <= set(header(reports / "pretrain" / "pusht.csv").split(","))
    selection = json.loads((reports / "selection" / "pusht.json").read_text(encoding="utf-8"))
    assert selection["rule"].startswith("highest mean max score of 2 validation episodes")
    assert selection["selected"] in [candidate["checkpoint"] for candidate in selection["candidates"]]


def test_table_1_matches_the_distances(made: Project) -> None:
    reports = made.root / "reports" / "starter"
    assert header(reports / "table1.csv") == TABLE1_HEADER
    table = pd.read_csv(reports / "table1.csv")
    assert len(table) == 9 * 3 + 2  # methods × solvers; one step cannot be split into base and residual
    for _, row in table[table["solver"] != "dopri5"].iterrows():
        found = pd.read_csv(reports / "images" / f"digits-{row['method']}.csv")
        found = found[(found["solver"] == row["solver"]) & (found["nfe"] == row["nfe"])]
        assert row["distance"] == pytest.approx(found["distance"].mean(), abs=1e-6)
        assert row["sampling_seeds"] == len(found) == 2
    assert set(table.loc[table["solver"] == "ancestral", "method"]) == {"ddpm"}
    assert not table["paper_comparable"].any()
    fine_tuned = table[table["method"] == "ft_fm"]
    assert list(fine_tuned["finetuned_nfe"]) == [1, 2, 2]
    i_cfm, steps = table[table["method"] == "i_cfm"], 60
    assert set(i_cfm["train_steps"]) == {steps}
    history = pd.read_csv(reports / "images" / "history" / "digits-ft_fm-nfe2.csv")
    assert history["updates"].iloc[-1] == pytest.approx(steps)  # equal to the compute of flow matching


def test_table_2_matches_the_episodes(made: Project) -> None:
    reports = made.root / "reports" / "starter"
    assert header(reports / "table2.csv") == TABLE2_HEADER
    table = pd.read_csv(reports / "table2.csv")
    assert len(table) == 20
    for _, row in table.iterrows():
        episodes = pd.read_csv(reports / "episodes" / f"pusht-{row['method']}-nfe{row['nfe']}.csv")
        episodes = episodes[episodes["evaluation"] == row["evaluation"]]
        assert row["max_score"] == pytest.approx(episodes["max"].mean(), abs=1e-6)
    assert not table["paper_comparable"].any()
    assert (table["method"].ne("fm") == table["diff_vs_fm"].notna()).all()
    assert "Missing rows" not in (reports / "table2.md").read_text(encoding="utf-8")


def test_every_solve_of_the_gap_table_is_bounded(made: Project) -> None:
    reports = made.root / "reports" / "starter"
    assert header(reports / "gap.csv") == GAP_HEADER
    table = pd.read_csv(reports / "gap.csv")
    assert len(table) == 2 * (4 * 3 * 2 + 1)  # data sets × (solvers × grids × NFE + the adaptive solve)
    assert (table["error"] > 0).all() and (table["bound_product"] >= table["error"]).all()
    assert "at or above the error in 50 of 50 solves" in (reports / "gap.md").read_text(encoding="utf-8")


def test_robustness_table_compares_models_on_the_same_seeds(made: Project) -> None:
    reports = made.root / "reports" / "starter"
    table = pd.read_csv(reports / "table2_robustness.csv", keep_default_na=False, na_values=[""])
    assert ",".join(table.columns) == ROBUSTNESS_HEADER
    assert set(zip(table["perturbation"], table["method"], strict=True)) == {
        (perturbation, method)
        for perturbation in ("none", "observation_noise", "action_noise")
        for method in ("fm", "resft_fm")
    }
    assert table["n_seeds"].eq(3).all()
    assert (table["method"].eq("resft_fm") == table["diff_vs_fm"].notna()).all()
    assert (table["perturbation"].ne("none") == table["lost"].notna()).all()
    of_fm = table[table["method"] == "fm"].set_index("perturbation")
    lost = of_fm.loc["none", "max_score"] - of_fm.loc["action_noise", "max_score"]
    assert of_fm.loc["action_noise", "lost"] == pytest.approx(lost, abs=2e-6)


def test_certificates_hold_and_are_reported(made: Project) -> None:
    reports = made.root / "reports" / "starter"
    written = json.loads((reports / "certificates" / "pusht-resft_fm-nfe2.json").read_text(encoding="utf-8"))
    assert {recheck(certificate) for certificate in written["certificates"].values()} == {"certified"}
    assert written["decay"]["largest"] <= written["decay"]["certified"] < 1
    of_unet = json.loads((reports / "certificates" / "pusht-resft_fm_unet-nfe2.json").read_text(encoding="utf-8"))
    assert of_unet["certificates"] == {}
    text = (reports / "certificates.md").read_text(encoding="utf-8")
    assert text.count("| certified |") == 4 and "nothing is known" in text and "Missing rows" not in text


def test_fm_continued_gets_the_same_compute(made: Project) -> None:
    def steps(method: str) -> int:
        path = made.root / f"reports/starter/metrics/pusht-{method}-nfe2.json"
        return json.loads(path.read_text(encoding="utf-8"))["pusht_a"]["train_steps"]

    assert steps("fm") > steps("ft_fm")  # an FM update costs less than one through two steps


def test_second_run_after_another_scale_reruns_nothing(made: Project, tmp_path: Path, database: bytes) -> None:
    project = made.copy(tmp_path / "project", **ALONE)  # stages with DVC as their ancestor share a parent run
    project.put_database(database)
    project.check("pipeline.settings.scale", "lab")
    ran = executed(project.check("dvc", "repro", "prepare@lab-pusht", FLOWTUNE_TRACKING="on").stdout)
    assert ran == ["resolve", "fetch@lab-pusht", "prepare@lab-pusht"]
    project.recorded()
    parents_and_children_are_recorded(project.root)

    ran = executed(project.check("pipeline.orchestration.repro", "starter").stdout)
    assert ran == ["resolve"]  # its outputs are unchanged
    assert project.files("reports/starter") == made.files("reports/starter")


def parents_and_children_are_recorded(root: Path) -> None:
    from mlflow import MlflowClient

    from pipeline.tracking.store import EXPERIMENT, store_uri

    client = MlflowClient(store_uri(root))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment
    runs = client.search_runs([experiment.experiment_id])
    children = {run.info.run_name: run for run in runs if "mlflow.parentRunId" in run.data.tags}
    assert set(children) == {"fetch-lab-pusht", "prepare-lab-pusht"}
    (parent,) = [run for run in runs if run not in children.values()]
    for run in children.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == "FINISHED"
        assert {"stage", "git.commit", "hash.params", "hash.data", "hash.outputs"} <= run.data.tags.keys()
    assert children["prepare-lab-pusht"].data.metrics["windows"] > 0
    assert children["prepare-lab-pusht"].data.params["data.dataset"] == "pusht_starter"


@pytest.fixture
def committed(made: Project, tmp_path: Path) -> Project:
    """Return the project after its whole DAG has run, committed to Git."""
    project = made.copy(tmp_path / "project", GIT_CONFIG_GLOBAL="/dev/null")
    config = project.root / ".dvc" / "config"
    config.write_text(config.read_text(encoding="utf-8").replace("    no_scm = true\n", ""), encoding="utf-8")
    (project.root / ".dvc" / ".gitignore").write_text(
        "/tmp\n/cache\n/site\n/global\n/system\n/config.local\n", encoding="utf-8"
    )
    (project.root / ".gitignore").write_text(
        "/data/starter/\n/data/inputs/\n/.flowtune/\n__pycache__/\n", encoding="utf-8"
    )
    commit_all(project.root)
    return project


def test_temporary_experiment_leaves_the_workspace_unchanged(committed: Project) -> None:
    before = committed.files("reports"), committed.files("params.yaml")
    experiment = ("dvc", "exp", "run", "--temp", "-S")
    ran = executed(committed.check(*experiment, "starter.toys.settle.steps=190", "draw_toys").stdout)
    assert ran == ["resolve", "train_toys@starter", "draw_toys@starter"]
    refused = committed.run(*experiment, "++robot.pretrain.lr=0.5", "draw_toys")
    assert "robot.pretrain.lr: changes nothing: overridden by starter.pusht.pretrain.lr" in refused.stderr
    assert (committed.files("reports"), committed.files("params.yaml")) == before


def test_changed_learning_rate_reruns_fine_tuning_and_its_dependents(committed: Project, made: Project) -> None:
    project = committed
    result = project.check("dvc", "exp", "run", "-S", "starter.pusht.finetune.nfe1.lr=0.01")

    assert set(executed(result.stdout)) == AFTER_ANOTHER_RATE_AT_NFE_1
    before, after = made.files("reports"), project.files("reports")
    changed = {path for path in before if before[path] != after[path]}
    assert "reports/starter/history/pusht-ft_fm-nfe1.csv" in changed
    assert not [path for path in changed if "nfe2" in path or "-fm-" in path or "pretrain" in path]
    assert "max_score" in project.check("dvc", "metrics", "show", "--md").stdout
    shown = project.check("dvc", "exp", "show", "--csv").stdout
    assert "starter.pusht.finetune.nfe1.lr" in shown and "0.01" in shown


def test_failed_fine_tuning_loses_only_its_own_rows(made: Project, tmp_path: Path) -> None:
    project = made.copy(tmp_path / "project")
    project.keep_stages("resolve", "finetune", "evaluate_rollouts", "tabulate", "draw", "draw_toys")
    project.params("starter.pusht.finetune.nfe2.lr", 1e30)  # only ft_fm uses this rate
    rate = made.value("starter.pusht.finetune.nfe2.lr")
    tables = ("figure_1.csv", "table2.csv", "table2.md", "figure_2b.svg")

    result = project.run("pipeline.orchestration.repro")

    assert result.returncode == 1
    error = "error: training diverged: the loss at step 10 is nan; lower lr or clip"
    assert any(line.endswith(error) for line in result.stdout.splitlines())
    assert "Traceback" not in result.stderr
    whole, reports = made.root / "reports" / "starter", project.root / "reports" / "starter" / "partial"
    assert "reports/starter/partial: tables of the available rows; reports/starter keeps" in result.stderr
    for name in tables:
        assert (reports.parent / name).read_bytes() == (whole / name).read_bytes()
    table = pd.read_csv(reports / "table2.csv")
    rows = set(zip(table["evaluation"], table["method"], table["nfe"], strict=True))
    kept = (("fm", 1), ("ft_fm", 1), ("fm", 2), ("resft_fm", 2), ("resft_fm_unet", 2))
    kept += (("ddpm", 2), ("ddim", 2), ("random", 0), ("nearest_demo", 0))
    assert rows == {(f"pusht_{x}", *row) for x in "ab" for row in kept}
    missing = (reports / "table2.md").read_text(encoding="utf-8").partition("**Missing rows**")[2]
    assert "Push-T (a), FT-FM, NFE 2" in missing and "Push-T (b), FT-FM, NFE 2" in missing
    assert (reports / "figure_2b.svg").read_bytes() != (whole / "figure_2b.svg").read_bytes()  # without NFE 2
    assert not (reports / "figure_1.csv").exists()  # complete, so not in the partial folder

    project.params("starter.pusht.finetune.nfe2.lr", rate)
    assert "reports/starter/partial: removed" in project.check("pipeline.orchestration.repro").stdout
    assert project.files("reports") == made.files("reports")
