"""``params.yaml`` as typed, validated settings: an unknown, wrong or impossible value fails, naming its key."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.complaints import line
from pipeline.errors import UserError

Scale = Literal["starter", "lab", "paper"]
Task = Literal["pusht"]
Evaluation = Literal["pusht_a", "pusht_b"]
PretrainCoupling = Literal["independent", "minibatch_ot", "sinkhorn", "conditional_ot"]
FinetuneCoupling = Literal[
    "independent", "minibatch_ot", "sinkhorn", "conditional_ot", "nearest", "inversion", "reflow"
]
GridKind = Literal["uniform", "early", "late"]
PointSet = Literal["two_points", "eight_points"]
ToyCoupling = Literal["independent", "minibatch_ot", "nearest"]
Nonlinear = Literal["tanh", "arctan", "softsign", "relu", "leaky_relu"]
StabilityKind = Literal["step", "flow", "step_penalty", "contraction_penalty", "dominance_penalty", "free"]
Disturbance = Literal["observation_noise", "action_noise"]
Solver = Literal["euler", "midpoint", "heun", "rk4"]
GradientKind = Literal["direct", "checkpointed", "adjoint"]
CovarianceKind = Literal["identity", "fixed", "learned", "profiled"]

EVALUATIONS: dict[Solver, int] = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}
"""Function evaluations that a step of each solver spends."""

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
SeedCount = Annotated[int, Field(ge=1, le=100_000)]  # validation and test seeds start 100 000 apart
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
BelowOne = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
RecipeKey = Annotated[str, StringConstraints(pattern=r"^nfe[1-9][0-9]*$")]
ResidualRow = Annotated[str, StringConstraints(pattern=r"^resft_fm(_unet)?-nfe[1-9][0-9]*$")]
"""Method and NFE of a residual model, such as ``resft_fm-nfe16``."""
Row = Annotated[str, StringConstraints(pattern=r"^(fm|ft_fm|resft_fm|resft_fm_unet)-nfe[1-9][0-9]*$")]


class Block(BaseModel):
    """Settings that refuse unknown keys and wrong types, and never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


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


class MlpSettings(Block):
    kind: Literal["mlp"]
    width: Count
    depth: Count
    expansion: Count
    time_features: Annotated[int, Field(ge=2, multiple_of=2)]


class Unet1dSettings(Block):
    kind: Literal["unet1d"]
    channels: Annotated[list[Count], Field(min_length=1)]
    kernel: Count
    groups: Count
    time_features: Annotated[int, Field(ge=4, multiple_of=2)]

    @model_validator(mode="after")
    def _shapes_fit(self) -> "Unet1dSettings":
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel: given {self.kernel}, allowed: odd numbers")
        if any(width % self.groups for width in self.channels):
            raise ValueError(f"channels: given {self.channels}, allowed: multiples of groups = {self.groups}")
        return self


NetSettings = Annotated[MlpSettings | Unet1dSettings, Field(discriminator="kind")]


class Optimization(Block):
    """One run of the optimiser."""

    steps: Count
    batch_size: Count
    lr: Positive
    weight_decay: NonNegative
    warmup: Natural
    clip: Positive
    ema_decay: BelowOne
    precision: Literal["fp32", "bf16"]

    @model_validator(mode="after")
    def _warmup_ends(self) -> "Optimization":
        if self.warmup > self.steps:
            raise ValueError(f"warmup: given {self.warmup}, allowed: at most steps = {self.steps}")
        return self


class PretrainSettings(Optimization):
    path: Literal["i_cfm", "ot"]
    sigma: NonNegative
    coupling: PretrainCoupling
    regularization: Positive
    condition_weight: NonNegative
    checkpoints: Count

    @model_validator(mode="after")
    def _sigma_fits_the_path(self) -> "PretrainSettings":
        if self.path == "ot" and self.sigma >= 1:
            raise ValueError(f"sigma: given {self.sigma}, allowed for path ot: below 1")
        return self

    @model_validator(mode="after")
    def _checkpoints_are_steps(self) -> "PretrainSettings":
        if self.checkpoints > self.steps:
            raise ValueError(f"checkpoints: given {self.checkpoints}, allowed: at most steps = {self.steps}")
        return self


class SelectSettings(Block):
    rule: Literal["rollouts", "validation_loss"]
    evaluation: Evaluation
    nfe: Count
    seeds: SeedCount


class CoupledOptimization(Optimization):
    """Training on pairs of noise and data, made by one of the couplings."""

    coupling: FinetuneCoupling
    candidates: Count
    regularization: Positive
    condition_weight: NonNegative
    typical_quantile: Fraction
    reflow_nfe: Count
    inversion_nfe: Annotated[int, Field(ge=4, multiple_of=4)]
    pairs_ahead: Natural


