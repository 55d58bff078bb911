"""Whose state a file holds: an interrupted run goes on from its own, and from no other."""

import hashlib
from pathlib import Path

import torch
from torch import nn

from pipeline.utils.atomic import write_text


def fingerprint(net: nn.Module, settings: str) -> str:
    """A hash of settings and weights."""
    digest = hashlib.sha256(settings.encode())
    for name, tensor in net.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def claim(state_path: Path, fingerprint: str) -> None:
    """Note beside ``state_path`` whose state it is going to hold.

    Raises:
        ValueError: it holds the state of a run of another fingerprint, or of none that is known.
    """
    owner = _owner(state_path)
    if state_path.exists() and not (owner.exists() and owner.read_text(encoding="utf-8") == fingerprint):
        raise ValueError(
            f"state_path: {state_path} is of a run with other settings or weights; remove it or name another file"
        )
    write_text(owner, fingerprint)
    if not state_path.exists():
        for path in (healthy(state_path), kept_precision(state_path)):
            path.unlink(missing_ok=True)  # of a run that ended before it had a state


def release(state_path: Path) -> None:
    """Remove the state of a run that has ended, and what lies beside it."""
    for path in (state_path, healthy(state_path), kept_precision(state_path), _owner(state_path)):
        path.unlink(missing_ok=True)


def healthy(state_path: Path) -> Path:
    """Where the last healthy weights of that run are kept."""
    return state_path.with_name(f"{state_path.name}.healthy")


def kept_precision(state_path: Path) -> Path:
    """Where the precision that run began in is kept."""
    return state_path.with_name(f"{state_path.name}.precision")


def _owner(state_path: Path) -> Path:
    return state_path.with_name(f"{state_path.name}.run")
