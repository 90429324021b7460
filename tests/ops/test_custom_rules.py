"""Ops of the user's: kinds of rules, what a rule may say, and the errors."""

import math

import pytest
import torch
import torch.nn.functional as F
from support.exactness import Compressed, compress_half, randomise
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, register_flop_formula

import fx_oto
from fx_oto import kinds

IMAGE = torch.randn(2, 3, 8, 8)
TOKENS = torch.randn(2, 5, 12)
ops = torch.ops.fx_oto_custom


def op(name, fake, backward=None, setup=None):
    """An operator that torch does not see into."""

    def define(function):
        made = torch.library.custom_op(f"fx_oto_custom::{name}", function, mutates_args=())
        made.register_fake(fake)
        if backward is not None:
            made.register_autograd(backward, setup_context=setup)
        return made

    return define


def like_first(x, *_):
    return torch.empty_like(x)


def keep_inputs(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def gate_backward(ctx, grad):
    x, s = ctx.saved_tensors
    side = torch.sigmoid(s)
    return (grad * side).sum_to_size(x.shape), (grad * x * side * (1 - side)).sum_to_size(s.shape)


@op("gate", lambda x, s: x.new_empty(torch.broadcast_shapes(x.shape, s.shape)), gate_backward, keep_inputs)
def gate(x: Tensor, s: Tensor) -> Tensor:
    return x * torch.sigmoid(s)


def scale_backward(ctx, grad):
    x, w = ctx.saved_tensors
    shape = (1, -1, 1, 1)
    return grad * w.view(shape), (grad * x).sum((0, 2, 3))


@op("scale", like_first, scale_backward, keep_inputs)
def scale(x: Tensor, w: Tensor) -> Tensor:
    """The second dimension of an image, times a weight for each channel."""
    if x.ndim != 4:
        raise ValueError("expected an image")
    return x * w.view(1, -1, 1, 1)


@op("bounce", like_first)
def bounce(x: Tensor, offset: float) -> Tensor:
    return torch.tanh(x) + offset


@op("shuffled", like_first, lambda ctx, grad: (ops.shuffled(grad, grad.size(1) // ctx.groups), None),
    lambda ctx, inputs, output: setattr(ctx, "groups", inputs[1]))  # fmt: skip
def shuffled(x: Tensor, groups: int) -> Tensor:
    if not x.is_floating_point():
        raise TypeError("floating-point tensors only")
    return torch.channel_shuffle(x, groups).clone()


@op("blocks_to_image", lambda x, r: x.new_empty(x.size(0), x.size(1) // r**2, x.size(2) * r, x.size(3) * r))
def blocks_to_image(x: Tensor, r: int) -> Tensor:
    return F.pixel_shuffle(x, r).clone()


def split_heads_fake(x, heads):
    return x.new_empty(x.size(0), heads, x.size(1), x.size(2) // heads)


@op("split_heads", split_heads_fake)
def split_heads(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:2], heads, x.size(2) // heads).transpose(1, 2).clone()


def linear_backward(ctx, grad):
    x, w, _, out = ctx.saved_tensors
    grad = grad * (out > 0)
    flat = grad.flatten(0, -2)
    return grad @ w, flat.T @ x.flatten(0, -2), flat.sum(0) if ctx.has_bias else None


def linear_setup(ctx, inputs, output):
    ctx.has_bias = inputs[2] is not None
    ctx.save_for_backward(inputs[0], inputs[1], inputs[2], output)


def linear_fake(x, w, b):
    return x.new_empty(*x.shape[:-1], w.size(0))


@op("linear_relu", linear_fake, linear_backward, linear_setup)
def linear_relu(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return F.relu(F.linear(x, w, b))


@op("linear_sigmoid", linear_fake)
def linear_sigmoid(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return torch.sigmoid(F.linear(x, w, b))


def quantised_backward(ctx, grad):
    x, codes, step, _ = ctx.saved_tensors
    product = F.linear(x, codes.to(x.dtype))
    return (grad * step) @ codes.to(x.dtype), None, (grad * product).sum((0, 1)), grad.sum((0, 1))


@op("quantised", lambda x, codes, step, b: x.new_empty(*x.shape[:-1], codes.size(0)), quantised_backward, keep_inputs)
def quantised(x: Tensor, codes: Tensor, step: Tensor, b: Tensor) -> Tensor:
    return F.linear(x, codes.to(x.dtype)) * step + b


@op("total", lambda x: x.new_empty(x.shape[:-1]))
def total(x: Tensor) -> Tensor:
    return x.sum(-1)


@op("elsewhere", like_first)
def elsewhere(x: Tensor) -> Tensor:
    raise NotImplementedError("for another device")


def images(middle, channels=8, seen=None):
    """A network that runs an op between two convolutions."""

    class Images(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(seen or channels, 4, 3)
            self.w = nn.Parameter(torch.randn(channels))

        def forward(self, x):
            return self.b(middle(self, self.a(x)))

    return Images()


class Tokens(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.a, self.b = nn.Linear(12, 16), nn.Linear(10, 4)
        self.w = nn.Parameter(torch.randn(10, 16))
        self.bias = nn.Parameter(torch.randn(10)) if bias else None

    def forward(self, x):
        return self.b(ops.linear_relu(torch.tanh(self.a(x)), self.w, self.bias))


def both_front_ends(make, inputs, zigs, trains=True):
    """Exact, and as many groups, as torch.fx and as torch.export capture the network."""
    compare = compress_half if trains else compress_in_evaluation
    result = compare(make(), inputs)
    assert fx_oto.Context.of(result.gm).capture.front_end == "fx_oto"
    assert fx_oto.partition(result.gm).num_zigs == zigs
    model = randomise(make().double()).eval()
    exported = torch.export.export(
        model, (inputs.double(),), dynamic_shapes=({0: torch.export.Dim.AUTO},), strict=False
    ).module()
    gm = fx_oto.prepare(exported, inputs.double())
    partition = fx_oto.partition(gm)
    assert partition.num_zigs == zigs
    partition.zero_(0.5, torch.Generator().manual_seed(0))
    small = fx_oto.compress(gm)
    for batch in (2, 5):
        again = torch.randn(batch, *inputs.shape[1:], dtype=torch.float64)
        torch.testing.assert_close(small(again), model(again), rtol=1e-10, atol=1e-12)
    return result


def compress_in_evaluation(model, inputs):
    """For an op without a backward."""
    model = randomise(model.double()).eval()
    gm = fx_oto.prepare(model, inputs.double())
    zigs = fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(1)).num_zigs
    small = fx_oto.compress(gm)
    for batch in (2, 3):
        again = torch.randn(batch, *inputs.shape[1:], dtype=torch.float64)
        torch.testing.assert_close(small(again), model(again), rtol=1e-10, atol=1e-12)
    left = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    return Compressed(gm, small, zigs, 0.0, left)


# -- elementwise ------------------------------------------------------------------------------------------


def test_elementwise_with_broadcasting():
    fx_oto.register_rule(ops.gate, kinds.elementwise())
    both_front_ends(lambda: images(lambda m, x: ops.gate(x, m.w.view(-1, 1, 1))), IMAGE, 8)


def test_elementwise_with_a_parameter_for_each_channel():
    fx_oto.register_rule(scale, kinds.elementwise("bc...,c->bc..."))
    result = both_front_ends(lambda: images(lambda m, x: ops.scale(F.relu(x), m.w)), IMAGE, 8)
    assert result.small.w.shape == (4,)


def test_what_a_removed_channel_becomes_is_found_by_running_the_op():
    fx_oto.register_rule(ops.bounce, kinds.elementwise())
    both_front_ends(lambda: images(lambda m, x: ops.bounce(x, 0.0)), IMAGE, 8, trains=False)
    # a constant that is not zero would have to be folded into the next bias, which padding forbids
    kept = fx_oto.prepare(
        nn.Sequential(nn.Conv2d(3, 8, 3), Call(lambda x: ops.bounce(x, 0.5)), nn.Conv2d(8, 4, 3, padding=1)), IMAGE
    )
    assert fx_oto.partition(kept).num_zigs == 0
    folded = nn.Sequential(nn.Linear(12, 8), Call(lambda x: ops.bounce(x, 0.5)), nn.Linear(8, 4))
    assert compress_in_evaluation(folded, TOKENS).zigs == 8


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@op("noisy", like_first)
def noisy(x: Tensor) -> Tensor:
    return x + torch.rand_like(x)


@op("permuted", like_first)
def permuted(x: Tensor) -> Tensor:
    return x[..., torch.randperm(x.size(-1))]


def test_what_is_random_is_unknown_and_the_generator_stays_as_it_was():
    for unsure, rule in ((ops.noisy, kinds.elementwise()), (ops.permuted, kinds.movement())):
        fx_oto.register_rule(unsure, rule)
        model = nn.Sequential(nn.Linear(12, 8), Call(unsure), nn.Linear(8, 4))
        before = torch.get_rng_state()
        assert fx_oto.partition(fx_oto.prepare(model, TOKENS)).num_zigs == 0
        assert torch.equal(torch.get_rng_state(), before)


def test_a_number_in_a_buffer_is_known():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 8), nn.Linear(8, 4)
            self.register_buffer("level", torch.tensor(1.5))

        def forward(self, x):
            return self.b(ops.gate(self.a(x), self.level))

    fx_oto.register_rule(ops.gate, kinds.elementwise())
    both_front_ends(Net, TOKENS, 8)


def test_zero_if_tells_what_running_cannot():
    def make():
        return images(
            lambda m, x: ops.gate(x, x.mean((1, 2, 3), keepdim=True).detach() + 0 * x.sum((1, 2, 3), keepdim=True))
        )

    fx_oto.register_rule(ops.gate, kinds.elementwise())
    assert fx_oto.partition(fx_oto.prepare(make(), IMAGE)).num_zigs == 0
    fx_oto.register_rule(ops.gate, kinds.elementwise(zero_if="x"))
    both_front_ends(make, IMAGE, 8)


def test_what_cannot_be_run_here_is_unknown_and_kept():
    fx_oto.register_rule(ops.elsewhere, kinds.elementwise())
    model = nn.Sequential(nn.Linear(12, 8), Call(ops.elsewhere), nn.Linear(8, 4))
    partition = fx_oto.partition(fx_oto.prepare(model, TOKENS))
    assert partition.num_zigs == 0
    assert "its value is not zero once removed" in partition.explain().__str__()
    fx_oto.register_rule(ops.elsewhere, kinds.elementwise(zero_if="x"))
    assert fx_oto.partition(fx_oto.prepare(model, TOKENS)).num_zigs == 8


# -- movement ---------------------------------------------------------------------------------------------


def test_a_shuffle_becomes_a_selection():
    """The op takes floating-point tensors only, and its groups do not divide what is left."""
    fx_oto.register_rule(ops.shuffled, kinds.movement())
    result = both_front_ends(lambda: images(lambda m, x: ops.shuffled(x, 4).relu(), 12), IMAGE, 12)
    assert not [node for node in result.small.graph.nodes if node.target is ops.shuffled]
    assert [node for node in result.small.graph.nodes if node.target is torch.index_select]


def test_blocks_of_channels_go_together_where_they_become_pixels():
    fx_oto.register_rule(ops.blocks_to_image, kinds.movement())
    both_front_ends(lambda: images(lambda m, x: ops.blocks_to_image(x, 2), 16, 4), IMAGE, 4, trains=False)


def test_a_number_of_heads_that_is_given_stays():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 24), nn.Linear(6, 4)

        def forward(self, x):
            return self.b(ops.split_heads(self.a(x), 4)).mean(1)

    fx_oto.register_rule(ops.split_heads, kinds.movement())
    both_front_ends(Heads, TOKENS, 6, trains=False)


def test_a_movement_that_cannot_be_run_asks_for_a_function():
    fx_oto.register_rule(ops.elsewhere, kinds.movement())
    model = nn.Sequential(nn.Linear(12, 8), Call(ops.elsewhere), nn.Linear(8, 4))
    partition = fx_oto.partition(fx_oto.prepare(model, TOKENS))
    assert partition.num_zigs == 0
    assert "use the rule movement(move=…)" in str(partition)
    fx_oto.register_rule(ops.elsewhere, kinds.movement(lambda x: x.flip(-1)))
    assert fx_oto.partition(fx_oto.prepare(model, TOKENS)).num_zigs == 8


# -- contractions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_a_fused_linear_layer(bias):
    fx_oto.register_rule(ops.linear_relu, kinds.contraction("...i,oi,+o->...o", activation=torch.relu))
    result = both_front_ends(lambda: Tokens(bias), TOKENS, 26)
    assert result.small.w.shape == (5, 8)


def test_its_multiply_adds_are_counted_and_fall():
    fx_oto.register_rule(ops.linear_relu, kinds.contraction("...i,oi,+o->...o", activation=torch.relu))
    result = compress_half(Tokens(), TOKENS)
    inputs = TOKENS.double()
    assert fx_oto.cost(result.gm, inputs).macs == 10 * (12 * 16 + 16 * 10 + 10 * 4)
    assert fx_oto.cost(result.small, inputs).macs == 10 * (12 * 8 + 8 * 5 + 5 * 4)
    price = fx_oto.partition(result.gm).macs
    assert price.total == 10 * (12 * 16 + 16 * 10 + 10 * 4)
    assert price.left(torch.tensor([len(family) // 2 for family in fx_oto.partition(result.gm).families])) == 10 * (
        12 * 8 + 8 * 5 + 5 * 4
    )


def test_a_formula_goes_with_its_rule():
    fx_oto.register_rule(ops.linear_relu, kinds.contraction("...i,oi,+o->...o"))
    assert flop_registry[ops.linear_relu](TOKENS, torch.ones(3, 12), None, out_val=torch.ones(2, 5, 3)) == 2 * 10 * 36
    fx_oto.register_rule(ops.linear_relu, kinds.keep_whole("for a while"), replace=True)
    assert ops.linear_relu not in flop_registry


def test_a_formula_of_the_users_for_its_multiply_adds_is_honoured():
    packet = ops.linear_sigmoid
    register_flop_formula(packet)(lambda x, w, b, out_shape=None, **_: 2 * 7 * math.prod(w))
    try:
        fx_oto.register_rule(packet, kinds.contraction("...i,oi,+o->...o", activation=torch.sigmoid))
        model = nn.Sequential(nn.Linear(12, 8), Call(lambda x: ops.linear_sigmoid(x, torch.ones(3, 8), None)))
        assert fx_oto.cost(model, TOKENS).macs == 10 * 12 * 8 + 7 * 3 * 8
    finally:
        del flop_registry[packet]


def test_an_activation_that_is_not_zero_at_zero_is_folded_or_kept():
    class Net(Tokens):
        def forward(self, x):
            return self.b(ops.linear_sigmoid(torch.tanh(self.a(x)), self.w, self.bias))

    fx_oto.register_rule(ops.linear_sigmoid, kinds.contraction("...i,oi,+o->...o", activation=torch.sigmoid))
    assert compress_in_evaluation(Net(), TOKENS).zigs == 26


def test_a_quantised_layer_loses_codes_where_its_step_is_zero():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 16), nn.Linear(10, 4)
            self.register_buffer("codes", torch.randint(-128, 127, (10, 16), dtype=torch.int8))
            self.step, self.bias = nn.Parameter(torch.rand(10)), nn.Parameter(torch.randn(10))

        def forward(self, x):
            return self.b(ops.quantised(torch.tanh(self.a(x)), self.codes, self.step, self.bias).relu())

    fx_oto.register_rule(ops.quantised, kinds.contraction("...i,oi,o,+o->...o"))
    result = both_front_ends(Net, TOKENS, 26)
    assert result.small.codes.shape == (5, 8)
    assert result.small.codes.dtype is torch.int8


def test_tensors_that_are_not_named_are_kept_whole():
    fx_oto.register_rule(ops.linear_relu, kinds.contraction("...i,oi->...o", of=("x", "w")))
    gm = fx_oto.prepare(Tokens(), TOKENS)
    assert "does not say what its argument b is for" in str(fx_oto.partition(gm))


# -- the others -------------------------------------------------------------------------------------------


def test_like_an_op_of_torchs():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(12, 8)

        def forward(self, x):
            return ops.total(self.a(x).square())

    fx_oto.register_rule(ops.total, kinds.like(torch.ops.aten.sum.dim_IntList, lambda x: (x, [-1])))
    both_front_ends(Net, TOKENS, 8, trains=False)
    fx_oto.register_rule(ops.total, kinds.like(torch.ops.aten.mean.dim, lambda x: (x, [-1])))
    partition = fx_oto.partition(fx_oto.prepare(Net(), TOKENS))
    assert partition.num_zigs == 0  # slicing cannot make the op divide by the original count


def test_keep_whole_says_why():
    fx_oto.register_rule(ops.bounce, kinds.keep_whole("its codebook has a fixed width"))
    gm = fx_oto.prepare(nn.Sequential(nn.Linear(12, 8), Call(lambda x: ops.bounce(x, 0.0)), nn.Linear(8, 4)), TOKENS)
    assert "its codebook has a fixed width (op fx_oto_custom::bounce at" in str(fx_oto.partition(gm))


@op("ascending", like_first)
def ascending(x: Tensor) -> Tensor:
    return x.sort(-1).values


def test_an_op_that_sorts_is_no_movement():
    fx_oto.register_rule(ops.ascending, kinds.movement())

    class Sorting(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.last(ops.ascending(self.first(x)))

    partition = fx_oto.partition(fx_oto.prepare(Sorting(), torch.randn(3, 4)))
    assert partition.num_zigs == 0
    assert "use the rule movement(move=…)" in str(partition)
