"""Train a model of a task at a scale by one method, as a stage of dvc.yaml.

robot tasks
  --method fm                      flow matching from scratch, the base model of all others but ddpm (stage pretrain)
  --method ddpm                    a net that predicts noise, for rows ddpm and ddim (pretrain_diffusion)
  --method fm, ft_fm --nfe N       the base model fine-tuned at equal compute (finetune)
  --method resft_fm, resft_fm_unet --nfe N
                                   a second field behind the frozen base model (finetune_residual)
images
  --method extractor               the classifier that gives the features for distances (train_extractor)
  --method ddpm, vp_fm, ve_fm, ot_fm, si, i_cfm, ot_cfm
                                   a method of Table 1 from scratch (pretrain_images)
  --method ft_fm --nfe N           the base model fine-tuned (finetune_images)
  --method resft_fm                a net behind the frozen base model (finetune_image_residual)
"""

import argparse
from typing import get_args

from pipeline.orchestration.kinds import run_kind
from pipeline.orchestration.stage import program
from pipeline.settings.images import SHAPES, ImageMethod
from pipeline.settings.paths import split_row
from pipeline.training.job import Asked
from pipeline.utils.errors import UserError

ROBOT = {"fm": "pretrain", "ddpm": "pretrain_diffusion"}
ROBOT_NFE = {"fm": "finetune", "ft_fm": "finetune"} | dict.fromkeys(("resft_fm", "resft_fm_unet"), "finetune_residual")
IMAGES = {"extractor": "train_extractor", "resft_fm": "finetune_image_residual"}
IMAGES |= dict.fromkeys(get_args(ImageMethod), "pretrain_images")
IMAGES_NFE = {"ft_fm": "finetune_images"}
"""Kind of stage that trains a method, without --nfe and with it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True, help="a block of params.yaml")
    parser.add_argument("--method", help="see above")
    parser.add_argument("--nfe", type=int, help="number of function evaluations that it is trained for")
    parser.add_argument("--row", help="method and NFE in one word, such as resft_fm-nfe16")
    parser.add_argument("--replica", type=int, help="train fm from scratch with this seed, beside that in params.yaml")
    arguments = parser.parse_args()
    method, nfe = split_row(arguments.row) if arguments.row else (arguments.method, arguments.nfe)
    kind = kind_of(arguments.task, method, nfe)
    if arguments.replica is not None and kind != "pretrain":
        raise UserError(f"--replica: given {arguments.replica}, allowed for fm from scratch alone")
    asked = Asked(arguments.scale, arguments.task, method, nfe or 0, arguments.replica)
    names: dict[str, object] = {"finetune": nfe, "finetune_images": nfe, "finetune_residual": asked.row}
    run_kind(kind, asked, *([names[kind]] if kind in names else []))


def kind_of(task: str, method: str | None, nfe: int | None) -> str:
    """Return the kind of stage that trains ``method`` of ``task``.

    Raises:
        UserError: no such method, or it is not trained with or without an ``nfe``.
    """
    plain, tuned = (IMAGES, IMAGES_NFE) if task in SHAPES else (ROBOT, ROBOT_NFE)
    kind = (plain if nfe is None else tuned).get(method or "")
    if kind is None:
        given = f"{method!r} {'without' if nfe is None else 'with'} --nfe" if method else "none"
        allowed = f"{', '.join(plain)}; with --nfe {', '.join(tuned)}"
        raise UserError(f"--method: given {given}, allowed for {task}: {allowed}")
    return kind


if __name__ == "__main__":
    program(main)
