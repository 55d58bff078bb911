"""Imports point one way, simulators and orchestrators stay out of where they do not belong."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.settings.kinds import KINDS
from pipeline.utils.code_deps import ROOT, code_of, imports_of

ORDER = (
    "utils", "ode", "stability", "tasks", "settings", "nets", "flow", "experts", "evaluation", "training", "deployment",
    "reporting", "perf", "tracking", "orchestration",
)  # fmt: skip
WITHIN = {
    "utils": (
        "errors", "atomic", "seeding", "code_deps", "platform", "handover", "hardware", "memory", "environment",
        "precision", "processes", "provenance", "shipped", "timing",
    ),
    "settings": (
        "source", "names", "messages", "blocks", "shapes", "images", "one_step", "robots", "toys", "layers",
        "schema", "locks",
        "scale", "__main__", "paths", "kinds", "inputs",
    ),
    "ode": ("fixed_step", "grids", "dopri5", "gradient", "error_bound"),
    "stability": (
        "system", "inequalities", "parameterization", "verify", "certificate", "climb", "falsify", "semidefinite",
        "contraction", "regions", "iss", "recheck",
    ),
    "nets": (
        "embedding", "ema", "lora", "sharing", "modes", "weights", "mlp", "unet1d", "transformer1d", "unet2d", "vision",
        "registry", "images", "torchcfm", "torchcfm_unet", "persidskii", "residual",
    ),
    "flow": (
        "path", "pairing", "transport", "coupling", "covariance", "objective", "marginal", "diffusion",
        "image_methods",
        "action_diffusion",
    ),
    "tasks": (
        "types", "camera", "normalizer", "transfer", "fetching", "archive", "demonstrations", "windows", "vector",
        "datasets", "formats", "download", "api", "loader", "pusht", "kitchen", "robomimic",
        "custom", "lift", "can", "square", "transport", "seattle_weather", "toys",
        "images", "cifar10", "image_sources", "inception",
    ),
    "tasks/formats": (
        "recording", "arrays", "cameras", "lerobot", "lerobot_writer", "minari_folder", "robomimic_hdf5", "reading",
        "vectors", "pictures", "survey", "description",
    ),
    "tasks/custom": ("settings", "robosuite", "env", "check"),
    "tasks/pusht": ("env", "camera", "files", "images"),
    "tasks/kitchen": ("env", "log", "files"),
    "tasks/robomimic": ("simulator", "camera", "rotation", "actions", "settings", "env", "files", "task"),
    "experts": (
        "episode", "collect", "arm", "kitchen_skills", "kitchen", "waypoints", "robomimic_episode",
        "robomimic_lift_can", "robomimic_square", "robomimic_transport", "gymnasium_policy", "registry",
    ),
    "evaluation": (
        "statistics", "intervals", "policy", "residual_policy", "diffusion_policy", "image_policy",
        "baselines", "diversity", "rollouts", "video", "demonstrate",
        "protocol", "offline_scores", "offline", "aggregate",
        "precision", "gap", "robustness", "certify", "toy_flows", "toy_systems", "figure_1",
        "image_models", "features", "fid", "sample_metrics", "generation",
    ),
    "training": (
        "data", "resume", "frames", "checkpoint", "journal", "loop", "sight", "sources", "teacher", "pretrain",
        "one_step_baselines", "flow_map", "mle",
        "recipe", "guard", "watch", "finetuning", "fine_tune", "selection", "study", "one_step",
        "residual", "residual_checkpoint", "toys",
        "diffusion", "acting", "images", "image_methods", "image_checkpoint", "extractor", "image_judge",
    ),
    "deployment": ("controller", "onnx_export"),
    "perf": (
        "gradients", "certificates", "contest", "growth", "common_training", "updates", "solves", "plans", "pairs",
        "vectors", "robomimic_loop", "simulation", "loading", "startup", "suite", "peak", "profiles", "training_step",
        "image_nets", "trainings", "forecast",
    ),
    "reporting": (
        "titles", "episodes", "rows", "tables", "figures", "study", "study_markdown", "study_figures",
        "one_step", "one_step_report", "precision",
        "gap", "robustness", "certificates", "hyperparameters", "figure_1", "figure_1_markdown",
        "offline_rows", "offline_table", "offline_figure",
        "table1", "table1_checks", "table1_markdown", "image_figures",
    ),
    "tracking": ("run", "queue", "store", "recorder"),
    "orchestration": (
        "restore", "lockguard", "stage", "output", "program_server", "plan", "places", "run_cache", "share", "needs", "partial",
        "executor", "repro", "flow_runs", "worker_flows", "pool", "prefect_flows", "worker", "ui",
        "scaling_pool", "scaling",
    ),
}  # fmt: skip
"""A module imports only what stands before it, among packages and inside each."""

ORCHESTRATORS = {"dvc", "mlflow", "prefect"}
SIMULATORS = {"gymnasium", "gymnasium_robotics", "gym_pusht", "pygame", "pymunk", "mujoco", "robosuite", "robomimic"}
SIMULATORS |= {"minari"}
MODULES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "pipeline").rglob("*.py")
    if path.name != "__init__.py" or path.parent.parent.name == "tasks"
)
STAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "stages").glob("*.py") if path.name != "__init__.py")


def rank(file: str) -> tuple[int, ...]:
    """Where ``file`` stands in the order; a folder's own code stands behind all inside it."""
    parts = Path(file).with_suffix("").parts[1:]
    assert parts[0] in ORDER, f"{file}: give it a place in ORDER"
    places = [ORDER.index(parts[0])]
    for depth, part in enumerate(parts[1:], start=1):
        within = WITHIN["/".join(parts[:depth])]
        assert part in (*within, "__init__"), f"{file}: give it a place in WITHIN"
        places.append(within.index(part) if part in within else len(within))
    return tuple(places)


