"""Seed one random generator for each purpose, so that a change in one never shifts another."""

import hashlib

import torch
from torch import Tensor


def derive(seed: int, *purpose: str | int) -> int:
    """Derive a 63-bit seed for a purpose: a hash of ``seed`` and the purpose's parts, so that streams differ."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Generators:
    """Named ``torch.Generator`` streams on the CPU, made on first use; their states save and load together.

    Numbers are drawn on the CPU and then moved, so that they are the same on every device.
    """

    def __init__(self, seed: int, *purpose: str | int) -> None:
        self._seed = seed
        self._purpose = purpose
        self._streams: dict[str, torch.Generator] = {}

    def __getitem__(self, name: str) -> torch.Generator:
        if name not in self._streams:
            self._streams[name] = torch.Generator().manual_seed(derive(self._seed, *self._purpose, name))
        return self._streams[name]

    def split(self, process: int) -> None:
        """Restart every stream for one of several processes, so that no two processes draw the same numbers.

        Process 0 keeps the streams of a single-process run.
        """
        if process:
            self._purpose = (*self._purpose, "process", process)
            self._streams = {}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state of every stream used so far, by name."""
        return {name: generator.get_state() for name, generator in self._streams.items()}

    def load_state_dict(self, states: dict[str, Tensor]) -> None:
        """Set the streams to saved states; streams without a saved state start anew."""
        self._streams = {}
        for name, state in states.items():
            self[name].set_state(state)
