"""What is said where a rule cannot be registered, or does not fit: the text names op, rule and line, and what to do."""

import re

import pytest
import torch
from support.exactness import randomise
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

import fx_oto
from fx_oto import kinds

TOKENS = torch.randn(2, 5, 12)
ops = torch.ops.fx_oto_errors


@torch.library.custom_op("fx_oto_errors::wobble", mutates_args=())
def wobble(x: Tensor, by: float = 1.0) -> Tensor:
    return x * by


@wobble.register_fake
def _(x, by=1.0):
    return torch.empty_like(x)


@torch.library.custom_op("fx_oto_errors::weighted", mutates_args=())
def weighted(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight.T


@weighted.register_fake
def _(x, weight):
    return x.new_empty(*x.shape[:-1], weight.size(0))


@torch.library.custom_op("fx_oto_errors::soft", mutates_args=())
def soft(x: Tensor) -> Tensor:
    return x.softmax(-1)


@soft.register_fake
def _(x):
    return torch.empty_like(x)


@torch.library.custom_op("fx_oto_errors::write_", mutates_args=("x",))
def write_(x: Tensor) -> None:
    x.mul_(2)


class Net(nn.Module):
    def __init__(self, function=ops.wobble):
        super().__init__()
        self.a, self.b, self.function = nn.Linear(12, 8), nn.Linear(8, 4), function

    def forward(self, x):
        return self.b(self.function(self.a(x)))


def prepared(function=ops.wobble):
    return fx_oto.prepare(Net(function), TOKENS)


def refused(*parts):
    """A RuleError whose text has these parts in order."""
    return pytest.raises(fx_oto.FxOtoError, match="(?s)" + ".*".join(map(re.escape, parts)))


# -- registering ------------------------------------------------------------------------------------------


class Function(torch.autograd.Function):
    pass


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (Function, ("found the autograd.Function Function", "torch.library.custom_op", ".register_autograd")),
        (torch.relu, ("found the Python function relu", "torch.library.custom_op", ".register_fake")),
        (prepared, ("found the Python function prepared", "torch.library.custom_op")),
        (nn.Linear, ("found the module Linear", "give its class to register_leaf")),
        (nn.ReLU(), ("found the module ReLU", "give its class to register_leaf")),
        ("mylib::scale", ("found 'mylib::scale' (str)", "getattr(torch.ops.mylib, name)")),
        (ops.write_, ("fx_oto_errors.write_.default writes into its arguments", "register an op that returns")),
    ],
)
def test_what_is_no_op(given, parts):
    with refused(*parts) as caught:
        fx_oto.register_rule(given)
    assert isinstance(caught.value, fx_oto.RuleError)


def test_an_op_in_each_form():
    for form in (ops.wobble, ops.wobble.default, wobble):
        assert fx_oto.register_rule(form, kinds.elementwise()) == kinds.elementwise()
        assert fx_oto.registered_rules() == {"fx_oto_errors.wobble.default": "elementwise()"}
        fx_oto.unregister_rule(form)
        assert fx_oto.registered_rules() == {}
    fx_oto.register_rule(torch.ops.aten.erfinv, kinds.elementwise())
    assert set(fx_oto.registered_rules()) == {"aten.erfinv.default"}


def test_what_is_no_rule():
    with refused("the rule of fx_oto_errors.wobble.default", "(call, p)", "found elementwise"):
        fx_oto.register_rule(ops.wobble, kinds.elementwise)
    with refused("the rule of Net", "(call, p)", "found 3"):
        fx_oto.register_leaf(Net, 3)
    with refused("register_leaf expects a class of modules", "for an op, use register_rule"):
        fx_oto.register_leaf(ops.wobble, kinds.elementwise())
    with refused("the attribute 'width' of Net", "('weight', 0)", "found 'weight'"):
        fx_oto.register_leaf(Net, kinds.elementwise(), attributes={"width": "weight"})


def rule_of_a_cell(body):
    """Like a notebook's cell, which defines the function anew each time it is run."""

    def my_rule(call, p):
        body(call, p)

    return my_rule


