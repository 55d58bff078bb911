"""Stage ``study_cell``: one row of the coupling study, trained from one base model and rolled out on the test seeds.

A row is ``fm`` (the base model itself), ``fm_continued``, an outsider (``regression``, ``mip``) or a coupling. All but
``fm`` are trained for the same compute, and of a row's checkpoints the best on validation seeds is what is reported.
"""

import argparse
from dataclasses import replace

from pipeline.evaluation.protocol import evaluation_of, run_episodes, test_seeds
from pipeline.orchestration.stage import program, stage
from pipeline.reporting.rows import write_metrics, write_row_episodes
from pipeline.settings.inputs import Inputs, read_inputs
from pipeline.settings.paths import Entry, ScaleReports, TaskFiles
from pipeline.settings.robots import ROW_NAMES
from pipeline.training.data import PreparedData
from pipeline.training.finetuning import figures_of
from pipeline.training.guard import Guard
from pipeline.training.study import choose, load_base, load_row, make_training, measure_update, train_row
from pipeline.utils.hardware import use_threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--train-seed", required=True, type=int)
    parser.add_argument("--row", required=True, choices=list(ROW_NAMES))
    parser.add_argument("--nfe", required=True, type=int, nargs="+", help="couplings are trained for one alone")
    arguments = parser.parse_args()
    scale, task, row, seed = arguments.scale, arguments.task, arguments.row, arguments.train_seed
    inputs = study_inputs(scale, task, row, arguments.nfe)
    of_task = inputs.settings.task(task)
    settings, study = of_task.replica(seed), of_task.studied()
    files = TaskFiles(scale, task)
    base_file = files.study_base(seed)
    base = load_base(base_file, scale, task, seed)
    use_threads(settings.threads)

    reports = ScaleReports(scale).study_seed(seed)
    entries = [Entry(settings.select.evaluation, row, nfe) for nfe in arguments.nfe]
    outs = [path for entry in entries for path in (entry.episodes(reports), entry.metrics(reports))]
    label = f"study-{scale}-{task}-{row}-{'_'.join(str(nfe) for nfe in arguments.nfe)}-seed{seed}"
    also = {"train_seed": seed, "row": row, "nfe": arguments.nfe}
    with stage(inputs, label, also=also, deps=[base_file, files.prepared], outs=outs) as here:
        data = PreparedData.load(files.prepared)
        guard = Guard(base[0], data, seed)
        models, timing = [base_file], {}
        if row != "fm":
            training = make_training(
                row, arguments.nfe, base, data, here.settled(settings), study, here.resume / "pairs.pt"
            )
            here.run.tag("precision", training.optimization.precision)
            models = train_row(training, row, base, study.checkpoints, here.resume, here.run, label)
            timing = {"update_ms": round(measure_update(training), 1)}
        for entry in entries:
            model = base_file
            if row != "fm":
                chosen = choose(models, row, entry.nfe, settings, study.seeds, here.resume)
                model = models[0].with_name(chosen.selected)
                timing["validation_max_score"] = max(candidate.value for candidate in chosen.candidates)
            policy, record = load_row(model, row)
            reading = guard.read(policy, entry.nfe)
            figures = figures_of(reading)
            record = replace(record, nfe=entry.nfe, method=row, figures=figures)
            results = run_episodes(
                policy,
                evaluation_of(settings.load_task(), task, entry.evaluation, settings.evaluation),
                entry.nfe,
                test_seeds(settings.evaluation.n_seeds),
                settings.evaluation,
                journal=here.resume / f"{entry.stem}-{model.stem}.jsonl",
            )
            path = entry.episodes(reports)
            write_row_episodes(path, {entry.evaluation: results}, model, record, entry.method, entry.nfe)
            scores = write_metrics(entry.metrics(reports), results, record, entry, 1, **timing)
            here.run.log({f"nfe{entry.nfe}_{name}": value for name, value in scores.items()})


def study_inputs(scale: str, task: str, row: str, evaluations: list[int]) -> Inputs:
    """The inputs of a row: of flow matching, of a baseline, or of a coupling at one number of evaluations."""
    if row in ("fm", "fm_continued"):
        return read_inputs("flow_matching", scale, task)
    if row in ("regression", "mip"):
        return read_inputs("baseline", scale, task)
    return read_inputs("coupling", scale, task, evaluations[0])


if __name__ == "__main__":
    program(main)
