"""Train a residual field behind the frozen base model of a robot task by maximum likelihood.

The model's solve is the base's on [0, 1] and the residual's on [1, end]. Loss (6) is taken at its end, and only the
residual is trained. The model file has the residual's plain matrices, which run and are certified.
"""

from dataclasses import replace
from typing import cast

from torch import nn

from pipeline.kinds.robot import RobotProblem, read_by
from pipeline.nets.residual import Residual
from pipeline.settings.paths import TaskFiles
from pipeline.settings.schema import ScaleSettings
from pipeline.training.checkpoint import round_weights
from pipeline.training.diversity_monitor import DiversityReading
from pipeline.training.finetuning import Trained, Training, metrics_of
from pipeline.training.job import Asked, Job
from pipeline.training.problem import Workspace, trains
from pipeline.training.residual import residual_training
from pipeline.training.residual_checkpoint import make_residual_policy, save_residual_policy
from pipeline.utils.seeding import Generators


def job(asked: Asked, settings: ScaleSettings) -> Job:
    del settings
    files = TaskFiles(asked.scale, asked.task)
    return Job(
        f"finetune_residual-{asked.scale}-{asked.task}-{asked.row}",
        deps=read_by(asked),
        outs=[files.model(asked.method, asked.nfe), files.residual_log(asked.row)],
    )


class ResidualFineTuning(RobotProblem):
    """Training of a residual behind the base model, which stops if the samples collapse."""

    def __init__(self, asked: Asked, settings: ScaleSettings, here: Workspace, label: str) -> None:
        super().__init__(asked, settings, here, label)
        self.recipe = recipe = self.settings.residual_recipe(asked.row)
        self.policy.temperature = recipe.temperature
        round_weights(self.policy.net)  # models are stored in float16, and the residual corrects the stored one
        self.whole = make_residual_policy(self.policy, recipe, self.settings.seed)
        generators = Generators(self.settings.seed, "finetune_residual", asked.row)
        optimization = here.settled(recipe)
        objective, batches = residual_training(
            self.whole.residual,
            self.policy.net,
            optimization,
            asked.nfe,
            generators,
            self.windows,
            keep=here.resume / "pairs.pt",
        )
        self.training = Training(objective, batches, generators, optimization)
        steps = [*range(0, recipe.steps, recipe.guard_every), recipe.steps]
        self.stopping = self.collapse_stopping(self.diversity, self.whole.residual, recipe, steps)

    def diversity(self, residual: nn.Module) -> DiversityReading:
        """Put ``residual`` into the policy, and measure the diversity of held-out samples."""
        self.whole.residual = cast(Residual, residual)
        return self.monitor.measure(self.whole.to(next(residual.parameters()).device), self.asked.nfe)

    def save(self, trained: Trained) -> None:
        reading = self.diversity(cast(Residual, trained.net).fixed())  # the stored residual is measured
        method, nfe = self.asked.method, self.asked.nfe
        metadata = replace(
            self.base,
            method=method,
            nfe=nfe,
            temperature=self.recipe.temperature,
            train_steps=self.base.train_steps + trained.steps,
            metrics=metrics_of(reading),
            precision=self.training.optimization.precision,
        )
        save_residual_policy(self.files.model(method, nfe), self.whole, metadata, self.recipe)
        log = self.files.residual_log(self.asked.row)
        self.log.write_csv(log, **self.constants)
        self.here.run.artifact(log)


work = trains(ResidualFineTuning)
