"""Layers of settings: later layers win in any order of the file, and each layer refuses unknown keys."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.settings.layers import read, resolve
from pipeline.settings.source import Node
from tests.settings.params import TEXT, changed, dumped, line_of, parsed, raw, refused, replaced

LAYERS = ("common", "robot.pretrain", "lab.robot.pretrain", "kitchen.pretrain", "lab.kitchen.pretrain")


def block_of(text: str, *keys: str) -> Node:
    """Return the resolved block ``keys`` of the settings in ``text``."""
    node = resolve(read(text, "params.yaml"))
    for key in keys:
        node = node.value[key]
    return node


@settings(deadline=None, max_examples=20)
@given(st.dictionaries(st.sampled_from(LAYERS), st.integers(1, 400), min_size=1))
def test_last_layer_with_a_key_wins(warmups: dict[str, int]) -> None:
    values = raw()
    for layer in LAYERS:
        block = values
        for name in layer.split("."):
            block = block.setdefault(name, {})
        block.pop("warmup", None)
        if layer in warmups:
            block["warmup"] = warmups[layer]
    kitchen = block_of(dumped(values), "lab", "kitchen", "pretrain").value["warmup"]
    deciding = [layer for layer in LAYERS if layer in warmups][-1]
    assert (kitchen.value, kitchen.place.key) == (warmups[deciding], f"{deciding}.warmup")


@settings(deadline=None, max_examples=10)
@given(st.randoms(use_true_random=False))
def test_order_of_keys_does_not_matter(chance: random.Random) -> None:
    def shuffled(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        items = [(key, shuffled(inner)) for key, inner in value.items()]
        chance.shuffle(items)
        return dict(items)

    assert parsed(dumped(shuffled(raw()))) == parsed(TEXT)


def test_each_resolved_setting_matches_its_source_line() -> None:
    values = raw()
    for _, node in block_of(TEXT).leaves():
        written: Any = values
        for key in node.place.keys:
            written = written[key]
        assert written == node.value or "{block" in str(written).lower()  # replaced by the block's name
        assert node.place.keys[-1] in TEXT.splitlines()[node.place.line - 1]


def test_task_exists_where_its_scale_lists_it_or_has_its_block() -> None:
    lab = parsed(changed("lab.digits", {})).lab
    assert lab.digits is not None and lab.digits.pretrain.steps == raw()["image"]["pretrain"]["steps"]
    assert parsed(TEXT).lab.digits is None and "kitchen" not in parsed(TEXT).starter.robots
    values = raw()
    values["square"]["data"] = {"dataset": "square_ph"}
    del values["lab"]["square"]
    square = parsed(dumped(values)).lab.task("square")
    assert square.data.dataset == "square_ph"


def test_every_applies_to_all_recipes_and_named_recipes_override_it() -> None:
    values = raw()
    recipes: dict[str, Any] = {"every": {"lr": 0.25, "max_grad_norm": 2.0}, "nfe1": {"lr": 0.5}, "nfe2": {}}
    values["lab"]["kitchen"]["finetune"] = recipes
    found = parsed(dumped(values)).lab.task("kitchen").finetune
    assert {name: (recipe.lr, recipe.max_grad_norm) for name, recipe in found.items()} == {
        "nfe1": (0.5, 2.0),
        "nfe2": (0.25, 2.0),
        "nfe16": (0.25, 2.0),
    }
    robot = values["robot"]["finetune"]
    assert found["nfe16"].candidates == robot["nfe16"]["candidates"]  # from an earlier layer, by name
    assert found["nfe2"].solver == robot["every"]["solver"]  # from every of an earlier layer


def test_diffusion_training_defaults_to_the_flows_settings() -> None:
    lab = parsed(changed("lab.kitchen.diffusion", {"lr": 0.25})).lab.task("kitchen")
    assert lab.diffusion.model_dump() == lab.pretrain.model_dump(include=set(type(lab.diffusion).model_fields)) | {
        "lr": 0.25
    }


def test_net_of_another_kind_replaces_and_of_the_same_kind_merges() -> None:
    net = {"kind": "transformer1d", "width": 8, "depth": 1, "heads": 2, "causal": True}
    whole = net | {"condition_tokens": 1, "time_features": 8}
    assert parsed(changed("lab.kitchen.net", whole)).lab.task("kitchen").net.model_dump() == whole
    mlp = parsed(changed("lab.kitchen.net", {"kind": "mlp", "width": 8})).lab.task("kitchen").net.model_dump()
    assert mlp == raw()["robot"]["net"] | {"width": 8}
    assert refused(changed("paper.kitchen.net", {"kind": "mlp", "width": 8})).endswith(
        "paper.kitchen.net.depth: missing; it has no default"
    )


def test_common_sets_only_keys_that_a_block_has() -> None:
    found = parsed(changed("common.fm_weight", 0.5))
    assert found.lab.task("kitchen").finetune["nfe1"].fm_weight == 0.5
    assert "fm_weight" not in found.lab.task("kitchen").residual["resft_fm-nfe16"].model_dump()
    study = found.lab.task("pusht").studied()
    assert study.precision.seeds == 500 and study.recipes["nfe4"].candidates == 4


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("common: ", "comon: ", "comon: unknown key; did you mean common? allowed: scale, tasks, nfe, residual"),
        ("\nlab:", "\nlap:", "lap: unknown key; did you mean lab? allowed: scale, tasks"),
        ("\nkitchen:", "\nkichen:", "kichen: unknown key; did you mean kitchen? allowed: scale"),
        (
            "  max_grad_norm: 1.0",
            "  max_grad_normm: 1.0",
            "common.max_grad_normm: unknown key; did you mean max_grad_norm? allowed: seed, threads",
        ),
        ("  seed: 0", "  widths: [3]", "common.widths: unknown key; did you mean width? allowed: seed, threads"),
        ("  robot: ", "  robo: ", "lab.robo: unknown key; did you mean robot? allowed: lists, robot, pusht"),
        (
            "  lists: {tasks",
            "  lists: {taks",
            "starter.lists.taks: unknown key; did you mean tasks? allowed: tasks, nfe",
        ),
        ("    path: i_cfm", "    paht: i_cfm", "robot.pretrain.paht: unknown key; did you mean path? allowed: steps"),
        (
            "{steps: 6000",
            "{stesp: 6000",
            "starter.pusht.pretrain.stesp: unknown key; did you mean steps? allowed: steps",
        ),
        ("  data: {flip", "  data: {flop", "image.data.flop: unknown key; did you mean flip? allowed: dataset, flip"),
        ("can: {select", "can: {fid: {}, select", "can.fid: unknown key; allowed: task, custom, title, seed, threads"),
        (
            "diffusion: {}",
            "diffusion: {sigma: 1}",
            "robot.diffusion.sigma: unknown key; allowed: steps, batch_size, lr",
        ),
        (
            "train_seeds: []",
            "train_sees: []",
            "robot.one_step.train_sees: unknown key; did you mean train_seeds? allowed",
        ),
        ("train: {steps: 4", "train: {stps: 4", "gap.train.stps: unknown key; did you mean steps? allowed: steps"),
        ("    width: 256", "    widht: 256", "robot.net.widht: unknown key; did you mean width? allowed: kind, width"),
        ("lora_rank: 0", "lora_rnk: 0", "robot.finetune.every.lora_rnk: unknown key; did you mean lora_rank? allowed"),
        ("nfe16: {cand", "nfe_16: {cand", "robot.finetune.nfe_16: unknown key; allowed: nfe1, nfe2, nfe4, …"),
        (
            "    resft_fm-nfe4: ",
            "    resft-nfe4: ",
            "pusht.residual.resft-nfe4: unknown key; allowed: resft_fm-nfe4, resft_fm_unet-nfe16, …",
        ),
        (
            "net: {width: 192, depth: 2}\n",
            "net: {channels: [8]}\n",
            "starter.pusht.net.channels: unknown key; allowed: kind, width, depth, expansion, time_features",
        ),
        ("diffusion: {}", "diffusion:", "robot.diffusion: given nothing, allowed: a block of keys"),
        ("    nfe1: {}", "    nfe1: 3", "robot.finetune.nfe1: given 3, allowed: a block of keys"),
        ("seed: 0 ", "1: 0 ", "common.1: unknown key; keys are text"),
    ],
)
def test_unknown_key_is_refused_at_every_level(old: str, new: str, line: str) -> None:
    assert refused(replaced(old, new)).startswith(f"params.yaml:{line_of(old)}: {line}")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("    lr: 5.0e-4\n", "    lr: -1\n", "robot.pretrain.lr: given -1, allowed: greater than 0"),
        ("    latest: 2000 ", "    latest: many ", "image.select.latest: given 'many', allowed: a whole number"),
        (
            "  net: {kind: mlp, width: 192,",
            "  net: {kind: mlp, width: 0,",
            "image.net.width: given 0, allowed: at least 1",
        ),
    ],
)
def test_invalid_value_is_refused_even_if_overridden(old: str, new: str, line: str) -> None:
    assert refused(replaced(old, new)) == f"params.yaml:{line_of(old)}: {line}"


@pytest.mark.parametrize("text", ["", "- starter\n", "starter\n"])
def test_a_file_without_keys_is_refused(text: str) -> None:
    assert refused(text).startswith("params.yaml: holds no keys; allowed: a mapping with scale, tasks, nfe, ")


def test_each_key_is_explained_once() -> None:
    explained: set[str] = set()
    comments: list[str] = []
    for line in TEXT.splitlines():
        setting, _, comment = line.partition("# ")
        key, colon, value = setting.strip().partition(":")
        comments += [comment] if comment.strip("-") else []
        explained |= {comment.partition(":")[0]} | (
            {key} if comment else set()
        )  # in { }, a comment starts with its key
        if colon and value and not value.strip().startswith("{"):
            assert key in explained, f"no comment beside: {line}"
    assert len(set(comments)) == len(comments)
