"""Errors of invalid settings of the image tasks."""

import pytest

from tests.settings.params import changed, refused


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("images", ["cifar10"], "images: given cifar10, allowed at scale starter: digits"),
        ("images", ["digits", "cifar10"], "images: given ['digits', 'cifar10'], allowed: a list of at most 1"),
        ("images", ["mnist"], "images.0: given 'mnist', allowed: digits, cifar10"),
        (
            "image_nfe",
            [3],
            "image_nfe: given 3, allowed: numbers with a block starter.digits.finetune.nfe<k>, which are 1, 2, 4, 8",
        ),
        ("image_nfe", [], "image_nfe: given [], allowed: at least one number, or images: []"),
        (
            "digits.processes",
            3,
            "image.pretrain.batch_size: given 64, allowed: multiples of processes = 3 (in starter.digits)",
        ),
        (
            "starter.digits.select.latest",
            3000,
            "starter.digits.select.latest: given 3000, allowed: below pretrain.steps",
        ),
        ("starter.digits.select.latest", 300, "starter.digits.select.latest: given 300, allowed: at least 333"),
        ("image.fid.n_samples", 64, "image.fid.n_samples: given 64, allowed: more than the 64 embedded"),
        (
            "paper.cifar10.fid.n_samples",
            2048,
            "paper.cifar10.fid.n_samples: given 2048, allowed: more than the 2048 inception",
        ),
        (
            "image.fid.solvers",
            ["heun-4"],
            "image.fid.solvers.0: given 'heun-4', allowed: euler-1 to euler-1000, dopri5",
        ),
        ("image.fid.solvers", ["dopri5", "dopri5"], "image.fid.solvers: given ['dopri5', 'dopri5']"),
        ("image.fid.solvers", ["euler-2"], "image.fid.solvers: given ['euler-2'], allowed: with dopri5"),
        ("digits.data.dataset", "cifar10", "digits.data.dataset: given 'cifar10', allowed: digits (in starter.digits)"),
        ("image.residual.reflow_nfe", 6, "image.residual.reflow_nfe: given 6, allowed: more than the 6"),
        ("image.finetune.every.reflow_nfe", 4, "image.finetune.every.reflow_nfe: given 4, allowed: more than the 4"),
        ("image.residual.residual_steps", 8, "image.residual.residual_steps: given 8, allowed: below nfe = 8"),
        ("image.pretrain.ve_sigma_max", 0.01, "image.pretrain.ve_sigma_min: given 0.01, allowed: below ve_sigma_max"),
        ("cifar10.net.multipliers", [1] * 7, "cifar10.net.multipliers: given [1, 1, 1, 1, 1, 1, 1], allowed: as many"),
        ("cifar10.net.multipliers", [2, 2], "cifar10.net.multipliers: given [2, 2], allowed: the first of them 1"),
    ],
)
def test_invalid_image_settings_are_refused(key: str, value: object, line: str) -> None:
    assert refused(changed(key, value)).partition(": ")[2].startswith(line)
