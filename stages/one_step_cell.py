"""Stage ``one_step_cell``: a method of the one-step study with one base model, trained and rolled out on test seeds.

A method is trained once for all its numbers of evaluations, ``ft_fm`` once for each. Of its checkpoints the best on
validation seeds is reported, at the temperature that is best there.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from pipeline.evaluation.protocol import evaluation_of, run_episodes, test_seeds
from pipeline.orchestration.stage import program, stage
from pipeline.reporting.rows import write_metrics, write_row_episodes
from pipeline.settings.inputs import read_inputs
from pipeline.settings.one_step import BASELINES, CELLS, METHODS
from pipeline.settings.paths import Entry, ScaleReports, TaskFiles
from pipeline.training.data import PreparedData
from pipeline.training.finetuning import figures_of
from pipeline.training.guard import Guard
from pipeline.training.one_step import choose, load_method, make_training, passes_of
from pipeline.training.study import load_base, train_row
from pipeline.utils.hardware import use_threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--train-seed", required=True, type=int)
    parser.add_argument("--cell", required=True, choices=CELLS, help="a method, and the NFE that ft_fm is trained for")
    arguments = parser.parse_args()
    scale, task, cell, seed = arguments.scale, arguments.task, arguments.cell, arguments.train_seed
    method, _, own = cell.partition("-nfe")
    numbers = [int(own)] if own else METHODS[method].nfe
    if method in BASELINES:
        inputs = read_inputs("one_step_baseline", scale, task, method)
    else:
        inputs = read_inputs("one_step_ft_fm", scale, task, own) if own else read_inputs("one_step_flow", scale, task)
    settings = inputs.settings.task(task).replica(seed)
    files = TaskFiles(scale, task)
    base_file = files.study_base(seed)
    base = load_base(base_file, scale, task, seed)
    use_threads(settings.threads)

    folder = ScaleReports(scale).one_step_cell(task, seed, cell)
    label = f"one_step-{scale}-{task}-{cell}-seed{seed}"
    also = {"train_seed": seed, "cell": cell}
    with stage(inputs, label, also=also, deps=[base_file, files.prepared], outs=[folder]) as here:
        data = PreparedData.load(files.prepared)
        guard = Guard(base[0], data, seed)
        models: list[Path] = [base_file]
        spent = passes_of(base[1].train_steps, settings.pretrain)
        if method != "fm":
            training = make_training(method, numbers[0], base, data, here.settled(settings), here.resume / "pairs.pt")
            here.run.tag("precision", training.optimization.precision)
            models = train_row(training, method, base, settings.one_step.checkpoints, here.resume, here.run, label)
            spent = passes_of(base[1].train_steps + settings.one_step.budget, settings.pretrain)
        for nfe in numbers:
            entry = Entry(settings.select.evaluation, method, nfe)
            best = choose(models, method, nfe, settings, here.resume)[0]
            policy, record = load_method(best.model, method, nfe, settings.one_step)
            policy.temperature = best.temperature
            figures = figures_of(guard.read(policy, nfe))
            record = replace(record, nfe=nfe, method=method, temperature=best.temperature, figures=figures)
            results = run_episodes(
                policy,
                evaluation_of(settings.load_task(), task, entry.evaluation, settings.evaluation),
                nfe,
                test_seeds(settings.evaluation.n_seeds),
                settings.evaluation,
                journal=here.resume / f"{entry.stem}-{best.model.stem}-{best.temperature:g}.jsonl",
            )
            beside = {"train_passes": spent, "validation_max_score": best.max_score, "validation_success": best.success}
            write_row_episodes(entry.episodes(folder), {entry.evaluation: results}, best.model, record, method, nfe)
            scores = write_metrics(entry.metrics(folder), results, record, entry, 1, **beside)
            here.run.log({f"nfe{nfe}_{name}": value for name, value in scores.items()})


if __name__ == "__main__":
    program(main)
