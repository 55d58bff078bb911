"""dvc.yaml declares exactly the code that each stage runs, and only keys that params.yaml has."""

import itertools
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from ruamel.yaml import YAML

from pipeline.settings import schema
from pipeline.utils import code_deps
from pipeline.utils.code_deps import PLUMBING, ROOT, code_of

PIPELINES = ("dvc.yaml", "reports/lab/study/dvc.yaml", "data/demonstrations/dvc.yaml")
SECOND_MATRICES = {f"evaluate_{rows}": "evaluate_rollouts" for rows in ("residual", "diffusion", "baselines")}
SECOND_MATRICES |= {"evaluate_untrained": "evaluate_fid"}
"""Stages that run another's program over other rows."""
PARAMS: dict[str, Any] = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def stages_of(pipeline: str) -> dict[str, dict[str, Any]]:
    return YAML(typ="safe").load((ROOT / pipeline).read_text(encoding="utf-8"))["stages"]


STAGES = [(pipeline, stage) for pipeline in PIPELINES for stage in stages_of(pipeline)]


def program_of(pipeline: str, stage: str) -> str:
    """The program that a stage runs, such as stages/pretrain.py."""
    found = re.match(r"exec python -m stages\.(\w+)( |$)", stages_of(pipeline)[stage]["cmd"])
    assert found, f"{pipeline}, {stage}: runs no program of stages/ in the shell's place"
    return f"stages/{found[1]}.py"


@pytest.mark.parametrize(("pipeline", "stage"), STAGES)
def test_a_stage_declares_the_code_that_it_runs(pipeline: str, stage: str) -> None:
    declared = {dep for dep in stages_of(pipeline)[stage]["deps"] if dep.endswith(".py")}
    program = program_of(pipeline, stage)
    needed = set(code_of(program))
    assert declared == needed, (
        f"{pipeline}, {stage}: missing {sorted(needed - declared)}, superfluous {sorted(declared - needed)}; "
        f"`python -m pipeline.utils.code_deps {program}` prints what belongs there"
    )


@pytest.mark.parametrize("stage", stages_of("dvc.yaml"))
def test_a_stage_is_run_by_the_program_of_its_name(stage: str) -> None:
    program = SECOND_MATRICES.get(stage, stage)
    assert program_of("dvc.yaml", stage) == f"stages/{program}.py"


def test_the_study_makes_a_row_for_each_of_its_training_seeds() -> None:
    study = PARAMS["lab"]["pusht"]["study"]
    stages = stages_of("reports/lab/study/dvc.yaml")
    rows = [stage for stage in stages.values() if "seed" in stage.get("matrix", {})]
    assert rows
    for stage in rows:
        assert stage["matrix"]["seed"] == study["train_seeds"]
    for key in {key for stage in rows for key in stage["params"]}:
        block: Any = PARAMS
        for part in key.replace("${item.nfe}", "8").split("."):
            assert part in block, f"the study names {key}, which params.yaml does not have"
            block = block[part]


def test_every_key_that_dvc_yaml_names_exists_at_every_scale() -> None:
    keys = {key for stage in stages_of("dvc.yaml").values() for key in stage.get("params", [])}
    assert any("${item.scale}" in key for key in keys)
    for template, scale in itertools.product(keys, get_args(schema.Scale)):
        block = PARAMS[scale]
        image = "${item.image}" in template
        for task, nfe, row in itertools.product(
            block["images" if image else "tasks"], block["image_nfe" if image else "nfe"], block["residual"]
        ):
            key = template.replace("${item.scale}", scale)
            key = key.replace("${item.task}", task).replace("${item.image}", task)
            value: Any = PARAMS
            for part in key.replace("${item.nfe}", str(nfe)).replace("${item.row}", row).split("."):
                assert part in value, f"dvc.yaml names {template}: no {key} in params.yaml"
                value = value[part]


def test_plumbing_names_files_that_exist() -> None:
    assert all((ROOT / file).is_file() for file in PLUMBING)


def test_imports_are_followed_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "stages/train.py": "import torch\nfrom pipeline import a, config\n",
        "pipeline/a.py": "def f():\n    import pipeline.nets.b\n",
        "pipeline/nets/b.py": "if True:\n    from pipeline.c import thing\n",
        "pipeline/c.py": "from pipeline import a\n",
        "pipeline/settings/schema.py": "import pipeline.unused\n",
        "pipeline/unused.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(code_deps, "ROOT", tmp_path)
    assert code_of("stages/train.py") == ["pipeline/a.py", "pipeline/c.py", "pipeline/nets/b.py", "stages/train.py"]
