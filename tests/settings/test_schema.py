"""params.yaml: whatever is wrong with it is said in one line, and switching the scale changes nothing else."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pipeline.flow.covariance import COVARIANCES
from pipeline.flow.marginal import POINT_SETS
from pipeline.ode.fixed_step import STEPS
from pipeline.ode.gradient import GRADIENTS
from pipeline.settings import schema
from pipeline.settings.scale import main, set_scale
from pipeline.utils.code_deps import ROOT
from pipeline.utils.errors import UserError

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
RAW: dict[str, Any] = YAML(typ="safe").load(TEXT)


def line_of(text: str) -> int:
    """The number of the first line of params.yaml that holds ``text``."""
    return TEXT[: TEXT.index(text)].count("\n") + 1


def line_for(tmp_path: Path, text: str) -> str:
    """The one line that ``load`` refuses ``text`` with."""
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as raised:
        schema.load(path)
    line = str(raised.value)
    assert "\n" not in line
    return line


def leaves(value: object, *keys: str | int) -> Iterator[tuple[str | int, ...]]:
    """The key of every scalar in ``value``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    children = [leaf for key, child in items for leaf in leaves(child, *keys, key)]
    yield from children or [keys]


def test_the_projects_own_file_loads_with_every_scale_runnable() -> None:
    loaded = schema.load(ROOT / "params.yaml")
    for scale in get_args(schema.Scale):
        block = loaded.block(scale)
        for task in block.tasks:
            assert {f"nfe{nfe}" for nfe in block.nfe} <= set(block.task(task).finetune)
            assert set(block.residual) <= set(block.task(task).residual)


