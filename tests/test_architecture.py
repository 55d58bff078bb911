"""Import rules: layers depend on lower ones only, and few modules import simulators and orchestrators."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from pipeline.settings.kinds import KINDS, STUDY_KINDS
from pipeline.utils.code_deps import ROOT, code_of, imports_of

LAYERS = (
    *("utils", "ode", "stability", "tasks", "settings", "nets", "flow", "experts", "evaluation", "training"),
    *("deployment", "reporting", "kinds", "perf", "tracking", "orchestration"),
)
"""The packages of the library; a module imports from its own and from earlier ones."""

ORCHESTRATORS = {"dvc", "mlflow", "prefect"}
SIMULATORS = {"gymnasium", "gymnasium_robotics", "gym_pusht", "pygame", "pymunk", "mujoco", "robosuite", "robomimic"}
SIMULATORS |= {"minari"}
MODULES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "pipeline").glob("*/**/*.py"))
STAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "stages").glob("*.py") if path.name != "__init__.py")


def layer(file: str) -> int:
    """Return the position of a file's package in ``LAYERS``."""
    return LAYERS.index(Path(file).parts[1])


@cache
def parsed(file: str) -> ast.AST:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def packages(node: ast.AST, *, within_functions: bool = True) -> Iterator[str]:
    """Yield the top-level packages that the code below ``node`` imports."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name.split(".")[0] for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield (child.module or "").split(".")[0]
        elif within_functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from packages(child, within_functions=within_functions)


def test_modules_import_only_from_their_own_or_lower_layers() -> None:
    imported = [(file, other) for file in MODULES for other in sorted(imports_of(file))]
    upward = [pair for pair in imported if pair[1].startswith("stages/") or layer(pair[1]) > layer(pair[0])]
    assert upward == []


def test_there_are_no_circular_imports() -> None:
    TopologicalSorter({file: imports_of(file) - {file} for file in MODULES}).prepare()  # its error names the circle


def test_stages_never_import_each_other() -> None:
    assert [(file, other) for file in STAGES for other in imports_of(file) if other.startswith("stages/")] == []


def test_layers_below_tracking_do_not_import_orchestrators() -> None:
    before = [file for file in MODULES if layer(file) < LAYERS.index("tracking")]
    assert [file for file in before if ORCHESTRATORS.intersection(packages(parsed(file)))] == []


def test_simulators_are_never_imported_at_module_level() -> None:
    files = {*MODULES, *STAGES} - {"pipeline/perf/vectors.py"}
    imported = {file: packages(parsed(file), within_functions=False) for file in sorted(files)}
    assert [file for file, names in imported.items() if SIMULATORS.intersection(names)] == []


def test_image_stages_depend_on_no_simulator_code() -> None:
    kinds = {name: kind for name, kind in KINDS.items() if kind.over and kind.over[0] not in ("tasks", "offline")}
    code = {(name, file) for name, kind in kinds.items() for file in code_of(*kind.code)}
    assert code
    assert [pair for pair in code if SIMULATORS.intersection(packages(parsed(pair[1])))] == []
    assert [name for name, file in code if file == "pipeline/tasks/api.py"] == []


OWN_CODE = {
    name: kind
    for name, kind in (KINDS | STUDY_KINDS).items()
    if kind.modules and kind.program not in ("study", "fetch")
}


@pytest.mark.parametrize("stage", sorted(OWN_CODE))
def test_stage_depends_only_on_code_of_its_own_kind(stage: str) -> None:
    of_any_kind = {file for kind in OWN_CODE.values() for file in kind.code}
    assert of_any_kind & set(code_of(*OWN_CODE[stage].code)) == set(OWN_CODE[stage].code)


def test_training_and_sampling_import_no_orchestrator_simulator_or_matplotlib() -> None:
    modules = ["loop", "pretrain", "mle", "diversity_monitor", "fine_tune", "checkpoint", "selection"]
    modules = [f"training.{name}" for name in modules]
    modules += ["evaluation.policy", "evaluation.rollouts", "evaluation.protocol"]
    heavy = ORCHESTRATORS | SIMULATORS | {"matplotlib"}
    program = f"import sys\nfor m in {modules}: __import__('pipeline.' + m)\nprint(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.split() == []