def packages(tree: ast.AST) -> set[str]:
    """Top-level packages that ``tree`` imports."""
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("file", MODULES)
def test_a_module_imports_only_what_stands_above_it(file: str) -> None:
    imported = imports_of(file)
    assert [other for other in sorted(imported) if other.startswith("stages/")] == []
    assert [other for other in sorted(imported) if rank(other) >= rank(file)] == []


@pytest.mark.parametrize("file", STAGES)
def test_stages_never_import_each_other(file: str) -> None:
    assert [other for other in sorted(imports_of(file)) if other.startswith("stages/")] == []


@pytest.mark.parametrize("file", MODULES)
def test_nothing_above_tracking_knows_the_orchestrators(file: str) -> None:
    if ORDER.index(Path(file).with_suffix("").parts[1]) < ORDER.index("tracking"):
        assert packages(ast.parse((ROOT / file).read_text(encoding="utf-8"))) & ORCHESTRATORS == set()


@pytest.mark.parametrize("file", sorted({*MODULES, *STAGES} - {"pipeline/perf/vectors.py"}))
def test_simulators_are_imported_only_where_they_run(file: str) -> None:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for function in functions:
        function.body = []
    assert packages(tree) & SIMULATORS == set()


@pytest.mark.parametrize(
    "program",
    sorted({kind.program for kind in KINDS.values() if kind.over and kind.over[0] not in ("tasks", "offline")}),
)
def test_stages_of_images_run_no_code_of_simulators(program: str) -> None:
    code = code_of(f"stages/{program}.py")
    assert "pipeline/tasks/api.py" not in code
    assert [file for file in code if packages(ast.parse((ROOT / file).read_text(encoding="utf-8"))) & SIMULATORS] == []


def test_training_and_sampling_load_no_orchestrator_simulator_or_plotter() -> None:
    modules = [
        "training.loop",
        "training.pretrain",
        "training.mle",
        "training.guard",
        "training.fine_tune",
        "training.checkpoint",
    ]
    modules += ["training.selection", "evaluation.policy", "evaluation.rollouts", "evaluation.protocol"]
    heavy = ORCHESTRATORS | SIMULATORS | {"matplotlib"}
    program = f"import sys\nfor m in {modules}: __import__('pipeline.' + m)\nprint(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.split() == []
