"""While one thread prepares a model, others train theirs, run the same one, and prepare more."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from support.exactness import randomise
from torch import nn

import fx_oto

ROUNDS = 6


def network(seed=0):
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(1600, 3)]
    return randomise(nn.Sequential(*layers), seed)


@contextmanager
def beside(step):
    """Another thread takes step after step meanwhile; what it raises is raised here, and it took some."""
    stop, errors, steps = threading.Event(), [], []

    def work():
        try:
            while not stop.is_set():
                step()
                steps.append(1)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]
    assert len(steps) > 1


def training():
    model, x = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)), torch.randn(4, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step():
        optimizer.zero_grad()
        noise = torch.rand(4, 8) + torch.zeros(4, 8) + torch.randn(8)[torch.randperm(8)]
        loss = model(x + noise).sum()
        loss.backward()
        optimizer.step()
        assert type(loss) is torch.Tensor
        assert model.training
        assert all(type(size) is int for size in loss.shape + x.shape)
        assert x.sum().item() == x.sum().item()

    return step


def changing_modes():
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.BatchNorm1d(8)), torch.randn(4, 8)

    def step():
        model.train()(x)
        count = int(model[2].num_batches_tracked)
        with torch.no_grad():
            first, second = model.eval()(x), model(x)
        assert torch.equal(first, second)
        assert int(model[2].num_batches_tracked) == count
        assert not model[1].training

    return step


def data_dependent():
    x = torch.randn(64)

    def step():
        kept = x[x > 0]
        assert len(kept) == int((x > 0).sum())
        assert len(list(range(x.shape[0]))) == 64
        assert {64: "a"}[x.size(0)] == "a"
        nn.Linear(4, 4).double()(torch.zeros(2, 4, dtype=torch.float64)).sum().backward()

    return step


def hooking():
    model, seen = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), []

    def step():
        handle = model[0].register_forward_hook(lambda module, args, output: seen.append(type(output)))
        model(torch.zeros(2, 4))
        handle.remove()
        assert set(seen) == {torch.Tensor}

    return step


OTHERS = {f.__name__: f for f in (training, changing_modes, data_dependent, hooking)}


@pytest.mark.parametrize("what", OTHERS)
def test_another_thread_goes_on(what):
    x = torch.randn(2, 3, 12, 12)
    with beside(OTHERS[what]()):
        for seed in range(ROUNDS):
            gm = fx_oto.prepare(network(seed), x)
            zigs = fx_oto.partition(gm)
            assert zigs.num_zigs == 16
            zigs.zero_(0.5)
            fx_oto.compress(gm)


def test_the_same_model_is_run_in_evaluation_meanwhile():
    model, x = network().eval(), torch.randn(2, 3, 12, 12)
    expected = model(x).detach()

    def step():
        with torch.no_grad():
            found = model(x)
        assert type(found) is torch.Tensor
        torch.testing.assert_close(found, expected, rtol=0, atol=0)

    with beside(step):
        for _ in range(ROUNDS):
            fx_oto.prepare(model, x)
    assert not any(module.training for module in model.modules())


def test_graphs_and_compact_models_run_meanwhile():
    model, x = network(), torch.randn(2, 3, 12, 12)
    gm = fx_oto.prepare(model, x).eval()
    expected = gm(x).detach()

    def step():
        with torch.no_grad():
            torch.testing.assert_close(gm(x), expected, rtol=0, atol=0)

    with beside(step):
        for seed in range(ROUNDS):
            fx_oto.prepare(network(seed), x)


def test_threads_prepare_at_the_same_time():
    x = torch.randn(2, 3, 12, 12)
    together = threading.Barrier(4)

    def work(seed):
        together.wait()
        found = []
        for _ in range(3):
            model = network(seed)
            gm = fx_oto.prepare(model, x)
            fx_oto.partition(gm).zero_(0.5)
            small = fx_oto.compress(gm).eval()
            with torch.no_grad():
                found.append(float((small(x) - model.eval()(x)).abs().max()))
        return max(found)

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(work, range(4))) < 1e-4


def test_threads_prepare_the_same_model():
    model, x = network().eval(), torch.randn(2, 3, 12, 12)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: fx_oto.partition(fx_oto.prepare(model, x)).num_zigs, range(6)))
    assert found == [16] * 6
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_thread_that_trains_draws_the_numbers_that_it_drew_alone():
    """Its own generator: the process-wide one is shared by all threads anyway."""

    def draws():
        generator = torch.Generator().manual_seed(0)
        return [torch.rand(8, generator=generator) for _ in range(200)]

    expected, found = draws(), []
    with beside(lambda: found.append(draws())):
        for seed in range(ROUNDS):
            fx_oto.prepare(network(seed), torch.randn(2, 3, 12, 12))
    assert all(torch.equal(a, b) for drawn in found for a, b in zip(drawn, expected, strict=True))


def test_a_loader_with_workers_feeds_another_training():
    data = torch.utils.data.TensorDataset(torch.randn(32, 8), torch.randint(0, 2, (32,)))
    loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)
    model = nn.Linear(8, 2)

    def step():
        for x, label in loader:
            model.zero_grad()
            F.cross_entropy(model(x), label).backward()

    with beside(step):
        for seed in range(ROUNDS):
            fx_oto.prepare(network(seed), torch.randn(2, 3, 12, 12))
