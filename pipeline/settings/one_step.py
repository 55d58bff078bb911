"""Define the methods of the one-step study and their settings in ``params.yaml``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.settings.blocks import (
    LEARNED_IN,
    Block,
    Count,
    CovarianceKind,
    FinetuneCoupling,
    FinetuneRecipe,
    Fraction,
    Natural,
    NonNegative,
    Positive,
    RecipeKey,
    Seed,
    SeedCount,
    recipe_of,
    require_finer_teacher,
)


@dataclass(frozen=True)
class Method:
    """A method of the study.

    Attributes:
        title: its name in tables. nfe: the numbers of function evaluations at which it is evaluated.
        has_noise: whether it samples from noise, and so has a temperature.
        from_base: whether it continues from the base model; else it is trained from random weights.
    """

    title: str
    nfe: tuple[int, ...]
    has_noise: bool = True
    from_base: bool = True


METHODS: Mapping[str, Method] = {
    "fm": Method("FM base", (1, 2, 16)),
    "fm_continued": Method("FM continued", (1, 2, 16)),
    "ft_fm": Method("FT-FM", (1, 2, 16)),
    "regression": Method("Regression", (1,), has_noise=False, from_base=False),
    "mip": Method("MIP", (2,), has_noise=False, from_base=False),
    "imle": Method("IMLE", (1,), from_base=False),
    "drifting": Method("Drifting", (1,), from_base=False),
    "lsd": Method("Flow map (LSD)", (1, 2, 16)),
}
"""In the order of tables. All but fm get the same compute: that of the base model plus the study's budget."""


CELLS = [
    f"{name}-nfe{nfe}" if name == "ft_fm" else name
    for name, method in METHODS.items()
    for nfe in (method.nfe if name == "ft_fm" else method.nfe[:1])
]
"""Cells of the study, each trained once: a method, or ``ft_fm`` for one NFE, such as ft_fm-nfe1."""


BASELINES = ("regression", "mip", "imle", "drifting", "lsd")
"""Methods with their own recipe."""


class OneStepRecipe(Block):
    """Settings of ``ft_fm`` for one number of function evaluations."""

    lr: Positive
    batch_size: Count
    candidates: Count
    reflow_nfe: Count
    precomputed_pairs: Natural
    coupling: FinetuneCoupling
    covariance: CovarianceKind
    reflow_temperature: NonNegative


class BaselineRecipe(Block):
    lr: Positive
    batch_size: Count


class MipRecipe(BaselineRecipe):
    form: Literal["code", "printed"]


class ImleRecipe(BaselineRecipe):
    samples: Count
    threshold: NonNegative


class DriftingRecipe(BaselineRecipe):
    samples: Annotated[int, Field(ge=2)]
    per_step: bool
    kernel_scales: Annotated[list[Positive], Field(min_length=1)]


class FlowMapRecipe(BaselineRecipe):
    share: Fraction


class OneStepSettings(Block):
    """The one-step study of a task; without training seeds the task is not in the study."""

    train_seeds: list[Seed]
    budget: Count
    checkpoints: Count
    seeds: SeedCount
    temperatures: Annotated[list[NonNegative], Field(min_length=1)]
    fm_lr: Positive
    recipes: dict[RecipeKey, OneStepRecipe]
    regression: BaselineRecipe
    mip: MipRecipe
    imle: ImleRecipe
    drifting: DriftingRecipe
    lsd: FlowMapRecipe

    def recipe(self, nfe: int, like: FinetuneRecipe) -> FinetuneRecipe:
        """Return ``like`` with the study's settings for ``nfe`` function evaluations.

        Raises:
            UserError: the study has no recipe for ``nfe``.
        """
        return like.model_copy(update=recipe_of(self.recipes, nfe, "one_step.recipes").model_dump())

    @model_validator(mode="after")
    def _temperatures_begin_with_1(self) -> "OneStepSettings":
        if self.temperatures[0] != 1:
            raise ValueError(f"temperatures: given {self.temperatures}, allowed: 1 first, at which checkpoints compete")
        return self

    @model_validator(mode="after")
    def _recipes_can_be_made(self) -> "OneStepSettings":
        for key, recipe in self.recipes.items():
            learned = int(key.removeprefix("nfe"))
            require_finer_teacher(f"recipes.{key}", recipe.coupling, recipe.reflow_nfe, learned, LEARNED_IN)
        return self
