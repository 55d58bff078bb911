"""Checkpoints of image models restore samples and metadata; other files are refused in one line."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from pipeline.settings import schema
from pipeline.settings.images import ImageMethod
from pipeline.training.image_checkpoint import ImageMetadata, build_image_model, load_image_model, save_image_model
from pipeline.utils.atomic import write_bytes
from pipeline.utils.errors import UserError

SETTINGS = schema.load().starter.image_task("digits")
NET = SETTINGS.net.model_copy(update={"width": 8, "depth": 1})
RECORD = ImageMetadata("starter", "digits", "i_cfm", "i_cfm", 0, 7, 7.0, 3, NET, SETTINGS.pretrain)
RECORDS = [replace(RECORD, method=method, start=method) for method in get_args(ImageMethod)]
RECORDS += [replace(RECORD, method="ft_fm", nfe=2), replace(RECORD, method="resft_fm", residual=SETTINGS.residual)]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.method)
def test_image_checkpoint_round_trip_restores_samples_and_metadata(record: ImageMetadata, tmp_path: Path) -> None:
    model, path = build_image_model(record), tmp_path / "model.safetensors"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    save_image_model(path, model, record)
    again, read = load_image_model(path)
    assert read == record
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    made = [each.eval().sample(noise, "euler-4", torch.Generator().manual_seed(0))[0] for each in (model, again)]
    assert torch.equal(*made)
    before = path.read_bytes()
    save_image_model(path, again, read)
    assert path.read_bytes() == before


def test_an_untrained_residual_adds_nothing() -> None:
    base, residual = build_image_model(RECORD), build_image_model(RECORDS[-1])
    noise = torch.randn(2, 1, 8, 8)
    steps = SETTINGS.residual.residual_steps
    with torch.no_grad():
        alone = base.eval().sample(noise, "euler-3", torch.Generator())[0]
        together = residual.eval().sample(noise, f"euler-{3 + steps}", torch.Generator())[0]
    assert torch.equal(alone, together)


def test_unreadable_or_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(UserError, match=r"model\.safetensors: no such checkpoint"):
        load_image_model(path)
    write_bytes(path, b"torn")
    with pytest.raises(UserError, match="no readable safetensors file"):
        load_image_model(path)
    with pytest.raises(UserError, match="no image model of FlowTune"):
        load_image_model(Path("data/checkpoints/lab/pusht/fm-nfe1.safetensors"))
    save_image_model(path, build_image_model(RECORD), replace(RECORD, net=SETTINGS.net))
    with pytest.raises(UserError, match="of another architecture"):
        load_image_model(path)
