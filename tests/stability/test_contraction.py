"""Contraction: known cases, and 200 random systems on which no certificate may be broken."""

from collections import Counter

import numpy as np
import pytest
import torch

from pipeline.stability.contraction import (
    certify_flow,
    certify_step,
    input_gain,
    largest_rate,
    largest_rate_in,
    smallest_ratio,
    smallest_ratio_in,
)
from pipeline.stability.falsify import cross_check, expanding_pair
from pipeline.stability.parameterization import ContractingFlow, ContractingStep
from pipeline.stability.system import System


def scalar(a0: float, a: float, function: str) -> System:
    return System([[a0]], ([[a]],), ([[1.0]],), (function,))


def random_system(seed: int) -> System:
    draw = np.random.default_rng(seed)
    n, k = int(draw.integers(1, 4)), int(draw.integers(1, 4))
    A0 = -draw.uniform(0.5, 3) * np.eye(n) + draw.uniform(0, 1) * draw.standard_normal((n, n))
    A = draw.uniform(0, 1.5) * draw.standard_normal((n, k))
    return System(A0, (A,), (draw.standard_normal((k, n)),), (str(draw.choice(["tanh", "relu", "leaky_relu"])),))


def test_no_certificate_of_a_random_system_is_broken() -> None:
    seen: Counter[tuple[str, str]] = Counter()
    for seed in range(200):
        system = random_system(seed)
        found = certify_flow(system, 0.3) if seed % 2 else certify_step(system, 0.97, 0.1)
        cross_check(found, system, seed=seed, starts=24, climbs=12)
        assert (found.counterexample is None) == (found.status != "refuted")
        seen[found.inequality, found.status] += 1
    assert min(seen["contraction", status] for status in ("certified", "refuted")) > 20
    assert min(seen["contraction_step", status] for status in ("certified", "refuted")) > 20


def test_rate_and_ratio_of_a_scalar_system_follow_from_its_slopes() -> None:
    # slopes of −3x + 2 tanh(x) lie in (−3, −1]: rate 1, and an Euler step of 0.1 shrinks by 0.9 at most
    line = scalar(-3, 2, "tanh")
    assert largest_rate(line, 1e-3).claim["rate"] == pytest.approx(1, abs=2e-3)
    assert smallest_ratio(line, 0.1, 1e-4).claim["ratio"] == pytest.approx(0.9, abs=2e-4)
    assert certify_flow(line, 1.01).status == "refuted"
    assert certify_step(line, 0.89, 0.1).status == "refuted"


def test_a_leaky_function_contracts_by_its_lower_slope() -> None:
    # x' = −leaky_relu(x) alone: rate 0.01, by the slopes [m, L]; with [0, L] there would be none
    assert largest_rate(scalar(0, -1, "leaky_relu"), 1e-2).claim["rate"] == pytest.approx(0.01, rel=0.02)
    assert certify_flow(scalar(0, -1, "relu"), 0.001).status == "refuted"


def test_boundary_rate_is_not_certified() -> None:
    # with P = Γ = 1, x' = −2x + tanh(x) satisfies the inequality if and only if rate < 1
    line, one = scalar(-2, 1, "tanh"), np.ones((1, 1))
    assert certify_flow(line, 1 - 1e-12, one, one[0]).status == "certified"
    assert certify_flow(line, 1.0, one, one[0]).status == "unknown"


def test_a_hopfield_network_with_small_gain_contracts() -> None:
    draw = np.random.default_rng(0)
    W = draw.standard_normal((6, 6))
    W /= 2 * np.linalg.norm(W, 2)
    network = System(-np.eye(6), (np.eye(6),), (W,), ("tanh",))
    found = certify_flow(network, 0.4)
    assert found.status == "certified"
    gain = input_gain(found)
    assert gain["P"] == 2.5 and gain["euclidean"] >= 2.5
    x, y = np.zeros(6), np.zeros(6)
    push = draw.standard_normal(6)
    for _ in range(4000):
        x, y = network.euler_step(x, 0.0, 0.01), network.euler_step(y, push, 0.01)
    assert np.linalg.norm(x - y) < gain["euclidean"] * np.linalg.norm(push)


def test_an_unstable_mode_is_refuted_in_every_norm() -> None:
    draw = np.random.default_rng(0)
    A0 = np.diag([-2.0, -1.0, 0.3])
    turn = np.linalg.qr(draw.standard_normal((3, 3)))[0]
    system = System(
        turn @ A0 @ turn.T, (0.05 * draw.standard_normal((3, 2)),), (draw.standard_normal((2, 3)),), ("tanh",)
    )
    found = certify_flow(system, 0.1)
    assert found.status == "refuted" and found.counterexample is not None
    x, y, g = found.counterexample.x, found.counterexample.y, found.counterexample.g
    assert np.abs(system.field(x, g)).max() < 1e-12
    apart = np.linalg.norm(x - y)
    for _ in range(500):
        x, y = system.euler_step(x, g, 0.01), system.euler_step(y, g, 0.01)
    assert np.linalg.norm(x - y) > 2 * apart


def test_contraction_of_the_flow_does_not_survive_a_long_step() -> None:
    fast = scalar(-5, -1, "tanh")
    assert certify_flow(fast, 4.9).status == "certified"
    assert certify_step(fast, 1.0, 0.5).status == "refuted"
    assert smallest_ratio(fast, 0.5).status == "refuted"
    assert certify_step(fast, 0.81, 0.05).status == "certified"


