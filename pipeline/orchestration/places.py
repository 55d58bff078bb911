"""Where the stages of a run on several machines go: the one table of what each program wants."""

from typing import Literal

from pipeline.orchestration.plan import programs_of

Place = Literal["head", "cpu", "gpu"]
"""The machine that the run was started on, or any worker; ``gpu``: one with a GPU if there is any."""

HEAD = frozenset(
    {
        *("resolve", "tabulate", "tabulate_images", "tabulate_offline", "tabulate_settings", "study_table"),
        *("one_step_table", "report_stability", "draw", "draw_images", "draw_toys", "fetch", "fetch_images"),
    }
)
"""Programs of seconds, which read what all others made, and those that fetch: a mirror or the network need to be there
alone."""

GPU = frozenset(
    {
        *("pretrain", "pretrain_diffusion", "pretrain_images", "train_extractor", "finetune", "finetune_images"),
        *("finetune_residual", "finetune_image_residual", "evaluate_fid", "study_cell", "one_step_cell"),
    }
)
"""Programs that a GPU makes many times faster."""


def place_of(command: str) -> Place:
    """Where a stage of this ``command`` is to run."""
    programs = {program.module.rpartition(".")[2] for program in programs_of(command)}
    if programs and programs <= HEAD:
        return "head"
    return "gpu" if programs & GPU else "cpu"
