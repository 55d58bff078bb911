"""``precision: auto`` in training programs: the chosen precision is recorded, and a resume keeps it."""

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from pipeline.orchestration import stage as stages
from pipeline.tracking.run import Run
from pipeline.training import loop
from pipeline.utils import precision
from tests.project import Project, write_inputs
from tests.stages.test_study_cells import STUDY

PUSHT, DIGITS = ("--scale", "starter", "--task", "pusht"), ("--scale", "starter", "--task", "digits")


@dataclass(frozen=True)
class Training:
    """A program that trains.

    Attributes:
        out: a pattern of its files. block: of params.yaml, with its ``precision``. params: further settings.
    """

    program: str
    arguments: tuple[str, ...]
    out: str
    block: str
    params: dict[str, Any] = field(default_factory=dict)


STEPS = {"steps": 12, "warmup": 2}
AHEAD = {"coupling": "reflow", "reflow_nfe": 4, "precomputed_pairs": 1}
"""Settings with pairs that are saved before the first step."""
NFE1, NFE2, RESIDUAL = "pusht.finetune.nfe1", "pusht.finetune.nfe2", "pusht.residual.resft_fm-nfe2"
PRETRAIN, DIFFUSION, MODELS = "pusht.pretrain", "pusht.diffusion", "data/starter/pusht/models"


def of(block: str, *settings: dict[str, Any]) -> dict[str, Any]:
    """Return ``settings`` by their keys in params.yaml, all in ``block``."""
    return {f"{block}.{key}": value for each in settings for key, value in each.items()}


TRAININGS = [
    Training(
        "train", (*PUSHT, "--method", "fm"), "data/starter/pusht/pretrain/*.safetensors", PRETRAIN, of(PRETRAIN, STEPS)
    ),
    Training("train", (*PUSHT, "--method", "ddpm"), f"{MODELS}/diffusion.safetensors", DIFFUSION, of(DIFFUSION, STEPS)),
    Training(
        "train", (*PUSHT, "--method", "fm", "--nfe", "1"), f"{MODELS}/fm-nfe1.safetensors", PRETRAIN, of(NFE1, STEPS)
    ),
    Training(
        "train",
        (*PUSHT, "--method", "ft_fm", "--nfe", "2"),
        f"{MODELS}/ft_fm-nfe2.safetensors",
        NFE2,
        of(NFE2, STEPS, AHEAD),
    ),
    Training(
        "train",
        (*PUSHT, "--row", "resft_fm-nfe2"),
        f"{MODELS}/resft_fm-nfe2.safetensors",
        RESIDUAL,
        of(RESIDUAL, STEPS, AHEAD),
    ),
    Training(
        "train", (*DIGITS, "--method", "i_cfm"), "data/starter/digits/i_cfm/step-0000060.safetensors", "digits.pretrain"
    ),
    Training(
        "train",
        (*DIGITS, "--method", "ft_fm", "--nfe", "1"),
        "data/starter/digits/ft_fm/nfe1.safetensors",
        "digits.finetune.nfe1",
    ),
    Training(
        "train", (*DIGITS, "--method", "resft_fm"), "data/starter/digits/resft_fm/nfe2.safetensors", "digits.residual"
    ),
    Training(
        "study",
        ("coupling", *PUSHT, "--train-seed", "0", "--row", "reflow", "--nfe", "1"),
        "reports/starter/coupling_study/seed0/episodes/pusht_b-reflow-nfe1.csv",
        NFE1,
        {"pusht.study": STUDY | {"budget": 20}, "pusht.evaluation.n_seeds": 3},
    ),
]


class StopTrainingError(Exception):
    pass


@pytest.fixture
def here(made: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return the project; its programs run in this process, where the hardware can be mocked."""
    project = made.copy(tmp_path / "project")
    monkeypatch.chdir(project.root)
    monkeypatch.setattr(stages, "ROOT", project.root)
    monkeypatch.setenv("FLOWTUNE_TRACKING", "off")
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(loop, "LOG_EVERY", 2)
    return project


@pytest.fixture
def run(here: Project, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, bytes]]:
    def run(training: Training, *, has_bf16: bool, stop_at: int | None = None) -> dict[str, bytes]:
        """Return the program's files; stopped at step ``stop_at`` it has none."""
        steps = 0

        def counted(kind: str, name: precision.PrecisionSetting) -> object:
            nonlocal steps
            steps += 1
            if steps == stop_at:
                raise StopTrainingError
            return precision.autocast(kind, name)

        monkeypatch.setattr(precision, "has_bf16", lambda _kind: has_bf16)
        monkeypatch.setattr(loop, "autocast", counted)
        monkeypatch.setattr(sys, "argv", [training.program, *training.arguments])
        program = importlib.import_module(f"stages.{training.program}")
        if stop_at:
            with pytest.raises(StopTrainingError):
                program.main()
            return {}
        program.main()
        return {str(path): path.read_bytes() for path in sorted(here.root.glob(training.out))}

    return run


def prepare(project: Project, training: Training) -> None:
    for key, value in (training.params | {f"{training.block}.precision": "auto"}).items():
        project.params(f"starter.{key}", value)
    write_inputs()
    if training.program == "study":
        base = ("--train-seed", "0", "--model", "data/starter/pusht/base.safetensors")
        project.check("stages.study", "base", *PUSHT, *base)


@pytest.mark.parametrize("training", TRAININGS, ids=lambda one: one.out.rpartition("/")[2])
def test_resume_without_bf16_hardware_keeps_bf16_and_gives_identical_files(
    training: Training, here: Project, run: Callable[..., dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tags: dict[str, str] = {}
    monkeypatch.setattr(Run, "tag", lambda _self, key, value: tags.__setitem__(key, value))
    prepare(here, training)
    undisturbed = run(training, has_bf16=True)
    assert undisturbed and tags["precision"] == "bf16"
    for steps in (1, 6):  # before and after the first saved state
        run(training, has_bf16=True, stop_at=steps)
        assert run(training, has_bf16=False) == undisturbed
        assert tags["precision"] == "bf16"
    if training.program != "study":
        assert {trained_in(Path(path)) for path in undisturbed} == {"bf16"}


def test_training_started_in_fp32_stays_in_fp32(here: Project, run: Callable[..., dict[str, bytes]]) -> None:
    training = TRAININGS[0]
    prepare(here, training)
    undisturbed = run(training, has_bf16=False)
    run(training, has_bf16=False, stop_at=6)
    assert run(training, has_bf16=True) == undisturbed
    assert {trained_in(Path(path)) for path in undisturbed} == {"fp32"}
    assert run(training, has_bf16=True) != undisturbed
    assert not list((here.root / ".flowtune" / "resume").glob("*/"))


def trained_in(model: Path) -> str:
    with safe_open(model, framework="pt") as file:
        metadata = file.metadata()
    return json.loads(metadata.get("flowtune") or metadata["flowtune_images"])["precision"]
