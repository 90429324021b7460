"""Saliency scores against their formulas, and what is scored."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.training import batches, prepared, train

import fx_oto
from fx_oto.optim.saliency import CRITERIA, ZIGStatistics

WINDOW = {"start_step": 3, "end_step": 6}


def read(gm, attribute):
    """For each family, every ZIG's variables (or their gradients) as a vector."""
    parameters = dict(gm.named_parameters())
    found = []
    for family in fx_oto.partition(gm).families:
        rows = []
        for zig in range(len(family)):
            parts = [
                getattr(parameters[slot.tensor], attribute).index_select(slot.dim, slot.index[zig]).reshape(-1)
                for slot in family.variables
            ]
            rows.append(torch.cat(parts))
        found.append(torch.stack(rows).detach().clone())
    return found


def observed(count):
    """Statistics over the last ``count`` of four steps, and the variables and gradients that they are made of."""
    gm, seen, raw = prepared(), [], []

    def keep(zigs):
        seen.extend(zigs)
        return [torch.zeros(len(family.square)) for family in zigs]

    optimizer = fx_oto.DHSPG(
        gm, torch.optim.SGD, lr=0.05, target_group_sparsity=0.5, saliency=keep, saliency_batches=count, **WINDOW
    )
    for image, label in batches(4):
        optimizer.zero_grad()
        F.cross_entropy(gm(image), label).backward()
        raw.append((read(gm, "data"), read(gm, "grad")))
        optimizer.step()
    return seen, raw[4 - count :]


@pytest.mark.parametrize("count", [1, 3])
def test_statistics_are_means_over_the_mini_batches(count):
    seen, raw = observed(count)
    for i, family in enumerate(seen):
        x, g = (torch.stack([pair[k][i] for pair in raw]) for k in (0, 1))
        torch.testing.assert_close(family.square, x.square().sum(2).mean(0))
        torch.testing.assert_close(family.gradient, g.square().sum(2).mean(0))
        torch.testing.assert_close(family.dot, (x * g).sum(2).mean(0))
        torch.testing.assert_close(family.dot_abs, (x * g).sum(2).abs().mean(0))
        torch.testing.assert_close(family.dot_square, (x * g).sum(2).square().mean(0))
        torch.testing.assert_close(family.cosine, F.cosine_similarity(x, g, dim=2).mean(0))
        assert family.size == x.shape[2]


def test_scores_are_their_formulas():
    seen, raw = observed(1)
    x, g = raw[0]
    dot = torch.cat([(a * b).sum(1) for a, b in zip(x, g, strict=True)])
    norm = torch.cat([a.norm(dim=1) for a in x])
    size = torch.cat([torch.full((len(a),), float(a.shape[1])) for a in x]).double()
    cosine = torch.cat([F.cosine_similarity(-a, -b) for a, b in zip(x, g, strict=True)])

    def n(values):
        return values / values.norm()

    expected = {
        "otov2": n(cosine) / 2 + n(1 / (norm / size + 1e-6)) / 2,
        "magnitude": -norm / size.sqrt(),
        "taylor1": -dot.abs(),
        "taylor2": -dot.square(),
        "hesso": -(n(norm) + n(norm / size) + n(cosine + 1) + n(dot.abs()) + n(dot.square() / 2)) / 5,
        "blend": -(n(norm) + n(norm / size.sqrt()) + n(-cosine) + n(dot.abs()) + n(dot.square() / 2)) / 5,
    }
    assert expected.keys() == CRITERIA.keys()
    for name, score in expected.items():
        torch.testing.assert_close(torch.cat(list(CRITERIA[name](seen))), score)


@pytest.mark.parametrize("name", CRITERIA)
def test_every_saliency_can_be_chosen_by_name(name):
    gm = prepared()
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.05, target_group_sparsity=0.5, saliency=name, **WINDOW)
    train(gm, optimizer, 6)
    assert optimizer.group_sparsity == 0.5


def test_a_callable_decides():
    def last_first(zigs: list[ZIGStatistics]):
        return [torch.arange(len(family.square)) / len(family.square) for family in zigs]

    gm = prepared()
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.05, target_group_sparsity=0.5, saliency=last_first, **WINDOW)
    train(gm, optimizer, 6)
    for zero in fx_oto.partition(gm).zeros():
        assert zero.nonzero().flatten().tolist() == list(range(len(zero) - int(zero.sum()), len(zero)))


@pytest.mark.parametrize(
    ("saliency", "message"),
    [
        (lambda zigs: [torch.zeros(3)], r"for each ZIG; expected tensors of shapes \(12,\), \(20,\), found \(3,\)"),
        (lambda zigs: [z.norm * float("nan") for z in zigs], r"a number for each ZIG, found NaN"),
        (lambda zigs: None, r"expected tensors of shapes \(12,\), \(20,\), found NoneType"),
        (lambda zigs: 0.5, r"expected tensors of shapes \(12,\), \(20,\), found float"),
        (lambda zigs: torch.tensor(0.5), r"expected tensors of shapes \(12,\), \(20,\), found \(\)"),
        (lambda zigs: [0.5, zigs[0].norm], r"expected tensors of shapes \(12,\), \(20,\), found float, \(12,\)"),
        ("random", r"saliency must be one of otov2, magnitude, .* found 'random'"),
    ],
)
def test_a_saliency_that_cannot_be_used(saliency, message):
    def start_training():
        gm = prepared()
        options = {"target_group_sparsity": 0.5, "saliency": saliency, **WINDOW}
        train(gm, fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.05, **options), 6)

    with pytest.raises(fx_oto.SettingsError, match=message):
        start_training()
