"""Image policies: one encoding per plan, and use in training, residuals and rollouts."""

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.evaluation.image_policy import ImageConditioning, ImagePolicy
from pipeline.evaluation.residual_policy import ResidualPolicy
from pipeline.evaluation.rollouts import Episode, rollout
from pipeline.nets.mlp import MLP
from pipeline.nets.vision import ImageConditioned, VisionEncoder, pack
from pipeline.tasks.loader import load_task
from pipeline.tasks.normalizer import Normalizer
from pipeline.tasks.pusht import PushTOptions
from pipeline.tasks.pusht.camera import render
from pipeline.tasks.pusht.env import observe

STATES = np.random.default_rng(0).uniform(100, 400, (3, 2, 5)).astype(np.float32)
POSITIONS = Normalizer.of(torch.tensor([256.0, 256.0]), torch.tensor([200.0, 100.0]))


class CountingEncoder(VisionEncoder):
    """Records the shapes of the images of its calls."""

    def __init__(self) -> None:
        super().__init__(width=16, crop=84)
        self.calls: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(tuple(images.shape))
        return super().forward(images)


def make_policy(seed: int = 0) -> ImagePolicy:
    torch.manual_seed(seed)
    encoder = CountingEncoder()
    net = MLP(4, 2, 2 * (encoder.features + 2), width=16, depth=1, expansion=2, time_features=8)
    return ImagePolicy(
        net,
        ImageConditioning(encoder, render, partial(observe, kind="agent")),
        POSITIONS,
        Normalizer.of(torch.tensor([256.0, 256.0]), torch.tensor([256.0, 256.0])),
        n_obs_steps=2,
        horizon=4,
        n_action_steps=2,
    )


def noise(rows: int = 3) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((rows, 4, 2), dtype=np.float32)


def test_encoder_runs_once_per_plan_at_any_nfe() -> None:
    policy = make_policy()
    for nfe in (1, 16):
        policy.observe.encoder.calls.clear()
        policy.acting(nfe).act(STATES, noise())
        assert policy.observe.encoder.calls == [(3, 2, 96, 96, 3)]


def test_condition_holds_image_features_and_the_normalised_position() -> None:
    policy = make_policy().eval()
    condition = policy.condition(STATES).view(3, 2, -1)
    with torch.no_grad():
        features = policy.observe.encoder(torch.from_numpy(render(STATES)))
    assert torch.equal(condition[..., :-2], features)
    torch.testing.assert_close(condition[..., -2:], POSITIONS.normalize(torch.from_numpy(STATES[..., :2])))
    assert not condition.requires_grad


def test_trained_net_is_the_acting_net() -> None:
    """The field with its encoder, on packed conditions, is the policy's own field on its own conditions."""
    policy = make_policy().eval()
    seeing = policy.seeing()
    images = torch.from_numpy(render(STATES))
    packed = pack(images, POSITIONS.normalize(torch.from_numpy(STATES[..., :2])))
    t, x = torch.rand(3), torch.randn(3, 4, 2)
    torch.testing.assert_close(seeing(t, x, packed), policy.net(t, x, policy.condition(STATES)))
    trained = make_policy(seed=1).seeing()
    acting = policy.with_net(trained)
    assert acting is policy and policy.net is trained.field and policy.observe.encoder is trained.encoder
    assert isinstance(policy.seeing(), ImageConditioned)
    field = MLP(4, 2, 2 * 130, width=16, depth=1, expansion=2, time_features=8)
    assert policy.with_net(field).net is field and policy.observe.encoder is trained.encoder


def test_state_dict_holds_the_encoder() -> None:
    policy, other = make_policy(), make_policy(seed=1)
    assert any(name.startswith("observe.encoder.") for name in policy.state_dict())
    other.load_state_dict(policy.state_dict())
    np.testing.assert_array_equal(policy.acting(2).act(STATES, noise()), other.acting(2).act(STATES, noise()))


def test_residual_policy_uses_the_same_condition() -> None:
    class Still(nn.Module):
        def begin(self, *_: Tensor) -> object:
            return lambda _, x: torch.zeros_like(x)

    policy = make_policy().eval()
    residual = ResidualPolicy(policy, Still(), [1.0, 1.5])  # type: ignore[arg-type]
    assert torch.equal(residual.condition(STATES), policy.condition(STATES))
    policy.observe.encoder.calls.clear()
    np.testing.assert_array_equal(residual.acting(3).act(STATES, noise()), policy.acting(2).act(STATES, noise()))
    assert len(policy.observe.encoder.calls) == 2


def test_image_rollouts_do_not_depend_on_the_batch_size() -> None:
    policy = make_policy()
    runs = [
        rollout(
            policy.acting(2),
            load_task("pusht").envs["a"].factory(PushTOptions(), 4),
            [Episode(100000, 0), Episode(100001, 0)],
            num_envs=batch,
            policy_batch_size=4,
            progress=False,
        )
        for batch in (1, 2)
    ]
    assert runs[0] == runs[1]
    assert [result.steps for result in runs[0]] == [4, 4]
