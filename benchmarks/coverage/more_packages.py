"""More networks of packages that nobody here wrote, see ``zoo_packages``: detectors, sound, series, diffusion."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from making import TOKENS, Make, called_with, dense, dice_of, many, of_class, on_images, tokens
from networks import Call
from torch import Tensor, nn

__all__ = ["MORE"]


def _yolo(kind: str, configuration: str) -> Make:
    return on_images(lambda package: getattr(package, kind)(f"{configuration}.yaml", nc=4, verbose=False), 3, 64, 64)


_VERSIONS = ("yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n")
ULTRALYTICS = {name: _yolo("DetectionModel", name) for name in _VERSIONS} | {
    "yolov8n_cls": _yolo("ClassificationModel", "yolov8n-cls"),
    "yolov8n_seg": _yolo("SegmentationModel", "yolov8n-seg"),
}

_LATENTS = {"depth": 2, "num_latents": 8, "latent_dim": 32, "cross_heads": 1, "latent_heads": 2}
_LATENTS |= {"cross_dim_head": 16, "latent_dim_head": 16}


def _queried(batch: int, seed: int) -> Call:
    return dense((20, 16), batch, seed)[0], {"queries": torch.randn(6, 24, generator=dice_of(1))}


PERCEIVER = {
    "Perceiver": of_class(
        ":Perceiver",
        *(16, 16, 3),
        input_channels=3,
        input_axis=2,
        num_freq_bands=4,
        max_freq=10.0,
        num_classes=10,
        **_LATENTS,
    ),
    "PerceiverIO": called_with(
        lambda package: package.PerceiverIO(dim=16, queries_dim=24, logits_dim=10, **_LATENTS), _queried
    ),
}


def _performer(**options: Any) -> Make:
    sizes = {"num_tokens": TOKENS, "max_seq_len": 32, "dim": 48, "depth": 2, "heads": 3, "dim_head": 16}
    return called_with(lambda package: package.PerformerLM(**sizes, **options), partial(tokens, 16))


def _conformer(package: Any) -> nn.Module:
    block = package.ConformerBlock(dim=48, dim_head=16, heads=3, ff_mult=2, conv_expansion_factor=2, conv_kernel_size=7)
    return nn.Sequential(nn.Linear(10, 48), block, nn.Linear(48, 5))


_SMALL = {"dim": 16, "dim_mults": (1, 2), "attn_dim_head": 8, "attn_heads": 2}


def _diffusion(kind: str, *shape: int, **options: Any) -> Make:
    return called_with(lambda package: getattr(package, kind)(**options), partial(many, (shape, 100)))


DIFFUSION = {
    "KarrasUnet": _diffusion(
        "KarrasUnet",
        *(4, 16, 16),
        image_size=16,
        dim=16,
        dim_max=32,
        num_downsamples=1,
        num_blocks_per_stage=1,
        attn_res=(8,),
        attn_dim_head=8,
        fourier_dim=8,
    ),
    "Unet": _diffusion("Unet", 3, 32, 32, flash_attn=False, **_SMALL),
    "Unet1D": _diffusion("Unet1D", 3, 32, channels=3, **_SMALL),
    "Unet_learned_times": _diffusion(
        "Unet", 3, 32, 32, learned_sinusoidal_cond=True, full_attn=(False, True), **_SMALL
    ),
}


class Quantized(nn.Module):
    """An autoencoder whose code is looked up in a book."""

    def __init__(self, book: nn.Module, width: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1), nn.GELU(), nn.Conv2d(24, width, 3, 2, 1))
        self.book = book
        self.decode = nn.Sequential(
            nn.ConvTranspose2d(width, 24, 4, 2, 1), nn.GELU(), nn.ConvTranspose2d(24, 3, 4, 2, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.decode(self.book(self.encode(x))[0])
        return out


def _quantized(book: Callable[[Any], nn.Module], width: int) -> Make:
    return on_images(lambda package: Quantized(book(package), width), 3, 16, 16)


QUANTIZED = {
    "FSQ": _quantized(lambda package: package.FSQ([8, 5, 5, 5]), 4),
    "LFQ": _quantized(lambda package: package.LFQ(codebook_size=16, dim=4), 4),
    "SimVQ": _quantized(lambda package: package.SimVQ(dim=16, codebook_size=32, channel_first=True), 16),
    "VectorQuantize": _quantized(
        lambda package: package.VectorQuantize(dim=16, codebook_size=32, accept_image_fmap=True), 16
    ),
}

_MIXER = {"image_size": 32, "patch_size": 8, "dim": 48, "depth": 2, "num_classes": 10}
GMLP = {
    "attentive": called_with(
        lambda package: package.gMLP(num_tokens=TOKENS, dim=48, depth=2, seq_len=16, heads=2, attn_dim=16),
        partial(tokens, 16),
    ),
    "causal": called_with(
        lambda package: package.gMLP(num_tokens=TOKENS, dim=48, depth=2, seq_len=16, causal=True), partial(tokens, 16)
    ),
    "vision": of_class(":gMLPVision", 3, 32, 32, **_MIXER),
}


def _masking(module: str, **options: Any) -> Make:
    """A network that separates two sources, which are both in its features."""
    return called_with(of_path(module, in_chan=16, n_src=2, **options), partial(dense, (16, 40)))


def of_path(path: str, **options: Any) -> Callable[[Any], nn.Module]:
    """What makes ``"module:name"`` of a package."""
    module, _, kind = path.partition(":")

    def make(package: Any) -> nn.Module:
        network: nn.Module = getattr(import_module(f"{package.__name__}.{module}"), kind)(**options)
        return network

    return make


_BLOCKS = {"n_blocks": 2, "n_repeats": 1, "bn_chan": 12, "hid_chan": 24, "skip_chan": 12}
ASTEROID = {
    "DPRNN": _masking("recurrent:DPRNN", bn_chan=12, hid_size=10, chunk_size=8, n_repeats=1),
    "DPTransformer": _masking("attention:DPTransformer", n_heads=2, ff_hid=12, chunk_size=8, n_repeats=1),
    "LSTMMasker": _masking("recurrent:LSTMMasker", hid_size=12, n_layers=1),
    "SuDORMRF": _masking("convolutional:SuDORMRF", bn_chan=12, num_blocks=2, upsampling_depth=2),
    "SuDORMRFImproved": _masking("convolutional:SuDORMRFImproved", bn_chan=12, num_blocks=2, upsampling_depth=2),
    "TDConvNet": _masking("convolutional:TDConvNet", **_BLOCKS),
    "TDConvNetpp": _masking("convolutional:TDConvNetpp", **{**_BLOCKS, "n_repeats": 2}),
}


def _series(path: str, *sizes: Any, **options: Any) -> Make:
    """A classifier of series of three variables, 40 steps long."""
    module, _, kind = path.partition(":")
    make = lambda package: getattr(import_module(f"{package.__name__}.{module}"), kind)(*(sizes or (3, 5)), **options)  # noqa: E731
    return called_with(make, partial(dense, (3, 40)))


TSAI = {
    "InceptionTime": _series("InceptionTime:InceptionTime", nf=8),
    "LSTM_FCN": _series("RNN_FCN:LSTM_FCN", 3, 5, 40),
    "OmniScaleCNN": _series("OmniScaleCNN:OmniScaleCNN", 3, 5, 40),
    "PatchTST": _series("PatchTST:PatchTST", 3, 3, 40, 10, d_model=24, n_heads=3, d_ff=32, patch_len=8, stride=4),
    "ResCNN": _series("ResCNN:ResCNN"),
    "ResNet": _series("ResNet:ResNet"),
    "TCN": _series("TCN:TCN"),
    "TST": _series("TST:TST", 3, 5, 40, d_model=24, n_heads=3, d_ff=32, n_layers=2),
    "XCM": _series("XCM:XCM", 3, 5, 40, nf=16),
    "XceptionTime": _series("XceptionTime:XceptionTime", nf=8),
    "gMLP": _series("gMLP:gMLP", 3, 5, 40, d_model=24, d_ffn=48, depth=2),
    "xresnet1d18": _series("XResNet1d:xresnet1d18"),
}


def _pretrained(name: str, side: int = 224) -> Make:
    return on_images(lambda package: getattr(package, name)(num_classes=10, pretrained=None), 3, side, side)


MORE: dict[str, tuple[str, dict[str, Make]]] = {
    "asteroid": ("asteroid.masknn", ASTEROID),
    "conformer": (
        "conformer",
        {"block": called_with(_conformer, partial(dense, (20, 10)), length=partial(dense, (27, 10)))},
    ),
    "denoising-diffusion": ("denoising_diffusion_pytorch", DIFFUSION),
    "facenet": (
        "facenet_pytorch.models",
        {
            "InceptionResnetV1": of_class("inception_resnet_v1:InceptionResnetV1", 3, 96, 96, device="cpu"),
            "ONet": of_class("mtcnn:ONet", 3, 48, 48, pretrained=False),
            "PNet": of_class("mtcnn:PNet", 3, 32, 32, pretrained=False),
        },
    ),
    "g-mlp": ("g_mlp_pytorch", GMLP),
    "mlp-mixer": (
        "mlp_mixer_pytorch",
        {
            "MLPMixer": on_images(lambda package: package.MLPMixer(channels=3, **_MIXER), 3, 32, 32),
            "Permutator": of_class(":Permutator", 3, 32, 32, segments=4, **_MIXER),
        },
    ),
    "perceiver": ("perceiver_pytorch", PERCEIVER),
    "performer": (
        "performer_pytorch",
        {"causal": _performer(causal=True, generalized_attention=True), "plain": _performer()},
    ),
    "pretrainedmodels": (
        "pretrainedmodels",
        {name: _pretrained(name) for name in ("bninception", "dpn68", "nasnetamobile", "se_resnext50_32x4d")}
        | {"xception": _pretrained("xception", 96)},
    ),
    "resnest": (
        "resnest.torch",
        {
            "resnest50": on_images(lambda package: package.resnest50_fast_1s1x64d(), 3, 64, 64),
            "resnest50_2s2x40d": on_images(lambda package: package.resnest50_fast_2s2x40d(), 3, 64, 64),
        },
    ),
    "tsai": ("tsai.models", TSAI),
    "ultralytics": ("ultralytics.nn.tasks", ULTRALYTICS),
    "vector-quantize": ("vector_quantize_pytorch", QUANTIZED),
}
