"""Choose the precision of training and inference: bfloat16 where the device multiplies in it natively, else float32."""

import os
import platform
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from pipeline.utils.atomic import write_text

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16"]
PrecisionSetting = Literal["auto", "fp32", "bf16"]
"""A setting may be ``auto``; it is replaced by ``native`` before anything is computed."""


def native(kind: str | None = None) -> Precision:
    """Choose the precision for ``auto`` on devices of ``kind``, such as cpu or cuda; None: the training device."""
    return "bf16" if has_bf16(kind or device_kind()) else "fp32"


def device_kind() -> str:
    """Return the kind of device that training runs on: ``cuda`` if available, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def has_bf16(kind: str) -> bool:
    """Tell whether devices of ``kind`` have instructions for products in bfloat16, by PyTorch's own checks."""
    import torch

    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu" or not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    # on x86 oneDNN also says yes for AVX512 without these instructions, and then multiplies in float32
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def begun_with(path: Path, now: Precision) -> Precision:
    """Return the precision that a run began with: as stored in ``path``, or ``now``, then stored there for a resume."""
    if path.exists():
        return cast(Precision, path.read_text(encoding="utf-8"))
    write_text(path, now)
    return now


def autocast(kind: str, precision: PrecisionSetting) -> "torch.autocast":
    """Return a context in which products on devices of ``kind`` are computed in ``precision``.

    Prints one warning per program if ``precision`` is bfloat16 and the device has no instructions for it.

    Raises:
        ValueError: ``precision`` is still ``auto``.
    """
    import torch

    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision: given {precision!r}, allowed here: fp32, bf16; what auto is, is chosen before")
    if precision == "bf16":
        _warn_if_slow(kind)
    return torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16")


@cache
def _warn_if_slow(kind: str) -> None:
    if not has_bf16(kind) and os.environ.get("RANK", "0") == "0":  # only one of several processes warns
        print(
            f"warning: precision bf16: this {kind} has no instructions for bfloat16, and is many times slower in it "
            "than in fp32, which precision: auto would choose here",
            file=sys.stderr,
        )
