"""Contraction regions: one per stable equilibrium, tight and forward invariant."""

import numpy as np
import pytest

from pipeline.stability.falsify import cross_check
from pipeline.stability.recheck import recheck
from pipeline.stability.regions import certify_region, equilibria
from pipeline.stability.system import System

BISTABLE = System([[-1.0]], ([[2.0]],), ([[1.0]],), ("tanh",))
PLANE = System([[-1.0, 0.2], [-0.1, -1.0]], ([[2.0, 0], [0, 2]],), ([[1.0, 0], [0.3, 1]],), ("tanh",))


def test_all_equilibria_of_the_bistable_line_are_found() -> None:
    found = np.sort(equilibria(BISTABLE, np.zeros(1))[:, 0])
    assert found == pytest.approx([-1.9150080481545, 0, 1.9150080481545], abs=1e-9)
    assert len(equilibria(BISTABLE, np.array([2.0]))) == 1
    assert len(equilibria(PLANE, np.zeros(2))) == 9


def test_each_stable_equilibrium_has_a_region_and_the_unstable_one_has_none() -> None:
    low, middle, high = np.sort(equilibria(BISTABLE, np.zeros(1)), axis=0)
    assert certify_region(BISTABLE, middle, 0.1).status == "refuted"
    # contracts at 0.1 where 2 sech² ≤ 0.9, so above artanh √0.55
    true = high[0] - np.arctanh(np.sqrt(0.55))
    for center in (low, high):
        found = certify_region(BISTABLE, center, 0.1)
        reach = np.sqrt(found.claim["level"] / found.witness["P"][0, 0])
        assert found.status == "certified" and true - 0.01 < reach < true
        assert recheck(found.to_dict()) == "certified"


def test_region_is_invariant_and_contracts_under_changing_inputs() -> None:
    center = equilibria(PLANE, np.zeros(2))[-1]
    found = certify_region(PLANE, center, 0.1)
    cross_check(found, PLANE)
    P, level = found.witness["P"], found.claim["level"]
    draw = np.random.default_rng(0)
    factor = np.linalg.cholesky(P).T

    def on_sphere(count: int) -> np.ndarray:
        unit = draw.standard_normal((count, 2))
        return np.linalg.solve(factor, (unit / np.linalg.norm(unit, axis=1, keepdims=True)).T).T

    rest = -PLANE.field(center)
    states = center + np.sqrt(level) * on_sphere(200)
    apart = np.linalg.norm((states[::2] - states[1::2]) @ factor.T, axis=1)
    step, count = 0.005, 600
    for _ in range(count):
        shared = np.repeat(found.claim["input_radius"] * on_sphere(100), 2, axis=0)
        states = PLANE.euler_step(states, rest + shared, step)
        assert (np.einsum("bi,ij,bj->b", states - center, P, states - center) <= level * 1.01).all()
    closer = np.linalg.norm((states[::2] - states[1::2]) @ factor.T, axis=1)
    assert (closer <= apart * np.exp(-0.1 * step * count) * 1.01).all()


def test_enlarged_region_is_rejected() -> None:
    written = certify_region(BISTABLE, equilibria(BISTABLE, np.zeros(1))[-1], 0.1).to_dict()
    wider = written | {"claim": written["claim"] | {"level": 1.1 * written["claim"]["level"]}}
    assert recheck(wider) == "unknown"
    with pytest.raises(ValueError, match="input_radius"):
        recheck(written | {"claim": written["claim"] | {"input_radius": 1.0}})
    with pytest.raises(ValueError, match="rate: given 0"):
        certify_region(BISTABLE, np.zeros(1), 0.0)
