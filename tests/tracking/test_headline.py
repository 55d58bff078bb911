"""Headline metrics of a table and its note, for the parent run."""

import pandas as pd
import pytest

from pipeline.tracking.headline import headline, merged
from pipeline.utils.code_deps import ROOT


def test_headline_of_table_2_compares_fm_with_ft_fm() -> None:
    table = pd.read_csv(ROOT / "reports" / "starter" / "table2.csv")
    found = headline("table2", table)
    assert found
    row = table.query("evaluation == 'pusht_b' and method == 'ft_fm' and nfe == 1").iloc[0]
    assert found.metrics["pusht_b/nfe1 ft_fm max_score"] == row["max_score"]
    assert found.metrics["pusht_b/nfe1 ft_fm diff_vs_fm"] == row["diff_vs_fm"]
    assert "pusht_b/nfe1 fm success" in found.metrics
    assert not [name for name in found.metrics if "random" in name or "ddpm" in name]
    lines = found.note.splitlines()
    assert lines[0] == "### Table 2" and len(lines) == 4 + len(table)
    assert lines[4].startswith("| pusht_a | fm | 1 |")  # compared methods come first


def test_training_seeds_are_averaged_and_an_adaptive_solver_has_no_nfe_in_its_name() -> None:
    seeds = pd.DataFrame({"evaluation": "pusht_b", "method": "fm", "nfe": 1, "train_seed": [0, 1], "success": [0, 1]})
    found = headline("one_step", seeds)
    assert found and found.metrics == {"one_step pusht_b/nfe1 fm success": 0.5}
    images = pd.DataFrame(
        {"method": "i_cfm", "solver": ["euler", "dopri5"], "nfe": [4.0, 22.5], "distance": [9.0, 8.0]}
    )
    found = headline("table1", images)
    assert found and found.metrics == {"table1/nfe4 i_cfm distance": 9.0, "table1/dopri5 i_cfm distance": 8.0}


@pytest.mark.parametrize("name", ["table_d1", "pusht-fm-nfe1"])
def test_other_tables_have_no_headline(name: str) -> None:
    assert headline(name, pd.DataFrame({"method": ["fm"], "success": [1.0]})) is None


def test_long_note_is_cut_at_a_row() -> None:
    long = pd.DataFrame({"method": [f"method_{k}" for k in range(500)], "nfe": 1, "success": 0.5})
    found = headline("table2", long)
    assert found and len(found.note) < 2500
    shown = found.note.count("| method_")
    assert found.note.endswith(f"and {500 - shown} more rows in the run of the table")


def test_updated_table_replaces_only_its_own_note() -> None:
    note = merged("by hand", "### Table 2\n\nold", 100)
    note = merged(note, "### Table 1, images\n\nimages", 100)
    note = merged(note, "### Table 2\n\nnew", 100)
    assert note == "by hand\n\n### Table 1, images\n\nimages\n\n### Table 2\n\nnew"
    assert merged("kept\ncut off", "### x", 12) == "kept"
