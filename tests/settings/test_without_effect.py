"""Detection of changed settings that have no effect: overridden, or read by no run."""

import pytest

from pipeline.settings.layers import without_effect
from tests.settings.params import TEXT, changed, dumped, line_of, raw, replaced


def idle(old: str, new: str) -> list[str]:
    return without_effect(TEXT, replaced(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lr: 1.5e-3", "lr: 1.6e-3"),
        ("    weight_decay: 1.0e-4", "    weight_decay: 1.0e-5"),  # not overridden by starter.pusht
        ("  max_grad_norm: 1.0", "  max_grad_norm: 2.0"),
        ("train: {steps: 4000, lr: 1.0e-3", "train: {steps: 4000, lr: 2.0e-3"),
        ("    shown: 12", "    shown: 6"),
        ("scale: starter", "scale: lab"),
        ("baselines: [random, nearest_demo]", "baselines: [random]"),
    ],
)
def test_change_with_effect_is_not_reported(old: str, new: str) -> None:
    assert idle(old, new) == []


def test_overridden_key_is_reported_with_its_override() -> None:
    assert idle("    lr: 5.0e-4\n", "    lr: 1.0e-4\n") == [
        f"params.yaml:{line_of('    lr: 5.0e-4')}: robot.pretrain.lr: changes nothing: overridden by "
        f"starter.pusht.pretrain.lr (line {line_of('lr: 1.5e-3')})"
    ]


def test_key_of_every_recipe_is_reported_with_all_overrides() -> None:
    first, *others = idle("every: {candidates: 4, steps: 200", "every: {candidates: 4, steps: 300")
    assert "robot.residual.every.steps: changes nothing: overridden by " in first and not others
    for row in ("resft_fm-nfe4", "resft_fm-nfe16", "resft_fm_unet-nfe16"):
        assert f"starter.pusht.residual.{row}.steps (line " in first


def test_key_of_a_replaced_net_is_reported_with_the_new_kind() -> None:
    values = raw() | {"scale": "paper"} | {key: raw()["paper"]["lists"][key] for key in ("tasks", "images")}
    values |= {key: raw()["paper"]["lists"][key] for key in ("residual", "robustness")}
    before = dumped(values)
    values["robot"]["net"]["depth"] = 7
    (line,) = without_effect(before, dumped(values))
    assert "robot.net.depth: changes nothing: overridden by paper.robot.net.kind (line " in line


def test_long_list_of_overrides_is_shortened() -> None:
    values = raw()
    lab = values["lab"]
    values |= {"scale": "lab", **lab["lists"]}
    before = dumped(values)
    values["robot"]["select"]["evaluation"] = "lift"
    (line,) = without_effect(before, dumped(values))
    assert line.count(" (line ") == 3 and line.endswith(" and 4 more")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (
            "lab.kitchen.pretrain.lr",
            0.25,
            "nothing that is run reads it, which is pusht, digits, gap, toys at scale starter",
        ),
        (
            "kitchen.pretrain.lr",
            0.25,
            "nothing that is run reads it, which is pusht, digits, gap, toys at scale starter",
        ),
        ("starter.lists.nfe", [1], "the lists at the top of the file are those of the current scale, starter"),
    ],
)
def test_key_that_no_run_reads_is_reported(key: str, value: object, reason: str) -> None:
    (line,) = without_effect(TEXT, changed(key, value))
    assert line.partition(": ")[2] == f"{key}: changes nothing: {reason}"


def test_moved_lines_and_deleted_keys_are_not_reported() -> None:
    values = raw()
    del values["lab"]["kitchen"]["evaluation"]
    assert without_effect(TEXT, dumped(values)) == []