TOP_KEYS = "scale, tasks, nfe, residual, robustness, diffusion, baselines, images, image_nfe, starter, lab, paper"
PRETRAIN_KEYS = (
    "steps, batch_size, lr, weight_decay, warmup, clip, ema_decay, precision, path, sigma, coupling, regularization, "
    "condition_weight, checkpoints"
)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "lr: 1.5e-3 ",
            "lrr: 1.5e-3 ",
            f"starter.pusht.pretrain.lrr: unknown key; did you mean lr? allowed: {PRETRAIN_KEYS}",
        ),
        ("lr: 1.5e-3 ", "lr: -1.5e-3 ", "starter.pusht.pretrain.lr: given -0.0015, allowed: greater than 0"),
        ("lr: 1.5e-3 ", "lr: .nan ", "starter.pusht.pretrain.lr: given nan, allowed: a finite number"),
        ("lr: 1.5e-3 ", "lr: fast ", "starter.pusht.pretrain.lr: given 'fast', allowed: a number"),
        ("lr: 1.5e-3 ", "lr: ", "starter.pusht.pretrain.lr: given nothing, allowed: a number"),
        ("ema_decay: 0.999 ", "ema_decay: 1 ", "starter.pusht.pretrain.ema_decay: given 1, allowed: less than 1"),
        ("scale: starter", "1: x\nscale: starter", "1: unknown key; keys are text"),
        (
            "warmup: 500 ",
            "warmup: 20000 ",
            "starter.pusht.pretrain.warmup: given 20000, allowed: at most steps = 6000",
        ),
        ("seed: 0 ", "seed: 4294967296 ", "starter.gap.seed: given 4294967296, allowed: less than 4,294,967,296"),
        (
            "processes: 1 ",
            "processes: 3 ",
            "starter.pusht.pretrain.batch_size: given 256, allowed: multiples of processes = 3",
        ),
        ("scale: starter", "scale: huge", "scale: given 'huge', allowed: starter, lab, paper"),
        (
            "coupling: nearest",
            "coupling: neares",
            "starter.pusht.finetune.nfe1.coupling: given 'neares', allowed: independent, minibatch_ot, sinkhorn, "
            "conditional_ot, nearest, inversion, reflow",
        ),
        (
            "coupling: independent",
            "coupling: reflow",
            "starter.pusht.pretrain.coupling: given 'reflow', allowed: independent, minibatch_ot, sinkhorn, "
            "conditional_ot",
        ),
        (
            "typical_quantile: 0.99",
            "typical_quantile: 1.0",
            "starter.pusht.finetune.nfe1.typical_quantile: given 1.0, allowed: less than 1",
        ),
        (
            "covariance: identity",
            "covariance: full",
            "starter.pusht.finetune.nfe1.covariance: given 'full', allowed: identity, fixed, learned, profiled",
        ),
        (
            "fm_weight: 0.0",
            "fm_weight: -1.0",
            "starter.pusht.finetune.nfe1.fm_weight: given -1.0, allowed: at least 0.0",
        ),
        (
            "energy_weight: 0.0",
            "energy_weight: .inf",
            "starter.pusht.finetune.nfe1.energy_weight: given inf, allowed: a finite number",
        ),
        ("lora_rank: 0", "lora_rank: -1", "starter.pusht.finetune.nfe1.lora_rank: given -1, allowed: at least 0"),
        (
            "lora_alpha: 16.0",
            "lora_alpha: 0.0",
            "starter.pusht.finetune.nfe1.lora_alpha: given 0.0, allowed: greater than 0",
        ),
        (
            "residual_steps: 3 ",
            "residual_steps: 4 ",
            "starter.pusht.residual.resft_fm-nfe4.residual_steps: given 4, allowed: below 4, so that the base model "
            "has an evaluation",
        ),
        ("end: 2.0 ", "end: 1.0 ", "starter.pusht.residual.resft_fm-nfe4.end: given 1.0, allowed: greater than 1"),
        (
            "stability: step ",
            "stability: sure ",
            "starter.pusht.residual.resft_fm-nfe4.net.stability: given 'sure', allowed: step, flow, "
            "step_penalty, contraction_penalty, dominance_penalty, free",
        ),
        (
            "widths: [32, 32]",
            "widths: [32]",
            "starter.pusht.residual.resft_fm-nfe4.net.functions: given 2, allowed: as many as widths = 1",
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
        (
            "residual: [resft_fm-nfe4,",
            "residual: [resft_fm-nfe8,",
            "residual: given resft_fm-nfe8, allowed: blocks of starter.pusht.residual, which are resft_fm-nfe4, "
            "resft_fm-nfe16, resft_fm_unet-nfe16",
        ),
        ("steps: 6000", "steps: true", "starter.pusht.pretrain.steps: given true, allowed: a whole number"),
        ("steps: 6000", "steps: 6000.5", "starter.pusht.pretrain.steps: given 6000.5, allowed: a whole number"),
        ("steps: 6000 ", "# ", "starter.pusht.pretrain.steps: missing; it has no default"),
        (
            "solver: euler",
            "solver: heun",
            "starter.pusht.finetune.nfe1.solver: given 'heun', which spends 2 evaluations a step, "
            "allowed at nfe 1: euler",
        ),
        (
            "solver: euler",
            "solver: dopri5",
            "starter.pusht.finetune.nfe1.solver: given 'dopri5', allowed: euler, midpoint, heun, rk4",
        ),
        (
            "last_steps: 0",
            "last_steps: 2",
            "starter.pusht.finetune.nfe1.last_steps: given 2, allowed: 0 (all) to 1, the steps of euler at nfe 1",
        ),
        (
            "gradient: direct",
            "gradient: exact",
            "starter.pusht.finetune.nfe1.gradient: given 'exact', allowed: direct, checkpointed, adjoint",
        ),
        ("videos: true", "videos: 'yes'", "starter.pusht.evaluation.videos: given 'yes', allowed: true or false"),
        (
            "nfe: [1, 16]",
            "nfe: [1, 4]",
            "nfe: given 4, allowed: numbers with a block starter.pusht.finetune.nfe<k>, which are 1, 16",
        ),
        ("nfe: [1, 16]", "nfe: [1, 1]", "nfe: given [1, 1], allowed: each value once"),
        ("nfe: [1, 16]", "nfe: 16", "nfe: given 16, allowed: a list, in [ ]"),
        ("tasks: [pusht]", "tasks: []", "tasks: given [], allowed: a list of at least 1"),
        (
            "resft_fm-nfe4:",
            "resft-nfe4:",
            "starter.pusht.residual.resft-nfe4: unknown key; allowed: resft_fm-nfe4, resft_fm_unet-nfe16, …",
        ),
        (
            "kind: persidskii ",
            "kind: hopfield ",
            "starter.pusht.residual.resft_fm-nfe4.net.kind: given 'hopfield', allowed: persidskii, unet1d",
        ),
        ("nfe16: ", "nfe_16: ", "starter.pusht.finetune.nfe_16: unknown key; allowed: nfe1, nfe2, nfe4, …"),
        ("chunk: 8", "chunk: 17", "starter.pusht.data.chunk: given 17, allowed: at most prediction_horizon = 8"),
        (
            "checkpoints: 4",
            "checkpoints: 10001",
            "starter.pusht.pretrain.checkpoints: given 10001, allowed: at most steps = 6000",
        ),
        ("kind: mlp ", "kind: resnet ", "starter.pusht.net.kind: given 'resnet', allowed: mlp, unet1d, transformer1d"),
        ("kind: mlp ", "# ", "starter.pusht.net.kind: missing; it has no default"),
        (
            "width: 192",
            "widht: 192",
            "starter.pusht.net.widht: unknown key; did you mean width? "
            "allowed: kind, width, depth, expansion, time_features",
        ),
        ("kernel: 5   ", "kernel: 4   ", "paper.pusht.net.kernel: given 4, allowed: odd numbers"),
        (
            "groups: 8   ",
            "groups: 7   ",
            "paper.pusht.net.channels: given [256, 512, 1024], allowed: multiples of groups = 7",
        ),
        (
            "seed: 0 ",
            "seed: 0\n    seed: 1 ",
            f'no valid YAML: line {line_of("seed: 0 ") + 1}: found duplicate key "seed" with value "1" '
            '(original value: "0")',
        ),
        (
            "scale: starter",
            "scale: [starter",
            f"no valid YAML: line {line_of('scale: starter') + 1}: did not find expected ',' or ']'",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(tmp_path: Path, old: str, new: str, line: str) -> None:
    assert old in TEXT
    assert line_for(tmp_path, TEXT.replace(old, new, 1)) == f"params.yaml: {line}"


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("images", ["cifar10"], "images: given cifar10, allowed at scale starter: digits"),
        ("images", ["digits", "cifar10"], "images: given ['digits', 'cifar10'], allowed: a list of at most 1"),
        ("images", ["mnist"], "images.0: given 'mnist', allowed: digits, cifar10"),
        (
            "image_nfe",
            [3],
            "image_nfe: given 3, allowed: numbers with a block starter.digits.finetune.nfe<k>, which are",
        ),
        ("image_nfe", [], "image_nfe: given [], allowed: at least one number, or images: []"),
        (
            "starter.digits.processes",
            3,
            "starter.digits.pretrain.batch_size: given 64, allowed: multiples of processes = 3",
        ),
        ("starter.images", ["cifar10"], "starter.images: given cifar10, allowed: tasks with a block of that name here"),
        (
            "starter.digits.select.latest",
            3000,
            "starter.digits.select.latest: given 3000, allowed: below pretrain.steps",
        ),
        ("starter.digits.select.latest", 300, "starter.digits.select.latest: given 300, allowed: at least 333"),
        (
            "starter.digits.fid.n_samples",
            64,
            "starter.digits.fid.n_samples: given 64, allowed: more than the 64 embedded",
        ),
        (
            "paper.cifar10.fid.n_samples",
            2048,
            "paper.cifar10.fid.n_samples: given 2048, allowed: more than the 2048 ince",
        ),
        (
            "starter.digits.fid.solvers",
            ["heun-4"],
            "starter.digits.fid.solvers.0: given 'heun-4', allowed: euler-1 to euler-1000, dopri5",
        ),
        ("starter.digits.fid.solvers", ["dopri5", "dopri5"], "starter.digits.fid.solvers: given ['dopri5', 'dopri5']"),
        ("starter.digits.fid.solvers", ["euler-2"], "starter.digits.fid.solvers: given ['euler-2'], allowed: with dop"),
        ("starter.digits.data.dataset", "cifar10", "starter.digits.data.dataset: given 'cifar10', allowed: digits"),
        (
            "starter.digits.residual.reflow_nfe",
            6,
            "starter.digits.residual.reflow_nfe: given 6, allowed: more than the 6",
        ),
        ("starter.digits.fid.stride", 1, "starter.digits.fid.stride: unknown key; allowed: features, n_samples"),
        (
            "starter.digits.finetune.nfe4.lrr",
            1,
            "starter.digits.finetune.nfe4.lrr: unknown key; did you mean lr? allowed",
        ),
        (
            "starter.digits.finetune.nfe4.reflow_nfe",
            4,
            "starter.digits.finetune.nfe4.reflow_nfe: given 4, allowed: more",
        ),
        (
            "starter.digits.residual.residual_steps",
            8,
            "starter.digits.residual.residual_steps: given 8, allowed: below",
        ),
        (
            "starter.digits.pretrain.ve_sigma_max",
            0.01,
            "starter.digits.pretrain.ve_sigma_min: given 0.01, allowed: below",
        ),
        (
            "lab.cifar10.net.multipliers",
            [1] * 7,
            "lab.cifar10.net.multipliers: given [1, 1, 1, 1, 1, 1, 1], allowed: as",
        ),
        (
            "lab.cifar10.net.multipliers",
            [2, 2],
            "lab.cifar10.net.multipliers: given [2, 2], allowed: the first of them 1",
        ),
    ],
)
def test_settings_of_images_that_cannot_be_are_refused(tmp_path: Path, key: str, value: object, line: str) -> None:
    raw = copy.deepcopy(RAW)
    *blocks, last = key.split(".")
    block = raw
    for name in blocks:
        block = block[name]
    block[last] = value
    path = tmp_path / "params.yaml"
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(raw, file)
    with pytest.raises(UserError) as raised:
        schema.load(path)
    assert str(raised.value).startswith(f"params.yaml: {line}") and "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "- starter\n", "starter\n"])
