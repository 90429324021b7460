"""Passes run alone, in our pipeline and in torch.fx's; pipelines are values."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.fx.passes.infra.pass_manager import PassManager

import fx_oto
from fx_oto.api import default_pipeline

IMAGE = torch.randn(2, 3, 8, 8)


def make_net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))


@dataclass(frozen=True)
class NodeCount:
    count: int


class CountNodes(fx_oto.Analysis):
    name = "count-nodes"

    def analyse(self, gm, context):
        return NodeCount(len(gm.graph.nodes))


class SwapReLU(fx_oto.Pass):
    name = "swap-relu"

    def transform(self, gm, context):
        hits = [n for n in gm.graph.nodes if n.op == "call_module" and isinstance(gm.get_submodule(n.target), nn.ReLU)]
        for node in hits:
            with gm.graph.inserting_before(node):
                node.replace_all_uses_with(gm.graph.call_function(torch.tanh, node.args))
            gm.graph.erase_node(node)
        return gm if hits else None


class Broken(fx_oto.Pass):
    name = "broken"

    def transform(self, gm, context):
        raise IndexError("list index out of range")


def test_a_custom_analysis_is_found_by_its_type():
    gm = fx_oto.trace(make_net(), IMAGE)
    result = CountNodes()(gm)
    assert not result.modified
    assert fx_oto.Context.of(result.graph_module).get(NodeCount) == NodeCount(6)


def test_a_custom_transformation_leaves_its_input_alone_and_drops_results():
    gm = fx_oto.Pipeline((CountNodes(),)).run(fx_oto.trace(make_net(), IMAGE))
    code = gm.code
    result = SwapReLU()(gm)
    assert result.modified
    assert gm.code == code
    assert "tanh" in result.graph_module.code
    with pytest.raises(fx_oto.MissingResultError, match="no NodeCount is known"):
        fx_oto.Context.of(result.graph_module).get(NodeCount)
    assert not SwapReLU()(result.graph_module).modified


def test_a_custom_pass_runs_before_the_analysis_and_the_result_is_exact():
    pipeline = fx_oto.Pipeline((SwapReLU(), *default_pipeline()))
    model = make_net()
    gm = fx_oto.prepare(model, IMAGE, passes=pipeline)
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    assert "tanh" in small.code
    assert small.get_submodule("0").out_channels == 4


def names_of(pipeline):
    return [stage.name for stage in pipeline]


def test_pipelines_are_values():
    pipeline = default_pipeline()
    names = ["dependency-analysis", "zig-partition", "mask-insertion"]
    after = pipeline.insert_after("dependency-analysis", CountNodes())
    before = pipeline.insert_before("dependency-analysis", SwapReLU(), CountNodes())
    assert names_of(after) == [names[0], "count-nodes", *names[1:]]
    assert names_of(before) == ["swap-relu", "count-nodes", *names]
    assert names_of(after.without("count-nodes")) == names
    assert names_of(pipeline.replace("mask-insertion", CountNodes())) == [*names[:2], "count-nodes"]
    assert names_of(pipeline) == names
    with pytest.raises(fx_oto.PassError, match=r"no pass is called 'slicing'; this pipeline has dependency-ana"):
        pipeline.without("slicing")
    with pytest.raises(fx_oto.PassError, match=r"2 passes are called 'count-nodes'; this pipeline has count"):
        after.insert_before("dependency-analysis", CountNodes()).without("count-nodes")


def test_a_pipeline_prints_what_its_passes_need_and_give():
    lines = str(default_pipeline()).splitlines()
    assert lines[0].split() == ["pass", "requires", "provides", "preserves"]
    assert lines[3].split() == ["zig-partition", "Dependencies", "Partition", "everything"]
    assert "<table>" in default_pipeline()._repr_html_()


def test_without_masks_the_zero_variables_alone_say_what_goes():
    model = make_net()
    gm = fx_oto.prepare(model, IMAGE, passes=default_pipeline().without("mask-insertion"))
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    torch.testing.assert_close(small.eval()(IMAGE), model.eval()(IMAGE))


def test_the_default_passes_run_in_torch_fxs_pass_manager():
    gm = fx_oto.trace(make_net(), IMAGE)
    result = PassManager(passes=list(default_pipeline()))(gm)
    assert fx_oto.partition(result.graph_module).num_zigs == 8


def test_a_pass_that_fails_is_named():
    gm = fx_oto.trace(make_net(), IMAGE)
    code = gm.code
    failed = (
        r"the pass 'broken' \(Broken\(\)\) failed: IndexError: list index out of range. The GraphModule that it "
        r"was given is unchanged. If the pass is yours, mend it, or leave it out with pipeline.without"
    )
    for run in (Broken(), fx_oto.Pipeline((Broken(),))):
        with pytest.raises(fx_oto.PassError, match=failed) as caught:
            run(gm)
        assert isinstance(caught.value.__cause__, IndexError)
    assert gm.code == code


class EraseReLU(fx_oto.Pass):
    """Erases a node that is still read, by force."""

    name = "erase-relu"

    def transform(self, gm, context):
        node = next(n for n in gm.graph.nodes if isinstance(dict(gm.named_modules()).get(n.target), nn.ReLU))
        users = dict(node.users)
        node.users.clear()
        gm.graph.erase_node(node)
        node.users.update(users)
        return gm


class TooEarly(fx_oto.Pass):
    name = "too-early"

    def transform(self, gm, context):
        first, *_, last = (n for n in gm.graph.nodes if n.op == "call_module")
        with gm.graph.inserting_before(first):
            first.replace_input_with(first.args[0], gm.graph.call_function(torch.tanh, (last,)))
        return gm


class NoModule(fx_oto.Pass):
    name = "no-module"

    def transform(self, gm, context):
        next(n for n in gm.graph.nodes if n.op == "call_module").target = "absent"
        return gm


class WrongWidth(fx_oto.Pass):
    name = "wrong-width"

    def transform(self, gm, context):
        gm.set_submodule("2", nn.Conv2d(7, 8, 1))
        return gm


class Flat(fx_oto.Pass):
    name = "flat"

    def transform(self, gm, context):
        out = gm.graph.output_node()
        with gm.graph.inserting_before(out):
            out.replace_input_with(out.args[0], gm.graph.call_function(torch.flatten, (out.args[0], 1)))
        return gm


class Twice(fx_oto.Pass):
    name = "twice"

    def transform(self, gm, context):
        out = gm.graph.output_node()
        out.args = ((out.args[0], out.args[0]),)
        return gm


class Renamed(fx_oto.Pass):
    name = "renamed"

    def transform(self, gm, context):
        next(n for n in gm.graph.nodes if n.op == "placeholder").target = "image"
        return gm


class NoGraph(fx_oto.Pass):
    name = "no-graph"

    def transform(self, gm, context):
        return gm.graph


UNSOUND = [
    (
        EraseReLU(),
        r"left an invalid graph: node '_3' \(Conv2d at .*\) reads '_2', which is not in the graph.*replace",
    ),
    (
        TooEarly(),
        r"left an invalid graph: .*'_3'.*tanh.* before it has been defined.*must come after all that",
    ),
    (NoModule(), r"left an invalid graph: .*_0.*absent.*its target must be in the GraphModule"),
    (
        WrongWidth(),
        r"left a graph that does not run at node '_2' \(.*\): .*Invalid channel dimensions",
    ),
    (
        Flat(),
        r"changed an output, at node 'flatten' \(flatten .*\): it was \(2, 4, 4, 4\) .* on cpu, now \(2, 64\)",
    ),
    (Twice(), r"changed the structure of the output: it was _3, now \(_3, _3\)"),
    (Renamed(), r"changed what the model is called with: it took \['input'\], now \['image'\]"),
]


@pytest.mark.parametrize(("stage", "text"), UNSOUND, ids=lambda value: getattr(value, "name", ""))
def test_a_pass_that_breaks_the_graph_is_named_with_node_and_remedy(stage, text):
    gm = fx_oto.trace(make_net(), IMAGE)
    code = gm.code
    with pytest.raises(fx_oto.PassError, match=f"(?s)the pass {stage.name!r} {text}.*mend it, or leave it out"):
        stage(gm)
    assert gm.code == code
    gm(IMAGE)


def made_of_reshape(name, sizes, of=-1):
    """A pass that puts a reshape to these sizes behind a node."""

    @fx_oto.transformation_pass(name=name)
    def stage(gm):
        node = [node for node in gm.graph.nodes if node.op == "call_module"][of]
        with gm.graph.inserting_after(node):
            shaped = gm.graph.call_function(torch.reshape, (node, sizes))
        node.replace_all_uses_with(shaped, lambda user: user is not shaped)
        return gm

    return stage


@pytest.mark.parametrize(
    ("sizes", "of", "text"),
    [
        ((2, -1), -1, r"an output is of shape \(2, 8\) instead of \(4, 4\)"),
        ((2, 6), 0, r"it fails: .*shape '\[2, 6\]' is invalid for input of size 24"),
        ((2, -1), 0, r"it fails: .*same reduction dim, but got \[2, 12\] X \[6, 4\]"),
    ],
)
def test_a_pass_that_bakes_the_batch_size_in_is_named(sizes, of, text):
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4))
    gm = fx_oto.trace(net, torch.randn(2, 6))
    with pytest.raises(fx_oto.PassError, match=f"'baking' baked the batch size.*, at node 'reshape' .*{text}"):
        made_of_reshape("baking", sizes, of)(gm)
    made = made_of_reshape("free", (-1, 6 if of == 0 else 4), of)(gm).graph_module
    assert made(torch.randn(5, 6)).shape == (5, 4)


class OfTwo(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.sizes, self.linear = sizes, nn.Linear(6, 4)

    def forward(self, x):
        return self.linear(x).reshape(self.sizes)


@pytest.mark.parametrize("sizes", [(2, 4), (2, -1), (4, 2)])
def test_a_model_that_is_for_one_batch_size_stays_so(sizes):
    gm = fx_oto.prepare(nn.Sequential(nn.Linear(6, 6), OfTwo(sizes)), torch.randn(2, 6))
    fx_oto.partition(gm).zero_(0.5)
    assert fx_oto.compress(gm)(torch.randn(2, 6)).shape == gm(torch.randn(2, 6)).shape


def test_without_verification_nothing_is_checked_or_counted():
    gm = fx_oto.trace(make_net(), IMAGE)
    made = fx_oto.Pipeline((Flat(),), verify=False).run(gm)
    assert made(IMAGE).shape == (2, 64)
    assert fx_oto.report(made).records[-1].macs == (fx_oto.cost(gm, IMAGE).macs, None)


def test_what_is_no_graph_module_is_named():
    text = r"the pass 'no-graph' must return the GraphModule that it changed, or None if it changed nothing; found"
    with pytest.raises(fx_oto.PassError, match=text):
        NoGraph()(fx_oto.trace(make_net(), IMAGE))


def test_a_change_that_is_not_returned_is_named():
    @fx_oto.transformation_pass
    def forgetful(gm):
        SwapReLU().transform(gm, None)

    with pytest.raises(fx_oto.PassError, match=r"'forgetful' returned None, which means no change, .*: return the"):
        forgetful(fx_oto.trace(make_net(), IMAGE))


class Counted(fx_oto.Analysis):
    name = "counted"
    requires = (NodeCount,)

    def analyse(self, gm, context):
        return Doubled(2 * context.get(NodeCount).count)


@dataclass(frozen=True)
class Doubled:
    count: int


class ProvidingCount(CountNodes):
    name = "providing-count"
    provides = (NodeCount,)


def test_a_missing_prerequisite_is_named():
    text = r"the pass 'zig-partition' needs Dependencies, .* not known .*: run the pass 'dependency-analysis' first"
    with pytest.raises(fx_oto.MissingResultError, match=text):
        fx_oto.prepare(make_net(), IMAGE, passes=default_pipeline().without("dependency-analysis"))
    with pytest.raises(fx_oto.MissingResultError, match=text):
        fx_oto.ZIGPartition()(fx_oto.trace(make_net(), IMAGE))
    with pytest.raises(fx_oto.MissingResultError, match=r"'counted' needs NodeCount.*provides = \(NodeCount,\)"):
        fx_oto.Pipeline((CountNodes(), Counted())).run(fx_oto.trace(make_net(), IMAGE))


def test_a_wrong_order_is_named_before_anything_runs():
    gm = fx_oto.trace(make_net(), IMAGE)
    with pytest.raises(
        fx_oto.PassError,
        match=r"'counted' needs NodeCount, which 'providing-count' provides only after it: move 'counted' after",
    ):
        fx_oto.Pipeline((Broken(), Counted(), ProvidingCount())).run(gm)
    with pytest.raises(
        fx_oto.PassError,
        match=r"'zig-partition' needs Dependencies, which 'swap-relu' before it drops .*: move 'swap-relu' before "
        r"'dependency-analysis', run that again after it, or .* preserves = \(Dependencies,\)",
    ):
        default_pipeline().insert_after("dependency-analysis", SwapReLU()).run(gm)
    made = fx_oto.Pipeline((ProvidingCount(), Counted())).run(gm)
    assert fx_oto.Context.of(made).get(Doubled) == Doubled(12)


def test_results_need_a_type_of_their_own():
    class Bare(fx_oto.Analysis):
        name = "bare"

        def analyse(self, gm, context):
            return {"nodes": 3}

    class Other(ProvidingCount):
        name = "other"

        def analyse(self, gm, context):
            return Doubled(1)

    gm = fx_oto.trace(make_net(), IMAGE)
    with pytest.raises(fx_oto.PassError, match=r"the analysis 'bare' must return an instance of its own class.*dict"):
        Bare()(gm)
    with pytest.raises(fx_oto.PassError, match=r"the analysis 'other' must return NodeCount.*; it returned Doubled"):
        Other()(gm)


def test_passes_in_conflict_are_named():
    class Other(SwapReLU):
        pass

    text = r"two different passes of this pipeline are called 'swap-relu': SwapReLU and .*Other. Give one of them"
    with pytest.raises(fx_oto.PassError, match=text):
        fx_oto.Pipeline((SwapReLU(), Other()))
    assert len(tuple(fx_oto.Pipeline((SwapReLU(), SwapReLU())))) == 2


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            CountNodes,
            r"a pipeline holds passes, found <class .*CountNodes'>: give an object of the class, Count",
        ),
        (
            names_of,
            r"found <function names_of .*: give @fx_oto.transformation_pass or @fx_oto.analysis_pass to make a",
        ),
        (
            "absent",
            r"no registered pass is called 'absent'; registered are: .*Decorate its class with @fx_oto",
        ),
    ],
)
def test_what_is_no_pass_is_named(given, text):
    with pytest.raises(fx_oto.PassError, match=text):
        default_pipeline().insert_after("dependency-analysis", given)


def test_registering():
    assert fx_oto.register_pass(CountNodes) is CountNodes
    assert fx_oto.registered_passes()["count-nodes"] is CountNodes
    assert names_of(default_pipeline().replace("mask-insertion", "count-nodes"))[-1] == "count-nodes"
    again = type("CountNodes", (fx_oto.Analysis,), {"name": "count-nodes", "__module__": CountNodes.__module__})
    assert fx_oto.register_pass(again) is again, "a cell that is run again"
    with pytest.raises(fx_oto.PassError, match=r"'count-nodes' is already registered: .*\.CountNodes. Give"):
        fx_oto.register_pass(type("Other", (CountNodes,), {}))
    with pytest.raises(fx_oto.PassError, match=r"Nameless needs a class attribute name, such as name = 'my-pass'"):
        fx_oto.register_pass(type("Nameless", (fx_oto.Analysis,), {}))
    with pytest.raises(fx_oto.PassError, match=r"takes a subclass of fx_oto.Pass or fx_oto.Analysis, found <func.*"):
        fx_oto.register_pass(names_of)


def test_functions_become_passes():
    @fx_oto.transformation_pass(requires=(NodeCount,), preserves=(NodeCount,))
    def swap(gm, context):
        assert context.get(NodeCount).count == 6
        return SwapReLU().transform(gm, context)

    @fx_oto.analysis_pass
    def count_nodes_again(gm) -> NodeCount:
        return NodeCount(len(gm.graph.nodes))

    made = fx_oto.Pipeline((count_nodes_again, swap)).run(fx_oto.trace(make_net(), IMAGE))
    assert "tanh" in made.code
    assert fx_oto.Context.of(made).get(NodeCount) == NodeCount(6)
    assert [record.name for record in fx_oto.report(made).records] == ["count-nodes-again", "swap"]
    with pytest.raises(
        fx_oto.PassError, match=r"a function of \(gm\) or \(gm, context\); 'three' takes \(gm, context, more\)\. For"
    ):

        @fx_oto.transformation_pass
        def three(gm, context, more): ...

    with pytest.raises(fx_oto.PassError, match=r"'mute' needs a return annotation.*def mute\(gm\) -> MyResult"):

        @fx_oto.analysis_pass
        def mute(gm): ...


def test_options_of_the_default_pipeline_are_not_lost_in_another_one():
    with pytest.raises(fx_oto.SettingsError, match=r"unprunable, on_pass cannot be used with passes=…: they are"):
        fx_oto.prepare(make_net(), IMAGE, passes=default_pipeline(), unprunable=["0"], on_pass=print)
    with pytest.raises(fx_oto.SettingsError, match=r"passes must be a fx_oto.Pipeline, such as .*; found \[Verif"):
        fx_oto.prepare(make_net(), IMAGE, passes=[fx_oto.Verification(None)])
    with pytest.raises(fx_oto.SettingsError, match=r"on_pass must take a PassRecord, as print does; found 3"):
        fx_oto.prepare(make_net(), IMAGE, on_pass=3)


def test_a_partition_prints_itself():
    zigs = fx_oto.partition(fx_oto.prepare(make_net(), IMAGE))
    text = str(zigs)
    assert "8 zero-invariant groups in 1 family\n" in text
    assert "0.weight[0], 0.bias[0], 1.weight[0], 1.bias[0]" in text
    assert "it is part of the model's output" in text
    assert "<table>" in zigs._repr_html_()
    graph = zigs.to_networkx()
    assert graph.nodes["3.weight[0]"]["frozen"]
    assert graph.has_edge("0.weight[0]", "3.weight[1]")


def test_a_prepared_module_can_be_copied():
    gm = fx_oto.prepare(make_net(), IMAGE)
    twin = copy.deepcopy(gm)
    fx_oto.partition(twin).zero_(0.5)
    assert fx_oto.partition(gm).group_sparsity() == 0
    assert fx_oto.partition(twin).group_sparsity() == 0.5
    assert fx_oto.compress(twin).get_submodule("0").out_channels == 4


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_a_model_whose_type_was_changed_since_is_verified_in_that(kind):
    gm = fx_oto.prepare(make_net(), IMAGE)
    fx_oto.partition(gm.to(kind)).zero_(0.5)
    small = fx_oto.compress(gm)
    assert small.get_submodule("0").out_channels == 4
    assert fx_oto.Context.of(small).get(fx_oto.VerificationReport).tolerance == (1e-10 if kind.itemsize == 8 else 5e-2)


def test_a_second_round():
    model = make_net().double()
    small = model
    for width in (4, 2):
        gm = fx_oto.prepare(small, IMAGE.double())
        fx_oto.partition(gm).zero_(0.5)
        sparse = copy.deepcopy(gm).eval()
        small = fx_oto.compress(gm)
        assert small.get_submodule("0").out_channels == width
        torch.testing.assert_close(small.eval()(IMAGE.double()), sparse(IMAGE.double()), rtol=1e-10, atol=1e-12)


def test_unprunable_keeps_what_it_names_and_what_is_coupled_to_it():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
            self.d = nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.a(x)
            return self.d(x + self.c(torch.relu(self.b(x))))

    gm = fx_oto.prepare(Residual(), IMAGE, unprunable=["c"])
    zigs = fx_oto.partition(gm)
    assert [family.name for family in zigs.families] == ["b.weight"]
    reasons = {str(axis.reason) for axis in zigs.frozen if axis.tensor == "a.weight" and axis.dim == 0}
    assert reasons == {"'c' is unprunable, and so is all that is tied to it"}


def test_a_pass_is_not_blamed_for_one_before_it_that_was_not_checked():
    class Negate(fx_oto.Pass):
        name = "negate"

        def transform(self, gm, context):
            output = gm.graph.output_node()
            with gm.graph.inserting_before(output):
                output.args = (gm.graph.call_function(torch.neg, (output.args[0],)),)
            return gm

    gm = Negate()(fx_oto.trace(make_net(), IMAGE), verify=False).graph_module
    assert "val" not in gm.graph.output_node().args[0].meta
    assert SwapReLU()(gm).modified


def test_a_result_class_may_be_local_and_named_as_text():
    @dataclass(frozen=True)
    class Local:
        nodes: int

    def count(gm: Missing) -> Local:  # noqa: F821 - as if imported for type checking alone
        return Local(len(gm.graph.nodes))

    assert fx_oto.analysis_pass(count).provides == (Local,)

    def lost(gm) -> NoSuchClass:  # noqa: F821
        return None

    with pytest.raises(fx_oto.PassError, match=r"the analysis 'lost' needs a return annotation.*found NoSuchClass"):
        fx_oto.analysis_pass(lost)


def test_a_function_with_options_is_no_pass():
    def by_default(gm, factor=2):
        return None

    def by_name(gm, *, factor):
        return None

    for function in (by_default, by_name):
        with pytest.raises(
            fx_oto.PassError, match=r"takes \(gm, .*factor.*\)\. For options, write a class with fields"
        ):
            fx_oto.transformation_pass(function)


@dataclass(frozen=True)
class Scaled(fx_oto.Pass):
    name = "scaled"
    factor: int

    def transform(self, gm, context):
        return None


@dataclass(frozen=True)
class Rescaled(Scaled):
    name = "rescaled"
    factor: int = 2


def test_what_is_registered_can_be_made_by_its_name_as_it_was_given():
    with pytest.raises(fx_oto.PassError, match="Scaled cannot be registered, because factor has no default"):
        fx_oto.register_pass(Scaled)
    with pytest.raises(fx_oto.PassError, match=r"Rescaled\(factor=3\) has options, but only its class"):
        fx_oto.register_pass(Rescaled(3))
    fx_oto.register_pass(Rescaled(2))
    assert list(fx_oto.Pipeline(("rescaled",))) == [Rescaled()]


@pytest.mark.parametrize("alone", ["scaled", Scaled(1), Scaled])
def test_a_pipeline_of_one_is_a_sequence_all_the_same(alone):
    with pytest.raises(fx_oto.PassError, match="a pipeline is made of a sequence of passes, such as"):
        fx_oto.Pipeline(alone)


def test_a_pass_whose_refusals_fail_is_named():
    class Refusing(SwapReLU):
        name = "refusing"

        def refusals(self, gm, context):
            yield context.results["nothing"]

    with pytest.raises(fx_oto.PassError, match=r"the pass 'refusing'.*failed: KeyError"):
        Refusing()(fx_oto.trace(make_net(), IMAGE))


def test_what_a_prepared_module_cannot_be_told_any_more_is_refused():
    gm = fx_oto.prepare(make_net(), IMAGE)
    with pytest.raises(fx_oto.SettingsError, match="prepared already, so unprunable cannot be used"):
        fx_oto.compress(gm, train=lambda *_: None, unprunable=["0"], lr=0.1, target_params=0.5, total_steps=1)


def test_a_warning_that_was_made_an_error_stays_what_it_is():
    class Warns(SwapReLU):
        name = "warning"

        def transform(self, gm, context):
            warnings.warn("something is kept", fx_oto.FxOtoWarning, stacklevel=2)

    with pytest.raises(fx_oto.FxOtoWarning, match="something is kept"):
        Warns()(fx_oto.trace(make_net(), IMAGE))


@pytest.mark.parametrize("honest", [True, False])
def test_a_pass_that_writes_into_the_users_model_is_named(honest):
    class Scale(fx_oto.Pass):
        name = "scale"

        @torch.no_grad()
        def transform(self, gm, context):
            gm.get_parameter("3.weight").mul_(2)
            return gm if honest else None

    with pytest.raises(
        fx_oto.PassError, match=r"the pass 'scale' wrote into '3.weight', which it shares with the user's"
    ):
        Scale()(fx_oto.trace(make_net(), IMAGE))


def test_a_pass_may_run_others_which_are_recorded_before_it():
    @fx_oto.transformation_pass(provides=(fx_oto.Dependencies, fx_oto.Partition))
    def all_at_once(gm):
        return default_pipeline().run(gm)

    gm = fx_oto.Pipeline((all_at_once,)).run(fx_oto.trace(make_net(), IMAGE))
    names = [record.name for record in fx_oto.report(gm).records]
    assert names == ["dependency-analysis", "zig-partition", "mask-insertion", "all-at-once"]


def test_a_graph_that_was_edited_by_hand_is_analysed_as_it_is():
    gm = fx_oto.trace(make_net(), IMAGE)
    relu = next(node for node in gm.graph.nodes if node.target == "2")
    with gm.graph.inserting_after(relu):
        added = gm.graph.call_function(torch.cos, (relu,))  # 1 for a channel that is gone
    relu.replace_all_uses_with(added, lambda user: user is not added)
    gm.recompile()
    gm = default_pipeline().run(gm)
    fx_oto.partition(gm).zero_(0.5)
    assert fx_oto.compress(gm).get_submodule("0").out_channels == 4


def test_passes_of_fx_oto_run_nothing_again(monkeypatch):
    def compressed():
        gm = fx_oto.prepare(make_net(), IMAGE)
        fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
        return fx_oto.compress(gm)

    checked = compressed()
    monkeypatch.delenv("FX_OTO_VERIFY", raising=False)
    monkeypatch.setattr("fx_oto.framework.integrity.record_tape", None)
    small = compressed()
    macs = [record.macs for record in fx_oto.report(checked).records]
    assert [record.macs for record in fx_oto.report(small).records] == macs
    assert macs[-1][0] < macs[0][0]
    assert shapes_noted(small) == shapes_noted(checked)


def shapes_noted(gm):
    return [node.meta["val"].shape for node in gm.graph.nodes if node.op != "output"]


class Narrow(fx_oto.Pass):
    """Says that it need not be checked, and is wrong."""

    name = "narrow"
    trusted = True

    def transform(self, gm, context):
        output = gm.graph.output_node()
        with gm.graph.inserting_before(output):
            last = gm.graph.call_function(torch.neg, (output.args[0],))
        last.meta["val"] = self.noted(output.args[0].meta["val"])
        output.args = (last,)
        return gm

    def noted(self, value):
        return value[:, :1]


class TooMany(Narrow):
    trusted = True

    def noted(self, value):
        return value

    def macs(self, before, context):
        return before + 1


class Inherits(TooMany):
    """A class does not inherit trust: what it does may not deserve it."""


@pytest.mark.parametrize(
    ("stage", "found"),
    [(Narrow(), r"noted .* at node 'neg'.*which returns"), (TooMany(), r"counted \d+ multiply-adds")],
)
def test_trusted_passes_are_checked_where_all_are(stage, found, monkeypatch):
    gm = fx_oto.trace(make_net(), IMAGE)
    with pytest.raises(fx_oto.PassError, match=found):
        stage(gm)
    monkeypatch.delenv("FX_OTO_VERIFY", raising=False)
    assert stage(gm).modified
    with pytest.raises(fx_oto.PassError, match=found):
        fx_oto.Pipeline((stage,), verify="all").run(gm)
    record = fx_oto.report(Inherits()(gm).graph_module).records[-1]
    assert record.macs[0] == record.macs[1]
