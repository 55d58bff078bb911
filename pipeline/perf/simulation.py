"""Time rollouts against vectors of environments that are stepped one control step at a time.

Both sides execute the same plans of the same policy, called with the same padded batches. So their episodes are the
same and can be compared bit by bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from pipeline.evaluation.rollouts import NUM_ENVS, POLICY_BATCH_SIZE, Episode, EpisodeResult, Policy, rollout
from pipeline.evaluation.seeds import validation_seeds
from pipeline.perf.comparison import Comparison, DiffersError, Floor, Seconds, in_turns, nearly_equal, timed
from pipeline.perf.robomimic_loop import RobomimicLoop, simulator_state
from pipeline.perf.solves import CHECKPOINT, NFE
from pipeline.perf.vectors import VECTORS, MakeEnv, Stepped, Vector, make_pusht, vectorised
from pipeline.tasks.loader import load_task
from pipeline.tasks.pusht import PushTOptions
from pipeline.tasks.pusht.env import PushT, initial_state
from pipeline.tasks.robomimic.actions import policy_actions
from pipeline.tasks.robomimic.env import arm_poses
from pipeline.tasks.vector import EnvFactory
from pipeline.training.checkpoint import load_policy
from pipeline.utils.hardware import cores

CPUS = cores()


class Padded:
    """A policy always called with ``POLICY_BATCH_SIZE`` rows, so that an action does not depend on the batch.

    Attributes:
        asked: hashes of the rows of its inputs, observations and noise, to compare episodes.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.n_obs_steps = policy.n_obs_steps
        self.horizon = policy.horizon
        self.n_action_steps = policy.n_action_steps
        self.noise_shape = policy.noise_shape
        self.asked: set[int] = set()

    def act(self, observations: NDArray[np.float32], noise: NDArray[np.float32]) -> NDArray[np.float32]:
        """Call the policy block by block."""
        self.asked |= {hash((o.tobytes(), n.tobytes())) for o, n in zip(observations, noise, strict=True) if n.any()}
        parts = []
        for start in range(0, len(noise), POLICY_BATCH_SIZE):
            rows = [_padded(x[start : start + POLICY_BATCH_SIZE]) for x in (observations, noise)]
            parts.append(self.policy.act(*rows)[: len(noise) - start])
        return np.concatenate(parts)


