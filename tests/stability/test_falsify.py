"""The falsifier finds existing counterexamples and no false ones."""

import numpy as np
import pytest
import torch

from pipeline.stability.certificate import Certificate, issue
from pipeline.stability.climb import climbed, growth_in_every_norm, growth_in_norm, jacobians, starting_states
from pipeline.stability.contraction import certify_flow, certify_step, input_gain
from pipeline.stability.falsify import cross_check, diverging_input, expanding_pair
from pipeline.stability.parameterization import ContractingStep
from pipeline.stability.system import System


def random_system(seed: int) -> System:
    draw = np.random.default_rng(seed).standard_normal
    return System(draw((3, 3)) - 2 * np.eye(3), (draw((3, 4)),), (draw((4, 3)),), ("tanh",))


@pytest.mark.parametrize("step", [None, 0.1])
@pytest.mark.parametrize("in_norm", [True, False])
def test_climbing_rises_along_the_true_gradient(step: float | None, in_norm: bool) -> None:
    system = random_system(0)
    growth = growth_in_norm(np.diag([1.0, 2.0, 3.0]), step) if in_norm else growth_in_every_norm(step)
    x = 0.3 * np.random.default_rng(1).standard_normal((1, 3))
    _, p, v = growth(jacobians(system, x, step))
    A, W = system.stacked
    z = np.tanh(x @ W.T)
    slope = (np.real((p @ A) * (v @ W.T)) * (-2 * z * (1 - z**2)) @ W)[0]
    differences = [
        (growth(jacobians(system, x + 1e-5 * e, step))[0] - growth(jacobians(system, x - 1e-5 * e, step))[0])[0]
        for e in np.eye(3)
    ]
    assert slope @ differences == pytest.approx(np.linalg.norm(slope) * np.linalg.norm(differences), rel=1e-4)
    before = growth(jacobians(system, starting_states(system, 16, 0), step))[0]
    after = growth(jacobians(system, climbed(system, starting_states(system, 16, 0), growth, step, 20), step))[0]
    assert (after >= before).all() and after.max() > before.max()


def test_expanding_pairs_are_found_up_to_the_true_rate() -> None:
    system = System([[-1.0]], ([[2.0]],), ([[1.0]],), ("tanh",))
    found = expanding_pair(system, 0.9, P=np.eye(1))
    assert found is not None and found.kind == "pair"
    delta = found.x - found.y
    assert (delta @ (system.field(found.x) - system.field(found.y)) / (delta @ delta)) > 0.9
    assert expanding_pair(system, 1.01, P=np.eye(1)) is None and expanding_pair(system, 1.01) is None
    assert expanding_pair(system, 1.05, step=0.1) is not None and expanding_pair(system, 1.11, step=0.1) is None


def test_a_false_certificate_is_broken_and_one_of_another_system_refused() -> None:
    system = random_system(0)
    false = Certificate("contraction", "certified", system, {"rate": 3.0}, {"P": np.eye(3), "gamma": np.ones(4)})
    with pytest.raises(AssertionError, match="contraction: certified, and broken by"):
        cross_check(false, system)
    with pytest.raises(ValueError, match="another system"):
        cross_check(false, random_system(1))
    assert issue("contraction", system, false.claim, false.witness).status == "unknown"
    cross_check(issue("contraction", system, false.claim, false.witness), system)


def test_kinks_are_no_counterexamples() -> None:
    # at 0, where relu has no derivative, the formula's derivative is 1; x' = −2x + relu(x) contracts at rate 1
    system = System([[-2.0]], ([[1.0]],), ([[1.0]],), ("relu",))
    assert expanding_pair(system, -1.0) is None and expanding_pair(system, -1.0, P=np.eye(1)) is None
    assert expanding_pair(system, -1.1) is not None


def test_slow_system_diverges_within_its_certified_gain() -> None:
    slow = System(np.diag([-1e-3, -10.0]), (np.zeros((2, 1)),), (np.ones((1, 2)),), ("tanh",))
    found = certify_flow(slow, 9e-4)
    assert found.status == "certified" and diverging_input(slow) is not None
    assert diverging_input(slow, bound=input_gain(found)["euclidean"]) is None
    line = System([[-2.0]], ([[1.0]],), ([[1.0]],), ("tanh",))
    # at rest where 2x − tanh(x) = 1, beyond 0.8 and within 1/rate = 1
    beyond = diverging_input(line, bound=0.8)
    assert beyond is not None and beyond.allowed == 0.8 < beyond.growth < 1
    assert diverging_input(line, bound=1.0) is None and diverging_input(line, bound=0.8, step=0.1) is not None
    assert diverging_input(line, 2.0, bound=2.0) is None


def test_excess_of_euler_steps_is_no_counterexample_of_the_flow() -> None:
    # nearly a rotation: Euler steps swing further than the flow does
    turning = System([[-0.01, 1.0], [-1.0, -0.01]], (np.zeros((2, 1)),), (np.ones((1, 2)),), ("tanh",))
    furthest = 1 + np.exp(-0.01 * np.pi)  # under a constant input of size 1
    assert diverging_input(turning, bound=furthest, step=0.4) is not None
    assert diverging_input(turning, bound=furthest) is None
    assert diverging_input(turning, bound=0.99 * furthest) is not None


def test_a_false_gain_is_broken_by_an_input() -> None:
    line = System([[-2.0]], ([[1.0]],), ([[1.0]],), ("tanh",))
    false = Certificate("contraction_step", "certified", line, {"ratio": 0.97, "step": 0.1}, {"P": np.eye(1)})
    cross_check(false, line)
    stiff = System(np.diag([-1.0, -9.0]), (np.zeros((2, 1)),), (np.ones((1, 2)),), ("tanh",))
    for inequality, claim in (("contraction", {"rate": 1.2}), ("contraction_step", {"ratio": 0.88, "step": 0.1})):
        with pytest.raises(AssertionError, match="certified, and broken"):
            cross_check(Certificate(inequality, "certified", stiff, claim, {"P": np.eye(2)}), stiff)
        assert diverging_input(stiff, bound=1 / 1.2, step=claim.get("step")) is not None


@pytest.mark.parametrize("n", [32, 320])
def test_cross_check_passes_for_a_contracting_chunk(n: int) -> None:
    torch.manual_seed(0)
    euler = ContractingStep(n, [n], ["tanh"], 1 / 16, 0.95)
    found = certify_step(euler.system(), 0.95, 1 / 16, *euler.witness())
    assert found.status == "certified"
    cross_check(found, found.system)


def test_bounded_input_that_diverges_is_found() -> None:
    assert diverging_input(System([[0.1]], ([[-1.0]],), ([[1.0]],), ("tanh",)), size=2.0) is not None
    assert diverging_input(System([[-1.0]], ([[2.0]],), ([[1.0]],), ("tanh",))) is None
