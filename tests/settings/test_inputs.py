"""The inputs of stages: dvc.yaml agrees with the table of kinds, and undeclared settings cannot be read."""

import re
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
from ruamel.yaml import YAML

from pipeline.settings import schema
from pipeline.settings.inputs import FOLDER, built, chosen, read_inputs, resolved, resolved_inputs
from pipeline.settings.kinds import EXECUTION, KINDS, STUDY_KINDS
from pipeline.settings.one_step import CELLS
from pipeline.settings.schema import LISTS, Scale, ScaleSettings, Settings
from pipeline.utils.code_deps import ROOT
from pipeline.utils.errors import UserError
from tests.settings.params import TEXT

STUDY = "reports/lab/study/dvc.yaml"
STUDIES = {STUDY: "lab", "reports/metaworld/study/dvc.yaml": "metaworld"}
DEMONSTRATIONS = "data/demonstrations/dvc.yaml"


def stages_of(pipeline: str) -> dict[str, dict[str, Any]]:
    return YAML(typ="safe").load((ROOT / pipeline).read_text(encoding="utf-8"))["stages"]


def at(scale: str, text: str = TEXT) -> Settings:
    """Return the settings in ``text`` with ``scale`` as the current scale."""
    settings = schema.parse(text, "params.yaml")
    lists = {name: getattr(settings.block(scale), name) for name in LISTS}
    return settings.model_copy(update={"scale": scale, **lists})


def inputs_asked_for(pipeline: str, settings: Settings) -> set[Path]:
    """Return the files below data/inputs that the stages of ``pipeline`` depend on, for all items of a matrix."""
    found = set()
    for stage in stages_of(pipeline).values():
        matrix = {
            name: [settings.scale] if name == "scale" else values if isinstance(values, list) else
            getattr(settings, values.strip("${}"))
            for name, values in stage.get("matrix", {}).items()
        }  # fmt: skip
        for values in product(*matrix.values()):
            item = dict(zip(matrix, values, strict=True))
            for dep in stage["deps"]:
                if dep.startswith("data/inputs/"):
                    found.add(Path(re.sub(r"\${item\.(\w+)}", lambda part, item=item: str(item[part[1]]), dep)))
    return found


@pytest.mark.parametrize("scale", get_args(Scale))
def test_resolve_writes_every_input_file_of_the_stages(scale: str) -> None:
    settings = at(scale)
    written = {path for path in resolved_inputs(settings) if path.name != "execution.json"}
    asked = inputs_asked_for("dvc.yaml", settings) | inputs_asked_for(DEMONSTRATIONS, settings)
    asked |= {path for study in STUDIES for path in inputs_asked_for(study, settings)}
    assert asked <= written
    if all(getattr(settings, name) for name in LISTS):  # an empty list leaves out stages that would read inputs
        assert {path for path in written - asked if path.stem.partition("-")[0] not in STUDY_KINDS} == set()


@pytest.mark.parametrize(("pipeline", "kinds"), [("dvc.yaml", KINDS), *((study, STUDY_KINDS) for study in STUDIES)])
def test_stage_command_runs_the_program_of_its_kind(pipeline: str, kinds: dict[str, Any]) -> None:
    for name, stage in stages_of(pipeline).items():
        found = re.match(r"exec python -m stages\.(\w+)(?: (\w+))?( |$)", stage["cmd"])
        assert found, f"{pipeline}, {name}: does not exec a program of stages/"
        (inputs,) = [dep for dep in stage["deps"] if dep.startswith("data/inputs/")] or ["resolve"]
        kind = Path(inputs).name.partition("-")[0].removesuffix(".json")
        assert found[1] == ("resolve" if name == "resolve" else kinds[kind].program)
        assert found[1] != "report" or found[2] == kind


