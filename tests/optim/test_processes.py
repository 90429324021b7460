"""Several processes train one model: all of them choose, and end with, the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support import in_processes, replicas
from support.torchrun import torchrun

import fx_oto


def run(folder, processes, script, *arguments):
    """What each rank ends with."""
    done = torchrun(processes, script.__file__, folder, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(processes)]


def same(left, right):
    return all(map(torch.equal, left["zeros"], right["zeros"])) and all(
        torch.equal(value, right["weights"][name]) for name, value in left["weights"].items()
    )


@pytest.mark.parametrize(
    ("target", "processes"),
    [
        ("target_group_sparsity", 2),
        ("target_latency", 2),
        pytest.param("target_latency", 4, marks=pytest.mark.slow),
    ],
)
def test_all_processes_choose_the_same(tmp_path, target, processes):
    first, *others = run(tmp_path, processes, in_processes, target, "20")
    assert all(same(first, other) for other in others)
    assert all(first["reached"] == other["reached"] for other in others)
    assert sum(int(zero.sum()) for zero in first["zeros"]) > 10


def test_two_processes_train_as_one_does(tmp_path):
    first, _ = run(tmp_path, 2, in_processes, "target_group_sparsity", "20")
    net = in_processes.make_net()
    gm = fx_oto.prepare(net, torch.randn(2, 3, 16, 16, dtype=torch.float64))
    optimizer = fx_oto.DHSPG(gm, lr=0.01, momentum=0.9, total_steps=20, target_group_sparsity=0.5)
    for step in range(20):
        images, labels = in_processes.batch(step, 0, 1)
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
    assert all(map(torch.equal, first["zeros"], fx_oto.partition(gm).zeros()))
    for name, value in net.state_dict().items():
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:these parameters have a gradient:fx_oto.FxOtoWarning")
def test_parameters_that_forward_does_not_use_in_model_and_gm(tmp_path):
    """Those of the loss are averaged as the others are; for those of nobody both want what torch asks for."""
    (first, needs), (second, _) = run(tmp_path, 2, replicas)
    assert needs == [True, True]
    for (kind, which), weights in first.items():
        alone = replicas.trained(kind, "alone")
        for name, value in weights.items():
            assert torch.equal(second[kind, which][name], value)
            torch.testing.assert_close(value, alone[name], rtol=1e-9, atol=1e-12)
