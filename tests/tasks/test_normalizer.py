"""Normalisation to [−1, 1], and back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.tasks.normalizer import Normalizer

FINITE = st.floats(-1000, 1000, width=32)


@given(st.lists(st.tuples(FINITE, FINITE, FINITE), min_size=2, max_size=20))
def test_training_data_span_the_range_and_round_trip(rows: list[tuple[float, float, float]]) -> None:
    data = torch.tensor(rows)
    normalizer = Normalizer.fit(data)
    normalized = normalizer.normalize(data)
    assert normalized.abs().max() <= 1 + 1e-3
    varies = data.amax(0) - data.amin(0) > 1
    assert torch.allclose(normalized.amax(0)[varies], torch.ones(3)[varies], atol=1e-3)
    assert torch.allclose(normalized.amin(0)[varies], -torch.ones(3)[varies], atol=1e-3)
    assert torch.allclose(normalizer.denormalize(normalized), data, atol=1e-3)


def test_constant_component_is_only_centred() -> None:
    normalizer = Normalizer.fit(torch.tensor([[5.0, 0.0], [5.0, 4.0]]))
    assert normalizer.normalize(torch.tensor([5.0, 2.0])).tolist() == [0.0, 0.0]
    assert normalizer.normalize(torch.tensor([6.0, 2.0])).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("shape", [(2,), (3, 2), (4, 3, 2)])
def test_leading_dimensions_are_kept(shape: tuple[int, ...]) -> None:
    normalizer = Normalizer.of(torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.5]))
    x: Tensor = torch.arange(24.0)[: torch.Size(shape).numel()].view(shape)
    assert normalizer.normalize(x).shape == x.shape
    assert torch.equal(normalizer.denormalize(normalizer.normalize(x)), x)


def test_normalizer_is_saved_in_the_state_dict_and_has_no_parameters() -> None:
    normalizer = Normalizer.of(torch.tensor([1.0]), torch.tensor([3.0]))
    other = Normalizer(1)
    other.load_state_dict(normalizer.state_dict())
    assert (other.offset.item(), other.scale.item()) == (1.0, 3.0)
    assert list(normalizer.parameters()) == []
