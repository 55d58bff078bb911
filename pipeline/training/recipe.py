"""From settings to what is minimised, and what that costs: the same for the pipeline's rows and for studies of them."""

from pathlib import Path

from torch import nn

from pipeline.flow.coupling import added_solves, atypical, make_coupling
from pipeline.flow.covariance import COVARIANCES
from pipeline.flow.path import PATHS
from pipeline.nets.lora import add_lora
from pipeline.settings.schema import FinetuneRecipe, PretrainSettings
from pipeline.training.loop import Batches
from pipeline.training.mle import FM_UPDATE, Reconstruction, update_cost
from pipeline.training.pretrain import FlowMatching
from pipeline.training.teacher import paired
from pipeline.utils.errors import UserError
from pipeline.utils.seeding import Generators


def flow_matching(net: nn.Module, pretrain: PretrainSettings, generators: Generators) -> FlowMatching:
    """Flow matching of ``net`` as in pretraining."""
    coupling = make_coupling(
        pretrain.coupling, regularization=pretrain.regularization, condition_weight=pretrain.condition_weight
    )
    return FlowMatching(net, PATHS[pretrain.path](pretrain.sigma), coupling, generators)


def maximum_likelihood(
    net: nn.Module,
    recipe: FinetuneRecipe,
    nfe: int,
    pretrain: PretrainSettings,
    generators: Generators,
    windows: Batches,
    *,
    keep: Path | None = None,
) -> tuple[Reconstruction, Batches]:
    """Fine-tuning of ``net`` by ``recipe``, and the batches to train on: ``windows``, with their noise where solves are
    made ahead. Puts LoRA on ``net`` where asked for.

    Args:
        keep: file that keeps the solves made ahead for a resume.
    """
    coupling, batches = paired(recipe, net, windows, generators, keep)
    objective = Reconstruction(
        net,
        coupling,
        nfe,
        generators,
        teacher_nfe=None if recipe.solves_ahead else recipe.teacher_nfe or None,
        teacher_temperature=recipe.reflow_temperature,
        solver=recipe.solver,
        gradient=recipe.gradient,
        last_steps=recipe.last_steps or None,
        covariance=COVARIANCES[recipe.covariance](windows.data.shape[1:]),
        fm_weight=recipe.fm_weight,
        path=PATHS[pretrain.path](pretrain.sigma),
        energy_weight=recipe.energy_weight,
    )
    if recipe.lora_rank > 0:  # after the teacher was copied, which has no use for it
        add_lora(net, recipe.lora_rank, recipe.lora_alpha, generators["lora"])
    return objective, batches


def equal_compute(recipe: FinetuneRecipe, pretrain: PretrainSettings, nfe: int, windows: int) -> FinetuneRecipe:
    """The recipe of flow matching continued, as in pretraining, for the compute of ``recipe`` on so many windows."""
    kept = pretrain.model_dump(include={"weight_decay", "max_grad_norm", "ema_decay", "precision"})
    passes = recipe.steps * recipe.batch_size * _passes(recipe, nfe) + _passes_ahead(recipe, windows)
    steps = round(passes / (FM_UPDATE * recipe.batch_size))
    own = {"steps": steps, "lr": recipe.fm_lr, "warmup": min(pretrain.warmup, steps)}
    return recipe.model_copy(update=kept | own)


def within_budget(
    recipe: FinetuneRecipe, nfe: int, budget: int, pretrain: PretrainSettings, windows: int, fallback_share: float = 1.0
) -> FinetuneRecipe:
    """``recipe`` with as many steps as cost ``budget`` flow-matching updates of pretraining's batch size.

    At most a tenth of them are warm-up.

    Args:
        fallback_share: of ``inversion``: rows that search for their noise, see ``fallback_share``.

    Raises:
        UserError: the solves made ahead cost more than that.
    """
    passes = budget * FM_UPDATE * pretrain.batch_size - _passes_ahead(recipe, windows)
    steps = int(passes / (recipe.batch_size * _passes(recipe, nfe, fallback_share)))
    if steps < 1:
        raise UserError(f"budget: given {budget}, allowed: more than {recipe.coupling}'s solves made ahead cost")
    return recipe.model_copy(update={"steps": steps, "warmup": min(recipe.warmup, max(1, steps // 10))})


def fallback_share(recipe: FinetuneRecipe, batches: Batches) -> float:
    """The share of ``batches`` that ``inversion``, solved ahead, leaves to its search; 1 of other couplings."""
    if recipe.coupling != "inversion" or not recipe.solves_ahead:
        return 1.0
    return atypical(batches.data[:, 0], recipe.typical_quantile).double().mean().item()


def _passes(recipe: FinetuneRecipe, nfe: int, fallback_share: float = 1.0) -> float:
    """Of the net, in an update, for each datum."""
    teacher_solves = 0.0 if recipe.solves_ahead else recipe.teacher_nfe / nfe
    return update_cost(
        nfe,
        added_solves(recipe.coupling, recipe.candidates, teacher_solves, fallback_share),
        solver=recipe.solver,
        gradient=recipe.gradient,
        last_steps=recipe.last_steps or None,
        fm_term=recipe.fm_weight > 0,
    )


def _passes_ahead(recipe: FinetuneRecipe, windows: int) -> int:
    """Of the net, before training."""
    if not recipe.solves_ahead:
        return 0
    return windows * recipe.teacher_nfe * (recipe.precomputed_pairs if recipe.coupling == "reflow" else 1)
