"""Validation of params.yaml: each error is one line, with the key as it is written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.flow.covariance import COVARIANCES
from pipeline.flow.marginal import POINT_SETS
from pipeline.ode.fixed_step import STEPS
from pipeline.ode.gradient import GRADIENTS
from pipeline.settings import schema
from pipeline.utils.code_deps import ROOT
from pipeline.utils.errors import UserError
from tests.settings.params import dumped, line_of, raw, refused, replaced


def test_projects_file_is_valid_at_every_scale() -> None:
    loaded = schema.load(ROOT / "params.yaml")
    for scale in get_args(schema.Scale):
        block = loaded.block(scale)
        for task in block.tasks:
            assert {f"nfe{nfe}" for nfe in block.nfe} <= set(block.task(task).finetune)
            assert set(block.residual) <= set(block.task(task).residual)
        for image in block.images:
            assert {f"nfe{nfe}" for nfe in block.image_nfe} <= set(block.image_task(image).finetune)


RESIDUAL = "pusht.residual.resft_fm-nfe4"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("lr: 1.5e-3", "lr: -1.5e-3", "starter.pusht.pretrain.lr: given -0.0015, allowed: greater than 0"),
        ("lr: 1.5e-3", "lr: .nan", "starter.pusht.pretrain.lr: given nan, allowed: a finite number"),
        ("lr: 1.5e-3", "lr: fast", "starter.pusht.pretrain.lr: given 'fast', allowed: a number"),
        ("lr: 1.5e-3", "lr: ", "starter.pusht.pretrain.lr: given nothing, allowed: a number"),
        ("  ema_decay: 0.99 ", "  ema_decay: 1 ", "common.ema_decay: given 1, allowed: less than 1"),
        ("  seed: 0 ", "  seed: 4294967296 ", "common.seed: given 4294967296, allowed: less than 4,294,967,296"),
        ("scale: starter", "scale: huge", "scale: given 'huge', allowed: starter, lab, paper, metaworld"),
        ("    steps: 10000\n", "    steps: true\n", "robot.pretrain.steps: given true, allowed: a whole number"),
        ("{steps: 6000", "{steps: 6000.5", "starter.pusht.pretrain.steps: given 6000.5, allowed: a whole number"),
        (
            "  coupling: nearest ",
            "  coupling: neares ",
            "common.coupling: given 'neares', allowed: independent, minibatch_ot, sinkhorn, conditional_ot, nearest, "
            "inversion, reflow",
        ),
        (
            "coupling: independent",
            "coupling: reflow",
            "robot.pretrain.coupling: given 'reflow', allowed: independent, minibatch_ot, sinkhorn, conditional_ot",
        ),
        ("fm_weight: 0.0", "fm_weight: -1.0", "common.fm_weight: given -1.0, allowed: at least 0.0"),
        ("weight: 0.0 ", "weight: .inf ", "common.fm_weight: given inf, allowed: a finite number"),
        ("lora_rank: 0", "lora_rank: -1", "robot.finetune.every.lora_rank: given -1, allowed: at least 0"),
        ("  end: 2.0 ", "  end: 1.0 ", "common.end: given 1.0, allowed: greater than 1"),
        (
            "stability: step ",
            "stability: sure ",
            "robot.residual.resft_fm-nfe16.net.stability: given 'sure', allowed: step, flow, step_penalty, "
            "contraction_penalty, dominance_penalty, free",
        ),
        (
            "solver: euler",
            "solver: dopri5",
            "robot.finetune.every.solver: given 'dopri5', allowed: euler, midpoint, heun, rk4",
        ),
        ("videos: true", "videos: 'yes'", "robot.evaluation.videos: given 'yes', allowed: true or false"),
        ("nfe: [1, 16]", "nfe: [1, 1]", "nfe: given [1, 1], allowed: each value once"),
        ("nfe: [1, 16]", "nfe: 16", "nfe: given 16, allowed: a list, in [ ]"),
        ("tasks: [pusht]", "tasks: []", "tasks: given [], allowed: a list of at least 1"),
        ("tasks: [pusht]", "tasks: [lift]", "tasks: given lift, allowed at scale starter: pusht"),
        (
            "nfe: [1, 16]",
            "nfe: [1, 4]",
            "nfe: given 4, allowed: numbers with a block starter.pusht.finetune.nfe<k>, which are 1, 16",
        ),
        (
            "robustness: [fm-nfe16, ft_fm-nfe16,",
            "robustness: [ft_fm-nfe16,",
            "robustness: given ft_fm-nfe16 first, allowed: a row of fm, to which all are compared",
        ),
        (
            "robustness: [fm-nfe16,",
            "robustness: [fm-nfe8,",
            "robustness: given fm-nfe8, allowed: fm-nfe1, ft_fm-nfe1, fm-nfe16, ft_fm-nfe16, resft_fm-nfe4, "
            "resft_fm-nfe16, resft_fm_unet-nfe16, by nfe and residual",
        ),
        ("theory: [starter] ", "theory: [lab] ", "theory: given ['lab'], allowed: [starter], the scale, or []"),
        (
            "robustness: [fm-nfe16, ft_fm-nfe16, resft_fm-nfe4, resft_fm-nfe16] #",
            "robustness: [] #",
            "robustness: given [], allowed: at least one row, or theory: []",
        ),
        (
            "residual: [resft_fm-nfe4,",
            "residual: [resft_fm-nfe8,",
            "residual: given resft_fm-nfe8, allowed: blocks of starter.pusht.residual, which are resft_fm-nfe16, "
            "resft_fm_unet-nfe16, resft_fm-nfe4",
        ),
        ("    kind: mlp ", "    kind: resnet ", "robot.net.kind: given 'resnet', allowed: mlp, unet1d, transformer1d"),
        ("kind: persidskii ", "kind: hop ", "robot.residual.resft_fm-nfe16.net.kind: given 'hop', allowed: persidskii"),
    ],
)
def test_invalid_value_is_reported_with_line_and_allowed_values(old: str, new: str, line: str) -> None:
    assert refused(replaced(old, new)).startswith(f"params.yaml:{line_of(old)}: {line}")


@pytest.mark.parametrize(
    ("old", "new", "at", "line"),
    [
        (
            "    warmup: 500\n",
            "    warmup: 7000\n",
            "    warmup: 500",
            "robot.pretrain.warmup: given 7000, allowed: at most steps = 6000 (in starter.pusht)",
        ),
        (
            "  processes: 1 ",
            "  processes: 3 ",
            "    batch_size: 64\n",
            "image.pretrain.batch_size: given 64, allowed: multiples of processes = 3 (in starter.digits)",
        ),
        (
            "residual_steps: 3",
            "residual_steps: 4",
            "residual_steps: 3",
            f"{RESIDUAL}.residual_steps: given 4, allowed: below 4, so that the base model has an evaluation "
            "(in starter.pusht)",
        ),
        (
            "widths: [32, 32]",
            "widths: [32]",
            "widths: [32, 32]",
            f"{RESIDUAL}.net.functions: given 2, allowed: as many as widths = 1 (in starter.pusht)",
        ),
        (
            "solver: euler",
            "solver: heun",
            "solver: euler",
            "robot.finetune.every.solver: given 'heun', which spends 2 evaluations a step, allowed at nfe 1: euler "
            "(in starter.pusht)",
        ),
        (
            "last_steps: 0",
            "last_steps: 2",
            "last_steps: 0",
            "common.last_steps: given 2, allowed: 0 (all) to 1 (in starter.digits)",
        ),
        (
            "horizon: 8}",
            "n_action_steps: 17}",
            "horizon: 8}",
            "starter.pusht.data.n_action_steps: given 17, allowed: at most horizon = 16",
        ),
        (
            "kernel: 5 ",
            "kernel: 4 ",
            "kernel: 5 ",
            "paper.robot.net.kernel: given 4, allowed: odd numbers (in paper.pusht)",
        ),
        (
            "    observation: image\n",
            "    observation: pose\n",
            "    vision:",
            "pusht_image.data.vision: given a block, allowed: a block where observation is image, and only there "
            "(in lab.pusht_image)",
        ),
    ],
)
def test_inconsistent_settings_are_reported_at_the_line_of_one(old: str, new: str, at: str, line: str) -> None:
    assert refused(replaced(old, new)) == f"params.yaml:{line_of(at)}: {line}"


def test_missing_key_is_reported_for_its_task() -> None:
    assert refused(replaced("    path: i_cfm", "    #")) == (
        "params.yaml: starter.pusht.pretrain.path: missing; it has no default"
    )
    assert refused(replaced("{kind: unet1d, channels: [32", "{channels: [32")) == (
        "params.yaml: starter.pusht.residual.resft_fm_unet-nfe16.net.kind: missing; it has no default"
    )
    assert refused(replaced("{tasks: [pusht],", "{tasks: [pusht, lift],")) == (
        "params.yaml: starter.lift.data.dataset: missing; it has no default"
    )


def test_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(UserError, match=r"params\.yaml: not found; run from the project's root"):
        schema.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"^params\.yaml: no valid YAML: it is not UTF-8 text$"):
        schema.load(path)


def written(value: object, *keys: str) -> Iterator[tuple[str, ...]]:
    """Yield the key of every value in ``value`` that is not a block."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from written(inner, *keys, key)
    else:
        yield keys


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(sorted(written(raw()))),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("ab") | st.dates() | st.just({}) | st.just([]),
)
def test_any_value_loads_or_fails_with_a_one_line_error(keys: tuple[str, ...], value: object) -> None:
    values = raw()
    block: Any = values
    for key in keys[:-1]:
        block = block[key]
    block[keys[-1]] = value
    try:
        schema.parse(dumped(values), "params.yaml")
    except UserError as error:
        assert "\n" not in str(error)
        assert str(error).startswith("params.yaml:")
        assert "allowed" in str(error) or "missing" in str(error)


def test_allowed_names_match_the_implementations() -> None:
    assert get_args(schema.CovarianceKind) == tuple(COVARIANCES)
    assert get_args(schema.GradientKind) == GRADIENTS
    assert get_args(schema.PointSet) == tuple(POINT_SETS)
    assert set(schema.EVALUATIONS) == set(get_args(schema.Solver))
    for solver, evaluations in schema.EVALUATIONS.items():
        assert STEPS[solver][1] == evaluations


def test_unknown_scale_and_task_are_refused() -> None:
    loaded = schema.load(ROOT / "params.yaml")
    with pytest.raises(UserError, match=r"^scale: given 'huge', allowed: starter, lab, paper, metaworld$"):
        loaded.block("huge")
    with pytest.raises(
        UserError,
        match=r"^task: given 'model_fields', allowed: pusht, pusht_image, .*, seattle_weather, the tasks of this scale",
    ):
        loaded.block("lab").task("model_fields")
