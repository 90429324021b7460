"""The texts of ``--help``."""

from __future__ import annotations

__all__ = [
    "COMPRESS",
    "COMPRESS_EXAMPLES",
    "DEMO",
    "DEMO_EXAMPLES",
    "EXAMPLES",
    "FX_OTO",
    "INSPECT",
    "INSPECT_EXAMPLES",
    "TARGETS",
]

FX_OTO = "Train a PyTorch model once and get a smaller, faster model with the same outputs."
INSPECT = "what of a model can be pruned, why the rest cannot, and what it costs"
COMPRESS = "train a model with a group-sparse optimizer, cut what became zero, and write the compact model"
DEMO = "train a small residual network once on real images, compress it and compare"

TARGETS = {
    "group-sparsity": "fraction of the zero-invariant groups to remove",
    "params": "fraction of the parameters to be left",
    "macs": "fraction of the multiply-adds to be left",
    "latency": "fraction of the latency to be left",
}

EXAMPLES = """examples:
  python -m fx_oto demo --baseline
  python -m fx_oto inspect torchvision.models:squeezenet1_1 --input 1,3,224,224
  python -m fx_oto compress torchvision.models:squeezenet1_1 --input 1,3,224,224 --dry-run 0.5
  python -m fx_oto inspect --help
"""

INSPECT_EXAMPLES = """examples:
  python -m fx_oto inspect torchvision.models:squeezenet1_1 --input 1,3,224,224
  python -m fx_oto inspect torchvision.models:squeezenet1_1 --input 1,3,224,224 --only 'features.12.*' --draw parts.svg
  python -m fx_oto inspect timm:create_model --kwargs model_name=vit_tiny_patch16_224 --input 1,3,224,224 --frozen
  python -m fx_oto inspect net.py:Net --kwargs width=16 --input 1,3,32,32 --unprunable stem
  python -m fx_oto inspect net.py:encoder --input input_ids=1,16:int64:0-100 --input mask=1,16:bool --json
  python -m fx_oto inspect net.py:Net --inputs net.py:example
"""

_FILES = """A .pt2 file holds the whole compact model in eval mode, as torch.export saves it: it runs without fx_oto and
without your code, on any batch size where that could be exported (else on that of the example inputs; it
says which), and cannot be trained further:
    model = torch.export.load("small.pt2").module()
What cannot be exported is written as tensors, into small-tensors.pt.
A .pt or .safetensors file holds the compact model's state_dict, tensors by name and nothing else: load it into
a model that you build with these widths."""

COMPRESS_EXAMPLES = f"""What the compact model would cost, before any training:
  python -m fx_oto compress torchvision.models:squeezenet1_1 --input 1,3,64,64 --dry-run 0.5

Train, cut and write:
  python -m fx_oto compress net.py:Net --input 2,3,32,32 --train net.py:train --total-steps 40 \\
      --lr 0.1 --set momentum=0.9 weight_decay=5e-4 --target-macs 0.4 --output small.pt2
  python -m fx_oto compress net.py:Net --input 2,3,32,32 --train net.py:train --total-steps 40 \\
      --optimizer AdamW --lr 1e-3 --target-group-sparsity 0.5 --state-dict full.pt --output small.pt

Cut what a training of your own with fx_oto.DHSPG made zero, or one by --train after which the rest failed (the error
names its file):
  python -m fx_oto compress net.py:Net --input 2,3,32,32 --state-dict sparse.pt --output small.pt2

{_FILES}
"""

DEMO_EXAMPLES = """examples:
  python -m fx_oto demo
  python -m fx_oto demo --baseline
  python -m fx_oto demo --draw pictures
  python -m fx_oto demo --data fashion-mnist --root data/fashion_mnist --width 16
"""
