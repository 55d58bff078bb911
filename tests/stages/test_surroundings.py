"""The pipeline runs in unusual environments."""

import subprocess
from pathlib import Path

import pytest

from pipeline.tracking import store
from tests.project import ALONE, Project, executed

STAGES = ("resolve", "fetch", "prepare")
FOLDER = "feature%2Flogin a?b#c ü"
NOWHERE = {"HOME": "/proc/no-home", "XDG_CACHE_HOME": "/proc/no-cache", "http_proxy": "http://127.0.0.1:9"}
PLAINEST = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", **ALONE}


@pytest.fixture
def project(sources: Project, tmp_path: Path) -> Project:
    """Return the first stages of a project with an odd folder name, no home, a plain locale and a dead proxy."""
    project = sources.copy(tmp_path / FOLDER, **NOWHERE, **PLAINEST)
    config = project.root / ".dvc" / "config"
    config.write_text(config.read_text(encoding="utf-8").replace("no_scm = true", ""), encoding="utf-8")
    project.keep_stages(*STAGES)
    path = project.root / "params.yaml"
    path.write_text(f"# Größe, 大小\n{path.read_text(encoding='utf-8')}", encoding="utf-8")
    return project


def test_repro_without_git_records_runs_and_writes_only_inside_the_project(project: Project, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    result = project.check("pipeline.orchestration.repro", "--jobs", "1", FLOWTUNE_TRACKING="on")
    assert "warning" not in result.stderr
    assert (project.root / "data" / "starter" / "pusht").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == [FOLDER]
    assert (project.root / ".flowtune" / "dvc" / "repo").is_dir()

    project.recorded()
    client = MlflowClient(tracking_uri=store.store_uri(project.root))
    experiment = client.get_experiment_by_name(store.EXPERIMENT)
    runs = [run for run in client.search_runs([experiment.experiment_id]) if "stage" in run.data.tags]
    assert len(runs) == 2  # `resolve` keeps no record
    assert {(run.info.status, run.data.tags["git.commit"]) for run in runs} == {("FINISHED", "none")}


def test_dvc_repro_works_in_a_repository_without_a_commit(project: Project) -> None:
    subprocess.run(["git", "init", "-q"], cwd=project.root, check=True)
    result = project.check("dvc", "repro", PYTHONUTF8="1")  # without it DVC finds no files in a folder of this name
    assert len(executed(result.stdout)) == len(STAGES)
    assert (project.root / ".flowtune" / "dvc" / "repo").is_dir()
