"""LoRA: unchanged outputs at the start, trained factors only, and merging into a plain net."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from pipeline.nets.ema import averaged
from pipeline.nets.lora import add_lora, merge_lora, trainable_parameters
from pipeline.nets.mlp import MLP
from pipeline.nets.unet1d import ConditionalUnet1D


class Pictures(nn.Module):
    """A field of (B, 3, 6, 6) in 2-D convolutions, one of them without bias, one in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.second = nn.Conv2d(8, 4, 3, padding=1, groups=2)
        self.out = nn.Conv2d(4, 3, 1)

    def forward(self, t: Tensor, x: Tensor, _condition: Tensor) -> Tensor:
        return self.out(torch.tanh(self.second(self.first(x)) + t[:, None, None, None]))


NETS = {
    "mlp": lambda: MLP(4, 2, 3, width=16, depth=1, expansion=2, time_features=8),
    "unet1d": lambda: ConditionalUnet1D(4, 2, 3, channels=[8, 16], kernel=3, groups=4, time_features=8),
    "pictures": Pictures,
}


def make(kind: str) -> tuple[nn.Module, tuple[Tensor, Tensor, Tensor]]:
    """Return a net and arguments for it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = (5, 3, 6, 6) if kind == "pictures" else (5, 4, 2)
        return NETS[kind](), (torch.rand(5), torch.randn(shape), torch.randn(5, 3))


def adapted(kind: str, rank: int = 3) -> tuple[nn.Module, tuple[Tensor, Tensor, Tensor]]:
    net, arguments = make(kind)
    add_lora(net, rank, 6.0, torch.Generator().manual_seed(1))
    return net, arguments


def step(net: nn.Module, arguments: tuple[Tensor, Tensor, Tensor]) -> None:
    """Make two updates: the first one changes B only, since B is zero."""
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):
        net(*arguments).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("bf16", [False, True])
def test_untrained_lora_leaves_outputs_bit_identical(kind: str, bf16: bool) -> None:
    (plain, arguments), (net, _) = make(kind), adapted(kind)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        assert torch.equal(plain(*arguments), net(*arguments))


@pytest.mark.parametrize("kind", NETS)
def test_only_and_all_lora_factors_are_trained(kind: str) -> None:
    net, arguments = adapted(kind)
    before = deepcopy(net.state_dict())
    step(net, arguments)
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.endswith((".weight.0.a", ".weight.0.b"))}
    assert changed
    assert trainable_parameters(net) == sum(before[name].numel() for name in changed)


@pytest.mark.parametrize("kind", NETS)
def test_merged_net_is_plain_and_computes_the_same(kind: str) -> None:
    net, arguments = adapted(kind)
    step(net, arguments)
    net, arguments = net.double(), tuple(argument.double() for argument in arguments)
    expected = net(*arguments)
    plain = make(kind)[0].double()
    assert not torch.allclose(plain(*arguments), expected, atol=1e-2)
    merge_lora(net)
    assert torch.allclose(net(*arguments), expected, rtol=0, atol=1e-12)
    assert list(net.state_dict()) == list(plain.state_dict())
    assert trainable_parameters(net) == trainable_parameters(plain)
    assert [type(module) for module in net.modules()] == [type(module) for module in plain.modules()]
    plain.load_state_dict(net.state_dict())
    assert torch.equal(plain(*arguments), net(*arguments))


def test_merging_a_plain_net_leaves_it_alone() -> None:
    (net, _), (plain, _) = make("mlp"), make("mlp")
    merge_lora(net)
    for (name, value), (other_name, other) in zip(net.state_dict().items(), plain.state_dict().items(), strict=True):
        assert name == other_name
        assert torch.equal(value, other)


def test_copies_and_averages_have_their_own_factors() -> None:
    net, arguments = adapted("unet1d")
    average, copy = averaged(net, 0.5), deepcopy(net)
    before = net(*arguments)
    step(net, arguments)
    assert torch.equal(copy(*arguments), before)
    average.update_parameters(net)
    assert torch.equal(average.module(*arguments), net(*arguments))
    step(net, arguments)
    average.update_parameters(net)
    seen = dict(net.named_parameters())
    for name, value in average.module.named_parameters():
        assert torch.equal(value, seen[name]) == (not seen[name].requires_grad), name


def test_rank_is_capped_at_the_rank_of_the_layer() -> None:
    net = nn.Sequential(nn.Linear(5, 3), nn.Conv1d(3, 7, 2))
    add_lora(net, 100, 1.0, torch.Generator())
    state = net.state_dict()
    shapes = [tuple(state[f"{i}.parametrizations.weight.0.{part}"].shape) for i in (0, 1) for part in "ba"]
    assert shapes == [(3, 3), (3, 5), (7, 6), (6, 6)]


def test_weight_is_the_base_plus_the_scaled_product_of_the_factors() -> None:
    layer = nn.Conv1d(3, 4, 2)
    net, before = nn.Sequential(layer), layer.weight.detach().clone()
    add_lora(net, 2, 6.0, torch.Generator().manual_seed(0))
    state = net.state_dict()
    a, b = state["0.parametrizations.weight.0.a"], state["0.parametrizations.weight.0.b"]
    assert a.abs().max() <= 6**-0.5
    b.copy_(torch.randn(4, 2))
    assert torch.allclose(layer.weight, before + 3 * (b @ a).view(4, 3, 2))


def test_initial_factors_are_determined_by_the_generator() -> None:
    (first, _), (second, _) = adapted("mlp"), adapted("mlp")
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_nets_that_cannot_be_adapted_are_refused() -> None:
    net, _ = adapted("mlp")
    with pytest.raises(ValueError, match=r"^net: given one with LoRA, allowed: a plain net; merge_lora makes it one$"):
        add_lora(net, 1, 1.0, torch.Generator())
    net, _ = make("mlp")
    with pytest.raises(ValueError, match=r"^rank: given 0, allowed: 1 or more$"):
        add_lora(net, 0, 1.0, torch.Generator())
    assert trainable_parameters(net) > 0
    with pytest.raises(ValueError, match=r"^net: given one without Linear, Conv1d, Conv2d, allowed: with one$"):
        add_lora(nn.LayerNorm(2), 1, 1.0, torch.Generator())
