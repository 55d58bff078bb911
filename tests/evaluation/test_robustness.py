"""Disturbances of observations and actions, equal for every policy."""

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
    observations = generator.standard_normal((BATCH, policy.n_obs_steps, 5)).astype(np.float32)
    return observations, generator.standard_normal((BATCH, policy.horizon, 2)).astype(np.float32)


@pytest.mark.parametrize("make", [lambda: build_policy(RECORD), make_policy])
def test_action_noise_scales_with_its_strength(make) -> None:  # type: ignore[no-untyped-def]
    policy: FlowPolicy = make()
    observations, noise = drawn(Disturbed(policy, 6, "action_noise", 0.5))
    plain = policy.acting(6).act(observations, noise)
    once = Disturbed(policy, 6, "action_noise", 0.5).act(observations, noise) - plain
    twice = Disturbed(policy, 6, "action_noise", 1.0).act(observations, noise) - plain
    assert once.std() > 0
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-3, atol=1e-4)


def test_action_noise_depends_on_the_row_and_not_on_the_policy() -> None:
    base, residual = build_policy(RECORD), make_policy()
    observations, noise = drawn(Disturbed(base, 6, "action_noise", 0.5))
    by = []
    for policy in (base, residual):
        disturbed = Disturbed(policy, 6, "action_noise", 0.5)
        by.append(disturbed.act(observations, noise) - policy.acting(6).act(observations, noise))
        swapped = disturbed.act(observations[::-1].copy(), noise[::-1].copy())[::-1]
        np.testing.assert_allclose(swapped, disturbed.act(observations, noise), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(by[0], by[1], rtol=1e-3, atol=1e-4)


def test_observation_noise_is_added_to_the_normalised_condition() -> None:
    policy = build_policy(RECORD).eval()
    disturbed = Disturbed(policy, 2, "observation_noise", 0.5)
    observations, noise = drawn(disturbed)
    seen: list[torch.Tensor] = []
    policy.net.register_forward_hook(lambda _module, arguments, _out: seen.append(arguments[2]))
    disturbed.act(observations, noise)
    by = seen[0] - policy.condition(observations)
    assert by.shape == (BATCH, 6) and 0.2 < by.std().item() < 0.8
    assert torch.equal(seen[0], seen[1])  # once a plan, not once an evaluation
