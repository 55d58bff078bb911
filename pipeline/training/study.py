"""Train the rows of the coupling study at equal compute, and choose the checkpoint of each."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.settings.schema import Optimization, TaskSettings
from pipeline.training.cells import Cell, Choice
from pipeline.training.checkpoint import LoadedPolicy, build_policy, load_policy
from pipeline.training.data import PreparedData
from pipeline.training.finetuning import Training
from pipeline.training.loop import Batches
from pipeline.training.one_step_baselines import MinimalIterative, MinimalIterativeField, Regression, RegressionField
from pipeline.training.problem import Workspace
from pipeline.training.recipe import fallback_share, flow_matching, maximum_likelihood, path_of, within_budget
from pipeline.utils.errors import UserError
from pipeline.utils.precision import autocast
from pipeline.utils.seeding import Generators
from pipeline.utils.timing import median_ms

OUTSIDERS: dict[str, Callable[[nn.Module], nn.Module]] = {"regression": RegressionField, "mip": MinimalIterativeField}
"""Wrapper that makes a velocity field of the net of each policy that is no flow."""

_EVALUATIONS = {"regression": 1, "mip": 2}  # of the net in an update; flow matching has one
_TIMED_UPDATES = 20


class CouplingCell(Cell):
    """Row of the coupling study: ``fm``, ``fm_continued``, an outsider, or a coupling with one number of evaluations.

    It takes the checkpoint with the highest score on validation seeds, at temperature 1.
    """

    update_ms = 0.0

    @property
    def checkpoints(self) -> int:
        return self.settings.studied().checkpoints

    def training(self, data: PreparedData, settings: TaskSettings, keep: Path) -> Training:
        """Return the training of the row, within the study's budget.

        Raises:
            UserError: a coupling has several numbers of evaluations or one without settings in the study, or the budget
                does not cover the solves made ahead.
        """
        (policy, metadata), row, study, pretrain = self.base, self.method, settings.studied(), settings.pretrain
        windows = Batches(data.condition, data.action)
        generators = Generators(settings.seed, "study", row, *self.numbers)
        if row == "fm_continued":
            optimization: Optimization = pretrain.model_copy(update={"steps": study.budget, "lr": study.fm_lr})
            objective = flow_matching(policy.net, pretrain, generators)
            return Training(objective, windows, generators, optimization, metadata.train_steps)
        if row in OUTSIDERS:
            net = build_policy(metadata).net
            outsider = Regression(net) if row == "regression" else MinimalIterative(net, generators)
            steps = (metadata.train_steps + study.budget) // _EVALUATIONS[row]
            return Training(outsider, windows, generators, pretrain.model_copy(update={"steps": steps}), 0)
        if len(self.numbers) > 1:
            raise UserError(
                f"--nfe: given {list(self.numbers)}, allowed for {row}: one number, which it is trained for"
            )
        (nfe,) = self.numbers
        recipe = study.recipe(row, nfe, settings.finetune["nfe1"])
        likelihood, batches = maximum_likelihood(
            policy.net, recipe, nfe, path_of(pretrain), generators, windows, keep=keep
        )
        share = fallback_share(recipe, batches)
        optimization = within_budget(recipe, nfe, study.budget, pretrain, len(data.action), share)
        return Training(likelihood, batches, generators, optimization, metadata.train_steps)

    def load(self, model: Path, nfe: int) -> LoadedPolicy:
        """Load a checkpoint; an outsider's net becomes a velocity field."""
        del nfe
        policy, metadata = load_policy(model)
        field = OUTSIDERS.get(self.method)
        return policy.with_net(field(policy.net)) if field else policy, metadata

    def best(self, models: Sequence[Path], nfe: int, folder: Path) -> Choice:
        if self.method == "fm":
            return Choice(self.base_file, 1.0, 0.0, 0.0)  # the only checkpoint
        tried = [self.judged(model, nfe, 1.0, self.settings.studied().seeds, folder) for model in models]
        return max(reversed(tried), key=lambda choice: choice.max_score)  # the longest trained one of equals

    def trained(self, training: Training, here: Workspace, title: str) -> list[Path]:
        models = super().trained(training, here, title)
        self.update_ms = round(measure_update(training), 1)
        return models

    def beside(self, chosen: Choice) -> Mapping[str, float]:
        if self.method == "fm":
            return {}
        return {"update_ms": self.update_ms, "validation_max_score": chosen.max_score}


def measure_update(training: Training) -> float:
    """Measure the median time of an update's forward and backward pass, pairing included, in milliseconds."""
    objective, generator = training.objective, torch.Generator().manual_seed(0)
    device = next(objective.parameters()).device.type

    def update(condition: Tensor, data: Tensor) -> float:
        with autocast(device, training.optimization.precision):
            loss = objective(condition.to(device), data.to(device))
        loss.backward()
        return float(loss)  # waits for a GPU

    def drawn(_: int) -> Callable[[], float]:
        return partial(update, *training.batches.draw(training.optimization.batch_size, generator))

    return median_ms(drawn, _TIMED_UPDATES)