def test_another_rule_for_the_same_op_is_refused_but_not_the_same_again():
    first, again = rule_of_a_cell(lambda call, p: None), rule_of_a_cell(lambda call, p: p.put(call.out, ()))
    fx_oto.register_rule(ops.wobble)(first)
    fx_oto.register_rule(ops.wobble.default)(again)
    with refused(
        "fx_oto_errors.wobble.default already has the rule",
        "my_rule",
        "test_rule_errors.py",
        "replace=True",
        "elementwise()",
    ):
        fx_oto.register_rule(ops.wobble, kinds.elementwise())
    fx_oto.register_rule(ops.wobble, kinds.elementwise(), replace=True)
    fx_oto.register_rule(ops.wobble, kinds.elementwise(zero_if="x"))
    fx_oto.unregister_rule(ops.wobble)
    fx_oto.register_rule(ops.wobble, kinds.movement())
    with refused("has no registered rule; rules are registered for: ", "fx_oto_errors.wobble.default"):
        fx_oto.unregister_rule(ops.weighted)
    fx_oto.register_leaf(Net, kinds.elementwise())
    with refused("Net already has the rule elementwise(); pass replace=True to replace it by movement()"):
        fx_oto.register_leaf(Net, kinds.movement())


def test_a_class_that_is_defined_again_leaves_models_of_the_first_as_they_are():
    def cell():
        class Gain(nn.Module):
            def __init__(self):
                super().__init__()
                self.channels, self.weight = 8, nn.Parameter(torch.rand(8) + 1)

            def forward(self, x):
                return x * self.weight if float(x.abs().max()) >= 0 else x

        fx_oto.register_leaf(Gain, kinds.elementwise("...c,c->...c"), attributes={"channels": ("weight", 0)})
        return nn.Sequential(nn.Linear(4, 8), Gain(), nn.Linear(8, 2))

    gm = fx_oto.prepare(cell(), torch.randn(3, 4))
    cell()
    assert len(fx_oto.registered_rules()) == 1
    fx_oto.partition(gm).zero_(0.5)
    assert fx_oto.compress(gm).get_submodule("1").channels == 4


def test_a_leaf_that_was_forgotten_is_named_when_its_channels_are_cut():
    class Bias(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.rand(8))

        def forward(self, x):
            return x + self.bias

    fx_oto.register_leaf(Bias, kinds.elementwise("...c,c->...c"))
    gm = fx_oto.prepare(nn.Sequential(nn.Linear(4, 8), Bias(), nn.Linear(8, 2)), torch.randn(3, 4))
    fx_oto.partition(gm).zero_(0.5)
    fx_oto.unregister_rule(Bias)
    with pytest.raises(fx_oto.SlicingError, match=r"node '_1' \(Bias .*no rule any more: register it again"):
        fx_oto.compress(gm)
    fx_oto.register_leaf(Bias, kinds.elementwise("...c,c->...c"))
    assert fx_oto.compress(gm).get_parameter("1.bias").shape == (4,)


def test_formulas_of_others_and_of_other_overloads_outlive_a_rule():
    library = torch.library.Library("fx_oto_overloads", "DEF")
    library.define("linear(Tensor x, Tensor weight) -> Tensor")
    library.define("linear.bias(Tensor x, Tensor weight, Tensor bias) -> Tensor")
    packet = torch.ops.fx_oto_overloads.linear
    with fx_oto.temporary_rules():
        fx_oto.register_rule(packet, kinds.contraction("...i,oi,+o->...o"))
        fx_oto.unregister_rule(packet.bias)
        assert packet in flop_registry
        flop_registry[ops.soft] = lambda *_, **__: 1
    assert packet not in flop_registry
    assert flop_registry.pop(ops.soft)() == 1


# -- what a rule says -------------------------------------------------------------------------------------


def put_nothing(call, p):
    pass


def put_wrong_shape(call, p):
    p.put(call.out, [layer.map(lambda t: t.squeeze(0)) for layer in p.layers(call.args[0])])


def put_wrong_size(call, p):
    p.put(call.out, [layer.map(lambda t: t.repeat(1, 1, 2)) for layer in p.layers(call.args[0])])


def put_elsewhere(call, p):
    p.put(call.args[0], p.layers(call.args[0]))


def fail_inside(call, p):
    p.put(call.out, p.layers(call.arg("waist")))


