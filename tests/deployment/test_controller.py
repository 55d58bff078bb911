"""A controller acts in a loop of one environment as the rollout's episode of the same seed does."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.deployment.controller import Controller, load_for_use, load_policy, raw_observation_dim
from pipeline.evaluation.rollouts import Episode, rollout
from pipeline.settings.schema import VisionSettings
from pipeline.tasks.loader import load_task
from pipeline.tasks.pusht.env import PushT, initial_state
from pipeline.tasks.vector import EnvFactory, Transition
from pipeline.training.checkpoint import build_policy, save_policy
from pipeline.training.residual_checkpoint import load_model, make_residual_policy, save_residual_policy
from pipeline.utils.code_deps import ROOT
from pipeline.utils.errors import UserError
from tests.nets.test_residual_nets import recipe
from tests.training.test_checkpoint import RECORD, model

SHIPPED = ROOT / "data" / "checkpoints" / "lab" / "pusht"
STEPS = 44
EPISODES = [Episode(100_000 + k, k % 2) for k in range(5)]

Write = Callable[[Path], None]


def write_residual(path: Path) -> None:
    """Write a shipped base model with an untrained, nonzero residual of realistic width.

    In nets of a few units the place of a row in the batch changes the last bits.
    """
    base, record = load_model(SHIPPED / "base-seed0.safetensors")
    given = recipe(sees_noise=True)
    wide = given.net.input.model_copy(update={"width": 256})  # type: ignore[union-attr]
    given = given.model_copy(update={"net": given.net.model_copy(update={"widths": [32, 32], "input": wide})})
    policy = make_residual_policy(base, given, seed=0)
    torch.manual_seed(1)
    torch.nn.init.normal_(policy.residual.input_net.out.weight, std=0.05)  # type: ignore[union-attr, arg-type]
    policy.residual = policy.residual.fixed()
    save_residual_policy(path, policy, replace(record, method="resft_fm", nfe=6), given)


def write_diffusion(path: Path) -> None:
    save_policy(path, model(), replace(RECORD, method="ddpm", nfe=0))


FILES: dict[str, tuple[Path | Write, dict[str, Any]]] = {
    "shipped, fine-tuned": (SHIPPED / "ft_fm-nfe1.safetensors", {}),
    "shipped, 16 evaluations": (SHIPPED / "fm-nfe16.safetensors", {}),
    "shipped base": (SHIPPED / "base-seed0.safetensors", {"nfe": 2}),
    "two observations seen": (lambda path: save_policy(path, model(), RECORD), {}),
    "residual": (write_residual, {}),
    "ddpm": (write_diffusion, {"nfe": 3}),
    "ddim": (write_diffusion, {"nfe": 2, "sampler": "ddim"}),
}


def made(file: Path | Write, folder: Path) -> Path:
    if isinstance(file, Path):
        return file
    path = folder / "model.safetensors"
    file(path)
    return path


class RecordedPushT:
    """Push-T that records the actions of every episode by seed."""

    def __init__(self, recorded: dict[int, list[np.ndarray]]) -> None:
        self.recorded = recorded
        self.simulation = PushT(max_steps=STEPS)

    def reset(self, seed: int) -> np.ndarray:
        self.actions = self.recorded.setdefault(seed, [])
        return self.simulation.reset(initial_state("b", seed))

    def step(self, action: np.ndarray) -> Transition:
        self.actions.append(action)
        return self.simulation.step(action)


def driven(controller: Controller, episode: Episode) -> np.ndarray:
    """Return the actions of an episode in a loop of one environment."""
    recorded: dict[int, list[np.ndarray]] = {}
    env = RecordedPushT(recorded)
    controller.reset(episode.seed, episode.repeat)
    observation, done = env.reset(episode.seed), False
    while not done:
        observation, _, _, done = env.step(controller.act(observation))
    return np.stack(recorded[episode.seed])


@pytest.mark.parametrize("name", FILES)
def test_controller_actions_equal_the_rollouts_bit_for_bit(name: str, tmp_path: Path) -> None:
    file, options = FILES[name]
    path = made(file, tmp_path)
    policy, nfe, _ = load_for_use(path, options.get("nfe"), options.get("sampler"))
    recorded: dict[int, list[np.ndarray]] = {}
    env_factory = EnvFactory(lambda: RecordedPushT(recorded), lambda seed: {"seed": seed}, STEPS)
    rollout(policy.acting(nfe), env_factory, EPISODES, progress=False)
    controller = load_policy(path, **options)
    for episode in EPISODES[::-1]:  # no state carries over
        assert np.array_equal(driven(controller, episode), np.stack(recorded[episode.seed]))


def test_unpadded_batches_differ_by_rounding_only() -> None:
    path = SHIPPED / "ft_fm-nfe1.safetensors"
    policy, _, _ = load_for_use(path, None, None)
    scale = policy.action_normalizer.scale.numpy()
    alone, padded = load_policy(path, batch_size=1), load_policy(path)
    for seed in range(100):
        observation = initial_state("b", seed)
        actions = []
        for controller in (alone, padded):
            controller.reset(seed)
            actions.append(controller.act(observation))
        np.testing.assert_allclose(actions[0] / scale, actions[1] / scale, rtol=0, atol=1e-5)


def test_raw_observations_have_the_length_that_the_task_gives(tmp_path: Path) -> None:
    assert raw_observation_dim(model()) == 5
    for task, kind, raw in (("kitchen", "state", 60), ("transport", "one_arm", 59), ("pusht", "image", 5)):
        vision = VisionSettings(kind="resnet18", width=16, crop=84) if kind == "image" else None
        data = RECORD.data.model_copy(update={"observation": kind, "vision": vision})
        policy = build_policy(replace(RECORD, task=task, data=data))
        assert raw_observation_dim(policy) == raw
        save_policy(tmp_path / task, policy, replace(RECORD, task=task, data=data))
        controller = load_policy(tmp_path / task, batch_size=1)
        controller.reset(0)
        assert controller.act(np.full(raw, 0.5)).shape == (load_task(task).action_dim,)


def test_camera_policy_takes_numbers_and_a_picture(tmp_path: Path) -> None:
    source = {"path": "mine", "observation": {"pose": 3}, "action": {"action": 2}, "image": {"top": 32}}
    vision = VisionSettings(kind="resnet18", width=16, crop=32)
    data = RECORD.data.model_copy(update={"dataset": "mine", "observation": "image", "vision": vision})
    record = replace(RECORD, task="arm", of="custom", custom={"datasets": {"mine": source}}, data=data)
    save_policy(tmp_path / "model", build_policy(record), record)
    controller, (policy, _) = load_policy(tmp_path / "model", batch_size=1), load_model(tmp_path / "model")
    numbers, picture = np.arange(3), np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    controller.reset(3)
    action = controller.act(numbers, picture)
    noise = np.random.default_rng([3, 0]).standard_normal(policy.acting(record.nfe).noise_shape, dtype=np.float32)
    raw = np.concatenate([numbers, picture.ravel()]).astype(np.float32)
    history = np.stack([raw] * policy.n_obs_steps)
    np.testing.assert_array_equal(action, policy.acting(record.nfe).act(history[None], noise[None])[0, 0])
    controller.reset(3)
    assert not np.array_equal(controller.act(numbers, 255 - picture), action), "the picture matters"
    controller.reset(3)
    np.testing.assert_array_equal(controller.act(numbers, torch.from_numpy(picture)), action)
    wrong = (picture[0], r"uint8 \(32, 3\)"), (picture / 255, "float64"), (picture[:0], r"uint8 \(0, 32, 3\)")
    for image, given in ((None, "none"), *wrong, (picture.tolist(), "int64")):
        with pytest.raises(UserError, match=f"^image: given {given}.*, allowed: the camera's picture, uint8"):
            controller.act(numbers, image)
    with pytest.raises(UserError, match=r"^image: given, allowed: none"):
        blind = load_policy(SHIPPED / "ft_fm-nfe1.safetensors")
        blind.reset(0)
        blind.act(np.zeros(5), picture)


def test_bad_input_is_refused_in_one_line(tmp_path: Path) -> None:
    flow = SHIPPED / "ft_fm-nfe1.safetensors"
    controller = load_policy(flow)
    with pytest.raises(UserError, match=r"^act: called before reset\(seed\)"):
        controller.act(np.zeros(5))
    with pytest.raises(UserError, match=r"^reset: given seed -1 and repeat 0, allowed: 0 or more$"):
        controller.reset(-1)
    controller.reset(0)
    with pytest.raises(UserError, match=r"^observation: given shape \(6,\), allowed: \(5,\)$"):
        controller.act(np.zeros(6))
    with pytest.raises(UserError, match=r"^observation: given dict, allowed: 5 numbers$"):
        controller.act({"agent_pos": [1.0, 2.0]})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^observation: given \[nan, .*allowed: finite numbers$"):
        controller.act([np.nan, 1, 2, 3, 4])
    write_diffusion(tmp_path / "diffusion")
    (tmp_path / "text").write_text("no model", encoding="utf-8")
    for file, options, line in (
        (tmp_path / "absent", {}, r"absent: no such checkpoint$"),
        (tmp_path / "text", {}, r"text: no readable safetensors file"),
        (SHIPPED / "base-seed0.safetensors", {}, r"^nfe: not given, and .*base-seed0.safetensors has none of its own"),
        (flow, {"nfe": 0}, r"nfe = 0 is no positive multiple"),
        (flow, {"sampler": "ddim"}, r"^sampler: given 'ddim', allowed for .*: none, since it is a flow$"),
        (tmp_path / "diffusion", {"sampler": "euler", "nfe": 1}, r"^sampler: given 'euler', .*: ddpm, ddim$"),
        (flow, {"batch_size": 0}, r"^batch_size: given 0, allowed: 1 or more$"),
    ):
        with pytest.raises(UserError, match=line):
            load_policy(file, **options)  # type: ignore[arg-type]
