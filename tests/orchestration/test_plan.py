"""DVC's stage graph: reading, ordering, and the part that a table needs."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.orchestration.plan import (
    FINAL_STAGES,
    Program,
    ask_plan,
    by_urgency,
    programs_of,
    read_graph,
    read_plan,
    repository,
)
from pipeline.utils.errors import UserError
from tests.project import ROOT

DVC_YAML = """
stages:
  check: {cmd: echo ok > checked.txt, deps: [params.yaml], outs: [checked.txt]}
  prepare:
    matrix: {task: "${tasks}"}
    cmd: exec python -m stages.prepare --task ${item.task}
    deps: [checked.txt]
    outs: ["data-${item.task}.txt"]
  tabulate:
    matrix: {task: "${tasks}"}
    cmd: cp data-${item.task}.txt table-${item.task}.txt
    deps: ["data-${item.task}.txt"]
    outs: ["table-${item.task}.txt"]
  unrelated: {cmd: echo > unrelated.txt, outs: [unrelated.txt]}
"""
TABLE2 = {
    "check": [],
    "prepare@one": ["check"],
    "prepare@two": ["check"],
    "tabulate@one": ["prepare@one"],
    "tabulate@two": ["prepare@two"],
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "dvc.yaml").write_text(DVC_YAML, encoding="utf-8")
    (tmp_path / "params.yaml").write_text("tasks: [one, two]\n", encoding="utf-8")
    (tmp_path / "study").mkdir()
    study = "stages: {cell: {cmd: sleep 3600, outs: [cell.txt]}}"  # a separate pipeline
    (tmp_path / "study" / "dvc.yaml").write_text(study, encoding="utf-8")
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], check=True)
    return tmp_path


def test_plan_of_a_target_contains_only_its_ancestors(root: Path) -> None:
    with repository(root) as repo:
        assert dict(read_plan(repo, target="table2").inputs) == TABLE2
        assert dict(read_plan(repo).inputs) == TABLE2 | {"unrelated": []}
        assert list(read_plan(repo, "study/dvc.yaml").inputs) == ["study/dvc.yaml:cell"]
        with pytest.raises(ValueError, match="no stage makes table1; it needs one of tabulate_images, draw_images"):
            read_plan(repo, target="table1")


def test_descendants_of_stale_stages_are_stale(root: Path) -> None:
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q", "check", "unrelated"], check=True)
    with repository(root) as repo:
        plan = read_plan(repo)
        assert plan.stale == TABLE2.keys() - {"check"}
        assert plan.stale_inputs["prepare@one"] == []
        assert plan.stale_inputs["tabulate@one"] == ["prepare@one"]
    assert programs_of(plan.commands["prepare@one"]) == [Program("stages.prepare", ["--task", "one"])]
    assert programs_of(plan.commands["check"]) == []
    assert plan.outs["tabulate@two"] == ["table-two.txt"]
    assert ask_plan(root) == plan


def test_invalid_dvc_yaml_gives_dvcs_message(root: Path) -> None:
    (root / "dvc.yaml").write_text("stages: {check: {command: ls}}", encoding="utf-8")
    with pytest.raises(UserError, match=r"dvc\.yaml.*(?s:.*)command"):
        ask_plan(root)


def test_table1_and_table2_share_only_the_resolve_stage() -> None:
    with repository(ROOT) as repo:
        stages = {
            target: {stage.name.partition("@")[0] for stage in read_graph(repo, target=target)}
            for target in FINAL_STAGES
        }
    assert stages["table1"] & stages["table2"] == {"resolve"}
    assert {"fetch_images", "pretrain_images", "finetune_image_residual", "evaluate_untrained"} < stages["table1"]


def test_the_longest_chain_comes_first() -> None:
    inputs: dict[str, list[str]] = {"a": [], "b": [], "c": ["b"], "d": ["a", "c"], "e": []}
    assert by_urgency(inputs) == ["b", "a", "c", "d", "e"]


def test_main_rows_and_their_inputs_come_before_longer_chains() -> None:
    inputs = {"a": [], "b": ["a"], "c": ["b"], "base": [], "evaluate_rollouts@x": ["base"], "late": ["base"]}
    assert by_urgency(inputs) == ["base", "evaluate_rollouts@x", "a", "b", "c", "late"]