@pytest.mark.parametrize(
    ("rule", "parts"),
    [
        (
            put_nothing,
            (
                "neither gave a result layers nor kept all inputs whole",
                "p.put(call.out, layers)",
                'p.freeze_value(value, "why")',
            ),
        ),
        (put_wrong_shape, ("a result of shape (2, 5, 8) labels of shape (1, 8)", "expected 3 dimensions")),
        (put_wrong_size, ("a result of shape (2, 5, 8) labels of shape (1, 1, 16)", "each of size 1 or the result's")),
        (put_elsewhere, ("gave layers to a tensor that the op does not return", "call.outputs")),
        (fail_inside, ("failed at", "test_rule_errors.py:", "KeyError", "has no argument 'waist'")),
    ],
)
def test_a_rule_that_cannot_be(rule, parts):
    fx_oto.register_rule(ops.wobble, rule)
    where = (
        "the rule",
        rule.__name__,
        "test_rule_errors.py",
        "of fx_oto_errors::wobble (node 'wobble' at",
        "test_rule_errors.py:",
    )
    with refused(*where, *parts) as caught:
        prepared()
    assert isinstance(caught.value, fx_oto.FxOtoError)


def test_a_wrong_rule_is_caught_by_verification():
    """It is no elementwise op, and what a channel becomes is declared."""
    fx_oto.register_rule(ops.soft, kinds.elementwise(zero_if="x"))
    with refused("zero_if says that fx_oto_errors::soft is 0 where x is 0", "drop zero_if"):
        prepared(ops.soft)

    @fx_oto.register_rule(ops.soft, replace=True)
    def passes_through(call, p):
        p.put(call.out, p.layers(call.args[0]))

    gm = fx_oto.prepare(randomise(Net(ops.soft).double()).eval(), TOKENS.double())
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
    with pytest.raises(
        fx_oto.VerificationError, match=r"passes_through at .*test_rule_errors.py:\d+ of fx_oto_errors::"
    ):
        fx_oto.compress(gm)


