"""Train the noise-predicting net of the rows ``ddpm`` and ``ddim``."""

from dataclasses import replace

from pipeline.flow.action_diffusion import make_scheduler
from pipeline.settings.paths import TaskFiles
from pipeline.settings.schema import ScaleSettings
from pipeline.training.checkpoint import new_policy, save_policy
from pipeline.training.data import PreparedData
from pipeline.training.diffusion import NoisePrediction
from pipeline.training.finetuning import Trained, Training
from pipeline.training.image_conditioning import from_scratch
from pipeline.training.job import Asked, Job
from pipeline.training.problem import Problem, Workspace, trains
from pipeline.utils.seeding import Generators


def job(asked: Asked, settings: ScaleSettings) -> Job:
    del settings
    files = TaskFiles(asked.scale, asked.task)
    return Job(
        f"pretrain_diffusion-{asked.scale}-{files.name}",
        deps=[files.prepared, files.frames],
        outs=[files.model("ddpm", 0), files.diffusion_log],
    )


class Diffusion(Problem):
    """Training of noise prediction from random weights."""

    def __init__(self, asked: Asked, settings: ScaleSettings, here: Workspace, label: str) -> None:
        super().__init__(asked, settings, here, label)
        of_task = settings.task(asked.task)
        self.files = TaskFiles(asked.scale, asked.task)
        data = PreparedData.load(self.files.prepared)
        self.policy, self.metadata = new_policy(asked.scale, asked.task, "ddpm", of_task, data)
        net, batches = from_scratch(self.policy, data, self.files.frames)
        generators = Generators(of_task.seed, "pretrain", "diffusion")
        objective = NoisePrediction(net, generators, make_scheduler())
        self.training = Training(objective, batches, generators, here.settled(of_task.diffusion))

    def save(self, trained: Trained) -> None:
        metadata = replace(self.metadata, train_steps=trained.steps, precision=self.training.optimization.precision)
        save_policy(self.files.model("ddpm", 0), self.policy.with_net(trained.net), metadata)
        self.log.write_csv(self.files.diffusion_log, scale=self.asked.scale, task=self.asked.task)


work = trains(Diffusion)
