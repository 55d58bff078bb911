"""Timed comparisons: medians, floors, alternating order and refusal of differing results."""

import math
from dataclasses import replace

import pytest

from pipeline.perf.comparison import Comparison, DiffersError, Floor, hold, in_turns, nearly_equal


def comparison(turns: list[tuple[float, float]], same: str = "equal") -> Comparison:
    return Comparison("work", "peer", 0.5, lambda: same, lambda count: turns[:count], count=len(turns) - 1)


def test_medians_and_quartiles_are_over_the_turns_without_the_first() -> None:
    row = hold(comparison([(9.0, 1.0), (1.0, 2.0), (1.0, 4.0), (2.0, 2.0), (3.0, 4.0), (4.0, 4.0)]))
    assert (row.ratio_low, row.ratio, row.ratio_high) == (0.5, 0.75, 1.0)
    assert (row.ours_ms, row.peer_ms) == (2000, 4000)
    assert (row.work, row.peer, row.aim, row.same_result) == ("work", "peer", 0.5, "equal")


def test_floor_is_timed_only_where_the_aim_is_missed() -> None:
    floor = Floor("half of it", lambda: 1.5)
    missed = hold(replace(comparison([(1.0, 1.0), (3.0, 4.0)]), floor=floor))
    assert (missed.ratio, missed.floor, missed.floor_ms) == (0.75, "half of it", 1500)
    met = hold(replace(comparison([(1.0, 1.0), (1.0, 4.0)]), floor=floor))
    assert met.floor == ""
    assert math.isnan(met.floor_ms)


def test_sides_alternate_and_alternate_in_going_first() -> None:
    called: list[str] = []
    taken = in_turns(lambda: called.append("ours"), lambda: called.append("theirs"), repeat=2)(2)
    assert called == 2 * ["ours"] + 2 * ["theirs"] + 2 * ["theirs"] + 2 * ["ours"]
    assert len(taken) == 2


def test_differing_results_are_refused() -> None:
    assert nearly_equal([1.0, 2.0], [1.0, 2.0], 0.0, "x") == "x: equal to the bit"
    assert nearly_equal([1.0, 2.001], [1.0, 2.0], 1e-3, "x") == "x: within 5.0e-04"
    with pytest.raises(DiffersError, match=r"x: relative difference 5\.0e-04, allowed: 1\.0e-04"):
        nearly_equal([1.0, 2.001], [1.0, 2.0], 1e-4, "x")
    with pytest.raises(DiffersError, match="shapes"):
        nearly_equal([1.0], [1.0, 2.0], 1.0, "x")
    with pytest.raises(DiffersError):
        nearly_equal([float("nan")], [1.0], 1.0, "x")
