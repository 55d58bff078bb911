"""Exported ONNX policies: actions equal to PyTorch's, metadata and refusals."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.deployment import onnx_export
from pipeline.deployment.controller import load_for_use
from pipeline.deployment.onnx_export import export_onnx
from pipeline.evaluation.policy import FlowPolicy
from pipeline.settings.blocks import Transformer1dSettings, Unet1dSettings
from pipeline.settings.schema import NetSettings, VisionSettings
from pipeline.tasks.pusht.files import read_pusht
from pipeline.training.checkpoint import build_policy, save_policy
from pipeline.utils.code_deps import ROOT
from pipeline.utils.errors import UserError
from tests.deployment.test_controller import SHIPPED, Write, made, write_diffusion, write_residual
from tests.training.test_checkpoint import RECORD, model

UNET = Unet1dSettings(kind="unet1d", channels=[8, 16], kernel=3, groups=4, time_features=8)
TRANSFORMER = Transformer1dSettings(
    kind="transformer1d", width=8, depth=1, heads=2, causal=False, condition_tokens=2, time_features=8
)
OBSERVATIONS = 100


def untrained(**changes: Any) -> Write:
    """Return a writer of a model file of ``RECORD`` with ``changes``."""
    record = replace(RECORD, **changes)
    return lambda path: save_policy(path, build_policy(record), record)


def of_net(net: NetSettings) -> Write:
    return untrained(net=net, data=RECORD.data.model_copy(update={"horizon": 8}))


FILES: dict[str, tuple[Path | Write, dict[str, Any]]] = {
    "shipped, NFE 1": (SHIPPED / "ft_fm-nfe1.safetensors", {"nfe": 1}),
    "shipped, another NFE": (SHIPPED / "ft_fm-nfe16.safetensors", {"nfe": 4}),
    "two poses seen": (lambda path: save_policy(path, model(), RECORD), {}),
    "cooler": (untrained(temperature=0.5, nfe=2), {}),
    "heun": (untrained(solver="heun", nfe=4), {}),
    "unet": (of_net(UNET), {"nfe": 2}),
    "transformer": (of_net(TRANSFORMER), {"nfe": 2}),
    "residual": (write_residual, {}),
    "ddpm": (write_diffusion, {"nfe": 3}),
    "ddim": (write_diffusion, {"nfe": 2, "sampler": "ddim"}),
}


def histories(steps: int) -> np.ndarray:
    """Raw observation histories (OBSERVATIONS, steps, 5) from the shipped demonstrations, evenly spread over them."""
    states = read_pusht(ROOT / "data" / "demonstrations" / "pusht_starter.npz").state
    ends = np.linspace(steps, len(states), OBSERVATIONS).astype(int)
    return np.stack([states[end - steps : end] for end in ends])


def worst_difference(policy: FlowPolicy, nfe: int, file: Path, given: Callable[[np.ndarray], np.ndarray]) -> float:
    """Return the largest difference of onnxruntime's and PyTorch's actions, in normalised units.

    Args:
        given: from raw observations to the file's input.
    """
    runtime = pytest.importorskip("onnxruntime", reason="`make env-export` installs it")
    session, acting = runtime.InferenceSession(file), policy.acting(nfe)
    observations = histories(policy.n_obs_steps)
    noise = np.random.default_rng(0).standard_normal((OBSERVATIONS, *acting.noise_shape), dtype=np.float32)
    worst = 0.0
    for k in range(OBSERVATIONS):
        one = slice(k, k + 1)
        (actions,) = session.run(None, {"observation": given(observations[one]), "noise": noise[one]})
        difference = actions - acting.act(observations[one], noise[one])
        worst = max(worst, float(np.abs(difference / policy.action_normalizer.scale.numpy()).max()))
    return worst


@pytest.fixture
def with_group() -> None:
    """Skip where the optional group is not installed."""
    for package in (*onnx_export.PACKAGES, "onnxruntime"):
        pytest.importorskip(package, reason="`make env-export` installs it")


@pytest.mark.usefixtures("with_group")
@pytest.mark.parametrize("name", FILES)
def test_graph_reproduces_pytorchs_actions_from_raw_observations(name: str, tmp_path: Path) -> None:
    file, options = FILES[name]
    path = made(file, tmp_path)
    about = export_onnx(path, tmp_path / "policy.onnx", **options)
    assert about["observation"] == "raw"
    policy, nfe, record = load_for_use(path, options.get("nfe"), options.get("sampler"))
    # a diffusion's first step multiplies rounding by 2000, see ``pipeline.flow.action_diffusion``
    allowed = 1e-3 if record.method == "ddpm" else 1e-5
    assert worst_difference(policy, nfe, tmp_path / "policy.onnx", np.asarray) < allowed


@pytest.mark.usefixtures("with_group")
def test_untraceable_encoding_stays_outside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = SHIPPED / "ft_fm-nfe1.safetensors"
    policy, nfe, _ = load_for_use(path, None, None)
    encoding = policy.observe

    def by_text(states: np.ndarray) -> np.ndarray:
        return encoding(np.array(json.loads(json.dumps(states.tolist())), np.float32))

    monkeypatch.setattr(policy, "observe", by_text)
    monkeypatch.setattr(onnx_export, "load_for_use", lambda *_: (policy, nfe, load_for_use(path, None, None)[2]))
    about = export_onnx(path, tmp_path / "policy.onnx")
    assert about["observation"] == "encoded as 'keypoints'"
    assert json.loads(about["inputs"])["observation"] == [1, 1, 18]
    assert worst_difference(policy, nfe, tmp_path / "policy.onnx", encoding) < 1e-5


@pytest.mark.usefixtures("with_group")
def test_file_metadata_names_the_policy_and_its_checkpoint(tmp_path: Path) -> None:
    import onnx

    path = SHIPPED / "ft_fm-nfe1.safetensors"
    about = export_onnx(path, tmp_path / "policy.onnx")
    stored = onnx.load(tmp_path / "policy.onnx")
    onnx.checker.check_model(stored)
    assert {entry.key: entry.value for entry in stored.metadata_props}.items() >= about.items()
    assert (about["task"], about["method"], about["nfe"], about["horizon"]) == ("pusht", "ft_fm", "1", "16")
    assert (about["n_obs_steps"], about["n_action_steps"]) == ("1", "8")
    assert about["checkpoint_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    for side in ("inputs", "outputs"):
        shapes = json.loads(about[side])
        there = getattr(stored.graph, side.removesuffix("s"))
        assert {x.name: [d.dim_value for d in x.type.tensor_type.shape.dim] for x in there} == shapes
    assert json.loads(about["inputs"]) == {"observation": [1, 1, 5], "noise": [1, 16, 2]}
    assert [file.name for file in tmp_path.iterdir()] == ["policy.onnx"]


def test_bad_input_is_refused_in_one_line_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "policy.onnx"
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(UserError, match=r"^not installed: onnxscript; run `make env-export`$"):
        export_onnx(SHIPPED / "ft_fm-nfe1.safetensors", out)
    monkeypatch.setattr(onnx_export, "find_spec", lambda _: object())
    data = RECORD.data.model_copy(
        update={"observation": "image", "vision": VisionSettings(kind="resnet18", width=16, crop=84)}
    )
    untrained(task="pusht_image", data=data)(tmp_path / "seeing")
    with pytest.raises(UserError, match=r"seeing: a policy of images; allowed: policies of states$"):
        export_onnx(tmp_path / "seeing", out)
    with pytest.raises(UserError, match=r"absent: no such checkpoint$"):
        export_onnx(tmp_path / "absent", out)
    assert not out.exists()
