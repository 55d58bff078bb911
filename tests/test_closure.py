"""dvc.yaml declares exactly the code that each stage runs, and only keys that params.yaml has."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from ruamel.yaml import YAML

from pipeline import closure, config
from pipeline.closure import PLUMBING, ROOT, code_of

STAGES: dict[str, dict[str, Any]] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
PARAMS: dict[str, Any] = YAML(typ="safe").load((ROOT / "params.yaml").read_text())


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_declares_the_code_that_it_runs(stage: str) -> None:
    declared = {dep for dep in STAGES[stage]["deps"] if dep.endswith(".py")}
    needed = set(code_of(f"stages/{stage}.py"))
    assert declared == needed, (
        f"dvc.yaml, {stage}: missing {sorted(needed - declared)}, superfluous {sorted(declared - needed)}; "
        f"`python -m pipeline.closure stages/{stage}.py` prints what belongs there"
    )


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_run_by_the_program_of_its_name(stage: str) -> None:
    assert re.match(rf"exec python -m stages\.{stage}( |$)", STAGES[stage]["cmd"])


def test_every_key_that_dvc_yaml_names_exists_at_every_scale() -> None:
    keys = {key for stage in STAGES.values() for key in stage.get("params", [])}
    assert any("${item.scale}" in key for key in keys)
    for template in keys:
        for scale in get_args(config.Scale):
            for task in PARAMS[scale]["tasks"]:
                for nfe in PARAMS[scale]["nfe"]:
                    key = template.replace("${item.scale}", scale).replace("${item.task}", task)
                    value: Any = PARAMS
                    for part in key.replace("${item.nfe}", str(nfe)).split("."):
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
        "pipeline/config.py": "import pipeline.unused\n",
        "pipeline/unused.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(closure, "ROOT", tmp_path)
    assert code_of("stages/train.py") == ["pipeline/a.py", "pipeline/c.py", "pipeline/nets/b.py", "stages/train.py"]
