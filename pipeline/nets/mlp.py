"""A residual MLP velocity field: the smallest net that fits a low-dimensional policy well; it is fast on a CPU."""

import torch
from torch import Tensor, nn

from pipeline.nets.embedding import TimeEmbedding
from pipeline.nets.sharing import repeated


class _Block(nn.Module):
    """Pre-norm residual block; time and condition enter as scale and shift after the norm (FiLM, Perez et al. 2018)."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.film = nn.Linear(width, 2 * width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)
        self.act = nn.SiLU()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        scale, shift = self.film(context)[:, None].chunk(2, dim=-1)
        by_context = self.norm(x).unflatten(0, (len(context), len(x) // len(context)))
        return x + self.down(self.act(self.up((by_context * (1 + scale) + shift).flatten(0, 1))))


class MLP(nn.Module):
    """v(t, x, c) for a flattened chunk of actions, by a residual MLP.

    Args:
        horizon, action_dim: shape of one sample x, (horizon, action_dim).
        condition_dim: length of the flat condition c.
        width, depth, expansion: hidden width, number of blocks, inner width of a block over ``width``. v has to remove
            the noise in all horizon · action_dim directions, and a smaller width passes only ``width`` of them: the
            loss then stays above 1 − width / (horizon · action_dim) for any condition.
        time_features: number of sinusoidal features of t.

    Attributes:
        broadcasts: t may also be (1,), one for all x, and the condition (B / K, C), each for K successive x.
    """

    broadcasts = True

    def __init__(
        self,
        horizon: int,
        action_dim: int,
        condition_dim: int,
        width: int,
        depth: int,
        expansion: int,
        time_features: int,
    ) -> None:
        super().__init__()
        dim = horizon * action_dim
        self.time = nn.Sequential(TimeEmbedding(time_features), nn.Linear(time_features, width))
        self.condition = nn.Linear(condition_dim, width)
        self.context = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.inp = nn.Linear(dim + condition_dim, width)
        self.blocks = nn.ModuleList(_Block(width, expansion) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, dim)

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        """t: (B,), x: (B, horizon, action_dim), condition: (B, condition_dim) → velocity, shaped as x."""
        context = self.context(self.time(t) + self.condition(condition))
        h = self.inp(torch.cat([x.flatten(1), repeated(condition, len(x))], dim=-1))
        for block in self.blocks:
            h = block(h, context)
        return self.out(self.norm(h)).view_as(x)
