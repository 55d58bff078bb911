"""Define the settings that several blocks of ``params.yaml`` share: numbers in ranges, nets and trainings."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from pipeline.utils.errors import UserError
from pipeline.utils.precision import Precision, PrecisionSetting

PretrainCoupling = Literal["independent", "minibatch_ot", "sinkhorn", "conditional_ot"]
FinetuneCoupling = Literal[
    "independent", "minibatch_ot", "sinkhorn", "conditional_ot", "nearest", "inversion", "reflow"
]
GridKind = Literal["uniform", "early", "late"]
Nonlinear = Literal["tanh", "arctan", "softsign", "relu", "leaky_relu"]
StabilityKind = Literal["step", "flow", "step_penalty", "contraction_penalty", "dominance_penalty", "free"]
Solver = Literal["euler", "midpoint", "heun", "rk4"]
GradientKind = Literal["direct", "checkpointed", "adjoint"]
CovarianceKind = Literal["identity", "fixed", "learned", "profiled"]

EVALUATIONS: dict[Solver, int] = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}
"""Solver → function evaluations per step."""

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
SeedCount = Annotated[int, Field(ge=1, le=100_000)]  # validation and test seeds start 100 000 apart
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
BelowOne = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
RecipeKey = Annotated[str, StringConstraints(pattern=r"^nfe[1-9][0-9]*$")]
"""Name of the recipe for a number of function evaluations, such as ``nfe16``."""

_Recipe = TypeVar("_Recipe", bound="Block")


class Block(BaseModel):
    """Immutable settings that refuse unknown keys and wrong types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    if not TYPE_CHECKING:  # with __getattr__ a type checker would accept every name

        def __getattr__(self, name: str) -> Any:
            if name in type(self).model_fields:
                raise AttributeError(
                    f"{name}: not among the inputs of this stage; pipeline/settings/kinds.py declares them"
                )
            return super().__getattr__(name)

    def with_auto(self, precision: Precision) -> Self:
        """Return a copy in which every precision ``auto``, also in inner blocks, is replaced by ``precision``."""

        def settled(value: object) -> object:
            if isinstance(value, dict):
                return {key: settled(inner) for key, inner in value.items()}
            return value.with_auto(precision) if isinstance(value, Block) else value

        changed = {
            name: precision if (name, value) == ("precision", "auto") else settled(value) for name, value in self
        }
        return self.model_copy(update=changed)


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


class Transformer1dSettings(Block):
    """A transformer without dropout: fine-tuning solves through the net, and a resume would lose dropout's state."""

    kind: Literal["transformer1d"]
    width: Count
    depth: Count
    heads: Count
    causal: bool
    condition_tokens: Count
    time_features: Annotated[int, Field(ge=4, multiple_of=2)]

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> "Transformer1dSettings":
        if self.width % self.heads:
            raise ValueError(f"width: given {self.width}, allowed: multiples of heads = {self.heads}")
        return self


class Unet2dSettings(Block):
    kind: Literal["unet2d"]
    channels: Count
    multipliers: Annotated[list[Count], Field(min_length=1)]
    blocks: Count
    attention: list[Count]
    head_channels: Count
    groups: Count
    dropout: BelowOne
    time_scale: Positive

    @model_validator(mode="after")
    def _channels_are_shared_out(self) -> "Unet2dSettings":
        if self.channels % self.groups:
            raise ValueError(f"channels: given {self.channels}, allowed: multiples of groups = {self.groups}")
        if self.multipliers[0] != 1:
            raise ValueError(f"multipliers: given {self.multipliers}, allowed: the first of them 1")
        return self


class PatchedUnet2dSettings(Unet2dSettings):
    kind: Literal["patched_unet2d"]  # type: ignore[assignment]
    patch: Count


NetSettings = Annotated[MlpSettings | Unet1dSettings | Transformer1dSettings, Field(discriminator="kind")]
ImageNetSettings = Annotated[MlpSettings | Unet2dSettings | PatchedUnet2dSettings, Field(discriminator="kind")]


