"""LoRA: fine-tune by low-rank additions to frozen weights (Hu et al. 2022), on ``torch.nn.utils.parametrize``."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

ADAPTED = (nn.Linear, nn.Conv1d, nn.Conv2d)


class LowRank(nn.Module):
    """W → W + (alpha / rank) B A, with W as a matrix of one row for each output: (out, everything else).

    B starts at zero and A uniform on ±1/√columns, as in the reference implementation.

    Args:
        weight: W; only its shape, type and device are used.
        rank: of B A, at most the smaller side of the matrix; a greater one is lowered, but alpha / rank is not changed.
        alpha: see above. generator: on the CPU; draws A.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        inner = min(rank, rows, columns)
        a = nn.init.kaiming_uniform_(torch.empty(inner, columns), a=math.sqrt(5), generator=generator)
        self.a = nn.Parameter(a.to(weight))
        self.b = nn.Parameter(weight.new_zeros(rows, inner))
        self.scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):  # so that merged weights equal those used in training
            return weight + self.scale * (self.b @ self.a).view_as(weight)


def add_lora(net: nn.Module, rank: int, alpha: float, generator: torch.Generator) -> None:
    """Freeze ``net`` and add a trainable low-rank term to the weight of every linear layer and 1-D or 2-D convolution.

    At first the net's outputs are unchanged, to the bit. Biases, norms, embeddings and transposed convolutions stay
    frozen. A moving average of such a net averages W, B and A separately.

    Args:
        rank: at least 1; lowered in layers that are too small for it.
        alpha: the term is scaled by alpha/rank, so that another rank needs no other learning rate.
        generator: on the CPU; draws A, layer by layer.

    Raises:
        ValueError: ``rank`` is below 1, ``net`` already has LoRA, or it has no layer for it.
    """
    if rank < 1:
        raise ValueError(f"rank: given {rank}, allowed: 1 or more")
    layers = [module for module in net.modules() if isinstance(module, ADAPTED)]
    if any(_has_lora(layer) for layer in layers):
        raise ValueError("net: given one with LoRA, allowed: a plain net; merge_lora makes it one")
    if not layers:
        raise ValueError(f"net: given one without {', '.join(kind.__name__ for kind in ADAPTED)}, allowed: with one")
    net.requires_grad_(False)
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, alpha, generator))


def merge_lora(net: nn.Module) -> None:
    """Merge the low-rank terms into the weights, and unfreeze all; parameters have their old names and order again.

    A net without LoRA is only unfrozen.
    """
    for module in net.modules():
        if not _has_lora(module):
            continue
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        module.register_parameter("bias", module._parameters.pop("bias"))  # after the weight, as it was
    net.requires_grad_()


def trainable_parameters(net: nn.Module) -> int:
    """Count the trainable numbers of ``net``."""
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)


def _has_lora(module: nn.Module) -> bool:
    if not parametrize.is_parametrized(module, "weight"):
        return False
    assert isinstance(module.parametrizations, nn.ModuleDict)
    return any(isinstance(part, LowRank) for part in module.parametrizations["weight"].children())
