"""Model files of residual policies, which extend those of ``pipeline.training.checkpoint``."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from pipeline.evaluation.policy import FlowPolicy
from pipeline.evaluation.residual_policy import ResidualPolicy
from pipeline.nets.residual import build_residual, residual_grid
from pipeline.nets.weights import load_weights
from pipeline.settings.names import as_stored, from_stored
from pipeline.settings.schema import ResidualRecipe
from pipeline.training.checkpoint import (
    CheckpointMetadata,
    LoadedPolicy,
    build_policy,
    load_policy,
    read_metadata,
    save_policy,
)
from pipeline.utils.atomic import write_bytes
from pipeline.utils.errors import UserError

_HEADER = "flowtune_residual"


def make_residual_policy(base: FlowPolicy, recipe: ResidualRecipe, seed: int, *, fixed: bool = False) -> ResidualPolicy:
    """Return ``base`` with an untrained residual drawn from ``seed``; ``fixed`` as of ``build_residual``."""
    condition_dim = base.n_obs_steps * len(base.observation_normalizer.offset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        residual = build_residual(recipe, base.horizon, base.action_dim, condition_dim, fixed=fixed)
    return ResidualPolicy(base, residual, residual_grid(recipe))


def save_residual_policy(
    path: Path, policy: ResidualPolicy, metadata: CheckpointMetadata, recipe: ResidualRecipe
) -> None:
    """Write ``policy`` as ``save_policy`` does, the base's weights in float16, with ``recipe`` beside the metadata.

    The residual must be ``fixed``: its float32 matrices are stored as they run and are certified.
    """
    with TemporaryDirectory() as folder:
        plain = Path(folder, path.name)
        save_policy(plain, policy, metadata, half=True)
        with safe_open(plain, framework="pt") as file:
            entries = dict(file.metadata())
        entries[_HEADER] = json.dumps(as_stored(recipe.model_dump(exclude_defaults=True)), sort_keys=True)
        write_bytes(path, _ordered(save(load_file(plain), metadata=entries)))


def _ordered(file: bytes) -> bytes:
    """Sort the metadata of a safetensors file, since the library writes several entries in random order."""
    size = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + file[8 + size :]


def read_recipe(path: Path) -> ResidualRecipe | None:
    """Read the recipe of the residual in a model file; None: it has no residual.

    Raises:
        UserError: as ``load_policy``, for the file and for its entry of the residual.
    """
    read_metadata(path)
    with safe_open(path, framework="pt") as file:
        text = file.metadata().get(_HEADER)
    if text is None:
        return None
    try:
        return ResidualRecipe.model_validate(from_stored(json.loads(text)))
    except ValueError as error:
        raise UserError(f"{path}: damaged header: {' '.join(str(error).split())}") from None


def load_model(path: Path) -> LoadedPolicy:
    """Load a model file with or without a residual; return its policy in evaluation mode and its metadata.

    Raises:
        UserError: as ``load_policy``.
    """
    recipe = read_recipe(path)
    if recipe is None:
        return load_policy(path)
    metadata = read_metadata(path)
    policy = make_residual_policy(build_policy(metadata), recipe, metadata.train_seed, fixed=True)
    try:
        load_weights(policy, load_file(path))
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise UserError(f"{path}: weights do not fit the architecture that its header names: {detail:.300}") from None
    return policy.eval(), metadata