def test_pair_in_a_given_norm_refutes_that_norm_only() -> None:
    # contracts, but first grows in the Euclidean norm: a pair refutes that norm only
    sheared = System([[-1, 4], [0, -1]], (np.zeros((2, 1)),), (np.ones((1, 2)),), ("tanh",))
    assert certify_flow(sheared, 0.5).status == "certified"
    found = certify_flow(sheared, 0.5, np.eye(2), np.ones(1))
    assert found.status == "unknown" and found.counterexample is not None
    assert found.reason == "two states separate faster in the norm that was given"
    assert found.counterexample.kind == "pair" and found.counterexample.refutes == "this norm"
    assert expanding_pair(sheared, -0.5, P=np.eye(2)) is not None and expanding_pair(sheared, -0.5) is None
    growing = certify_flow(scalar(-1, 2, "tanh"), 0.1, np.eye(1), np.ones(1))
    assert growing.status == "refuted" and growing.counterexample is not None
    assert growing.counterexample.kind == "equilibrium" and growing.counterexample.refutes == "every norm"
    with pytest.raises(ValueError, match="both or neither"):
        certify_flow(sheared, 0.5, np.eye(2))
    with pytest.raises(ValueError, match="symmetric"):
        certify_flow(sheared, 0.5, np.array([[1, 0.1], [0, 1]]), np.ones(1))
    for P in (-np.eye(2), np.diag([1.0, 0.0]), np.full((2, 2), np.inf)):
        with pytest.raises(ValueError, match="positive definite"):
            certify_flow(sheared, 0.5, P, np.ones(1))


@pytest.mark.parametrize("n", [32, 320])
def test_best_claim_in_a_constructions_norm_is_at_least_its_promise(n: int) -> None:
    torch.manual_seed(n)
    flow = ContractingFlow(n, [n], ["tanh"], 0.7)
    found = largest_rate_in(flow.system(), *flow.witness())
    assert found.status == "certified" and found.claim["rate"] >= 0.7
    euler = ContractingStep(n, [n], ["tanh"], 1 / 16, 0.95)
    best = smallest_ratio_in(euler.system(), 1 / 16, *euler.witness())
    assert best.status == "certified" and best.claim["ratio"] <= 0.95


def test_best_claim_in_a_norm_is_optimal() -> None:
    # in P = 1, x' = −3x + 2 tanh(x): rate 1, and 0.9 for a step of 0.1, by the right multiple of any multiplier
    line, one = scalar(-3, 2, "tanh"), np.ones((1, 1))
    for gamma in (1e-2, 1.0, 300.0):
        assert largest_rate_in(line, one, gamma * one[0]).claim["rate"] == pytest.approx(1, rel=2e-2)
        assert smallest_ratio_in(line, 0.1, one, gamma * one[0]).claim["ratio"] == pytest.approx(0.9, abs=2e-3)
    leaky = scalar(0, -1, "leaky_relu")
    assert largest_rate_in(leaky, one, one[0]).claim["rate"] == pytest.approx(0.01, rel=0.02)
    growing = scalar(-1, 2, "tanh")
    assert largest_rate_in(growing, one, one[0]).status == smallest_ratio_in(growing, 0.1, one, one[0]).status
    assert largest_rate_in(growing, one, one[0]).status == "refuted"
    sheared = System([[-1, 4], [0, -1]], (np.zeros((2, 1)),), (np.ones((1, 2)),), ("tanh",))
    assert largest_rate_in(sheared, np.eye(2), np.ones(1)).status == "unknown"


@pytest.mark.parametrize("slow", [-5e-3, -1e-6])
def test_ratio_of_a_slow_system_stays_below_one(slow: float) -> None:
    found = smallest_ratio(scalar(slow, 0, "tanh"), 0.1)
    assert found.status == "certified" and 1 + 0.1 * slow <= found.claim["ratio"] < 1
    assert input_gain(found)["P"] < 1.3 / -slow


def test_a_step_implies_the_flow_and_shorter_steps() -> None:
    for seed in range(40):
        system = random_system(seed)
        found = certify_step(system, 0.97, 0.1)
        if found.status == "certified":
            P, gamma = found.witness["P"], found.witness["gamma"]
            assert certify_flow(system, (1 - 0.97**2) / 0.2 * (1 - 1e-9), P, gamma / 0.1).status == "certified"
            assert expanding_pair(system, 1 - 0.4 * 0.03, P=P, step=0.04) is None


def test_certificate_of_a_block_proves_the_block_diagonal_system() -> None:
    block = random_system(1)
    found = certify_flow(block, 0.01)
    assert found.status == "certified"
    whole = System(
        np.kron(np.eye(3), block.A0),
        tuple(np.kron(np.eye(3), a) for a in block.A),
        tuple(np.kron(np.eye(3), w) for w in block.W),
        block.functions,
    )
    P, gamma = np.kron(np.eye(3), found.witness["P"]), np.tile(found.witness["gamma"], 3)
    assert certify_flow(whole, 0.01, P, gamma).status == "certified"


@pytest.mark.parametrize(
    "call", [lambda s: certify_flow(s, 0.0), lambda s: certify_step(s, 1.1, 0.1), lambda s: certify_step(s, 0.9, -0.1)]
)
def test_invalid_claims_are_refused(call: object) -> None:
    with pytest.raises(ValueError, match="allowed"):
        call(scalar(-1, 0.5, "tanh"))  # type: ignore[operator]
