"""Stage ``select_checkpoint``: choose the base model among pretraining's checkpoints, by the rule in params.yaml."""

import argparse
import json
from pathlib import Path

import numpy as np

from pipeline.evaluation.protocol import evaluation_of, run_episodes, validation_seeds
from pipeline.orchestration.stage import program, stage
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import TaskFiles
from pipeline.training.checkpoint import load_policy, save_policy
from pipeline.training.data import PreparedData
from pipeline.training.selection import Candidate, held_out_loss, select
from pipeline.training.sight import as_seen
from pipeline.utils.atomic import write_text
from pipeline.utils.hardware import use_threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--replica", type=int, help="of the models trained with this seed, beside that in params.yaml")
    arguments = parser.parse_args()
    files = TaskFiles(arguments.scale, arguments.task, arguments.replica)
    inputs = read_inputs("select_checkpoint", arguments.scale, arguments.task)
    settings = inputs.settings.task(arguments.task).replica(arguments.replica)
    use_threads(settings.threads)
    rule = settings.select

    with stage(
        inputs,
        f"select_checkpoint-{arguments.scale}-{files.name}",
        also={"seed": settings.seed},
        deps=[files.pretrained, files.prepared, files.frames],
        outs=[files.base, files.selection],
    ) as here:

        def by_loss(path: Path) -> Candidate:
            policy, record = load_policy(path)
            seen = as_seen(policy, data, files.frames, held_out_only=True)
            loss = held_out_loss(policy, seen, settings.pretrain, settings.seed)
            here.run.log({"held_out_loss": loss}, record.train_steps)
            return Candidate(path.name, record.train_steps, -loss, {"held_out_loss": loss})

        def by_rollouts(path: Path) -> Candidate:
            policy, record = load_policy(path)
            results = run_episodes(
                policy,
                evaluation_of(settings.load_task(), arguments.task, rule.evaluation, settings.evaluation),
                rule.nfe,
                validation_seeds(rule.seeds),
                settings.evaluation,
                journal=here.resume / f"{path.stem}.jsonl",
            )
            figures = {
                "max_score": float(np.mean([result.max_score for result in results])),
                "success": float(np.mean([result.success for result in results])),
            }
            here.run.log(figures, record.train_steps)
            return Candidate(path.name, record.train_steps, figures["max_score"], figures)

        if rule.rule == "validation_loss":
            data = PreparedData.load(files.prepared)
            sentence = "lowest flow-matching loss on held-out episodes"
            judge = by_loss
        else:
            sentence = (
                f"highest mean max score of {rule.seeds} validation episodes (seeds from {validation_seeds(1)[0]}) "
                f"of {rule.evaluation} at NFE {rule.nfe}"
            )
            judge = by_rollouts
        selection = select(sorted(files.pretrained.glob("step-*.safetensors")), judge, sentence)
        policy, record = load_policy(files.pretrained / selection.selected)
        save_policy(files.base, policy, record)
        write_text(files.selection, json.dumps(selection.report(), indent=2) + "\n")
        here.run.artifact(files.selection)


if __name__ == "__main__":
    program(main)
