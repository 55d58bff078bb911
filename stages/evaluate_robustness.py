"""Stage ``evaluate_robustness``: roll a model out under each disturbance, on the first test seeds."""

import argparse
from typing import get_args

import torch

from pipeline.evaluation import offline
from pipeline.evaluation.protocol import find_env_factory, run_acting, test_seeds
from pipeline.evaluation.robustness import Disturbed, perturbation
from pipeline.orchestration.stage import program, stage
from pipeline.reporting.offline_rows import write_offline_episodes
from pipeline.reporting.rows import mean_scores, write_all_episodes
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import Entry, ScaleReports, TaskFiles, split_row
from pipeline.settings.schema import Disturbance
from pipeline.training.acting import load_to_evaluate
from pipeline.training.data import PreparedData
from pipeline.utils.hardware import use_threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--row", required=True, help="method and NFE in one word, such as resft_fm-nfe16")
    arguments = parser.parse_args()
    inputs = read_inputs("evaluate_robustness", arguments.scale, arguments.task)
    settings = inputs.settings.task(arguments.task)
    method, nfe = split_row(arguments.row)
    use_threads(settings.threads)
    files, task = TaskFiles(arguments.scale, arguments.task), settings.load_task()
    evaluation = arguments.task if task.offline else settings.select.evaluation
    entry = Entry(evaluation, method, nfe, within=arguments.task)
    model = files.model(method, nfe)
    out = ScaleReports(arguments.scale).disturbed_episodes(entry)
    with stage(
        inputs,
        f"evaluate_robustness-{arguments.scale}-{entry.stem}",
        deps=[model, files.prepared, files.frames],
        outs=[out],
    ) as here:
        policy, metadata = load_to_evaluate(model, arguments.scale, arguments.task, settings)
        policy.to("cuda" if torch.cuda.is_available() else "cpu")
        given = settings.robustness.strengths
        strengths = {disturbance: given[disturbance] for disturbance in get_args(Disturbance) if disturbance in given}
        if task.offline:
            data = PreparedData.load(files.prepared)
            windows = data.reported_windows(files.prepared)
            scores = {}
            for disturbance, strength in strengths.items():
                disturbed = Disturbed(policy, nfe, disturbance, strength)
                answers = offline.draw(disturbed, windows, settings.evaluation.policy_batch_size)
                scores[perturbation(disturbance, strength)] = offline.score(
                    answers, windows, data.action_normalizer, settings.data.n_action_steps
                )
            write_offline_episodes(out, scores, model, metadata, entry, offline.SAMPLES)
            return
        results = {}
        for disturbance, strength in strengths.items():
            results[entry.evaluation, perturbation(disturbance, strength)] = episodes = run_acting(
                Disturbed(policy, nfe, disturbance, strength),
                find_env_factory(task, arguments.task, entry.evaluation, settings.evaluation),
                test_seeds(settings.robustness.seeds),
                settings.evaluation,
                journal=here.resume / f"{disturbance}.jsonl",
            )
            here.run.log({f"{disturbance}_{name}": value for name, value in mean_scores(episodes).items()})
        write_all_episodes(out, results, model, metadata, method, nfe)
        here.run.table(out, out.stem)


if __name__ == "__main__":
    program(main)
