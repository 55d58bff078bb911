"""Disturbances of systems with known answers, and regions of a bistable one."""

import numpy as np
import pytest
import torch

from pipeline.evaluation.toy_systems import disturb, settle, wandering_forces
from pipeline.stability.system import Array, System
from pipeline.tasks.toys import DrivenSystem

RATE, SIZE = 2.0, 0.3
FORCES = wandering_forces(SIZE, 4, torch.Generator().manual_seed(0))


def linear(rate: float, claimed: float, metric: Array | None = None) -> DrivenSystem:
    """x' = −rate · x, with one unit of no effect."""
    system = System(-rate * np.eye(2), (np.zeros((2, 1)),), (np.ones((1, 2)),), ("tanh",))
    return DrivenSystem(
        system, np.zeros((2, 4)), np.zeros(2), claimed, metric, None if metric is None else np.ones(1) / 99
    )


def test_forces_have_fixed_size_all_directions_and_wander() -> None:
    assert FORCES.norm(dim=-1).numpy() == pytest.approx(SIZE)
    assert float(FORCES[0].mean(0).norm()) < 0.2 * SIZE
    assert not torch.allclose(FORCES[0], FORCES[-1])


def test_certified_bound_holds_and_is_tight() -> None:
    found = disturb(linear(RATE, 0.99 * RATE, np.eye(2)), FORCES)
    assert found.status == "certified" and found.bound is not None
    assert (found.deviation <= found.bound[:, None] + 1e-12).all()
    assert found.bound[-1] == pytest.approx(SIZE / RATE, rel=0.1)  # the condition of P is bounded, not computed
    assert found.deviation[-1].max() > 0.3 * SIZE / RATE
    assert found.paths.shape == (len(found.times), 4, 2)


def test_unstable_system_has_no_bound_and_diverges() -> None:
    found = disturb(linear(-0.5, 0.01), FORCES)
    assert found.status == "refuted" and found.bound is None
    assert found.deviation[-1].min() > 1


def test_a_bistable_system_contracts_around_each_of_its_stable_states() -> None:
    system = System(-np.eye(2), (np.diag([2.0, 0.5]),), (np.eye(2),), ("tanh",))  # x1' = −x1 + 2 tanh(x1)
    settled = settle(DrivenSystem(system, np.zeros((2, 0)), np.zeros(2)))
    assert sorted(settled.equilibria[settled.stable.astype(bool)][:, 0]) == pytest.approx([-1.915, 1.915], abs=1e-3)
    assert int(settled.stable.sum()) == 2 and len(settled.equilibria) == 3
    assert {region.share for region in settled.regions} == {0.1, 0.5}
    for region in settled.regions:
        assert region.rate * (1 - 1e-9) <= region.slowest
        assert abs(region.center[0]) == pytest.approx(1.915, abs=1e-3)
        assert (np.sign(region.outline[:, 0]) == np.sign(region.center[0])).all()  # never across the unstable state
    left, right = settled.target[0, 0], settled.target[0, -1]
    assert left != right and {left, right} == {0, 1}
