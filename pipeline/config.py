"""``params.yaml`` as typed, validated settings: an unknown, wrong or impossible value fails, naming its key."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field, StringConstraints, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.blocks import (
    CORRECTED,
    EVALUATIONS,
    LEARNED_IN,
    BelowOne,
    Block,
    Count,
    CovarianceKind,
    FinetuneCoupling,
    FinetuneRecipe,
    Fraction,
    GradientKind,
    MlpSettings,
    Natural,
    NetSettings,
    Optimization,
    PersidskiiSettings,
    Positive,
    PretrainSettings,
    ResidualRecipe,
    ResidualSolve,
    Seed,
    SeedCount,
    Solver,
    StabilityKind,
    Unet1dSettings,
    Unet2dSettings,
    require_even_batches,
    require_finer_teacher,
)
from pipeline.complaints import line
from pipeline.errors import UserError
from pipeline.image_settings import ImageTask, ImageTaskSettings

__all__ = [  # with the settings of this file, those of the files that it is made of
    "EVALUATIONS",
    "CovarianceKind",
    "FinetuneCoupling",
    "FinetuneRecipe",
    "GradientKind",
    "MlpSettings",
    "NetSettings",
    "Optimization",
    "PersidskiiSettings",
    "PretrainSettings",
    "ResidualRecipe",
    "ResidualSolve",
    "Solver",
    "StabilityKind",
]

Scale = Literal["starter", "lab", "paper"]
Task = Literal["pusht"]
Evaluation = Literal["pusht_a", "pusht_b"]
PointSet = Literal["two_points", "eight_points"]
ToyCoupling = Literal["independent", "minibatch_ot", "nearest"]
Disturbance = Literal["observation_noise", "action_noise"]
RecipeKey = Annotated[str, StringConstraints(pattern=r"^nfe[1-9][0-9]*$")]
ResidualRow = Annotated[str, StringConstraints(pattern=r"^resft_fm(_unet)?-nfe[1-9][0-9]*$")]
"""Method and NFE of a residual model, such as ``resft_fm-nfe16``."""
Row = Annotated[str, StringConstraints(pattern=r"^(fm|ft_fm|resft_fm|resft_fm_unet)-nfe[1-9][0-9]*$")]


class DataSettings(Block):
    dataset: Literal["pusht_starter", "pusht_human"]
    observation: Literal["keypoints", "pose"]
    observation_horizon: Count
    prediction_horizon: Count
    chunk: Count
    validation_fraction: Fraction

    @model_validator(mode="after")
    def _chunk_is_predicted(self) -> "DataSettings":
        if self.chunk > self.prediction_horizon:
            raise ValueError(
                f"chunk: given {self.chunk}, allowed: at most prediction_horizon = {self.prediction_horizon}"
            )
        return self


class SelectSettings(Block):
    rule: Literal["rollouts", "validation_loss"]
    evaluation: Evaluation
    nfe: Count
    seeds: SeedCount


class StudyRecipe(Block):
    """What differs between numbers of function evaluations in the coupling study."""

    lr: Positive
    batch_size: Count
    candidates: Count
    reflow_nfe: Count
    pairs_ahead: Natural


class PrecisionSettings(Block):
    """What is changed, one at a time, to see where a policy's precision is lost."""

    seeds: SeedCount
    noise_scales: list[BelowOne]
    held_noises: Natural
    fine_nfe: Count
    chunk: Count


