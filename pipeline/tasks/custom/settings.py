"""Define the settings of a block ``custom`` of params.yaml: data sets, and their gymnasium environment, if any."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Size = Annotated[int, Field(ge=1)]
Text = Annotated[str, StringConstraints(min_length=1)]
Picture = Annotated[dict[str, Annotated[int, Field(ge=16, multiple_of=16)]], Field(max_length=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Source(_Model):
    """One data set. ``python -m stages.inspect PATH`` prints these settings.

    Attributes:
        path: a file, a folder or a zip archive, absolute or relative to the project's root.
        url: the address of a file or a zip archive; either path or url is given.
        sha256: the hash of the file; required with a url.
        format: a key of ``pipeline.tasks.formats.reading.FORMATS``; auto: found from the contents.
        observation: observed key → numbers per step; the keys' vectors are concatenated in this order.
        action: key of the actions → numbers per step.
        image: key of a camera, if pictures are observed → pixels per side of the square to which they are scaled.
        title, licence, citation: for reports.
    """

    path: Text | None = None
    url: Annotated[str, StringConstraints(pattern=r"^https?://")] | None = None
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    format: Literal["auto", "lerobot", "robomimic", "minari", "zarr", "npz"] = "auto"
    observation: Annotated[dict[str, Size], Field(min_length=1)]
    action: Annotated[dict[str, Size], Field(min_length=1, max_length=1)]
    image: Picture = Field(default_factory=dict)
    title: str = ""
    licence: str = "not stated"
    citation: str = ""

    @model_validator(mode="after")
    def _is_somewhere(self) -> "Source":
        if (self.path is None) == (self.url is None):
            raise ValueError("allowed: either path or url")
        if self.url and not self.sha256:
            raise ValueError("sha256 is missing, which a url needs")
        return self

    @property
    def dims(self) -> tuple[int, int]:
        """Numbers per step of all observations together, and of the action."""
        return sum(self.observation.values()), sum(self.action.values())


class Environment(_Model):
    """A gymnasium environment.

    Attributes:
        id: the id for ``gymnasium.make``.
        module: a module to import first, if its import registers the id.
        arguments: keyword arguments of ``gymnasium.make``.
        seed_argument: the keyword argument for an episode's seed, if the environment draws its initial state when it
            is made, not when it is reset. The environment is then made anew for each episode.
        observation: keys of a dictionary observation, flattened and concatenated in the order of the data's keys; a
            nested key is ``outer/inner``. Empty if observations are one array.
        image: key of a picture (H, W, 3), uint8, in a dictionary observation → pixels per side, as in the data sets.
        success: the key of a step's ``info`` that tells whether the task is solved; this ends the episode with score 1.
        returns: instead of success: the two undiscounted returns of an episode that score 0 and 1.
        max_steps: control steps per episode.
        render_mode: the mode for videos; null: no videos.
    """

    id: Text
    module: Text | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    seed_argument: Text | None = None
    observation: list[str] = Field(default_factory=list)
    image: Picture = Field(default_factory=dict)
    success: Text | None = None
    returns: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    max_steps: Size
    render_mode: Literal["rgb_array"] | None = "rgb_array"

    @model_validator(mode="after")
    def _has_a_score(self) -> "Environment":
        if (self.success is None) == (self.returns is None):
            raise ValueError("allowed: either success, a key of info, or returns, [the one of score 0, that of 1]")
        if self.returns and not self.returns[0] < self.returns[1]:
            raise ValueError(f"returns: given {self.returns}, allowed: [low, high] with low below high")
        return self


class ScriptedExpert(_Model):
    """A scripted expert, which ``python -m stages.demonstrate`` runs in the environment.

    Attributes:
        policy: ``module:name`` of a class, made without arguments for each episode; its method ``get_action`` maps the
            environment's observation to an action.
        action_noise: standard deviation of Gaussian noise on each component of an action; the noisy action is executed
            and recorded.
    """

    policy: Annotated[str, StringConstraints(pattern=r"^[\w.]+:\w+$")]
    action_noise: Annotated[float, Field(ge=0)] = 0.0


class CustomSettings(_Model):
    """The whole block ``custom``.

    Attributes:
        datasets: data sets by name, all with the same dimensions; ``data.dataset`` selects one.
        environment: the simulation; None: an offline task.
        expert: a scripted expert; None: there is none.
    """

    datasets: Annotated[dict[str, Source], Field(min_length=1)]
    environment: Environment | None = None
    expert: ScriptedExpert | None = None

    @property
    def dims(self) -> tuple[int, int]:
        """Numbers per step of the observation and of the action."""
        return next(iter(self.datasets.values())).dims

    @property
    def side(self) -> int | None:
        """Pixels per side of the camera's pictures; None: there is no camera."""
        return next((side for source in self.datasets.values() for side in source.image.values()), None)

    @model_validator(mode="after")
    def _expert_has_where_to_act(self) -> "CustomSettings":
        if self.expert and not self.environment:
            raise ValueError("expert: allowed: with an environment, in which it acts")
        return self

    @model_validator(mode="after")
    def _fit(self) -> "CustomSettings":
        for name, source in self.datasets.items():
            if source.dims != self.dims:
                raise ValueError(
                    f"datasets.{name}: has {source.dims[0]} observed numbers and {source.dims[1]} of action, "
                    f"allowed: {self.dims[0]} and {self.dims[1]} as of the first"
                )
            if source.image and [*source.image.values()] != [self.side]:
                raise ValueError(
                    f"datasets.{name}.image: given {source.image}, allowed: {self.side} pixels, as of the first"
                )
        pictured = [*self.environment.image.values()] if self.environment else []
        if self.environment and pictured != ([] if self.side is None else [self.side]):
            allowed = (
                "none, since no data set has one"
                if self.side is None
                else f"a key, and {self.side} pixels as in the data"
            )
            raise ValueError(f"environment.image: given {self.environment.image or 'none'}, allowed: {allowed}")
        return self
