"""Wrap models of TorchCFM (Tong et al. 2024) as velocity fields v(t, x, condition), and read its checkpoints.

The TorchCFM package is not needed: its models are recognised by their call signatures.
"""

import pickle
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.nets.weights import load_weights, unwrapped
from pipeline.utils.errors import UserError

Weights = Literal["ema_model", "net_model"]
"""Entry of a checkpoint: the moving average of the weights, or the weights themselves."""


class TorchCFMField(nn.Module):
    """Velocity field v(t, x, condition) around a model of TorchCFM.

    ====================================  ==================  ==============================
    model                                 is called           condition
    ====================================  ==================  ==============================
    ``UNetModelWrapper``                  net(t, x)           None
    the same with ``class_cond=True``     net(t, x, y)        class labels (B,), integers
    ``MLP`` with ``time_varying=True``    net(cat([x, t]))    None
    ====================================  ==================  ==============================

    Any other module that is called like one of the first two works too. ``self.net`` is the given model itself, so the
    keys of its ``state_dict`` are TorchCFM's.

    Raises:
        ValueError: the model is an ``MLP`` with ``time_varying=False``.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.time_in_x = hasattr(net, "time_varying")
        if self.time_in_x and not net.time_varying:
            raise ValueError("net: given an MLP with time_varying=False, allowed: time_varying=True")

    def forward(self, t: Tensor, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """t: (B,) or a scalar, x: (B, …), condition: (B,) labels or None → velocity, shaped as x."""
        if self.time_in_x:
            if condition is not None:
                raise ValueError("condition: given a tensor, allowed: None, since TorchCFM's MLP takes none")
            return self.net(torch.cat([x, t.expand(len(x))[:, None]], dim=1))
        return self.net(t, x) if condition is None else self.net(t, x, condition)


def load_torchcfm(path: Path | str, net: nn.Module, which: Weights = "ema_model") -> TorchCFMField:
    """Load a checkpoint of TorchCFM's training scripts, such as those released for CIFAR-10, into ``net``.

    Args:
        path: a file of ``torch.save``, a dict with entries ``ema_model`` and ``net_model``.
        net: a model of the same architecture; its weights are overwritten in place.
        which: the moving average of the weights, or the weights themselves.

    Returns:
        ``net`` as a field, in evaluation mode.

    Raises:
        UserError: the file or the entry does not exist, or the weights do not fit ``net``.
    """
    weights = read_weights(path, which)
    try:
        load_weights(net, weights)
    except RuntimeError as error:
        raise UserError(f"{path}: its {which} does not fit the given net: {one_line(error)}") from None
    return TorchCFMField(net).eval()


def read_weights(path: Path | str, which: Weights) -> dict[str, Tensor]:
    """Read the weights of a checkpoint of TorchCFM's training scripts, by TorchCFM's names, on the CPU.

    Prefixes that ``torch.compile`` or ``DistributedDataParallel`` added to the names are removed. The file is read with
    ``weights_only``: no code in it is run.

    Raises:
        UserError: the file or the entry does not exist.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path}: no readable PyTorch checkpoint: {one_line(error)}") from None
    entries = content.keys() if isinstance(content, dict) else ()
    if which not in entries:
        raise UserError(f"{path}: no checkpoint of TorchCFM: it has no entry {which!r}")
    weights = content[which]
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise UserError(f"{path}: no checkpoint of TorchCFM: its entry {which!r} holds other things than weights")
    return unwrapped(weights)


def one_line(error: Exception) -> str:
    """Return the first 300 characters of an error's message, without line breaks."""
    return f"{' '.join(str(error).split()):.300}"
