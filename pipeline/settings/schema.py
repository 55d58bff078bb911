"""``params.yaml`` as typed, validated settings: an unknown, wrong or impossible value fails, naming its key."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.settings.blocks import (
    EVALUATIONS,
    Block,
    Count,
    CovarianceKind,
    FinetuneCoupling,
    FinetuneRecipe,
    GradientKind,
    MlpSettings,
    NetSettings,
    Optimization,
    PersidskiiSettings,
    Positive,
    PretrainSettings,
    ResidualRecipe,
    ResidualSolve,
    Seed,
    Solver,
    StabilityKind,
    Transformer1dSettings,
    Unet1dSettings,
    Unet2dSettings,
)
from pipeline.settings.images import ImageTask, ImageTaskSettings
from pipeline.settings.messages import line
from pipeline.settings.robots import (
    DataSettings,
    DiffusionRow,
    Disturbance,
    EvaluationSettings,
    PrecisionSettings,
    ResidualRow,
    Row,
    StudyRecipe,
    StudySettings,
    Task,
    TaskSettings,
    VisionSettings,
)
from pipeline.utils.errors import UserError

__all__ = [  # with the settings of this file, those of the files that it is made of
    "EVALUATIONS",
    "CovarianceKind",
    "DataSettings",
    "Disturbance",
    "EvaluationSettings",
    "FinetuneCoupling",
    "FinetuneRecipe",
    "GradientKind",
    "MlpSettings",
    "NetSettings",
    "Optimization",
    "PersidskiiSettings",
    "PrecisionSettings",
    "PretrainSettings",
    "ResidualRecipe",
    "ResidualSolve",
    "Solver",
    "StabilityKind",
    "StudyRecipe",
    "StudySettings",
    "TaskSettings",
    "Transformer1dSettings",
    "VisionSettings",
]

Scale = Literal["starter", "lab", "paper"]
Baseline = Literal["random", "nearest_demo"]
PointSet = Literal["two_points", "eight_points"]
ToyCoupling = Literal["independent", "minibatch_ot", "nearest"]


LISTS = ("tasks", "nfe", "residual", "robustness", "diffusion", "baselines", "images", "image_nfe")
"""Top-level keys that say what is made; each scale's block has its own."""


class GapSettings(Block):
    """Theorem 1 measured: learned fields of a few points, solved and compared with the exact field."""

    seed: Seed
    threads: Count
    datasets: Annotated[list[PointSet], Field(min_length=1)]
    sigmas: Annotated[list[Positive], Field(min_length=1)]
    net: MlpSettings
    train: Optimization
    trajectories: Count
    nfe: Annotated[list[Annotated[int, Field(ge=4, multiple_of=4)]], Field(min_length=1)]
    tolerance: Positive
    end: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class ToySettings(Block):
    """Figure 1: small models of two, eight points, of a curve and of two places."""

    seed: Seed
    threads: Count
    net: MlpSettings
    sigma: Positive
    fm: Optimization
    couplings: Annotated[list[ToyCoupling], Field(min_length=1)]
    candidates: Count
    nfe: Count
    mle: Optimization
    width: Count
    rate: Positive
    free: Count
    follow: Optimization
    disturbance: Positive
    settle: Optimization


class ScaleSettings(Block):
    tasks: Annotated[list[Task], Field(min_length=1)]
    nfe: Annotated[list[Count], Field(min_length=1)]
    residual: Annotated[list[ResidualRow], Field(min_length=1)]
    robustness: Annotated[list[Row], Field(min_length=1)]
    diffusion: list[DiffusionRow]
    baselines: list[Baseline]
    gap: GapSettings
    toys: ToySettings
    images: Annotated[list[ImageTask], Field(max_length=1)]
    image_nfe: list[Count]
    pusht: TaskSettings | None = None
    pusht_image: TaskSettings | None = None
    kitchen: TaskSettings | None = None
    lift: TaskSettings | None = None
    can: TaskSettings | None = None
    square: TaskSettings | None = None
    transport: TaskSettings | None = None
    digits: ImageTaskSettings | None = None
    cifar10: ImageTaskSettings | None = None

    def task(self, name: str) -> TaskSettings:
        """The block of one task.

        Raises:
            UserError: no task of that name, or none at this scale.
        """
        if name not in get_args(Task):
            raise UserError(f"task: given {name!r}, allowed: {', '.join(get_args(Task))}")
        block = getattr(self, name)
        if block is None:
            raise UserError(f"task: given {name!r}, allowed: {', '.join(self.tasks)}, the tasks of this scale")
        return block

    def image_task(self, name: str) -> ImageTaskSettings:
        """The block of one image task.

        Raises:
            UserError: no image task of that name, or none at this scale.
        """
        if name not in get_args(ImageTask):
            raise UserError(f"--task: given {name!r}, allowed: {', '.join(get_args(ImageTask))}")
        block = getattr(self, name)
        if block is None:
            raise UserError(f"--task: given {name!r}, allowed: {', '.join(self.images)}, the images of this scale")
        return block

    @model_validator(mode="after")
    def _tasks_have_their_blocks(self) -> "ScaleSettings":
        for name in self.tasks:
            if getattr(self, name) is None:
                raise ValueError(f"tasks: given {name}, allowed: tasks with a block of that name here")
        for name in get_args(Task):
            if block := getattr(self, name):
                try:
                    block.require_of(name)
                except ValueError as error:
                    raise ValueError(f"{name}.{error}") from None
        return self

    @model_validator(mode="after")
    def _images_have_blocks(self) -> "ScaleSettings":
        for name in self.images:
            if getattr(self, name) is None:
                raise ValueError(f"images: given {name}, allowed: tasks with a block of that name here")
        for name, task in (("digits", self.digits), ("cifar10", self.cifar10)):
            if task and task.data.dataset != name:
                raise ValueError(f"{name}.data.dataset: given {task.data.dataset!r}, allowed: {name}")
        return self


