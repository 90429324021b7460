"""Networks of packages that nobody here wrote, see ``zoo_packages``: brain waves, speech, music, videos."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from making import Make, called_with, dense, dice_of, many, on_images
from networks import Call
from torch import nn

__all__ = ["SIGNALS"]

_EEG = {"n_chans": 22, "n_outputs": 4, "n_times": 1000, "sfreq": 250.0, "input_window_seconds": 4.0}
_EEG_NETWORKS = (
    "ATCNet AttentionBaseNet BDTCN CBraMod CTNet ContraWR Deep4Net EEGConformer EEGITNet EEGInceptionERP EEGNeX "
    "EEGNet EEGSimpleConv EEGTCNet HybridNet MEDFormer MSVTNet NeuroPose SCCNet SPARCNet SSTDPN ShallowFBCSPNet "
    "SincShallowNet SleepStagerBlanco2020 SleepStagerChambon2018 TCFormer TIDNet TSception"
)


def _of_waves(name: str) -> Make:
    def make(package: Any) -> nn.Module:
        kind = getattr(package, name)
        taken = inspect.signature(kind).parameters
        network: nn.Module = kind(**{key: value for key, value in _EEG.items() if key in taken})
        return network

    return called_with(make, partial(dense, (22, 1000)))


def _of_sound(name: str, *shape: int, **options: Any) -> Make:
    return called_with(lambda package: getattr(package, name)(**options), partial(dense, shape))


_CONVOLUTIONS = {"extractor_conv_layer_config": [(32, 10, 5), (32, 3, 2)], "extractor_conv_bias": False}
_ENCODER = {"embed_dim": 48, "projection_dropout": 0.0, "pos_conv_kernel": 9, "pos_conv_groups": 4, "num_layers": 2}
_ENCODER |= {"num_heads": 4, "attention_dropout": 0.0, "ff_interm_features": 96, "ff_interm_dropout": 0.0}
_ENCODER |= {"dropout": 0.0, "layer_norm_first": False, "layer_drop": 0.0}
_WAV2VEC = {"extractor_mode": "group_norm", "aux_num_out": 10, **_CONVOLUTIONS}
_WAV2VEC |= {f"encoder_{name}": value for name, value in _ENCODER.items()}


def _of_lengths(steps: int, width: int, batch: int, seed: int) -> Call:
    """Sequences, and how long each is: the first as long as all of them are."""
    lengths = torch.randint(steps // 2, steps, (batch,), generator=dice_of(seed))
    lengths[0] = steps
    return (torch.randn(batch, steps, width, generator=dice_of(seed)), lengths), {}


AUDIO = {
    "Conformer": called_with(
        lambda package: package.Conformer(48, 4, 96, 2, 7),
        partial(_of_lengths, 20, 48),
        length=partial(_of_lengths, 31, 48),
    ),
    "DeepSpeech": _of_sound("DeepSpeech", 1, 30, 20, n_feature=20, n_hidden=64, n_class=10),
    "HDemucs": _of_sound("HDemucs", 2, 20000, sources=["a", "b"], channels=8, depth=5),
    "Wav2Letter": _of_sound("Wav2Letter", 13, 100, num_classes=20, input_type="mfcc", num_features=13),
    "WaveRNN": called_with(
        lambda package: package.WaveRNN([2, 2, 2], 16, 8, 2, 32, 32, 3, 8, 16, 16),
        partial(many, ((1, 64), (1, 8, 10))),
    ),
    "wav2vec2": _of_sound("wav2vec2_model", 800, **_WAV2VEC),
    "wavlm": _of_sound(
        "wavlm_model",
        800,
        **{**_WAV2VEC, "extractor_mode": "layer_norm", "encoder_layer_norm_first": True},
        encoder_num_buckets=32,
        encoder_max_distance=80,
    ),
}


def _slowfast(package: Any) -> nn.Module:
    network: nn.Module = package.create_slowfast(
        model_num_class=5,
        slowfast_channel_reduction_ratio=(4,),
        stem_dim_outs=(16, 4),
        head_pool_kernel_sizes=((2, 2, 2), (8, 2, 2)),
    )
    return network


def _two_speeds(batch: int, seed: int) -> Call:
    dice = dice_of(seed)
    return ([torch.randn(batch, 3, frames, 64, 64, generator=dice) for frames in (2, 8)],), {}


_MVIT = {"spatial_size": 32, "temporal_size": 4, "depth": 4, "patch_embed_dim": 16, "num_heads": 1}
_MVIT |= {"embed_dim_mul": [[1, 2.0]], "atten_head_mul": [[1, 2.0]], "pool_q_stride_size": [[1, 1, 2, 2]]}
_MVIT |= {"pool_kv_stride_adaptive": [1, 4, 4], "pool_kvq_kernel": [3, 3, 3], "head_num_classes": 5}
_CSN = {"model_num_class": 5, "stem_dim_out": 8, "head_pool_kernel_size": (1, 2, 2)}
VIDEOS = {
    "csn": _of_sound("create_csn", 3, 8, 64, 64, **_CSN),
    "mvit": _of_sound("create_multiscale_vision_transformers", 3, 4, 32, 32, **_MVIT),
    "slowfast": called_with(_slowfast, _two_speeds),
}


def _perceptual(net: str) -> Make:
    def make(package: Any) -> nn.Module:
        network: nn.Module = package.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
        return network

    return called_with(make, partial(many, ((3, 64, 64), (3, 64, 64))))


SIGNALS: dict[str, tuple[str, dict[str, Make]]] = {
    "braindecode": ("braindecode.models", {name: _of_waves(name) for name in _EEG_NETWORKS.split()}),
    "compressai": (
        "compressai.models",
        {"FactorizedPriorReLU": on_images(lambda package: package.FactorizedPriorReLU(16, 24), 3, 64, 64)},
    ),
    "lpips": ("lpips", {net: _perceptual(net) for net in ("alex", "squeeze", "vgg")}),
    "openunmix": (
        "openunmix.model",
        {"OpenUnmix": _of_sound("OpenUnmix", 2, 65, 10, nb_bins=65, nb_channels=2, hidden_size=32, max_bin=50)},
    ),
    "pytorchvideo": ("pytorchvideo.models", VIDEOS),
    "torchaudio": ("torchaudio.models", AUDIO),
}
