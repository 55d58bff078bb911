"""Declare the settings that each kind of stage may read; ``inputs`` makes the input files from these tables."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of stage.

    Attributes:
        program: the file in ``stages/`` that it runs, without its ending. After ``report`` follows the module of
            ``pipeline/reporting`` that this program imports by its name.
        keys: resolved names of the settings that it may read; ``{name}`` stands for each value of the list ``name``,
            ``*`` for each key of a block.
        over: lists; it has an input file for each combination of their values.
        modules: modules of ``pipeline``, if the program runs several kinds. It imports only those of the kind at work.
            They and all that they import decide the result. Empty: the program does.
    """

    program: str
    keys: tuple[str, ...]
    over: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()

    @property
    def code(self) -> list[str]:
        """The files that decide its result, with all that they import; relative to the root."""
        return [f"{name.replace('.', '/')}.py" for name in self.modules or [f"stages.{self.program}"]]


_TASK = "task custom"
"""Keys that identify a block's task. A stage that reads them has the code of the task among its inputs."""


def _kind(program: str, keys: str, *over: str) -> Kind:
    """Return a kind; ``program`` is its name and the modules of ``pipeline`` that it imports for this kind alone."""
    name, *modules = program.split()
    return Kind(name, tuple(keys.split()), over, tuple(f"pipeline.{module}" for module in modules))


def _each(over: str, program: str, keys: str, *more: str, lists: str = "") -> Kind:
    """Return a kind with an input file for each combination of values of the lists ``over`` and ``more``.

    Args:
        program: as of ``_kind``.
        keys: keys of the block that the value of ``over`` names, separated by spaces.
        lists: top-level lists that it may read too, separated by spaces.
    """
    own = " ".join(f"{{{over}}}.{key}" for key in keys.split())
    return _kind(program, f"{lists} {own}", over, *more)


def _robot(program: str, keys: str, *more: str) -> Kind:
    return _each("tasks", program, f"{_TASK} {keys}", *more)


def _image(program: str, keys: str, *more: str, lists: str = "") -> Kind:
    return _each("images", program, keys, *more, lists=lists)


def _study(program: str, keys: str, *more: str) -> Kind:
    return _each("studies", program, f"{_TASK} {keys}", *more)


def _one_step(own: str, *more: str, also: str = "") -> Kind:
    """Return a kind of cells of the one-step study. ``own``: its own key there, beside those that all cells share."""
    shared = " ".join(f"one_step.{key}" for key in ("budget", "checkpoints", "seeds", "temperatures", own))
    keys = f"seed threads data net pretrain select.evaluation evaluation.n_seeds {_EPISODES} {shared}{also}"
    return _each("one_step_tasks", _ONE_STEP, f"{_TASK} {keys}", *more)


_ONE_STEP = "study training.one_step reporting.rows"
_TRAINED = "seed threads processes data net"
_EPISODES = "evaluation.max_steps evaluation.options evaluation.policy_batch_size"
_ROW = f"seed threads data net evaluation.repeats {_EPISODES}"
_JUDGED = "seed threads data fid.features fid.batch"
_DISTANCES = f"{_JUDGED} fid.n_samples fid.sampling_seeds fid.solvers fid.tolerance fid.sample_metrics pretrain.steps"
_TITLES = " ".join(f"{{tasks}}.{key}" for key in (*_TASK.split(), "title"))
_PRECISIONS = " ".join(
    f"{{tasks}}.{training}.precision" for training in ("pretrain", "diffusion", "finetune.*", "residual.*")
)

