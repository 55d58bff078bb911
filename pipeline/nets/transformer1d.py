"""The transformer of Diffusion Policy (Chi et al. 2023) over a chunk of actions, on ``torch.nn.TransformerDecoder``."""

import torch
from torch import Tensor, nn

from pipeline.nets.embedding import TimeEmbedding
from pipeline.utils.errors import UserError

POSITION_DEVIATION = 0.02
"""Standard deviation of the positional embeddings at first."""


class Transformer1D(nn.Module):
    """v(t, x, c) for a chunk of actions: each action is a token that attends to the others, to time and to c.

    Beside the actions there are one token of the time and ``condition_tokens`` of the condition, passed through an MLP.
    The whole condition is known before the first action is executed. So each action attends to all of it, even if
    ``causal``.

    Args:
        horizon, action_dim: shape of one sample x, (horizon, action_dim).
        condition_dim: length of the flat condition c.
        width, depth, heads: of the tokens, number of decoder layers, attention heads in each.
        dropout: probability on embeddings, attention weights and hidden units.
        causal: whether an action attends only to itself and to earlier actions.
        condition_tokens: number of equal parts that c is cut into, such as one for each observation.
        time_features: number of sinusoidal features of t.

    Raises:
        UserError: ``heads`` does not divide the width, or ``condition_tokens`` the condition.
    """

    hidden: Tensor | None

    def __init__(
        self,
        horizon: int,
        action_dim: int,
        condition_dim: int,
        *,
        width: int,
        depth: int,
        heads: int,
        dropout: float,
        causal: bool,
        condition_tokens: int,
        time_features: int,
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"heads: given {heads}, allowed: divisors of width = {width}")
        if condition_dim % condition_tokens:
            raise UserError(
                f"condition_tokens: given {condition_tokens}, allowed: divisors of the {condition_dim} numbers that "
                "condition the net"
            )
        self.action = nn.Linear(action_dim, width)
        self.action_position = nn.Parameter(torch.empty(horizon, width))
        self.time = nn.Sequential(TimeEmbedding(time_features), nn.Linear(time_features, width))
        self.condition = nn.Linear(condition_dim // condition_tokens, width)
        self.context_position = nn.Parameter(torch.empty(1 + condition_tokens, width))
        self.context = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerDecoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, depth, norm=nn.LayerNorm(width))
        self.out = nn.Linear(width, action_dim)
        hidden = torch.ones(horizon, horizon, dtype=torch.bool).triu(1) if causal else None
        self.register_buffer("hidden", hidden, persistent=False)
        self._start()

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        """t: (B,), x: (B, horizon, action_dim), condition: (B, condition_dim) → velocity, shaped as x."""
        parts = condition.unflatten(1, (len(self.context_position) - 1, -1))
        context = torch.cat([self.time(t)[:, None], self.condition(parts)], dim=1)
        context = self.context(self.dropout(context + self.context_position))
        actions = self.dropout(self.action(x) + self.action_position)
        return self.out(self.decoder(actions, context, tgt_mask=self.hidden, tgt_is_causal=self.hidden is not None))

    def _start(self) -> None:
        """Initialise every layer separately, because PyTorch's decoder starts as copies of one layer.

        The weights are initialised as in ``nn.Transformer``. Diffusion Policy's deviation of 0.02 for any width would
        nearly suppress time and condition in narrow nets.
        """
        for layer in self.decoder.layers:
            for name, parameter in layer.named_parameters():
                if name.endswith("bias"):
                    nn.init.zeros_(parameter)
                elif parameter.dim() > 1:  # the others are the scales of norms, which stay 1
                    nn.init.xavier_uniform_(parameter)
        for position in (self.action_position, self.context_position):
            nn.init.normal_(position, std=POSITION_DEVIATION)
