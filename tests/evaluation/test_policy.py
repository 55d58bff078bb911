"""Flow policies: encoding, normalisation, solve, and actions in data units."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.evaluation.policy import FlowPolicy
from pipeline.nets.mlp import MLP
from pipeline.tasks.normalizer import Normalizer
from pipeline.utils import precision
from pipeline.utils.errors import UserError


class Pull(nn.Module):
    """v = c₀ − x: Euler's steps of size 1/N shrink the distance to c₀ by (1 − 1/N) each."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        self.times.append(t[0].item())
        return condition[:, :1, None] - x


def make_policy() -> FlowPolicy:
    return FlowPolicy(
        Pull(),
        lambda states: states[..., :2].astype(np.float32),
        Normalizer.of(torch.tensor([10.0, 20.0]), torch.tensor([2.0, 4.0])),
        Normalizer.of(torch.tensor([100.0, 200.0, 300.0]), torch.tensor([10.0, 20.0, 30.0])),
        n_obs_steps=2,
        horizon=4,
        n_action_steps=3,
    )


STATES = np.array([[[12.0, 24.0, 9.0], [10.0, 20.0, 9.0]], [[8.0, 16.0, 9.0], [14.0, 28.0, 9.0]]])


def test_the_condition_is_the_encoded_normalised_history_oldest_first() -> None:
    assert make_policy().condition(STATES).tolist() == [[1, 1, 0, 0], [-1, -1, 2, 2]]


def test_actions_are_the_euler_solve_in_data_units() -> None:
    policy = make_policy()
    noise = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    actions = policy.acting(nfe=4).act(STATES, noise)
    target = np.array([1.0, -1.0])[:, None, None]
    expected = target + 0.75**4 * (noise - target)
    assert actions.dtype == np.float32
    np.testing.assert_allclose(actions, expected * [10, 20, 30] + [100, 200, 300], rtol=1e-5)
    assert policy.net.times == [0.0, 0.25, 0.5, 0.75]


def test_a_solve_starts_from_the_noise_times_the_temperature() -> None:
    policy = make_policy()
    condition, noise = policy.condition(STATES), torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    whole = policy.sample(condition, noise / 2, 4)
    policy.temperature = 0.5
    assert torch.equal(policy.sample(condition, noise, 4), whole)
    policy.temperature = 0.0
    assert torch.equal(policy.sample(condition, noise, 4), policy.sample(condition, -noise, 4))


def test_acting_policy_has_the_shapes_that_rollouts_need() -> None:
    acting = make_policy().acting(nfe=1)
    shapes = (acting.n_obs_steps, acting.horizon, acting.n_action_steps, acting.noise_shape)
    assert shapes == (2, 4, 3, (4, 3))


def test_a_policy_samples_and_acts_by_its_own_solver() -> None:
    policy = make_policy()
    policy.solver = "heun"
    noise = np.zeros((2, 4, 3), dtype=np.float32)
    actions = policy.acting(nfe=4).act(STATES, noise)
    # a step of Heun's shrinks the distance to the target by 1 − h + h²/2
    expected = np.array([1.0, -1.0])[:, None, None] * (1 - 0.625**2)
    np.testing.assert_allclose(actions, expected * [10, 20, 30] + [100, 200, 300] + 0 * noise, rtol=1e-5)
    assert policy.net.times == [0.0, 0.5, 0.5, 1.0]


def test_nfe_that_the_solver_cannot_spend_is_refused() -> None:
    policy = make_policy()
    policy.solver = "heun"
    with pytest.raises(UserError, match=r"^heun spends 2 evaluations a step: nfe = 1 is no positive multiple of that$"):
        policy.acting(nfe=1)


def test_bfloat16_acting_rounds_actions_and_leaves_the_policy_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    policy = make_policy().with_net(MLP(4, 3, 4, width=64, depth=2, expansion=2, time_features=16))
    noise = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    exact, rounded = (p.acting(nfe=8).act(STATES, noise) for p in (policy, policy.in_precision("bf16")))
    assert rounded.dtype == np.float32
    scale = np.array([10, 20, 30])
    assert 0 < np.abs((rounded - exact) / scale).max() < 0.03
    np.testing.assert_array_equal(policy.acting(nfe=8).act(STATES, noise), exact)
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    for has_bf16, expected in ((True, rounded), (False, exact)):
        monkeypatch.setattr(precision, "has_bf16", lambda _kind, has=has_bf16: has)
        np.testing.assert_array_equal(policy.in_precision().acting(nfe=8).act(STATES, noise), expected)
