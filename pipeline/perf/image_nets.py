"""Compare small U-Nets for CIFAR-10 on one CPU core: training images per second, and FD after a short training.

``python -m pipeline.perf.image_nets`` measures the speeds. ``--trial NAME`` trains one net as I-CFM for
``--core-minutes`` and measures its distance to the data. The trial needs the images and the classifier made by lab's
stages ``fetch_images`` and ``train_extractor``. Times are CPU times, so that other programs disturb them little.
Results go to reports/lab/image_nets_tried.csv and image_nets_trials.csv, and to image_nets_tried.md.
"""

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from pipeline.evaluation.image_models import FlowModel
from pipeline.nets.images import build_image_net
from pipeline.perf.comparison import machine
from pipeline.perf.training_step import measure_steps
from pipeline.reporting.tables import markdown_table
from pipeline.settings import schema
from pipeline.settings.blocks import PatchedUnet2dSettings
from pipeline.settings.images import ImageMethod, ImagePretrainSettings, ImageTask, ImageTaskSettings
from pipeline.settings.layers import Scale
from pipeline.settings.paths import ImageFiles, ScaleReports
from pipeline.tasks.images import load_images
from pipeline.training.image_judge import make_judge, summary
from pipeline.training.image_methods import pretraining
from pipeline.training.images import ImageBatches
from pipeline.training.loop import train
from pipeline.utils.atomic import write_csv, write_text
from pipeline.utils.precision import Precision, native
from pipeline.utils.seeding import Generators

SCALE: Scale = "lab"
TASK: ImageTask = "cifar10"
METHOD: ImageMethod = "i_cfm"
STEPS = 3
BATCH = 64
NFES = (1, 16, 100)
MORE_LR = 5e-4


def unet(channels: int, multipliers: list[int], patch: int, attention: list[int], blocks: int = 1) -> Any:
    """Make the settings of a candidate; ``attention`` lists sides of the folded image."""
    return PatchedUnet2dSettings(
        kind="patched_unet2d",
        channels=channels,
        multipliers=multipliers,
        blocks=blocks,
        attention=attention,
        head_channels=32 if channels % 32 == 0 else 16,
        groups=8,
        dropout=0.0,
        time_scale=1000.0,
        patch=patch,
    )


CANDIDATES = {
    "p1-c16": unet(16, [1, 2, 4], 1, []),
    "p1-c32": unet(32, [1, 2, 2], 1, []),
    "p1-c32-attention": unet(32, [1, 2, 2], 1, [8]),
    "p2-c32": unet(32, [1, 2, 2], 2, []),
    "p2-c32-attention": unet(32, [1, 2, 2], 2, [8]),
    "p2-c32-narrow": unet(32, [1, 1, 2], 2, []),
    "p2-c32-narrow-attention4": unet(32, [1, 1, 2], 2, [4]),
    "p2-c32-narrow-attention8": unet(32, [1, 1, 2], 2, [8]),
    "p2-c32-blocks2": unet(32, [1, 2, 2], 2, [], blocks=2),
    "p2-c48": unet(48, [1, 2, 2], 2, []),
    "p4-c64": unet(64, [1, 1], 4, []),
    "p4-c64-wide": unet(64, [1, 2], 4, []),
}
"""Nets of 0.6 to 3 M parameters: p is the side of the squares of folded pixels, c the width of the first level."""


def build(name: str, channels_last: bool = False) -> nn.Module:
    """Build the untrained net of a candidate."""
    net = build_image_net(CANDIDATES[name], (3, 32, 32))
    return net.to(memory_format=torch.channels_last) if channels_last else net  # type: ignore[call-overload]


def measure(names: list[str], precisions: list[Precision], batches: list[int]) -> Iterator[dict[str, object]]:
    """Measure the training speed; yield a row for each net, precision, memory format and batch."""
    images = torch.randint(256, (1024, 3, 32, 32), dtype=torch.uint8)
    for name, precision, last, batch in product(names, precisions, (False, True), batches):
        settings = _pretraining(precision, batch_size=batch)
        net, generators = build(name, last), Generators(0)
        objective = pretraining(METHOD, net, settings, generators)
        cost = measure_steps(objective, ImageBatches(images, flip=True), settings, generators, STEPS)
        yield {
            **_described(name, net),
            "precision": precision,
            "memory_format": "channels_last" if last else "contiguous",
            "batch_size": batch,
            "images_per_core_second": round(batch / cost.core_seconds, 1),
            "hardware": machine(),
        }


