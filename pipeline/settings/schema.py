"""Validate ``params.yaml`` into typed settings; an unknown, wrong or impossible value fails, naming its key."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, ValidationError, model_validator

from pipeline.settings import layers
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
    PretrainSettings,
    ResidualRecipe,
    ResidualSolve,
    Solver,
    StabilityKind,
    Transformer1dSettings,
    Unet1dSettings,
)
from pipeline.settings.images import ImageTask, ImageTaskSettings
from pipeline.settings.layers import LISTS, Scale
from pipeline.settings.messages import finding, located
from pipeline.settings.robots import (
    DataSettings,
    DiffusionRow,
    Disturbance,
    EvaluationSettings,
    ResidualRow,
    Row,
    TaskSettings,
    VisionSettings,
)
from pipeline.settings.shapes import keys_at
from pipeline.settings.source import Node, read_file
from pipeline.settings.study import PrecisionSettings, StudyRecipe, StudySettings
from pipeline.settings.toys import GapSettings, PointSet, ToySettings
from pipeline.tasks.loader import FORMER
from pipeline.utils.errors import UserError

__all__ = [  # beside the settings of this file, those of the other modules
    "EVALUATIONS",
    "LISTS",
    "CovarianceKind",
    "DataSettings",
    "Disturbance",
    "EvaluationSettings",
    "FinetuneCoupling",
    "FinetuneRecipe",
    "GapSettings",
    "GradientKind",
    "MlpSettings",
    "NetSettings",
    "Optimization",
    "PersidskiiSettings",
    "PointSet",
    "PrecisionSettings",
    "PretrainSettings",
    "ResidualRecipe",
    "ResidualSolve",
    "Scale",
    "Solver",
    "StabilityKind",
    "StudyRecipe",
    "StudySettings",
    "TaskSettings",
    "ToySettings",
    "Transformer1dSettings",
    "Unet1dSettings",
    "VisionSettings",
]

Baseline = Literal["random", "nearest_demo", "persistence"]


class ScaleSettings(Block):
    """The settings of one scale: the fields below and the blocks of robot tasks, which may have any name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, TaskSettings] = Field(init=False)

    tasks: Annotated[list[str], Field(min_length=1)]
    offline: list[str]
    nfe: Annotated[list[Count], Field(min_length=1)]
    residual: list[ResidualRow]
    robustness: list[Row]
    diffusion: list[DiffusionRow]
    baselines: list[Baseline]
    gap: GapSettings
    toys: ToySettings
    images: Annotated[list[ImageTask], Field(max_length=1)]
    image_nfe: list[Count]
    theory: list[Scale]
    digits: ImageTaskSettings | None = None
    cifar10: ImageTaskSettings | None = None

    @property
    def robots(self) -> dict[str, TaskSettings]:
        """The blocks of robot tasks, by name."""
        return self.__pydantic_extra__

    def task(self, name: str) -> TaskSettings:
        """Return the block of one robot task.

        Raises:
            UserError: this scale has no such block.
        """
        if name not in self.robots:
            raise UserError(f"task: given {name!r}, allowed: {', '.join(self.robots)}, the tasks of this scale")
        return self.robots[name]

    def chosen(self) -> dict[str, TaskSettings]:
        """Return the blocks that ``tasks`` names, in its order."""
        return {name: self.task(name) for name in self.tasks}

    def image_task(self, name: str) -> ImageTaskSettings:
        """Return the block of one image task.

        Raises:
            UserError: there is no such image task, or this scale does not have it.
        """
        if name not in get_args(ImageTask):
            raise UserError(f"--task: given {name!r}, allowed: {', '.join(get_args(ImageTask))}")
        block = getattr(self, name)
        if block is None:
            raise UserError(f"--task: given {name!r}, allowed: {', '.join(self.images)}, the images of this scale")
        return block

    @model_validator(mode="before")
    @classmethod
    def _tasks_are_named(cls, blocks: Any) -> Any:
        if not isinstance(blocks, dict):
            return blocks
        return {
            name: {"task": FORMER.get(name, name)} | block
            if name not in cls.model_fields and isinstance(block, dict)
            else block
            for name, block in blocks.items()
        }

    @model_validator(mode="after")
    def _tasks_have_what_they_need(self) -> "ScaleSettings":
        for name, block in self.robots.items():
            try:
                block.require_of(name)
            except ValueError as error:
                raise ValueError(f"{name}.{error}") from None
        for name in self.tasks:
            if name not in self.robots:
                raise ValueError(
                    f"tasks: given {name!r}, allowed: {', '.join(self.robots)}, or a new block of that name"
                )
        return self

    @model_validator(mode="after")
    def _images_have_their_data(self) -> "ScaleSettings":
        for name, task in (("digits", self.digits), ("cifar10", self.cifar10)):
            if task and task.data.dataset != name:
                raise ValueError(f"{name}.data.dataset: given {task.data.dataset!r}, allowed: {name}")
        return self


