"""Run stages of temporary projects in forks of a process that has imported their libraries.

The tests run hundreds of stages, and importing torch and the like takes each of them seconds. This is
``pipeline.orchestration.program_server`` without ``pipeline`` in memory: each program imports the code of its own
project, which a test may have edited.

    python -m tests.program_server SOCKET
"""

import importlib
import os
import signal
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "torch._dynamo", "torch_fidelity", "accelerate", "cvxpy", "ot", "pandas", "sklearn.datasets")
LIBRARIES += ("matplotlib.pyplot", "zarr", "pydantic", "ruamel.yaml", "safetensors.torch", "imageio.v3", "pymunk")
LIBRARIES += ("diffusers.models.unets.unet_2d", "diffusers.schedulers.scheduling_ddpm")


def main() -> None:
    from pipeline.orchestration import program_server
    from pipeline.utils.platform import die_with_parent

    die_with_parent(os.getppid(), signal.SIGKILL)
    live = program_server._live

    def live_elsewhere(*arguments: Any, folder: str, environment: dict[str, str], **request: Any) -> None:
        """Call ``live`` with the caller's code; its ``stages/__init__.py``, which made the call, does not run again."""
        sys.path[:0] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
        if spec := PathFinder.find_spec("stages"):
            sys.modules["stages"] = module_from_spec(spec)
        live(*arguments, folder=folder, environment=environment, **request)

    program_server._live = live_elsewhere
    sys.path.remove(str(Path.cwd()))
    for name in LIBRARIES:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("pipeline", "tests")]:
        del sys.modules[name]
    program_server.main()


if __name__ == "__main__":
    main()
