"""Batches of images: flips, shifts and reproducible draws."""

import pytest
import torch
from torch import Tensor

from pipeline.tasks.images import as_float
from pipeline.training.images import ImageBatches, shifted
from pipeline.training.loop import Batches


@pytest.fixture
def images() -> Tensor:
    return torch.randint(256, (50, 3, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_image_batches_without_flips_equal_plain_batches(images: Tensor) -> None:
    generator, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    condition, data = ImageBatches(images, flip=False).draw(32, generator)
    assert (condition.shape, condition.dtype, data.dtype) == ((32, 0), torch.float32, torch.float32)
    expected = Batches(torch.empty(50, 0), as_float(images)).draw(32, other)[1]
    torch.testing.assert_close(data, expected, rtol=0, atol=0)
    assert torch.equal(generator.get_state(), other.get_state()), "nothing else was drawn"


def test_flips_mirror_about_half_of_the_same_rows(images: Tensor) -> None:
    plain = ImageBatches(images, flip=False).draw(2000, torch.Generator().manual_seed(1))[1]
    data = ImageBatches(images, flip=True).draw(2000, torch.Generator().manual_seed(1))[1]
    kept = (data == plain).flatten(1).all(1)
    mirrored = (data == plain.flip(-1)).flatten(1).all(1)
    assert (kept ^ mirrored).all()
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.05)  # 4.5 standard errors


def test_shifts_move_whole_images_and_cover_every_allowed_offset(images: Tensor) -> None:
    images = images.repeat(4, 1, 1, 1)
    moved = shifted(images, 1, torch.Generator().manual_seed(2))
    padded = torch.nn.functional.pad(images.float(), (1, 1, 1, 1), mode="reflect").to(torch.uint8)
    places = [(dy, dx) for dy in range(3) for dx in range(3)]
    same = torch.stack([(padded[:, :, dy : dy + 4, dx : dx + 4] == moved).flatten(1).all(1) for dy, dx in places])
    assert same.any(0).all() and same.any(1).all(), "each image is one of the nine moves, and all nine occur"


def test_image_batch_is_determined_by_its_generator(images: Tensor) -> None:
    batches = ImageBatches(images, flip=True).to(torch.device("cpu"))
    first, second = (batches.draw(8, torch.Generator().manual_seed(3))[1] for _ in range(2))
    assert torch.equal(first, second)
