"""Where the stages of a run on several machines go: the one table of what each program wants."""

from typing import Literal

from pipeline.orchestration.plan import programs_of

Place = Literal["head", "cpu", "gpu"]
"""The machine that the run was started on, or any worker; ``gpu``: one with a GPU if there is any."""

HEAD = frozenset({"resolve", "report", "fetch"})
"""Programs of seconds that read all results, and the one that fetches: only the head needs the user's recordings, a
mirror and the network."""

GPU = frozenset({"train", "evaluate_fid", "study"})
"""Programs that a GPU makes many times faster."""


def place_of(command: str) -> Place:
    """Where a stage of this ``command`` is to run."""
    programs = {program.module.rpartition(".")[2] for program in programs_of(command)}
    if programs and programs <= HEAD:
        return "head"
    return "gpu" if programs & GPU else "cpu"
