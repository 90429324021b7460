"""Averaged weights of timm, which has batch norms' statistics averaged as well."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.training import IMAGE, batches, make_net
from support.vision import torchvision_models

import fx_oto


@pytest.mark.parametrize("kind", ["DHSPG", "HESSO"])
@pytest.mark.parametrize("from_the_start", [False, True])
def test_timms_average_is_compressed(kind, from_the_start):
    """From the end of the window on it has what the model has; from before, it is projected."""
    torchvision_models()
    utils = pytest.importorskip("timm.utils", reason="timm is not installed")
    net = make_net()
    gm = fx_oto.prepare(net, IMAGE)
    window = {"start_step": 4, "end_step": 20, "target_group_sparsity": 0.5}
    optimizer = getattr(fx_oto, kind)(gm, torch.optim.SGD, lr=0.05, momentum=0.9, **window)
    average = utils.ModelEmaV3(net, decay=0.9) if from_the_start else None
    for step, (image, label) in enumerate(batches(36)):
        optimizer.zero_grad()
        F.cross_entropy(net(image), label).backward()
        optimizer.step()
        if average is None and step + 1 == 20:
            average = utils.ModelEmaV3(net, decay=0.9)
        if average is not None:
            average.update(net, step=step)
    zigs = fx_oto.partition(gm)
    net.load_state_dict(average.module.state_dict())
    assert (zigs.group_sparsity() == 0.5) is not from_the_start
    if from_the_start:
        optimizer.project(average)
        net.load_state_dict(average.module.state_dict())
    assert zigs.group_sparsity() == 0.5
    small = fx_oto.compress(gm)
    torch.testing.assert_close(small.eval()(IMAGE), average.module.eval()(IMAGE), rtol=1e-9, atol=1e-9)
