"""Train and report the methods of the one-step study at equal compute."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.evaluation.policy import FlowPolicy
from pipeline.nets.registry import build_net
from pipeline.settings.one_step import METHODS, BaselineRecipe, OneStepSettings
from pipeline.settings.schema import Optimization, PretrainSettings, TaskSettings
from pipeline.training.cells import Cell, Choice
from pipeline.training.checkpoint import CheckpointMetadata, LoadedPolicy, build_policy, load_policy
from pipeline.training.data import PreparedData
from pipeline.training.finetuning import Training
from pipeline.training.flow_map import STEP_FEATURES, FlowMapField, LagrangianSelfDistillation, widened
from pipeline.training.loop import Batches, Objective
from pipeline.training.mle import FM_UPDATE
from pipeline.training.one_step_baselines import (
    Drifting,
    GeneratorField,
    ImplicitMaximumLikelihood,
    MinimalIterative,
    MinimalIterativeField,
    Regression,
    RegressionField,
)
from pipeline.training.recipe import flow_matching, maximum_likelihood, path_of, within_budget
from pipeline.utils.errors import UserError
from pipeline.utils.seeding import Generators
from pipeline.utils.timing import median_ms

_DISTILLED_PASSES = 7  # a step's velocity and slope: 2 forward, 4 backward; the target velocity: 1 forward
_TIMED_PLANS = 60


class OneStepCell(Cell):
    """Method of the one-step study, trained once for all its numbers of evaluations; ``ft_fm``: once for each.

    Checkpoints are compared at temperature 1, and then the best one at all temperatures.
    """

    @property
    def checkpoints(self) -> int:
        return self.settings.one_step.checkpoints

    def training(self, data: PreparedData, settings: TaskSettings, keep: Path) -> Training:
        """Return the training of the method, within the study's budget.

        Raises:
            UserError: the study has no recipe for this number of evaluations, its budget does not cover the solves made
                ahead, or the kind of net does not support step lengths.
        """
        (policy, metadata), method, study, pretrain = self.base, self.method, settings.one_step, settings.pretrain
        windows, nfe = Batches(data.condition, data.action), self.numbers[0] if self.method == "ft_fm" else 0
        generators = Generators(settings.seed, "one step", method, nfe)
        if method == "fm_continued":
            optimization: Optimization = pretrain.model_copy(update={"steps": study.budget, "lr": study.fm_lr})
            objective = flow_matching(policy.net, pretrain, generators)
            return Training(objective, windows, generators, optimization, metadata.train_steps)
        if method == "ft_fm":
            recipe = study.recipe(nfe, settings.finetune["nfe1"])
            likelihood, batches = maximum_likelihood(
                policy.net, recipe, nfe, path_of(pretrain), generators, windows, keep=keep
            )
            optimization = within_budget(recipe, nfe, study.budget, pretrain, len(data.action))
            return Training(likelihood, batches, generators, optimization, metadata.train_steps)
        own, before = _recipe(method, study), metadata.train_steps
        scratch = not METHODS[method].from_base
        updates = study.budget + (before if scratch else 0)
        steps = max(1, int(passes_of(updates, pretrain) / (own.batch_size * passes(method, study))))
        warmup = min(pretrain.warmup, steps // 10)
        changed = {"steps": steps, "lr": own.lr, "batch_size": own.batch_size, "warmup": warmup}
        baseline = _baseline(method, self.base, study, steps, generators)
        optimization = pretrain.model_copy(update=changed)
        return Training(baseline, windows, generators, optimization, 0 if scratch else before)

    def load(self, model: Path, nfe: int) -> LoadedPolicy:
        def build(metadata: CheckpointMetadata) -> FlowPolicy:
            policy = build_policy(metadata)
            return policy.with_net(_mapping_net(policy, metadata)) if self.method == "lsd" else policy

        policy, metadata = load_policy(model, build)
        return policy.with_net(_field(self.method, policy.net, nfe, self.settings.one_step)), metadata

    def best(self, models: Sequence[Path], nfe: int, folder: Path) -> Choice:
        return self.choices(models, nfe, folder)[0]

    def choices(self, models: Sequence[Path], nfe: int, folder: Path, *, every: bool = False) -> list[Choice]:
        """Try checkpoints and temperatures on the study's validation seeds; the best comes first.

        ``every``: try all checkpoints at all temperatures.
        """
        study = self.settings.one_step
        first, *others = study.temperatures
        tried = [self.judged(path, nfe, first, study.seeds, folder) for path in models]
        kept = models if every else [_best(tried).model]
        if METHODS[self.method].has_noise:
            tried += [self.judged(path, nfe, other, study.seeds, folder) for path in kept for other in others]
        best = _best(tried)
        return [best, *(choice for choice in tried if choice != best)]

    def beside(self, chosen: Choice) -> Mapping[str, float]:
        updates = self.base[1].train_steps + (0 if self.method == "fm" else self.settings.one_step.budget)
        return {
            "train_passes": passes_of(updates, self.settings.pretrain),
            "validation_max_score": chosen.max_score,
            "validation_success": chosen.success,
        }


def passes(method: str, study: OneStepSettings) -> float:
    """Return the passes of the net in an update of a baseline, for each datum; a backward pass counts as two."""
    of_method: Mapping[str, Callable[[], float]] = {
        "regression": lambda: 3,
        "mip": lambda: 6,
        "imle": lambda: study.imle.samples + 3,
        "drifting": lambda: 3 * study.drifting.samples,
        "lsd": lambda: (1 - study.lsd.share) * FM_UPDATE + study.lsd.share * _DISTILLED_PASSES,
    }
    return of_method[method]()


def passes_of(updates: int, pretrain: PretrainSettings) -> int:
    """Return the passes of the net through a datum in ``updates`` flow-matching updates of pretraining's batch size."""
    return updates * FM_UPDATE * pretrain.batch_size


