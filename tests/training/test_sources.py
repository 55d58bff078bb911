"""Training data of any kind become batches or are refused in one line."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pipeline.training.sources import as_source

X = torch.arange(12.0).reshape(6, 2)
C = torch.arange(6.0).reshape(6, 1)


def draw(data: Any, draws: int, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    source, _ = as_source(data, torch.float32)
    source, generator = source.to(torch.device("cpu")), torch.Generator().manual_seed(0)
    return [source.draw(size, generator) for _ in range(draws)]


@pytest.mark.parametrize("data", [(X, C), TensorDataset(X, C)])
def test_rows_in_memory_are_drawn_in_the_size_asked_for(data: Any) -> None:
    for condition, x1 in draw(data, 5):
        assert x1.shape == (4, 2) and torch.equal(x1[:, :1], 2 * condition)


@pytest.mark.parametrize("data", [X, TensorDataset(X), [X], [(X,)], DataLoader(TensorDataset(X), 6)])
def test_data_without_condition_get_an_empty_one(data: Any) -> None:
    ((condition, x1),) = draw(data, 1, size=6)
    assert condition.shape == (6, 0) and x1.shape == (6, 2)


@pytest.mark.parametrize("data", [[(X[:4], C[:4]), (X[4:], C[4:])], DataLoader(TensorDataset(X, C), 4)])
def test_iterable_restarts_at_its_end_and_keeps_its_batch_sizes(data: Any) -> None:
    drawn = draw(data, 5, size=3)
    assert [len(x1) for _, x1 in drawn] == [4, 2, 4, 2, 4]
    assert torch.equal(torch.cat([x1 for _, x1 in drawn]), torch.cat([X, X, X[:4]]))
    assert torch.equal(torch.cat([c for c, _ in drawn]), torch.cat([C, C, C[:4]]))


def test_generator_yields_every_batch_and_its_end_is_an_error() -> None:
    def once() -> Iterator[Tensor]:
        yield X[:4]
        yield X[4:]

    assert torch.equal(torch.cat([x1 for _, x1 in draw(once(), 2)]), X)
    with pytest.raises(ValueError, match="data: ended after 2 batches and cannot be started again; allowed: "):
        draw(once(), 3)


def test_floats_take_the_dtype_of_the_field_and_labels_stay_integers() -> None:
    labels = torch.arange(6)
    ((condition, x1),) = draw([(X.double(), labels)], 1)
    assert x1.dtype == torch.float32 and torch.equal(condition, labels)
    assert draw((X.double(), C.double()), 1)[0][0].dtype == torch.float32


class OneByOne(Dataset[Tensor]):
    def __getitem__(self, row: int) -> Tensor:
        return X[row]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ([], "an iterable without a batch, allowed: at least one"),
        (DataLoader(TensorDataset(X[:0])), "an iterable without a batch, allowed: at least one"),
        (7, "given a int, allowed: "),
        (OneByOne(), "given a OneByOne, allowed: .* in a DataLoader"),
        (X.numpy(), "given ndarray, allowed: "),
        ([{"x": X}], "given dict, allowed: "),
        ([(X, {"image": C})], "given tuple of \\(Tensor, dict\\), allowed: "),
        ((X, C, C), "given 3 tensors, allowed: "),
        (X[:, 0], "x1 of shape \\(6,\\), allowed: "),
        (X[:0], "x1 of shape \\(0, 2\\), allowed: "),
        (X.long(), "x1 of torch.int64, allowed: "),
        ((X, C[:5]), "a condition of shape \\(5, 1\\) beside x1 of shape \\(6, 2\\), allowed: "),
        (X.clone().fill_(torch.nan), "x1 holds NaN or infinity, allowed: "),
        ((X, C / 0), "condition holds NaN or infinity, allowed: "),
        ([X, X / 0], "x1 holds NaN or infinity, allowed: "),
        ([(X, C), X], "batch 1 has condition of shape \\(6, 0\\), allowed: rows of shape \\(1,\\)"),
    ],
)
def test_invalid_data_are_refused_in_one_line(data: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^data: .*{complaint}") as refusal:
        draw(data, 2)
    assert "\n" not in str(refusal.value)