class Settings(Block):
    scale: Scale
    tasks: Annotated[list[str], Field(min_length=1)]
    offline: list[str]
    nfe: Annotated[list[Count], Field(min_length=1)]
    residual: list[ResidualRow]
    robustness: list[Row]
    diffusion: list[DiffusionRow]
    baselines: list[Baseline]
    images: Annotated[list[ImageTask], Field(max_length=1)]
    image_nfe: list[Count]
    theory: list[Scale]
    starter: ScaleSettings
    lab: ScaleSettings
    paper: ScaleSettings
    metaworld: ScaleSettings

    @model_validator(mode="after")
    def _rows_have_settings(self) -> "Settings":
        for name in LISTS:
            given = getattr(self, name)
            if len(set(given)) != len(given):
                raise ValueError(f"{name}: given {given}, allowed: each value once")
        block = self.block(self.scale)
        for task in self.tasks:
            if task not in block.robots:
                raise ValueError(f"tasks: given {task}, allowed at scale {self.scale}: {', '.join(block.robots)}")
            _require_recipes("nfe", self.nfe, f"{self.scale}.{task}", block.task(task).finetune)
            for row in self.residual:
                if row not in block.task(task).residual:
                    raise ValueError(
                        f"residual: given {row}, allowed: blocks of {self.scale}.{task}.residual, "
                        f"which are {', '.join(block.task(task).residual)}"
                    )
        self._require_offline(block)
        for image_task in self.images:
            if image_task not in block.images:
                allowed = ", ".join(block.images) or "none"
                raise ValueError(f"images: given {image_task}, allowed at scale {self.scale}: {allowed}")
            if not self.image_nfe:
                raise ValueError("image_nfe: given [], allowed: at least one number, or images: []")
            place = f"{self.scale}.{image_task}"
            _require_recipes("image_nfe", self.image_nfe, place, block.image_task(image_task).finetune)
        models = [*(f"{method}-nfe{nfe}" for nfe in self.nfe for method in ("fm", "ft_fm")), *self.residual]
        for row in self.robustness:
            if row not in models:
                raise ValueError(f"robustness: given {row}, allowed: {', '.join(models)}, by nfe and residual")
        if self.robustness and not self.robustness[0].startswith("fm-"):
            first = self.robustness[0]
            raise ValueError(f"robustness: given {first} first, allowed: a row of fm, to which all are compared")
        return self

    @model_validator(mode="after")
    def _theory_is_of_this_scale(self) -> "Settings":
        if self.theory not in ([], [self.scale]):
            raise ValueError(
                f"theory: given {self.theory}, allowed: [{self.scale}], the scale, or []; "
                f"`python -m pipeline.settings.scale {self.scale}` changes scale and lists"
            )
        for name in ("residual", "robustness"):
            if self.theory and not getattr(self, name):
                raise ValueError(f"{name}: given [], allowed: at least one row, or theory: []")
        return self

    def _require_offline(self, block: ScaleSettings) -> None:
        """Refuse an ``offline`` list other than the tasks without environments, and persistence for other tasks."""
        offline = [task for task in self.tasks if block.task(task).load_task().offline]
        if set(self.offline) != set(offline):
            raise ValueError(f"offline: given {self.offline}, allowed: {offline}, those of tasks without environments")
        simulated = [task for task in self.tasks if task not in offline]
        if "persistence" in self.baselines and simulated:
            raise ValueError(
                f"baselines: given persistence, allowed: only where no task has environments, as {simulated[0]} does"
            )

    def block(self, scale: str) -> ScaleSettings:
        """Return the settings of one scale.

        Raises:
            UserError: there is no scale of that name.
        """
        if scale not in get_args(Scale):
            raise UserError(f"scale: given {scale!r}, allowed: {', '.join(get_args(Scale))}")
        return getattr(self, scale)


def _require_recipes(name: str, given: Sequence[int], place: str, recipes: Mapping[str, object]) -> None:
    """Refuse a number in the list ``name`` for which the block ``place`` has no fine-tuning recipe."""
    for nfe in given:
        if f"nfe{nfe}" not in recipes:
            raise ValueError(
                f"{name}: given {nfe}, allowed: numbers with a block {place}.finetune.nfe<k>, "
                f"which are {', '.join(key.removeprefix('nfe') for key in recipes)}"
            )


def load(path: Path = Path("params.yaml")) -> Settings:
    """Read, resolve and validate ``path``.

    Raises:
        UserError: the file is missing, is no YAML, or holds a wrong key or value; one line with the file, the line, the
            key to correct, what was given and what is allowed.
    """
    return parse(read_file(path), path.name)


def parse(text: str, name: str) -> Settings:
    """Return the settings in ``text``, read from the file called ``name``; raises as ``load``."""
    return resolved(text, name)[0]


def resolved(text: str, name: str) -> tuple[Settings, Node]:
    """Return the settings in ``text``, read from the file called ``name``, and their places; raises as ``load``."""
    file = layers.read(text, name)
    whole = layers.resolve(file)
    raw = whole.plain()
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as error:
        found = finding(error, raw, partial(keys_at, Settings))
        raise UserError(located(found, name, dict(whole.places()))) from None
    layers.require_overridden(file, whole, name)
    return settings, whole
