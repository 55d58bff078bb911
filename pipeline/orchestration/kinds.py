"""Run a stage by the code of its kind: one program serves several kinds, and imports that of one alone."""

import importlib

from pipeline.orchestration.stage import in_processes, stage
from pipeline.settings.inputs import read_inputs
from pipeline.settings.kinds import KINDS
from pipeline.training.job import Asked
from pipeline.utils.hardware import use_threads
from pipeline.utils.shipped import Shipment


def run_kind(kind: str, asked: Asked, *names: object) -> None:
    """Run the stage of ``kind`` that is ``asked`` for, or take what is shipped in its place.

    Args:
        names: what tells its inputs apart, beside scale and task.

    Raises:
        UserError: there are no such inputs, an input file is missing, or what its code raises.
    """
    inputs = read_inputs(kind, asked.scale, asked.task, *names)
    block = inputs.params[asked.task]
    in_processes(block.get("processes", 1), inputs.program)
    (module,) = map(importlib.import_module, KINDS[kind].modules)
    use_threads(block["threads"])
    job = module.job(asked, inputs.settings)
    shipment = Shipment(asked.scale, asked.task, job.shipped, inputs.params, job.deps, job.outs)
    with stage(inputs, job.label, also=job.also, deps=job.deps, outs=job.outs) as here:
        if job.shipped and shipment.unpack(here.main):
            return
        module.work(asked, inputs.settings, here, job.label)
        if job.shipped and here.main:
            shipment.note()
