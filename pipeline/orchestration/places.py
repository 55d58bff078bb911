"""Choose the machine for each stage of a run on several machines, by its program."""

from typing import Literal

from pipeline.orchestration.plan import programs_of
from pipeline.settings.images import SHAPES

Place = Literal["head", "cpu", "gpu"]
"""``head``: the machine that started the run; ``cpu``: any worker; ``gpu``: one with a GPU if there is any."""

HEAD = frozenset({"resolve", "report", "fetch"})
"""Short programs that read all results, and ``fetch``: only the head needs recordings, a mirror and the network."""

GPU = frozenset({"train", "study"})
"""Programs that run many times faster on a GPU; so does ``evaluate`` of images."""


def place_of(command: str) -> Place:
    """Return the place for a stage with this ``command``."""
    programs = {program.module.rpartition(".")[2]: program.arguments for program in programs_of(command)}
    if programs and programs.keys() <= HEAD:
        return "head"
    of_images = not SHAPES.keys().isdisjoint(programs.get("evaluate", ()))
    return "gpu" if of_images or programs.keys() & GPU else "cpu"
