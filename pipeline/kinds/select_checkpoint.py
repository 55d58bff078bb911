"""Choose the base model of a robot task among pretraining's checkpoints, by the rule in params.yaml."""

import json
from pathlib import Path

from pipeline.evaluation.seeds import validation_seeds
from pipeline.settings.paths import TaskFiles
from pipeline.settings.schema import ScaleSettings, TaskSettings
from pipeline.training.checkpoint import load_policy, save_policy
from pipeline.training.data import PreparedData
from pipeline.training.image_conditioning import as_seen
from pipeline.training.job import Asked, Job
from pipeline.training.problem import Workspace
from pipeline.training.selection import Candidate, held_out_loss, mean_scores, roll_out, select
from pipeline.utils.atomic import write_text


def job(asked: Asked, settings: ScaleSettings) -> Job:
    files = TaskFiles(asked.scale, asked.task, asked.replica)
    return Job(
        f"select_checkpoint-{asked.scale}-{files.name}",
        deps=[files.pretrained, files.prepared, files.frames],
        outs=[files.base, files.selection],
        also={"seed": settings.task(asked.task).replica(asked.replica).seed},
    )


def work(asked: Asked, settings: ScaleSettings, here: Workspace, _label: str) -> None:
    files = TaskFiles(asked.scale, asked.task, asked.replica)
    of_task = settings.task(asked.task).replica(asked.replica)
    rule = of_task.select
    if rule.rule == "validation_loss":
        data = PreparedData.load(files.prepared)
        sentence = "lowest flow-matching loss on held-out episodes"

        def judge(path: Path) -> Candidate:
            return by_loss(path, data, files, of_task, here)
    else:
        sentence = (
            f"highest mean max score of {rule.seeds} validation episodes (seeds from {validation_seeds(1)[0]}) "
            f"of {rule.evaluation} at NFE {rule.nfe}"
        )

        def judge(path: Path) -> Candidate:
            return by_rollouts(path, files, of_task, here)

    selection = select(sorted(files.pretrained.glob("step-*.safetensors")), judge, sentence)
    policy, metadata = load_policy(files.pretrained / selection.selected)
    save_policy(files.base, policy, metadata)
    write_text(files.selection, json.dumps(selection.report(), indent=2) + "\n")
    here.run.artifact(files.selection)


def by_loss(path: Path, data: PreparedData, files: TaskFiles, settings: TaskSettings, here: Workspace) -> Candidate:
    """Measure a checkpoint's loss on held-out episodes."""
    policy, metadata = load_policy(path)
    seen = as_seen(policy, data, files.frames, held_out_only=True)
    loss = held_out_loss(policy, seen, settings.pretrain, settings.seed)
    here.run.log({"held_out_loss": loss}, metadata.train_steps)
    return Candidate(path.name, metadata.train_steps, -loss, {"held_out_loss": loss})


def by_rollouts(path: Path, files: TaskFiles, settings: TaskSettings, here: Workspace) -> Candidate:
    """Measure a checkpoint's mean max score on validation seeds."""
    policy, metadata = load_policy(path)
    rule = settings.select
    journal = here.resume / f"{path.stem}.jsonl"
    figures = mean_scores(roll_out(policy, files.task, settings, rule.nfe, validation_seeds(rule.seeds), journal))
    here.run.log(figures, metadata.train_steps)
    return Candidate(path.name, metadata.train_steps, figures["max_score"], figures)
