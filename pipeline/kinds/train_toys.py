"""Train the small models that Figure 1 is drawn from."""

from tqdm import tqdm

from pipeline.settings.paths import toys
from pipeline.settings.schema import ScaleSettings
from pipeline.training.job import Asked, Job
from pipeline.training.problem import Workspace
from pipeline.training.toys import load_toy, save_toy, toy_names, train_toy


def job(asked: Asked, settings: ScaleSettings) -> Job:
    del settings
    return Job(f"train_toys-{asked.scale}", deps=[], outs=[toys(asked.scale)])


def work(asked: Asked, all_settings: ScaleSettings, here: Workspace, _label: str) -> None:
    settings = all_settings.toys
    settled, names = here.settled(settings), toy_names(settings)
    trainings = (settled.fm, settled.mle, settled.follow, settled.settle)
    here.run.tag("precision", ", ".join(sorted({training.precision for training in trainings})))
    finished = {name: here.resume / f"{name}.safetensors" for name in names}
    waiting = [name for name in names if not finished[name].exists()]  # others were trained before an interruption
    for name in tqdm(waiting, desc="toys", initial=len(names) - len(waiting), total=len(names), unit="model"):

        def log(metrics: dict[str, float], step: int, prefix: str = name) -> None:
            here.run.log({f"{prefix}_{key}": value for key, value in metrics.items()}, step)

        save_toy(finished[name], train_toy(name, settled, here.resume / f"{name}.pt", log))
    for name in names:
        save_toy(toys(asked.scale) / finished[name].name, load_toy(finished[name], name, settings))
