"""Each comparison's sides compute the same at small sizes, and the tables hold what was measured."""

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from pipeline.perf import loading, pairs, plans, simulation, solves, suite, updates
from pipeline.perf.comparison import Comparison, DiffersError, Row, hold, machine
from pipeline.settings.blocks import Unet1dSettings
from pipeline.tasks.loader import load_task
from pipeline.tasks.pusht import PushTOptions
from pipeline.tasks.robomimic.env import observation_keys

SMALL = Unet1dSettings(kind="unet1d", channels=[8, 16], kernel=3, groups=4, time_features=8)

FAMILIES = {
    "unet1d": partial(updates.unet1d_comparisons, (2,), SMALL),
    "unet2d": partial(updates.unet2d_comparisons, 1, 32),
    "mle": partial(updates.mle_comparisons, (2,), 4),
    "pairs": partial(pairs.comparisons, (8,)),
    "dopri5": partial(solves.adaptive_comparisons, 2, 0.01),
    "sampling": partial(solves.sampling_comparisons, ((2, SMALL, 1),)),
    "plans": partial(plans.comparisons, (2,), 1),
    "step": partial(simulation.step_comparisons, 20),
    "pusht": partial(simulation.pusht_comparisons, 1, 1),
    "windows": loading.comparisons,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_both_sides_compute_the_same(family: str) -> None:
    if family in ("unet2d", "pairs"):
        pytest.importorskip("torchcfm")
    if family == "plans":
        pytest.importorskip("onnxruntime", reason="`make env-export` installs it")
    held = [hold(replace(comparison, count=1, aim=0.0)) for comparison in FAMILIES[family]()]
    assert held and all(re.search("equal|within|error", row.same_result) for row in held)


@pytest.mark.parametrize("vector", simulation.VECTORS)
def test_vectorised_kitchens_give_equal_observations(vector: simulation.Vector) -> None:
    comparisons = list(simulation.mujoco_comparisons(2, {"kitchen": (12, 0.5)}))
    (comparison,) = [comparison for comparison in comparisons if vector in comparison.peer]
    assert "equal to the bit" in comparison.same()


def test_robomimics_own_loop_ends_in_the_same_state() -> None:
    (comparison,) = simulation.robomimic_comparisons(1, 12)
    assert "last state: within" in comparison.same()


def test_floors_cover_the_whole_work() -> None:
    assert simulation.shared_floor(lambda: time.sleep(0.1)).seconds() >= 0.1 / simulation.CPUS
    arrays = loading._hdf5_arrays(loading.FOLDER / "square_starter.hdf5")
    assert len(arrays) == 40 * (1 + len(observation_keys("square")))


def test_differing_work_of_a_peer_is_detected() -> None:
    (comparison, _) = simulation.pusht_comparisons(1, 1)
    work = comparison.same.__self__  # type: ignore[attr-defined]
    with pytest.raises(DiffersError, match="observations"):
        replace(work, env_factory=load_task("pusht").envs["a"].factory(PushTOptions(reset_order="legacy"))).same()


ROW = Row("work", "peer", machine(), 1.0, 2.0, 0.5, 0.4, 0.6, 0.6, "equal")


def test_rows_of_other_machines_stay_and_those_of_this_one_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.csv"
    elsewhere, old = replace(ROW, machine="elsewhere"), replace(ROW, work="old")
    table = suite.merged(path, [elsewhere, old, ROW], all_anew=True)
    suite.write(tmp_path, table, "# About\n")
    again = replace(ROW, ratio=0.9)
    some = suite.merged(path, [again], all_anew=False)
    assert [*zip(some["work"], some["machine"], some["ratio"], strict=True)] == [
        ("work", machine(), 0.9),
        ("work", "elsewhere", 0.5),
        ("old", machine(), 0.5),
    ]
    assert suite.merged(path, [again], all_anew=True)["work"].tolist() == ["work", "work"]
    limited, tighter = (replace(ROW, peer=f"limit of {seconds} s") for seconds in (4, 3))
    suite.write(tmp_path, suite.merged(path, [limited], all_anew=False), "# About\n")
    assert "limit of 4 s" not in set(suite.merged(path, [tighter], all_anew=False)["peer"])
    suite.write(tmp_path, table, "# About\n")
    assert list(pd.read_csv(path)) == suite.COLUMNS
    text = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert "## elsewhere" in text
    assert "| work | peer | 1 ms | 2 ms | 0.50 (0.40 to 0.60) | 0.6 | yes | equal |" in text
    assert "floor" not in text
    suite.write(
        tmp_path,
        suite.merged(path, [replace(ROW, ratio=0.9, ratio_high=1.0, floor="half", floor_ms=0.8)], all_anew=True),
        "",
    )
    assert "| work | peer | 0.90, 0.6 | half | 0.8 ms | 0.40 | 1.25 | not ruled out |" in (
        tmp_path / "benchmarks.md"
    ).read_text(encoding="utf-8")
    assert (tmp_path / "benchmarks.png").stat().st_size > 1000
    assert "<svg" in (tmp_path / "benchmarks.svg").read_text(encoding="utf-8")


def test_words_select_comparisons_and_differing_ones_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    def same() -> str:
        raise DiffersError("losses")

    def family() -> Iterator[Comparison]:
        for work in ("first", "second"):
            yield Comparison(work, "peer", 1.0, lambda: "equal", lambda count: [(1.0, 1.0)] * count, 1)
        yield Comparison("third", "peer", 1.0, same, lambda count: [(1.0, 1.0)] * count, 1)

    assert [row.work for row in suite.measure(["first", "third"], [family])] == ["first"]
    assert "third, peer: left out: losses" in capsys.readouterr().out
    assert [row.work for row in suite.measure((), [family])] == ["first", "second"]
