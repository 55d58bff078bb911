"""Which stages an edit makes stale, and which results return without running."""

import json
import shutil
from pathlib import Path

import pytest

from tests.faults.bench import entries, outs
from tests.project import Project, executed
from tests.tasks.test_loader import put_outside

COUPLING = "pipeline/flow/coupling.py"
CHAIN = ("resolve", "fetch", "prepare", "pretrain", "select_checkpoint", "finetune", "evaluate_rollouts")
CHAIN += ("train_toys", "draw_toys")  # stages with outputs of every kind


@pytest.fixture
def project(made: Project, tmp_path: Path) -> Project:
    """Return the project with all stages up to date."""
    return made.copy(tmp_path / "project")


def edit(project: Project, file: str, text: str) -> None:
    path = project.root / file
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def results(project: Project) -> dict[str, bytes]:
    """Return all outputs of stages, without the statistics of images, which are a cache."""
    files = {**project.files("reports"), **project.files("data")}
    return {path: content for path, content in files.items() if "/statistics/" not in path}


def results_of(made: Project, *kinds: str) -> dict[str, bytes]:
    """Return the results of these kinds of stages, and the files that no stage of a scale makes."""
    lock = entries(made.root / "dvc.lock")
    kept = [out for name, entry in lock.items() if name.partition("@")[0] in kinds for out in outs(entry)]

    def stays(path: str) -> bool:
        of_stages = path.startswith(("data/starter/", "reports/"))
        return not of_stages or any(Path(path).is_relative_to(out) for out in kept)

    return {path: content for path, content in results(made).items() if stays(path)}


def out_of_date(project: Project) -> set[str]:
    """Return the stages that DVC reports as changed after ``resolve``."""
    return set(json.loads(project.check("dvc", "status", "--json", "dvc.yaml").stdout))


def test_code_edit_makes_its_stages_stale_but_a_comment_does_not(project: Project) -> None:
    edit(project, COUPLING, "\n# a word more\n")
    assert executed(project.check("dvc", "repro", "resolve").stdout) == ["resolve"]
    assert out_of_date(project) == set()

    edit(project, COUPLING, "\nA_NUMBER_MORE = 1\n")
    output = project.check("dvc", "repro", "resolve").stdout
    assert f"{COUPLING} changed: out of date: " in output
    inputs = (project.root / "data" / "inputs" / "starter").glob("*.json")
    users = {
        path.name.split("-")[0].removesuffix(".json") for path in inputs if COUPLING in path.read_text(encoding="utf-8")
    }
    assert {"pretrain", "finetune"} < users
    assert users.isdisjoint({"evaluate_rollouts", "tabulate", "evaluate_fid", "prepare"})
    assert {name.partition("@")[0] for name in out_of_date(project)} == users


def test_changed_setting_is_reported_with_its_stages(project: Project) -> None:
    project.params("starter.pusht.diffusion.lr", 2e-3)
    output = project.check("dvc", "repro", "resolve").stdout
    assert "pusht.diffusion.lr: " in output and "→ 0.002: out of date: pretrain_diffusion-pusht" in output
    assert out_of_date(project) >= {"pretrain_diffusion@starter-pusht", "tabulate_settings@starter"}


def test_cached_results_are_restored_without_running(project: Project, made: Project) -> None:
    project.keep_stages(*CHAIN)
    shutil.rmtree(project.root / "reports")
    shutil.rmtree(project.root / "data" / "starter")
    assert executed(project.check("dvc", "repro").stdout) == []
    before = results_of(made, *CHAIN)
    assert results(project) == before

    steps = project.value("starter.toys.follow.steps")
    project.params("starter.toys.follow.steps", steps + 1)
    assert executed(project.check("dvc", "repro", "draw_toys").stdout) == [
        "resolve",
        "train_toys@starter",
        "draw_toys@starter",
    ]
    project.params("starter.toys.follow.steps", steps)
    assert set(executed(project.check("dvc", "repro", "draw_toys").stdout)) <= {"resolve"}
    assert results(project) == before


def test_scale_whose_lock_is_stored_away_is_refused(project: Project) -> None:
    project.check("pipeline.settings.scale", "lab")
    project.params("scale", "starter")
    refused = project.run("stages.resolve")
    assert refused.returncode == 2
    assert "`python -m pipeline.settings.scale starter` changes scale and lists" in refused.stderr
    project.params("theory", ["starter"])
    refused = project.run("stages.resolve")
    assert refused.returncode == 2
    assert "`python -m pipeline.settings.scale starter` changes both" in refused.stderr


def test_repro_detects_a_changed_task_file_outside_the_project(sources: Project, tmp_path: Path) -> None:
    project, path = sources.copy(tmp_path / "project"), put_outside(tmp_path)
    block = project.value("starter.pusht")
    block |= {"task": f"{path}:TASK", "evaluation": block["evaluation"] | {"options": {}}}
    block["data"] |= {"dataset": "starts", "observation": "place"}
    block["select"] |= {"evaluation": "reach"}
    for key, value in (("starter.reach", block), ("starter.lists.tasks", ["reach"]), ("tasks", ["reach"])):
        project.params(key, value)
    project.keep_stages("resolve", "fetch")
    project.check("pipeline.orchestration.repro")
    assert "Running stage" not in project.check("pipeline.orchestration.repro").stdout
    path.write_text(path.read_text(encoding="utf-8").replace("0.1 * np.clip", "0.2 * np.clip"), encoding="utf-8")
    output = project.check("pipeline.orchestration.repro").stdout
    assert f"{path.name} changed; the input files of stages are made again" in output
    assert "Running stage 'fetch@starter-reach'" in output
