"""Push-T images: rendered from the state alone, as in the recorded demonstrations."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.tasks.pusht.camera import _AGENT, _COLOURS, _TAPS, _circle, _draw, _line, _shrink, render
from pipeline.tasks.pusht.env import GOAL_POSE, observe
from pipeline.tasks.pusht.images import PushTImages, open_pusht_images
from pipeline.utils.errors import UserError

ARCHIVE = "pusht_cchi_v7_replay.zarr.zip"
GOAL = (144, 238, 144)
STATES = np.array(
    [[100, 400, 300, 250, 1.0], [256, 256, 256, 256, 0.8], [0, 0, 20, 500, -9.0], [511, 90, 256, 256, np.pi / 4]]
)


@pytest.fixture(scope="module")
def official() -> PushTImages:
    archive = Path(os.environ.get("FLOWTUNE_MIRROR", ""), ARCHIVE)
    if not archive.is_file():
        pytest.skip(f"FLOWTUNE_MIRROR holds no {ARCHIVE}")
    return open_pusht_images(archive)


def test_rendered_images_match_the_recorded_ones(official: PushTImages) -> None:
    """A few pixels differ: the recording shows marks of contacts, which are not in the state."""
    state = official.demonstrations.state
    rows = np.concatenate([np.arange(start, start + 100) for start in (0, 12_800, len(state) - 100)])
    with zarr.storage.ZipStore(official.path, mode="r") as store:
        images = zarr.open_group(store, mode="r")["data/img"]
        recorded = np.concatenate([np.asarray(images[start : start + 100]) for start in rows[::100]])
    drawn = render(state[rows])
    assert drawn.shape == (300, 96, 96, 3) and drawn.dtype == np.uint8
    difference = np.abs(drawn - recorded)
    differing = (difference > 0).any(axis=-1).sum(axis=(1, 2))
    assert difference.mean() < 0.002 and differing.max() <= 4
    assert (differing == 0).mean() > 0.6


def test_thick_lines_and_discs_match_pygame() -> None:
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    import pygame

    generator = np.random.default_rng(0)
    for _ in range(40):
        a, b = generator.integers(20, 490, (2, 2))
        surface = pygame.Surface((512, 512))
        if steep := abs(b[0] - a[0]) <= abs(b[1] - a[1]):
            pygame.draw.lines(surface, (255, 255, 255), False, [a.tolist(), b.tolist()], 4)
            first, last = _line(a[None], b[None], np.array([[steep]]), _TAPS)[:, 0]
            expected = pygame.surfarray.array_red(surface)[:, _TAPS].T > 0
            x = np.arange(512)
            np.testing.assert_array_equal((first[:, None] <= x) & (x <= last[:, None]), expected)
    for radius in (2, *_AGENT):
        surface = pygame.Surface((512, 512))
        pygame.draw.circle(surface, (255, 255, 255), (256, 250), radius)
        first, last = _circle(np.array([[256, 250]]), radius, np.arange(512))[:, 0]
        np.testing.assert_array_equal(
            (first <= np.arange(512)[:, None]) & (np.arange(512)[:, None] <= last),
            pygame.surfarray.array_red(surface) > 0,
        )


def test_downscaling_matches_opencv() -> None:
    cv2 = pytest.importorskip("cv2")
    # random colours, also between the taps, where they have no effect
    codes = np.random.default_rng(0).integers(len(_COLOURS), size=(512, 512))
    expected = cv2.resize(_COLOURS[codes].astype(np.uint8), (96, 96))
    taps = codes[np.ix_(_TAPS, _TAPS)].astype(np.uint8)
    np.testing.assert_array_equal(_shrink(taps[None])[0], expected)


def test_image_depends_only_on_its_own_state() -> None:
    images = render(STATES)
    assert len({image.tobytes() for image in images}) == len(STATES)
    many = render(np.tile(STATES, (20, 1)).reshape(4, 20, 5))
    np.testing.assert_array_equal(many.reshape(80, 96, 96, 3), np.tile(images, (20, 1, 1, 1)))


def test_objects_are_drawn_at_their_positions_in_the_state() -> None:
    (image,) = render(np.array([[100.0, 400.0, 400.0, 100.0, 0.0]]))
    assert image[int(400 / 512 * 96), int(100 / 512 * 96)].tolist() == [78, 126, 255]  # the agent
    assert image[int(115 / 512 * 96), int(400 / 512 * 96)].tolist() == [143, 163, 184]  # the block's bar
    assert image[int(200 / 512 * 96), int(400 / 512 * 96)].tolist() == [143, 163, 184]  # its stem
    assert image[50, 47].tolist() == list(GOAL)
    assert image[0, 0].tolist() == [255, 255, 255]
    covered = render(np.array([[100.0, 400.0, *GOAL_POSE]]))[0]
    assert (image == GOAL).all(-1).sum() > 200 > 5 > (covered == GOAL).all(-1).sum()


def test_objects_outside_the_world_are_clipped() -> None:
    outside = np.array([[-500.0, 900.0, 2000.0, -700.0, 3.0]])
    empty = _draw(outside)
    assert set(np.unique(empty)) == {0, 1, 6}  # ground, goal and walls


def test_agent_position_is_observed_beside_the_image() -> None:
    observed = observe(STATES[None], "agent")
    assert observed.dtype == np.float32 and observed.shape == (1, 4, 2)
    np.testing.assert_array_equal(observed[0], STATES[:, :2])
    with pytest.raises(ValueError, match=r"'image'.*agent"):
        observe(STATES, "image")  # type: ignore[arg-type]


def test_rendering_imports_no_simulator() -> None:
    program = (
        "import sys, numpy; from pipeline.tasks.pusht.camera import render; render(numpy.zeros((1, 5)));"
        "print(*({'pygame', 'cv2', 'pymunk', 'gym_pusht', 'gymnasium'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.split() == []


def make_store(
    folder: Path, n: int = 20, *, dtype: str = "f4", images: np.ndarray | None = None, shard: int | None = None
) -> Path:
    """A store of ``n`` steps in two episodes, in the published layout: zarr 2, chunks of several rows.

    shard: rows of a shard; of zarr 3 then.
    """
    generator = np.random.default_rng(0)
    group = zarr.open_group(folder, mode="w", zarr_format=3 if shard else 2)
    state = generator.uniform(100, 400, (n, 5)).astype("f4")
    images = render(state) if images is None else images
    data = {"state": state, "action": state[:, :2], "img": images.astype(dtype)}
    for name, array in data.items():
        shards = shard and (shard, *array.shape[1:])
        group.create_array(f"data/{name}", data=array, chunks=(7, *array.shape[1:]), shards=shards)
    group.create_array("meta/episode_ends", data=np.array([n // 2, n]))
    return folder


@pytest.mark.parametrize("dtype", ["f4", "u1"])
def test_images_are_read_in_blocks_in_order(tmp_path: Path, dtype: str) -> None:
    source = open_pusht_images(make_store(tmp_path / "store", dtype=dtype))
    blocks = list(source.blocks(8))
    assert [len(block) for block in blocks] == [8, 8, 4]
    np.testing.assert_array_equal(np.concatenate(blocks), render(source.demonstrations.state))


def test_zipped_store_equals_folder(tmp_path: Path) -> None:
    folder = make_store(tmp_path / "store")
    zipped = Path(shutil.make_archive(str(tmp_path / "zipped"), "zip", folder))
    np.testing.assert_array_equal(
        np.concatenate(list(open_pusht_images(zipped).blocks())),
        np.concatenate(list(open_pusht_images(folder).blocks())),
    )


def test_image_shards_are_read_and_a_missing_one_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "sharded", shard=14)
    source = open_pusht_images(store)
    np.testing.assert_array_equal(np.concatenate(list(source.blocks(8))), render(source.demonstrations.state))
    (store / "data/img/c/1/0/0/0").unlink()
    with pytest.raises(UserError, match=r"array data/img lacks 1 of its 2 shards; fetch it anew, or"):
        open_pusht_images(store)


def test_incomplete_image_stores_are_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "lost")
    (store / "data/img/1.0.0.0").unlink()
    with pytest.raises(UserError, match=r"lost: array data/img lacks 1 of its 3 chunks; fetch it anew, or"):
        open_pusht_images(store)
    store = make_store(tmp_path / "cut")
    chunk = store / "data/img/1.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(UserError, match=r"cut: array data/img cannot be read from row \d+ on: [^\n]+$"):
        list(open_pusht_images(store).blocks(4))
    shutil.rmtree(store / "data/img")
    with pytest.raises(UserError, match=r"cut: array data/img is missing; the data set pusht_human_image has it$"):
        open_pusht_images(store)
    store = make_store(tmp_path / "small", images=np.zeros((20, 48, 48, 3)) + 9)
    with pytest.raises(UserError, match=r"data/img has shape \(20, 48, 48, 3\), expected \(20, 96, 96, 3\)$"):
        open_pusht_images(store)


@pytest.mark.parametrize("value", [-1.0, 0.5, 256.0, np.nan])
def test_invalid_pixel_values_are_refused(tmp_path: Path, value: float) -> None:
    images = np.full((20, 96, 96, 3), 255.0)
    images[9, 5, 5, 1] = value
    source = open_pusht_images(make_store(tmp_path / "store", images=images))
    with pytest.raises(UserError, match=r"whole numbers from 0 to 255, first in row 9$"):
        list(source.blocks(4))
