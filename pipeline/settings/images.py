"""Define the settings of the image tasks of Table 1."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from pipeline.settings.blocks import (
    CORRECTED,
    LEARNED_IN,
    Block,
    Count,
    CoupledUpdates,
    Fraction,
    ImageNetSettings,
    Natural,
    NonNegative,
    Optimization,
    PatchedUnet2dSettings,
    Positive,
    RecipeKey,
    ResidualSolve,
    Seed,
    SeedCount,
    Unet2dSettings,
    require_even_batches,
    require_finer_teacher,
)
from pipeline.utils.precision import PrecisionSetting

ImageTask = Literal["digits", "cifar10"]
ImageMethod = Literal["ddpm", "vp_fm", "ve_fm", "ot_fm", "si", "i_cfm", "ot_cfm"]
"""Methods trained from scratch, each with its own path and coupling."""
Features = Literal["embedded", "inception"]
SOLVER = r"^(euler-([1-9][0-9]{0,2}|1000)|dopri5)$"
ImageSolver = Annotated[str, StringConstraints(pattern=SOLVER)]

SHAPES: dict[ImageTask, tuple[int, int, int]] = {"digits": (1, 8, 8), "cifar10": (3, 32, 32)}
"""(C, H, W) of each task's images."""


class ImageDataSettings(Block):
    dataset: ImageTask
    flip: bool


class ImagePretrainSettings(Optimization):
    sigma: NonNegative
    ot_sigma_min: Fraction
    ve_sigma_min: Positive
    ve_sigma_max: Positive
    checkpoints: Count

    @model_validator(mode="after")
    def _noise_falls(self) -> "ImagePretrainSettings":
        if self.ve_sigma_min >= self.ve_sigma_max:
            given, most = self.ve_sigma_min, self.ve_sigma_max
            raise ValueError(f"ve_sigma_min: given {given}, allowed: below ve_sigma_max = {most}")
        return self

    @model_validator(mode="after")
    def _checkpoints_are_steps(self) -> "ImagePretrainSettings":
        if self.checkpoints > self.steps:
            raise ValueError(f"checkpoints: given {self.checkpoints}, allowed: at most steps = {self.steps}")
        return self


class ImageSelectSettings(Block):
    latest: Count
    nfe: Count
    n_samples: Count
    sampling_seeds: SeedCount

    def seeds(self) -> range:
        """Return the sampling seeds for the choice of checkpoints and settings."""
        return range(200_000, 200_000 + self.sampling_seeds)


class ImageFinetuneRecipe(CoupledUpdates):
    """Fine-tuning for one number of Euler steps; the compute budget sets the number of updates."""

    fm_weight: NonNegative
    last_steps: Natural
    history_points: Count


class ImageResidualRecipe(ResidualSolve):
    """A residual model of images; ``nfe`` counts the evaluations of base and residual together."""

    net: ImageNetSettings
    nfe: Count

    @model_validator(mode="after")
    def _base_has_an_evaluation(self) -> "ImageResidualRecipe":
        if self.residual_steps >= self.nfe:
            raise ValueError(
                f"residual_steps: given {self.residual_steps}, allowed: below nfe = {self.nfe}, so that the base model "
                "has an evaluation"
            )
        return self


class ExtractorSettings(Block):
    """The classifier in whose features the distance FD is computed."""

    channels: Count
    features: Count
    held_out: Fraction
    shift: Natural
    steps: Count
    batch_size: Count
    lr: Positive
    weight_decay: NonNegative
    precision: PrecisionSetting


class FidSettings(Block):
    features: Features
    n_samples: Count
    sampling_seeds: SeedCount
    batch: Count
    solvers: Annotated[list[ImageSolver], Field(min_length=1)]
    tolerance: Positive
    sample_metrics: bool
    halves: Annotated[int, Field(ge=2)]
    shown: Count

    @model_validator(mode="after")
    def _solvers_differ(self) -> "FidSettings":
        if len(set(self.solvers)) != len(self.solvers):
            raise ValueError(f"solvers: given {self.solvers}, allowed: each value once")
        return self

    def seeds(self) -> range:
        """Return the sampling seeds of reported results; nothing is chosen on them."""
        return range(100_000, 100_000 + self.sampling_seeds)


