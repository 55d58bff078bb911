"""Load weights by a net's own parameter names, with or without the wrappers that they were saved in."""

from collections.abc import Mapping

from torch import Tensor, nn


def unwrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove from ``weights`` the prefixes that wrappers add to names.

    ``torch.compile`` puts ``_orig_mod`` before the names of the compiled net or part of it. Data-parallel wrappers and
    averages put ``module`` before all names. If two names would become equal, all names stay as they are.
    """
    plain = {_plain(name): tensor for name, tensor in weights.items()}
    return plain if len(plain) == len(weights) else dict(weights)


def load_weights(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load ``weights`` into ``net`` in place; either may be wrapped.

    Raises:
        RuntimeError: the weights do not fit, as in ``nn.Module.load_state_dict``.
    """
    own = {_plain(name): name for name in net.state_dict()}
    net.load_state_dict({own.get(name, name): tensor for name, tensor in unwrapped(weights).items()})


def _plain(name: str) -> str:
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        del parts[0]
    return ".".join(parts)
