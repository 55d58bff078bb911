"""Define the settings of the small models of a few points and of a curve, for Figure 1 and Theorem 1."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.settings.blocks import Block, Count, MlpSettings, Optimization, Positive, Seed

PointSet = Literal["two_points", "eight_points"]
ToyCoupling = Literal["independent", "minibatch_ot", "nearest"]


class GapSettings(Block):
    """Theorem 1 measured: learned velocity fields of a few points, solved and compared with the exact field."""

    seed: Seed
    threads: Count
    datasets: Annotated[list[PointSet], Field(min_length=1)]
    sigmas: Annotated[list[Positive], Field(min_length=1)]
    net: MlpSettings
    train: Optimization
    trajectories: Count
    nfe: Annotated[list[Annotated[int, Field(ge=4, multiple_of=4)]], Field(min_length=1)]
    tolerance: Positive
    end: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class ToySettings(Block):
    """Figure 1: small models of two points, of eight points, of a curve and of two equilibria."""

    seed: Seed
    threads: Count
    net: MlpSettings
    sigma: Positive
    fm: Optimization
    couplings: Annotated[list[ToyCoupling], Field(min_length=1)]
    candidates: Count
    nfe: Count
    mle: Optimization
    width: Count
    rate: Positive
    free: Count
    follow: Optimization
    disturbance: Positive
    settle: Optimization
