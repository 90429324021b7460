"""Tensors that stand in for others."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from fx_oto.analysis.fakes import Fakes, StandIns


@pytest.mark.parametrize("is_seen", [False, True], ids=["", "where each of torch's functions asks for them"])
@pytest.mark.parametrize("kind", [torch.zeros, torch.ones, lambda n: torch.eye(n).to_sparse()])
def test_a_tensor_has_one_stand_in(kind, is_seen):
    """Others would be gone, and what is found by their ``id`` would be found by those of new tensors."""
    fakes, tensors = Fakes({}), [kind(n) for n in (1, 2, 3)]
    with StandIns(fakes) if is_seen else nullcontext():
        found = [fakes.of(tensor) for tensor in tensors]
    assert fakes.real.keys() == set(map(id, found))
    assert all(
        fakes.of(one) is other and fakes.real[id(other)] is one for one, other in zip(tensors, found, strict=True)
    )