class FinetuneRecipe(CoupledOptimization):
    covariance: CovarianceKind
    fm_weight: NonNegative
    energy_weight: NonNegative
    lora_rank: Natural
    lora_alpha: Positive
    fm_lr: Positive
    history_points: Count
    history_seeds: SeedCount
    guard_every: Count
    collapse_below: BelowOne
    on_collapse: Literal["stop", "warn"]
    solver: Solver
    gradient: GradientKind
    last_steps: Natural


class PersidskiiSettings(Block):
    """x' = A0 x + Σ_j A_j f_j(W_j x) + g, anchored at the base model's sample."""

    kind: Literal["persidskii"]
    state: Literal["chunk", "step"]
    widths: Annotated[list[Count], Field(min_length=1)]
    functions: Annotated[list[Nonlinear], Field(min_length=1)]
    stability: StabilityKind
    rate: Positive
    penalty_weight: NonNegative
    input: MlpSettings
    sees_noise: bool

    @model_validator(mode="after")
    def _a_function_for_each_width(self) -> "PersidskiiSettings":
        if len(self.functions) != len(self.widths):
            raise ValueError(f"functions: given {len(self.functions)}, allowed: as many as widths = {len(self.widths)}")
        return self


ResidualNetSettings = Annotated[PersidskiiSettings | Unet1dSettings, Field(discriminator="kind")]


class ResidualRecipe(CoupledOptimization):
    """A residual model: the frozen base on [0, 1], and a field of its own on [1, end]."""

    net: ResidualNetSettings
    end: Annotated[float, Field(gt=1, allow_inf_nan=False)]
    residual_steps: Count
    grid: GridKind
    guard_every: Count
    collapse_below: BelowOne
    on_collapse: Literal["stop", "warn"]


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
        for name, size in [
            ("pretrain", self.pretrain.batch_size),
            *((f"finetune.{key}", recipe.batch_size) for key, recipe in self.finetune.items()),
            *((f"residual.{key}", recipe.batch_size) for key, recipe in self.residual.items()),
        ]:
            if size % self.processes:
                raise ValueError(f"{name}.batch_size: given {size}, allowed: multiples of processes = {self.processes}")
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
            if recipe.coupling == "reflow" and recipe.reflow_nfe <= nfe - recipe.residual_steps:
                raise ValueError(
                    f"residual.{key}.reflow_nfe: given {recipe.reflow_nfe}, allowed: more than the "
                    f"{nfe - recipe.residual_steps} evaluations of the base model that are corrected"
                )
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
            if recipe.coupling == "reflow" and recipe.reflow_nfe <= nfe:
                raise ValueError(
                    f"finetune.{key}.reflow_nfe: given {recipe.reflow_nfe}, allowed: more than the {nfe} evaluations "
                    "that its solve is learned in"
                )
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
    pusht: TaskSettings

    def task(self, name: str) -> TaskSettings:
        """The block of one task.

        Raises:
            UserError: no task of that name.
        """
        if name not in get_args(Task):
            raise UserError(f"task: given {name!r}, allowed: {', '.join(get_args(Task))}")
        return getattr(self, name)


class Settings(Block):
    scale: Scale
    tasks: Annotated[list[Task], Field(min_length=1)]
    nfe: Annotated[list[Count], Field(min_length=1)]
    residual: Annotated[list[ResidualRow], Field(min_length=1)]
    robustness: Annotated[list[Row], Field(min_length=1)]
    starter: ScaleSettings
    lab: ScaleSettings
    paper: ScaleSettings

    @model_validator(mode="after")
    def _rows_have_settings(self) -> "Settings":
        for name in ("tasks", "nfe", "residual", "robustness"):
            given = getattr(self, name)
            if len(set(given)) != len(given):
                raise ValueError(f"{name}: given {given}, allowed: each value once")
        block = self.block(self.scale)
        for task in self.tasks:
            if task not in block.tasks:
                raise ValueError(f"tasks: given {task}, allowed at scale {self.scale}: {', '.join(block.tasks)}")
            for nfe in self.nfe:
                recipes = block.task(task).finetune
                if f"nfe{nfe}" not in recipes:
                    raise ValueError(
                        f"nfe: given {nfe}, allowed: numbers with a block {self.scale}.{task}.finetune.nfe<k>, "
                        f"which are {', '.join(key.removeprefix('nfe') for key in recipes)}"
                    )
            for row in self.residual:
                if row not in block.task(task).residual:
                    raise ValueError(
                        f"residual: given {row}, allowed: blocks of {self.scale}.{task}.residual, "
                        f"which are {', '.join(block.task(task).residual)}"
                    )
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
    special: dict[object, type[Block]] = {"mlp": MlpSettings, "unet1d": Unet1dSettings}
    for part in location:
        if part in block.model_fields:
            annotation = block.model_fields[str(part)].annotation
            if isinstance(annotation, type) and issubclass(annotation, Block):
                block = annotation
        elif part in special:
            block = special[part]
        elif str(part).startswith("nfe"):
            block = FinetuneRecipe
    return list(block.model_fields)