class ImageTaskSettings(Block):
    """All settings of one image task at one scale."""

    seed: Seed
    threads: Count
    processes: Count
    data: ImageDataSettings
    intermediate: Literal["all", "i_cfm"]
    net: ImageNetSettings
    extractor: ExtractorSettings
    pretrain: ImagePretrainSettings
    select: ImageSelectSettings
    finetune: dict[RecipeKey, ImageFinetuneRecipe]
    residual: ImageResidualRecipe
    fid: FidSettings

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return SHAPES[self.data.dataset]

    @model_validator(mode="after")
    def _fine_tuning_has_compute(self) -> "ImageTaskSettings":
        if self.select.latest >= self.pretrain.steps:
            raise ValueError(
                f"select.latest: given {self.select.latest}, allowed: below pretrain.steps = {self.pretrain.steps}; "
                "fine-tuning has the compute of the steps after the selected checkpoint"
            )
        first = round(self.pretrain.steps / self.pretrain.checkpoints)
        if self.select.latest < first:
            given = self.select.latest
            raise ValueError(f"select.latest: given {given}, allowed: at least {first}, the first checkpoint")
        return self

    @model_validator(mode="after")
    def _batches_split_evenly(self) -> "ImageTaskSettings":
        sizes = {"pretrain": self.pretrain.batch_size, "residual": self.residual.batch_size}
        sizes |= {f"finetune.{key}": recipe.batch_size for key, recipe in self.finetune.items()}
        require_even_batches(self.processes, sizes)
        return self

    @model_validator(mode="after")
    def _solves_fit(self) -> "ImageTaskSettings":
        for key, recipe in self.finetune.items():
            nfe = int(key.removeprefix("nfe"))
            require_finer_teacher(f"finetune.{key}", recipe.coupling, recipe.reflow_nfe, nfe, LEARNED_IN)
            if recipe.last_steps > nfe:
                raise ValueError(f"finetune.{key}.last_steps: given {recipe.last_steps}, allowed: 0 (all) to {nfe}")
        return self

    @model_validator(mode="after")
    def _residual_fits(self) -> "ImageTaskSettings":
        recipe = self.residual
        learned = recipe.nfe - recipe.residual_steps
        require_finer_teacher("residual", recipe.coupling, recipe.reflow_nfe, learned, CORRECTED)
        steps = [int(solver.removeprefix("euler-")) for solver in self.fid.solvers if solver != "dopri5"]
        if len(steps) == len(self.fid.solvers) and max(steps) <= recipe.residual_steps:
            raise ValueError(
                f"fid.solvers: given {self.fid.solvers}, allowed: with dopri5, or more than the residual's "
                f"{recipe.residual_steps} steps"
            )
        return self

    @model_validator(mode="after")
    def _nets_fit_the_images(self) -> "ImageTaskSettings":
        for name, net in [("net", self.net), ("residual.net", self.residual.net)]:
            if isinstance(net, Unet2dSettings):
                levels, side = len(net.multipliers), self.shape[1]
                if isinstance(net, PatchedUnet2dSettings):
                    if side % net.patch:
                        raise ValueError(f"{name}.patch: given {net.patch}, allowed: divisors of {side} pixels")
                    side //= net.patch
                if side % 2 ** (levels - 1):
                    raise ValueError(
                        f"{name}.multipliers: given {net.multipliers}, allowed: as many as halve {side} pixels evenly"
                    )
        return self

    @model_validator(mode="after")
    def _covariance_is_regular(self) -> "ImageTaskSettings":
        least = 2048 if self.fid.features == "inception" else self.extractor.features
        for name, given in [("fid.n_samples", self.fid.n_samples), ("select.n_samples", self.select.n_samples)]:
            if given <= least:
                raise ValueError(
                    f"{name}: given {given}, allowed: more than the {least} {self.fid.features} features, below which "
                    "their covariance is singular"
                )
        return self
