"""Time one plan for one robot on one thread: a policy exported to onnxruntime, against the same policy in PyTorch."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from pipeline.deployment.controller import raw_observation_dim
from pipeline.deployment.onnx_export import PACKAGES, export_onnx, require_packages
from pipeline.perf.comparison import Comparison, DiffersError, Seconds, in_turns, nearly_equal
from pipeline.perf.solves import CHECKPOINT
from pipeline.training.checkpoint import load_policy
from pipeline.utils.errors import UserError

NFES = (1, 2, 16)


def comparisons(nfes: tuple[int, ...] = NFES, calls: int = 100) -> Iterator[Comparison]:
    """Yield the comparisons of lab's shipped Push-T net, raw observation to raw actions; ``calls`` plans per turn."""
    for nfe in nfes:
        work = _Plan(nfe, calls)
        yield Comparison(
            f"one plan at NFE {nfe}, lab's Push-T net, one thread, in onnxruntime",
            "the same policy in PyTorch, eager",
            0.5,
            work.same,
            work.turns,
        )


class _Plan:
    """Plans of both sides from the same observation and noise."""

    def __init__(self, nfe: int, calls: int) -> None:
        generator = np.random.default_rng(nfe)
        policy = load_policy(CHECKPOINT)[0]
        self.nfe = nfe
        self.calls = calls
        self.eager = policy.acting(nfe)
        self.session: Any = None
        shape = 1, policy.n_obs_steps, raw_observation_dim(policy)
        self.observation = generator.uniform(100, 400, shape).astype(np.float32)
        self.noise = generator.standard_normal((1, *self.eager.noise_shape), dtype=np.float32)

    def same(self) -> str:
        """Export the policy and compare the plans of both sides.

        Raises:
            DiffersError: the plans differ, or the packages of the group ``export`` are not installed.
        """
        try:
            require_packages(*PACKAGES, "onnxruntime")
        except UserError as error:
            raise DiffersError(str(error)) from None
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        with TemporaryDirectory() as folder:
            file = Path(folder, "policy.onnx")
            export_onnx(CHECKPOINT, file, self.nfe)
            self.session = onnxruntime.InferenceSession(file, options)
        return nearly_equal(self.exported(), self.by_torch(), 1e-5, "actions")

    def exported(self) -> np.ndarray:
        """Plan by onnxruntime, (1, horizon, A)."""
        return self.session.run(None, {"observation": self.observation, "noise": self.noise})[0]

    def by_torch(self) -> np.ndarray:
        """Plan by PyTorch, (1, horizon, A)."""
        return self.eager.act(self.observation, self.noise)

    def turns(self, count: int) -> list[Seconds]:
        """Run ``Comparison.turns`` with PyTorch on one thread."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return in_turns(self.exported, self.by_torch, self.calls)(count)
        finally:
            torch.set_num_threads(threads)
