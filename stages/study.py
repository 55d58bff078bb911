"""Run a part of a study of one task, such as a cell: train a method from one base model and roll it out."""

import argparse
import json
from pathlib import Path

from pipeline.orchestration.kinds import run_kind
from pipeline.orchestration.stage import program, stage
from pipeline.reporting.rows import write_metrics, write_row_episodes
from pipeline.settings import schema
from pipeline.settings.inputs import Inputs, inputs_of, read_inputs
from pipeline.settings.one_step import BASELINES, CELLS, METHODS
from pipeline.settings.paths import Entry, ScaleReports, TaskFiles, fingerprint
from pipeline.settings.study import ROW_NAMES
from pipeline.training.cells import Cell, load_base, outcomes
from pipeline.training.checkpoint import load_policy, save_policy
from pipeline.training.data import PreparedData
from pipeline.training.job import Asked
from pipeline.training.one_step import OneStepCell, milliseconds_a_plan, policy_like
from pipeline.training.one_step_tries import READ, append, changed, tried
from pipeline.training.study import CouplingCell
from pipeline.utils.atomic import write_text
from pipeline.utils.errors import UserError
from pipeline.utils.hardware import use_threads
from pipeline.utils.provenance import hardware

PROGRAM = "stages/study.py"


def coupling(arguments: argparse.Namespace) -> None:
    """Train a row of the coupling study from one base model and roll it out on the test seeds.

    A row is fm (the base model itself), fm_continued, an outsider (regression, mip) or a coupling. All but fm are
    trained at equal compute. The checkpoint of a row that is best on validation seeds is reported.
    """
    scale, task, seed, row = arguments.scale, arguments.task, arguments.train_seed, arguments.row
    numbers, files = arguments.nfe, TaskFiles(scale, task)
    inputs = _coupling_inputs(scale, task, row, numbers)
    settings, base_file = inputs.settings.task(task).replica(seed), files.study_base(seed)
    cell = CouplingCell(row, numbers, base_file, load_base(base_file, scale, task, seed), settings)
    reports = ScaleReports(scale).study_seed(seed)
    entries = [Entry(settings.select.evaluation, row, nfe) for nfe in numbers]
    outs = [path for entry in entries for path in (entry.episodes(reports), entry.metrics(reports))]
    label = f"study-{scale}-{task}-{row}-{'_'.join(str(nfe) for nfe in numbers)}-seed{seed}"
    _run(cell, inputs, files, label, {"train_seed": seed, "row": row, "nfe": numbers}, outs, reports)


def one_step(arguments: argparse.Namespace) -> None:
    """Train a method of the one-step study from one base model and roll it out on the test seeds.

    A method is trained once for all its numbers of evaluations, ft_fm once for each. The checkpoint and temperature
    that are best on validation seeds are reported.
    """
    scale, task, seed, name = arguments.scale, arguments.task, arguments.train_seed, arguments.cell
    method, _, own = name.partition("-nfe")
    kind, *which = (
        ("one_step_baseline", method) if method in BASELINES else ("one_step_ft_fm", own) if own else ("one_step_flow",)
    )
    inputs, files = read_inputs(kind, scale, task, *which), TaskFiles(scale, task)
    settings, base_file = inputs.settings.task(task).replica(seed), files.study_base(seed)
    numbers, base = [int(own)] if own else METHODS[method].nfe, load_base(base_file, scale, task, seed)
    cell = OneStepCell(method, numbers, base_file, base, settings)
    folder = ScaleReports(scale).one_step_cell(task, seed, name)
    label = f"one_step-{scale}-{task}-{name}-seed{seed}"
    _run(cell, inputs, files, label, {"train_seed": seed, "cell": name}, [folder], folder)


def _coupling_inputs(scale: str, task: str, row: str, numbers: list[int]) -> Inputs:
    """Read the inputs of a row: flow matching, a baseline, or a coupling at one number of evaluations."""
    if row in ("fm", "fm_continued"):
        return read_inputs("flow_matching", scale, task)
    if row in ("regression", "mip"):
        return read_inputs("baseline", scale, task)
    return read_inputs("coupling", scale, task, numbers[0])


def _run(
    cell: Cell,
    inputs: Inputs,
    files: TaskFiles,
    label: str,
    also: dict[str, object],
    outs: list[Path],
    reports: Path,
) -> None:
    """Run the stage of a cell and write its results to the folder ``reports``."""

    use_threads(cell.settings.threads)
    with stage(inputs, label, also=also, deps=[cell.base_file, files.prepared], outs=outs) as here:
        for made in outcomes(cell, files.prepared, here, label):
            entry = Entry(cell.settings.select.evaluation, cell.method, made.nfe)
            results = {entry.evaluation: made.results}
            write_row_episodes(entry.episodes(reports), results, made.model, made.metadata, entry.method, made.nfe)
            scores = write_metrics(entry.metrics(reports), made.results, made.metadata, entry, 1, **made.beside)
            here.run.log({f"nfe{made.nfe}_{name}": value for name, value in scores.items()})


