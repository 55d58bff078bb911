"""Baselines without training: uniform actions, and the nearest demonstrated window."""

import numpy as np
import pytest
import torch

from pipeline.evaluation import baselines
from pipeline.evaluation.baselines import NearestDemoPolicy, RandomPolicy, SmallImages, shrunk
from pipeline.evaluation.rollouts import Episode, rollout
from pipeline.tasks.demonstrations import Demonstrations
from pipeline.tasks.normalizer import Normalizer
from pipeline.tasks.vector import EnvFactory, Transition
from pipeline.training.data import prepare
from tests.training.helpers import data_settings


def nearest(condition: torch.Tensor, **settings: int) -> NearestDemoPolicy:
    action = torch.arange(float(len(condition)))[:, None, None].expand(-1, 4, 1)  # the action is the window's number
    action_normalizer = Normalizer.of(torch.tensor([10.0]), torch.tensor([2.0]))
    return NearestDemoPolicy(
        lambda states: states[..., :2].astype(np.float32),
        Normalizer.of(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 4.0])),
        action_normalizer,
        condition,
        action,
        n_obs_steps=settings.get("n_obs_steps", 1),
        n_action_steps=2,
    )


def test_random_actions_are_uniform_over_the_range_of_the_training_actions() -> None:
    action = torch.tensor([[-1.0, -0.5], [0.0, 0.25], [1.0, 0.0]]).expand(7, 3, 2)
    normalizer = Normalizer.of(torch.tensor([100.0, 200.0]), torch.tensor([10.0, 20.0]))
    policy = RandomPolicy(action, normalizer, n_obs_steps=1, n_action_steps=2)
    assert (policy.horizon, policy.n_action_steps, policy.noise_shape) == (3, 2, (3, 2))
    noise = np.random.default_rng(0).standard_normal((5000, 3, 2), dtype=np.float32)
    actions = policy.act(np.zeros((5000, 1, 9)), noise)
    assert actions.shape == noise.shape and actions.dtype == np.float32
    share = (actions - [90, 190]) / [20, 15]  # the second component spans -0.5 … 0.25, normalised
    assert share.min() >= 0 and share.max() <= 1
    for quantile in (0.1, 0.5, 0.9):
        np.testing.assert_allclose(np.quantile(share, quantile, axis=0), quantile, atol=0.03)
    np.testing.assert_array_equal(policy.act(np.ones((2, 1, 9)), noise[[7, 3]]), actions[[7, 3]])


def test_the_nearest_window_is_found_in_normalised_observations() -> None:
    policy = nearest(torch.tensor([[0.0, 0.0], [0.0, 1.0], [3.0, 0.0]]))
    # (1, 3) is (0, 0.75) when normalised, nearest to the second window; in raw units it is not
    states = np.array([[[1.0, 3.0, 7.0]], [[1.0, 1.0, 7.0]], [[3.5, 0.0, 7.0]]])
    actions = policy.act(states, np.zeros((3, 0), dtype=np.float32))
    assert actions[:, 0, 0].tolist() == [12.0, 10.0, 14.0]
    assert actions.shape == (3, 4, 1) and actions.dtype == np.float32


def test_first_of_equally_near_windows_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(-2, 3, (500, 2), generator=generator).float()
    asked = torch.randint(-2, 3, (200, 2), generator=generator).float() + 0.5
    expected = [int(np.argmin(((windows - one) ** 2).sum(1).numpy())) for one in asked]
    for block in (7, 500):
        monkeypatch.setattr(baselines, "BLOCK", block)
        assert nearest(windows).nearest(asked).tolist() == expected


def test_close_windows_far_from_the_origin_are_distinguished() -> None:
    windows = 1000 + 0.001 * torch.arange(50.0)[:, None].expand(-1, 2)
    assert nearest(windows).nearest(windows).tolist() == list(range(50))


def test_observations_of_a_demonstration_return_its_actions() -> None:
    lengths = [6, 9, 4]
    generator = np.random.default_rng(0)
    state, action = generator.normal(size=(19, 3)), generator.normal(size=(19, 2))
    demonstrations = Demonstrations(state.astype(np.float32), action.astype(np.float32), np.cumsum(lengths))
    settings = data_settings(horizon=3, validation_fraction=0.3)
    data = prepare(demonstrations, settings, np.float32, seed=0)
    normalizers = (data.observation_normalizer, data.action_normalizer)
    policy = NearestDemoPolicy(np.float32, *normalizers, data.condition, data.action, n_obs_steps=2, n_action_steps=2)
    for first, length in zip([0, 6, 15], lengths, strict=True):
        seen = np.stack([state[t - 1 : t + 1] for t in range(first + 1, first + length - 2)])
        done = policy.act(seen, np.zeros((len(seen), 0), dtype=np.float32))
        expected = np.stack([action[t : t + 3] for t in range(first + 1, first + length - 2)])
        held_out = length == len(data.held_out_action)
        assert np.allclose(done, expected, atol=1e-5) is not held_out


def test_shrunk_images_are_tile_means_placed_before_the_numbers() -> None:
    images = np.zeros((2, 3, 32, 64, 3), dtype=np.uint8)
    images[1, 2, 2:4, 8:12, 0] = 255  # the second tile down, the third to the right
    images[1, 2, 0, 0, 1] = 255  # an eighth of the first
    small = shrunk(images)
    assert small.shape == (2, 3, 16 * 16 * 3) and small.dtype == np.float32
    expected = np.zeros((16, 16, 3), dtype=np.float32)
    expected[1, 2, 0], expected[0, 0, 1] = 1, 1 / 8
    np.testing.assert_allclose(small[1, 2].reshape(16, 16, 3), expected, atol=1e-6)
    assert not small[0].any()
    observed = SmallImages(lambda _: images, lambda states: states[..., :2].astype(np.float32))(np.ones((2, 3, 5)))
    np.testing.assert_array_equal(observed[..., :-2], small)
    assert (observed[..., -2:] == 1).all()
    with pytest.raises(ValueError, match="30 × 64"):
        shrunk(images[..., :30, :, :])


class Walk:
    """Ends after seven steps; the score is how far it got."""

    def reset(self, *, start: float) -> np.ndarray:
        self.state, self.taken = np.array([start, 0.0, 0.0]), 0
        return self.state

    def step(self, action: np.ndarray) -> Transition:
        self.taken += 1
        self.state = self.state + 0.01 * action.mean()
        return Transition(self.state, float(np.tanh(abs(self.state[0]))), False, self.taken == 7)


def test_both_baselines_act_in_rollouts() -> None:
    env_factory = EnvFactory(Walk, lambda seed: {"start": float(seed)}, max_steps=7)
    episodes = [Episode(seed, repeat) for seed in range(3) for repeat in range(2)]
    random = RandomPolicy(torch.randn(9, 4, 1), Normalizer(1), n_obs_steps=1, n_action_steps=2)
    chance = rollout(random, env_factory, episodes, policy_batch_size=4, progress=False)
    assert len({result.final_score for result in chance}) == 6
    copying = rollout(nearest(torch.randn(9, 2)), env_factory, episodes, policy_batch_size=4, progress=False)
    assert [result.final_score for result in copying[::2]] == [result.final_score for result in copying[1::2]]
