"""Define the rows of the coupling study, its settings and those of the precision study."""

from typing import Annotated

from pydantic import Field, model_validator

from pipeline.settings.blocks import (
    BelowOne,
    Block,
    Count,
    FinetuneCoupling,
    FinetuneRecipe,
    Natural,
    Positive,
    RecipeKey,
    Seed,
    SeedCount,
    recipe_of,
)

ROW_NAMES = {
    "fm": "FM base",
    "fm_continued": "FM continued",
    "regression": "regression",
    "mip": "MIP",
    "independent": "FT, independent",
    "minibatch_ot": "FT, minibatch OT",
    "sinkhorn": "FT, Sinkhorn",
    "conditional_ot": "FT, conditional OT",
    "nearest": "FT, nearest",
    "inversion": "FT, inversion",
    "reflow": "FT, reflow",
}
"""Every row that a study may have, in the order of its tables; those that begin with FT are couplings."""

OWN_NFE = {"regression": 1, "mip": 2}
"""Baselines: the only number of evaluations that they have."""


class StudyRecipe(Block):
    """Settings of the coupling study that depend on the number of function evaluations."""

    lr: Positive
    batch_size: Count
    candidates: Count
    reflow_nfe: Count
    precomputed_pairs: Natural


class PrecisionSettings(Block):
    """Settings that the precision study changes one at a time, to find where a policy loses precision."""

    seeds: SeedCount
    noise_scales: list[BelowOne]
    held_noises: Natural
    fine_nfe: Count
    n_action_steps: Count


class StudySettings(Block):
    """Settings of the coupling study that ``finetune.nfe1`` does not give."""

    train_seeds: Annotated[list[Seed], Field(min_length=1)]
    budget: Count
    checkpoints: Count
    seeds: SeedCount
    fm_lr: Positive
    recipes: dict[RecipeKey, StudyRecipe]
    chosen: dict[RecipeKey, FinetuneCoupling]
    precision: PrecisionSettings

    def recipe(self, coupling: str, nfe: int, like: FinetuneRecipe) -> FinetuneRecipe:
        """Return ``like`` with ``coupling`` and the study's settings for ``nfe`` function evaluations.

        Raises:
            UserError: the study has no recipe for ``nfe``.
        """
        own = recipe_of(self.recipes, nfe, "study.recipes")
        return like.model_copy(update={"coupling": coupling, **own.model_dump()})

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
