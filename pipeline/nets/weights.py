"""Weights by the names that a net itself has for them, whatever it was wrapped in when they were saved."""

from collections.abc import Mapping

from torch import Tensor, nn


def unwrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``weights`` without what wrappers add to names: ``torch.compile`` puts ``_orig_mod`` before the names of what it
    compiled, the net or a part of it; data-parallel wrappers and averages put ``module`` before all names. Names that
    would then be equal stay as they are."""
    plain = {_plain(name): tensor for name, tensor in weights.items()}
    return plain if len(plain) == len(weights) else dict(weights)


def load_weights(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give ``net`` the ``weights`` in place, where either may be wrapped.

    Raises:
        RuntimeError: they do not fit, as of ``nn.Module.load_state_dict``.
    """
    own = {_plain(name): name for name in net.state_dict()}
    net.load_state_dict({own.get(name, name): tensor for name, tensor in unwrapped(weights).items()})


def _plain(name: str) -> str:
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        del parts[0]
    return ".".join(parts)
