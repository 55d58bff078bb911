"""Certificates in JSON: complete proofs, rechecked independently, rejected when changed."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.stability.certificate import Certificate, Counterexample, issue
from pipeline.stability.contraction import certify_flow, certify_step
from pipeline.stability.iss import certify_iss
from pipeline.stability.recheck import recheck
from pipeline.stability.regions import certify_region, equilibria
from pipeline.stability.system import System
from pipeline.utils.code_deps import ROOT

SYSTEM = System([[-2.0, 0.3], [-0.4, -1.5]], ([[0.5], [-0.7]],), ([[1.0, 0.5]],), ("tanh",))
LINE = System([[-1.0]], ([[2.0]],), ([[1.0]],), ("tanh",))
SHEARED = System([[-1.0, 4.0], [0.0, -1.0]], (np.zeros((2, 1)),), (np.ones((1, 2)),), ("tanh",))
MAKE: dict[str, Callable[[], Certificate]] = {
    "contraction": lambda: certify_flow(SYSTEM, 0.5),
    "contraction_step": lambda: certify_step(SYSTEM, 0.95, 0.1),
    "iss": lambda: certify_iss(SYSTEM),
    "contraction_region": lambda: certify_region(LINE, equilibria(LINE, [0.0])[-1], 0.1, bisections=8),
}


@pytest.fixture(scope="module")
def certificates() -> dict[str, dict]:
    return {name: json.loads(json.dumps(make().to_dict())) for name, make in MAKE.items()}


@pytest.mark.parametrize("name", MAKE)
def test_json_carries_the_whole_proof(certificates: dict[str, dict], name: str) -> None:
    written = certificates[name]
    assert written["inequality"] == name and written["status"] == "certified" and recheck(written) == "certified"
    assert Certificate.from_dict(written).to_dict() == written


@pytest.mark.parametrize("name", MAKE)
def test_a_changed_certificate_is_rejected(certificates: dict[str, dict], name: str) -> None:
    def changed(*keys: str | int, by: Callable[[float], float]) -> str:
        written = json.loads(json.dumps(certificates[name]))
        place = written
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = by(place[keys[-1]])
        return recheck(written)

    assert changed("system", "A0", 0, 0, by=lambda a: a + 5) == "unknown"
    assert changed("witness", "P", 0, 0, by=lambda p: -p) == "unknown"
    assert changed("slopes", "upper", 0, by=lambda slope: slope / 2) == "unknown"
    if len(certificates[name]["witness"]["P"]) > 1:
        assert changed("witness", "P", 0, 1, by=lambda p: p + 1e-9) == "unknown"
    if "gamma" in certificates[name]["witness"]:
        assert changed("witness", "gamma", 0, by=lambda gamma: -gamma) == "unknown"
    if "rate" in certificates[name]["claim"]:
        assert changed("claim", "rate", by=lambda rate: 20 * rate) == "unknown"
    if "ratio" in certificates[name]["claim"]:
        assert changed("claim", "ratio", by=lambda ratio: 0.5 * ratio) == "unknown"


def test_negative_radii_prove_nothing() -> None:
    # x' = −x + 2 tanh(x) expands at 0; the slopes "between" 3 and −3 would prove a region around it
    claim = {"rate": 0.5, "level": 8.0, "input_radius": 1.0}
    witness = {"P": np.eye(1), "gamma": np.array([3.0]), "center": np.zeros(1), "radii": np.array([-3.0])}
    assert issue("contraction_region", LINE, claim, witness).status == "unknown"
    written = issue("contraction_region", LINE, claim, witness).to_dict()
    slopes = {"lower": [0.0], "upper": [0.01]}
    arrays = {name: value.tolist() for name, value in witness.items()}
    assert recheck(written | {"status": "certified", "witness": arrays, "slopes": slopes}) == "unknown"


def test_slopes_of_a_region_prove_nothing_elsewhere() -> None:
    region = MAKE["contraction_region"]()
    assert region.status == "certified"
    claim = {"rate": region.claim["rate"]}
    assert issue("contraction", LINE, claim, region.witness).status == "unknown"
    forged = region.to_dict() | {"inequality": "contraction", "claim": claim}
    assert recheck(forged) == "unknown"
    assert certify_flow(LINE, 0.1).status == "refuted"


WRONG = [math.nan, math.inf, -math.inf, 1e308, -1e308]


@pytest.mark.parametrize("name", MAKE)
def test_no_broken_witness_is_certified(certificates: dict[str, dict], name: str) -> None:
    def status(array: str, value: Any) -> str:
        return recheck(certificates[name] | {"witness": certificates[name]["witness"] | {array: value}})

    for array, value in certificates[name]["witness"].items():
        given = np.array(value)
        broken = [np.full_like(given, wrong) for wrong in WRONG]
        broken += [given[None], given[..., None], given.ravel()[0], np.append(given, given, axis=0), given[:0]]
        broken += [given.ravel()] if given.ndim == 2 else [np.diag(given)]
        for wrong in broken:
            assert status(array, wrong.tolist()) == "unknown", (array, wrong)
        for text in (str(value), np.array(value).astype(str).tolist(), True, None, {}):
            with pytest.raises(ValueError, match="numbers: given"):
                status(array, text)
        rest = {other: one for other, one in certificates[name]["witness"].items() if other != array}
        assert recheck(certificates[name] | {"witness": rest}) == "unknown"
    assert status("more", [1.0]) == "unknown"


@pytest.mark.parametrize("name", [name for name in MAKE if name != "iss"])
def test_invalid_claims_of_a_certificate_raise(certificates: dict[str, dict], name: str) -> None:
    claim = certificates[name]["claim"]
    for key, value in claim.items():
        for wrong in (0.0, -value, *WRONG, True, str(value), None, [value], 10**400, 1e-310):
            with pytest.raises(ValueError, match=f"{key}: given"):
                recheck(certificates[name] | {"claim": claim | {key: wrong}})
        with pytest.raises(ValueError, match="claim: given"):
            recheck(certificates[name] | {"claim": {other: one for other, one in claim.items() if other != key}})
    # a report would print it, though nothing proves it
    with pytest.raises(ValueError, match="claim: given"):
        recheck(certificates[name] | {"claim": claim | {"guess": 0.1}})


@pytest.mark.parametrize("name", MAKE)
def test_no_broken_system_is_certified(certificates: dict[str, dict], name: str) -> None:
    system = certificates[name]["system"]
    n = len(system["A0"])
    for wrong in WRONG[:3]:
        with pytest.raises(ValueError, match="finite"):
            recheck(certificates[name] | {"system": system | {"A0": np.full((n, n), wrong).tolist()}})
    for huge in WRONG[3:]:
        assert recheck(certificates[name] | {"system": system | {"A0": np.full((n, n), huge).tolist()}}) == "unknown"
    with pytest.raises(ValueError, match="numbers: given"):
        recheck(certificates[name] | {"system": system | {"A0": np.array(system["A0"]).astype(str).tolist()}})
    for slopes in ([math.nan], [0.0, 0.0], [[0.0]], []):
        assert recheck(certificates[name] | {"slopes": {"lower": slopes, "upper": slopes}}) == "unknown"


def test_radii_too_small_to_be_squared_prove_nothing() -> None:
    # level and squares of radii are below the smallest number with all of its digits
    claim = {"rate": 0.1, "level": 1e-100, "input_radius": 1e-52}
    witness = {
        "P": 1e220 * np.eye(1),
        "gamma": 2e220 * np.ones(1),
        "center": np.array([1.9]),
        "radii": np.array([1e-160]),
    }
    assert issue("contraction_region", LINE, claim, witness).status == "unknown"


def test_a_pair_in_one_norm_or_far_from_the_center_refutes_nothing() -> None:
    pair = certify_flow(SHEARED, 0.5, np.eye(2), np.ones(1)).to_dict()
    assert pair["status"] == "unknown" and pair["counterexample"]["refutes"] == "this norm"
    assert recheck(pair) == recheck(pair | {"status": "refuted"}) == "unknown"
    indefinite = pair | {"status": "refuted", "witness": {"P": [[-1.0, 0.0], [0.0, 1.0]]}}
    assert recheck(indefinite) == "unknown"
    region = json.loads(json.dumps(certify_region(LINE, np.zeros(1), 0.1).to_dict()))
    assert region["status"] == "refuted" and region["counterexample"]["refutes"] == "every norm"
    assert recheck(region) == "refuted"
    for center in ([1.9], [0.0, 0.0], []):
        assert recheck(region | {"witness": {"center": center}}) == "unknown"
    assert recheck(region | {"witness": {}}) == "unknown"


def test_a_slow_state_is_not_at_rest() -> None:
    slow = System(np.diag([-1e-12, -1.0]), (np.zeros((2, 1)),), (np.ones((1, 2)),), ("tanh",))
    e = np.array([1.0, 0.0])
    claimed = Certificate("iss", "refuted", slow, {}, {}, Counterexample("rest", e, 0 * e, 0 * e, 1.0, 0.0))
    assert recheck(claimed.to_dict()) == "unknown"


@pytest.mark.parametrize("wrong", WRONG)
def test_no_broken_counterexample_refutes(wrong: float) -> None:
    written = json.loads(json.dumps(certify_flow(LINE, 0.1).to_dict()))
    for key, values in (("x", [[wrong], wrong, [0.0, wrong]]), ("allowed", [wrong])):
        for value in values:
            assert recheck(written | {"counterexample": written["counterexample"] | {key: value}}) == "unknown"
    with pytest.raises(ValueError, match="rate: given"):
        recheck(written | {"claim": {"rate": wrong}})


def test_refutations_are_rechecked() -> None:
    written = json.loads(json.dumps(certify_flow(LINE, 0.1).to_dict()))
    assert written["status"] == "refuted" and recheck(written) == "refuted"
    written["counterexample"]["x"] = [1.9]
    assert recheck(written) == "unknown"
    assert recheck(Certificate("contraction", "certified", SYSTEM, {"rate": 0.5}).to_dict()) == "unknown"
    with pytest.raises(ValueError, match="inequality: given 'guess'"):
        issue("guess", SYSTEM, {}, {})


def test_readme_example_rechecks_a_proof(tmp_path: Path) -> None:
    guide = (ROOT / "pipeline/stability/README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import json\n.*?)```", guide, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith("import")]) <= 10
    path = tmp_path / "certificates.json"
    code = code.replace('"certificates.json"', repr(str(path)))
    leaky = System([[-3.0]], ([[0.5]], [[-1.0]]), ([[1.0]], [[0.5]]), ("tanh", "leaky_relu"))

    def check(**certificates: dict) -> None:
        path.write_text(
            json.dumps({"certificates": certificates, "row": "resft_fm-nfe16", "decay": None}), encoding="utf-8"
        )
        exec(code, {})

    for system in (SYSTEM, leaky):
        step, flow = certify_step(system, 0.95, 0.1).to_dict(), certify_flow(system, 0.5).to_dict()
        assert step["status"] == flow["status"] == "certified"
        check(step=step, flow=flow, iss={})
        for worse in (
            {"step": step | {"claim": {"ratio": 0.5, "step": 0.1}}},
            {"step": step | {"claim": {"ratio": 0.95, "step": 2.0}}},
            {"flow": flow | {"claim": {"rate": 20.0}}},
            {"flow": flow | {"witness": flow["witness"] | {"P": (-np.eye(system.n)).tolist()}}},
        ):
            with pytest.raises(AssertionError):
                check(**({"step": step, "flow": flow} | worse))
