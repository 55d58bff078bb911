"""Ownership of resumable state: an interrupted run continues from its own state alone."""

import hashlib
from pathlib import Path

import torch
from torch import nn

from pipeline.utils.atomic import write_text


def fingerprint(net: nn.Module, settings: str) -> str:
    """Return a SHA-256 of settings and weights."""
    digest = hashlib.sha256(settings.encode())
    for name, tensor in net.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def claim(state_path: Path, fingerprint: str) -> None:
    """Record beside ``state_path`` the fingerprint of the run that owns it.

    Raises:
        ValueError: it has the state of a run of another fingerprint, or of an unknown one.
    """
    owner = _owner(state_path)
    if state_path.exists() and not (owner.exists() and owner.read_text(encoding="utf-8") == fingerprint):
        raise ValueError(
            f"state_path: {state_path} is of a run with other settings or weights; remove it or name another file"
        )
    write_text(owner, fingerprint)
    if not state_path.exists():
        for path in (healthy(state_path), kept_precision(state_path)):
            path.unlink(missing_ok=True)  # left by a run that ended before it saved a state


def release(state_path: Path) -> None:
    """Remove the state of a finished run and the files beside it."""
    for path in (state_path, healthy(state_path), kept_precision(state_path), _owner(state_path)):
        path.unlink(missing_ok=True)


def healthy(state_path: Path) -> Path:
    """Return the file of the last healthy weights of that run."""
    return state_path.with_name(f"{state_path.name}.healthy")


def kept_precision(state_path: Path) -> Path:
    """Return the file of the precision of that run."""
    return state_path.with_name(f"{state_path.name}.precision")


def _owner(state_path: Path) -> Path:
    return state_path.with_name(f"{state_path.name}.run")
