"""Write a policy as one ONNX graph with the whole solve: raw observation history and noise in, raw actions out."""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.deployment.controller import load_for_use, raw_observation_dim
from pipeline.evaluation.diffusion_policy import Sampler
from pipeline.evaluation.image_policy import ImageConditioning
from pipeline.evaluation.policy import FlowPolicy
from pipeline.tasks.types import Observe
from pipeline.utils.atomic import replacing
from pipeline.utils.code_deps import ROOT
from pipeline.utils.errors import UserError
from pipeline.utils.provenance import git_commit

PACKAGES = ("onnx", "onnxscript")


class Plan(nn.Module):
    """``ActingPolicy.act`` as a module with tensors in and out.

    Args:
        encode: raw observations (B, n_obs_steps, S) → encoded ones (B, n_obs_steps, D).
    """

    def __init__(self, policy: FlowPolicy, nfe: int, encode: nn.Module) -> None:
        super().__init__()
        self.policy = policy
        self.nfe = nfe
        self.encode = encode

    def forward(self, observation: Tensor, noise: Tensor) -> Tensor:
        """observation (B, n_obs_steps, S or D), noise (B, *noise_shape) → actions (B, horizon, A), raw."""
        encoded = self.encode(observation)
        condition = self.policy.observation_normalizer.normalize(encoded).flatten(1)
        return self.policy.action_normalizer.denormalize(self.policy.sample(condition, noise, self.nfe))


class _Traced(nn.Module):
    """A task's numpy encoding as tensor operations, traced by TorchDynamo.

    It is compiled, because ``torch.export`` loses the values of numpy arrays outside the function.
    """

    def __init__(self, observe: Observe, example: Tensor) -> None:
        super().__init__()
        self.operations: nn.Module = nn.Identity()
        self.given: tuple[Tensor | None, ...] = (None,)  # arguments: None for the observation, else constants

        def backend(graph: nn.Module, _: object) -> Callable[..., object]:
            def run(*inputs: Tensor) -> object:
                self.operations = graph
                self.given = tuple(None if tensor is example else tensor for tensor in inputs)
                return graph(*inputs)

            return run

        torch.compiler.reset()  # all encodings share one limit of compilations
        torch.compile(torch.compiler.wrap_numpy(observe), backend=backend, fullgraph=True, dynamic=False)(example)

    def forward(self, observation: Tensor) -> Tensor:
        """Encode raw observations (B, n_obs_steps, S) to (B, n_obs_steps, D)."""
        return self.operations(*(observation if tensor is None else tensor for tensor in self.given))[0]


def export_onnx(
    checkpoint: Path, out: Path, nfe: int | None = None, *, sampler: Sampler | None = None
) -> dict[str, str]:
    """Write the policy of ``checkpoint`` to ``out``, atomically, and return the metadata in the file.

    The graph plans for one robot: ``observation`` (1, n_obs_steps, S), the last of them the current one, and
    ``noise``, standard normal, (1, *noise_shape) → ``action`` (1, horizon, A), in environment units, all float32.
    If the task's encoding cannot be traced, ``observation`` is the encoded one, (1, n_obs_steps, D), and the metadata's
    ``observation`` begins with ``encoded`` in place of ``raw``.

    Args:
        nfe, sampler: as of ``load_policy``.

    Raises:
        UserError: as ``load_policy``; the policy takes images; the packages of the group ``export`` are not installed.
    """
    require_packages(*PACKAGES)
    policy, nfe, metadata = load_for_use(checkpoint, nfe, sampler)
    if isinstance(policy.observe, ImageConditioning):
        raise UserError(f"{checkpoint}: a policy of images; allowed: policies of states")
    encode = _traced(policy)
    seen = len(policy.observation_normalizer.offset) if encode is None else raw_observation_dim(policy)
    given = {
        "observation": torch.zeros(1, policy.n_obs_steps, seen),
        "noise": torch.zeros(1, *policy.noise_shape(nfe)),
    }
    made = {"action": torch.zeros(1, policy.horizon, policy.action_dim)}
    about = {
        "task": metadata.task,
        "method": getattr(policy, "sampler", metadata.method),
        "nfe": str(nfe),
        "n_obs_steps": str(policy.n_obs_steps),
        "horizon": str(policy.horizon),
        "n_action_steps": str(policy.n_action_steps),
        "observation": f"encoded as {metadata.data.observation!r}" if encode is None else "raw",
        "inputs": _shapes(given),
        "outputs": _shapes(made),
        "commit": git_commit(ROOT),
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
    }
    plan = Plan(policy, nfe, encode or nn.Identity()).eval()
    with torch.no_grad():  # one call before tracing fills the caches, such as a sampler's noise levels
        plan(*given.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # from the exporter, about torch itself
        program: Any = torch.onnx.export(
            plan,
            tuple(given.values()),
            input_names=list(given),
            output_names=list(made),
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props.update(about)
    with replacing(out) as temporary:
        program.save(temporary)
    return about


def require_packages(*names: str) -> None:
    """Check that packages of the optional group ``export`` are installed.

    Raises:
        UserError: a package is missing; the message names it and the remedy.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise UserError(f"not installed: {', '.join(missing)}; run `make env-export`")


def _traced(policy: FlowPolicy) -> nn.Module | None:
    """Trace the policy's encoding to tensor operations; None if this fails or changes the results."""
    example = torch.rand(1, policy.n_obs_steps, raw_observation_dim(policy), generator=torch.Generator().manual_seed(0))
    try:
        traced = _Traced(policy.observe, example)
        same = torch.allclose(traced(example), torch.from_numpy(policy.observe(example.numpy())))
    except Exception:  # the tracer may raise anything on the encoding's code
        return None
    return traced if same else None


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    return json.dumps({name: list(tensor.shape) for name, tensor in tensors.items()})
