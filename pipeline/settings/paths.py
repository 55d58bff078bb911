"""Define the paths of the pipeline's files, relative to the project's root; dvc.yaml spells out the same paths."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.settings.images import ImageTaskSettings
from pipeline.settings.schema import ScaleSettings
from pipeline.utils.errors import UserError

SAMPLERS = ("ddpm", "ddim")
"""Methods of Table 2 that sample the same net, trained to predict noise."""

PERSISTENCE = "persistence"
"""Baseline for offline tasks only: it repeats the last action before a window."""

BASELINES = ("random", "nearest_demo", PERSISTENCE)
"""Methods without training."""


@dataclass(frozen=True)
class TaskFiles:
    """Files of one task at one scale.

    Attributes:
        replica: another training seed than that of params.yaml, whose models have their own paths; None: that of
            params.yaml. All training seeds share the demonstrations and their split.
    """

    scale: str
    task: str
    replica: int | None = None

    @property
    def folder(self) -> Path:
        return Path("data", self.scale, self.task)

    @property
    def models(self) -> Path:
        """Folder of all models trained with one seed."""
        return self.folder if self.replica is None else self.folder / f"seed{self.replica}"

    @property
    def name(self) -> str:
        """The task's name, with the training seed if it is not that of params.yaml."""
        return self.task if self.replica is None else f"{self.task}-seed{self.replica}"

    @property
    def demonstrations(self) -> Path:
        """The fetched demonstrations, a file or a folder."""
        return self.folder / "demonstrations"

    @property
    def prepared(self) -> Path:
        return self.folder / "prepared.npz"

    @property
    def frames(self) -> Path:
        """Folder of the images of ``prepared``; empty if the task observes none."""
        return self.folder / "frames.zarr"

    @property
    def pretrained(self) -> Path:
        """Folder of the checkpoints that pretraining leaves, step-<k>.safetensors."""
        return self.models / "pretrain"

    @property
    def base(self) -> Path:
        """The selected checkpoint; fine-tuning starts from it."""
        return self.models / "base.safetensors"

    def study_base(self, train_seed: int) -> Path:
        """Return the shipped base model of the study for one training seed."""
        return Path("data", "checkpoints", self.scale, self.task, f"base-seed{train_seed}.safetensors")

    def model(self, method: str, nfe: int) -> Path:
        """Return the model file of a row of Table 2; both diffusion samplers share one net; baselines use the data."""
        if method in BASELINES:
            return self.prepared
        name = "diffusion" if method in SAMPLERS else f"{method}-nfe{nfe}"
        return self.models / "models" / f"{name}.safetensors"

    @property
    def pretrain_log(self) -> Path:
        return ScaleReports(self.scale).folder / "pretrain" / f"{self.name}.csv"

    @property
    def selection(self) -> Path:
        return ScaleReports(self.scale).folder / "selection" / f"{self.name}.json"

    def history(self, method: str, nfe: int) -> Path:
        return ScaleReports(self.scale).history / f"{self.task}-{method}-nfe{nfe}.csv"

    @property
    def diffusion_log(self) -> Path:
        """The training losses of the diffusion model."""
        return ScaleReports(self.scale).folder / "pretrain" / f"{self.name}-diffusion.csv"

    def residual_log(self, row: str) -> Path:
        """Return the file of a residual model's training losses; ``row``: see ``split_row``."""
        return ScaleReports(self.scale).folder / "residual" / f"{self.task}-{row}.csv"


@dataclass(frozen=True)
class ImageFiles:
    """Files of one image task at one scale."""

    scale: str
    task: str

    @property
    def folder(self) -> Path:
        return Path("data", self.scale, self.task)

    @property
    def fetched(self) -> Path:
        """Folder of downloaded files."""
        return self.folder / "fetched"

    @property
    def images(self) -> Path:
        """The training images, uint8."""
        return self.fetched / "images.npz"

    @property
    def inception(self) -> Path:
        """The weights of Inception, used if distances are FID."""
        return self.fetched / "inception.pth"

    @property
    def extractor(self) -> Path:
        """The classifier in whose features the distance FD is computed."""
        return self.folder / "extractor.safetensors"

    def pretrained(self, method: str) -> Path:
        """Folder of the checkpoints that pretraining leaves, step-<k>.safetensors."""
        return self.folder / method

    @property
    def base(self) -> Path:
        """The selected checkpoint of i_cfm; fine-tuning starts from it."""
        return self.folder / "base.safetensors"

    def model(self, method: str, nfe: int) -> Path:
        return self.folder / method / f"nfe{nfe}.safetensors"

    @property
    def reports(self) -> Path:
        return ScaleReports(self.scale).folder / "images"

    def training_log(self, method: str) -> Path:
        return self.reports / "training" / f"{self.task}-{method}.csv"

    @property
    def selection(self) -> Path:
        return self.reports / f"{self.task}-selection.json"

    @property
    def halves(self) -> Path:
        """Distances between halves of the real data."""
        return self.reports / f"{self.task}-halves.csv"

    def distances(self, method: str) -> Path:
        """Return the file of a method's distances, a row per sampling seed; Table 1 is computed from these files."""
        return self.reports / f"{self.task}-{method}.csv"

    @property
    def histories(self) -> Path:
        """Folder of the distances over training."""
        return self.reports / "history"

    def history(self, method: str, nfe: int | None = None) -> Path:
        """Return the file of the distances over training; None: of all NFE."""
        suffix = "" if nfe is None else f"-nfe{nfe}"
        return self.histories / f"{self.task}-{method}{suffix}.csv"

    def models(self, method: str, settings: ImageTaskSettings, tuned: Sequence[int]) -> dict[int, Path]:
        """Return the model files of a row of Table 1: NFE that it was fine-tuned for (0: not fine-tuned) → file.

        Args:
            tuned: the NFE of ``ft_fm``, at least one.
        """
        if method == "ft_fm":
            return {nfe: self.model(method, nfe) for nfe in sorted(tuned)}
        if method == "resft_fm":
            return {0: self.model(method, settings.residual.nfe)}
        if method == "untrained":
            return {0: self.pretrained("i_cfm") / "step-0000000.safetensors"}
        return {0: self.pretrained(method) / f"step-{settings.pretrain.steps:07d}.safetensors"}


