"""Build every training of a scale as its stage does, but on random data, to measure it before anything is run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import cast, get_args

import torch
from torch import nn

from pipeline.evaluation.image_models import FieldModel, FlowModel, ResidualModel
from pipeline.evaluation.image_policy import ImagePolicy
from pipeline.flow import image_methods
from pipeline.nets.residual import Residual
from pipeline.nets.vision import pack
from pipeline.settings.blocks import Optimization
from pipeline.settings.images import ImageMethod, ImageTaskSettings
from pipeline.settings.paths import split_row
from pipeline.settings.schema import ScaleSettings, TaskSettings
from pipeline.training.checkpoint import build_policy, new_metadata
from pipeline.training.diffusion import NoisePrediction
from pipeline.training.extractor import classification
from pipeline.training.image_checkpoint import ImageMetadata, build_image_model
from pipeline.training.image_methods import pretraining, windows_of
from pipeline.training.images import ImageBatches
from pipeline.training.loop import Batches, BatchSource, Objective
from pipeline.training.recipe import equal_compute, flow_matching, maximum_likelihood, path_of, within_budget
from pipeline.training.residual import residual_training
from pipeline.training.residual_checkpoint import make_residual_policy
from pipeline.utils.precision import Precision
from pipeline.utils.seeding import Generators

IMAGES = {"digits": 1797, "cifar10": 50_000}
"""Data set → number of training images."""

_FEW = 2  # windows or images with precomputed solves, which are made while a training is built
_MADE_UP = 256  # random windows or images to draw batches from

Build = Callable[[Generators], tuple[Objective, BatchSource]]


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        task, name: its identifiers. like: trainings of a task with the same ``like`` cost the same per step.
        optimization: steps, batch size and precision, never ``auto``. processes: batches are split among so many.
        build: makes the untrained objective and random batches.
        solves: precomputed evaluations of the base net for single windows or images; None: unknown without the data.
    """

    task: str
    name: str
    like: str
    optimization: Optimization
    processes: int
    build: Build
    solves: int | None = 0


def trainings(settings: ScaleSettings, precision: Precision) -> Iterator[Training]:
    """Yield all trainings of the tasks and images of a scale; ``precision`` replaces ``auto``."""
    for task in settings.tasks:
        yield from _robot(task, settings.task(task).with_auto(precision), settings)
    for image in settings.images:
        yield from _images(image, settings.image_task(image).with_auto(precision), settings.image_nfe)


def _robot(task: str, settings: TaskSettings, scale: ScaleSettings) -> Iterator[Training]:
    record = new_metadata("", task, "fm", settings)
    policy = build_policy(record)
    condition_dim = policy.n_obs_steps * len(policy.observation_normalizer.offset)
    action = torch.randn(_MADE_UP, policy.horizon, policy.action_dim)
    windows = Batches(torch.randn(_MADE_UP, condition_dim), action)

    def from_scratch() -> tuple[nn.Module, BatchSource]:
        fresh = build_policy(record)
        if not isinstance(fresh, ImagePolicy):
            return fresh.net, windows
        crop, numbers = fresh.observe.encoder.crop, len(fresh.observation_normalizer.offset)
        images = torch.randint(256, (_MADE_UP, fresh.n_obs_steps, crop, crop, 3), dtype=torch.uint8)
        beside = torch.randn(_MADE_UP, fresh.n_obs_steps, numbers - fresh.observe.encoder.features)
        return fresh.seeing(), Batches(pack(images, beside), action)

    def pretrain(generators: Generators) -> tuple[Objective, BatchSource]:
        net, batches = from_scratch()
        return flow_matching(net, settings.pretrain, generators), batches

    def diffusion(generators: Generators) -> tuple[Objective, BatchSource]:
        net, batches = from_scratch()
        return NoisePrediction(net, generators), batches

    def continued(generators: Generators) -> tuple[Objective, BatchSource]:
        return flow_matching(build_policy(record).net, settings.pretrain, generators), windows

    def of(name: str, like: str, optimization: Optimization, build: Build, solves: int | None = 0) -> Training:
        return Training(task, name, like, optimization, settings.processes, build, solves)

    yield of("pretrain", "pretrain", settings.pretrain, pretrain)
    if scale.diffusion:
        yield of("pretrain_diffusion", "diffusion", settings.diffusion, diffusion)
    for nfe in scale.nfe:
        recipe = settings.finetune[f"nfe{nfe}"]

        def finetune(generators: Generators, nfe: int = nfe) -> tuple[Objective, BatchSource]:
            recipe, field = settings.finetune[f"nfe{nfe}"], build_policy(record).net
            few = _few(windows) if recipe.solves_ahead else windows
            return maximum_likelihood(field, recipe, nfe, path_of(settings.pretrain), generators, few)

        if not recipe.solves_ahead:  # else the steps of fm depend on the number of windows
            yield of(f"fm nfe{nfe}", "fm", equal_compute(recipe, settings.pretrain, nfe, 0), continued)
        yield of(f"ft_fm nfe{nfe}", f"ft_fm nfe{nfe}", recipe, finetune, None if recipe.solves_ahead else 0)
    for row in scale.residual:
        residual, nfe = settings.residual_recipe(row), split_row(row)[1]

        def tune(generators: Generators, row: str = row, nfe: int = nfe) -> tuple[Objective, BatchSource]:
            recipe, base = settings.residual_recipe(row), build_policy(record)
            behind = make_residual_policy(base, recipe, settings.seed).residual
            few = _few(windows) if recipe.solves_ahead else windows
            return residual_training(behind, base.net, recipe, nfe, generators, few)

        yield of(row, row, residual, tune, None if residual.solves_ahead else 0)


