"""Tables D.1 and D.2: settings of params.yaml and sizes of nets beside the paper's values."""

import pytest

from pipeline.reporting.hyperparameters import hyperparameters_markdown, table_d1, table_d2
from pipeline.reporting.tables import task_titles
from pipeline.settings import schema
from pipeline.utils.code_deps import ROOT

PAPER = schema.load(ROOT / "params.yaml").paper
TASKS = ["pusht_image", "kitchen", "transport"]


def test_paper_scale_matches_the_papers_values() -> None:
    d1, d2 = table_d1(PAPER, TASKS, 16), table_d2(PAPER, TASKS)
    for name in ("chunk", "prediction_horizon", "net", "pretrain_lr", "finetune_lr"):
        assert d1[name].tolist() == d1[f"paper_{name}"].tolist()
    assert d1["net_millions"].tolist() == pytest.approx(d1["paper_net_millions"].tolist(), rel=0.01)
    assert d1["encoder_millions"].iloc[0] == pytest.approx(11, rel=0.03)
    for name in ("robots", "objects", "action_dim", "max_steps", "images"):
        assert d2[name].tolist() == d2[f"paper_{name}"].tolist()
    assert d2["demonstrations"].tolist() == [206, 566, 200]  # the paper has 200 of Push-T


def test_markdown_shows_the_papers_value_where_it_differs() -> None:
    tasks = ["pusht", *TASKS]
    titles = task_titles({task: PAPER.task(task) for task in tasks})
    text = hyperparameters_markdown(table_d1(PAPER, tasks, 16), table_d2(PAPER, tasks), titles, scale="paper")
    assert "| Push-T from images | 8 | 16 | 2x96x96 [1x96x96] | ConditionalUnet1D | 79.95 [80] | ResNet-18 |" in text
    assert "| Push-T from images | 1 | 1 | 2 | 206 [200] | 300 | yes |" in text
    lines = [line for line in text.splitlines() if line.startswith("| Push-T |")]
    assert len(lines) == 2 and not any("[" in line for line in lines)  # the paper has no Push-T from states


def test_counts_stay_integers_beside_an_unknown_count() -> None:
    lab = schema.load(ROOT / "params.yaml").lab
    lines = table_d2(lab, ["lift", "transport"]).to_csv(index=False).splitlines()
    assert lines[1].startswith("lift,1,1,10,70,200,False")
    assert lines[2].startswith("transport,2,3,20,,700,False,2,3,20,200,700,")
