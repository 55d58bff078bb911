"""Load TorchCFM's image checkpoints, such as those released for CIFAR-10, into ``Unet2D``, without its package."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from pipeline.nets.torchcfm import Weights, one_line, read_weights
from pipeline.nets.unet2d import Unet2D
from pipeline.utils.errors import UserError

_BLOCK = re.compile(r"(input_blocks|middle_block|output_blocks)\.(\d+)\.(?:\d+\.)?([a-z].*)")
"""Part of the net, count in it, and layer. Except in the middle, a count inside the block precedes the layer."""

_PLACES = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
"""Layers outside the blocks: TorchCFM's name → diffusers'."""

_LAYERS = {
    "in_layers.0": "resnets.{}.norm1",
    "in_layers.2": "resnets.{}.conv1",
    "emb_layers.1": "resnets.{}.time_emb_proj",
    "out_layers.0": "resnets.{}.norm2",
    "out_layers.3": "resnets.{}.conv2",
    "skip_connection": "resnets.{}.conv_shortcut",
    "norm": "attentions.{}.group_norm",
    "qkv": "attentions.{}.qkv",
    "proj_out": "attentions.{}.to_out.0",
    "op": "downsamplers.0.conv",
    "conv": "upsamplers.0.conv",
}
"""Layers inside a block: TorchCFM's name → diffusers' name in a level, with {} for the block's place there."""


def load_torchcfm_unet2d(
    path: Path | str,
    which: Weights = "ema_model",
    *,
    shape: tuple[int, int, int] = (3, 32, 32),
    channels: int = 128,
    multipliers: Sequence[int] = (1, 2, 2, 2),
    blocks: int = 2,
    attention: Sequence[int] = (16,),
    head_channels: int = 64,
    dropout: float = 0.1,
) -> Unet2D:
    """Load the U-Net of a checkpoint of TorchCFM's training scripts; the defaults fit those released for CIFAR-10.

    It equals TorchCFM's ``UNetModelWrapper`` up to rounding and can be trained further. ``t`` is not scaled
    (``time_scale`` 1). For class-conditional models see ``load_torchcfm``.

    Args:
        path, which: as of ``load_torchcfm``.
        shape, channels, multipliers, blocks, attention, head_channels, dropout: the architecture, as of ``Unet2D``.
            The weights do not determine ``shape``, ``attention`` and ``head_channels``.

    Returns:
        The net in float32 on the CPU, in evaluation mode.

    Raises:
        UserError: the file or the entry does not exist, or the weights are of another architecture.
    """
    net = Unet2D(
        shape,
        channels=channels,
        multipliers=multipliers,
        blocks=blocks,
        attention=attention,
        head_channels=head_channels,
        groups=32,  # fixed in TorchCFM
        dropout=dropout,
        time_scale=1.0,
    )
    weights = read_weights(path, which)
    try:
        net.net.load_state_dict(dict(_translated(weights, blocks, head_channels)))
    except RuntimeError as error:
        raise UserError(
            f"{path}: its {which} is of another architecture than the one given: {one_line(error)}"
        ) from None
    return net.eval()


def _translated(weights: Mapping[str, Tensor], blocks: int, head_channels: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights under diffusers' names and in its shapes; those without a counterpart keep their names."""
    for name, tensor in weights.items():
        layer, _, kind = name.rpartition(".")
        place = _place(layer, blocks)
        if place.endswith(".qkv"):  # rows by head, and q, k, v inside each: guided-diffusion's QKVAttentionLegacy
            heads = tensor.reshape(-1, 3, head_channels, *tensor.shape[1:2])
            for projection, part in zip("qkv", heads.unbind(1), strict=True):
                yield f"{place.removesuffix('qkv')}to_{projection}.{kind}", part.flatten(0, 1)
        else:  # TorchCFM projects by 1-D convolutions of one tap
            yield f"{place}.{kind}", tensor[..., 0] if place.endswith(".to_out.0") and kind == "weight" else tensor


def _place(layer: str, blocks: int) -> str:
    """Translate the name of a layer to diffusers' name.

    TorchCFM counts through all levels, changes of resolution included. On the way down each level has ``blocks`` blocks
    and one change. On the way up it has one block more, which includes the change.
    """
    found = _BLOCK.fullmatch(layer)
    if found is None or found[3] not in _LAYERS:
        return _PLACES.get(layer, layer)
    count, inner = int(found[2]), _LAYERS[found[3]]
    if found[1] == "middle_block":  # block, attention, block
        return f"mid_block.{inner.format(count // 2)}"
    down = found[1] == "input_blocks"
    level, place = divmod(count - down, blocks + 1)  # the first on the way down is conv_in
    return f"{'down' if down else 'up'}_blocks.{level}.{inner.format(place)}"
