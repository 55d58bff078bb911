"""Train the classifier that gives the features of images, and measure the distance between halves of the real data.

A perfect model could reach that distance with as many images.
"""

import torch

from pipeline.evaluation.features import EmbeddedNet, save_extractor
from pipeline.evaluation.fid import halves_distances
from pipeline.settings.paths import ImageFiles
from pipeline.settings.schema import ScaleSettings
from pipeline.tasks.images import load_images
from pipeline.training.extractor import accuracy, classification
from pipeline.training.finetuning import Trained
from pipeline.training.image_judge import features_of
from pipeline.training.job import Asked, Job
from pipeline.training.journal import write_rows
from pipeline.training.problem import Problem, Workspace, trains


def job(asked: Asked, settings: ScaleSettings) -> Job:
    del settings
    files = ImageFiles(asked.scale, asked.task)
    label = f"train_extractor-{asked.scale}-{asked.task}"
    return Job(label, deps=[files.images], outs=[files.extractor, files.halves], shipped="train_extractor")


class Extractor(Problem):
    """Training of a classifier of the task's own images."""

    def __init__(self, asked: Asked, settings: ScaleSettings, here: Workspace, label: str) -> None:
        super().__init__(asked, settings, here, label)
        self.settings, self.files = settings.image_task(asked.task), ImageFiles(asked.scale, asked.task)
        data = load_images(self.files.images)
        self.images, self.labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
        of_task, recipe = self.settings, here.settled(self.settings.extractor)
        self.training, self.test = classification(
            self.images, self.labels, recipe, flip=of_task.data.flip, seed=of_task.seed
        )

    def save(self, trained: Trained) -> None:
        net = trained.net
        assert isinstance(net, EmbeddedNet)
        settings, files, here = self.settings, self.files, self.here
        share = accuracy(net.cpu().eval(), self.images[self.test], self.labels[self.test])
        save_extractor(files.extractor, net, held_out_accuracy=share)
        here.run.log({"held_out_accuracy": share})
        seeds = range(settings.fid.halves)
        distances = halves_distances(self.images.numpy(), features_of(files, settings), list(seeds))
        rows = [
            {
                "scale": self.asked.scale,
                "dataset": settings.data.dataset,
                "split_seed": seed,
                "n_samples": len(self.images) // 2,
                "features": settings.fid.features,
                "distance": float(distance),
            }
            for seed, distance in zip(seeds, distances, strict=True)
        ]
        write_rows(files.halves, rows)
        here.run.artifact(files.halves)


work = trains(Extractor)
