"""Turn a user's data into training batches: tensors in memory, or an iterable of batches."""

from collections.abc import Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from pipeline.training.loop import Batches, BatchSource

Batch = Tensor | tuple[Tensor, ...] | list[Tensor]
"""x1 (B, …), or the pair of x1 and its condition (B, …)."""

Data = Tensor | tuple[Tensor, Tensor] | TensorDataset | Iterable[Batch]
"""All of x1, or of (x1, condition), in memory, or an iterable of batches such as a ``DataLoader``."""

_ALLOWED = "a tensor x1, or a pair of tensors (x1, condition)"


def as_source(data: Data, dtype: torch.dtype) -> tuple[BatchSource, Batches]:
    """Return a source of batches from ``data``, and its first rows, for checks.

    A tuple of two tensors is a data set in memory, x1 and its condition; a list is an iterable of batches.

    Args:
        dtype: that of the field's weights; x1 and floating-point conditions are converted to it.

    Raises:
        ValueError: ``data`` is no ``Data``, has no batch, or has rows that ``as_rows`` refuses.
    """
    if isinstance(data, TensorDataset):
        data = data.tensors if len(data.tensors) != 1 else data.tensors[0]
    if isinstance(data, Tensor) or (isinstance(data, tuple) and all(isinstance(part, Tensor) for part in data)):
        rows = as_rows(data, dtype, "data")
        return rows, Batches(rows.condition[:2], rows.data[:2])
    if isinstance(data, Dataset) or not isinstance(data, Iterable):
        raise ValueError(
            f"data: given a {type(data).__name__}, allowed: {_ALLOWED}, a TensorDataset, or an iterable of batches "
            "(a Dataset in a DataLoader)"
        )
    stream = _Stream(data, dtype)
    return stream, Batches(stream.first.condition[:2], stream.first.data[:2])


def as_rows(batch: object, dtype: torch.dtype, name: str) -> Batches:
    """Check ``batch`` and split it into x1 and condition; a missing condition becomes empty, (B, 0).

    Raises:
        ValueError: x1 is not floating-point (B, …) with at least one row, the condition has another number of rows, or
            either has NaN or infinity. The message calls the batch ``name``.
    """
    parts = (batch,) if isinstance(batch, Tensor) else batch
    if not isinstance(parts, tuple | list) or not all(isinstance(part, Tensor) for part in parts):
        kinds = ", ".join(type(part).__name__ for part in parts) if isinstance(parts, tuple | list) else ""
        given = f"{type(batch).__name__} of ({kinds})" if kinds else type(batch).__name__
        raise ValueError(f"{name}: given {given}, allowed: {_ALLOWED}")
    if len(parts) not in (1, 2):
        raise ValueError(f"{name}: given {len(parts)} tensors, allowed: {_ALLOWED}")
    x1 = parts[0]
    if x1.dim() < 2 or len(x1) == 0:
        raise ValueError(f"{name}: given x1 of shape {tuple(x1.shape)}, allowed: (B, …) with B at least 1")
    if not x1.is_floating_point():
        raise ValueError(f"{name}: given x1 of {x1.dtype}, allowed: floating point, scaled as the field was trained")
    condition = parts[1] if len(parts) == 2 else x1.new_empty(len(x1), 0)
    if condition.dim() == 0 or len(condition) != len(x1):
        raise ValueError(
            f"{name}: given a condition of shape {tuple(condition.shape)} beside x1 of shape {tuple(x1.shape)}, "
            "allowed: as many rows in both"
        )
    for what, tensor in (("x1", x1), ("condition", condition)):
        if not tensor.isfinite().all():
            raise ValueError(f"{name}: {what} holds NaN or infinity, allowed: finite numbers")
    return Batches(condition.to(dtype) if condition.is_floating_point() else condition, x1.to(dtype))


class _Stream:
    """Batches of an iterable, in its own sizes and order; it is started again when it ends."""

    def __init__(self, data: Iterable[object], dtype: torch.dtype) -> None:
        self._data = data
        self._dtype = dtype
        self._device = torch.device("cpu")
        batches: Iterator[object] = iter(data)
        try:
            batch = next(batches)
        except StopIteration:
            raise ValueError("data: given an iterable without a batch, allowed: at least one") from None
        self.first = as_rows(batch, dtype, "data")
        self._batches = chain([batch], batches)
        self._drawn = 0

    def to(self, device: torch.device) -> "_Stream":
        self._device = device
        return self

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        del size, generator
        rows = as_rows(self._next(), self._dtype, "data")
        for what, tensor, first in (
            ("x1", rows.data, self.first.data),
            ("condition", rows.condition, self.first.condition),
        ):
            if tensor.shape[1:] != first.shape[1:]:
                raise ValueError(
                    f"data: batch {self._drawn} has {what} of shape {tuple(tensor.shape)}, "
                    f"allowed: rows of shape {tuple(first.shape[1:])}, as in the first batch"
                )
        self._drawn += 1
        rows = rows.to(self._device)
        return rows.condition, rows.data

    def _next(self) -> object:
        for batch in self._batches:
            return batch
        self._batches = chain(self._data)
        for batch in self._batches:
            return batch
        raise ValueError(
            f"data: ended after {self._drawn} batches and cannot be started again; allowed: an iterable that can be, "
            "such as a DataLoader or a list, or a generator without end"
        )
