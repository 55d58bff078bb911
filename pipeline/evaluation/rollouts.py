"""Run episodes of a policy in simulation: receding-horizon control, with one batched policy call for all live episodes.

An episode depends only on (seed, repeat). Its noise comes from a generator keyed by them, drawn again at every re-plan.
All batches have one fixed size, because a network's output for a row changes in its last bits with the size of the
batch, and contacts amplify such bits into other outcomes. So the number of workers, the number of live episodes, their
order and an interruption change nothing.
"""

import csv
import io
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn, Protocol

import numpy as np
from tqdm import tqdm

from pipeline.tasks.vector import ChunkedWorkers, ChunkResult, EnvFactory
from pipeline.utils.atomic import make_folder, write_text
from pipeline.utils.errors import UserError

POLICY_BATCH_SIZE = 64
NUM_ENVS = 500
UNPERTURBED = "none"

EPISODE_COLUMNS = (
    *("scale", "evaluation", "method", "nfe", "train_seed", "checkpoint", "perturbation"),
    *("seed", "repeat", "final", "max", "success", "steps"),
)


class Policy(Protocol):
    """The interface of a policy that rollouts use. The policy itself encodes raw states and scales actions."""

    n_obs_steps: int  # To, observations seen, up to the current one
    horizon: int  # Tp, actions predicted, from the current step on
    n_action_steps: int  # actions executed before the next prediction, at most Tp
    noise_shape: tuple[int, ...]  # noise of one plan: (Tp, A), or larger if later steps draw noise too

    def act(self, observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Map raw states (B, To, D) and standard normal noise (B, *noise_shape), both float32, to actions (B, Tp, A).

        Actions are in environment units. Row i must depend on row i of the arguments only.
        """


@dataclass(frozen=True, order=True)
class Episode:
    """One episode to be run: the seed gives the initial state, (seed, repeat) the noise."""

    seed: int
    repeat: int


@dataclass(frozen=True)
class EpisodeResult:
    """Result of an episode."""

    seed: int
    repeat: int
    final_score: float  # at the last step
    max_score: float  # best of all steps
    success: bool
    steps: int  # control steps taken

    @property
    def episode(self) -> Episode:
        """The episode of this result."""
        return Episode(self.seed, self.repeat)


def rollout(
    policy: Policy,
    env_factory: EnvFactory,
    episodes: Sequence[Episode],
    *,
    num_envs: int = NUM_ENVS,
    policy_batch_size: int = POLICY_BATCH_SIZE,
    workers: int = 0,
    journal: Path | None = None,
    progress: bool = True,
) -> list[EpisodeResult]:
    """Run ``episodes`` and return their results sorted by (seed, repeat).

    Args:
        policy: predicts actions; called in this process.
        env_factory: the environment and its initial states.
        episodes: which to run, without duplicates.
        num_envs: number of live episodes; no influence on the results.
        policy_batch_size: rows of every call of the policy; missing rows are zeros.
        workers: simulation processes, 0 for none; no influence on the results.
        journal: file to which finished episodes are added; an interrupted rollout resumes from it. It belongs to one
            policy and protocol: choose its path accordingly, and delete it once the results are written.
        progress: show control steps done, rate and remaining time on stderr.

    Raises:
        UserError: the journal is damaged.
        FloatingPointError: the policy returned actions that are not finite.
    """
    if len(set(episodes)) != len(episodes):
        raise ValueError("episodes holds duplicates")
    if not 1 <= policy.n_action_steps <= policy.horizon:
        raise ValueError(f"chunk is {policy.n_action_steps}, must be from 1 to the prediction horizon {policy.horizon}")
    with _Journal.open(journal) as kept:
        results = {episode: kept.results[episode] for episode in episodes if episode in kept.results}
        waiting = deque(episode for episode in episodes if episode not in results)
        slots = min(num_envs, len(waiting))
        most_steps = len(waiting) * env_factory.max_steps
        with (
            ChunkedWorkers(env_factory.make_env, min(workers, slots)) as simulations,
            tqdm(total=most_steps, desc="rollouts", unit="step", unit_scale=True, disable=not progress) as bar,
        ):
            running = _Running(policy, env_factory, simulations, waiting, slots)
            for finished in running.play(policy_batch_size, bar):
                kept.append(finished)
                results |= {result.episode: result for result in finished}
    return [results[episode] for episode in sorted(results)]


class _Running:
    """The state of a rollout: episodes in the slots of the simulations.

    Attributes:
        waiting: episodes that have not begun. live: running episodes, by slot.
        stepping: slots whose simulations are running.
    """

    def __init__(
        self,
        policy: Policy,
        env_factory: EnvFactory,
        simulations: ChunkedWorkers,
        waiting: deque[Episode],
        slots: int,
    ) -> None:
        self.policy = policy
        self.env_factory = env_factory
        self.simulations = simulations
        self.waiting = waiting
        self.slots = slots
        self.live: dict[int, _LiveEpisode] = {}
        self.stepping: set[int] = set()

    def play(self, policy_batch_size: int, bar: "tqdm[NoReturn]") -> Iterator[list[EpisodeResult]]:
        """Run all episodes; yield the results of those that have just ended.

        While the simulations step one half of the episodes, the policy plans for the other half. If all episodes fit
        into one call of the policy they are not split, because two halves would take the policy twice the time.
        """
        half = -(-self.slots // (2 * policy_batch_size)) * policy_batch_size
        self._begin_in(range(self.slots))
        while self.live:
            idle = [slot for slot in self.live if slot not in self.stepping]
            apart = len(self.live) > policy_batch_size
            if self.stepping and not (apart and idle):
                yield self._ended(bar)
                continue
            planned = idle[:half] if apart else idle
            plans = _plan(self.policy, [self.live[slot] for slot in planned], policy_batch_size)
            if self.stepping:
                yield self._ended(bar)
            self.simulations.begin_chunks(dict(zip(planned, plans, strict=True)))
            self.stepping = set(planned)

    def _ended(self, bar: "tqdm[NoReturn]") -> list[EpisodeResult]:
        """Collect the simulated chunks, return the episodes that ended, and start waiting ones in their slots."""
        chunks = self.simulations.finish_chunks()
        self.stepping = set()
        for slot, chunk in chunks.items():
            self.live[slot].absorb(chunk)
        free = [slot for slot in chunks if self.live[slot].done]
        finished = [self.live.pop(slot).result() for slot in free]
        self._begin_in(free)
        bar.total = (bar.total or 0) - sum(self.env_factory.max_steps - result.steps for result in finished)
        bar.update(sum(len(chunk.scores) for chunk in chunks.values()))
        return finished

    def _begin_in(self, free: Sequence[int]) -> None:
        starting = {slot: self.waiting.popleft() for slot in free[: len(self.waiting)]}
        first = self.simulations.reset(
            {slot: self.env_factory.reset_arguments(episode.seed) for slot, episode in starting.items()}
        )
        self.live |= {slot: _LiveEpisode(episode, first[slot], self.policy) for slot, episode in starting.items()}


class _LiveEpisode:
    """A running episode: its noise generator, the observation history of the policy, and the scores so far."""

    def __init__(self, episode: Episode, first_observation: np.ndarray, policy: Policy) -> None:
        self.episode = episode
        self.success = self.done = False
        self._scores: list[float] = []
        horizon = policy.n_obs_steps
        self._history = deque([first_observation] * horizon, maxlen=horizon)
        self._noise_shape = policy.noise_shape
        self._generator = np.random.default_rng([episode.seed, episode.repeat])

    def observations(self) -> np.ndarray:
        return np.stack(self._history).astype(np.float32)

    def noise(self) -> np.ndarray:
        return self._generator.standard_normal(self._noise_shape, dtype=np.float32)

    def absorb(self, chunk: ChunkResult) -> None:
        self._history.extend(chunk.observations)
        self._scores.extend(chunk.scores.tolist())
        self.success, self.done = chunk.success, chunk.done

    def result(self) -> EpisodeResult:
        seed, repeat = self.episode.seed, self.episode.repeat
        return EpisodeResult(seed, repeat, self._scores[-1], max(self._scores), self.success, len(self._scores))


def _plan(policy: Policy, live: Sequence[_LiveEpisode], size: int) -> np.ndarray:
    """Plan the next chunk of actions of every live episode: (len(live), chunk, A)."""
    observations = np.stack([episode.observations() for episode in live])
    noise = np.stack([episode.noise() for episode in live])
    starts = range(0, len(live), size)
    plans = [act_padded(policy, observations[i : i + size], noise[i : i + size], size) for i in starts]
    actions = np.concatenate(plans)[:, : policy.n_action_steps]
    diverged = ~np.isfinite(actions).all(axis=(1, 2))
    if diverged.any():
        raise FloatingPointError(
            f"the policy returned actions that are not finite in {live[diverged.argmax()].episode}"
        )
    return actions


def act_padded(policy: Policy, observations: np.ndarray, noise: np.ndarray, size: int) -> np.ndarray:
    """Call ``Policy.act`` on at most ``size`` rows, padded with zeros to exactly ``size``."""
    rows = len(observations)
    return policy.act(_padded(observations, size), _padded(noise, size))[:rows]


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    return np.pad(rows, ((0, size - len(rows)), *[(0, 0)] * (rows.ndim - 1)))


class _Journal:
    """Finished episodes as JSON lines, safe on disk after every append; without a path nothing is kept."""

    def __init__(
        self, path: Path | None, results: dict[Episode, EpisodeResult], file: io.BufferedWriter | None
    ) -> None:
        self.path = path
        self.results = results
        self._file = file

    @classmethod
    @contextmanager
    def open(cls, path: Path | None) -> Iterator["_Journal"]:
        if path is None:
            yield cls(None, {}, None)
            return
        make_folder(path.parent)
        with path.open("ab") as file:
            whole = path.read_bytes()
            whole = whole[: whole.rfind(b"\n") + 1]
            file.truncate(len(whole))  # a kill may leave a torn last line
            yield cls(path, cls._parse(path, whole), file)

    @staticmethod
    def _parse(path: Path, whole: bytes) -> dict[Episode, EpisodeResult]:
        try:
            results = [EpisodeResult(**json.loads(line)) for line in whole.splitlines()]
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: is no journal of finished episodes ({error}); delete it to start over") from error
        return {result.episode: result for result in results}

    def append(self, results: Sequence[EpisodeResult]) -> None:
        if self._file is None or not results:
            return
        self._file.write("".join(json.dumps(asdict(result)) + "\n" for result in results).encode())
        self._file.flush()
        os.fsync(self._file.fileno())


def write_episodes(
    path: Path,
    results: Mapping[tuple[str, str], Sequence[EpisodeResult]],
    *,
    scale: str,
    method: str,
    nfe: int,
    train_seed: int,
    checkpoint: str,
    subtasks: int = 0,
) -> None:
    """Write the episode table as CSV, atomically; rows of one evaluation are sorted by (seed, repeat).

    Args:
        results: by evaluation and perturbation (``UNPERTURBED``: none).
        subtasks: number of the task's parts, see ``episode_columns``.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(episode_columns(subtasks))
    for (evaluation, perturbation), episodes in results.items():
        same = (scale, evaluation, method, nfe, train_seed, checkpoint, perturbation)
        for result in sorted(episodes, key=lambda result: result.episode):
            scores = (f"{result.final_score:.6f}", f"{result.max_score:.6f}")
            done = [int(result.max_score * subtasks + 0.5 >= k) for k in range(1, subtasks + 1)]
            table.writerow((*same, result.seed, result.repeat, *scores, int(result.success), result.steps, *done))
    write_text(path, text.getvalue())


def episode_columns(subtasks: int = 0) -> tuple[str, ...]:
    """List the columns of the episode table; p<k> is 1 if at least k of the task's ``subtasks`` were done."""
    return (*EPISODE_COLUMNS, *(f"p{k}" for k in range(1, subtasks + 1)))