def _recipe(method: str, study: OneStepSettings) -> BaselineRecipe:
    recipe: BaselineRecipe = getattr(study, method)
    return recipe


def _baseline(
    method: str,
    base: LoadedPolicy,
    study: OneStepSettings,
    updates: int,
    generators: Generators,
) -> Objective:
    policy, metadata = base
    if method == "lsd":
        return LagrangianSelfDistillation(_widened(policy, metadata), study.lsd.share, updates, generators)
    net = build_policy(metadata).net
    if method == "regression":
        return Regression(net)
    if method == "mip":
        return MinimalIterative(net, generators, study.mip.form)
    if method == "imle":
        return ImplicitMaximumLikelihood(net, study.imle.samples, study.imle.threshold, generators)
    own = study.drifting
    return Drifting(net, own.samples, own.kernel_scales, generators, per_step=own.per_step)


def _widened(policy: FlowPolicy, metadata: CheckpointMetadata) -> nn.Module:
    """Return the net of ``policy`` with the length of a step in its condition."""
    try:
        return widened(policy.net, _mapping_net(policy, metadata))
    except ValueError as error:
        raise UserError(f"net.kind: given {metadata.net.kind!r}, allowed for lsd: mlp ({error})") from None


def _mapping_net(policy: FlowPolicy, metadata: CheckpointMetadata) -> nn.Module:
    condition_dim = policy.n_obs_steps * len(policy.observation_normalizer.offset)
    return build_net(metadata.net, policy.horizon, policy.action_dim, condition_dim + STEP_FEATURES)


def policy_like(method: str, nfe: int, base: LoadedPolicy, study: OneStepSettings) -> FlowPolicy:
    """Build a policy with the nets that ``method`` trains from ``base`` and random weights, for timing."""
    policy, metadata = base
    fresh = build_policy(metadata)
    net = _mapping_net(policy, metadata) if method == "lsd" else fresh.net
    return fresh.with_net(_field(method, net, nfe, study)).eval()


def _field(method: str, net: nn.Module, nfe: int, study: OneStepSettings) -> nn.Module:
    fields: Mapping[str, Callable[[], nn.Module]] = {
        "regression": lambda: RegressionField(net),
        "mip": lambda: MinimalIterativeField(net, study.mip.form),
        "imle": lambda: GeneratorField(net),
        "drifting": lambda: GeneratorField(net),
        "lsd": lambda: FlowMapField(net, nfe),
    }
    return fields[method]().eval() if method in fields else net


def _best(tried: Sequence[Choice]) -> Choice:
    return max(tried, key=lambda choice: choice.value)


@torch.inference_mode()
def milliseconds_a_plan(policy: FlowPolicy, condition: Tensor, nfe: int) -> float:
    """Measure the median time of a plan for an observation of ``condition`` (W, C), W ≥ 1, in milliseconds."""
    noise = torch.randn(1, *policy.noise_shape(nfe), generator=torch.Generator().manual_seed(0)).to(policy.device)

    def plan(i: int) -> Callable[[], float]:
        one = condition[i % len(condition)][None].to(policy.device)
        return lambda: float(policy.sample(one, noise, nfe).sum())  # waits for a GPU

    return median_ms(plan, _TIMED_PLANS, _TIMED_PLANS // 3)
