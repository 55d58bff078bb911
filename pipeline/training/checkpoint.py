"""Model files: safetensors files with the architecture and the provenance of the model in the header."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from pipeline.evaluation.image_policy import ImageConditioning, ImagePolicy, beside_features
from pipeline.evaluation.policy import FlowPolicy
from pipeline.nets.registry import build_encoder, build_net
from pipeline.nets.weights import load_weights
from pipeline.ode.fixed_step import SOLVERS
from pipeline.settings.names import as_stored, from_stored
from pipeline.settings.schema import DataSettings, NetSettings, TaskSettings
from pipeline.tasks.api import Task
from pipeline.tasks.loader import FORMER, load_task
from pipeline.tasks.normalizer import Normalizer
from pipeline.training.data import PreparedData
from pipeline.utils.atomic import write_bytes
from pipeline.utils.errors import UserError
from pipeline.utils.precision import Precision

_HEADER = "flowtune"
_VERSION = 1


@dataclass(frozen=True)
class CheckpointMetadata:
    """Metadata of a model file.

    Attributes:
        scale, task, method: identifiers; ``task`` is the block in params.yaml; a pretrained flow has method ``fm``.
        nfe: number of function evaluations that it was fine-tuned for; 0: for no particular number.
        train_steps: optimiser steps from random weights, fine-tuning included.
        train_seed: seed of the training run.
        data, net: the settings that the model was built from.
        metrics: measured on the model, such as its spread ratio; their key in files is ``figures``.
        solver: solver of its samples; stored if it is not Euler.
        temperature: factor of the initial noise of its samples; stored if it is not 1.
        precision: fp32 or bf16, of its last training; empty: untrained, or unknown as in older files.
        of: name of the task for ``load_task``; empty and not stored if it is the block's name.
        custom: settings from which a family makes the task; None: the task is of no family.
    """

    scale: str
    task: str
    method: str
    nfe: int
    train_steps: int
    train_seed: int
    data: DataSettings
    net: NetSettings
    metrics: dict[str, float]
    solver: str = "euler"
    temperature: float = 1.0
    precision: str = ""
    of: str = ""
    custom: dict[str, Any] | None = None

    def load_task(self) -> Task:
        """Load the task; the message of a ``UserError`` names no file."""
        return load_task(self.of or FORMER.get(self.task, self.task), self.custom)


LoadedPolicy = tuple[FlowPolicy, CheckpointMetadata]
"""Policy of a checkpoint, and the metadata of the checkpoint."""


def new_policy(scale: str, task: str, method: str, settings: TaskSettings, data: PreparedData) -> LoadedPolicy:
    """Build an untrained policy by ``settings``, with the normalisers of ``data``; return it with its metadata."""
    metadata = new_metadata(scale, task, method, settings)
    policy = build_policy(metadata)
    policy.observation_normalizer = data.observation_normalizer
    if isinstance(policy, ImagePolicy):
        features = policy.observe.encoder.features
        policy.observation_normalizer = beside_features(data.observation_normalizer, features)
    policy.action_normalizer = data.action_normalizer
    return policy, metadata


def new_metadata(scale: str, block: str, method: str, settings: TaskSettings) -> CheckpointMetadata:
    """Return the metadata of an untrained model of the ``block`` in params.yaml."""
    of = "" if settings.task == FORMER.get(block, block) else settings.task
    about = CheckpointMetadata(scale, block, method, 0, 0, settings.seed, settings.data, settings.net, metrics={})
    return replace(about, of=of, custom=settings.custom)


def build_policy(metadata: CheckpointMetadata) -> FlowPolicy:
    """Build an untrained policy of the metadata's architecture, with identity normalisers.

    The net's weights are drawn from ``train_seed``.
    """
    task, data = metadata.load_task(), metadata.data
    observation = task.observations[data.observation]
    observe, seen = observation.encode, observation.dim
    kind: type[FlowPolicy] = FlowPolicy
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(metadata.train_seed)
        if data.vision and observation.render:
            encoder = build_encoder(data.vision)
            kind, observe, seen = (
                ImagePolicy,
                ImageConditioning(encoder, observation.render, observe),
                encoder.features + seen,
            )
        net = build_net(metadata.net, data.horizon, task.action_dim, data.n_obs_steps * seen)
    return kind(
        net,
        observe,
        Normalizer(observation.dim),
        Normalizer(task.action_dim),
        n_obs_steps=data.n_obs_steps,
        horizon=data.horizon,
        n_action_steps=data.n_action_steps,
        solver=metadata.solver,
        temperature=metadata.temperature,
    )


@torch.no_grad()
def round_weights(net: nn.Module) -> None:
    """Round the weights of ``net`` to float16 in place, so that ``save_policy(…, half=True)`` loses nothing more."""
    for parameter in net.parameters():
        parameter.copy_(parameter.half())


def save_policy(path: Path, policy: FlowPolicy, metadata: CheckpointMetadata, *, half: bool = False) -> None:
    """Write weights, normalisers and metadata to ``path``, atomically; equal models give equal bytes.

    With ``half`` the net's weights are stored in float16; models still compute in float32. An image encoder is always
    stored in float16: it is frozen after pretraining, so that later stages use the stored weights.
    """
    header = asdict(metadata) | {
        "version": _VERSION,
        "data": as_stored(metadata.data.model_dump(exclude_none=True)),
        "net": metadata.net.model_dump(),
    }
    # defaults are not stored, so that models from before these keys keep their bytes and their names in results
    for name, default in (("solver", "euler"), ("temperature", 1.0), ("precision", ""), ("of", ""), ("custom", None)):
        if header[name] == default:
            del header[name]
    header["figures"] = header.pop("metrics")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    halved = ("observe.", "net.") if half else ("observe.",)
    tensors = {name: tensor.half() if name.startswith(halved) else tensor for name, tensor in tensors.items()}
    write_bytes(path, save(tensors, metadata={_HEADER: json.dumps(header, sort_keys=True)}))


def read_metadata(path: Path) -> CheckpointMetadata:
    """Read the metadata of a model file without its weights; raises as ``load_policy``."""
    try:
        with safe_open(path, framework="pt") as file:
            entries = file.metadata() or {}
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: no readable safetensors file: {error}") from None
    if _HEADER not in entries:
        raise UserError(f"{path}: no FlowTune checkpoint: its header has no '{_HEADER}' entry")
    try:
        header: dict[str, Any] = dict(json.loads(entries[_HEADER]))
        if header.pop("version", None) != _VERSION:
            raise UserError(f"{path}: written by another version of FlowTune; allowed: format {_VERSION}")
        if header.get("solver", "euler") not in SOLVERS:
            raise UserError(f"{path}: a model of solver {header['solver']!r}, allowed: {', '.join(SOLVERS)}")
        if header.get("precision", "") not in ("", *get_args(Precision)):
            allowed = ", ".join(get_args(Precision))
            raise UserError(f"{path}: a model of precision {header['precision']!r}, allowed: {allowed}")
        data = TypeAdapter(DataSettings).validate_python(from_stored(header.pop("data")))
        net = TypeAdapter(NetSettings).validate_python(header.pop("net"))
        metadata = CheckpointMetadata(data=data, net=net, metrics=header.pop("figures"), **header)
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged header: {' '.join(str(error).split())}") from None
    try:
        task = metadata.load_task()
    except UserError as error:
        raise UserError(f"{path}: a model of task {metadata.task!r}: {error}") from None
    if data.observation not in task.observations:
        allowed = ", ".join(task.observations)
        raise UserError(f"{path}: a model of observation {data.observation!r}, allowed of {metadata.task}: {allowed}")
    return metadata


def load_policy(path: Path, build: Callable[[CheckpointMetadata], FlowPolicy] = build_policy) -> LoadedPolicy:
    """Load a model file; return its policy in evaluation mode and its metadata.

    Raises:
        UserError: the file is missing, is no model of this project, or has weights that do not fit its architecture.
    """
    metadata = read_metadata(path)
    policy = build(metadata)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    try:
        load_weights(policy, tensors)
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise UserError(f"{path}: weights do not fit the architecture that its header names: {detail:.300}") from None
    return policy.eval(), metadata


def require_architecture(path: Path, metadata: CheckpointMetadata, data: DataSettings, net: NetSettings) -> None:
    """Check that a checkpoint was made with the settings ``data`` and ``net``.

    Raises:
        UserError: it was not; the message names the first setting that differs.
    """
    for block, have, want in (("net", metadata.net, net), ("data", metadata.data, data)):
        have_all, want_all = have.model_dump(), want.model_dump()
        for key in want_all | have_all:
            if have_all.get(key) != want_all.get(key):
                raise UserError(
                    f"{path}: checkpoint of another architecture: its {block}.{key} is {have_all.get(key)!r}, "
                    f"params.yaml asks for {want_all.get(key)!r}"
                )
