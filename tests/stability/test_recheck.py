"""Certificates in JSON: complete, redone by anyone, and not believed when changed."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.closure import ROOT
from pipeline.stability.certificate import Certificate, issue
from pipeline.stability.contraction import certify_flow, certify_step
from pipeline.stability.iss import certify_iss
from pipeline.stability.recheck import recheck
from pipeline.stability.regions import certify_region, equilibria
from pipeline.stability.system import System

SYSTEM = System([[-2.0, 0.3], [-0.4, -1.5]], ([[0.5], [-0.7]],), ([[1.0, 0.5]],), ("tanh",))
LINE = System([[-1.0]], ([[2.0]],), ([[1.0]],), ("tanh",))
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


def test_a_refutation_is_redone_too() -> None:
    written = json.loads(json.dumps(certify_flow(LINE, 0.1).to_dict()))
    assert written["status"] == "refuted" and recheck(written) == "refuted"
    written["counterexample"]["x"] = [1.9]
    assert recheck(written) == "unknown"
    assert recheck(Certificate("contraction", "certified", SYSTEM, {"rate": 0.5}).to_dict()) == "unknown"
    with pytest.raises(ValueError, match="inequality: given 'guess'"):
        issue("guess", SYSTEM, {}, {})


def test_the_lines_of_the_guide_redo_a_proof(certificates: dict[str, dict], tmp_path: Path) -> None:
    guide = (ROOT / "pipeline/stability/README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import json\n.*?)```", guide, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith("import")]) <= 10
    path = tmp_path / "certificate.json"
    code = code.replace('"certificate.json"', repr(str(path)))
    path.write_text(json.dumps(certificates["contraction"]))
    exec(code, {})
    worse = certificates["contraction"] | {"claim": {"rate": 20.0}}
    path.write_text(json.dumps(worse))
    with pytest.raises(AssertionError):
        exec(code, {})
    path.write_text(json.dumps(certificates["contraction_region"]))
    exec(code, {})
