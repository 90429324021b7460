"""HESSO against its authors' procedure, written down plainly: score, rounding, direction, fade."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from support.training import batches, prepared, train

import fx_oto

PERIODS, DURATION, START = 3, 4, 5
BASES = {
    "SGD": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2}),
    "nesterov": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "Adam": (torch.optim.Adam, {"lr": 2e-3, "weight_decay": 1e-2}),
    "AdamW": (torch.optim.AdamW, {"lr": 2e-3, "weight_decay": 0.0}),
}


def directions(base, parameters):
    """What the base is about to go along, before it does: momentum and weight decay included."""
    ways = {}
    for name, p in parameters.items():
        state, group = base.state.get(p, {}), base.param_groups[0]
        g = p.grad + group["weight_decay"] * p.detach()
        if "betas" in group:
            beta, gamma = group["betas"]
            step = int(state["step"]) + 1 if state else 1
            first = beta * state["exp_avg"] + (1 - beta) * g if state else (1 - beta) * g
            second = gamma * state["exp_avg_sq"] + (1 - gamma) * g * g if state else (1 - gamma) * g * g
            ways[name] = (first / (1 - beta**step)) / ((second / (1 - gamma**step)).sqrt() + 1e-8)
        else:
            buffer = group["momentum"] * state["momentum_buffer"] + g if state else g
            ways[name] = g + group["momentum"] * buffer if group["nesterov"] else buffer
    return ways


def rows(family, tensors):
    """Every ZIG of a family as a vector."""
    return torch.stack(
        [
            torch.cat(
                [tensors[s.tensor].detach().index_select(s.dim, s.index[zig]).reshape(-1) for s in family.variables]
            )
            for zig in range(len(family))
        ]
    )


def published_scores(families, parameters, ways):
    x, d = ([rows(family, tensors) for family in families] for tensors in (parameters, ways))
    dots = [(a * b).sum(1) for a, b in zip(x, d, strict=True)]
    criteria = [
        [a.norm(dim=1) for a in x],
        [a.norm(dim=1) / a.shape[1] for a in x],
        [F.cosine_similarity(a, b) + 1 for a, b in zip(x, d, strict=True)],
        [dot.abs() for dot in dots],
        [dot.square() / 2 for dot in dots],
    ]
    return sum(0.2 * torch.cat(one) / torch.cat(one).norm() for one in criteria)


@torch.no_grad()
def scale(family, zig, parameters, factor, base=None):
    """Multiply the variables of a ZIG, and what a base keeps of them."""
    for slot in family.variables:
        p = parameters[slot.tensor]
        for held in (p, *(base.state[p].values() if base else ())):
            if held.shape == p.shape:
                held.index_copy_(slot.dim, slot.index[zig], held.index_select(slot.dim, slot.index[zig]) * factor)


@pytest.mark.parametrize("name", BASES)
def test_a_training_is_that_of_the_authors(name):
    """Weights after every step; and which ZIGs go when, of 32: three times 7, for 21.44 are asked."""
    base, options = BASES[name]
    gm = prepared()
    twin = copy.deepcopy(gm)
    end = START + PERIODS * DURATION
    window = {"start_step": START, "end_step": end, "periods": PERIODS}
    optimizer = fx_oto.HESSO(gm, base, target_group_sparsity=0.67, **window, **options)
    plain, parameters = base(twin.parameters(), **options), dict(twin.named_parameters())
    families = fx_oto.partition(twin).families
    homes = [(i, zig) for i, family in enumerate(families) for zig in range(len(family))]
    active, gone = [], []
    for step, (image, label) in enumerate(batches(end + 3)):
        for model, stepper in ((gm, optimizer), (twin, plain)):
            stepper.zero_grad()
            F.cross_entropy(model(image), label).backward()
        t = (step - START) % DURATION
        if START <= step < end and t == 0:
            scores = published_scores(families, parameters, directions(plain, parameters))
            scores[[homes.index(one) for one in gone]] = float("inf")
            active = [homes[i] for i in (-scores).topk(7).indices.tolist()]
        optimizer.step()
        plain.step()
        for i, zig in active:
            scale(families[i], zig, parameters, (DURATION - t - 1) / (DURATION - t))
        if active and t == DURATION - 1:
            gone, active = gone + active, []
        for i, zig in gone:
            scale(families[i], zig, parameters, 0, plain)
        for key, value in gm.named_parameters():
            torch.testing.assert_close(value, parameters[key], rtol=1e-9, atol=1e-12)
    assert optimizer.group_sparsity == len(gone) / 32 == 21 / 32


@pytest.mark.parametrize(("asked", "periods", "shares"), [(0.5, 3, [5, 10, 16]), (0.67, 4, [5, 10, 15, 21])])
def test_shares_are_rounded_down_and_the_last_period_takes_the_rest(asked, periods, shares):
    gm = prepared()
    window = {"start_step": 0, "end_step": 2 * periods, "periods": periods}
    optimizer = fx_oto.HESSO(gm, torch.optim.SGD, lr=0.05, target_group_sparsity=asked, **window)
    for share in shares:
        train(gm, optimizer, 2)
        assert optimizer.group_sparsity == share / 32


@pytest.mark.parametrize("name", BASES)
def test_to_look_at_the_next_step_changes_nothing(name):
    """Weights, momentum and counters of the base are those of a training that is not scored."""
    base, options = BASES[name]
    gm, seen = prepared(), []

    def nothing(zigs):
        seen.append(zigs)
        return [torch.zeros(len(family.square)) for family in zigs]

    twin = copy.deepcopy(gm)
    window = {"start_step": 0, "end_step": 4, "periods": 1, "saliency_batches": 1}
    optimizer = fx_oto.HESSO(gm, base, target_group_sparsity=0.05, saliency=nothing, **window, **options)
    plain = base(twin.parameters(), **options)
    train(gm, optimizer, 1)
    train(twin, plain, 1)
    assert len(seen) == 1
    for p, q in zip(gm.parameters(), twin.parameters(), strict=True):
        same = p == q
        assert same.float().mean() > 0.5  # all but what fades
        for key, value in plain.state[q].items():
            torch.testing.assert_close(optimizer.state[p][key], value, rtol=0, atol=0)
    assert all(p.grad is not None for p in gm.parameters())
