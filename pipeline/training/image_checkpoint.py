"""Model files of image models: safetensors files with the architecture of the model in the header."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import StringConstraints, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pipeline.evaluation.image_models import DiffusionModel, FlowModel, ImageModel, ResidualModel
from pipeline.flow.image_methods import make_field, path_of
from pipeline.nets.images import build_image_net
from pipeline.nets.mlp import MLP
from pipeline.nets.residual import PlainResidual, residual_grid, silence
from pipeline.nets.weights import load_weights
from pipeline.settings.blocks import ImageNetSettings
from pipeline.settings.images import SHAPES, ImageMethod, ImagePretrainSettings, ImageResidualRecipe, ImageTask
from pipeline.settings.names import as_stored, from_stored
from pipeline.utils.atomic import write_bytes
from pipeline.utils.errors import UserError

_HEADER = "flowtune_images"
_VERSION = 1


@dataclass(frozen=True)
class ImageMetadata:
    """Metadata of an image model file.

    Attributes:
        scale, task, method: identifiers. start: the method that pretrained its field.
        nfe: the number of function evaluations that it was fine-tuned for; 0: none.
        train_steps: optimiser steps from random weights.
        updates: the compute of its field's training in flow-matching updates, without a residual's.
        train_seed: of the training run. net, pretrain: the settings that the field was built and trained by.
        residual: the recipe of the residual behind the field; None: it has none.
        precision: fp32 or bf16, of its last training; empty: untrained, or unknown as in older files.
    """

    scale: str
    task: ImageTask
    method: str
    start: ImageMethod
    nfe: int
    train_steps: int
    updates: float
    train_seed: int
    net: ImageNetSettings
    pretrain: ImagePretrainSettings
    residual: ImageResidualRecipe | None = None
    precision: Annotated[str, StringConstraints(pattern="^(fp32|bf16)?$")] = ""


def build_image_model(metadata: ImageMetadata, tolerance: float = 1e-5) -> ImageModel:
    """Build an untrained model of the metadata's architecture, with weights drawn from ``train_seed``.

    ``tolerance`` is that of its adaptive solves.
    """
    shape = SHAPES[metadata.task]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(metadata.train_seed)
        field = make_field(build_image_net(metadata.net, shape), metadata.start, metadata.pretrain)
        if metadata.start == "ddpm":
            return DiffusionModel(field, tolerance)
        base = FlowModel(field, path_of(metadata.start, metadata.pretrain).source_scale, tolerance)
        if metadata.residual is None:
            return base
        net = build_image_net(metadata.residual.net, shape)
    if isinstance(net, MLP):  # the U-Net's output starts at zero anyway
        silence(net.out)
    return ResidualModel(base, PlainResidual(net), residual_grid(metadata.residual))


def save_image_model(path: Path, model: ImageModel, metadata: ImageMetadata) -> None:
    """Write weights and metadata to ``path``, atomically; equal models give equal bytes."""
    header = {"version": _VERSION, **as_stored(TypeAdapter(ImageMetadata).dump_python(metadata, mode="json"))}
    if metadata.residual:  # defaults are not stored, so that older files keep their bytes
        header["residual"] = as_stored(metadata.residual.model_dump(mode="json", exclude_defaults=True))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_bytes(path, save(tensors, metadata={_HEADER: json.dumps(header, sort_keys=True)}))


def load_image_model(path: Path, tolerance: float = 1e-5) -> tuple[ImageModel, ImageMetadata]:
    """Load an image model file; return its model in evaluation mode and its metadata.

    ``tolerance`` is that of the model's adaptive solves.

    Raises:
        UserError: the file is missing, is no image model of this project, or its weights do not fit its architecture.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        if header.pop("version", None) != _VERSION:
            raise UserError(f"{path}: written by another version of FlowTune; allowed: format {_VERSION}")
        metadata = TypeAdapter(ImageMetadata).validate_python(from_stored(header))
        model = build_image_model(metadata, tolerance)
        load_weights(model, tensors)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except KeyError:
        raise UserError(f"{path}: no image model of FlowTune: its header has no {_HEADER!r} entry") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: no readable safetensors file: {error}") from None
    except (ValidationError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: damaged, or of another architecture: {' '.join(str(error).split()):.300}") from None
    return model.eval(), metadata