def _images(task: str, settings: ImageTaskSettings, nfes: list[int]) -> Iterator[Training]:
    data, count, shape = settings.data.dataset, IMAGES[settings.data.dataset], settings.shape
    images = torch.randint(256, (_MADE_UP, *shape), dtype=torch.uint8)
    batches = ImageBatches(images, settings.data.flip)
    start = ImageMetadata("", data, "i_cfm", "i_cfm", 0, 0, 0.0, settings.seed, settings.net, settings.pretrain)

    def of(name: str, like: str, optimization: Optimization, build: Build, solves: int = 0) -> Training:
        return Training(task, name, like, optimization, settings.processes, build, solves)

    if settings.fid.features == "embedded":
        yield _extractor(task, settings, images)
    for method in get_args(ImageMethod):

        def pretrain(generators: Generators, method: ImageMethod = method) -> tuple[Objective, BatchSource]:
            model = build_image_model(replace(start, method=method, start=method))
            assert isinstance(model, FieldModel)
            return pretraining(method, model.field, settings.pretrain, generators), batches

        like = method if method in ("ddpm", "ot_cfm") else "pretrain"
        yield of(f"pretrain {method}", like, settings.pretrain, pretrain)

    compute = settings.pretrain.steps - settings.select.latest
    for nfe in nfes:
        own = settings.finetune[f"nfe{nfe}"]
        optimization = within_budget(own, nfe, compute, settings.pretrain, count)
        made = count * own.precomputed_pairs * own.reflow_nfe if own.solves_ahead else 0

        def finetune(generators: Generators, nfe: int = nfe) -> tuple[Objective, BatchSource]:
            recipe, model = settings.finetune[f"nfe{nfe}"], build_image_model(start)
            assert isinstance(model, FlowModel)
            windows = windows_of(images[:_FEW], recipe)
            path = image_methods.path_of("i_cfm", settings.pretrain)
            objective, pairs = maximum_likelihood(model.field, recipe, nfe, path, generators, windows)
            return objective, pairs if recipe.solves_ahead else batches

        yield of(f"ft_fm nfe{nfe}", f"ft_fm nfe{nfe}", optimization, finetune, made)

    def residual(generators: Generators) -> tuple[Objective, BatchSource]:
        recipe = settings.residual
        model = build_image_model(replace(start, residual=recipe))
        assert isinstance(model, ResidualModel)
        windows = windows_of(images[:_FEW], recipe)
        behind, base = cast(Residual, model.residual), model.base.field
        objective, pairs = residual_training(behind, base, recipe, recipe.nfe, generators, windows)
        return objective, pairs if recipe.solves_ahead else batches

    made = count * settings.residual.precomputed_pairs * settings.residual.teacher_nfe
    yield of("resft_fm", "resft_fm", settings.residual, residual, made)


def _extractor(task: str, settings: ImageTaskSettings, images: torch.Tensor) -> Training:
    labels = torch.arange(len(images)) % 10
    made, _ = classification(images, labels, settings.extractor, flip=settings.data.flip, seed=settings.seed)

    def build(generators: Generators) -> tuple[Objective, BatchSource]:
        del generators
        return made.objective, made.batches

    return Training(task, "extractor", "extractor", made.optimization, 1, build)


def _few(windows: Batches) -> Batches:
    return Batches(windows.condition[:_FEW], windows.data[:_FEW])
