"""The report on certificates rechecks them, and states what is unknown."""

from typing import Any

import numpy as np

from pipeline.reporting.certificates import certificates_markdown
from pipeline.stability.contraction import certify_step
from pipeline.stability.system import System

STABLE = System(np.diag([-1.0, -2.0]), (np.zeros((2, 1)),), (np.zeros((1, 2)),), ("tanh",))


def result(**certificates: Any) -> dict[str, Any]:
    decay = {"largest": 0.75, "median": 0.6, "certified": 0.8, "pairs": 64}
    about = {
        "task": "lift",
        "row": "resft_fm-nfe4",
        "train_steps": 7,
        "train_seed": 0,
        "grid": [1.0, 1.25, 1.5, 1.75],
        "decay": decay,
        "region_share": None,
    }
    return about | {"certificates": {name: one.to_dict() for name, one in certificates.items()}}


def test_certified_bound_is_reported_with_measurements() -> None:
    text = certificates_markdown("starter", [result(step=certify_step(STABLE, 0.8, 0.25))], ["pusht-resft_fm-nfe16"])
    assert "| certified | ρ = 0.8000 at h = 0.25 | 1.25 | 0.6000 | 0.7500 | 64 |" in text
    assert "at most 0.512 of a disturbance" in text  # 0.8³
    assert "- pusht-resft_fm-nfe16: its certificate is not there." in text


def test_certificate_not_proved_by_its_matrices_is_flagged() -> None:
    written = result(step=certify_step(STABLE, 0.8, 0.25))
    written["certificates"]["step"]["claim"]["ratio"] = 0.1
    assert "**not proved by its matrices**" in certificates_markdown("starter", [written], [])


def test_refuted_and_missing_certificates_are_reported_as_such() -> None:
    growing = System(np.array([[0.5]]), (np.zeros((1, 1)),), (np.zeros((1, 1)),), ("tanh",))
    assert "| refuted | not ρ = 0.9000 at h = 0.25 | — |" in certificates_markdown(
        "starter", [result(step=certify_step(growing, 0.9, 0.25))], []
    )
    unet = result() | {"row": "resft_fm_unet-nfe16", "decay": None}
    assert "| Lift, ResFT-FM (U-Net), NFE 16 | — | nothing is known |" in certificates_markdown(
        "starter", [unet], [], {"lift": "Lift"}
    )
