"""Assignment of stages to kinds of machines."""

import pytest

from pipeline.orchestration.places import GPU, HEAD, place_of
from pipeline.utils.code_deps import ROOT


def test_placement_names_existing_programs_once() -> None:
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} >= HEAD | GPU
    assert not HEAD & GPU


@pytest.mark.parametrize(
    ("command", "place"),
    [
        ("exec python -m stages.report tabulate --scale lab", "head"),
        ("exec python -m stages.train --scale lab --task pusht --method fm", "gpu"),
        ("exec python -m stages.evaluate --scale lab --task pusht --row fm-nfe1", "cpu"),
        ("exec python -m stages.evaluate --scale lab --task cifar10 --method i_cfm", "gpu"),
        ("exec python -m stages.prepare --scale lab --task pusht", "cpu"),
        ("exec python -m stages.report study_table --scale lab\nexec python -m stages.train --scale lab", "gpu"),
        ("cp a b", "cpu"),
    ],
)
def test_stage_is_placed_by_its_programs(command: str, place: str) -> None:
    assert place_of(command) == place
