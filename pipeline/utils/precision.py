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
"""``auto`` is what ``native`` says; all that computes is given what it became."""


def native(kind: str | None = None) -> Precision:
    """What ``auto`` is on devices of ``kind``, such as cpu or cuda; None: of those that training runs on here."""
    return "bf16" if has_bf16(kind or device_kind()) else "fp32"


def device_kind() -> str:
    """The kind of device that training runs on here."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def has_bf16(kind: str) -> bool:
    """Whether devices of ``kind`` have instructions for products in bfloat16, by PyTorch's own checks."""
    import torch

    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu" or not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    # on x86 oneDNN says so of AVX512 without these instructions too, where it multiplies in float32
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def begun_with(path: Path, now: Precision) -> Precision:
    """What ``auto`` was where a run began: ``now``, unless the file ``path``, which keeps it for a resume, is there."""
    if path.exists():
        return cast(Precision, path.read_text(encoding="utf-8"))
    write_text(path, now)
    return now


def autocast(kind: str, precision: PrecisionSetting) -> "torch.autocast":
    """A context in which products on devices of ``kind`` are made in ``precision``.

    Prints one warning line, once a program, where that is bfloat16 and the device has no instructions for it.

    Raises:
        ValueError: ``precision`` is ``auto``, which nobody has replaced.
    """
    import torch

    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision: given {precision!r}, allowed here: fp32, bf16; what auto is, is chosen before")
    if precision == "bf16":
        _warn_if_slow(kind)
    return torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16")


@cache
def _warn_if_slow(kind: str) -> None:
    if not has_bf16(kind) and os.environ.get("RANK", "0") == "0":  # of several processes one says so
        print(
            f"warning: precision bf16: this {kind} has no instructions for bfloat16, and is many times slower in it "
            "than in fp32, which precision: auto would choose here",
            file=sys.stderr,
        )
