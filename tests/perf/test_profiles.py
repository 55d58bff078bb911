"""Profiles: attribution of samples, stages of dvc.lock, and sampling of a program."""

import sys
from pathlib import Path

import pytest

from pipeline.perf import profiles
from pipeline.utils.code_deps import ROOT
from pipeline.utils.errors import UserError

PY_SPY = Path(sys.executable).parent / "py-spy"

LOCK = """\
schema: '2.0'
stages:
  draw@starter:
    cmd: exec python -m stages.report draw --scale starter
    deps:
    - path: here.txt
  select@starter-pusht:
    cmd: exec python -m stages.select --scale starter --task pusht
    deps:
    - path: absent.txt
  draw@lab:
    cmd: exec python -m stages.report draw --scale lab
    deps:
    - path: here.txt
"""


def test_a_sample_belongs_to_the_deepest_function_of_the_project() -> None:
    loop, rollouts = f"{ROOT}/pipeline/training/loop.py", f"{ROOT}/pipeline/evaluation/rollouts.py"
    torch, site = f"{ROOT}/.venv/lib/torch/autograd.py", "/usr/lib/python3.11/threading.py"
    counts = profiles.shares(
        [
            f"<module> ({ROOT}/stages/pretrain.py:9);train ({loop}:140);backward ({torch}:3) 7",
            f"<module> ({ROOT}/stages/pretrain.py:9);train ({loop}:143) 2",
            f"<module> ({ROOT}/stages/pretrain.py:9);_find_and_load (<frozen importlib>:1176);x ({loop}:1) 4",
            f"run ({site}:3);_step ({rollouts}:7) 1",
            f"run ({site}:3) 1",
        ]
    )
    assert counts == {
        "pipeline.training.loop.train › backward": 7,
        "imports": 4,
        "pipeline.training.loop.train": 2,
        "pipeline.evaluation.rollouts._step": 1,
        "starting, ending, libraries' own threads": 1,
    }


def test_stages_are_those_of_the_scale_with_their_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dvc.lock").write_text(LOCK, encoding="utf-8")
    Path("here.txt").touch()
    stages = list(profiles.commands("starter"))
    assert stages == [("draw@starter", ["python", "-m", "stages.report", "draw", "--scale", "starter"])]
    assert "select@starter-pusht: left out, absent.txt is absent" in capsys.readouterr().out
    with pytest.raises(UserError, match="given lab select: no stage"):
        list(profiles.commands("lab", ["select"]))


@pytest.mark.skipif(not PY_SPY.exists(), reason="py-spy is not installed")
def test_a_program_is_sampled_and_stopped_when_its_time_is_over() -> None:
    busy = "def busy():\n  while True: sum(range(10_000))\nbusy()"
    wall_s, stacks = profiles.sample(["python", "-c", busy], 2)
    assert wall_s > 0
    assert sum("busy" in stack for stack in stacks) > 0
    with pytest.raises(UserError, match="failed"):
        profiles.sample(["python", "-c", "raise SystemExit('no')"], 10)
