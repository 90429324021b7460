"""Devices that are not there: tensors that say that they are on ``far:0`` or ``far:1``, with numbers kept on the CPU.

As on a real device, an op fails that is given tensors of two devices, and what Python reads is counted. The kind of
device is registered for the whole process, so a test runs this file as a script.

Usage: other_device.py PLACE PLACE OPTIMIZER BASE
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import fx_oto

warnings.filterwarnings("ignore")
READS: dict[str, int] = {}
_READING = {"aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::is_nonzero", "aten::item"}
_BETWEEN = {"aten::_to_copy", "aten::copy_", "aten::to"}


class Far(Tensor):
    """A tensor on such a device."""

    @staticmethod
    def __new__(cls, near: Tensor, device: torch.device) -> Far:
        form = {"strides": near.stride(), "storage_offset": near.storage_offset(), "dtype": near.dtype}
        far = Tensor._make_wrapper_subclass(cls, near.shape, device=device, **form)
        far.near = near
        return far

    def __repr__(self) -> str:
        return f"Far({tuple(self.shape)}, {self.device})"

    def __tensor_flatten__(self):
        return ["near"], self.device

    @staticmethod
    def __tensor_unflatten__(inner, device, size, stride):
        return Far(inner["near"], device)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _called(func, args, kwargs or {})


def _called(func, args, kwargs):
    """Run an op on the CPU; what it returns is where its tensors are."""
    name, leaves = func._schema.name, [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    devices = {one.device for one in leaves if one.ndim or one.device.type != "cpu"}
    if len(devices) > 1 and name not in _BETWEEN:
        raise RuntimeError(f"tensors on {sorted(map(str, devices))} in {func}")
    asked = kwargs.get("device")
    target = next((one.device for one in leaves if isinstance(one, Far)), torch.device("cpu"))
    target = args[0].device if name == "aten::copy_" else target if asked is None else torch.device(asked)
    if any(isinstance(one, Far) for one in leaves) and (name in _READING or target.type == "cpu"):
        READS[name] = READS.get(name, 0) + 1
    if asked is not None:
        kwargs = {**kwargs, "device": "cpu"}
    found = func(*tree_map(_near, args), **tree_map(_near, kwargs))
    given = {id(one.near): one for one in leaves if isinstance(one, Far)}
    return tree_map(lambda one: _placed(one, target, given), found)


def _near(value):
    return value.near if isinstance(value, Far) else value


def _placed(value, target, given):
    if not isinstance(value, Tensor) or target.type == "cpu":
        return value
    return given[id(value)] if id(value) in given else Far(value, torch.device(target.type, target.index or 0))


def at(tensor: Tensor, place: str) -> Tensor:
    """The same tensor, on one of the devices."""
    return tensor if place == "cpu" else Far(tensor, torch.device(place))


def register() -> torch.library.Library:
    """Let torch know the kind of device; as long as what is returned lives."""
    _setup_privateuseone_for_python_backend("far")
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda func, *args, **kwargs: _called(func, args, kwargs), "PrivateUse1")
    return library


class Net(nn.Module):
    """Two parts, each on a device of its own."""

    def __init__(self, places):
        super().__init__()
        torch.manual_seed(0)
        first = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3)
        second = nn.GroupNorm(1, 16), nn.GELU(), nn.Flatten(), nn.Linear(16 * 36, 20), nn.Sigmoid(), nn.Linear(20, 5)
        self.first, self.second, self.place = nn.Sequential(*first), nn.Sequential(*second), places[1]
        for part, place in zip((self.first, self.second), places, strict=True):
            for module in part:
                for held in (module._parameters, module._buffers):
                    held.update({name: _moved(tensor, place) for name, tensor in held.items() if tensor is not None})

    def forward(self, x):
        return self.second(self.first(x).to(self.place))


def _moved(tensor, place):
    new = at(tensor.detach(), place)
    return nn.Parameter(new) if isinstance(tensor, nn.Parameter) else new


STEPS, WINDOW = 24, {"start_step": 4, "end_step": 20, "periods": 2, "saliency_batches": 2}
BASES = {"SGD": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}), "AdamW": (torch.optim.AdamW, {"lr": 2e-3})}


def job(places, kind, base):
    """Prepare, train, save and load the optimizer's state on the way, compress; the reads of each step."""
    net, dice = Net(places), torch.Generator().manual_seed(1)
    gm = fx_oto.prepare(net, at(torch.randn(2, 3, 8, 8, generator=dice), places[0]))
    optimizer_class, options = BASES[base]
    stride = {"stride": 3} if kind == "DHSPG" else {}
    optimizer = getattr(fx_oto, kind)(gm, optimizer_class, target_macs=0.5, **options, **WINDOW, **stride)
    reads = []
    for step in range(STEPS):
        x, y = torch.randn(8, 3, 8, 8, generator=dice), torch.randint(0, 5, (8,), generator=dice)
        optimizer.zero_grad()
        F.cross_entropy(net(at(x, places[0])), at(y, places[1])).backward()
        READS.clear()
        optimizer.step()
        reads.append(sum(READS.values()))
        if step % 5 == 0:
            optimizer.load_state_dict(optimizer.state_dict())
    optimizer.project(net)
    zigs, x = fx_oto.partition(gm), fx_oto.Context.of(gm).inputs.args[0]
    for family in range(len(zigs.families)):
        zigs.mask_(family, torch.tensor([1]))
    assert _near(gm(x)).isfinite().all()
    zigs.unmask_()
    small = fx_oto.compress(gm)
    assert str(optimizer)
    assert str(fx_oto.report(small))
    return net, small, reads


def main(first, second, kind, base):
    """Do the job on these devices and on the CPU, which must end with the same numbers; print the reads as JSON."""
    library = register()
    net, small, reads = job((first, second), kind, base)
    near, compact, _ = job(("cpu", "cpu"), kind, base)
    for far, one in ((net, near), (small, compact)):
        for name, tensor in one.state_dict().items():
            found = far.state_dict()[name]
            assert name.startswith("_") or str(found.device) == (second if name.startswith("second") else first), name
            assert torch.equal(_near(found), tensor), name
    del library
    return reads


if __name__ == "__main__":
    try:
        print(json.dumps(main(*sys.argv[1:])), flush=True)  # noqa: T201 - that is what the test reads
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # torch waits in vain for a device that is not there