class StudySettings(Block):
    """The coupling study: everything that ``finetune.nfe1`` does not say."""

    train_seeds: Annotated[list[Seed], Field(min_length=1)]
    budget: Count
    checkpoints: Count
    seeds: SeedCount
    fm_lr: Positive
    recipes: dict[RecipeKey, StudyRecipe]
    chosen: dict[RecipeKey, FinetuneCoupling]
    precision: PrecisionSettings

    def recipe(self, coupling: str, nfe: int, like: FinetuneRecipe) -> FinetuneRecipe:
        """``like`` with ``coupling`` and what the study says of so many evaluations.

        Raises:
            UserError: it says nothing of them.
        """
        key = f"nfe{nfe}"
        if key not in self.recipes:
            allowed = ", ".join(key.removeprefix("nfe") for key in self.recipes)
            raise UserError(f"--nfe: given {nfe}, allowed: {allowed}, the study.recipes in params.yaml")
        return like.model_copy(update={"coupling": coupling, **self.recipes[key].model_dump()})

    @model_validator(mode="after")
    def _recipes_can_be_made(self) -> "StudySettings":
        for key, recipe in self.recipes.items():
            if recipe.reflow_nfe <= int(key.removeprefix("nfe")):
                raise ValueError(
                    f"recipes.{key}.reflow_nfe: given {recipe.reflow_nfe}, allowed: more than the {key[3:]} "
                    "evaluations that its solve is learned in"
                )
        return self

    @model_validator(mode="after")
    def _questions_have_rows(self) -> "StudySettings":
        if missing := {"nfe1", "nfe2", "nfe16"} - self.chosen.keys():
            raise ValueError(f"chosen: given {', '.join(self.chosen)}, allowed: with {', '.join(sorted(missing))} too")
        if unknown := self.chosen.keys() - self.recipes.keys():
            raise ValueError(f"chosen: given {', '.join(sorted(unknown))}, allowed: {', '.join(self.recipes)}")
        return self


class EvaluationSettings(Block):
    n_seeds: SeedCount
    repeats: Count
    side_seeds: SeedCount
    max_steps: Count
    reset_order: Literal["exact", "legacy"]
    workers: Natural
    batch: Count
    block: Count
    videos: bool


class RobustnessSettings(Block):
    """Rollouts in which what the policy sees, or what it does, is disturbed."""

    seeds: SeedCount
    strengths: Annotated[dict[Disturbance, Positive], Field(min_length=1)]


