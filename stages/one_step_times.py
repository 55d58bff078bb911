"""Stage ``one_step_times``: how long a plan takes by each method of the one-step study, one after another.

Apart from its cells, which run side by side: the time of a plan depends on the method and its number of evaluations,
not on weights. It is to be run on a machine that does nothing else.
"""

import argparse
import json

from pipeline.orchestration.stage import program, stage
from pipeline.settings.inputs import read_inputs
from pipeline.settings.one_step import METHODS
from pipeline.settings.paths import ScaleReports, TaskFiles
from pipeline.training.data import PreparedData
from pipeline.training.one_step import milliseconds_a_plan, policy_like
from pipeline.training.study import load_base
from pipeline.utils.atomic import write_text
from pipeline.utils.hardware import use_threads
from pipeline.utils.provenance import hardware


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--train-seed", required=True, type=int, help="of a base model, of whose net the others are")
    arguments = parser.parse_args()
    scale, task, seed = arguments.scale, arguments.task, arguments.train_seed
    inputs = read_inputs("one_step_times", scale, task)
    settings, files = inputs.settings.task(task), TaskFiles(scale, task)
    base_file, out = files.study_base(seed), ScaleReports(scale).one_step_times(task)
    base = load_base(base_file, scale, task, seed)
    use_threads(settings.threads)
    with stage(inputs, f"one_step_times-{scale}-{task}", deps=[base_file, files.prepared], outs=[out]) as here:
        condition = PreparedData.load(files.prepared).held_out_condition
        times = {
            f"{method}-nfe{nfe}": round(
                milliseconds_a_plan(policy_like(method, nfe, base, settings.one_step), condition, nfe), 3
            )
            for method, about in METHODS.items()
            for nfe in about.nfe
        }
        here.run.log({f"ms_{name}": value for name, value in times.items()})
        write_text(out, json.dumps({"machine": hardware(), "ms_per_plan": times}, indent=2) + "\n")


if __name__ == "__main__":
    program(main)