def test_a_file_without_keys_is_refused(tmp_path: Path, text: str) -> None:
    allowed = f"a mapping with {TOP_KEYS}"
    assert line_for(tmp_path, text) == f"params.yaml: holds no keys; allowed: {allowed}"


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(UserError, match=r"params\.yaml: not found; run from the project's root"):
        schema.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"^params\.yaml: no valid YAML: it is not UTF-8 text$"):
        schema.load(path)


@settings(deadline=None)
@given(
    st.sampled_from(sorted(leaves(RAW), key=str)),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.just({}) | st.just([]),
)
def test_any_value_in_any_place_loads_or_fails_with_one_line_naming_the_place(
    keys: tuple[str | int, ...], value: object
) -> None:
    raw = copy.deepcopy(RAW)
    block: Any = raw
    for key in keys[:-1]:
        block = block[key]
    block[keys[-1]] = value
    try:
        schema.parse(raw, "params.yaml")
    except UserError as error:
        line = str(error)
        assert "\n" not in line
        assert line.startswith("params.yaml: ")
        assert "allowed: " in line or "missing" in line
        # a value may be refused for the sake of its neighbour: chunk and prediction_horizon, kernel and channels; or of
        # another block of its task: the extractor's features and the number of samples
        assert any(".".join(map(str, keys[:depth])) in line for depth in (len(keys) - 1, 2))


