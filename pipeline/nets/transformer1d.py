"""The transformer of Diffusion Policy (Chi et al. 2023) over a chunk of actions, on ``torch.nn.TransformerDecoder``."""

import torch
from torch import Tensor, nn

from pipeline.nets.embedding import TimeEmbedding
from pipeline.utils.errors import UserError

POSITION_DEVIATION = 0.02
"""Of what is added to tokens for their place, at first."""


class Transformer1D(nn.Module):
    """v(t, x, c) for a chunk of actions: each action is a token, which attends to the others, to time and to c.

    What is attended to beside actions are one token of the time and ``condition_tokens`` of the condition, passed
    through an MLP. All of a condition is known before the first action is executed, so each action may attend to all
    of it, whether ``causal`` or not.

    Args:
        horizon, action_dim: shape of one sample x, (horizon, action_dim).
        condition_dim: length of the flat condition c.
        width, depth, heads: of the tokens, number of decoder layers, attention heads in each.
        dropout: probability on embeddings, attention weights and hidden units.
        causal: whether an action attends only to itself and those before it.
        condition_tokens: into how many equal parts c is cut, such as one for each observation; 1: it is one token.
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
        """Every layer with weights of its own: PyTorch's decoder starts as copies of one layer.

        Diffusion Policy's weights, of deviation 0.02 whatever the width, would all but shut out time and condition in
        narrow nets; so they are those of ``nn.Transformer``.
        """
        for layer in self.decoder.layers:
            for name, parameter in layer.named_parameters():
                if name.endswith("bias"):
                    nn.init.zeros_(parameter)
                elif parameter.dim() > 1:  # the others are the scales of norms, which are 1
                    nn.init.xavier_uniform_(parameter)
        for position in (self.action_position, self.context_position):
            nn.init.normal_(position, std=POSITION_DEVIATION)
