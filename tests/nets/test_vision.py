"""Images as conditions: the encoder is ResNet-18, crops follow their generator, packing loses nothing."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.nets.vision import (
    ImageConditioned,
    VisionEncoder,
    centre_crop,
    joined,
    pack,
    random_crops,
    unpack,
)
from pipeline.utils.errors import UserError


def images(*shape: int) -> Tensor:
    return torch.randint(256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Linear(nn.Module):
    """v = W c."""

    def __init__(self, condition: int) -> None:
        super().__init__()
        self.layer = nn.Linear(condition, 6)

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        return self.layer(condition).view_as(x) + 0 * t[:, None, None]


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert pixels to float64: sums in float32 depend on shapes and on the processor."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def small(horizon: int = 2) -> ImageConditioned:
    torch.manual_seed(0)
    encoder = VisionEncoder(width=16, crop=32)
    return ImageConditioned(encoder, Linear(horizon * (encoder.features + 2)), horizon=horizon, n_numbers=2)


@pytest.mark.usefixtures("exact")
def test_encoder_is_torchvisions_resnet18_with_group_norm() -> None:
    from torchvision.models import resnet18

    theirs = resnet18(norm_layer=lambda channels: nn.GroupNorm(channels // 16, channels))
    theirs.fc = nn.Identity()
    ours = VisionEncoder(width=64, crop=64)
    weights = list(theirs.state_dict().values())
    ours.load_state_dict(dict(zip(ours.state_dict(), weights, strict=True)))
    given = images(2, 64, 64)
    pixels = given.permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        torch.testing.assert_close(ours.double()(given), theirs.double()(pixels.double()), rtol=1e-6, atol=1e-6)
    assert sum(parameter.numel() for parameter in ours.parameters()) == 11_176_512
    assert ours.features == 512


@pytest.mark.usefixtures("exact")
def test_width_16_is_small_and_keeps_leading_dimensions() -> None:
    encoder = VisionEncoder(width=16, crop=32).double()
    assert sum(parameter.numel() for parameter in encoder.parameters()) < 0.75e6
    given = images(2, 3, 40, 40)
    seen = encoder(given)
    assert seen.shape == (2, 3, 128)
    torch.testing.assert_close(seen[1, 2], encoder(given[1, 2]), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(seen, encoder(given[:, :, 4:36, 4:36]))  # centre crop


@pytest.mark.parametrize("width", [8, 24])
def test_widths_not_divisible_by_16_are_refused(width: int) -> None:
    with pytest.raises(UserError, match=rf"^vision.width: given {width}, allowed: multiples of 16$"):
        VisionEncoder(width=width)


def test_random_crops_are_reproducible_and_cover_every_offset() -> None:
    grid = torch.stack(torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij"), dim=-1)
    located = F.pad(grid, (0, 1)).to(torch.uint8).expand(400, 2, 96, 96, 3)  # red and green say where a pixel was
    one, again, other = (random_crops(located, 84, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    corners = one[:, :, 0, 0, :2]
    assert torch.equal(corners[:, 0], corners[:, 1])  # the same square of both images of a history
    assert torch.equal(one[:, 0, -1, -1, :2], corners[:, 0] + 83)
    assert [corners[..., axis].unique().tolist() for axis in (0, 1)] == [list(range(13))] * 2


def test_the_middle_is_cropped_and_too_small_images_are_refused() -> None:
    given = images(1, 96, 96)
    assert torch.equal(centre_crop(given, 84), given[:, 6:90, 6:90])
    assert torch.equal(centre_crop(given, 96), given)
    with pytest.raises(ValueError, match="crop is 97, must be at most 96"):
        centre_crop(given, 97)


def test_packing_round_trip_is_exact() -> None:
    given, numbers = images(3, 2, 32, 32), torch.randn(3, 2, 5)
    packed = pack(given, numbers)
    assert packed.dtype == torch.uint8 and packed.shape == (3, 2 * (32 * 32 * 3 + 4 * 5))
    got, got_numbers = unpack(packed, 2, 5)
    assert torch.equal(got, given) and torch.equal(got_numbers, numbers)
    for wrong in (packed[:, :-1], packed.float()):
        with pytest.raises(ValueError, match="must be packed bytes of 2 images"):
            unpack(wrong, 2, 5)


@pytest.mark.usefixtures("exact")
def test_condition_holds_features_and_numbers_of_each_observation() -> None:
    net = small().double()
    given, numbers = images(3, 2, 40, 40), torch.randn(3, 2, 2)
    condition = net.encode(pack(given, numbers)).view(3, 2, -1)
    assert torch.equal(condition[..., -2:].to(numbers), numbers)
    torch.testing.assert_close(condition[:, 1, :-2], net.encoder(given[:, 1]), rtol=1e-10, atol=1e-10)
    assert torch.equal(joined(condition[..., :-2], numbers), condition.flatten(1))


def test_a_handful_of_frames_is_learned_through_the_encoder() -> None:
    net = small(horizon=1)
    packed, x = pack(images(4, 1, 32, 32), torch.zeros(4, 1, 2)), torch.randn(4, 3, 2)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        loss = (net(torch.zeros(4), x, packed) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.encoder.parameters())