def toys(scale: str) -> Path:
    """Return the folder of the small models of Figure 1."""
    return Path("data", scale, "toys")


@dataclass(frozen=True)
class ScaleReports:
    """The committed results of one scale."""

    scale: str

    @property
    def folder(self) -> Path:
        return Path("reports", self.scale)

    @property
    def history(self) -> Path:
        return self.folder / "history"

    @property
    def study(self) -> Path:
        """Folder of the coupling study's cells."""
        return self.folder / "coupling_study"

    def study_seed(self, train_seed: int) -> Path:
        """The cells of one training seed of that study, in ``episodes`` and ``metrics`` as those of a scale."""
        return self.study / f"seed{train_seed}"

    @property
    def one_step(self) -> Path:
        """Folder of the one-step study's cells."""
        return self.folder / "one_step"

    def one_step_cell(self, task: str, train_seed: int, name: str) -> Path:
        """Return the folder of a cell, with ``episodes`` and ``metrics`` inside as in a scale's reports."""
        return self.one_step / task / f"seed{train_seed}" / name

    def one_step_times(self, task: str) -> Path:
        """Return the file with the time of one plan for each method, beside the cells of the task."""
        return self.one_step / task / "times.json"

    @property
    def figure_1(self) -> Path:
        return self.folder / "figure_1.png"

    def pictured(self, name: str) -> list[Path]:
        """Return the files of a report with one picture: table, text, PNG and SVG."""
        return [self.folder / f"{name}.{kind}" for kind in ("csv", "md", "png", "svg")]

    def disturbed_episodes(self, entry: "Entry") -> Path:
        """Return the file of the episodes of a row of Table 2 under disturbances."""
        return self.folder / "robustness" / f"{entry.stem}.csv"

    def certificate(self, task: str, row: str) -> Path:
        """Return the certificate file of a residual model, with all matrices."""
        return self.folder / "certificates" / f"{task}-{row}.json"

    @property
    def certificates(self) -> Path:
        """The report of all certificates, in words."""
        return self.folder / "certificates.md"

    @property
    def robustness(self) -> Path:
        return self.folder / "table2_robustness.csv"

    @property
    def figure_2b(self) -> Path:
        return self.folder / "figure_2b.png"

    @property
    def score_vs_nfe(self) -> Path:
        return self.folder / "score_vs_nfe.png"

    @property
    def figure_2a(self) -> Path:
        return self.folder / "figure_2a.png"

    @property
    def figure_e2(self) -> Path:
        return self.folder / "figure_e2.png"

    @property
    def table1(self) -> Path:
        return self.folder / "table1.csv"

    @property
    def table2(self) -> Path:
        return self.folder / "table2.csv"

    def offline(self, task: str) -> Path:
        """Return the table of an offline task; its figure has the same name."""
        return self.folder / "offline" / f"{task}.csv"

    @property
    def table_d1(self) -> Path:
        return self.folder / "table_d1.csv"

    @property
    def table_d2(self) -> Path:
        return self.folder / "table_d2.csv"

    @property
    def tables_d(self) -> Path:
        """Tables D.1 and D.2 as Markdown."""
        return self.folder / "tables_d.md"


@dataclass(frozen=True)
class Entry:
    """One row of a table, and the paths of its files below ``reports``, a folder of results.

    Attributes:
        within: the task, if a file holds all evaluations of the task; empty: each evaluation has its own file.
    """

    evaluation: str
    method: str
    nfe: int
    within: str = ""

    @property
    def stem(self) -> str:
        """The name of the row's files, without the ending."""
        return f"{self.within or self.evaluation}-{self.method}-nfe{self.nfe}"

    def episodes(self, reports: Path) -> Path:
        return reports / "episodes" / f"{self.stem}.csv"

    def metrics(self, reports: Path) -> Path:
        return reports / "metrics" / f"{self.stem}.json"


def listed_models(settings: ScaleSettings) -> list[tuple[str, int]]:
    """List method and NFE of every row requested for each task, in the order of tables."""
    models: list[tuple[str, int]] = [(method, 0) for method in settings.baselines]
    models += [split_row(row) for row in settings.diffusion]
    models += [(method, nfe) for nfe in settings.nfe for method in ("fm", "ft_fm")]
    return models + [split_row(row) for row in settings.residual]


def split_row(row: str) -> tuple[str, int]:
    """Split a row's name, such as ``resft_fm-nfe16``, into method and NFE.

    Raises:
        UserError: ``row`` is no such name.
    """
    method, _, nfe = row.rpartition("-nfe")
    if not method or not nfe.isdigit():
        raise UserError(f"--row: given {row!r}, allowed: a method and an NFE, such as resft_fm-nfe16")
    return method, int(nfe)


def fingerprint(model: Path) -> str:
    """Return the name by which results refer to a model file: its stem and the first 12 digits of its sha256."""
    return f"{model.stem}@{hashlib.sha256(model.read_bytes()).hexdigest()[:12]}"
