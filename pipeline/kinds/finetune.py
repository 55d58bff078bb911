"""Fine-tune the base model of a robot task by maximum likelihood (ft_fm) or flow matching (fm), at equal compute.

Both start from the same checkpoint. ``ft_fm`` minimises the reconstruction loss through the N-step solve. ``fm``
continues flow matching for as many updates as cost the same.
"""

import math
from dataclasses import replace

import numpy as np
from torch import nn

from pipeline.evaluation.seeds import validation_seeds
from pipeline.evaluation.statistics import mean_interval, proportion_interval
from pipeline.kinds.robot import RobotProblem, read_by
from pipeline.nets.lora import merge_lora
from pipeline.settings.paths import TaskFiles
from pipeline.settings.schema import ScaleSettings
from pipeline.training.checkpoint import round_weights, save_policy
from pipeline.training.diversity_monitor import DiversityReading
from pipeline.training.finetuning import Trained, Training, metrics_of
from pipeline.training.job import Asked, Job
from pipeline.training.journal import TrainingLog
from pipeline.training.loop import Objective, evenly_spaced
from pipeline.training.problem import Workspace, trains
from pipeline.training.recipe import equal_compute, flow_matching, maximum_likelihood, path_of
from pipeline.training.selection import roll_out
from pipeline.utils.seeding import Generators

SCORES = ("max_score", "max_score_low", "max_score_high", "success", "success_low", "success_high")
NO_ROLLOUTS = {**dict.fromkeys(SCORES, math.nan), "n_seeds": 0}
"""Scores of an offline task, whose history has only the monitor's readings on held-out episodes."""


def job(asked: Asked, settings: ScaleSettings) -> Job:
    del settings
    files = TaskFiles(asked.scale, asked.task)
    return Job(
        f"finetune-{asked.scale}-{asked.task}-{asked.method}-{asked.nfe}",
        deps=read_by(asked),
        outs=[files.model(asked.method, asked.nfe), files.history(asked.method, asked.nfe)],
        also={"method": asked.method},
    )


class FineTuning(RobotProblem):
    """Continued training of the base model, with rollouts and readings of the diversity."""

    def __init__(self, asked: Asked, settings: ScaleSettings, here: Workspace, label: str) -> None:
        super().__init__(asked, settings, here, label)
        method, nfe = asked.method, asked.nfe
        recipe, policy = self.settings.finetune[f"nfe{nfe}"], self.policy
        policy.solver, policy.temperature = recipe.solver, recipe.temperature
        self.recipe, self.history = recipe, TrainingLog(here.resume / "history.jsonl", here.run)
        generators = Generators(self.settings.seed, "finetune", method, nfe)
        pretrain, recipe = here.settled(self.settings.pretrain), here.settled(recipe)
        objective: Objective
        batches = self.windows
        if method == "fm":
            recipe = equal_compute(recipe, pretrain, nfe, len(self.data.action))
            objective = flow_matching(policy.net, pretrain, generators)
        else:
            objective, batches = maximum_likelihood(
                policy.net, recipe, nfe, path_of(pretrain), generators, batches, keep=here.resume / "pairs.pt"
            )
        self.training = Training(objective, batches, generators, recipe)
        self.measured_after = [0, *evenly_spaced(recipe.steps, recipe.history_points)]
        monitored = range(0, recipe.steps, recipe.guard_every) if method == "ft_fm" else ()
        steps = [*self.measured_after, *monitored]
        self.stopping = self.collapse_stopping(self.diversity, policy.net, recipe, steps, stops=method == "ft_fm")

    def diversity(self, net: nn.Module) -> DiversityReading:
        """Measure the diversity of held-out samples of ``net``."""
        return self.monitor.measure(self.policy.with_net(net), self.asked.nfe)

    def measure(self, step: int, net: nn.Module) -> None:
        assert self.stopping
        reading = self.stopping.reading
        if step in self.history.rows:
            return
        logged = [self.log.rows[at]["loss"] for at in sorted(self.log.rows) if at <= step]
        self.history(
            {
                "epoch": step * self.training.optimization.batch_size / len(self.data.action),
                **(NO_ROLLOUTS if self.settings.load_task().offline else self.rolled_out(step, net)),
                "loss": logged[-1] if logged else math.nan,
                "spread_ratio": reading.spread_ratio,
                "best_of_k": reading.diversity.best_of_k,
                "reconstruction_error": reading.diversity.reconstruction_error,
            },
            step,
        )

    def rolled_out(self, step: int, net: nn.Module) -> dict[str, float]:
        """Return scores on validation seeds, with their intervals."""
        results = roll_out(
            self.policy.with_net(net),
            self.asked.task,
            self.settings,
            self.asked.nfe,
            validation_seeds(self.recipe.history_seeds),
            self.here.resume / f"episodes-{step}.jsonl",
        )
        score = mean_interval(np.array([result.max_score for result in results]))
        success = proportion_interval(np.array([result.success for result in results]))
        numbers = (score.mean, score.low, score.high, success.mean, success.low, success.high, len(results))
        return dict(zip(NO_ROLLOUTS, numbers, strict=True))

    def save(self, trained: Trained) -> None:
        method, nfe = self.asked.method, self.asked.nfe
        merge_lora(trained.net)
        # models are stored in float16; the metrics are of the stored weights
        round_weights(trained.net)
        metadata = replace(
            self.base,
            method=method,
            nfe=nfe,
            train_steps=self.base.train_steps + trained.steps,
            solver=self.recipe.solver,
            temperature=self.recipe.temperature,
            metrics=metrics_of(self.diversity(trained.net)),
            precision=self.training.optimization.precision,
        )
        save_policy(self.files.model(method, nfe), self.policy, metadata, half=True)
        history = self.files.history(method, nfe)
        self.history.write_csv(history, **self.constants)
        self.here.run.artifact(history)


work = trains(FineTuning)
