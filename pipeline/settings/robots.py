"""Define the settings of one robot task: demonstrations, net, trainings and evaluation."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, model_validator

from pipeline.settings.blocks import (
    CORRECTED,
    EVALUATIONS,
    LEARNED_IN,
    Block,
    Count,
    FinetuneRecipe,
    Fraction,
    Natural,
    NetSettings,
    Optimization,
    Positive,
    PretrainSettings,
    RecipeKey,
    ResidualRecipe,
    Seed,
    SeedCount,
    Unet1dSettings,
    require_even_batches,
    require_finer_teacher,
)
from pipeline.settings.messages import line
from pipeline.settings.one_step import OneStepSettings
from pipeline.settings.study import StudySettings
from pipeline.tasks.api import Task
from pipeline.tasks.loader import load_task
from pipeline.utils.errors import UserError

Disturbance = Literal["observation_noise", "action_noise"]
ResidualRow = Annotated[str, StringConstraints(pattern=r"^resft_fm(_unet)?-nfe[1-9][0-9]*$")]
"""Method and NFE of a residual model, such as ``resft_fm-nfe16``."""
DiffusionRow = Annotated[str, StringConstraints(pattern=r"^dd[ip]m-nfe([1-9][0-9]?|100)$")]
"""Sampler and NFE of the diffusion model, such as ``ddim-nfe16``."""
Row = Annotated[str, StringConstraints(pattern=r"^(fm|ft_fm|resft_fm|resft_fm_unet)-nfe[1-9][0-9]*$")]


class VisionSettings(Block):
    """The encoder of images."""

    kind: Literal["resnet18"]
    width: Annotated[int, Field(ge=16, multiple_of=16)]
    crop: Annotated[int, Field(ge=32, le=96)]


class DataSettings(Block):
    dataset: str
    observation: str
    n_obs_steps: Count
    horizon: Count
    n_action_steps: Count
    validation_fraction: Fraction
    vision: VisionSettings | None = None

    @model_validator(mode="after")
    def _chunk_is_predicted(self) -> "DataSettings":
        if self.n_action_steps > self.horizon:
            raise ValueError(f"n_action_steps: given {self.n_action_steps}, allowed: at most horizon = {self.horizon}")
        return self


class SelectSettings(Block):
    rule: Literal["rollouts", "validation_loss"]
    evaluation: str = ""
    nfe: Count
    seeds: SeedCount


class EvaluationSettings(Block):
    n_seeds: SeedCount
    repeats: Count
    n_seeds_secondary: SeedCount
    max_steps: Count
    options: dict[str, Any] = Field(default_factory=dict)
    workers: Natural
    num_envs: Count
    policy_batch_size: Count
    videos: bool


class RobustnessSettings(Block):
    """Rollouts with noise on the policy's observations or actions."""

    seeds: SeedCount
    strengths: Annotated[dict[Disturbance, Positive], Field(min_length=1)]


