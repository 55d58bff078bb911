"""Fine-tune flow-matching models and act by their files: what programs of one's own use of FlowTune's library.

Each name is that of the library, the package ``pipeline``, and is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.deployment.controller import Controller, load_policy
    from pipeline.flow.coupling import make_coupling
    from pipeline.nets.torchcfm import TorchCFMField, load_torchcfm
    from pipeline.nets.torchcfm_unet import load_torchcfm_unet2d
    from pipeline.training.fine_tune import FineTuned, fine_tune, sample

_MODULES = {
    "Controller": "pipeline.deployment.controller",
    "FineTuned": "pipeline.training.fine_tune",
    "TorchCFMField": "pipeline.nets.torchcfm",
    "fine_tune": "pipeline.training.fine_tune",
    "load_policy": "pipeline.deployment.controller",
    "load_torchcfm": "pipeline.nets.torchcfm",
    "load_torchcfm_unet2d": "pipeline.nets.torchcfm_unet",
    "make_coupling": "pipeline.flow.coupling",
    "sample": "pipeline.training.fine_tune",
}
__all__ = [
    "Controller",
    "FineTuned",
    "TorchCFMField",
    "fine_tune",
    "load_policy",
    "load_torchcfm",
    "load_torchcfm_unet2d",
    "make_coupling",
    "sample",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'flowtune' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
