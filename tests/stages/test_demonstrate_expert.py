"""``stages.demonstrate`` with a tiny expert."""

import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.tasks import archive
from pipeline.tasks.formats.lerobot import open_lerobot
from pipeline.tasks.formats.vectors import read_demonstrations
from tests.project import ROOT, Project, copy_code

TINY = '''
"""An expert that solves episodes with an even seed, and logs all seeds that it is given."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.utils.atomic import replacing
from pipeline.experts.episode import Expert, ExpertEpisode


def demonstrate(seed: int) -> ExpertEpisode:
    if str(seed) == os.environ.get("STOP_AT"):
        raise KeyboardInterrupt
    with Path("asked").open("a") as file:
        file.write(f"{seed}\\n")
    numbers = np.random.default_rng(seed).random((seed % 5 + 1, 7))
    return ExpertEpisode(
        seed, numbers[:, :4], numbers[:, 4:], success=seed % 2 == 0, score=0.5, states=numbers, extras={"of": str(seed)}
    )


def write(path: Path, episodes: Sequence[ExpertEpisode]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            seed=[episode.seed for episode in episodes],
            numbers=np.concatenate([np.hstack([episode.observations, episode.actions]) for episode in episodes]),
            states=np.concatenate([episode.states for episode in episodes]),
            of=[episode.extras["of"] for episode in episodes],
        )


EXPERT = Expert(demonstrate, write)
'''
TASK = """
from pipeline.tasks.api import Task

TASK = Task("Tiny", {}, {}, 3, expert="pipeline.experts.tiny:EXPERT")
"""
BLOCK = """
  reaching:
    task: custom
    data: {dataset: made}
    select: {evaluation: reaching}
    custom:
      environment:
        {id: of_a_name/reacher, module: still, seed_argument: null, success: null, returns: [-9, -5], max_steps: 5}
      expert: {policy: "still:Still"}
      datasets:
        metaworld_expert: {path: none}
        made: {path: made.zip, observation: {observation.state: 39}, action: {action: 4}}
"""
STILL = """
import gymnasium


def reacher(env_name, **options):  # an argument of all tasks of scale metaworld
    return gymnasium.make("Reacher-v5", **options).unwrapped


gymnasium.register("of_a_name/reacher", reacher)


class Still:
    def get_action(self, observation):
        return [0.0, 0.0]
"""
SEEDS = range(300_000, 300_012)
COMMAND = ("stages.demonstrate", "--task", "tiny", "--seeds", "300000:300012", "--most", "4")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Return the project's code with a tiny task and its expert added."""
    root = tmp_path / "project"
    copy_code(root)
    (root / "pipeline" / "experts" / "tiny.py").write_text(TINY, encoding="utf-8")
    (root / "pipeline" / "tasks" / "tiny.py").write_text(TASK, encoding="utf-8")
    return Project(root)


def asked(project: Project) -> list[int]:
    """Return the seeds given to the expert since the last call, in order."""
    file = project.root / "asked"
    seeds = [int(line) for line in file.read_text(encoding="utf-8").split()]
    file.unlink()
    return seeds


def test_first_solved_episodes_are_kept_and_counted(project: Project) -> None:
    result = project.check(*COMMAND, "--out", "made/tiny.npz", "--workers", "0")
    assert result.stdout == (
        "6 of 12 episodes solved: 0.500, 95 % interval 0.254 to 0.746; 4 kept, 11 steps → made/tiny.npz\n"
    )
    with np.load(project.root / "made" / "tiny.npz") as made:
        kept = [300_000, 300_002, 300_004, 300_006]
        assert made["seed"].tolist() == kept
        numbers = np.concatenate([np.random.default_rng(seed).random((seed % 5 + 1, 7)) for seed in kept])
        np.testing.assert_array_equal(made["numbers"], numbers)
        np.testing.assert_array_equal(made["states"], numbers)
        assert made["of"].tolist() == [str(seed) for seed in kept]
    assert re.fullmatch(
        r"[0-9a-f]{64}  tiny\.npz\n", (project.root / "made" / "tiny.npz.sha256").read_text(encoding="utf-8")
    )


def test_expert_is_taken_from_a_params_block(project: Project) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (project.root / "params.yaml").write_text(text + BLOCK, encoding="utf-8")  # its last block is scale metaworld
    (project.root / "still.py").write_text(STILL, encoding="utf-8")
    seeds = ("--seeds", "300000:300003", "--most", "2", "--out", "made.zip", "--workers", "0")
    result = project.check("stages.demonstrate", "--scale", "metaworld", "--task", "reaching", *seeds)
    assert result.stdout.startswith("3 of 3 episodes solved") and result.stdout.endswith(
        "2 kept, 10 steps → made.zip\n"
    )
    archive.unpack(project.root / "made.zip", project.root / "made")
    made = read_demonstrations(open_lerobot(project.root / "made"), ["observation.state"], "action")
    assert made.state.shape == (10, 10) and made.action.shape == (10, 2) and list(made.episode_ends) == [5, 10]


def test_result_does_not_depend_on_workers(project: Project) -> None:
    for workers in ("0", "3"):
        project.check(*COMMAND, "--out", f"{workers}/tiny.npz", "--workers", workers)
        assert sorted(asked(project)) == list(SEEDS)
    assert [*project.files("0").values()] == [*project.files("3").values()]


def test_interrupted_run_resumes_without_repeating_episodes(project: Project) -> None:
    uninterrupted = project.check(*COMMAND, "--out", "whole/tiny.npz", "--workers", "0")
    asked(project)

    command = (*COMMAND, "--out", "tiny.npz", "--workers", "0")
    assert project.run(*command, STOP_AT="300005").returncode == 130
    assert asked(project) == [*range(300_000, 300_005)]
    assert not (project.root / "tiny.npz").exists()

    resumed = project.check(*command)
    assert asked(project) == [*range(300_005, 300_012)]
    assert resumed.stdout == uninterrupted.stdout.replace("whole/", "")
    assert (project.root / "tiny.npz").read_bytes() == (project.root / "whole" / "tiny.npz").read_bytes()


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (
            ("--seeds", "100000:100010"),
            r"--seeds: given '100000:100010', allowed: FIRST:END such as .*, from 300000 on",
        ),
        (("--seeds", "300010:300010"), r"--seeds: given '300010:300010', allowed: FIRST:END .*"),
        (("--seeds", "300000"), r"--seeds: given '300000', allowed: FIRST:END .*"),
        (("--most", "0"), r"--most: allowed: 1 or more"),
        (("--task", "juggling"), r"--task: given 'juggling', allowed: can, kitchen, .*, tiny, transport"),
        (("--seeds", "300001:300002"), r"tiny: the expert solved none of 1 episodes"),
    ],
)
def test_invalid_arguments_are_refused(project: Project, changed: tuple[str, str], line: str) -> None:
    result = project.run(*COMMAND, "--out", "tiny.npz", "--workers", "0", *changed)
    assert result.returncode == 2
    assert re.match(f"error: {line}", result.stderr.splitlines()[-1])
    assert not (project.root / "tiny.npz").exists()
