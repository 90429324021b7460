"""Peak memory of ``compress``, as a multiple of the full and the compact model together.

    pytest benchmarks/test_memory.py -s

Measured in a fresh process: the highest resident size during ``compress`` less that before the model was built.
"""

from __future__ import annotations

import subprocess
import sys

CODE = """
import resource, sys
sys.path[:0] = ["tests"]
import torch, fx_oto
from support.vision import build

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def size(model):
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))

warm = fx_oto.prepare(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)), torch.randn(2, 4))
fx_oto.partition(warm).zero_(0.5)
fx_oto.compress(warm)
empty = resident()
gm = fx_oto.prepare(build(sys.argv[1]).eval(), torch.randn(1, 3, 64, 64))
fx_oto.partition(gm).zero_(0.5)
open("/proc/self/clear_refs", "w").write("5")  # forget the peak of what came before
small = fx_oto.compress(gm)
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
both = size(gm) + size(small)
print(f"{sys.argv[1]}: full {size(gm) / 2**20:.0f} MiB, compact {size(small) / 2**20:.0f} MiB, "
      f"peak of compress {(peak - empty) / 2**20:.0f} MiB = {(peak - empty) / both:.2f} x both")
"""


def test_peak_of_compress(capsys):
    for name in ("vgg16", "wide_resnet50_2", "convnext_large"):
        run = subprocess.run([sys.executable, "-c", CODE, name], capture_output=True, text=True, check=True)
        with capsys.disabled():
            print("\n" + run.stdout.strip())