class Updates(Block):
    """How the optimiser updates weights."""

    batch_size: Count
    lr: Positive
    weight_decay: NonNegative
    warmup: Natural
    max_grad_norm: Positive
    ema_decay: BelowOne
    precision: PrecisionSetting


class Length(Block):
    """How long a training is."""

    steps: Count


class Optimization(Updates, Length):
    """One run of the optimiser."""

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


class CoupledUpdates(Updates):
    """Updates on pairs of noise and data from one of the couplings."""

    coupling: FinetuneCoupling
    candidates: Count
    reflow_nfe: Count
    reflow_temperature: NonNegative = 1.0  # the default is for model files older than this key
    precomputed_pairs: Natural

    @property
    def solves_ahead(self) -> bool:
        """Tell whether the solves of the coupling are made before training."""
        return self.teacher_nfe > 0 and self.precomputed_pairs > 0

    @property
    def teacher_nfe(self) -> int:
        """Return the function evaluations of the base model's fine solve for the coupling; 0: it needs none."""
        return {"reflow": self.reflow_nfe, "inversion": self.backward_nfe}.get(self.coupling, 0)

    @property
    def backward_nfe(self) -> int:
        """Return the function evaluations of the solve back in time, for ``inversion``."""
        return 64


class CoupledOptimization(CoupledUpdates, Optimization):
    """One run of the optimiser on pairs of noise and data from one of the couplings."""

    regularization: Positive
    condition_weight: NonNegative
    typical_quantile: Fraction
    inversion_nfe: Annotated[int, Field(ge=4, multiple_of=4)]

    @property
    def backward_nfe(self) -> int:
        return self.inversion_nfe


class FinetuneRecipe(CoupledOptimization):
    covariance: CovarianceKind
    fm_weight: NonNegative
    energy_weight: NonNegative
    lora_rank: Natural
    lora_alpha: Positive
    fm_lr: Positive
    temperature: NonNegative
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


class ResidualSolve(CoupledOptimization):
    """A residual model: the frozen base model on [0, 1], then a residual field on [1, end]."""

    end: Annotated[float, Field(gt=1, allow_inf_nan=False)]
    residual_steps: Count
    grid: GridKind


class ResidualRecipe(ResidualSolve):
    """A residual model of actions."""

    net: ResidualNetSettings
    temperature: NonNegative = 1.0  # default as for reflow_temperature
    guard_every: Count
    collapse_below: BelowOne
    on_collapse: Literal["stop", "warn"]


LEARNED_IN = "that its solve is learned in"
CORRECTED = "of the base model that are corrected"


def require_finer_teacher(name: str, coupling: str, reflow_nfe: int, learned: int, what: str) -> None:
    """Refuse a reflow whose teacher does not use more function evaluations than its student.

    Args:
        name: the block of the recipe.
        learned: function evaluations of the student. what: their role, for the message.

    Raises:
        ValueError: naming the key ``reflow_nfe`` of the block.
    """
    if coupling == "reflow" and reflow_nfe <= learned:
        raise ValueError(f"{name}.reflow_nfe: given {reflow_nfe}, allowed: more than the {learned} evaluations {what}")


def require_even_batches(processes: int, sizes: Mapping[str, int]) -> None:
    """Refuse batches that the ``processes`` cannot share evenly.

    Args:
        sizes: name of a block → images, windows, … per step.

    Raises:
        ValueError: naming the first such block.
    """
    for name, size in sizes.items():
        if size % processes:
            raise ValueError(f"{name}.batch_size: given {size}, allowed: multiples of processes = {processes}")


def recipe_of(recipes: Mapping[str, _Recipe], nfe: int, where: str) -> _Recipe:
    """Return the recipe for ``nfe`` function evaluations.

    Args:
        where: the key of ``recipes`` in params.yaml.

    Raises:
        UserError: there is none.
    """
    if found := recipes.get(f"nfe{nfe}"):
        return found
    allowed = ", ".join(key.removeprefix("nfe") for key in recipes)
    raise UserError(f"--nfe: given {nfe}, allowed: {allowed}, the {where} in params.yaml")
