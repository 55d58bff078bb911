"""Diffusion policies: noise shapes, actions, NFE and independence of the batch."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.evaluation.diffusion_policy import DiffusionPolicy, Sampler
from pipeline.evaluation.policy import FlowPolicy
from pipeline.evaluation.rollouts import Episode, rollout
from pipeline.flow.action_diffusion import ddim, ddpm
from pipeline.tasks.normalizer import Normalizer
from pipeline.tasks.vector import EnvFactory, Transition
from pipeline.utils.errors import UserError

STATES = np.random.default_rng(0).normal(size=(5, 2, 3))


class Tilted(nn.Module):
    """A noise prediction that depends on every argument and is partly clipped."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))
        self.calls = 0

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        self.calls += 1
        return self.weight * x + 0.1 * condition[:, :1, None] - 0.2 * t[:, None, None]


def make_policy(sampler: Sampler, levels: int = 100) -> DiffusionPolicy:
    base = FlowPolicy(
        Tilted(),
        lambda states: states[..., :2].astype(np.float32),
        Normalizer.of(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0])),
        Normalizer.of(torch.tensor([100.0, 200.0, 300.0]), torch.tensor([10.0, 20.0, 30.0])),
        n_obs_steps=2,
        horizon=4,
        n_action_steps=3,
    )
    return DiffusionPolicy(base, sampler, levels)


def drawn(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((len(STATES), *shape), dtype=np.float32)


@pytest.mark.parametrize(("sampler", "shape"), [("ddpm", (6, 4, 3)), ("ddim", (4, 3))])
def test_actions_are_the_samplers_output_in_data_units_at_the_given_nfe(
    sampler: Sampler, shape: tuple[int, ...]
) -> None:
    policy = make_policy(sampler)
    acting, noise = policy.acting(nfe=6), drawn(shape)
    assert acting.noise_shape == shape
    actions = acting.act(STATES, noise)
    assert policy.net.calls == 6
    condition, x = policy.condition(STATES), torch.from_numpy(noise)
    with torch.no_grad():
        expected = ddpm(policy.net, x, condition) if sampler == "ddpm" else ddim(policy.net, x, condition, 6)
    assert actions.dtype == np.float32 and actions.shape == (5, 4, 3)
    np.testing.assert_allclose(actions, expected.numpy() * [10, 20, 30] + [100, 200, 300], rtol=1e-5)
    assert (np.abs(actions - [100, 200, 300]) <= [10.001, 20.001, 30.001]).all(), "clipped to the training actions"


def test_one_net_serves_both_samplers() -> None:
    first = make_policy("ddpm")
    second = DiffusionPolicy(first, "ddim", first.levels)
    assert second.net is first.net and second.state_dict().keys() == first.state_dict().keys()
    assert second.noise_shape(16) == (4, 3) and first.noise_shape(16) == (16, 4, 3)


@pytest.mark.parametrize("nfe", [0, 11])
def test_nfe_outside_the_noise_levels_is_refused(nfe: int) -> None:
    with pytest.raises(UserError, match=rf"^--nfe: given {nfe}, allowed for ddim: 1 to 10, the noise levels$"):
        make_policy("ddim", levels=10).acting(nfe)


class Drift:
    """Moves by the mean of its action."""

    def reset(self, *, start: float) -> np.ndarray:
        self.state, self.taken = np.full(3, start), 0
        return self.state

    def step(self, action: np.ndarray) -> Transition:
        self.taken += 1
        self.state = self.state + 1e-3 * (action.mean() - 200)
        return Transition(self.state, float(np.tanh(np.abs(self.state[0]))), False, self.taken == 7)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_episodes_do_not_depend_on_their_batch(sampler: Sampler) -> None:
    env_factory = EnvFactory(Drift, lambda seed: {"start": float(seed % 3)}, max_steps=7)
    acting = make_policy(sampler).acting(nfe=5)
    episodes = [Episode(seed, repeat) for seed in range(4) for repeat in range(2)]
    together = rollout(acting, env_factory, episodes, policy_batch_size=4, progress=False)
    assert together == [
        result
        for one in episodes
        for result in rollout(acting, env_factory, [one], policy_batch_size=4, progress=False)
    ]
    assert len({result.final_score for result in together}) == len(episodes)