KINDS = {
    "fetch": _robot("fetch tasks.download", "data.dataset"),
    "prepare": _robot("prepare", "seed data"),
    "pretrain": _robot("train kinds.pretrain", f"{_TRAINED} pretrain"),
    "pretrain_diffusion": _robot("train kinds.pretrain_diffusion", f"{_TRAINED} diffusion"),
    "select_checkpoint": _robot(
        "select kinds.select_checkpoint", f"seed threads pretrain.path pretrain.sigma select {_EPISODES}"
    ),
    "finetune": _robot(
        "train kinds.finetune", f"{_TRAINED} pretrain select.evaluation finetune.nfe{{nfe}} {_EPISODES}", "nfe"
    ),
    "finetune_residual": _robot("train kinds.finetune_residual", f"{_TRAINED} residual.{{residual}}", "residual"),
    "certify": _robot("certify", "seed threads residual.{residual}", "residual"),
    "evaluate_rollouts": _robot("evaluate kinds.evaluate_rollouts", f"{_ROW} evaluation.n_seeds"),
    "evaluate_residual": _robot("evaluate kinds.evaluate_rollouts", f"{_ROW} evaluation.n_seeds_secondary"),
    "evaluate_diffusion": _robot("evaluate kinds.evaluate_rollouts", f"{_ROW} evaluation.n_seeds_secondary"),
    "evaluate_baselines": _robot("evaluate kinds.evaluate_rollouts", f"{_ROW} evaluation.n_seeds_secondary"),
    "evaluate_robustness": _robot(
        "evaluate kinds.evaluate_robustness", f"threads data net robustness select.evaluation {_EPISODES}"
    ),
    "tabulate": _kind("report reporting.table2", f"tasks nfe residual diffusion baselines {_TITLES} {_PRECISIONS}"),
    "tabulate_offline": _each(
        "offline", "report reporting.offline", f"{_TASK} title", lists="nfe residual diffusion baselines"
    ),
    "tabulate_settings": _kind("report reporting.hyperparameters", "tasks nfe {tasks}"),
    "report_stability": _kind(
        "report reporting.certificates", f"tasks offline residual robustness {_TITLES} {_PRECISIONS}"
    ),
    "train_toys": _kind("toys kinds.train_toys", "toys"),
    "draw_toys": _kind("report reporting.figure_1", "toys"),
    "draw": _kind("report reporting.figure_2b", f"tasks offline nfe {_TITLES}"),
    "measure_gap": _kind("toys kinds.measure_gap", "gap"),
    "fetch_images": _image("fetch tasks.image_sources tasks.inception", "data.dataset fid.features"),
    "train_extractor": _image("train kinds.train_extractor", "seed threads data extractor fid.features fid.halves"),
    "pretrain_images": _image("train kinds.pretrain_images", f"{_TRAINED} intermediate pretrain"),
    "select_image_checkpoint": _image("select kinds.select_image_checkpoint", f"{_JUDGED} select", lists="image_nfe"),
    "finetune_images": _image(
        "train kinds.finetune_images",
        f"{_TRAINED} {_JUDGED} pretrain select finetune.nfe{{image_nfe}}",
        "image_nfe",
    ),
    "finetune_image_residual": _image("train kinds.finetune_image_residual", f"{_TRAINED} residual"),
    "evaluate_fid": _image("evaluate kinds.evaluate_fid", f"{_DISTANCES} residual.nfe", lists="image_nfe"),
    "evaluate_untrained": _image("evaluate kinds.evaluate_fid", _DISTANCES),
    "tabulate_images": _image("report reporting.table1_report", "fid.solvers residual.residual_steps"),
    "draw_images": _image(
        "report reporting.image_figures",
        "threads data fid.batch fid.shown fid.sampling_seeds residual.nfe",
        lists="image_nfe",
    ),
}
"""Every kind of stage in dvc.yaml, by its name there."""

_CELL = (
    f"seed threads data net pretrain select.evaluation evaluation.n_seeds {_EPISODES} study.budget study.checkpoints "
    "study.seeds"
)
STUDY_KINDS = {
    "flow_matching": _study("study training.study reporting.rows", f"{_CELL} study.fm_lr"),
    "baseline": _study("study training.study reporting.rows", _CELL),
    "coupling": _study(
        "study training.study reporting.rows", f"{_CELL} finetune.nfe1 study.recipes.nfe{{study_nfe}}", "study_nfe"
    ),
    "one_step_flow": _one_step("fm_lr"),
    "one_step_ft_fm": _one_step("recipes.nfe{one_step_nfe}", "one_step_nfe", also=" finetune.nfe1"),
    "one_step_baseline": _one_step("{one_step_baselines}", "one_step_baselines"),
    "one_step_times": _each("one_step_tasks", "study training.one_step", f"{_TASK} threads data net one_step.mip"),
    "one_step_table": _kind("report reporting.one_step", "", "one_step_scales"),
    "study_table": _study("report reporting.study", "title select.evaluation study.train_seeds study.chosen"),
    "study_precision": _study(
        "study kinds.study_precision", f"title seed threads data net select.evaluation study.precision {_EPISODES}"
    ),
}
"""Every kind of stage of the coupling study and of the one-step study."""

EXECUTION = ("evaluation.workers", "evaluation.num_envs", "evaluation.videos")
"""Settings of a robot task that change no result. Every stage may read them; no stage depends on them."""
