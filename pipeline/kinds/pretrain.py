"""Train a velocity field of a robot task from scratch by flow matching, with evenly spaced checkpoints."""

from dataclasses import replace

from torch import nn

from pipeline.settings.paths import TaskFiles
from pipeline.settings.schema import ScaleSettings
from pipeline.training.checkpoint import new_policy, save_policy
from pipeline.training.data import PreparedData
from pipeline.training.finetuning import Trained, Training
from pipeline.training.image_conditioning import from_scratch
from pipeline.training.job import Asked, Job
from pipeline.training.loop import evenly_spaced
from pipeline.training.problem import Problem, Workspace, trains
from pipeline.training.recipe import flow_matching
from pipeline.utils.seeding import Generators


def job(asked: Asked, settings: ScaleSettings) -> Job:
    files = TaskFiles(asked.scale, asked.task, asked.replica)
    return Job(
        f"pretrain-{asked.scale}-{files.name}",
        deps=[files.prepared, files.frames],
        outs=[files.pretrained, files.pretrain_log],
        also={"seed": settings.task(asked.task).replica(asked.replica).seed},
    )


class Pretraining(Problem):
    """Training by flow matching from random weights."""

    def __init__(self, asked: Asked, settings: ScaleSettings, here: Workspace, label: str) -> None:
        super().__init__(asked, settings, here, label)
        of_task = settings.task(asked.task).replica(asked.replica)
        self.files = TaskFiles(asked.scale, asked.task, asked.replica)
        data = PreparedData.load(self.files.prepared)
        self.policy, self.metadata = new_policy(asked.scale, asked.task, "fm", of_task, data)
        generators, recipe = Generators(of_task.seed, "pretrain"), here.settled(of_task.pretrain)
        net, batches = from_scratch(self.policy, data, self.files.frames)
        self.training = Training(flow_matching(net, recipe, generators), batches, generators, recipe)
        self.measured_after = evenly_spaced(recipe.steps, recipe.checkpoints)

    def measure(self, step: int, net: nn.Module) -> None:
        made = replace(self.metadata, train_steps=step, precision=self.training.optimization.precision)
        save_policy(self.checkpoint(step), self.policy.with_net(net), made)

    def save(self, trained: Trained) -> None:
        del trained  # it is the last checkpoint
        self.copy_checkpoints(self.files.pretrained)
        self.log.write_csv(self.files.pretrain_log, scale=self.asked.scale, task=self.asked.task)


work = trains(Pretraining)
