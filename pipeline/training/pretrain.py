"""Flow-matching objective of training from scratch or from a base model."""

import torch
from torch import Tensor, nn

from pipeline.flow.objective import flow_matching_loss
from pipeline.flow.pairing import NO_MODELS, Coupling, Source
from pipeline.flow.path import AffinePath
from pipeline.training.loop import Objective
from pipeline.utils.seeding import Generators


class FlowMatching(Objective):
    """Conditional flow-matching loss on coupled pairs, with t uniform on [0, 1].

    Args:
        net: velocity field. path: probability path. coupling: one that needs no model.
        generators: streams ``noise``, ``time`` and ``path`` are drawn from.
    """

    def __init__(self, net: nn.Module, path: AffinePath, coupling: Coupling, generators: Generators) -> None:
        super().__init__()
        self.net = net
        self.path = path
        self.coupling = coupling
        self.generators = generators

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """Return the scalar loss. condition: (B, C), data: (B, …)."""
        pair = self.coupling(data, condition, Source(self.generators["noise"]), NO_MODELS)
        return drawn_matching_loss(self.net, self.path, pair.x0, pair.x1, condition, self.generators)


def drawn_matching_loss(
    net: nn.Module,
    path: AffinePath,
    x0: Tensor,
    x1: Tensor,
    condition: Tensor,
    generators: Generators,
    purpose: str = "",
) -> Tensor:
    """Return the conditional flow-matching loss of the pairs (x0, x1) at random times, uniform on [0, 1].

    Args:
        net: v(t, x, c). x0, x1: (B, …). condition: (B, C).
        generators: streams ``time`` and ``path`` are drawn from, with the prefix ``purpose``.
    """
    t = torch.rand(len(x1), generator=generators[f"{purpose}time"]).to(x1.device)
    epsilon = Source(generators[f"{purpose}path"]).like(x1) if path.spread > 0 else None
    return flow_matching_loss(net, path, x0, x1, condition, t, epsilon)