class TaskSettings(Block):
    """Everything about one task at one scale."""

    seed: Seed
    threads: Count
    processes: Count
    data: DataSettings
    net: NetSettings
    pretrain: PretrainSettings
    select: SelectSettings
    finetune: dict[RecipeKey, FinetuneRecipe]
    residual: dict[ResidualRow, ResidualRecipe]
    study: StudySettings | None = None
    evaluation: EvaluationSettings
    robustness: RobustnessSettings

    def residual_recipe(self, row: str) -> ResidualRecipe:
        """That of one residual model.

        Raises:
            UserError: there is none of that name.
        """
        if row not in self.residual:
            raise UserError(f"--row: given {row!r}, allowed: {', '.join(self.residual)}")
        return self.residual[row]

    def replica(self, seed: int | None) -> "TaskSettings":
        """The same settings with another training seed; None: these."""
        return self if seed is None else self.model_copy(update={"seed": seed})

    def studied(self) -> StudySettings:
        """The study's settings.

        Raises:
            UserError: there are none.
        """
        if self.study is None:
            raise UserError("params.yaml: study: is missing in this block, and says how the study is made")
        return self.study

    @model_validator(mode="after")
    def _horizon_fits_the_net(self) -> "TaskSettings":
        if isinstance(self.net, Unet1dSettings):
            multiple, horizon = 2 ** (len(self.net.channels) - 1), self.data.prediction_horizon
            if horizon % multiple:
                levels = len(self.net.channels)
                raise ValueError(
                    f"data.prediction_horizon: given {horizon}, allowed: multiples of {multiple} "
                    f"for a unet1d of {levels} levels"
                )
        return self

    @model_validator(mode="after")
    def _varied_chunk_is_shorter(self) -> "TaskSettings":
        if self.study and self.study.precision.chunk >= self.data.chunk:
            given = self.study.precision.chunk
            raise ValueError(f"study.precision.chunk: given {given}, allowed: below data.chunk = {self.data.chunk}")
        return self

    @model_validator(mode="after")
    def _batches_split_evenly(self) -> "TaskSettings":
        sizes = {"pretrain": self.pretrain.batch_size}
        sizes |= {f"finetune.{key}": recipe.batch_size for key, recipe in self.finetune.items()}
        sizes |= {f"residual.{key}": recipe.batch_size for key, recipe in self.residual.items()}
        require_even_batches(self.processes, sizes)
        return self

    @model_validator(mode="after")
    def _side_rows_have_their_pairs(self) -> "TaskSettings":
        side, all_seeds = self.evaluation.side_seeds, self.evaluation.n_seeds
        if side > all_seeds:
            raise ValueError(f"evaluation.side_seeds: given {side}, allowed: at most n_seeds = {all_seeds}")
        if self.robustness.seeds > side:
            given = self.robustness.seeds
            raise ValueError(f"robustness.seeds: given {given}, allowed: at most evaluation.side_seeds = {side}")
        return self

    @model_validator(mode="after")
    def _residuals_fit(self) -> "TaskSettings":
        for key, recipe in self.residual.items():
            nfe = int(key.rpartition("-nfe")[2])
            if recipe.residual_steps >= nfe:
                raise ValueError(
                    f"residual.{key}.residual_steps: given {recipe.residual_steps}, allowed: below {nfe}, "
                    "so that the base model has an evaluation"
                )
            if ("unet" in key) != isinstance(recipe.net, Unet1dSettings):
                allowed = "unet1d" if "unet" in key else "persidskii"
                raise ValueError(f"residual.{key}.net.kind: given {recipe.net.kind!r}, allowed: {allowed}")
            learned = nfe - recipe.residual_steps
            require_finer_teacher(f"residual.{key}", recipe.coupling, recipe.reflow_nfe, learned, CORRECTED)
        return self

    @model_validator(mode="after")
    def _solves_fit(self) -> "TaskSettings":
        for key, recipe in self.finetune.items():
            nfe, evaluations = int(key.removeprefix("nfe")), EVALUATIONS[recipe.solver]
            if nfe % evaluations:
                fitting = [solver for solver, spent in EVALUATIONS.items() if nfe % spent == 0]
                raise ValueError(
                    f"finetune.{key}.solver: given {recipe.solver!r}, which spends {evaluations} evaluations a step, "
                    f"allowed at nfe {nfe}: {', '.join(fitting)}"
                )
            require_finer_teacher(f"finetune.{key}", recipe.coupling, recipe.reflow_nfe, nfe, LEARNED_IN)
            if recipe.last_steps > nfe // evaluations:
                raise ValueError(
                    f"finetune.{key}.last_steps: given {recipe.last_steps}, allowed: 0 (all) to {nfe // evaluations}, "
                    f"the steps of {recipe.solver} at nfe {nfe}"
                )
        return self


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
    gap: GapSettings
    toys: ToySettings
    images: Annotated[list[ImageTask], Field(max_length=1)]
    image_nfe: list[Count]
    pusht: TaskSettings
    digits: ImageTaskSettings | None = None
    cifar10: ImageTaskSettings | None = None

    def task(self, name: str) -> TaskSettings:
        """The block of one task.

        Raises:
            UserError: no task of that name.
        """
        if name not in get_args(Task):
            raise UserError(f"task: given {name!r}, allowed: {', '.join(get_args(Task))}")
        return getattr(self, name)

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
    images: Annotated[list[ImageTask], Field(max_length=1)]
    image_nfe: list[Count]
    starter: ScaleSettings
    lab: ScaleSettings
    paper: ScaleSettings

    @model_validator(mode="after")
    def _rows_have_settings(self) -> "Settings":
        for name in ("tasks", "nfe", "residual", "robustness", "images", "image_nfe"):
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
        return (yaml or YAML(typ="safe")).load(path.read_text())
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
