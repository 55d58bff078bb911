"""Search for counterexamples to a claim: states that separate too fast, equilibria, inputs that lead to infinity.

The searches are gradient ascents. A system's growth at x, in one norm or in all, depends on x only through ∂x'/∂x. The
derivative of ∂x'/∂x is known, so thousands of states can climb at once. A find is checked again, with room for
rounding, before it counts as a counterexample. If nothing is found, nothing is proved.
"""

from itertools import pairwise

import numpy as np
from scipy.integrate import DOP853

from pipeline.stability.certificate import CERTIFIED, Certificate, Counterexample, input_gain
from pipeline.stability.climb import (
    climbed,
    eigenpairs,
    growth_in_every_norm,
    growth_in_norm,
    jacobians,
    starting_states,
)
from pipeline.stability.inequalities import iss_blocks
from pipeline.stability.system import Array, System, nonlinearity
from pipeline.stability.verify import UNIT

_ROOM = 1e-7
"""Relative excess above which a claim counts as broken; a smaller one may be rounding."""

_OFFSET = 1e-3
"""Distance of the two states of a pair."""


def expanding_pair(
    system: System,
    allowed: float,
    *,
    P: Array | None = None,
    step: float | None = None,
    seed: int = 0,
    starts: int | None = None,
    climbs: int | None = None,
) -> Counterexample | None:
    """Search for two states that separate faster than ``allowed``, an exponent of the flow or factor of its Euler map.

    Args:
        P: the norm, (n, n); without it, they must separate faster in every norm, near an equilibrium of some constant
            input.
        step: h of the Euler map; without it, the flow.
        starts, climbs: number of starting states, and of steps from each; by default so many that it takes seconds.
    """
    starts = starts or max(4, min(64, 640 // system.n))
    climbs = climbs or max(2, min(30, 300 // system.n))
    growth = growth_in_norm(P, step) if P is not None else growth_in_every_norm(step)
    states = starting_states(system, starts, seed)
    states = climbed(system, states, growth, step, climbs)
    values, _, directions = growth(jacobians(system, states, step))
    for index in np.argsort(-values)[:8]:
        x = states[index]
        direction = np.real(directions[index])
        y = x + _OFFSET / max(_size(system.stacked[1]), 1e-3) * direction / np.linalg.norm(direction)
        kind = "equilibrium" if P is None else "pair"
        found = Counterexample(kind, x, y, -system.field(x), float(values[index]), allowed)
        if recheck_counterexample(found, system, P=P, step=step):
            return found
    return None


def recheck_counterexample(
    found: Counterexample, system: System, *, P: Array | None = None, step: float | None = None
) -> bool:
    """Check a counterexample from the system alone, with room for rounding.

    Args:
        P, step: of the claim, as for ``expanding_pair``.
    """
    if found.kind == "rest":
        return _is_near_rest(system, found.x)
    if found.kind == "pair" and P is not None:
        room = _ROOM * (1 + abs(found.allowed)) + _rounding(system, found.x, found.y, P)
        return _separation(system, found.x, found.y, P, step) > found.allowed + room
    if found.kind != "equilibrium" or _near_a_kink(system, found.x):
        return False
    jacobian = jacobians(system, found.x, step)
    values, left, right = eigenpairs(jacobian)
    leading = int(np.argmax(values.real if step is None else np.abs(values)))
    # ``room`` bounds how far rounding can move this eigenvalue: far if eigenvectors are nearly parallel
    condition = 1 / max(abs(complex(left[leading] @ right[:, leading])), 1e-300)
    room = _ROOM + condition * (1e3 * len(jacobian) * UNIT * _size(jacobian) + _rounding_of_slopes(system, found.x))
    value = values[leading].real if step is None else abs(values[leading])
    return bool(value > found.allowed + room * (1 + abs(found.allowed)))


def diverging_input(
    system: System,
    size: float = 1.0,
    *,
    bound: float | None = None,
    step: float | None = None,
    seed: int = 0,
    starts: int = 32,
    turns: int = 4,
    steps: int = 2**12,
) -> Counterexample | None:
    """Search for a constant input of norm ``size`` that leads the state too far from rest, in simulation.

    Each turn points the inputs in the direction of the states reached.

    Args:
        bound: the largest Euclidean norm that a certificate allows, ``input_gain(…)["euclidean"] * size``; a find
            exceeds it by more than rounding. Without it, a state counts as diverging if it grows 1.9-fold, or to 10^8
            times the input, in each of the last three doublings of time. That is only evidence: every stable system
            that is slow for the length of the simulation looks so too.
        step: h of the Euler map. Without it, the flow is simulated by Euler steps short enough to be stable, and an
            excess over the bound counts only if a solver of order 8 confirms it.
        steps: number of steps, a multiple of 8.
    """
    generator = np.random.default_rng(seed)
    inputs = generator.standard_normal((starts, system.n))
    A, W = system.stacked
    h = step or 0.5 / (_size(system.A0) + _size(A) * _size(W) + 1e-12)
    limit = 1e8 * size if bound is None else bound * (1 + 1e-6)
    for _ in range(turns):
        inputs *= size / np.maximum(np.linalg.norm(inputs, axis=1, keepdims=True), 1e-300)
        states, sizes = np.zeros_like(inputs), []
        for k in range(steps):
            norms = np.linalg.norm(states, axis=1, keepdims=True)
            if k in {steps // 8, steps // 4, steps // 2}:
                sizes.append(norms[:, 0])
            states = np.where(norms < limit, system.euler_step(states, inputs, h), states)
        sizes.append(np.linalg.norm(states, axis=1))
        if bound is None:
            suspects = np.all([(b > 1.9 * a) | (b >= limit) for a, b in pairwise(sizes)], axis=0)
        else:
            suspects = sizes[-1] > limit
        for index in np.flatnonzero(suspects)[:2]:
            if bound is None or step is not None or _leaves(system, inputs[index], limit, steps * h):
                allowed = float(sizes[0][index]) if bound is None else bound
                start, reached = np.zeros(system.n), float(sizes[-1][index])
                return Counterexample("divergence", start, states[index], inputs[index], reached, allowed)
        inputs = states + 0.1 * size * generator.standard_normal(states.shape)
    return None


def _leaves(system: System, g: Array, limit: float, duration: float) -> bool:
    """Check whether the flow from rest under ``g`` exceeds ``limit`` within ``duration``, to ten digits."""
    solver = DOP853(lambda _, x: system.field(x, g), 0.0, np.zeros(system.n), duration, rtol=1e-10, atol=1e-10 * limit)
    while solver.status == "running":
        solver.step()
        if np.linalg.norm(solver.y) > limit:
            return True
    return False


def excess_dissipation(certificate: Certificate, *, seed: int = 0, starts: int = 1000) -> Counterexample | None:
    """Search for a state and an input that break V' ≤ −xᵀΞ_0x + gᵀΦg of a certificate of stability."""
    system, witness = certificate.system, certificate.witness
    A, W = system.stacked
    integral = np.diag(witness["integral"])
    none = np.zeros_like(integral)
    P, state, inputs = (witness[name] for name in ("P", "state", "inputs"))
    blocks = iss_blocks(system.A0, A, W, none, none, P, integral, state, none, none, inputs)
    matrix: Array = np.block(blocks)
    for x in starting_states(system, starts, seed):
        stretched = np.concatenate([x, _values(system, x)])
        forced = matrix[-system.n :, : -system.n] @ stretched
        g = np.linalg.solve(inputs, forced)  # the worst input at x
        stretched = np.concatenate([stretched, g])
        excess, scale = stretched @ matrix @ stretched, np.abs(stretched) @ np.abs(matrix) @ np.abs(stretched)
        if excess > _ROOM * scale:
            return Counterexample("dissipation", x, x, g, float(excess), 0.0)
    return None


def cross_check(
    certificate: Certificate, system: System, *, seed: int = 0, starts: int | None = None, climbs: int | None = None
) -> None:
    """Try to break a certificate; contraction by pairs of states and by inputs, a region by pairs inside it.

    Raises:
        ValueError: the certificate is of another system.
        AssertionError: it is ``certified``, but a counterexample was found: one of the two is wrong.
    """
    if certificate.system.to_dict() != system.to_dict():
        raise ValueError("certificate: given one of another system, allowed: one of this system")
    if certificate.status != CERTIFIED:
        return
    found: Counterexample | None = None
    if certificate.inequality == "iss":
        found = excess_dissipation(certificate, seed=seed)
    elif certificate.inequality == "contraction_region":
        found = _pair_in_region(certificate, seed)
    else:
        step = certificate.claim.get("step")
        allowed = -certificate.claim["rate"] if step is None else certificate.claim["ratio"]
        for P in (certificate.witness["P"], None):
            found = found or expanding_pair(system, allowed, P=P, step=step, seed=seed, starts=starts, climbs=climbs)
        if found is None and certificate.claim.get("ratio") != 1:
            bound = input_gain(certificate)["euclidean"]
            steps = 8 * max(16, min(64, 8192 // system.n))
            found = diverging_input(system, bound=bound, step=step, seed=seed, starts=8, turns=2, steps=steps)
    if found is not None:
        raise AssertionError(f"{certificate.inequality}: certified, and broken by {found.to_dict()}")


def _pair_in_region(certificate: Certificate, seed: int) -> Counterexample | None:
    """Search among random pairs in the ellipsoid, half of them on its boundary."""
    system, P = certificate.system, certificate.witness["P"]
    generator = np.random.default_rng(seed)
    ball = generator.standard_normal((2, 2000, system.n))
    ball /= np.linalg.norm(ball, axis=-1, keepdims=True)
    ball[:, ::2] *= generator.random((2, 1000, 1)) ** (1 / system.n)
    offsets = np.sqrt(certificate.claim["level"]) * np.linalg.solve(np.linalg.cholesky(P).T, ball[..., None])[..., 0]
    allowed = -certificate.claim["rate"]
    for x, y in certificate.witness["center"] + np.swapaxes(offsets, 0, 1):
        found = Counterexample("pair", x, y, np.zeros(system.n), _separation(system, x, y, P, None), allowed)
        if recheck_counterexample(found, system, P=P):
            return found
    return None


def _separation(system: System, x: Array, y: Array, P: Array, step: float | None) -> float:
    """Compute d/dt log |x − y|_P or, for an Euler step, the growth factor of |x − y|_P."""
    delta, moved = x - y, system.field(x) - system.field(y)
    length = delta @ P @ delta
    if not length > 0:
        return -np.inf
    if step is None:
        return float(delta @ P @ moved / length)
    after = delta + step * moved
    return float(np.sqrt(after @ P @ after / length))


def _rounding(system: System, x: Array, y: Array, P: Array) -> float:
    """Bound the rounding error of ``_separation`` from above."""
    A, W = system.stacked
    reach = (np.linalg.norm(system.A0) + np.linalg.norm(A) * np.linalg.norm(W)) * (
        np.linalg.norm(x) + np.linalg.norm(y)
    )
    return float(1e-14 * reach * np.sqrt(np.linalg.cond(P)) / max(np.linalg.norm(x - y), 1e-300))


def _values(system: System, x: Array) -> Array:
    """Compute all f_j(W_j x), (K,)."""
    values = [nonlinearity(name).function(w @ x) for name, w in zip(system.functions, system.W, strict=True)]
    return np.concatenate(values)


def _is_near_rest(system: System, x: Array) -> bool:
    """Check that Newton's method would move ``x`` by almost nothing, and that ``x`` is not near the origin."""
    field, size = system.field(x), np.linalg.norm(x)
    if not (size > 1e-3 and np.linalg.norm(field) < 1e-9 * np.linalg.norm(system.A0) * size):
        return False
    try:
        return bool(np.linalg.norm(np.linalg.solve(system.jacobian(x), field)) < 1e-6 * size)
    except np.linalg.LinAlgError:
        return False


def _rounding_of_slopes(system: System, x: Array) -> float:
    """Bound the change of ∂x'/∂x by the rounding of all W_j x from above; no f_j'' exceeds 2."""
    A, W = system.stacked
    moved = (system.n + 2) * UNIT * (np.abs(W) @ np.abs(x)).max()
    return float(2 * moved * np.linalg.norm(A) * np.linalg.norm(W))


def _near_a_kink(system: System, x: Array) -> bool:
    """Check whether some f_j has no derivative at W_j x, or close to it."""
    kinked = [w for name, w in zip(system.functions, system.W, strict=True) if not nonlinearity(name).peaked]
    return any(bool((np.abs(w @ x) < 1e-6 + 1e-12 * np.abs(w) @ np.abs(x)).any()) for w in kinked)


def _size(matrix: Array) -> float:
    """Compute the largest singular value."""
    return float(np.linalg.norm(matrix, 2))
