"""Run a stage that tabulates or draws results: ``python -m stages.report STAGE --scale SCALE``.

``pipeline/settings/kinds.py`` names the module of ``pipeline/reporting`` of each stage. It is imported by that name, so
that a stage depends on the code of its own report alone.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from pipeline.orchestration.stage import program, stage
from pipeline.reporting.tables import Request
from pipeline.settings.inputs import read_inputs
from pipeline.settings.kinds import KINDS, STUDY_KINDS
from pipeline.settings.paths import ScaleReports

STAGES = {name: kind for name, kind in (KINDS | STUDY_KINDS).items() if kind.program == "report"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", help="that the report is about, where it is about one")
    parser.add_argument("--others", nargs="*", default=[], help="scales whose results are in it too")
    arguments = parser.parse_args()
    name, scale, reports = arguments.stage, arguments.scale, ScaleReports(arguments.scale)
    inputs = read_inputs(name, scale, *[arguments.task or scale] * len(STAGES[name].over))
    label = "-".join(filter(None, (name, scale, arguments.task)))
    also = {"others": arguments.others} if arguments.others else {}

    @contextmanager
    def begin(deps: Sequence[Path], outs: Sequence[Path]) -> Iterator[None]:
        beside = [path.with_suffix(".svg") for path in outs if path.suffix == ".png"]
        with stage(inputs, label, also=also, deps=deps, outs=[*outs, *beside]) as here:
            yield
            for path in outs:
                if path.suffix == ".csv":
                    here.run.table(path, "-".join(path.relative_to(reports.folder).with_suffix("").parts))
                here.run.artifact(path)

    (module,) = map(import_module, STAGES[name].modules)
    module.report(Request(inputs.settings, reports, arguments.task or "", arguments.others, begin))


if __name__ == "__main__":
    program(main)
