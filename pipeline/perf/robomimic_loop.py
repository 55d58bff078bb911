"""Run robomimic's own rollouts, one episode and one control step at a time: the peer of this project's rollouts."""

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
    """A policy with the interface that robomimic's ``RolloutPolicy`` expects: one observation in, one action out."""

    device = torch.device("cpu")

    def __init__(self, policy: Policy, task: Task) -> None:
        self.policy = policy
        self.keys = observation_keys(task)
        self.generator = np.random.default_rng(0)
        self.plan: deque[NDArray[np.float32]] = deque()
        self.history: deque[NDArray[np.float32]] = deque(maxlen=policy.n_obs_steps)

    def begin(self, seed: int) -> None:
        """Seed the noise of the episode of ``seed``."""
        self.generator = np.random.default_rng([seed, 0])

    def set_eval(self) -> None:
        """Do nothing, since the policy is never trained here."""

    def reset(self) -> None:
        """Forget the previous episode."""
        self.plan.clear()
        self.history.clear()

    def get_action(self, obs_dict: dict[str, Tensor], goal_dict: None = None) -> Tensor:
        """Return the next action (1, 7 per arm), in the public files' form, for observations (1, …) by key."""
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
    """Episodes of a policy by ``rollout`` of robomimic's ``run_trained_agent``, in robomimic's own environment."""

    def __init__(self, policy: Policy, task: Task) -> None:
        make_simulator(task)  # makes robomimic importable without a display, and declares its observations
        import robomimic.utils.env_utils as env_utils
        from robomimic.algo.algo import RolloutPolicy

        self.algorithm = Chunked(policy, task)
        self.rollout_policy = RolloutPolicy(self.algorithm)
        with redirect_stdout(StringIO()), drawing_from(0):
            self.env = env_utils.create_env_from_metadata(env_meta=env_arguments(task))

    def run(self, seeds: Sequence[int], steps: int) -> list[dict[str, Any]]:
        """Run the episodes of ``seeds``, at most ``steps`` steps each; return robomimic's results."""
        from robomimic.scripts.run_trained_agent import rollout

        results = []
        for seed in seeds:
            self.algorithm.begin(seed)
            with drawing_from(seed):
                results.append(rollout(self.rollout_policy, self.env, steps)[0])
        return results

    def state(self) -> NDArray[np.float64]:
        """Return the simulator's state at the end of the last episode."""
        return simulator_state(self.env)


def simulator_state(env: Any) -> NDArray[np.float64]:
    """Return the positions and velocities of all joints in an ``EnvRobosuite``."""
    data = env.env.sim.data
    return np.concatenate([data.qpos, data.qvel])
