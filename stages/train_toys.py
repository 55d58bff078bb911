"""Stage ``train_toys``: train the small models of Figure 1."""

import argparse

from tqdm import tqdm

from pipeline.orchestration.stage import program, stage
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import toys
from pipeline.training.toys import load_toy, save_toy, toy_names, train_toy
from pipeline.utils.hardware import use_threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    scale = parser.parse_args().scale
    inputs = read_inputs("train_toys", scale)
    settings = inputs.settings.toys
    use_threads(settings.threads)
    names = toy_names(settings)
    with stage(
        inputs,
        f"train_toys-{scale}",
        deps=[],
        outs=[toys(scale)],
    ) as here:
        settled = here.settled(settings)
        trainings = (settled.fm, settled.mle, settled.follow, settled.settle)
        here.run.tag("precision", ", ".join(sorted({training.precision for training in trainings})))
        finished = {name: here.resume / f"{name}.safetensors" for name in names}
        waiting = [name for name in names if not finished[name].exists()]  # others were trained before an interruption
        for name in tqdm(waiting, desc="toys", initial=len(names) - len(waiting), total=len(names), unit="model"):

            def log(metrics: dict[str, float], step: int, prefix: str = name) -> None:
                here.run.log({f"{prefix}_{key}": value for key, value in metrics.items()}, step)

            save_toy(finished[name], train_toy(name, settled, here.resume / f"{name}.pt", log))
        for name in names:
            save_toy(toys(scale) / finished[name].name, load_toy(finished[name], name, settings))


if __name__ == "__main__":
    program(main)