class TaskSettings(Block):
    """All settings of one block of params.yaml that learns a task, at one scale.

    Attributes:
        task: name of the task, see ``load_task``. By default ``ScaleSettings`` sets the block's own name.
        custom: settings that the task is made from, if it is one of a family.
        title: the block's name in tables; empty: that of the task.
    """

    task: str
    custom: dict[str, Any] | None = None
    title: str = ""
    seed: Seed
    threads: Count
    processes: Count
    data: DataSettings
    net: NetSettings
    pretrain: PretrainSettings
    diffusion: Optimization
    select: SelectSettings
    finetune: dict[RecipeKey, FinetuneRecipe]
    residual: dict[ResidualRow, ResidualRecipe]
    study: StudySettings | None = None
    one_step: OneStepSettings
    evaluation: EvaluationSettings
    robustness: RobustnessSettings

    def residual_recipe(self, row: str) -> ResidualRecipe:
        """Return the recipe of one residual model.

        Raises:
            UserError: there is none of that name.
        """
        if row not in self.residual:
            raise UserError(f"--row: given {row!r}, allowed: {', '.join(self.residual)}")
        return self.residual[row]

    def precision_of(self, method: str, nfe: int) -> str:
        """Return the setting ``precision`` of the training behind a row of Table 2; empty: nothing is trained."""
        trainings: dict[str, Optimization] = {
            "fm": self.pretrain,
            "ddpm": self.diffusion,
            "ddim": self.diffusion,
            **{f"ft_fm-{key}": recipe for key, recipe in self.finetune.items()},
            **self.residual,
        }
        training = trainings.get(method) or trainings.get(f"{method}-nfe{nfe}")
        return training.precision if training else ""

    def replica(self, seed: int | None) -> "TaskSettings":
        """Return the settings with another training seed; None: these settings."""
        return self if seed is None else self.model_copy(update={"seed": seed})

    def studied(self) -> StudySettings:
        """Return the coupling study's settings.

        Raises:
            UserError: there are none.
        """
        if self.study is None:
            raise UserError("params.yaml: study: is missing in this block, and says how the study is made")
        return self.study

    def load_task(self) -> Task:
        """Load the task; raises ``UserError``, which names no key."""
        return load_task(self.task, self.custom)

    def require_of(self, block: str) -> None:
        """Refuse data, evaluations and options that the task does not have.

        Args:
            block: the name of this block.

        Raises:
            ValueError: naming the first such key of this block.
        """
        try:
            task = self.load_task()
        except UserError as error:
            key = "" if str(error).startswith("custom.") else "task: "
            raise ValueError(f"{key}{error}") from None
        for key, given, names in self._named(task, block):
            if given not in names:
                unseen = key == "data.observation" and given == "image" and self.custom is not None
                remedy = "; image, where custom.datasets names a camera" if unseen else ""
                raise ValueError(f"{key}: given {given!r}, allowed for {block}: {', '.join(names)}{remedy}")
        if task.offline and self.select.rule != "validation_loss":
            raise ValueError(
                f"select.rule: given {self.select.rule!r}, allowed for {block}: validation_loss; it has no environments"
            )
        self._require_sight(task)
        options = self.evaluation.options
        if options and not task.options:
            raise ValueError(
                f"evaluation.options: given {', '.join(options)}, allowed: none; {task.title} has no options"
            )
        try:
            task.options_from(options)
        except ValidationError as error:
            known = list(task.options.model_fields) if task.options else []
            raise ValueError(f"evaluation.options.{line(error, options, lambda _: known)}") from None

    def _require_sight(self, task: Task) -> None:
        """Refuse an image encoder without images, and image observations without encoder or image data."""
        seen = [name for name, kind in task.observations.items() if kind.render]
        sees = self.data.observation in seen
        if (self.data.vision is not None) != sees:
            given = "none" if self.data.vision is None else "a block"
            allowed = f"a block where observation is {' or '.join(seen)}, and only there" if seen else "none"
            raise ValueError(f"data.vision: given {given}, allowed: {allowed}")
        if sees and task.datasets[self.data.dataset].images is None:
            with_images = ", ".join(name for name, dataset in task.datasets.items() if dataset.images)
            raise ValueError(f"data.dataset: given {self.data.dataset!r}, allowed where images are seen: {with_images}")
        camera = task.observations[self.data.observation].camera
        if self.data.vision and camera and self.data.vision.crop > camera.side:
            allowed = f"at most {camera.side}, the side of the images"
            raise ValueError(f"data.vision.crop: given {self.data.vision.crop}, allowed: {allowed}")

    def _named(self, task: Task, block: str) -> Iterator[tuple[str, str, list[str]]]:
        yield "data.dataset", self.data.dataset, list(task.datasets)
        yield "data.observation", self.data.observation, list(task.observations)
        if not task.offline:
            yield "select.evaluation", self.select.evaluation, list(task.evaluations(block))

    @model_validator(mode="after")
    def _horizon_fits_the_net(self) -> "TaskSettings":
        if isinstance(self.net, Unet1dSettings):
            multiple, horizon = 2 ** (len(self.net.channels) - 1), self.data.horizon
            if horizon % multiple:
                levels = len(self.net.channels)
                raise ValueError(
                    f"data.horizon: given {horizon}, allowed: multiples of {multiple} for a unet1d of {levels} levels"
                )
        return self

    @model_validator(mode="after")
    def _varied_chunk_is_shorter(self) -> "TaskSettings":
        if self.study and self.study.precision.n_action_steps >= self.data.n_action_steps:
            given = self.study.precision.n_action_steps
            raise ValueError(
                f"study.precision.n_action_steps: given {given}, "
                f"allowed: below data.n_action_steps = {self.data.n_action_steps}"
            )
        return self

    @model_validator(mode="after")
    def _batches_split_evenly(self) -> "TaskSettings":
        sizes = {"pretrain": self.pretrain.batch_size, "diffusion": self.diffusion.batch_size}
        sizes |= {f"finetune.{key}": recipe.batch_size for key, recipe in self.finetune.items()}
        sizes |= {f"residual.{key}": recipe.batch_size for key, recipe in self.residual.items()}
        require_even_batches(self.processes, sizes)
        return self

    @model_validator(mode="after")
    def _side_rows_have_their_pairs(self) -> "TaskSettings":
        side, all_seeds = self.evaluation.n_seeds_secondary, self.evaluation.n_seeds
        if side > all_seeds:
            raise ValueError(f"evaluation.n_seeds_secondary: given {side}, allowed: at most n_seeds = {all_seeds}")
        if self.robustness.seeds > side:
            given = self.robustness.seeds
            raise ValueError(f"robustness.seeds: given {given}, allowed: at most evaluation.n_seeds_secondary = {side}")
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