class Settings(Block):
    scale: Scale
    tasks: Annotated[list[Task], Field(min_length=1)]
    nfe: Annotated[list[Count], Field(min_length=1)]
    residual: Annotated[list[ResidualRow], Field(min_length=1)]
    robustness: Annotated[list[Row], Field(min_length=1)]
    diffusion: list[DiffusionRow]
    baselines: list[Baseline]
    images: Annotated[list[ImageTask], Field(max_length=1)]
    image_nfe: list[Count]
    starter: ScaleSettings
    lab: ScaleSettings
    paper: ScaleSettings

    @model_validator(mode="after")
    def _rows_have_settings(self) -> "Settings":
        for name in LISTS:
            given = getattr(self, name)
            if len(set(given)) != len(given):
                raise ValueError(f"{name}: given {given}, allowed: each value once")
        block = self.block(self.scale)
        for task in self.tasks:
            if task not in block.tasks:
                raise ValueError(f"tasks: given {task}, allowed at scale {self.scale}: {', '.join(block.tasks)}")
            _require_recipes("nfe", self.nfe, f"{self.scale}.{task}", block.task(task).finetune)
            for row in self.residual:
                if row not in block.task(task).residual:
                    raise ValueError(
                        f"residual: given {row}, allowed: blocks of {self.scale}.{task}.residual, "
                        f"which are {', '.join(block.task(task).residual)}"
                    )
        for image_task in self.images:
            if image_task not in block.images:
                allowed = ", ".join(block.images)
                raise ValueError(f"images: given {image_task}, allowed at scale {self.scale}: {allowed}")
            if not self.image_nfe:
                raise ValueError("image_nfe: given [], allowed: at least one number, or images: []")
            place = f"{self.scale}.{image_task}"
            _require_recipes("image_nfe", self.image_nfe, place, block.image_task(image_task).finetune)
        models = [*(f"{method}-nfe{nfe}" for nfe in self.nfe for method in ("fm", "ft_fm")), *self.residual]
        for row in self.robustness:
            if row not in models:
                raise ValueError(f"robustness: given {row}, allowed: {', '.join(models)}, by nfe and residual")
        if not self.robustness[0].startswith("fm-"):
            first = self.robustness[0]
            raise ValueError(f"robustness: given {first} first, allowed: a row of fm, to which all are compared")
        return self

    def block(self, scale: str) -> ScaleSettings:
        """The settings of one scale.

        Raises:
            UserError: no scale of that name.
        """
        if scale not in get_args(Scale):
            raise UserError(f"scale: given {scale!r}, allowed: {', '.join(get_args(Scale))}")
        return getattr(self, scale)


def _require_recipes(name: str, given: Sequence[int], place: str, recipes: Mapping[str, object]) -> None:
    """Refuse a number of the list ``name`` that the block ``place`` has no fine-tuning for."""
    for nfe in given:
        if f"nfe{nfe}" not in recipes:
            raise ValueError(
                f"{name}: given {nfe}, allowed: numbers with a block {place}.finetune.nfe<k>, "
                f"which are {', '.join(key.removeprefix('nfe') for key in recipes)}"
            )


def load(path: Path = Path("params.yaml")) -> Settings:
    """Read and validate ``path``.

    Raises:
        UserError: the file is missing, is no YAML, or holds a wrong key or value; one line with file, key, what was
            given and what is allowed.
    """
    return parse(read_yaml(path), path.name)


def parse(raw: object, name: str) -> Settings:
    """Validate settings already read from the file called ``name``; raises as ``load``."""
    if not isinstance(raw, dict):
        raise UserError(f"{name}: holds no keys; allowed: a mapping with {', '.join(Settings.model_fields)}")
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{name}: {line(error, raw, _keys_at)}") from None


def read_yaml(path: Path, yaml: YAML | None = None) -> Any:
    """What ``path`` holds, read by ``yaml`` (None: into plain Python values); raises as ``load``."""
    if not path.is_file():
        raise UserError(f"{path}: not found; run from the project's root, where params.yaml is")
    try:
        return (yaml or YAML(typ="safe")).load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"{path.name}: no valid YAML: it is not UTF-8 text") from None
    except YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        trouble = f"line {mark.line + 1}: {problem}" if mark and problem else " ".join(str(error).split())
        raise UserError(f"{path.name}: no valid YAML: {trouble}") from None


def _keys_at(location: tuple[str | int, ...]) -> list[str]:
    """The field names of the block at ``location``."""
    block: type[Block] = Settings
    tags: dict[object, type[Block]] = {
        "mlp": MlpSettings,
        "unet1d": Unet1dSettings,
        "transformer1d": Transformer1dSettings,
        "unet2d": Unet2dSettings,
        "persidskii": PersidskiiSettings,
    }
    values: type[Block] | None = None  # of the mapping that the part before named
    for part in location:
        if part in block.model_fields:
            annotation = block.model_fields[str(part)].annotation
            kinds = [each for each in (annotation, *get_args(annotation)) if isinstance(each, type)]
            blocks = [each for each in kinds if issubclass(each, Block)]
            if len(blocks) == 1 and get_origin(annotation) is dict:
                values = blocks[0]
            elif len(blocks) == 1:
                block = blocks[0]
        elif part in tags:
            block = tags[part]
        elif values:
            block, values = values, None
    return list(block.model_fields)
