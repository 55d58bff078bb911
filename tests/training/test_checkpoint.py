"""Checkpoints restore models exactly; other files are refused in one line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.evaluation.policy import FlowPolicy
from pipeline.settings.schema import MlpSettings
from pipeline.tasks.loader import own_families, own_tasks
from pipeline.tasks.normalizer import Normalizer
from pipeline.training.checkpoint import (
    CheckpointMetadata,
    build_policy,
    load_policy,
    read_metadata,
    require_architecture,
    round_weights,
    save_policy,
)
from pipeline.utils.errors import UserError
from tests.training.helpers import data_settings

DATA = data_settings()
NET = MlpSettings(kind="mlp", width=8, depth=1, expansion=2, time_features=4)
RECORD = CheckpointMetadata(
    scale="starter",
    task="pusht",
    method="ft_fm",
    nfe=1,
    train_steps=10,
    train_seed=3,
    data=DATA,
    net=NET,
    metrics={"spread_ratio": 0.1 + 0.2},
)


def model() -> FlowPolicy:
    policy = build_policy(RECORD)
    policy.observation_normalizer = Normalizer.of(torch.rand(6), torch.rand(6))
    policy.action_normalizer = Normalizer.of(torch.tensor([1 / 3, 2.0]), torch.tensor([0.1, 7.0]))
    return policy


def refusal(path: Path) -> str:
    """Return the line with which loading ``path`` fails, without the path."""
    with pytest.raises(UserError) as raised:
        load_policy(path)
    line = str(raised.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line.removeprefix(f"{path}: ")


def test_rounded_weights_survive_half_precision_storage(tmp_path: Path) -> None:
    policy = model()
    round_weights(policy.net)
    save_policy(tmp_path / "half.safetensors", policy, RECORD, half=True)
    loaded, _ = load_policy(tmp_path / "half.safetensors")
    for name, tensor in policy.state_dict().items():
        assert loaded.state_dict()[name].dtype == torch.float32
        assert torch.equal(loaded.state_dict()[name], tensor), name
    stored = load_file(tmp_path / "half.safetensors")
    assert {tensor.dtype for name, tensor in stored.items() if name.startswith("net.")} == {torch.float16}


def test_checkpoint_round_trip_restores_weights_normalisers_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    policy = model()
    save_policy(path, policy, RECORD)
    loaded, record = load_policy(path)
    assert record == read_metadata(path) == RECORD
    assert not loaded.training
    saved = policy.state_dict()
    assert loaded.state_dict().keys() == saved.keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in loaded.state_dict().items())
    condition, noise = torch.randn(3, 12), torch.randn(3, 4, 2)
    assert torch.equal(loaded.sample(condition, noise, 2), policy.eval().sample(condition, noise, 2))


def header(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        return json.loads(json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]["flowtune"])


@pytest.mark.parametrize(("name", "usual", "other"), [("solver", "euler", "heun"), ("temperature", 1.0, 0.5)])
def test_solver_and_temperature_are_stored_only_where_not_the_default(
    name: str, usual: Any, other: Any, tmp_path: Path
) -> None:
    save_policy(tmp_path / "usual", model(), RECORD)
    assert name not in header(tmp_path / "usual")
    assert getattr(load_policy(tmp_path / "usual")[0], name) == usual
    save_policy(tmp_path / "other", model(), replace(RECORD, **{name: other}))
    assert header(tmp_path / "other")[name] == other
    policy, record = load_policy(tmp_path / "other")
    assert getattr(policy, name) == getattr(record, name) == other


def test_a_model_of_an_unknown_solver_is_refused(tmp_path: Path) -> None:
    save_policy(tmp_path / "model", model(), replace(RECORD, solver="leapfrog"))
    assert refusal(tmp_path / "model").startswith("a model of solver 'leapfrog', allowed: euler, midpoint, heun, rk4")


def test_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    policy = model()
    for name in ("a", "b"):
        save_policy(tmp_path / name, policy, RECORD)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_initial_weights_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    first, second = build_policy(RECORD), build_policy(RECORD)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.net.out.weight, second.net.out.weight)


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    assert refusal(path) == "no such checkpoint"
    assert refusal(tmp_path).startswith("no readable safetensors file: ")
    path.write_text("torch.save, perhaps", encoding="utf-8")
    assert refusal(path).startswith("no readable safetensors file: ")
    save_file({"weight": torch.zeros(2)}, path)
    assert refusal(path) == "no FlowTune checkpoint: its header has no 'flowtune' entry"
    save_file({"weight": torch.zeros(2)}, path, metadata={"flowtune": json.dumps({"version": 0})})
    assert refusal(path) == "written by another version of FlowTune; allowed: format 1"
    for header in ("{", "[]", '{"version": 1}', '{"version": 1, "data": {}, "net": {}}'):
        save_file({"weight": torch.zeros(2)}, path, metadata={"flowtune": header})
        assert refusal(path).startswith(("damaged header: ", "written by another version"))


def test_a_model_of_an_unknown_task_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = {
        "version": 1, "scale": "lab", "task": "juggling", "method": "fm", "nfe": 0, "train_steps": 1, "train_seed": 0,
        "data": DATA.model_dump(), "net": NET.model_dump(), "figures": {},
    }  # fmt: skip
    save_file(model().state_dict(), path, metadata={"flowtune": json.dumps(header)})
    allowed = ", ".join((*own_tasks(), *own_families()))
    assert refusal(path) == (
        f"a model of task 'juggling': given 'juggling', allowed: {allowed}; of your own: module:name or "
        "path/to/file.py:name"
    )


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_policy(path, model(), RECORD)
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert refusal(path).startswith("no readable safetensors file: ")


def test_weights_of_another_shape_than_the_header_says_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_policy(path, model(), RECORD)
    tensors = load_file(path)
    tensors["net.out.weight"] = torch.zeros(3, 8)
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    save_file(tensors, path, metadata=header)
    line = refusal(path)
    assert line.startswith("weights do not fit the architecture that its header names: ")
    assert "net.out.weight" in line


def test_a_checkpoint_of_another_architecture_is_refused_naming_the_setting() -> None:
    path = Path("base.safetensors")
    require_architecture(path, RECORD, DATA, NET)
    wider = NET.model_copy(update={"width": 512})
    with pytest.raises(UserError) as raised:
        require_architecture(path, RECORD, DATA, wider)
    assert str(raised.value) == (
        "base.safetensors: checkpoint of another architecture: its net.width is 8, params.yaml asks for 512"
    )
    with pytest.raises(UserError, match=r"its data\.observation is 'pose', params\.yaml asks for 'keypoints'$"):
        require_architecture(path, RECORD, DATA.model_copy(update={"observation": "keypoints"}), NET)


def test_a_model_saved_with_a_compiled_net_loads(tmp_path: Path) -> None:
    policy = model()
    expected = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    policy.net = torch.compile(policy.net, backend="eager")  # type: ignore[assignment]
    save_policy(tmp_path / "compiled.safetensors", policy, RECORD)
    assert any("_orig_mod" in name for name in load_file(tmp_path / "compiled.safetensors"))
    loaded = load_policy(tmp_path / "compiled.safetensors")[0].state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
