"""What holds of sharded parameters in a group of a single process: what is refused, saved, counted and gathered."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from support.sharded import CASES, batch, build, phases, prepared, train
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

import fx_oto
from fx_oto.optim.shards import local

CASE = CASES["DHSPG, SGD"]
FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


@pytest.fixture(autouse=True)
def _group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def shard(net):
    return fully_shard(net, mesh=dist.init_device_mesh("cpu", (1,)))


def make(**settings):
    net, gm = prepared(CASE)
    shard(net)
    options = {"target_group_sparsity": 0.5, "start_step": 0, "end_step": 12} | settings
    return net, gm, fx_oto.DHSPG(gm, lr=0.02, momentum=0.9, **options)


@pytest.mark.parametrize(
    ("task", "remedy"),
    [
        (lambda net, gm: fx_oto.compress(gm), "slicing needs .* gather the weights .*get_model_state_dict"),
        (lambda net, gm: fx_oto.partition(gm).zeros(), "to look for zeros needs .* gather the weights"),
        (
            lambda net, gm: fx_oto.prepare(net, batch(0, 0, 1)[0]),
            "prepare needs whole .* 10 .* such as .* call it first, then fully_shard, then make the optimizer",
        ),
    ],
)
def test_what_needs_whole_parameters_is_refused_in_words(task, remedy):
    net, gm = prepared(CASE)
    shard(net)
    with pytest.raises(fx_oto.InputError, match=remedy):
        task(net, gm)


def test_an_optimizer_that_was_made_before_the_model_was_sharded_says_so():
    net, gm = prepared(CASE)
    optimizer = build(CASE, gm)
    shard(net)
    with pytest.raises(fx_oto.TrainingError, match="Was it sharded before the optimizer was made"):
        train(net, optimizer, range(1), [(0, 1)])


def test_asking_for_a_state_is_no_step():
    """torch makes an optimizer that has no state yet take a step that changes nothing."""
    net, _, optimizer = make()
    weights, state = get_state_dict(net, optimizer)
    before = {name: value.full_tensor().clone() for name, value in weights.items()}
    assert state["param_groups"][0]["zigs"]["step"] == 0
    train(net, optimizer, range(12), [(0, 1)])
    other, _, fresh = make()
    train(other, fresh, range(12), [(0, 1)])
    for name, value in other.state_dict().items():
        assert torch.equal(value.full_tensor(), net.state_dict()[name].full_tensor())
        assert not torch.equal(value.full_tensor(), before[name])


@pytest.mark.parametrize("step", [0, 5, 6, 12])
def test_a_state_of_whole_tensors_is_taken_up(step):
    """Step 5 is inside a stride of 3."""
    net, _, optimizer = make(stride=3)
    train(net, optimizer, range(step), [(0, 1)])
    weights, state = get_state_dict(net, optimizer, options=FULL)
    other, _, fresh = make(stride=3)
    set_state_dict(other, fresh, model_state_dict=weights, optim_state_dict=state, options=FULL)
    for model, one in ((net, optimizer), (other, fresh)):
        train(model, one, range(step, 14), [(0, 1)])
    assert all(map(torch.equal, phases(optimizer), phases(fresh)))
    for name, value in other.state_dict().items():
        assert torch.equal(value.full_tensor(), net.state_dict()[name].full_tensor())


def test_a_state_without_the_begin_of_its_stride_is_refused():
    net, _, optimizer = make(stride=3)
    train(net, optimizer, range(5), [(0, 1)])
    state = optimizer.state_dict()
    state["param_groups"][0]["zigs"]["before"] = {}
    with pytest.raises(fx_oto.SettingsError, match=r"saved inside a stride.*init_process_group"):
        make(stride=3)[2].load_state_dict(state)


def test_a_state_of_whole_tensors_is_not_taken_for_a_part():
    net, _, optimizer = make(stride=3)
    train(net, optimizer, range(5), [(0, 1)])
    state = optimizer.state_dict()
    before = state["param_groups"][0]["zigs"]["before"]
    state["param_groups"][0]["zigs"]["before"] = {name: value.full_tensor() for name, value in before.items()}
    with pytest.raises(fx_oto.SettingsError, match=r"state is of whole tensors.*set_state_dict"):
        make(stride=3)[2].load_state_dict(state)


def test_a_model_on_the_meta_device_is_given_its_weights_where_they_are_sharded():
    whole, _ = prepared(CASE)
    with torch.device("meta"):
        net = CASE.net().double()
    gm = fx_oto.prepare(net, torch.empty(2, 3, 8, 8, dtype=torch.float64, device="meta"))
    shard(net)
    net.to_empty(device="cpu")
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(net, whole.state_dict(), options=options)
    optimizer = build(CASE, gm)
    train(net, optimizer, range(24), [(0, 1)])
    expected, gm = prepared(CASE)
    train(expected, build(CASE, gm), range(24), [(0, 1)])
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name].full_tensor(), value, rtol=1e-9, atol=1e-12)


def test_what_is_gone_stays_so_under_another_optimizer_and_in_other_weights():
    net, gm, optimizer = make(end_step=6)
    copy, _ = prepared(CASE)
    train(net, optimizer, range(6), [(0, 1)])
    gone = phases(optimizer)
    optimizer.project(copy)
    assert [int(zero.sum()) for zero in fx_oto.partition(fx_oto.prepare(copy, batch(0, 0, 1)[0])).zeros()] == [
        int((phase == 2).sum()) for phase in gone
    ]
    with torch.no_grad():
        next(net.parameters()).to_local().add_(1.0)
    optimizer.project(net)
    assert optimizer.group_sparsity == optimizer.reached()["group sparsity"] == pytest.approx(0.5, abs=0.02)
    other = fx_oto.HESSO(gm, lr=0.02, target_group_sparsity=0.6, start_step=0, end_step=6, periods=1)
    assert all(map(torch.equal, phases(other), gone))
    train(net, other, range(6), [(0, 1)])
    assert other.group_sparsity == pytest.approx(0.6, abs=0.03)


def test_parts_that_are_no_model_are_refused(monkeypatch):
    monkeypatch.setattr(dist, "all_gather_object", lambda into, mine: into.__setitem__(0, mine | {"more": ((0, 1),)}))
    with pytest.raises(fx_oto.InputError, match="process 0 holds other parameters than this one, such as 'more'"):
        make()
    monkeypatch.setattr(
        dist, "all_gather_object", lambda into, mine: into.__setitem__(0, mine | {"first.bias": ((0, 2),)})
    )
    with pytest.raises(fx_oto.InputError, match=r"'first.bias' of shape \(7,\) is placed over processes in a way"):
        make()


def test_a_gradient_of_another_layout_is_read_in_that_of_its_parameter():
    """As of a norm's weight under sequence parallelism: each process has its tokens' part of the sum."""
    mesh = dist.init_device_mesh("cpu", (1,))
    parameter = distribute_tensor(torch.zeros(3, 2), mesh, [Shard(0)])
    gradient = DTensor.from_local(torch.ones(3, 2), mesh, [Partial()])
    assert torch.equal(local(gradient, like=parameter), torch.ones(3, 2))


def test_parameters_that_an_evaluation_left_whole_are_sharded_again():
    net, gm = prepared(CASE)
    shard(net)
    with torch.no_grad():
        net(batch(0, 0, 1)[0])
    assert not isinstance(net.head.bias, DTensor)
    optimizer = build(CASE, gm)
    assert all(isinstance(p, DTensor) for p in (*gm.parameters(), *net.parameters()))
    train(net, optimizer, range(24), [(0, 1)])
    assert optimizer.group_sparsity > 0.5


def test_a_model_may_be_sharded_where_nothing_is_pruned():
    net, gm = prepared(CASE)
    shard(net.head)
    optimizer = build(CASE, gm)
    train(net, optimizer, range(24), [(0, 1)])
    expected, gm = prepared(CASE)
    whole = build(CASE, gm)
    train(expected, whole, range(24), [(0, 1)])
    assert optimizer.reached() == whole.reached()
    torch.testing.assert_close(net.first.weight, expected.first.weight, rtol=1e-9, atol=1e-12)