def _padded(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.pad(rows, ((0, POLICY_BATCH_SIZE - len(rows)), *[(0, 0)] * (rows.ndim - 1)))


class Wandering:
    """A policy that ignores observations and returns ``offset`` + ``scale`` · noise; it takes almost no time."""

    n_obs_steps = 1
    horizon = 16
    n_action_steps = 8

    def __init__(self, offset: NDArray[np.float32], scale: NDArray[np.float32]) -> None:
        self.offset = offset
        self.scale = scale
        self.noise_shape: tuple[int, ...] = (self.horizon, len(offset))

    def act(self, observations: NDArray[np.float32], noise: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map noise (B, Tp, A) to actions (B, Tp, A)."""
        del observations
        return self.offset + self.scale * noise


@dataclass(frozen=True)
class Rollouts:
    """The same episodes, ``turn`` of the ``seeds`` per turn, by this project's rollouts and by a vector."""

    policy: Policy
    env_factory: EnvFactory
    make: MakeEnv
    vector: Vector
    seeds: Sequence[int]
    turn: int

    def ours(
        self, seeds: Sequence[int], policy: Policy | None = None, *, workers: int = 2, num_envs: int = NUM_ENVS
    ) -> list[EpisodeResult]:
        policy, episodes = policy or self.policy, [Episode(seed, 0) for seed in seeds]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in params.yaml: the policy plans while the simulations run
        try:
            return rollout(policy, self.env_factory, episodes, workers=workers, num_envs=num_envs, progress=False)
        finally:
            torch.set_num_threads(threads)

    def theirs(self, seeds: Sequence[int], policy: Policy | None = None) -> list[EpisodeResult]:
        padded = policy or Padded(self.policy)
        return vectorised(padded, self.make, seeds, self.env_factory.max_steps, self.vector)

    def same(self) -> str:
        """Compare one turn's episodes: all inputs of the policy, and the outcomes."""
        seen, shown = Padded(self.policy), Padded(self.policy)
        ours, theirs = self.ours(self.seeds[: self.turn], seen), self.theirs(self.seeds[: self.turn], shown)
        # a vector continues an episode that has ended, so the peer's policy sees more
        if not seen.asked <= shown.asked:
            raise DiffersError(f"{len(seen.asked - shown.asked)} of {len(seen.asked)} observations")
        outcomes = [[(e.seed, e.success, e.steps) for e in results] for results in (ours, theirs)]
        if outcomes[0] != outcomes[1]:
            raise DiffersError("success or length of episodes")
        score = max(abs(a.max_score - b.max_score) for a, b in zip(ours, theirs, strict=True))
        if score > 1e-9:
            raise DiffersError(f"scores by {score:.1e}")
        return f"all {len(seen.asked)} observations equal to the bit, scores within {score:.0e}"

    def floor(self, num_envs: int = NUM_ENVS) -> Floor:
        """Make the ``shared_floor`` of one turn, with ``num_envs`` episodes at once."""
        return shared_floor(lambda: self.ours(self.seeds[: self.turn], workers=0, num_envs=num_envs))

    def turns(self, count: int) -> list[Seconds]:
        taken = []
        for turn in range(count):
            first = turn * self.turn % len(self.seeds)
            seeds = self.seeds[first : first + self.turn]
            taken.append((timed(partial(self.ours, seeds)), timed(partial(self.theirs, seeds))))
        return taken


def pusht_comparisons(seeds: int = 500, turn: int = 100) -> Iterator[Comparison]:
    """Yield the comparisons: Push-T by lab's shipped policy, every seed once, ``turn`` seeds per turn."""
    policy = load_policy(CHECKPOINT)[0].acting(NFE)
    env_factory = load_task("pusht").envs["b"].factory(PushTOptions(reset_order="legacy"))
    for vector in VECTORS:
        work = Rollouts(policy, env_factory, make_pusht, vector, validation_seeds(seeds), turn)
        yield Comparison(
            f"{seeds}-seed Push-T rollout, {turn} seeds a turn, NFE {NFE}, lab's net",
            f"gymnasium's {vector}, gym-pusht as it is",
            0.35,
            work.same,
            work.turns,
            seeds // turn,
            warm_ups=0,
            floor=work.floor(),  # with as many episodes as usual: the policy takes time
        )


def step_comparisons(steps: int = 300) -> Iterator[Comparison]:
    """Yield the comparison of Push-T's simulation: an episode of targets near the centre, which push the block."""
    seed = validation_seeds(1)[0]
    env, reference = PushT(), make_pusht()
    targets = np.random.default_rng(0).uniform(150, 350, (steps, 2))

    def ours() -> list[NDArray[np.float64]]:
        env.reset(initial_state("b", seed), "legacy")
        return [env.step(target).observation for target in targets]

    def theirs() -> list[NDArray[np.float64]]:
        reference.reset(seed=seed)
        return [reference.step(target)[0] for target in targets]

    yield Comparison(
        f"{steps} control steps of Push-T",
        "gym-pusht as it is",
        0.35,
        lambda: nearly_equal(np.stack(ours()), np.stack(theirs()), 0.0, "observations"),
        in_turns(ours, theirs),
    )


def shared_floor(alone: Callable[[], object]) -> Floor:
    """Make a floor: the time of rollouts ``alone``, in one process, over the number of CPUs.

    No schedule on all CPUs takes less.
    """
    return Floor(f"the same episodes in one process, its time over {CPUS} CPUs", lambda: timed(alone) / CPUS)


WANDERED = {"kitchen": (280, 0.5), "transport": (100, 0.02)}
"""Task → steps of an episode, and scale of the noise on actions."""


def mujoco_comparisons(episodes: int = 8, wandered: Mapping[str, tuple[int, float]] = WANDERED) -> Iterator[Comparison]:
    """Yield the comparisons of Franka Kitchen and Transport, both sides in this project's simulation."""
    for task, (steps, scale) in wandered.items():
        spec = load_task(task)
        env_factory = spec.envs[""].factory(max_steps=steps)
        first = env_factory.make_env()
        observation = first.reset(**env_factory.reset_arguments(validation_seeds(1)[0]))
        offset = np.zeros(spec.action_dim) if task == "kitchen" else _resting(observation)
        policy = Wandering(offset.astype(np.float32), np.full(spec.action_dim, scale, dtype=np.float32))
        make = partial(Stepped, env_factory.make_env, env_factory, len(observation), spec.action_dim)
        for vector in VECTORS:
            work = Rollouts(policy, env_factory, make, vector, validation_seeds(episodes), episodes)
            yield Comparison(
                f"{episodes} episodes of {task}, {steps} steps",
                f"gymnasium's {vector}, in the same simulation",
                0.5,
                work.same,
                work.turns,
                2,
                warm_ups=0,
                floor=work.floor(num_envs=CPUS),
            )


def robomimic_comparisons(episodes: int = 4, steps: int = 100) -> Iterator[Comparison]:
    """Yield the comparison of Transport against robomimic's own loop."""
    env_factory = load_task("transport").envs[""].factory(max_steps=steps)
    seeds = validation_seeds(episodes)
    env = env_factory.make_env()
    offset = _resting(env.reset(**env_factory.reset_arguments(seeds[0]))).astype(np.float32)
    policy = Wandering(offset, np.full(len(offset), WANDERED["transport"][1], dtype=np.float32))
    loop = RobomimicLoop(policy, "transport")

    def same() -> str:
        """Compare the final states of the first episode; robomimic reloads the scene from XML with rounded numbers."""
        loop.run(seeds[:1], steps)
        env.reset(**env_factory.reset_arguments(seeds[0]))
        noise = np.random.default_rng([seeds[0], 0])
        for start in range(0, steps, policy.n_action_steps):
            plan = policy.act(
                np.empty(0, dtype=np.float32), noise.standard_normal((1, *policy.noise_shape), dtype=np.float32)
            )[0]
            for action in plan[: min(policy.n_action_steps, steps - start)]:
                env.step(action)
        return nearly_equal(simulator_state(env.simulator), loop.state(), 1e-2, "last state")  # type: ignore[attr-defined]

    def ours(workers: int = 2, num_envs: int = episodes) -> object:
        asked = [Episode(seed, 0) for seed in seeds]
        return rollout(policy, env_factory, asked, workers=workers, num_envs=num_envs, progress=False)

    yield Comparison(
        f"{episodes} episodes of transport, {steps} steps",
        "robomimic's rollout",
        0.5,
        same,
        in_turns(ours, lambda: loop.run(seeds, steps)),
        2,
        warm_ups=0,
        floor=shared_floor(partial(ours, workers=0, num_envs=CPUS)),
    )


def _resting(observation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the action of Transport that holds both arms at their observed poses, grippers open."""
    positions, quaternions = arm_poses(observation, "transport")
    return policy_actions(
        np.concatenate(
            [np.r_[p, Rotation.from_quat(q).as_rotvec(), -1.0] for p, q in zip(positions, quaternions, strict=True)]
        )[None]
    )[0]
