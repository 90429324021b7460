"""Wrong input gets an error that says what was expected, what was found and what to do; the model is unchanged."""

from __future__ import annotations

import copy
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
        fx_oto.InputError, match=r"does not run on the example inputs at node '_0' \(.*found \(2, 4, 8, 8\)"
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


def test_no_inputs(net):
    with pytest.raises(fx_oto.MissingResultError, match=r"prepare needs example_inputs"):
        fx_oto.prepare(net)


def test_not_a_module():
    with pytest.raises(fx_oto.TraceError, match=r"expected a torch.nn.Module, found function"):
        fx_oto.prepare(lambda x: x, IMAGE)


@pytest.mark.parametrize("call", [fx_oto.partition, fx_oto.compress, fx_oto.report])
def test_unprepared(net, call):
    with pytest.raises(
        fx_oto.MissingResultError, match=r"expected a GraphModule that fx_oto has traced, found Sequential"
    ):
        call(net)


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
    with pytest.raises(fx_oto.SlicingError, match=r"all 8 ZIGs of the family '0.weight' are zero.*keep at least one"):
        fx_oto.compress(gm)


def test_not_a_number(net):
    gm = fx_oto.prepare(copy.deepcopy(net), IMAGE)
    fx_oto.partition(gm).zero_(0.5)
    with torch.no_grad():
        gm.get_parameter("3.weight")[0, 0, 0, 0] = float("nan")
    with pytest.raises(fx_oto.InputError, match=r"3.weight holds NaN or infinite values"):
        fx_oto.compress(gm)


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
    with pytest.raises(fx_oto.InputError, match="latency needs inputs with numbers, and these are on the meta device"):
        fx_oto.latency(net, torch.randn(2, 4, device="meta"))


def test_unknown_pattern(net):
    with pytest.raises(
        fx_oto.SettingsError, match=r"the pattern 'layer9\.\*' in unprunable matches no parameter or module"
    ):
        fx_oto.prepare(net, IMAGE, unprunable=["layer9.*"])


def test_fraction_out_of_range(net):
    with pytest.raises(fx_oto.SettingsError, match=r"fraction must be in \[0, 1\], found 1.5"):
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
