"""Image files: deterministic storage, refusal of invalid arrays, conversion between bytes and floats."""

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tasks.images import Images, as_bytes, as_float, load_images, split_halves
from pipeline.utils.errors import UserError


@pytest.fixture
def images() -> Images:
    rng = np.random.default_rng(0)
    return Images(
        images=rng.integers(0, 256, (6, 3, 4, 5), dtype=np.uint8),
        labels=np.arange(6, dtype=np.uint8),
        exact=np.array([True, True, False, True, True, False]),
        name="toy",
    )


def test_save_and_load_round_trip(images: Images, tmp_path: Path) -> None:
    images.save(tmp_path / "made" / "images.npz")
    loaded = load_images(tmp_path / "made" / "images.npz")
    for key in ("images", "labels", "exact"):
        np.testing.assert_array_equal(getattr(loaded, key), getattr(images, key), strict=True)
    assert loaded.name == "toy"
    assert loaded.content_sha256() == images.content_sha256()


def test_equal_content_gives_equal_bytes(images: Images, tmp_path: Path) -> None:
    images.save(tmp_path / "a.npz")
    replace(images, images=np.asfortranarray(images.images)).save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as file:
        assert {entry.date_time for entry in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}, "no time of writing"


def test_content_hash_depends_on_every_array_and_the_shape(images: Images) -> None:
    variants = [
        images,
        replace(images, images=255 - images.images),
        replace(images, images=images.images.reshape(6, 3, 5, 4)),
        replace(images, labels=images.labels[::-1]),
        replace(images, exact=~images.exact),
    ]
    assert len({variant.content_sha256() for variant in variants}) == len(variants)


def test_optional_arrays_may_be_absent(images: Images, tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", images=images.images, labels=images.labels)
    loaded = load_images(tmp_path / "mine.npz")
    assert loaded.exact.all()
    assert (loaded.name, loaded.note) == ("mine", "")


def test_note_counts_inexact_images(images: Images) -> None:
    assert images.note == "2 of 6 training images are JPEG decodes"
    assert replace(images, exact=np.arange(50_000) >= 73).note == "73 of 50 000 training images are JPEG decodes"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "images missing; an npz of images holds images and labels"),
        ({"labels": None}, "labels missing; "),
        ({"images": np.zeros((6, 3, 4, 5), np.float32)}, "images: given float32, allowed: uint8"),
        (
            {"images": np.zeros((6, 4, 5, 3), np.uint8)},
            "images: given shape 6 x 4 x 5 x 3, allowed: N x C x H x W with",
        ),
        ({"images": np.zeros((6, 4, 5), np.uint8)}, "images: given shape 6 x 4 x 5, allowed"),
        ({"images": np.zeros((0, 3, 4, 5), np.uint8)}, "images: given shape 0 x 3 x 4 x 5, allowed"),
        ({"labels": np.zeros(5, np.uint8)}, "labels: given shape 5, allowed: 6, one for each image"),
        ({"labels": np.zeros(6, np.int64)}, "labels: given int64, allowed: uint8"),
        ({"exact": np.ones((6, 1), bool)}, "exact: given shape 6 x 1, allowed: 6, one for each image"),
        ({"exact": np.ones(6, np.uint8)}, "exact: given uint8, allowed: bool"),
        ({"images": np.array([{}])}, "is damaged, or holds other than plain arrays"),
    ],
)
def test_invalid_arrays_are_refused(images: Images, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    arrays = {"images": images.images, "labels": images.labels, "exact": images.exact} | changes
    path = tmp_path / "images.npz"
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
    check_refused(path, message)


def test_invalid_files_are_refused(images: Images, tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    check_refused(path, "does not exist; expected an npz of images")
    images.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    check_refused(path, "is not an npz file, or truncated")
    inside = whole.index(images.images.tobytes()) + 50
    path.write_bytes(whole[:inside] + bytes([whole[inside] ^ 1]) + whole[inside + 1 :])
    check_refused(path, "is damaged, or holds other than plain arrays (Bad CRC-32")
    with path.open("wb") as file:
        np.save(file, images.images)
    check_refused(path, "is not an npz file, or truncated")


def check_refused(path: Path, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_images(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_all_byte_values_round_trip_through_floats() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    floats = as_float(every)
    assert floats.dtype == torch.float32
    assert (floats[0], floats[-1]) == (-1, 1)
    torch.testing.assert_close(as_bytes(floats), every, rtol=0, atol=0)


@given(st.floats(-1.5, 1.5, width=32))
def test_a_float_becomes_the_nearest_byte(x: float) -> None:
    byte = as_bytes(torch.tensor([x])).item()
    assert abs(byte - np.clip(127.5 * x + 127.5, 0, 255)) <= 0.5 + 1e-5


@given(st.integers(2, 101), st.integers(0, 5))
def test_halves_are_disjoint_and_equal_in_size(n: int, seed: int) -> None:
    one, other = split_halves(n, seed)
    assert len(one) == len(other) == n // 2
    assert len({*one.tolist(), *other.tolist()} & set(range(n))) == 2 * (n // 2)


def test_halves_depend_on_the_seed() -> None:
    assert np.array_equal(split_halves(100, 0)[0], split_halves(100, 0)[0])
    assert not np.array_equal(split_halves(100, 0)[0], split_halves(100, 1)[0])
