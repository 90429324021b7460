"""Networks of packages that nobody here wrote, see ``zoo_packages``: sound, languages, other sequences.

    pip install --no-deps openai-whisper vocos denoiser encodec demucs audio-diffusion-pytorch a-unet speechbrain \
        fair-esm litgpt iTransformer gateloop-transformer rotary-embedding-torch hyper-connections \
        linear-attention-transformer local-attention mambapy mega-pytorch ncps pytorch-tcn routing-transformer \
        mixture-of-experts s5-pytorch sinkhorn-transformer axial-positional-embedding soft-moe-pytorch torchscale xlstm
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from making import TOKENS, Make, Told, called_with, dense, dice_of, first_of, named, tokens
from networks import Call
from torch import nn

__all__ = ["SEQUENCES"]


def _between(layer: Callable[[Any], nn.Module], width: int = 24) -> Callable[[Any], nn.Module]:
    """A layer between two linear ones."""
    return lambda package: nn.Sequential(nn.Linear(10, width), layer(package), nn.Linear(width, 5))


def _lengths(make: Callable[[Any], nn.Module], *sizes: int, width: int = 10) -> Make:
    """Of sequences of numbers, and of another length, if there are two."""
    one, *others = (partial(dense, (size, width)) for size in sizes)
    return called_with(make, one, **({"length": others[0]} if others else {}))


def _texts(make: Callable[[Any], nn.Module], *sizes: int) -> Make:
    one, *others = (partial(tokens, size) for size in sizes)
    return called_with(make, one, **({"length": others[0]} if others else {}))


# --- sound ------------------------------------------------------------------------------------------------------------


def _whisper(package: Any) -> nn.Module:
    network: nn.Module = package.Whisper(package.ModelDimensions(20, 25, 48, 3, 2, TOKENS, 32, 48, 3, 2))
    return network


def _spoken(length: int, batch: int, seed: int) -> Call:
    return (torch.randn(batch, 20, 50, generator=dice_of(seed)), *tokens(length, batch, seed)[0]), {}


def _vocos(backbone: str, *sizes: int, padding: str) -> Make:
    def make(package: Any) -> nn.Module:
        models, heads = (import_module(f"vocos.{name}") for name in ("models", "heads"))
        return nn.Sequential(getattr(models, backbone)(20, 48, *sizes), heads.ISTFTHead(48, 64, 16, padding=padding))

    return called_with(make, partial(dense, (20, 30)), length=partial(dense, (20, 41)))


def _seanet(package: Any) -> nn.Module:
    sizes = {"dimension": 16, "n_filters": 4, "ratios": [4, 2]}
    return nn.Sequential(package.SEANetEncoder(**sizes), package.SEANetDecoder(**sizes))


def _unet_of_sound(package: Any) -> nn.Module:
    sizes = {"channels": [8, 16, 32], "factors": [1, 2, 2], "items": [1, 1, 1], "attentions": [0, 0, 1]}
    heads = {"attention_heads": 2, "attention_features": 8}
    net = package.UNetV0(dim=1, in_channels=2, **sizes, **heads, modulation_features=16)
    return Told(net, lambda net, x, time: net(x, time=time))


def _sound_and_time(batch: int, seed: int) -> Call:
    return (torch.randn(batch, 2, 64, generator=dice_of(seed)), torch.rand(batch, generator=dice_of(seed))), {}


_CONTEXT = {"out_channels": 16, "conv_channels": [16, 24], "kernel_size": 3, "strides": [1, 2], "num_blocks": 2}
_CONTEXT |= {"num_layers": 2, "inner_dim": 8}
_ECAPA = {"lin_neurons": 16, "channels": [24, 24, 24, 24, 48], "attention_channels": 12, "res2net_scale": 4}
_ECAPA |= {"se_channels": 12}
_SOUND: dict[str, tuple[str, dict[str, Make]]] = {
    "audio-diffusion": ("audio_diffusion_pytorch", {"UNetV0": called_with(_unet_of_sound, _sound_and_time)}),
    "demucs": (
        "demucs.demucs",
        {
            "Demucs": called_with(
                named("Demucs", ["a", "b"], channels=8, depth=3, resample=False, dconv_lstm=2, dconv_attn=2),
                partial(dense, (2, 3000)),
            )
        },
    ),
    "denoiser": (
        "denoiser.demucs",
        {
            "Demucs": called_with(
                named("Demucs", hidden=8, depth=3, resample=2, max_hidden=32),
                partial(dense, (1, 800)),
                length=partial(dense, (1, 1000)),
            )
        },
    ),
    "encodec": (
        "encodec.modules",
        {"SEANet": called_with(_seanet, partial(dense, (1, 400)), length=partial(dense, (1, 560)))},
    ),
    "openai-whisper": (
        "whisper.model",
        {"Whisper": called_with(_whisper, partial(_spoken, 12), length=partial(_spoken, 17))},
    ),
    "speechbrain": (
        "speechbrain.lobes.models",
        {
            "ContextNet": _lengths(named("ContextNet:ContextNet", (None, 40, 20), **_CONTEXT), 40, width=20),
            "ECAPA_TDNN": _lengths(named("ECAPA_TDNN:ECAPA_TDNN", 20, **_ECAPA), 40, width=20),
        },
    ),
    "vocos": (
        "vocos",
        {
            "VocosBackbone": _vocos("VocosBackbone", 96, 2, padding="same"),
            "VocosResNetBackbone": _vocos("VocosResNetBackbone", 2, padding="center"),
        },
    ),
}

# --- languages, and other sequences -----------------------------------------------------------------------------------


def _gpt(**options: Any) -> Make:
    sizes = {"block_size": 32, "n_layer": 2, "n_embd": 48, "vocab_size": TOKENS, "padding_multiple": 8, "n_head": 3}
    return _texts(lambda package: package.GPT(package.Config(**sizes, **options)), 12, 19)


_RMS = {"norm_class_name": "RMSNorm", "intermediate_size": 64, "parallel_residual": False, "bias": False}
_GEMMA = {"mlp_class_name": "GemmaMLP", "sliding_window_size": 6, "sliding_window_indices": [1, 0], "norm_qk": True}
_GEMMA |= {"attention_logit_softcapping": 20.0, "post_attention_norm": True, "post_mlp_norm": True}
LITGPT = {
    "gemma": _gpt(**_RMS, **_GEMMA),
    "llama": _gpt(**_RMS, mlp_class_name="LLaMAMLP", n_query_groups=1, rotary_percentage=1.0),
    "moe": _gpt(**_RMS, mlp_class_name="LLaMAMoE", n_expert=4, n_expert_per_token=2),
    "neox": _gpt(),
}


def _xlstm(package: Any) -> nn.Module:
    convolved = {"num_heads": 2, "conv1d_kernel_size": 4}
    matrix = package.mLSTMBlockConfig(mlstm=package.mLSTMLayerConfig(**convolved))
    scalar = package.sLSTMBlockConfig(
        slstm=package.sLSTMLayerConfig(**convolved, backend="vanilla", bias_init="powerlaw_blockdependent"),
        feedforward=package.FeedForwardConfig(proj_factor=1.3, act_fn="gelu"),
    )
    sizes = {"context_length": 16, "num_blocks": 2, "embedding_dim": 32, "slstm_at": [1]}
    network: nn.Module = package.xLSTMBlockStack(
        package.xLSTMBlockStackConfig(mlstm_block=matrix, slstm_block=scalar, **sizes)
    )
    return network


def _mamba(**options: Any) -> Callable[[Any], nn.Module]:
    return _between(lambda package: package.Mamba(package.MambaConfig(24, 2, d_state=4, **options)))


def _of_torchscale(kind: str, module: str, config: str, part: Any, **options: Any) -> Callable[[Any], nn.Module]:
    def make(package: Any) -> nn.Module:
        made = getattr(import_module(f"torchscale.architecture.{module}"), kind)
        configured = getattr(import_module("torchscale.architecture.config"), config)(vocab_size=TOKENS, **options)
        return Told(made(configured, embed_tokens=nn.Embedding(TOKENS, 48)), lambda net, x: net(x)[part])

    return make


def _residues(length: int, batch: int, seed: int) -> Call:
    return (torch.randint(4, 24, (batch, length), generator=dice_of(seed)),), {}


_RETNET = {"decoder_embed_dim": 48, "decoder_value_embed_dim": 96, "decoder_retention_heads": 3, "decoder_layers": 2}
_ENCODER = {"encoder_embed_dim": 48, "encoder_attention_heads": 3, "encoder_ffn_embed_dim": 96, "encoder_layers": 2}
_VARIATES = {"num_variates": 7, "lookback_len": 24, "depth": 1, "dim": 48, "heads": 3, "dim_head": 16}
_VARIATES |= {"pred_length": 6, "use_reversible_instance_norm": True}
_MEGA = {"ema_heads": 4, "attn_dim_qk": 16, "attn_dim_value": 48, "laplacian_attn_fn": True}
_SEQUENCES: dict[str, tuple[str, dict[str, Make]]] = {
    "esm": (
        "esm",
        {"ESM2": called_with(named("ESM2", 2, 48, 3), partial(_residues, 14), length=partial(_residues, 19))},
    ),
    "itransformer": (
        "iTransformer",
        {
            "iTransformer": _lengths(named("iTransformer", flash_attn=False, **_VARIATES), 24, width=7),
            "iTransformer2D": _lengths(named("iTransformer2D", num_time_tokens=4, **_VARIATES), 24, width=7),
        },
    ),
    "linear-attention": (
        "linear_attention_transformer",
        {
            "LM": _texts(named("LinearAttentionTransformerLM", TOKENS, 48, 2, 32, heads=4, dim_head=12), 32),
            "LM_causal": _texts(
                named(
                    "LinearAttentionTransformerLM",
                    *(TOKENS, 48, 2, 32),
                    heads=4,
                    dim_head=12,
                    causal=True,
                    n_local_attn_heads=2,
                    local_attn_window_size=8,
                    shift_tokens=True,
                ),
                32,
            ),
        },
    ),
    "litgpt": ("litgpt", LITGPT),
    "local-attention": (
        "local_attention",
        {
            "LocalTransformer": _texts(
                named(
                    "LocalTransformer",
                    num_tokens=TOKENS,
                    max_seq_len=32,
                    dim=48,
                    depth=2,
                    heads=3,
                    dim_head=16,
                    local_attn_window_size=8,
                ),
                *(16, 24),
            )
        },
    ),
    "mambapy": (
        "mambapy.mamba",
        {"Mamba": _lengths(_mamba(pscan=False), 12, 17), "Mamba_pscan": _lengths(_mamba(), 16, 17)},
    ),
    "mega": ("mega_pytorch", {"Mega": _texts(named("Mega", dim=32, num_tokens=TOKENS, depth=2, **_MEGA), 12, 19)}),
    "ncps": (
        "ncps.torch",
        {
            "CfC": _lengths(lambda package: Told(package.CfC(10, 20, proj_size=3), first_of), 8, 11),
            "CfC_wired": _lengths(
                lambda package: Told(package.CfC(10, import_module("ncps.wirings").AutoNCP(20, 4)), first_of), 8
            ),
        },
    ),
    "pytorch-tcn": (
        "pytorch_tcn",
        {
            "TCN": _lengths(
                lambda package: Told(
                    package.TCN(10, [16, 24], kernel_size=3, use_skip_connections=True, output_projection=4),
                    lambda net, x: net(x.mT),
                ),
                *(40, 51),
            ),
            "TCN_gated": _lengths(
                lambda package: Told(
                    package.TCN(10, [16, 24], kernel_size=3, use_norm="layer_norm", use_gate=True, causal=False),
                    lambda net, x: net(x.mT),
                ),
                *(40, 51),
            ),
        },
    ),
    "routing-transformer": (
        "routing_transformer",
        {
            "LM": _texts(
                lambda package: Told(
                    package.RoutingTransformerLM(
                        *(TOKENS, 48, 2, 32), heads=4, dim_head=12, window_size=8, n_local_attn_heads=4
                    ),
                    first_of,
                ),
                32,
            )
        },
    ),
    "s5": ("s5", {"S5Block": _lengths(_between(lambda package: package.S5Block(24, 16, False)), 12, 17)}),
    "sinkhorn-transformer": (
        "sinkhorn_transformer",
        {
            "LM": _texts(named("SinkhornTransformerLM", TOKENS, 48, 32, 2, heads=4, bucket_size=8), 32),
            "LM_causal": _texts(
                named("SinkhornTransformerLM", TOKENS, 48, 32, 2, heads=4, bucket_size=8, causal=True), 32
            ),
        },
    ),
    "soft-moe": (
        "soft_moe_pytorch",
        {"SoftMoE": _lengths(_between(lambda package: package.SoftMoE(24, seq_len=16, num_experts=4)), 16)},
    ),
    "torchscale": (
        "torchscale",
        {
            "Encoder": _texts(
                _of_torchscale("Encoder", "encoder", "EncoderConfig", "encoder_out", no_output_layer=True, **_ENCODER),
                12,
            ),
            "RetNet": _texts(
                _of_torchscale("RetNetDecoder", "retnet", "RetNetConfig", 0, decoder_ffn_embed_dim=96, **_RETNET),
                *(12, 17),
            ),
        },
    ),
    "xlstm": ("xlstm", {"xLSTMBlockStack": _lengths(_between(_xlstm, 32), 16)}),
}
SEQUENCES = _SOUND | _SEQUENCES
