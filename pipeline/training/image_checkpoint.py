"""Files of image models: safetensors with everything needed to run the model in the header."""

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
    """What a file of an image model says of itself.

    Attributes:
        scale, task, method: identifiers. start: the method whose field it began as; ``method`` itself if pretrained.
        nfe: that it was fine-tuned for; 0: none.
        train_steps: optimiser steps since the random start.
        updates: the compute of those of its field, in flow-matching updates; a residual's is not counted.
        train_seed: of the training run. net, pretrain: the settings that the field was built and trained by.
        residual: the residual that goes on where the field ends; None: there is none.
        precision: fp32 or bf16, that its last training ran in; empty: of none, or not known, as of older files.
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
    """An untrained model of the metadata's architecture; its weights are drawn from ``train_seed``.

    Args:
        tolerance: of its adaptive solves.
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
    if isinstance(net, MLP):  # the U-Net's output is zero by itself
        silence(net.out)
    return ResidualModel(base, PlainResidual(net), residual_grid(metadata.residual))


def save_image_model(path: Path, model: ImageModel, metadata: ImageMetadata) -> None:
    """Write weights and metadata to ``path``, atomically; equal models give equal bytes."""
    header = {"version": _VERSION, **as_stored(TypeAdapter(ImageMetadata).dump_python(metadata, mode="json"))}
    if metadata.residual:  # files made before there was a choice keep their bytes
        header["residual"] = as_stored(metadata.residual.model_dump(mode="json", exclude_defaults=True))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_bytes(path, save(tensors, metadata={_HEADER: json.dumps(header, sort_keys=True)}))


def load_image_model(path: Path, tolerance: float = 1e-5) -> tuple[ImageModel, ImageMetadata]:
    """The model in a file, ready to sample, and its metadata.

    Args:
        tolerance: of its adaptive solves.

    Raises:
        UserError: no such file, not an image model of this project, or weights that do not fit what its header names.
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
