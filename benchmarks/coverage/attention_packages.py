"""Networks of packages that nobody here wrote, see ``zoo_packages``: one idea about attention, images or genes each.

    pip install --no-deps aft-pytorch axial-attention block-recurrent-transformer-pytorch FLASH-pytorch gsa-pytorch \
        bottleneck-transformer-pytorch h-transformer-1d halonet-pytorch involution-pytorch lambda-networks x-clip \
        light-recurrent-unit-pytorch x-unet minGRU-pytorch nystrom-attention PaLM-pytorch reformer-pytorch \
        palm-rlhf-pytorch point-transformer-pytorch protein-bert-pytorch recurrent-memory-transformer-pytorch \
        segformer-pytorch slot-attention stam-pytorch swin-transformer-pytorch uformer-pytorch uniformer-pytorch \
        torch-einops-utils
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from making import TOKENS, Make, Told, called_with, dense, dice_of, first_of, many, named, on_images, tokens
from networks import Call
from torch import nn

__all__ = ["ATTENTIONS"]

_LM = {"num_tokens": TOKENS, "dim": 48, "depth": 2}
_HEADS = {"heads": 3, "dim_head": 16}


def _texts(make: Callable[[Any], nn.Module], *sizes: int) -> Make:
    one, *others = (partial(tokens, size) for size in sizes)
    return called_with(make, one, **({"length": others[0]} if others else {}))


def _sequences(make: Callable[[Any], nn.Module], *sizes: int, width: int = 10) -> Make:
    one, *others = (partial(dense, (size, width)) for size in sizes)
    return called_with(make, one, **({"length": others[0]} if others else {}))


def _between(layer: Callable[[Any], nn.Module], width: int = 48) -> Callable[[Any], nn.Module]:
    """A layer between two linear ones."""
    return lambda package: nn.Sequential(nn.Linear(10, width), layer(package), nn.Linear(width, 5))


def _on_maps(layer: Callable[[Any], nn.Module], width: int = 48, after: int = 48) -> Callable[[Any], nn.Module]:
    """A layer of maps between two convolutions."""
    return lambda package: nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), layer(package), nn.ReLU(), nn.Conv2d(after, 5, 1)
    )


def _firsts(make: Callable[[Any], nn.Module]) -> Callable[[Any], nn.Module]:
    return lambda package: Told(make(package), first_of)


def _clip(batch: int, seed: int) -> Call:
    return (*tokens(12, batch, seed)[0], *dense((3, 32, 32), batch, seed)[0]), {}


# Of U-nets.
_STAGES = {"dim_mults": (1, 2, 4), "num_blocks_per_stage": (1, 1, 1), "num_self_attn_per_stage": (0, 0, 1)}
_CLIP = {"dim_text": 48, "dim_image": 48, "dim_latent": 32, "num_text_tokens": TOKENS, "text_seq_len": 12}
_CLIP |= {"visual_image_size": 32, "visual_patch_size": 8, "visual_patch_dropout": 0.0, "text_enc_depth": 2}
_CLIP |= {"text_heads": 3, "text_dim_head": 16, "visual_enc_depth": 2, "visual_heads": 3, "visual_dim_head": 16}


def _protein(batch: int, seed: int) -> Call:
    dice = dice_of(seed)
    known = torch.randint(0, 2, (batch, 20), generator=dice).float()
    return (torch.randint(0, 21, (batch, 14), generator=dice), known), {}


def _points(batch: int, seed: int) -> Call:
    return many(((12, 10), (12, 3)), batch, seed)


class _Points(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.into, self.layer, self.out = nn.Linear(10, 48), layer, nn.Linear(48, 5)

    def forward(self, x, places):
        return self.out(self.layer(self.into(x), places))


_SWIN = {"layers": (2, 2, 2, 2), "heads": (1, 2, 4, 8), "num_classes": 10, "head_dim": 8, "window_size": 2}
_STAM = {"dim": 48, "image_size": 32, "patch_size": 8, "num_frames": 4, "num_classes": 10, "space_depth": 2}
_STAM |= {"space_heads": 3, "space_mlp_dim": 96, "time_depth": 2, "time_heads": 3, "time_mlp_dim": 96}
_STAM |= {"space_dim_head": 16, "time_dim_head": 16}
_BERT = {"num_tokens": 21, "num_annotation": 20, "dim": 48, "dim_global": 32, "depth": 2, "attn_heads": 3}
_RMT = {"num_memory_tokens": 4, "seq_len": 16, "num_residual_streams": 1}

ATTENTIONS: dict[str, tuple[str, dict[str, Make]]] = {
    "aft": (
        "aft_pytorch",
        {
            "AFTFull": _sequences(_between(named("AFTFull", 12, 48, 32)), 12),
            "AFTSimple": _sequences(_between(named("AFTSimple", 12, 48, 32)), 12),
        },
    ),
    "axial-attention": (
        "axial_attention",
        {
            "AxialAttention": on_images(_on_maps(named("AxialAttention", 48, dim_index=1, heads=3)), 3, 16, 16),
            "AxialImageTransformer": on_images(
                _on_maps(named("AxialImageTransformer", 48, 2, heads=3, reversible=False)), 3, 16, 16
            ),
        },
    ),
    "block-recurrent-transformer": (
        "block_recurrent_transformer_pytorch",
        {"LM": _texts(_firsts(named("BlockRecurrentTransformer", **_LM, **_HEADS, max_seq_len=16, block_width=8)), 16)},
    ),
    "bottleneck-transformer": (
        "bottleneck_transformer_pytorch",
        {
            name: on_images(
                _on_maps(
                    named("BottleStack", dim=48, fmap_size=16, dim_out=64, num_layers=2, rel_pos_emb=rel, **_HEADS),
                    after=64,
                ),
                3,
                16,
                16,
            )
            for name, rel in (("absolute", False), ("relative", True))
        },
    ),
    "flash": (
        "flash_pytorch",
        {
            "GAU": _sequences(_between(named("GAU", dim=48, query_key_dim=16)), 12, 19),
            "LM": _texts(named("FLASHTransformer", **_LM, query_key_dim=16, group_size=8, causal=True), 16, 24),
        },
    ),
    "gsa": ("gsa_pytorch", {"GSA": on_images(_on_maps(named("GSA", 48, heads=3, dim_key=8)), 3, 16, 16)}),
    "h-transformer": (
        "h_transformer_1d",
        {
            "LM": _texts(named("HTransformer1D", **_LM, **_HEADS, max_seq_len=32, block_size=4), 32),
            "LM_causal": _texts(
                named("HTransformer1D", **_LM, **_HEADS, max_seq_len=32, block_size=4, causal=True), 32
            ),
        },
    ),
    "halonet": (
        "halonet_pytorch",
        {
            "HaloAttention": on_images(
                _on_maps(named("HaloAttention", dim=48, block_size=8, halo_size=4, **_HEADS)), 3, 16, 16
            )
        },
    ),
    "involution": ("involution_pytorch", {"Inv2d": on_images(_on_maps(named("Inv2d", 48, 3, 1)), 3, 16, 16)}),
    "lambda-networks": (
        "lambda_networks",
        {
            "global": on_images(_on_maps(named("LambdaLayer", 48, dim_k=8, n=16, heads=3)), 3, 16, 16),
            "local": on_images(_on_maps(named("LambdaLayer", 48, dim_k=8, r=5, heads=3, dim_u=2)), 3, 16, 16),
        },
    ),
    "light-recurrent-unit": (
        "light_recurrent_unit_pytorch",
        {
            "LRU": _sequences(_between(_firsts(named("LightRecurrentUnit", 48, depth=2))), 12, 19),
            "Block": _sequences(
                _between(_firsts(named("LightRecurrentUnitBlock", 48, depth=2, has_ff_block=True))), 12, 19
            ),
        },
    ),
    "mingru": ("minGRU_pytorch", {"minGRU": _sequences(_between(named("minGRU", 48, expansion_factor=1.5)), 12, 19)}),
    "nystrom": (
        "nystrom_attention",
        {
            "Nystromformer": _sequences(
                _between(named("Nystromformer", dim=48, depth=2, num_landmarks=4, **_HEADS)), 12, 19
            )
        },
    ),
    "palm-rlhf": ("palm_rlhf_pytorch", {"PaLM": _texts(named("PaLM", **_LM, **_HEADS), 12, 19)}),
    "palm": ("palm_pytorch", {"PaLM": _texts(named("PaLM", **_LM, **_HEADS), 12, 19)}),
    "point-transformer": (
        "point_transformer_pytorch",
        {
            "all": called_with(
                lambda package: _Points(package.PointTransformerLayer(dim=48, pos_mlp_hidden_dim=16)), _points
            ),
            "nearest": called_with(
                lambda package: _Points(package.PointTransformerLayer(dim=48, pos_mlp_hidden_dim=16, num_neighbors=4)),
                _points,
            ),
            "heads": called_with(
                lambda package: _Points(
                    package.MultiheadPointTransformerLayer(dim=48, pos_mlp_hidden_dim=16, **_HEADS)
                ),
                _points,
            ),
        },
    ),
    "protein-bert": (
        "protein_bert_pytorch",
        {"ProteinBERT": called_with(named("ProteinBERT", **_BERT, attn_dim_head=16), _protein)},
    ),
    "recurrent-memory-transformer": (
        "recurrent_memory_transformer_pytorch",
        {
            "RMT": _texts(
                _firsts(named("RecurrentMemoryTransformer", 48, num_tokens=TOKENS, depth=2, **_HEADS, **_RMT)), 16
            )
        },
    ),
    "reformer": (
        "reformer_pytorch",
        {
            "LM": _texts(named("ReformerLM", TOKENS, 48, 2, 32, heads=3, dim_head=16, bucket_size=4, causal=True), 16),
        },
    ),
    "segformer": (
        "segformer_pytorch",
        {
            "Segformer": on_images(
                named("Segformer", dims=(16, 32, 48, 64), heads=(1, 2, 3, 4), num_layers=1, decoder_dim=32), 3, 64, 64
            )
        },
    ),
    "slot-attention": (
        "slot_attention",
        {
            "SlotAttention": _sequences(_between(named("SlotAttention", 4, 48, hidden_dim=64)), 12, 19),
            "MultiHead": _sequences(_between(named("MultiHeadSlotAttention", 4, 48, hidden_dim=64, **_HEADS)), 12, 19),
        },
    ),
    "stam": ("stam_pytorch", {"STAM": called_with(named("STAM", **_STAM), partial(dense, (4, 3, 32, 32)))}),
    "swin": (
        "swin_transformer_pytorch",
        {"Swin": on_images(named("SwinTransformer", hidden_dim=16, **_SWIN), 3, 64, 64)},
    ),
    "uformer": (
        "uformer_pytorch",
        {
            "Uformer": on_images(
                named("Uformer", dim=16, stages=2, num_blocks=1, window_size=8, heads=2, dim_head=8), 3, 32, 32
            )
        },
    ),
    "uniformer": (
        "uniformer_pytorch",
        {
            "Uniformer": called_with(
                named("Uniformer", num_classes=5, dims=(16, 32, 48, 64), depths=(1, 1, 1, 1), dim_head=16),
                partial(dense, (3, 8, 32, 32)),
            )
        },
    ),
    "x-clip": ("x_clip", {"CLIP": called_with(named("CLIP", **_CLIP), _clip)}),
    "x-unet": (
        "x_unet",
        {
            "XUnet": on_images(
                named("XUnet", 16, **_STAGES, nested_unet_depths=(2, 1, 0), nested_unet_dim=8),
                3,
                32,
                32,
            ),
            "XUnet_next": on_images(
                named("XUnet", 16, **_STAGES, nested_unet_depths=(0, 0, 0), use_convnext=True, weight_standardize=True),
                3,
                32,
                32,
            ),
        },
    ),
}
