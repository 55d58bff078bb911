"""Rollouts: an episode depends on (seed, repeat) only, at any batch size and order and after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest

from pipeline.evaluation.rollouts import POLICY_BATCH_SIZE, Episode, EpisodeResult, rollout, write_episodes
from pipeline.evaluation.video import best_median_worst, record_videos
from pipeline.tasks.loader import load_task
from pipeline.tasks.pusht import PushTOptions
from pipeline.tasks.pusht.env import PushT, initial_state
from pipeline.tasks.vector import ChunkedWorkers, EnvFactory, Transition
from pipeline.utils.errors import UserError


class PushThrough:
    """Moves from the agent through the block with much noise; contacts make episodes sensitive to rounding."""

    n_obs_steps, horizon, n_action_steps, noise_shape = 2, 16, 8, (16, 2)

    def __init__(self) -> None:
        self.calls: list[tuple[np.ndarray, np.ndarray]] = []

    def act(self, observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
        self.calls.append((observations, noise))
        agent, block = observations[:, -1, None, :2], observations[:, -1, None, 2:4]
        along = np.linspace(0, 1.5, self.horizon, dtype=np.float32)[:, None]
        return agent + along * (block - agent) + 30 * noise


class Tally:
    """Observes how many steps were taken; solved once ``length`` of them were."""

    def reset(self, *, length: int) -> np.ndarray:
        self.taken, self.length = 0, length
        return np.zeros(1)

    def step(self, action: np.ndarray) -> Transition:
        self.taken += 1
        solved = self.taken == self.length
        score = 1.0 if solved else float(abs(np.sin(self.taken * action[0])))
        return Transition(np.array([float(self.taken)]), score, solved, solved)


class Listener(PushThrough):
    n_obs_steps, horizon, n_action_steps, noise_shape = 3, 5, 4, (5, 1)

    def act(self, observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
        self.calls.append((observations, noise))
        return noise


TALLY = EnvFactory(Tally, lambda seed: {"length": 1 + seed % 7}, max_steps=7)
EVALUATION = load_task("pusht").envs["a"].factory(PushTOptions(), 44)
EPISODES = [Episode(seed, repeat) for seed in range(100000, 100006) for repeat in range(2)]


def push(episodes: list[Episode] = EPISODES, **settings: Any) -> list[EpisodeResult]:
    return rollout(PushThrough(), EVALUATION, episodes, progress=False, **settings)


def csv_of(results: list[EpisodeResult], folder: Path, **more: int) -> str:
    path = folder / "episodes.csv"
    described = {"scale": "starter", "method": "fm", "nfe": 16, "checkpoint": "fm-nfe16"}
    write_episodes(path, {("pusht_a", "none"): results}, train_seed=0, **described, **more)  # type: ignore[arg-type]
    return path.read_text(encoding="utf-8")


def test_results_do_not_depend_on_workers_batch_or_order(tmp_path: Path) -> None:
    expected = push(workers=0, num_envs=1)
    assert len({result.max_score for result in expected}) > 3, "episodes differ"
    table = csv_of(expected, tmp_path)
    others = [push(workers=1, num_envs=1), push(workers=2, num_envs=8), push(EPISODES[::-1], num_envs=5)]
    others += [
        push(workers=2, num_envs=9, policy_batch_size=2),
        push(num_envs=12, policy_batch_size=5),
    ]  # halves take turns
    for results in others:
        assert results == expected, "equal to the last bit, which the table's six digits would hide"
        assert csv_of(results, tmp_path) == table
    assert push(EPISODES[3:5]) == expected[3:5]


def test_policy_receives_full_blocks_recent_observations_and_fresh_noise() -> None:
    policy = Listener()
    results = rollout(
        policy, TALLY, [Episode(6, 0), Episode(4, 1), Episode(6, 1)], num_envs=3, policy_batch_size=2, progress=False
    )
    assert [(result.steps, result.success, result.final_score) for result in results] == [
        (5, True, 1.0),
        (7, True, 1.0),
        (7, True, 1.0),
    ]
    assert [call[0].shape for call in policy.calls] == [(2, 3, 1)] * 4  # three episodes are two blocks of two
    assert all(array.dtype == np.float32 for call in policy.calls for array in call)
    (first, first_noise), (padded, padded_noise), (later, later_noise), _ = policy.calls
    np.testing.assert_array_equal(first[0, :, 0], [0, 0, 0])  # left-padded with the first observation
    np.testing.assert_array_equal(later[0, :, 0], [2, 3, 4])  # after four executed actions
    assert not padded[1].any() and not padded_noise[1].any()
    generator = np.random.default_rng([6, 0])
    for noise in (first_noise, later_noise):
        np.testing.assert_array_equal(noise[0], generator.standard_normal((5, 1), dtype=np.float32))


@pytest.mark.parametrize(("block", "halves"), [(4, False), (2, True)])
def test_policy_plans_for_one_half_while_the_other_steps(
    block: int, halves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class RecordingPolicy(Listener):
        def act(self, observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
            events.append("act")
            return super().act(observations, noise)

    def record_calls(name: str) -> None:
        original = getattr(ChunkedWorkers, name)

        def recording(self: ChunkedWorkers, *arguments: Any) -> Any:
            events.append(name)
            return original(self, *arguments)

        monkeypatch.setattr(ChunkedWorkers, name, recording)

    events: list[str] = []
    record_calls("begin_chunks")
    record_calls("finish_chunks")
    rollout(
        RecordingPolicy(),
        TALLY,
        [Episode(6, repeat) for repeat in range(4)],
        num_envs=4,
        policy_batch_size=block,
        progress=False,
    )
    assert (("begin_chunks", "act") in pairwise(events)) == halves
    assert events.count("act") == (4 if halves else 2)  # two plans an episode, in blocks


def test_finished_episodes_free_their_slots() -> None:
    policy = Listener()
    episodes = [Episode(seed, 0) for seed in range(20)]
    results = rollout(policy, TALLY, episodes, num_envs=3, policy_batch_size=4, progress=False)
    assert [result.steps for result in results] == [1 + seed % 7 for seed in range(20)]
    busy = [int(call[1].any(axis=(1, 2)).sum()) for call in policy.calls]
    assert busy[:-3] == [3] * (len(busy) - 3)  # all slots are taken until the last episodes run out


def test_scores_are_the_final_and_the_maximum() -> None:
    (result,) = push([EPISODES[0]])
    env = PushT(max_steps=44)
    observation, policy, scores = env.reset(initial_state("a", 100000)), PushThrough(), []
    history, generator, done = [observation] * 2, np.random.default_rng([100000, 0]), False
    while not done:
        noise = generator.standard_normal((1, 16, 2), dtype=np.float32)
        for action in policy.act(np.float32(history[-2:])[None], noise)[0, :8]:
            observation, score, success, done = env.step(action)
            history.append(observation)
            scores.append(score)
            if done:
                break
    assert result == EpisodeResult(100000, 0, scores[-1], max(scores), success, len(scores))


def test_resumes_from_a_journal_with_a_torn_line(tmp_path: Path) -> None:
    expected, journal = push(), tmp_path / "resume" / "journal.jsonl"
    push(EPISODES[2:7], journal=journal)
    kept = journal.read_bytes()
    journal.write_bytes(kept + kept.splitlines()[0][:40])
    policy = PushThrough()
    env_factory = EVALUATION
    assert rollout(policy, env_factory, EPISODES, num_envs=1, journal=journal, progress=False) == expected
    assert len(policy.calls) == 7 * 6, "five of the twelve episodes were not run again"
    assert [json.loads(line)["steps"] for line in journal.read_text(encoding="utf-8").splitlines()] == [44] * 12
    assert rollout(Broken(), env_factory, EPISODES, journal=journal) == expected  # nothing is left to run


def test_damaged_journal_is_refused(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    for damage in ("\0\0\n", '{"seed": 1}\n', "[]\n"):
        journal.write_text(damage, encoding="utf-8")
        with pytest.raises(UserError, match=r"journal\.jsonl: .*delete it"):
            push(journal=journal)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for orphans in /proc")
def test_killed_rollout_resumes_to_the_same_table_and_leaves_no_orphan(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    program = f"""
import sys; sys.path[:0] = {sys.path!r}
from {__name__} import EPISODES, EVALUATION, Killed, Path, rollout
journal = Path({str(journal)!r})
rollout(Killed(), EVALUATION, EPISODES, num_envs=3, workers=2, journal=journal)
"""
    killed = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, encoding="utf-8")
    workers = killed.stdout.split()
    assert killed.returncode == -signal.SIGKILL and len(workers) == 2
    assert len(journal.read_bytes().splitlines()) == 3
    deadline = time.monotonic() + 60
    while any(is_alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived the killed rollout"
        time.sleep(0.01)
    assert csv_of(push(journal=journal), tmp_path) == csv_of(push(), tmp_path)


class Killed(PushThrough):
    """Prints the pids of its workers and dies by SIGKILL in the second batch of three episodes."""

    def act(self, observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
        if len(self.calls) == 9:
            print(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text(encoding="utf-8"), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().act(observations, noise)


def is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Broken(PushThrough):
    def act(self, observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
        actions = super().act(observations, noise)
        actions[observations[:, -1, 0] == 235] = np.nan  # where episode 100000 starts
        return actions


def test_non_finite_actions_name_the_episode() -> None:
    with pytest.raises(FloatingPointError, match="seed=100000, repeat=1"):
        rollout(Broken(), load_task("pusht").envs["a"].factory(PushTOptions()), EPISODES[::-1], progress=False)


def test_duplicate_episodes_and_too_long_chunks_are_refused() -> None:
    with pytest.raises(ValueError, match="duplicates"):
        push([*EPISODES, EPISODES[0]])
    policy = PushThrough()
    policy.n_action_steps = 17
    with pytest.raises(ValueError, match="chunk is 17"):
        rollout(policy, TALLY, EPISODES)


def test_episode_table(tmp_path: Path) -> None:
    results = [EpisodeResult(2, 0, 0.25, 0.5, False, 300), EpisodeResult(1, 1, 1.0, 1.0, True, 17)]
    assert csv_of(results, tmp_path) == (
        "scale,evaluation,method,nfe,train_seed,checkpoint,perturbation,seed,repeat,final,max,success,steps\n"
        "starter,pusht_a,fm,16,0,fm-nfe16,none,1,1,1.000000,1.000000,1,17\n"
        "starter,pusht_a,fm,16,0,fm-nfe16,none,2,0,0.250000,0.500000,0,300\n"
    )
    parts = csv_of([EpisodeResult(1, 0, 0.5, 0.75, False, 300)], tmp_path, subtasks=4).splitlines()
    assert parts[0].endswith(",steps,p1,p2,p3,p4") and parts[1].endswith(",300,1,1,1,0")
    assert [path.name for path in tmp_path.iterdir()] == ["episodes.csv"]


def test_best_median_worst() -> None:
    results = [EpisodeResult(seed, 0, 0.0, score, score == 1, 9 - seed) for seed, score in enumerate([0.2, 1, 0.7, 1])]
    assert [result.seed for result in best_median_worst(results)] == [3, 2, 0]
    assert best_median_worst(results[:1]) == (results[0],) * 3


def test_recorded_videos_replay_their_episodes(tmp_path: Path) -> None:
    episodes = [EPISODES[5], EPISODES[0], EPISODES[5]]
    paths = [tmp_path / name for name in ("best.gif", "median.gif", "worst.gif")]
    policy = PushThrough()
    env_factory = EVALUATION
    replayed = record_videos(policy, env_factory, list(zip(episodes, paths, strict=True)))
    assert replayed == push([EPISODES[0], EPISODES[5]])
    assert policy.calls[0][0].shape[0] == POLICY_BATCH_SIZE
    record_videos(PushThrough(), env_factory, [(EPISODES[0], tmp_path / "alone.gif")])
    frames = iio.imread(paths[0])
    assert frames.shape == (1 + 44 // 2, 256, 256, 3)
    assert (frames[0] != frames[-1]).any()
    first, second, third, alone = (path.read_bytes() for path in [*paths, tmp_path / "alone.gif"])
    assert first == third != second == alone
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.gif", "best.gif", "median.gif", "worst.gif"]
