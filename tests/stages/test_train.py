"""The choice of the stage kind that trains a method."""

import re

import pytest

from pipeline.settings.kinds import KINDS
from pipeline.utils.errors import UserError
from stages.train import IMAGES, IMAGES_NFE, ROBOT, ROBOT_NFE, kind_of


def test_every_training_kind_is_reachable_by_a_method() -> None:
    asked = {kind for table in (ROBOT, ROBOT_NFE, IMAGES, IMAGES_NFE) for kind in table.values()}
    assert asked == {name for name, kind in KINDS.items() if kind.program == "train"}
    assert (kind_of("pusht", "fm", None), kind_of("pusht", "fm", 1)) == ("pretrain", "finetune")
    assert (kind_of("digits", "ddpm", None), kind_of("pusht", "ddpm", None)) == (
        "pretrain_images",
        "pretrain_diffusion",
    )


@pytest.mark.parametrize(
    ("task", "method", "nfe", "error"),
    [
        ("pusht", "ftfm", 1, "given 'ftfm' with --nfe, allowed for pusht: fm, ddpm; with --nfe fm, ft_fm, resft_fm, "),
        ("pusht", "ft_fm", None, "given 'ft_fm' without --nfe, allowed for pusht: fm, ddpm; with --nfe fm, ft_fm"),
        ("digits", "fm", None, "given 'fm' without --nfe, allowed for digits: extractor, resft_fm, ddpm, "),
        ("digits", None, None, "given none, allowed for digits: "),
    ],
)
def test_unknown_method_is_refused_with_the_allowed_ones(
    task: str, method: str | None, nfe: int | None, error: str
) -> None:
    with pytest.raises(UserError, match=f"^--method: {re.escape(error)}[^\n]*$"):
        kind_of(task, method, nfe)
