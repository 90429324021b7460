"""Parameters that are sharded over processes are trained as whole ones are, to the weights of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import sharded
from support.guides import python_blocks
from support.sharded import CASES, STEPS, build, phases, prepared, train
from support.torchrun import torchrun

import fx_oto

GUIDE = Path(fx_oto.__file__).parent / "guides" / "sharded_training.md"
slow = pytest.mark.slow


def launch(processes, *given, script=sharded.__file__, cwd=None):
    """What is printed."""
    done = torchrun(processes, script, *given, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def found(folder, name, processes):
    return [torch.load(folder / f"{name}.{rank}.pt") for rank in range(processes)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What each process ends with, by number of processes and name; all cases of a number in one go."""
    folders = {}

    def of(name, processes):
        if processes not in folders:
            folders[processes] = tmp_path_factory.mktemp(f"on_{processes}")
            launch(processes, folders[processes], *CASES)
        return found(folders[processes], name, processes)

    return of


def alone(name, processes):
    """The same training in this process, with whole parameters."""
    case = CASES[name]
    net, gm = prepared(case)
    parts = [(0, 1)]
    if case.shard is sharded.with_a_rough_layer:
        parts = [(rank, processes) for rank in range(processes)]
        weight, bias = net.second.weight, net.second.bias
        net.second.forward = lambda x: torch.nn.functional.conv2d(x.float(), weight.float(), bias.float()).double()
    optimizer = build(case, gm)
    train(net, optimizer, range(STEPS), parts)
    return net, gm, optimizer


def assert_alike(one, net, optimizer):
    assert all(map(torch.equal, one["phases"], phases(optimizer)))
    for name, value in net.state_dict().items():
        torch.testing.assert_close(one["weights"][name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=slow)])
@pytest.mark.parametrize("name", [name for name in CASES if name != "latency"])
def test_sharded_parameters_end_as_whole_ones_do(trained, name, processes):
    first, *others = trained(name, processes)
    net, _, optimizer = alone(name, processes)
    assert_alike(first, net, optimizer)
    assert sum(int((phase == 2).sum()) for phase in first["phases"]) > 8
    for other in others:
        assert all(map(torch.equal, first["phases"], other["phases"]))
        assert not other["weights"]  # none but the first process holds the whole
        assert other["reached"] == first["reached"] == optimizer.trajectory.reached
        assert other["shown"] == first["shown"]


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=slow)])
def test_latency_is_measured_by_the_first_process(trained, processes):
    first, *others = trained("latency", processes)
    assert "latency left" in first["reached"]
    for other in others:
        assert all(map(torch.equal, first["phases"], other["phases"]))
        assert other["reached"] == first["reached"]


def test_a_gathered_state_is_compressed(trained):
    case = CASES["DHSPG, SGD"]
    net = case.net().double()
    net.load_state_dict(trained("DHSPG, SGD", 2)[0]["weights"])
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    gm = fx_oto.prepare(net, x)
    small = fx_oto.compress(gm)
    torch.testing.assert_close(small(x), net(x), rtol=1e-10, atol=1e-12)
    _, whole, _ = alone("DHSPG, SGD", 2)
    other = fx_oto.compress(whole)
    assert [tuple(p.shape) for p in small.parameters()] == [tuple(p.shape) for p in other.parameters()]


@pytest.mark.parametrize(
    ("name", "step", "before", "after"),
    [
        ("DHSPG in strides", 7, 2, 1),  # step 7 is inside a stride
        ("HESSO, AdamW", 2, 1, 2),  # gradients are being observed
        *(pytest.param(name, 11, 2, 4, marks=slow) for name in ("DHSPG, AdamW", "HESSO, SGD", "in replicas")),
        *(pytest.param("DHSPG in strides", step, 4, 2, marks=slow) for step in (1, 4, 8, 20, 22)),
    ],
)
def test_a_training_goes_on_with_another_number_of_processes(tmp_path, name, step, before, after):
    launch(before, tmp_path, "save", name, step)
    launch(after, tmp_path, "resume", name, step)
    net, _, optimizer = alone(name, after)
    assert_alike(found(tmp_path, name, after)[0], net, optimizer)


def test_the_guide_is_a_program(tmp_path):
    (tmp_path / "guide.py").write_text("".join(block.code.lstrip() for block in python_blocks(GUIDE)))
    printed = launch(2, script="guide.py", cwd=tmp_path)
    assert "'group sparsity': " in printed
    small = torch.load(tmp_path / "small.pt", weights_only=False)
    assert sum(p.numel() for p in small.parameters()) <= 0.4 * 2473
