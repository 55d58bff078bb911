"""Disturbances: on what the policy sees or on what it does, the same for every policy."""

import numpy as np
import pytest
import torch

from pipeline.evaluation.policy import FlowPolicy
from pipeline.evaluation.robustness import Disturbed
from pipeline.training.checkpoint import build_policy
from tests.evaluation.test_residual_policy import RECORD, make_policy

BATCH = 3


def drawn(policy: Disturbed) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    observations = generator.standard_normal((BATCH, policy.observation_horizon, 5)).astype(np.float32)
    return observations, generator.standard_normal((BATCH, policy.prediction_horizon, 2)).astype(np.float32)


@pytest.mark.parametrize("make", [lambda: build_policy(RECORD), make_policy])
def test_actions_are_disturbed_by_the_noise_that_is_left_over(make) -> None:  # type: ignore[no-untyped-def]
    policy: FlowPolicy = make()
    policy.action_normalizer.scale.fill_(7.0)
    disturbed = Disturbed(policy, 6, "action_noise", 0.5)
    observations, noise = drawn(disturbed)
    plain = policy.acting(6).act(observations, noise[:, :4])
    by = policy.action_normalizer.denormalize(torch.from_numpy(0.5 * noise[:, 4:8])).numpy()
    by -= policy.action_normalizer.denormalize(torch.zeros(BATCH, 4, 2)).numpy()
    np.testing.assert_allclose(disturbed.act(observations, noise), plain + by, rtol=1e-5, atol=1e-5)


def test_observations_are_disturbed_as_the_net_sees_them() -> None:
    policy = build_policy(RECORD).eval()
    disturbed = Disturbed(policy, 2, "observation_noise", 0.5)
    observations, noise = drawn(disturbed)
    condition = policy.condition(observations) + torch.from_numpy(0.5 * noise[:, 4:].reshape(BATCH, -1)[:, :6])
    with torch.no_grad():
        expected = policy.sample(condition, torch.from_numpy(noise[:, :4]), 2).numpy()
    np.testing.assert_allclose(disturbed.act(observations, noise), expected, rtol=1e-5, atol=1e-6)
