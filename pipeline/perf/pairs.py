"""Time the pairing of noise and data by optimal transport within a batch, against TorchCFM's sampler."""

from collections.abc import Iterator

import torch

from pipeline.flow.pairing import NO_MODELS, Source
from pipeline.flow.transport import minibatch_ot
from pipeline.perf.comparison import Comparison, in_turns, nearly_equal

SHAPE = (16, 2)  # shape of Push-T's chunks of actions


def comparisons(sizes: tuple[int, ...] = (128, 256, 1024)) -> Iterator[Comparison]:
    """Yield the comparisons: exact minibatch OT of chunks of actions."""
    from torchcfm.optimal_transport import OTPlanSampler  # in the optional dependency group peers

    sampler = OTPlanSampler(method="exact")
    for size in sizes:
        data = torch.randn(size, *SHAPE, generator=torch.Generator().manual_seed(size)).tanh()
        condition = torch.zeros(size, 1)

        def ours(data: torch.Tensor = data, condition: torch.Tensor = condition) -> object:
            return minibatch_ot(data, condition, Source(torch.Generator().manual_seed(0)), NO_MODELS)

        def theirs(data: torch.Tensor = data) -> object:
            noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(0))
            return sampler.sample_plan(noise, data)

        def same(data: torch.Tensor = data, condition: torch.Tensor = condition) -> str:
            noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(0))
            pair = minibatch_ot(data, condition, Source(torch.Generator().manual_seed(0)), NO_MODELS)
            plan = torch.from_numpy(sampler.get_map(noise, data))
            cost = (plan * torch.cdist(noise.flatten(1).double(), data.flatten(1).double()).square()).sum()
            return nearly_equal((pair.x0 - pair.x1).double().square().sum() / len(data), cost, 1e-6, "transport cost")

        repeat = max(1, 256 // size)
        yield Comparison(
            f"minibatch OT, n = {size}", "TorchCFM's OTPlanSampler (POT)", 0.5, same, in_turns(ours, theirs, repeat)
        )
