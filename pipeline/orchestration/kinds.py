"""Run a stage with the code of its kind, which alone is imported."""

import importlib

from pipeline.orchestration.stage import in_processes, stage
from pipeline.settings.inputs import read_inputs
from pipeline.settings.kinds import KINDS, STUDY_KINDS
from pipeline.training.job import Asked
from pipeline.utils.hardware import use_threads
from pipeline.utils.shipped import Shipment


def run_kind(kind: str, asked: Asked, *names: object) -> None:
    """Run the stage of ``kind`` for ``asked``, or unpack its shipped results.

    Args:
        names: further parts of its input file's name, after the task.

    Raises:
        UserError: its inputs or a file that it reads are missing, or its code raises one.
    """
    about = (KINDS | STUDY_KINDS)[kind]
    inputs = read_inputs(kind, asked.scale, *([asked.task] if about.over else []), *names)
    block = inputs.params[asked.task]
    in_processes(block.get("processes", 1), inputs.program)
    module = importlib.import_module(about.modules[0])
    use_threads(block["threads"])
    job = module.job(asked, inputs.settings)
    shipment = Shipment(asked.scale, asked.task, job.shipped, inputs.params, job.deps, job.outs)
    with stage(inputs, job.label, also=job.also, deps=job.deps, outs=job.outs) as here:
        if job.shipped and shipment.unpack(here.main):
            return
        module.work(asked, inputs.settings, here, job.label)
        if job.shipped and here.main:
            shipment.note()
