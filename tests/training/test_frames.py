"""Image stores: windows, reads of frames, reproducible training and resumed encoding."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from torch import Tensor

from pipeline.evaluation.image_policy import ImageConditioning, ImagePolicy, beside_features
from pipeline.flow.coupling import make_coupling
from pipeline.flow.path import PATHS
from pipeline.nets.mlp import MLP
from pipeline.nets.vision import VisionEncoder, unpack
from pipeline.settings.schema import VisionSettings
from pipeline.tasks.demonstrations import ImageDemonstrations
from pipeline.tasks.normalizer import Normalizer
from pipeline.tasks.pusht.camera import render
from pipeline.tasks.pusht.env import observe
from pipeline.tasks.pusht.images import open_pusht_images
from pipeline.training.data import PreparedData, prepare
from pipeline.training.frames import Frames, ImageBatches, RecordedImageConditioning, encoded, prepare_frames
from pipeline.training.loop import train
from pipeline.training.pretrain import FlowMatching
from pipeline.utils.errors import UserError
from pipeline.utils.seeding import Generators
from tests.training.helpers import data_settings, optimization

SETTINGS = data_settings(
    dataset="pusht_human_image",
    observation="image",
    validation_fraction=0.3,
    vision=VisionSettings(kind="resnet18", width=16, crop=84),
)
ENDS = np.array([9, 20, 26, 40])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ImageDemonstrations:
    """Return four episodes with images of random states, in the published layout."""
    folder = tmp_path_factory.mktemp("demonstrations")
    state = np.random.default_rng(0).uniform(100, 400, (ENDS[-1], 5)).astype("f4")
    group = zarr.open_group(folder, mode="w", zarr_format=2)
    for name, array in {"state": state, "action": state[:, 2:4], "img": render(state).astype("f4")}.items():
        group.create_array(f"data/{name}", data=array, chunks=(16, *array.shape[1:]))
    group.create_array("meta/episode_ends", data=ENDS)
    return open_pusht_images(folder)


@pytest.fixture(scope="module")
def prepared(source: ImageDemonstrations, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreparedData]:
    path = tmp_path_factory.mktemp("prepared") / "frames.zarr"
    return path, prepare_frames(source, SETTINGS, partial(observe, kind="agent"), 0, path)


def make_policy(data: PreparedData, crop: int = 84) -> ImagePolicy:
    torch.manual_seed(0)
    encoder = VisionEncoder(width=16, crop=crop)
    return ImagePolicy(
        MLP(4, 2, 2 * (encoder.features + 2), width=32, depth=1, expansion=2, time_features=8),
        ImageConditioning(encoder, render, partial(observe, kind="agent")),
        data.observation_normalizer,
        data.action_normalizer,
        n_obs_steps=2,
        horizon=4,
        n_action_steps=2,
    )


class Reads:
    """Counts which frames are read from a store."""

    def __init__(self, images: zarr.Array) -> None:
        self.images, self.shape, self.numbers = images, images.shape, list[int]()

    def __getitem__(self, run: slice) -> np.ndarray:
        self.numbers.extend(range(run.start, run.stop))
        return self.images[run]


def counted(path: Path) -> tuple[Frames, list[int]]:
    frames = Frames.open(path)
    reads = Reads(frames.images)
    return Frames(reads, frames.windows, frames.held_out_windows), reads.numbers  # type: ignore[arg-type]


def test_windows_match_states_and_read_their_own_frames(
    source: ImageDemonstrations, prepared: tuple[Path, PreparedData]
) -> None:
    path, data = prepared
    frames = Frames.open(path)
    state = torch.from_numpy(source.demonstrations.state)
    reference = prepare(source.demonstrations, SETTINGS, lambda states: states[..., :2], 0)
    for name in ("condition", "action", "held_out_condition", "held_out_action"):
        torch.testing.assert_close(getattr(data, name), getattr(reference, name))
    torch.testing.assert_close(data.observation_normalizer.offset, reference.observation_normalizer.offset)
    for windows, condition in (
        (frames.windows, data.condition),
        (frames.held_out_windows, data.held_out_condition),
    ):
        positions = data.observation_normalizer.denormalize(condition.view(-1, 2, 2))
        torch.testing.assert_close(state[windows][..., :2], positions, rtol=1e-4, atol=1e-2)
    some = frames.windows[[0, 5, -1]]
    np.testing.assert_array_equal(frames.read(some), render(source.demonstrations.state[some]))


def test_each_requested_frame_is_read_once(prepared: tuple[Path, PreparedData]) -> None:
    path, data = prepared
    frames, read = counted(path)
    condition, action = ImageBatches(frames, data, crop=84).draw(3, torch.Generator().manual_seed(1))
    rows = torch.randint(len(data.action), (3,), generator=torch.Generator().manual_seed(1))
    assert set(read) == set(frames.windows[rows].flatten().tolist()) and len(read) == len(set(read)) <= 6
    assert torch.equal(action, data.action[rows])
    _, numbers = unpack(condition, 2, 2)
    assert torch.equal(numbers.flatten(1), data.condition[rows])
    before = list(read)
    frames.read(frames.windows[rows])
    assert read == before


def test_store_has_one_chunk_per_frame(prepared: tuple[Path, PreparedData]) -> None:
    images = Frames.open(prepared[0]).images
    assert images.chunks == (1, 96, 96, 3) and images.dtype == np.uint8 and images.shape == (ENDS[-1], 96, 96, 3)


def test_frame_batches_are_determined_by_the_generator(prepared: tuple[Path, PreparedData]) -> None:
    path, data = prepared
    batches = ImageBatches(Frames.open(path), data, crop=84)
    (one, _), (again, _), (other, _) = (batches.draw(4, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one.shape == (4, 2 * (84 * 84 * 3 + 2 * 4))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_training_on_frames_lowers_the_loss_and_repeats(prepared: tuple[Path, PreparedData]) -> None:
    path, data = prepared
    settings = optimization(steps=50, batch_size=8, lr=2e-3, warmup=5)

    def trained() -> tuple[list[float], dict[str, Tensor]]:
        generators = Generators(0, "test")
        net = make_policy(data, crop=32).seeing()
        coupling = make_coupling("independent", regularization=0.05, condition_weight=1.0)
        objective = FlowMatching(net, PATHS["i_cfm"](0.0), coupling, generators)
        net.train()
        batches = ImageBatches(Frames.open(path), data, crop=32)
        losses: list[float] = []

        def measure() -> None:
            condition, action = batches.draw(32, torch.Generator().manual_seed(5))
            with torch.no_grad():
                loss = FlowMatching(net, objective.path, coupling, Generators(3, "judge"))(condition, action)
            losses.append(loss.item())

        measure()
        average = train(objective, batches, settings, generators)
        measure()
        return losses, average.state_dict()

    (before, after), weights = trained()
    assert after < 0.9 * before
    _, again = trained()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_encoded_windows_equal_the_policys_conditions(
    source: ImageDemonstrations, prepared: tuple[Path, PreparedData], tmp_path: Path
) -> None:
    path, data = prepared
    policy = make_policy(data).eval()
    frames, read = counted(path)
    seen = encoded(frames, data, policy, keep=tmp_path)
    assert sorted(read) == list(range(ENDS[-1]))  # each frame once, though most are in several windows
    for windows, condition in ((frames.windows, seen.condition), (frames.held_out_windows, seen.held_out_condition)):
        expected = policy.condition(source.demonstrations.state[windows])
        torch.testing.assert_close(condition, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(seen.action, data.action)
    assert seen.observation_normalizer is policy.observation_normalizer
    held_out = encoded(frames, data, policy, held_out_only=True)
    torch.testing.assert_close(held_out.held_out_condition, seen.held_out_condition, rtol=1e-3, atol=1e-4)
    assert len(held_out.condition) == len(held_out.action) == 0


def test_recorded_frames_give_the_observations_of_rendered_states(
    source: ImageDemonstrations, prepared: tuple[Path, PreparedData], tmp_path: Path
) -> None:
    """The reported windows of an offline task end in the number of their frame."""
    many = SETTINGS.model_copy(update={"validation_fraction": 0.5})
    agent = partial(observe, kind="agent")
    reported = prepare_frames(source, many, agent, 0, tmp_path / "frames.zarr", offline=True).reported
    assert reported is not None
    np.testing.assert_array_equal(reported.state[:, -1, -1], reported.row)
    policy = make_policy(prepared[1])
    seen = RecordedImageConditioning(policy.observe, Frames.open(tmp_path / "frames.zarr"))(reported.state)
    states = source.demonstrations.state[reported.state[..., -1].astype(int)]
    np.testing.assert_allclose(seen, policy.observe(states), rtol=1e-4, atol=1e-5)


def test_encoding_resumes_from_kept_blocks_of_the_same_encoder(
    prepared: tuple[Path, PreparedData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.training.frames.BLOCK", 16)
    path, data = prepared
    policy = make_policy(data)
    whole = encoded(Frames.open(path), data, policy, keep=tmp_path)
    blocks = sorted(tmp_path.rglob("*.npy"))
    assert len(blocks) == 3
    blocks[1].unlink()
    frames, read = counted(path)
    resumed = encoded(frames, data, policy, keep=tmp_path)
    assert read == list(range(16, 32))
    assert torch.equal(resumed.condition, whole.condition)
    with torch.no_grad():
        next(policy.observe.encoder.parameters()).add_(0.1)
    other = encoded(Frames.open(path), data, policy, keep=tmp_path)
    assert not torch.equal(other.condition, whole.condition)


def test_a_store_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    state = np.full((20, 5), 200.0, dtype="f4") + np.arange(20, dtype="f4")[:, None]
    group = zarr.open_group(tmp_path / "demonstrations", mode="w", zarr_format=2)
    images = render(state).astype("f4")
    images[-1] = 0.5
    for name, array in {"state": state, "action": state[:, :2], "img": images}.items():
        group.create_array(f"data/{name}", data=array, chunks=(5, *array.shape[1:]))
    group.create_array("meta/episode_ends", data=np.array([5, 10, 20]))
    store = tmp_path / "prepared" / "frames.zarr"
    with pytest.raises(UserError, match=r"first in row 19$"):
        prepare_frames(
            open_pusht_images(tmp_path / "demonstrations"), SETTINGS, partial(observe, kind="agent"), 0, store
        )
    assert list(store.parent.iterdir()) == []
    with pytest.raises(UserError, match=r"frames.zarr: no store of frames; expected what stage prepare writes$"):
        Frames.open(store)


def test_only_positions_are_normalised_not_features() -> None:
    numbers = Normalizer.of(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    normalizer = beside_features(numbers, 3)
    x = torch.tensor([[5.0, 6.0, 7.0, 4.0, 6.0]])
    assert normalizer.normalize(x).tolist() == [[5.0, 6.0, 7.0, 1.0, 1.0]]