def test_solvers_gradients_and_covariances_are_those_that_exist() -> None:
    assert get_args(schema.CovarianceKind) == tuple(COVARIANCES)
    assert get_args(schema.GradientKind) == GRADIENTS
    assert get_args(schema.PointSet) == tuple(POINT_SETS)
    assert set(schema.EVALUATIONS) == set(get_args(schema.Solver))
    for solver, evaluations in schema.EVALUATIONS.items():
        assert STEPS[solver][1] == evaluations


def test_unknown_scale_and_task_are_refused() -> None:
    loaded = schema.load(ROOT / "params.yaml")
    with pytest.raises(UserError, match=r"^scale: given 'huge', allowed: starter, lab, paper$"):
        loaded.block("huge")
    with pytest.raises(
        UserError,
        match=r"^task: given 'model_fields', allowed: pusht, pusht_image, kitchen, lift, can, square, transport$",
    ):
        loaded.block("lab").task("model_fields")


def test_switching_the_scale_changes_its_lists_and_back_restores_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    before, lab = TEXT.split("\nlab:\n")
    given_text = f"{before}\nlab:\n{lab.replace('nfe: [1, 16]', 'nfe: [16]', 1)}"
    assert given_text != TEXT
    path.write_text(given_text, encoding="utf-8")
    set_scale(path, "lab")
    lines = zip(given_text.splitlines(), path.read_text(encoding="utf-8").splitlines(), strict=True)
    changed = [(old, new) for old, new in lines if old != new]
    own = ["scale", "tasks", "nfe", "residual", "robustness", "images"]
    assert [old.split(":")[0] for old, _ in changed] == own
    assert [old.split("#")[1] for old, _ in changed] == [new.split("#")[1] for _, new in changed]
    assert (schema.load(path).scale, schema.load(path).nfe) == ("lab", [16])
    set_scale(path, "starter")
    assert path.read_text(encoding="utf-8") == given_text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", f"params.yaml: holds no keys; allowed: a mapping with {TOP_KEYS}"),
        (
            TEXT.replace("lab:\n  tasks", "lab:\n  task"),
            "params.yaml: lab.task: unknown key; did you mean tasks? "
            "allowed: tasks, nfe, residual, robustness, diffusion, baselines, gap, toys, images, image_nfe, pusht, "
            "pusht_image, kitchen, lift, can, square, transport, digits, cifar10",
        ),
        (
            TEXT.replace("lab:\n", "lap:\n"),
            f"params.yaml: lap: unknown key; did you mean lab? allowed: {TOP_KEYS}",
        ),
    ],
)
def test_switching_the_scale_of_a_wrong_file_leaves_it_alone(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as raised:
        set_scale(path, "lab")
    assert str(raised.value) == line
    assert path.read_text(encoding="utf-8") == text


def test_switching_to_an_unknown_scale_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(TEXT, encoding="utf-8")
    with pytest.raises(UserError, match=r"^params\.yaml: scale: given 'huge', allowed: starter, lab, paper$"):
        set_scale(path, "huge")


def test_the_program_prints_the_line_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "params.yaml").write_text(TEXT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["huge"]) == 2
    assert capsys.readouterr().err == "error: params.yaml: scale: given 'huge', allowed: starter, lab, paper\n"


def test_every_key_of_the_starter_scale_is_explained_beside_it() -> None:
    lines = TEXT.split("\nlab:\n")[0].splitlines()
    first_use: dict[str, str] = {}
    for line in lines:
        key, colon, rest = line.strip().partition(":")
        if not colon or key.startswith("#"):
            continue
        is_block = not rest.split("#")[0].strip()
        explained = "# " in rest or (is_block and not key.startswith("nfe")) or "# " in first_use.get(key, "")
        assert explained, f"no comment beside: {line}"
        first_use.setdefault(key, rest)
