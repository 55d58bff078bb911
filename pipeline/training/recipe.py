"""Build objectives from settings and compute their cost, for the pipeline's rows and for studies of them."""

from pathlib import Path
from typing import Any

from torch import nn

from pipeline.flow.coupling import added_solves, atypical, make_coupling
from pipeline.flow.covariance import COVARIANCES
from pipeline.flow.path import PATHS, AffinePath
from pipeline.nets.lora import add_lora
from pipeline.settings.blocks import Updates
from pipeline.settings.images import ImageFinetuneRecipe
from pipeline.settings.schema import FinetuneRecipe, Optimization, PretrainSettings
from pipeline.training.loop import Batches
from pipeline.training.mle import FM_UPDATE, Reconstruction, update_cost
from pipeline.training.pretrain import FlowMatching
from pipeline.training.teacher import paired
from pipeline.utils.errors import UserError
from pipeline.utils.seeding import Generators

Recipe = FinetuneRecipe | ImageFinetuneRecipe
"""Recipe of fine-tuning; that of images has fewer keys, and the loss has defaults for the others."""


def path_of(pretrain: PretrainSettings) -> AffinePath:
    """Return the probability path of pretraining."""
    return PATHS[pretrain.path](pretrain.sigma)


def flow_matching(net: nn.Module, pretrain: PretrainSettings, generators: Generators) -> FlowMatching:
    """Build the flow-matching objective of ``net`` as in pretraining."""
    coupling = make_coupling(
        pretrain.coupling, regularization=pretrain.regularization, condition_weight=pretrain.condition_weight
    )
    return FlowMatching(net, path_of(pretrain), coupling, generators)


def maximum_likelihood(
    net: nn.Module,
    recipe: Recipe,
    nfe: int,
    path: AffinePath,
    generators: Generators,
    windows: Batches,
    *,
    keep: Path | None = None,
) -> tuple[Reconstruction, Batches]:
    """Build the objective that fine-tunes ``net`` by ``recipe``, and its batches; add LoRA to ``net`` if required.

    Args:
        windows: the batches, unless ``recipe`` makes solves ahead of them.
        path: of the flow-matching term. keep: file that keeps the solves made ahead for a resume.
    """
    coupling, batches = paired(recipe, net, windows, generators, keep)
    keys = recipe.model_dump(include={"covariance", "energy_weight", "lora_rank", "lora_alpha"}) | _solve(recipe)
    covariance, rank, alpha = keys.pop("covariance", "identity"), keys.pop("lora_rank", 0), keys.pop("lora_alpha", 1.0)
    objective = Reconstruction(
        net,
        coupling,
        nfe,
        generators,
        teacher_nfe=None if recipe.solves_ahead else recipe.teacher_nfe or None,
        teacher_temperature=recipe.reflow_temperature,
        covariance=COVARIANCES[covariance](windows.data.shape[1:]),
        fm_weight=recipe.fm_weight,
        path=path,
        **keys,
    )
    if rank > 0:  # after the teacher's copy, which needs no LoRA
        add_lora(net, rank, alpha, generators["lora"])
    return objective, batches


def equal_compute(recipe: FinetuneRecipe, pretrain: PretrainSettings, nfe: int, windows: int) -> FinetuneRecipe:
    """Return the recipe of continued flow matching, with pretraining's settings, at the compute of ``recipe``."""
    kept = pretrain.model_dump(include={"weight_decay", "max_grad_norm", "ema_decay", "precision"})
    passes = recipe.steps * recipe.batch_size * _passes(recipe, nfe) + _passes_ahead(recipe, windows)
    steps = round(passes / (FM_UPDATE * recipe.batch_size))
    own = {"steps": steps, "lr": recipe.fm_lr, "warmup": min(pretrain.warmup, steps)}
    return recipe.model_copy(update=kept | own)


def within_budget(
    recipe: Recipe, nfe: int, budget: int, pretrain: Optimization, windows: int, fallback_share: float = 1.0
) -> Optimization:
    """Return the settings of ``recipe`` with as many steps as cost ``budget`` flow-matching updates of pretraining.

    At most a tenth of the steps are warm-up. ``fallback_share`` is the share of rows that ``inversion`` leaves to a
    search.

    Raises:
        UserError: the budget does not cover the solves made ahead.
    """
    passes = budget * FM_UPDATE * pretrain.batch_size - _passes_ahead(recipe, windows)
    steps = int(passes / (recipe.batch_size * _passes(recipe, nfe, fallback_share)))
    if steps < 1:
        raise UserError(f"budget: given {budget}, allowed: more than {recipe.coupling}'s solves made ahead cost")
    warmup = min(recipe.warmup, max(1, steps // 10))
    own = recipe.model_dump(include=set(Updates.model_fields))
    return Optimization(**own | {"steps": steps, "warmup": warmup})


def fallback_share(recipe: FinetuneRecipe, batches: Batches) -> float:
    """Return the share of ``batches`` that ``inversion``, solved ahead, leaves to its search; 1 for other couplings."""
    if recipe.coupling != "inversion" or not recipe.solves_ahead:
        return 1.0
    return atypical(batches.data[:, 0], recipe.typical_quantile).double().mean().item()


def _passes(recipe: Recipe, nfe: int, fallback_share: float = 1.0) -> float:
    """Return the passes of the net in an update, for each datum."""
    teacher_solves = 0.0 if recipe.solves_ahead else recipe.teacher_nfe / nfe
    solves = added_solves(recipe.coupling, recipe.candidates, teacher_solves, fallback_share)
    return update_cost(nfe, solves, fm_term=recipe.fm_weight > 0, **_solve(recipe))


def _solve(recipe: Recipe) -> dict[str, Any]:
    """Return the options of the solve and its gradient."""
    return {**recipe.model_dump(include={"solver", "gradient"}), "last_steps": recipe.last_steps or None}


def _passes_ahead(recipe: Recipe, windows: int) -> int:
    """Return the passes of the net before training."""
    if not recipe.solves_ahead:
        return 0
    return windows * recipe.teacher_nfe * (recipe.precomputed_pairs if recipe.coupling == "reflow" else 1)
