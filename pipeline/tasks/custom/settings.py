"""What the block ``custom`` of params.yaml says: data sets, and the gymnasium environment that they are for, if any."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Size = Annotated[int, Field(ge=1)]
Text = Annotated[str, StringConstraints(min_length=1)]
Picture = Annotated[dict[str, Annotated[int, Field(ge=16, multiple_of=16)]], Field(max_length=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Source(_Model):
    """One data set. ``python -m stages.inspect PATH`` prints what belongs here.

    Attributes:
        path: the file, the folder or a zip archive of it, absolute or from the project's root.
        url: the address of a file or a zip archive; one of both is given.
        sha256: of the file; needed for a url.
        format: as ``pipeline.tasks.formats.reading.FORMATS`` calls it; auto: what the data say.
        observation: keys observed, one after the other → numbers a step of each.
        action: the key of the actions → numbers a step.
        image: the key of a camera, if one is watched → pixels a side of the square that its pictures are scaled to.
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
        """Numbers a step of all observations, and of the action."""
        return sum(self.observation.values()), sum(self.action.values())


class Environment(_Model):
    """A gymnasium environment.

    Attributes:
        id: what ``gymnasium.make`` knows it by.
        module: imported before, where that is what makes the id known.
        arguments: keyword arguments of ``gymnasium.make``.
        seed_argument: the keyword argument that is an episode's seed, of an environment that draws its initial state
            when it is made and not when it is reset; it is made anew for each episode.
        observation: keys of dictionary observations, flattened one after the other as those of the data are; a key
            inside another is ``outer/inner``. Empty where observations are one array.
        image: the key of a picture in a dictionary observation, (H, W, 3) uint8 → as of the data sets.
        success: the key of a step's ``info`` that says whether the task is solved, which ends the episode; the score is
            0 or 1.
        returns: without it: the undiscounted returns of an episode that score 0 and 1.
        max_steps: control steps an episode.
        render_mode: of videos; null: there are none.
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
    """Who can demonstrate the task in its environment: ``python -m stages.demonstrate_expert``.

    Attributes:
        policy: ``module:name`` of a class without arguments; each episode has an object of it, whose method
            ``get_action`` maps the environment's observation to an action.
        action_noise: standard deviation of the Gaussian noise on each component of an action, executed and recorded.
    """

    policy: Annotated[str, StringConstraints(pattern=r"^[\w.]+:\w+$")]
    action_noise: Annotated[float, Field(ge=0)] = 0.0


class CustomSettings(_Model):
    """The block as a whole.

    Attributes:
        datasets: by names of their own, of which ``data.dataset`` chooses one; their dimensions are the same.
        environment: None: an offline task.
        expert: None: nobody demonstrates it here.
    """

    datasets: Annotated[dict[str, Source], Field(min_length=1)]
    environment: Environment | None = None
    expert: ScriptedExpert | None = None

    @property
    def dims(self) -> tuple[int, int]:
        """Numbers a step of the observation and of the action."""
        return next(iter(self.datasets.values())).dims

    @property
    def side(self) -> int | None:
        """Pixels a side of the camera's pictures; None: there is no camera."""
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