def trial(name: str, core_minutes: float, lr: float) -> Iterator[dict[str, object]]:
    """Train a candidate for about ``core_minutes`` and measure it; yield a row for each number of Euler steps."""
    files, settings = ImageFiles(SCALE, TASK), _task()
    images = ImageBatches(torch.from_numpy(load_images(files.images).images), settings.data.flip)
    keep = Path(".flowtune", "image_nets", f"{name}-{core_minutes:g}-{lr:g}")
    short = _pretraining(native(), batch_size=BATCH, lr=lr)
    cost = measure_steps(
        pretraining(METHOD, build(name), short, Generators(0)), images, short, Generators(0), 2 * STEPS
    )
    steps_file = keep / "steps"  # a resumed trial must keep its first number of steps
    if not steps_file.exists():
        write_text(steps_file, str(int(60 * core_minutes / cost.core_seconds)))
    steps = int(steps_file.read_text(encoding="utf-8"))
    whole, generators = short.model_copy(update={"steps": steps, "warmup": steps // 20}), Generators(0)
    torch.manual_seed(0)
    objective = pretraining(METHOD, build(name), whole, generators)
    net = train(objective, images, whole, generators, state_path=keep / "state.pt", title=name)
    judge, rule = make_judge(files, settings), settings.select
    for nfe in NFES:
        found = judge.measure(FlowModel(net), f"euler-{nfe}", rule.n_samples, rule.seeds(), keep, name)
        yield {
            **_described(name, net),
            "precision": whole.precision,
            "lr": lr,
            "core_minutes": core_minutes,
            "steps": steps,
            "batch_size": BATCH,
            "nfe": nfe,
            "n_samples": rule.n_samples,
            **summary(found),
            "hardware": machine(),
        }


def _task() -> ImageTaskSettings:
    return schema.load(Path("params.yaml")).block(SCALE).image_task(TASK)


def _pretraining(precision: Precision, **changes: float) -> ImagePretrainSettings:
    return _task().pretrain.with_auto(precision).model_copy(update={"precision": precision, **changes})


def _described(name: str, net: nn.Module) -> dict[str, object]:
    net_settings = CANDIDATES[name].model_dump(include={"patch", "channels", "multipliers", "blocks", "attention"})
    parameters = sum(weight.numel() for weight in net.parameters())
    return {"net": name, **{key: str(value) for key, value in net_settings.items()}, "parameters": parameters}


def add(path: Path, rows: list[dict[str, object]], key: list[str]) -> pd.DataFrame:
    """Put ``rows`` into the CSV at ``path``, in place of those with the same ``key``."""
    before = pd.read_csv(path) if path.exists() else pd.DataFrame()
    table = pd.concat([before, pd.DataFrame(rows)]).astype({"channels": str, "patch": str, "blocks": str})
    table = table.drop_duplicates(key, keep="last").reset_index(drop=True)
    write_csv(path, table)
    return table


_ABOUT = """\
# Nets tried for CIFAR-10 at scale lab

`python -m pipeline.perf.image_nets`; U-Nets of diffusers, trained as I-CFM. Images per second are of one core, by the
time that the core spent. `patch` is the side of the squares of pixels that are folded into channels.
"""


def report(folder: Path) -> None:
    """Write the existing tables as Markdown."""
    parts = [_ABOUT]
    for name, title in (("tried", "Speed of training"), ("trials", "Distance after a short training")):
        path = folder / f"image_nets_{name}.csv"
        if path.exists():
            table = pd.read_csv(path).astype(object)
            cells = [list(map(_cell, row)) for row in table.itertuples(index=False)]
            parts.append(f"\n## {title}\n\n{markdown_table(cells, list(map(str, table)))}\n")
    write_text(folder / "image_nets_tried.md", "".join(parts))


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CANDIDATES), help="measure the speed of these alone")
    parser.add_argument("--trial", choices=list(CANDIDATES), help="train this net; without: measure the speed of all")
    parser.add_argument("--core-minutes", type=float, default=10.0, help="of a trial")
    parser.add_argument("--lr", type=float, default=MORE_LR, help="of a trial")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = ScaleReports(SCALE).folder
    if arguments.trial:
        rows = list(trial(arguments.trial, arguments.core_minutes, arguments.lr))
        add(folder / "image_nets_trials.csv", rows, ["net", "precision", "lr", "core_minutes", "nfe", "hardware"])
    else:
        precisions: list[Precision] = ["fp32", *(["bf16"] if native() == "bf16" else [])]  # type: ignore[list-item]
        rows = list(measure(arguments.only or list(CANDIDATES), precisions, [64, 128]))
        key = ["net", "precision", "memory_format", "batch_size", "hardware"]
        add(folder / "image_nets_tried.csv", rows, key)
    report(folder)


if __name__ == "__main__":
    main()
