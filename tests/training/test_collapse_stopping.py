"""Collapse stopping warns, ends training and restores the last healthy weights."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.tasks.normalizer import Normalizer
from pipeline.training.collapse_stopping import CollapseStopping
from pipeline.training.data import PreparedData
from pipeline.training.diversity_monitor import DiversityMonitor, DiversityReading
from tests.training.helpers import vector_policy


class Scale(nn.Module):
    """x1 = factor · x0 in one step: a spread of exactly ``factor`` times that of the noise."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, _t: Tensor, x: Tensor, _condition: Tensor) -> Tensor:
        return (self.factor - 1) * x


DATA = PreparedData(*4 * [torch.zeros(8, 1, 1)], Normalizer(1), Normalizer(1))  # type: ignore[arg-type]


def stopping(base: nn.Module, keep: Path | None, warnings: list[str], *, stop: bool = True) -> CollapseStopping:
    monitor = DiversityMonitor(vector_policy(deepcopy(base)), DATA, seed=0)

    def read(net: nn.Module) -> DiversityReading:
        return monitor.measure(vector_policy(net), 1)

    return CollapseStopping(read, read(base), 100, collapse_below=0.2, stop=stop, warn=warnings.append, keep=keep)


@pytest.mark.parametrize("in_memory", [True, False])
def test_collapse_warns_stops_and_restores_the_last_healthy_weights(in_memory: bool, tmp_path: Path) -> None:
    warnings: list[str] = []
    here = stopping(Scale(1.0), None if in_memory else tmp_path / "healthy.pt", warnings)
    factors = {0: 1.0, 10: 0.9, 20: 0.7, 30: 0.01}
    going_on = [here.check(step, Scale(factor)) for step, factor in factors.items()]
    assert going_on == [True, True, True, False]
    (line,) = warnings
    assert line.startswith("the samples are collapsing: at step 30 their spread is ")
    assert line.endswith("the last healthy weights are kept")
    net = Scale(0.01)
    assert here.restore(net) == 20
    assert net.factor.item() == pytest.approx(0.7)


def test_resumed_run_restores_the_saved_healthy_weights(tmp_path: Path) -> None:
    stopping(Scale(1.0), tmp_path / "healthy.pt", []).check(10, Scale(0.8))
    again = stopping(Scale(1.0), tmp_path / "healthy.pt", [])
    assert not again.check(20, Scale(0.0))
    net = Scale(0.0)
    assert again.restore(net) == 10
    assert net.factor.item() == pytest.approx(0.8)


def test_warn_mode_warns_at_each_reading_and_continues(tmp_path: Path) -> None:
    warnings: list[str] = []
    here = stopping(Scale(1.0), tmp_path / "healthy.pt", warnings, stop=False)
    assert [here.check(step, Scale(0.01)) for step in (10, 20)] == [True, True]
    assert len(warnings) == 2 and "are kept" not in warnings[0]
    assert not (tmp_path / "healthy.pt").exists()


def test_low_spread_of_the_base_at_few_evaluations_is_no_collapse_before_the_last_step() -> None:
    """A base that leaves 0.05 of the noise's spread in one step leaves (1 − 0.95/16)^16 = 0.375 of it in 16."""
    warnings: list[str] = []
    here = stopping(Scale(0.05), None, warnings)
    assert here.check(0, Scale(0.05)) and here.check(50, Scale(0.06))
    assert warnings == []
    assert here.check(100, Scale(0.06))  # the last step: warned of, and kept
    assert len(warnings) == 1 and "are kept" not in warnings[0]
    assert here.check(60, Scale(0.04)) and not here.check(70, Scale(0.02))


def test_nan_samples_count_as_collapse(tmp_path: Path) -> None:
    here = stopping(Scale(1.0), tmp_path / "healthy.pt", [])
    assert here.check(0, Scale(1.0)) and not here.check(10, Scale(float("nan")))
    net = Scale(0.0)
    assert here.restore(net) == 0 and net.factor.item() == 1


def test_first_reading_is_reused() -> None:
    taken: list[nn.Module] = []
    monitor = DiversityMonitor(vector_policy(Scale(1.0)), DATA, seed=0)

    def read(net: nn.Module) -> DiversityReading:
        taken.append(net)
        return monitor.measure(vector_policy(net), 1)

    first, later = read(Scale(1.0)), Scale(0.9)
    here = CollapseStopping(read, first, 100, collapse_below=0.2, stop=True, warn=print)
    assert here.check(0, Scale(1.0)) and here.reading == first
    here.check(10, later)
    assert len(taken) == 2 and taken[1] is later
