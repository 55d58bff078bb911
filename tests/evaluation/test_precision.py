"""Variations of a rollout, each of which changes one setting."""

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.evaluation.policy import FlowPolicy
from pipeline.evaluation.precision import Variation, Varied, variations
from pipeline.settings.schema import PrecisionSettings
from pipeline.tasks.normalizer import Normalizer

SETTINGS = PrecisionSettings(seeds=3, noise_scales=[0.5, 0.0], held_noises=2, fine_nfe=8, n_action_steps=2)


class Still(nn.Module):
    """A field that moves nothing, so that a sample is the noise it started from."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, _t: Tensor, x: Tensor, _condition: Tensor) -> Tensor:
        return torch.zeros_like(x)


def policy() -> FlowPolicy:
    same = Normalizer(2)
    return FlowPolicy(Still(), lambda states: states, same, same, n_obs_steps=1, horizon=4, n_action_steps=4)


def started_from(variation: Variation, noise: np.ndarray) -> np.ndarray:
    """Return the noise from which ``Varied.act`` starts its solves."""
    return Varied(policy(), variation).act(np.zeros((len(noise), 1, 2), dtype=np.float32), noise)


def test_each_variation_changes_one_setting() -> None:
    as_made, *changed = variations(SETTINGS, 2, 4, flow=True)
    assert as_made == Variation("", 2, 4)
    for variation in changed:
        names = ("nfe", "n_action_steps", "noise_scale", "held")
        assert sum(getattr(variation, name) != getattr(as_made, name) for name in names) == 1
    assert len({variation.change for variation in changed}) == len(changed) == 6
    assert [v.nfe for v in variations(SETTINGS, 2, 4, flow=False)] == [2] * 6  # no flow: valid at its own NFE only
    assert max(v.nfe for v in variations(SETTINGS, 16, 4, flow=True)) == 16  # no finer solve exists


def test_rollouts_and_samples_start_from_the_noise_as_varied() -> None:
    noise = np.random.default_rng(0).standard_normal((3, 4, 2), dtype=np.float32)
    np.testing.assert_allclose(started_from(Variation("", 2, 4), noise), noise, atol=1e-6)
    np.testing.assert_allclose(started_from(Variation("half", 2, 4, noise_scale=0.5), noise), noise / 2, atol=1e-6)
    first, second = (started_from(Variation("held", 2, 4, held=draw), noise) for draw in (0, 1))
    assert (first == first[:1]).all() and (second == second[:1]).all() and (first != second).all()
    np.testing.assert_array_equal(started_from(Variation("held", 2, 4, held=0), -noise), first)
    sampled = Varied(policy(), Variation("held", 2, 4, held=0)).sample(torch.zeros(3, 2), torch.from_numpy(noise), 2)
    np.testing.assert_allclose(sampled.numpy(), first, atol=1e-6)


def test_varied_chunk_length_reaches_rollouts() -> None:
    assert Varied(policy(), Variation("often", 2, 2)).n_action_steps == 2
