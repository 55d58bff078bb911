"""Robomimic's own rollouts, one episode and one control step at a time: the peer of this project's in its simulator."""

from collections import deque
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluation.rollouts import Policy
from pipeline.tasks.robomimic.actions import file_actions
from pipeline.tasks.robomimic.env import observation_keys
from pipeline.tasks.robomimic.simulator import Task, drawing_from, env_arguments, make_simulator


class Chunked:
    """A policy as robomimic's ``RolloutPolicy`` calls its algorithms: an observation in, one action out."""

    device = torch.device("cpu")

    def __init__(self, policy: Policy, task: Task) -> None:
        self.policy = policy
        self.keys = observation_keys(task)
        self.generator = np.random.default_rng(0)
        self.plan: deque[NDArray[np.float32]] = deque()
        self.history: deque[NDArray[np.float32]] = deque(maxlen=policy.n_obs_steps)

    def begin(self, seed: int) -> None:
        """Draw the noise of the episode of ``seed``."""
        self.generator = np.random.default_rng([seed, 0])

    def set_eval(self) -> None:
        """Nothing: it is never trained here."""

    def reset(self) -> None:
        """Forget the episode before."""
        self.plan.clear()
        self.history.clear()

    def get_action(self, obs_dict: dict[str, Tensor], goal_dict: None = None) -> Tensor:
        """Observations (1, …) by key → the next action of the plan, in the public files' form, (1, 7 per arm)."""
        del goal_dict
        seen = torch.cat([obs_dict[key] for key in self.keys], dim=-1)[0].numpy()
        self.history.extend([seen] * (1 if self.history else self.policy.n_obs_steps))
        if not self.plan:
            noise = self.generator.standard_normal(self.policy.noise_shape, dtype=np.float32)
            self.plan.extend(
                self.policy.act(np.stack(self.history)[None], noise[None])[0, : self.policy.n_action_steps]
            )
        return torch.from_numpy(file_actions(self.plan.popleft())[None])


class RobomimicLoop:
    """Episodes of a policy by the ``rollout`` of robomimic's ``run_trained_agent``, in its environment as it comes."""

    def __init__(self, policy: Policy, task: Task) -> None:
        make_simulator(task)  # lets robomimic be imported where there is no display, and names its observations
        import robomimic.utils.env_utils as env_utils
        from robomimic.algo.algo import RolloutPolicy

        self.algorithm = Chunked(policy, task)
        self.rollout_policy = RolloutPolicy(self.algorithm)
        with redirect_stdout(StringIO()), drawing_from(0):
            self.env = env_utils.create_env_from_metadata(env_meta=env_arguments(task))

    def run(self, seeds: Sequence[int], steps: int) -> list[dict[str, Any]]:
        """Robomimic's results of the episodes of ``seeds``, of ``steps`` at most."""
        from robomimic.scripts.run_trained_agent import rollout

        results = []
        for seed in seeds:
            self.algorithm.begin(seed)
            with drawing_from(seed):
                results.append(rollout(self.rollout_policy, self.env, steps)[0])
        return results

    def state(self) -> NDArray[np.float64]:
        """Where the last episode ended."""
        return simulator_state(self.env)


def simulator_state(env: Any) -> NDArray[np.float64]:
    """Positions and velocities of all joints in an ``EnvRobosuite``."""
    data = env.env.sim.data
    return np.concatenate([data.qpos, data.qvel])