def test_no_pipeline_names_a_python_file_and_every_stage_has_a_run_cache() -> None:
    assert len((ROOT / "dvc.yaml").read_text(encoding="utf-8").splitlines()) <= 400
    for pipeline in ("dvc.yaml", *STUDIES, DEMONSTRATIONS):
        expected = {"pipeline", "stages"} if pipeline == "dvc.yaml" else set()
        stages = stages_of(pipeline).values()
        code = {dep for stage in stages for dep in stage["deps"] if dep.split("/")[0] in ("pipeline", "stages")}
        assert code == expected
        # DVC has no run cache for stages with `persist`, or with `cache: false` outside metrics and plots
        assert all(isinstance(out, str) for stage in stages for out in stage.get("outs", []))
        shown = [out for stage in stages for kind in ("metrics", "plots") for out in stage.get(kind, [])]
        assert all(next(iter(out.values()))["cache"] is False for out in shown)


def test_coupling_study_covers_all_training_seeds() -> None:
    study = at("lab").lab.task("pusht").studied()
    stages = stages_of(STUDY).items()
    rows = [stage["matrix"]["seed"] for name, stage in stages if "matrix" in stage and not name.startswith("one_step")]
    assert rows and all(seeds == study.train_seeds for seeds in rows)


@pytest.mark.parametrize(("pipeline", "scale"), STUDIES.items())
def test_one_step_study_covers_all_methods_and_training_seeds(pipeline: str, scale: str) -> None:
    settings = at(scale)
    tasks = resolved(settings, scale)["one_step_tasks"]
    cells = []
    for stage in stages_of(pipeline).values():
        if "stages.study one_step" in stage["cmd"]:
            matrix = stage["matrix"]
            (axis,) = matrix.keys() - {"task", "seed"}
            name = stage["cmd"].rpartition(" ")[2]
            cells += [
                (task, seed, name.replace(f"${{item.{axis}}}", str(value)))
                for task, seed, value in product(matrix["task"], matrix["seed"], matrix[axis])
            ]
    seeds = {task: settings.block(scale).task(task).one_step.train_seeds for task in tasks}
    assert sorted(cells) == sorted((task, seed, cell) for task in tasks for seed in seeds[task] for cell in CELLS)


@pytest.mark.parametrize("scale", get_args(Scale))
def test_inputs_round_trip_to_settings(scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = at(scale)
    for path, text in resolved_inputs(settings).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    task = settings.tasks[0]
    whole, read = settings.block(scale).task(task), read_inputs("pretrain", scale, task).settings.task(task)
    assert (read.pretrain, read.net, read.data, read.seed) == (whole.pretrain, whole.net, whole.data, whole.seed)
    for residual in settings.residual[:1]:
        row = read_inputs("finetune_residual", scale, task, residual).settings.task(task)
        assert row.residual_recipe(residual) == whole.residual_recipe(residual)
    rollouts = read_inputs("evaluate_rollouts", scale, task).settings.task(task).evaluation
    assert rollouts.n_seeds == whole.evaluation.n_seeds
    for key in EXECUTION:  # changes no result: readable, but in no stage's own file
        name = key.removeprefix("evaluation.")
        assert getattr(rollouts, name) == getattr(whole.evaluation, name)
        assert name not in read_inputs("evaluate_rollouts", scale, task).params[task]["evaluation"]


def test_undeclared_setting_cannot_be_read() -> None:
    tree = resolved(at("starter"), "starter")
    part = built(ScaleSettings, chosen(tree, ["pusht.pretrain.lr", "nfe"]))
    assert part.task("pusht").pretrain.lr == tree["pusht"]["pretrain"]["lr"]
    for read in (lambda: part.task("pusht").net, lambda: part.task("pusht").pretrain.steps, lambda: part.tasks):
        with pytest.raises(AttributeError, match=r"not among the inputs of this stage; pipeline/settings/kinds\.py"):
            read()


def test_missing_or_damaged_inputs_give_an_error_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data/inputs/lab/fetch-pusht\.json: not found; `dvc repro resolve` makes"):
        read_inputs("fetch", "lab", "pusht")
    (tmp_path / FOLDER / "lab").mkdir(parents=True)
    (tmp_path / FOLDER / "lab" / "fetch-pusht.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="is damaged; `dvc repro --force resolve`"):
        read_inputs("fetch", "lab", "pusht")
    with pytest.raises(UserError, match=r"fetch-juggling\.json: not found; .*; there are those of pusht$"):
        read_inputs("fetch", "lab", "juggling")
