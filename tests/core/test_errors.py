"""Wrong input gets an error that says what was expected, what was found and what to do; the model is unchanged."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import fx_oto


def make_net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))


IMAGE = torch.randn(2, 3, 8, 8)


@pytest.fixture
def net():
    model = make_net()
    before = copy.deepcopy(model.state_dict())
    yield model
    if model[0].weight.device.type != "meta":
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0, equal_nan=True)
    assert model.training


def test_wrong_shape(net):
    with pytest.raises(
        fx_oto.InputError, match=r"does not run on the example inputs in the module '0' \(.*found \(2, 4, 8, 8\)"
    ):
        fx_oto.prepare(net, torch.randn(2, 4, 8, 8))


def test_wrong_device(net):
    with pytest.raises(fx_oto.InputError, match=r"the model is on meta, the inputs are on cpu: move one"):
        fx_oto.prepare(net.to("meta"), IMAGE)


def test_wrong_kind_of_inputs(net):
    with pytest.raises(fx_oto.InputError, match=r"must be a tensor, a tuple .* found str"):
        fx_oto.prepare(net, "image")


def test_wrong_names_of_inputs(net):
    with pytest.raises(
        fx_oto.TraceError, match=r"do not match Sequential.forward\(input\).*unexpected keyword argument 'x'"
    ):
        fx_oto.prepare(net, {"x": IMAGE})


class OfABatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, batch):
        return self.b(self.a(batch["x"]).relu())


class OfAPair(OfABatch):
    def forward(self, pair, options):
        return super().forward({"x": pair[0] + pair[1]}) * options["scale"]


X = torch.randn(2, 4)


@pytest.mark.parametrize(
    ("model", "given", "remedy", "right"),
    [
        (OfABatch(), {"x": X}, r"give \(\{'x': …\},\)", ({"x": X},)),
        (
            OfAPair(),
            ((X, X), {"scale": X[0, 0]}),
            r"give \(\(\(…\), \{'scale': …\}\), \{\}\)",
            (((X, X), {"scale": X[0, 0]}), {}),
        ),
    ],
)
def test_a_dict_that_is_an_argument_of_its_own(model, given, remedy, right):
    with pytest.raises(fx_oto.TraceError, match=rf"'(x|scale)'\. A dict, alone or after a tuple, .* {remedy}"):
        fx_oto.prepare(model, given)
    assert fx_oto.partition(fx_oto.prepare(model, right)).num_zigs == 8


ORDER, BATCH = ": the model comes first, then its inputs", ": give a batch of tensors, without labels, as the model is"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (torch.nn.ReLU(), f"found ReLU{ORDER}"),
        (torch.utils.data.DataLoader([IMAGE]), f"found DataLoader{BATCH}"),
        (IMAGE.numpy(), f"found ndarray{BATCH}"),
        ("image", "found str$"),
    ],
)
def test_inputs_that_are_none(net, given, text):
    with pytest.raises(fx_oto.InputError, match=rf"example_inputs must be a tensor, .*; {text}"):
        fx_oto.prepare(net, given)


def test_a_batch_with_its_labels(net):
    text = r"too many positional arguments\. Found 2 positional arguments: give those that the model is called with"
    with pytest.raises(fx_oto.TraceError, match=text):
        fx_oto.prepare(net, (IMAGE, torch.tensor([0, 1])))


def test_a_class_in_the_place_of_a_model():
    with pytest.raises(fx_oto.TraceError, match=r"found the class Linear: pass the model itself"):
        fx_oto.prepare(torch.nn.Linear, IMAGE)


def test_a_training_that_is_no_function(net):
    with pytest.raises(fx_oto.SettingsError, match=r"train must be a function \(gm, optimizer\) that trains; found 3"):
        fx_oto.compress(net, IMAGE, train=3, lr=0.1, target_macs=0.5, total_steps=9)


def test_verification_of_what_was_not_cut(net):
    gm = fx_oto.prepare(net, IMAGE)
    with pytest.raises(fx_oto.MissingResultError, match=r"the pass 'physical-slicing' first, or fx_oto\.compress, "):
        fx_oto.Verification(gm)(gm)


def test_no_inputs(net):
    with pytest.raises(fx_oto.MissingResultError, match=r"prepare needs example_inputs"):
        fx_oto.prepare(net)


def test_not_a_module():
    with pytest.raises(fx_oto.TraceError, match=r"expected a torch.nn.Module, found function"):
        fx_oto.prepare(lambda x: x, IMAGE)


@pytest.mark.parametrize("call", [fx_oto.partition, fx_oto.compress, fx_oto.report])
def test_unprepared(net, call):
    with pytest.raises(fx_oto.MissingResultError, match=r"found Sequential: call that first, and pass what it returns"):
        call(net)


@pytest.mark.parametrize(
    ("wrap", "attribute"),
    [
        (torch.compile, "_orig_mod"),
        (torch.nn.DataParallel, "module"),
        (torch.optim.swa_utils.AveragedModel, "module"),
    ],
)
def test_a_wrapper_around_it(net, wrap, attribute):
    wrapped = wrap(fx_oto.prepare(net, IMAGE))
    text = rf"found {type(wrapped).__name__} around it: pass what is inside, which is its attribute '{attribute}'"
    for call in (fx_oto.partition, fx_oto.compress, lambda gm: fx_oto.DHSPG(gm, lr=0.1, total_steps=9)):
        with pytest.raises(fx_oto.MissingResultError, match=text):
            call(wrapped)


def test_traced_but_not_prepared(net):
    gm = fx_oto.trace(net, IMAGE)
    with pytest.raises(fx_oto.MissingResultError, match=r"no Partition is known .* run the pass 'zig-partition' first"):
        fx_oto.partition(gm)


def test_pickled(net):
    gm = pickle.loads(pickle.dumps(fx_oto.trace(net, IMAGE)))
    with pytest.raises(fx_oto.MissingResultError, match=r"copy.deepcopy keeps it, pickle does not"):
        fx_oto.compress(gm)


def test_nothing_zero(net):
    with pytest.raises(fx_oto.NothingToCompressError, match=r"none of the 8 ZIGs is zero.*train with fx_oto.DHSPG"):
        fx_oto.compress(fx_oto.prepare(net, IMAGE))


def test_nothing_prunable():
    gm = fx_oto.prepare(nn.Linear(3, 3), torch.randn(2, 3))
    with pytest.raises(fx_oto.NothingToCompressError, match=r"no axis of this model can be pruned"):
        fx_oto.compress(gm)


def test_a_family_entirely_zero(net):
    gm = fx_oto.prepare(copy.deepcopy(net), IMAGE)
    fx_oto.partition(gm).zero_zigs_(0, torch.arange(8))
    with pytest.raises(fx_oto.SlicingError, match=r"all ZIGs of the family '0.weight' are zero.*Keep at least one"):
        fx_oto.compress(gm)


def test_not_a_number(net):
    gm = fx_oto.prepare(copy.deepcopy(net), IMAGE)
    fx_oto.partition(gm).zero_(0.5)
    with torch.no_grad():
        gm.get_parameter("3.weight")[0, 0, 0, 0] = float("nan")
    with pytest.raises(fx_oto.InputError, match=r"3.weight holds NaN or infinite values"):
        fx_oto.compress(gm)


@pytest.mark.parametrize("name", ["1.running_mean", "1.running_var"])
def test_statistics_that_are_not_numbers_leave_nothing_to_compare(net, name):
    gm = fx_oto.prepare(copy.deepcopy(net), IMAGE)
    fx_oto.partition(gm).zero_(0.5)
    gm.get_buffer(name).fill_(math.nan)
    with pytest.raises(fx_oto.VerificationError, match=rf"is NaN or infinite, so nothing .* '{name}' holds NaN"):
        fx_oto.compress(gm)


class Logarithm(nn.Sequential):
    def forward(self, x):
        return super().forward(x).clamp_max(-1).log()


def test_outputs_that_are_nowhere_a_number_are_what_the_model_returns():
    x = torch.randn(2, 8)
    gm = fx_oto.prepare(Logarithm(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).eval(), x)
    fx_oto.partition(gm).zero_(0.5)
    assert fx_oto.compress(gm)(x).isnan().all()


def test_of_outputs_that_are_numbers_in_part_these_are_compared():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))

        def forward(self, x):
            h = self.body(x)
            return h.clamp_max(-1).log(), h

    gm = fx_oto.prepare(Both().eval(), torch.randn(2, 8))
    fx_oto.partition(gm).zero_(0.5)
    assert fx_oto.compress(gm)(torch.randn(3, 8))[0].isnan().all()


PRUNING = [
    fx_oto.partition,
    lambda gm: fx_oto.DHSPG(gm, lr=0.1, target_macs=0.5, total_steps=9),
    lambda gm: fx_oto.prune(gm, target_macs=0.5),
    fx_oto.compress,
]


@pytest.mark.parametrize("doing", PRUNING)
def test_a_compact_model_is_prepared_before_it_is_pruned_further(net, doing):
    gm = fx_oto.prepare(copy.deepcopy(net), IMAGE)
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    text = r"'physical-slicing' has cut this model, .* call fx_oto.prepare\(model, example_inputs\) on it"
    with pytest.raises(fx_oto.MissingResultError, match=text):
        doing(small)
    fx_oto.prune(fx_oto.prepare(small, IMAGE), target_macs=0.5)


WANTING_NUMBERS = {
    "zero_": lambda gm: fx_oto.partition(gm).zero_(0.5),
    "zero_zigs_": lambda gm: fx_oto.partition(gm).zero_zigs_(0, torch.tensor([1])),
    "group_sparsity": lambda gm: fx_oto.partition(gm).group_sparsity(),
    "sensitivity": lambda gm: fx_oto.sensitivity(gm, lambda gm: 0.0),
    "latency": lambda gm: fx_oto.latency(gm, torch.randn(2, 4)),
    "compress": fx_oto.compress,
}


@pytest.mark.parametrize("call", WANTING_NUMBERS.values(), ids=WANTING_NUMBERS)
def test_the_meta_device_has_no_numbers(call):
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    gm = fx_oto.prepare(net, torch.randn(2, 4, device="meta"))
    with pytest.raises(
        fx_oto.InputError, match=r"on the meta device, such as '0\.weight': .*\.to_empty\(device='cpu'\)"
    ):
        call(gm)
    net.to_empty(device="cpu")
    net.load_state_dict(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).state_dict())
    with pytest.raises(fx_oto.InputError, match="latency needs inputs with numbers, but these are on the meta device"):
        fx_oto.latency(net, torch.randn(2, 4, device="meta"))


def test_unknown_pattern(net):
    with pytest.raises(
        fx_oto.SettingsError, match=r"the pattern 'layer9\.\*' in unprunable matches no parameter or module"
    ):
        fx_oto.prepare(net, IMAGE, unprunable=["layer9.*"])


def test_fraction_out_of_range(net):
    with pytest.raises(fx_oto.SettingsError, match=r"fraction must be a number in \[0, 1\], found 1.5"):
        fx_oto.partition(fx_oto.prepare(net, IMAGE)).zero_(1.5)


def test_unbound_partition(net):
    found = fx_oto.Context.of(fx_oto.prepare(net, IMAGE)).get(fx_oto.Partition)
    with pytest.raises(fx_oto.MissingResultError, match=r"bound to no module: obtain it with fx_oto.partition\(gm\)"):
        found.zeros()


def test_one_base_catches_them_all():
    kinds = [getattr(fx_oto, name) for name in fx_oto.__all__ if name.endswith("Error")]
    assert all(issubclass(kind, fx_oto.FxOtoError) for kind in kinds)


def test_lazy_parameters():
    with pytest.raises(fx_oto.InputError, match=r"0.weight is not initialised yet: run the model once"):
        fx_oto.prepare(nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU()), IMAGE)


@pytest.mark.parametrize("name", ["parameters", "half", "describe"])
@pytest.mark.parametrize("registered", [nn.ParameterList([torch.ones(8)]), nn.Linear(8, 8)], ids=type)
@pytest.mark.parametrize("inside", [False, True])
def test_what_is_registered_under_the_name_of_a_method(name, registered, inside):
    class Shadowed(nn.Module):
        def describe(self):
            return "a scale"

        def forward(self, x):
            found = self._modules[name]
            return found(x) if isinstance(found, nn.Linear) else x * found[0]

    net = Shadowed()
    setattr(net, name, registered)
    whole = nn.Sequential(nn.Linear(4, 8), net, nn.Linear(8, 2)) if inside else net
    with pytest.raises(
        fx_oto.TraceError, match=rf"'{name}' of {'1' if inside else 'the model'} \(Shadowed\) is registered"
    ):
        fx_oto.prepare(whole, torch.randn(2, 4 if inside else 8))


def test_settings_of_training_without_training(net):
    gm = fx_oto.prepare(net, IMAGE)
    with pytest.raises(fx_oto.SettingsError, match=r"without train=…, .* so lr, example_inputs cannot be used"):
        fx_oto.compress(gm, IMAGE, lr=0.1)


@pytest.mark.parametrize("given", ["10", ["10"], ("1", "0", "10")])
def test_a_string_is_one_pattern(given):
    deep = nn.Sequential(*[nn.Linear(8, 8) for _ in range(12)])
    kept = [given] if isinstance(given, str) else given
    names = {f"{i}.weight" for i in range(11) if str(i) not in kept}
    vectors = torch.randn(2, 8)
    for gm in (
        fx_oto.prepare(deep, vectors, unprunable=given),
        fx_oto.default_pipeline(given).run(fx_oto.trace(deep, vectors)),
        fx_oto.default_pipeline().replace("zig-partition", fx_oto.ZIGPartition(given)).run(fx_oto.trace(deep, vectors)),
    ):
        assert {family.name for family in fx_oto.partition(gm).families} == names


def test_a_string_is_one_pattern_of_the_whole_job():
    deep = nn.Sequential(*[nn.Linear(8, 8) for _ in range(12)])

    def train(gm, optimizer):
        assert {family.name for family in optimizer.zigs.families} == {f"{i}.weight" for i in range(10)}
        fx_oto.partition(gm).zero_(0.5)

    fx_oto.compress(
        deep, torch.randn(2, 8), train=train, unprunable="10", target_group_sparsity=0.3, total_steps=10, lr=0.1
    )


class Gates(nn.Module):
    """Asks for a size of what it computes, so that symbolic tracing meets the wrong one first."""

    def __init__(self):
        super().__init__()
        self.tokens, self.a, self.s, self.b = nn.Embedding(50, 8), nn.Linear(8, 32), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x, shift):
        u, v = self.a(self.tokens(x)).chunk(2, -1)
        a, b, c = self.b(u * self.s(v.transpose(1, 2)).transpose(1, 2)).chunk(3, -1)
        return a + b + c + shift


class Doubles(nn.Sequential):
    def forward(self, x):
        return super().forward(x * 2 if x.sum() > 0 else x)


TOKENS, SHIFT = torch.randint(0, 50, (1, 17)), torch.randn(1, 16, 1)


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (Gates, (TOKENS, SHIFT), r" at .*test_errors\.py:\d+ \(a, b, c = .*\): mat1 .*found \(1, 17\) torch\.int64"),
        (
            Gates,
            (torch.rand(1, 16), SHIFT),
            r" at .*test_errors\.py:\d+ \(u, v = .*\): Expected tensor for argument .*",
        ),
        (Gates, (TOKENS[:, :16] + 50, SHIFT), r" at .*test_errors\.py:\d+ \(u, v = .*\): index out of range"),
        (lambda: nn.Sequential(nn.Linear(8, 4)), torch.ones(2, 8).double(), r".*same dtype.*found .* torch\.float64"),
        (Gates, TOKENS, r"missing 1 required .* 'shift'; found .*; give every argument of forward: a tuple of them"),
        (lambda: Doubles(nn.Linear(8, 4)), torch.ones(2, 9), r" at .*test_errors\.py:\d+ .*\(2x9 and 8x4\); found"),
        (lambda: nn.Sequential(nn.Linear(12, 4)), (2, 12), r"found ints; give tensors such as torch.randn\(2, 12\)"),
        (lambda: nn.Linear(12, 4), (12,), r"found ints; give tensors such as torch.randn\(12,\)"),
    ],
)
def test_inputs_that_the_model_itself_refuses(model, inputs, message, caplog, capfd, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("torch.export was asked")

    monkeypatch.setattr(torch.export, "export", refuse)
    with pytest.raises(fx_oto.InputError, match=r"does not run on the example inputs.*" + message):
        fx_oto.prepare(model(), inputs)
    assert all(record.levelname == "DEBUG" for record in caplog.records)
    assert capfd.readouterr().err == ""


class Asserts(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.widths = nn.Linear(8, 4), {8: 1}

    def forward(self, x, width=9):
        if x.shape[1] != width:
            raise AssertionError  # as an assert without a text
        return self.body(x)


class LooksUp(Asserts):
    def forward(self, x, width=9):
        return self.body(x) * self.widths[width]


@pytest.mark.parametrize(("model", "kind"), [(Asserts, "AssertionError"), (LooksUp, "KeyError: 9")])
def test_the_kind_of_an_error_that_says_little_is_told(model, kind):
    with pytest.raises(fx_oto.InputError, match=rf"inputs at .*test_errors\.py:\d+ \(.*\): {kind}; found \(2"):
        fx_oto.prepare(model(), torch.randn(2, 8))


@pytest.mark.filterwarnings("ignore::fx_oto.FxOtoWarning")
def test_what_only_fake_tensors_cannot_do_is_no_mistake_of_the_inputs(caplog):
    class Numbers(nn.Sequential):
        def forward(self, x):
            return super().forward(x / float(x.detach().numpy().max()))

    with pytest.raises(fx_oto.TraceError, match="cannot be captured"):
        fx_oto.prepare(Numbers(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)), torch.rand(2, 8) + 1)
    assert all(record.levelname == "DEBUG" for record in caplog.records)
