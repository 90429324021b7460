"""Threads take turns where a setting of the whole process is changed for a while."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch
from torch import nn

import fx_oto


def switches():
    fused = torch.backends.cuda
    return torch.backends.mha.get_fastpath_enabled(), fused.flash_sdp_enabled(), fused.mem_efficient_sdp_enabled()


def test_threads_leave_the_settings_of_torch_as_they_were():
    nets = [nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2)) for width in (8, 12, 16, 20)]
    together, before = Barrier(4), switches()

    def work(net):
        together.wait()
        return [fx_oto.cost(net, torch.zeros(2, 4)).macs for _ in range(20)]

    with ThreadPoolExecutor(4) as pool:
        assert [found[-1] for found in pool.map(work, nets)] == [96, 144, 192, 240]
    assert switches() == before