def times(arguments: argparse.Namespace) -> None:
    """Measure the time of a plan by each method of the one-step study, one after another.

    It depends on the method and its number of evaluations, not on weights. Cells run side by side and do not measure
    it. Run this part on an idle machine.
    """
    scale, task, seed = arguments.scale, arguments.task, arguments.train_seed
    inputs = read_inputs("one_step_times", scale, task)
    settings, files = inputs.settings.task(task), TaskFiles(scale, task)
    base_file, out = files.study_base(seed), ScaleReports(scale).one_step_times(task)
    base = load_base(base_file, scale, task, seed)
    use_threads(settings.threads)
    with stage(inputs, f"one_step_times-{scale}-{task}", deps=[base_file, files.prepared], outs=[out]) as here:
        condition = PreparedData.load(files.prepared).held_out_condition
        taken = {
            f"{method}-nfe{nfe}": round(
                milliseconds_a_plan(policy_like(method, nfe, base, settings.one_step), condition, nfe), 3
            )
            for method, about in METHODS.items()
            for nfe in about.nfe
        }
        here.run.log({f"ms_{name}": value for name, value in taken.items()})
        write_text(out, json.dumps({"machine": hardware(), "ms_per_plan": taken}, indent=2) + "\n")


def precision(arguments: argparse.Namespace) -> None:
    """Roll models out with one setting changed at a time, to find where precision is lost."""
    run_kind("study_precision", Asked(arguments.scale, arguments.task, models=arguments.models))


def try_settings(arguments: argparse.Namespace) -> None:
    """Try other settings for a method of the one-step study, on validation seeds only, and record the scores.

    This is not part of a DAG; the settings in params.yaml were chosen by it. For example

        python -m stages.study try --scale lab --task pusht --method ft_fm --nfe 1 --set lr=1e-4 budget=2000

    starts from the base model of params.yaml's seed. --train-seed names another seed that has a base model, --base
    another file. Each checkpoint at each temperature is a line in reports/<scale>/coupling_study_tried.csv.
    """
    scale, task, method, nfe = arguments.scale, arguments.task, arguments.method, arguments.nfe
    if nfe not in METHODS[method].nfe:
        raise UserError(f"--nfe: given {nfe}, allowed for {method}: {', '.join(map(str, METHODS[method].nfe))}")
    of_task = schema.load().block(scale).task(task)
    settings = changed(of_task.replica(arguments.train_seed), arguments.set, method, nfe)
    files, seed = TaskFiles(scale, task), settings.seed
    base_file = arguments.base or files.study_base(seed)
    base = load_policy(base_file) if arguments.base else load_base(base_file, scale, task, seed)
    use_threads(settings.threads)
    out = ScaleReports(scale).folder / "coupling_study_tried.csv"
    inputs = inputs_of(PROGRAM, settings.model_dump(include=READ) | {"base": fingerprint(base_file)})
    label = f"try-{scale}-{task}-{method}-{nfe}-seed{seed}"
    with stage(inputs, label, deps=[base_file, files.prepared], outs=[out]) as here:
        cell = OneStepCell(method, [nfe], base_file, base, settings)
        found = tried(cell, files.prepared, here, label, " ".join(arguments.set))
        rows = [{"scale": scale, **row} for row in found]
        append(out, rows)
        for row in rows:
            print(", ".join(f"{name} {value}" for name, value in row.items() if value != ""))


def base(arguments: argparse.Namespace) -> None:
    """Ship a selected checkpoint as the base model of the studies with one training seed.

    This is not part of a DAG. Training gives other last bits on another kind of CPU, and every cell of a study needs
    the same start, so base models are files of the repository, with weights in float16. To make another one:

        python -m stages.train --scale lab --task pusht --method fm --replica 1
        python -m stages.select --scale lab --task pusht --replica 1
        python -m stages.study base --scale lab --task pusht --train-seed 1
    """
    scale, task, seed = arguments.scale, arguments.task, arguments.train_seed
    model = arguments.model or TaskFiles(scale, task, seed).base
    out = TaskFiles(scale, task).study_base(seed)
    with stage(inputs_of(PROGRAM, {}), f"study_base-{scale}-{task}-seed{seed}", deps=[model], outs=[out]):
        policy, metadata = load_base(model, scale, task, seed)
        save_policy(out, policy, metadata, half=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(required=True, metavar="PART")
    shown = argparse.RawDescriptionHelpFormatter
    options: dict[str, argparse.ArgumentParser] = {}
    for name, part in (
        ("coupling", coupling),
        ("one_step", one_step),
        ("times", times),
        ("precision", precision),
        ("try", try_settings),
        ("base", base),
    ):
        text = f"{part.__doc__}".replace("\n    ", "\n")
        of_part = parts.add_parser(name, help=text.partition("\n")[0], description=text, formatter_class=shown)
        of_part.add_argument("--scale", required=True)
        of_part.add_argument("--task", required=True)
        of_part.set_defaults(part=part)
        options[name] = of_part
        if name == "precision":
            continue
        seed_help = "of the base model" + ("; without it, seed in params.yaml" if name == "try" else "")
        of_part.add_argument("--train-seed", type=int, required=name != "try", help=seed_help)
    options["coupling"].add_argument("--row", required=True, choices=list(ROW_NAMES))
    options["coupling"].add_argument(
        "--nfe", required=True, type=int, nargs="+", help="couplings are trained for one alone"
    )
    options["one_step"].add_argument(
        "--cell", required=True, choices=CELLS, help="a method, and the NFE that ft_fm is trained for"
    )
    options["precision"].add_argument("--models", required=True, type=Path, nargs="+", help="files of fm and ft_fm")
    options["try"].add_argument("--method", required=True, choices=list(METHODS))
    options["try"].add_argument("--nfe", required=True, type=int)
    options["try"].add_argument("--base", type=Path, help="a model file to start from, in place of the base model")
    options["try"].add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of one_step or finetune.nfe1"
    )
    options["base"].add_argument("--model", type=Path, help="in place of the selected checkpoint of that replica")
    arguments = parser.parse_args()
    arguments.part(arguments)


if __name__ == "__main__":
    program(main)
