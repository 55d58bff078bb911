"""Fine-tune the base model of images by maximum likelihood (ft_fm), through the solve of one NFE.

The compute is that of flow matching from the selected checkpoint to i_cfm's last one.
"""

from dataclasses import replace

from torch import nn

from pipeline.evaluation.image_models import FlowModel
from pipeline.flow.image_methods import path_of
from pipeline.kinds.images import ImageProblem
from pipeline.settings.paths import ImageFiles
from pipeline.settings.schema import ScaleSettings
from pipeline.training.finetuning import Trained, Training
from pipeline.training.image_checkpoint import load_image_model, save_image_model
from pipeline.training.image_judge import make_judge, summary
from pipeline.training.job import Asked, Job
from pipeline.training.journal import TrainingLog
from pipeline.training.loop import evenly_spaced
from pipeline.training.problem import Workspace, trains
from pipeline.training.recipe import maximum_likelihood, within_budget
from pipeline.utils.seeding import Generators


def job(asked: Asked, settings: ScaleSettings) -> Job:
    del settings
    files, nfe = ImageFiles(asked.scale, asked.task), asked.nfe
    return Job(
        f"finetune_images-{asked.scale}-{asked.task}-{nfe}",
        deps=[files.base, files.images, files.extractor],
        outs=[files.model("ft_fm", nfe), files.history("ft_fm", nfe)],
        shipped=f"finetune_images-nfe{nfe}",
    )


class ImageFineTuning(ImageProblem):
    """Continued training of the base model, with readings of its images' distance."""

    def __init__(self, asked: Asked, settings: ScaleSettings, here: Workspace, label: str) -> None:
        super().__init__(asked, settings, here, label)
        of_task = self.settings
        model, self.base = load_image_model(self.files.base)
        assert isinstance(model, FlowModel)
        self.model, nfe = model, asked.nfe
        pretrain, recipe = of_task.pretrain, here.settled(of_task.finetune[f"nfe{nfe}"])
        self.compute = pretrain.steps - self.base.train_steps
        optimization = within_budget(recipe, nfe, self.compute, pretrain, len(self.images))
        generators, path = Generators(of_task.seed, "finetune images", nfe), path_of("i_cfm", pretrain)
        objective, pairs = maximum_likelihood(
            model.field, recipe, nfe, path, generators, self.windows(recipe), keep=here.resume / "pairs.pt"
        )
        batches = pairs if recipe.solves_ahead else self.batches
        self.training = Training(objective, batches, generators, optimization)
        self.judge = make_judge(self.files, of_task) if here.main else None
        self.history = TrainingLog(here.resume / "history.jsonl", here.run)
        self.measured_after = [0, *evenly_spaced(optimization.steps, recipe.history_points)]

    def measure(self, step: int, net: nn.Module) -> None:
        if step in self.history.rows:
            return
        spent = self.compute / self.training.optimization.steps  # of each step, with its share of the solves made ahead
        self.history({"updates": self.base.updates + spent * step, **self.distance(step, net)}, step)

    def distance(self, step: int, net: nn.Module) -> dict[str, float]:
        """Return the distance of the images of ``net``, with its interval."""
        assert self.judge
        rule, solver = self.settings.select, f"euler-{self.asked.nfe}"
        trained, self.model.field = self.model.field, net
        keep = self.here.resume / f"distances-{step}"
        found = self.judge.measure(self.model, solver, rule.n_samples, rule.seeds(), keep, f"step {step}")
        self.show(self.model, solver, step)
        self.model.field = trained
        return summary(found)

    def save(self, trained: Trained) -> None:
        nfe, settings = self.asked.nfe, self.settings
        self.model.field = trained.net
        metadata = replace(
            self.base,
            method="ft_fm",
            nfe=nfe,
            train_steps=self.base.train_steps + trained.steps,
            updates=self.base.updates + self.compute,
            precision=self.training.optimization.precision,
        )
        save_image_model(self.files.model("ft_fm", nfe), self.model, metadata)
        history = self.files.history("ft_fm", nfe)
        self.history.write_csv(
            history,
            scale=self.asked.scale,
            dataset=settings.data.dataset,
            method="ft_fm",
            nfe=nfe,
            train_seed=settings.seed,
            features=settings.fid.features,
            n_samples=settings.select.n_samples,
            sampling_seeds=settings.select.sampling_seeds,
            selected=False,
        )
        self.here.run.artifact(history)


work = trains(ImageFineTuning)