@torch.library.custom_op("fx_oto_errors::centre", mutates_args=())
def centre(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


centre.register_fake(torch.empty_like)


class Wobble(nn.Module):
    def forward(self, x):
        return ops.wobble(x, 2.0)


class Centre(nn.Module):
    def forward(self, x):
        return x - x.mean(-1, keepdim=True)


@pytest.mark.parametrize("leaf", [False, True])
def test_the_wrong_rule_is_named_that_is_nearest_to_the_first_difference(leaf):
    for op in (ops.centre, ops.wobble):
        fx_oto.register_rule(op, kinds.elementwise())
    fx_oto.register_leaf(Centre, kinds.elementwise())
    net = Net(Centre() if leaf else ops.centre)
    net.a, net.b = nn.Sequential(Wobble(), net.a), nn.Sequential(Wobble(), net.b)
    gm = fx_oto.prepare(randomise(net.double()).eval(), TOKENS.double())
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
    named = "Centre" if leaf else "fx_oto_errors::centre"
    node = "function" if leaf else "centre"
    with pytest.raises(fx_oto.VerificationError) as caught:
        fx_oto.compress(gm)
    assert f", first at node '{node}' (" in str(caught.value)
    assert f"the rule elementwise() of {named}, which is yours, is the one to suspect, at node '{node}'" in str(
        caught.value
    )
    assert "please report" not in str(caught.value)


@torch.library.custom_op("fx_oto_errors::weighted_soft", mutates_args=())
def weighted_soft(x: Tensor, weight: Tensor) -> Tensor:
    return nn.functional.softplus(x @ weight.T)


weighted_soft.register_fake(lambda x, weight: x.new_empty(*x.shape[:-1], weight.size(0)))


class Soft(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(12, 16), nn.Linear(24, 3)
        self.weight = nn.Parameter(torch.randn(24, 16))

    def forward(self, x):
        return self.head(ops.weighted_soft(self.stem(x), self.weight))


def test_a_wrong_rule_is_caught_where_a_mask_would_hide_it():
    """Zero rows make log 2; the mask, which follows the op, would make zeros of that."""
    gm = {}
    for activation in (torch.relu, nn.functional.softplus):
        fx_oto.register_rule(ops.weighted_soft, kinds.contraction("...i,oi->...o", activation=activation), replace=True)
        gm[activation] = fx_oto.prepare(randomise(Soft().double()).eval(), TOKENS.double())
        fx_oto.partition(gm[activation]).zero_(0.5)
    with pytest.raises(fx_oto.VerificationError, match=r"differs .*, first at node 'head' .* mend the rule"):
        fx_oto.compress(gm[torch.relu])
    assert len(fx_oto.compress(gm[nn.functional.softplus]).weight) == 12  # the constant goes into the bias


# -- the kinds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("equation", "parts"),
    [
        ("bi,oi", ("expected an equation such as", "with '->' before the result")),
        ("bI,oi->bo", ("'bI' in", "expected lower-case letters")),
        ("bii,oi->bo", ("'bii' in", "may occur only once in a term")),
        ("bi,oi->bx", ("'x' in the result", "is in no operand")),
        ("bi->b", ("expected a product of two or more tensors",)),
        ("bi,oij->bo", ("'j' in the term 'oij'", "only a letter that they share")),
        ("bi,oi,+b,+k->bo", ("'k' in the term 'k'", "only a letter that they share")),
    ],
)
def test_an_equation_that_cannot_be(equation, parts):
    with refused(*parts):
        kinds.contraction(equation)


def product(x):
    return ops.weighted(x, torch.ones(8, 8, dtype=x.dtype))


@pytest.mark.parametrize(
    ("rule", "parts"),
    [
        (kinds.contraction("...i,oi,o->...o"), ("has 3 operands, but", "has 2 tensors (x, weight)", "of=(…)")),
        (kinds.contraction("i,oi->o"), ("'i' in", "does not match x, which has 3 dimensions")),
        (kinds.contraction("...i,oi->...o", of=("x", "bias")), ("has no tensor 'bias': it has x, weight",)),
        (kinds.elementwise(), ("elementwise expects results of the shape that (2, 5, 8), (8, 8) broadcast to",)),
        (kinds.movement(), ("movement expects an op of one tensor", "has 2")),
        (
            kinds.like(torch.ops.aten.mm.default),
            ("aten.mm.default does not accept the arguments", "a must be 2D", "pass like(…) a function"),
        ),
        (
            kinds.like(torch.ops.aten.sum.dim_IntList, lambda x, weight: (x, [-1])),
            ("returns shape (2, 5) for these arguments, but fx_oto_errors::weighted returns (2, 5, 8)",),
        ),
    ],
)
def test_a_kind_that_does_not_fit(rule, parts):
    fx_oto.register_rule(ops.weighted, rule)
    with refused("of fx_oto_errors::weighted (node ", "test_rule_errors.py:", *parts):
        prepared(product)


def test_sizes_that_do_not_fit_the_letters():
    fx_oto.register_rule(ops.weighted, kinds.contraction("...i,io->...o"))
    with refused("dimension 'i' of '...i,io->...o' is 6, but 8 in weight", "does not match this call"):
        prepared(lambda x: ops.weighted(x[..., :6], torch.ones(8, 6)))


def test_like_and_zero_if_name_what_there_is():
    with refused("like expects an overload of an ATen op", "found"):
        kinds.like(torch.sum)
    fx_oto.register_rule(ops.wobble, kinds.elementwise(zero_if="gate"))
    with refused("zero_if=('gate',) names an argument that fx_oto_errors::wobble does not have", "x"):
        prepared()


class Projected(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return x @ self.weight.T * (1.0 if float(x.detach().sum()) < 1e9 else 2.0)


@pytest.mark.parametrize("source", [("wait", 0), ("weight", 5), lambda module: module.wait])
def test_an_attribute_that_cannot_be_set(source):
    fx_oto.register_leaf(Projected, kinds.contraction("...i,oi->...o"), attributes={"width": source})
    gm = prepared(Projected())
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
    with refused(
        "the attribute 'width' of Projected cannot be set from", "Error", "mend attributes={…} in register_leaf"
    ):
        fx_oto.compress(gm)


def test_a_leaf_whose_names_are_ambiguous():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.x = nn.Parameter(torch.ones(8))

        def forward(self, x):
            return x * self.x

    fx_oto.register_leaf(Twice, kinds.elementwise())
    with refused("Twice is registered as a leaf, but 'x' is both an argument", "rename one"):
        prepared(Twice())
