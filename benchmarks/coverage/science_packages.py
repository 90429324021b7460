"""Networks of packages that nobody here wrote, see ``zoo_packages``: physics, chemistry, genes, series, clicks, texts.

    pip install --no-deps neuraloperator tensorly tensorly-torch deepxde scikit-optimize torchani pointnet gluonts \
        torch-rechub nbeats-pytorch d3rlpy python-doctr easyocr bigvgan timm-3d segmentation-models-pytorch-3d \
        video-diffusion-pytorch RIN-pytorch enformer-pytorch basenji2-pytorch retinaface-pytorch
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from making import Make, Told, called_with, dense, dice_of, first_of, many, named, on_images
from networks import Call
from torch import nn

__all__ = ["SCIENCES"]

_FNO = {"in_channels": 2, "out_channels": 1, "hidden_channels": 16, "positional_embedding": None}
_UNO = {"n_layers": 3, "uno_out_channels": [16, 24, 16], "uno_n_modes": [[6, 6]] * 3, "lifting_channels": 24}
_UNO |= {"uno_scalings": [[1.0, 1.0], [0.5, 0.5], [2.0, 2.0]], "projection_channels": 24, "channel_mlp_skip": "linear"}
OPERATORS = {
    "FNO": on_images(named("FNO", (6, 6), **_FNO, n_layers=2), 2, 16, 16),
    "FNO_1d": called_with(named("FNO", (6,), **_FNO, n_layers=2, norm="instance_norm"), partial(dense, (2, 24))),
    "TFNO": on_images(named("TFNO", (6, 6), **_FNO, n_layers=2, factorization="tucker", rank=0.3), 2, 16, 16),
    "UNO": on_images(named("UNO", **_FNO, **_UNO), 2, 16, 16),
}


def _of_functions(kind: str, *sizes: list[int]) -> Make:
    """A function by its values at 10 places, and 7 places at which another one is wanted."""
    made = named(f"nn.pytorch:{kind}", *sizes, "relu", "Glorot normal")
    return called_with(
        lambda package: Told(made(package), lambda net, f, x: net((f, x))),
        lambda batch, seed: ((*dense((10,), batch, seed)[0], torch.rand(7, 2, generator=dice_of(seed))), {}),
    )


def _molecules(batch: int, seed: int) -> Call:
    """Five atoms each: how they are numbered, and where they are."""
    dice = dice_of(seed)
    kinds = torch.tensor([1, 6, 7, 8])[torch.randint(0, 4, (batch, 5), generator=dice)]
    return (kinds, torch.randn(batch, 5, 3, generator=dice) * 2), {}


def _energies(package: Any) -> nn.Module:
    network = package.arch.simple_ani(("H", "C", "N", "O"), "wb97x-631gd", repulsion=False, sections=2, radial_shifts=4)
    return Told(network, lambda net, kinds, places: net((kinds, places)).energies)


def _series(module: str, kind: str, *others: int, observed: bool = True, **options: Any) -> Make:
    def call(net: nn.Module, past: torch.Tensor) -> Any:
        parameters, place, scale = net(past, torch.ones_like(past)) if observed else net(past)
        return (*parameters, place, scale)

    made = named(f"torch.model.{module}.module:{kind}", prediction_length=6, context_length=24, **options)
    return called_with(lambda package: Told(made(package), call), partial(dense, (24, *others)))


_TST = {"d_model": 24, "nhead": 2, "dim_feedforward": 48, "dropout": 0.0, "activation": "relu", "norm_first": False}
_TST |= {"num_encoder_layers": 2, "scaling": "mean"}
GLUONTS = {
    "DLinear": _series("d_linear", "DLinearModel", hidden_dimension=16),
    "ITransformer": _series("i_transformer", "ITransformerModel", 3, **_TST),
    "PatchTST": _series(
        "patch_tst", "PatchTSTModel", **_TST, patch_len=8, stride=4, padding_patch="end", num_feat_dynamic_real=0
    ),
    "SimpleFeedForward": _series(
        "simple_feedforward", "SimpleFeedForwardModel", observed=False, hidden_dimensions=[24, 16]
    ),
}

_FIELDS = ("user", "item", "place", "time")
_MLP = {"dims": [32, 16], "dropout": 0.0, "activation": "relu"}


class _Clicks(nn.Module):
    """What such a network takes is a dictionary of columns."""

    def __init__(self, net: nn.Module, names: tuple[str, ...] = _FIELDS) -> None:
        super().__init__()
        self.net, self.names = net, names

    def forward(self, columns):
        return self.net({name: columns[:, place] for place, name in enumerate(self.names)})


def _clicks(kind: str, *options: str, **sizes: Any) -> Make:
    def make(package: Any) -> nn.Module:
        of = import_module("torch_rechub.basic.features").SparseFeature
        features = [of(name, vocab_size=20, embed_dim=8) for name in _FIELDS]
        return _Clicks(getattr(package, kind)(**dict.fromkeys(options, features), **sizes))

    rows = lambda batch, seed: ((torch.randint(0, 20, (batch, 4), generator=dice_of(seed)),), {})  # noqa: E731
    return called_with(make, rows)


RECHUB = {
    "AFM": _clicks("AFM", "fm_features", embed_dim=8, t=16),
    "AutoInt": _clicks("AutoInt", "sparse_features", dense_features=[], mlp_params=_MLP),
    "DCN": _clicks("DCN", "features", n_cross_layers=2, mlp_params=_MLP),
    "DCNv2": _clicks("DCNv2", "features", n_cross_layers=2, mlp_params=_MLP, low_rank=8, num_experts=2),
    "DeepFM": _clicks("DeepFM", "deep_features", "fm_features", mlp_params=_MLP),
    "EDCN": _clicks("EDCN", "features", n_cross_layers=2, mlp_params=_MLP),
    "FiBiNet": _clicks("FiBiNet", "features", mlp_params=_MLP),
    "WideDeep": _clicks("WideDeep", "wide_features", "deep_features", mlp_params=_MLP),
}
_TOWER = {"dims": [16], "dropout": 0.0, "activation": "relu"}
_TASKS = {"task_types": ["classification", "regression"], "tower_params_list": [_TOWER, _TOWER], "expert_params": _MLP}
TASKS = {
    "AITM": _clicks("AITM", "features", n_task=2, bottom_params=_MLP, tower_params_list=[_TOWER, _TOWER]),
    "MMOE": _clicks("MMOE", "features", n_expert=3, **_TASKS),
    "PLE": _clicks("PLE", "features", n_level=2, n_expert_specific=2, n_expert_shared=1, **_TASKS),
    "SharedBottom": _clicks(
        "SharedBottom",
        "features",
        task_types=["classification", "regression"],
        bottom_params=_MLP,
        tower_params_list=[_TOWER, _TOWER],
    ),
}


def _policy(make: Callable[[Any, nn.Module], nn.Module], *inputs: tuple[int, ...]) -> Make:
    def network(package: Any) -> nn.Module:
        return make(package, package.VectorEncoder((8,), [24, 24], use_layer_norm=True))

    return called_with(network, partial(many, inputs or ((8,),)))


D3RLPY = {
    "DeterministicPolicy": _policy(
        lambda package, encoder: Told(package.DeterministicPolicy(encoder, 24, 3), lambda net, x: net(x).squashed_mu)
    ),
    "NormalPolicy": _policy(
        lambda package, encoder: Told(
            package.NormalPolicy(encoder, 24, 3, -4.0, 2.0, False), lambda net, x: (net(x).mu, net(x).logstd)
        )
    ),
    "QRQFunction": _policy(
        lambda package, encoder: Told(
            package.DiscreteQRQFunction(encoder, 24, 3, 8), lambda net, x: (net(x).q_value, net(x).quantiles)
        )
    ),
    "PixelEncoder": called_with(
        named("PixelEncoder", (3, 48, 48), feature_size=32, use_batch_norm=True, dropout_rate=0.0),
        partial(dense, (3, 48, 48)),
    ),
    "SimBa": called_with(named("SimBaEncoder", (8,), 24, 16, 2), partial(dense, (8,))),
}

_GAN = {"num_mels": 20, "upsample_initial_channel": 32, "upsample_rates": [4, 2], "upsample_kernel_sizes": [8, 4]}
_GAN |= {"resblock_kernel_sizes": [3, 5], "resblock_dilation_sizes": [[1, 3], [1, 3]], "snake_logscale": True}


def _vocoder(**options: Any) -> Make:
    def make(package: Any) -> nn.Module:
        h = import_module("bigvgan.env").AttrDict({**_GAN, **options})
        network: nn.Module = package.BigVGAN(h)
        return network

    return called_with(make, partial(dense, (20, 16)), length=partial(dense, (20, 23)))


def _read(kind: str, *shape: int, **options: Any) -> Make:
    made = named(f"recognition:{kind}", pretrained=False, vocab="abcdefgh", exportable=True, **options)
    return on_images(lambda package: Told(made(package), lambda net, x: net(x)["logits"]), *shape)


def _found(kind: str, **options: Any) -> Make:
    made = named(f"detection:{kind}", pretrained=False, pretrained_backbone=False, exportable=True, **options)
    return on_images(lambda package: Told(made(package), lambda net, x: net(x)["logits"]), 3, 64, 64)


DOCTR = {
    "crnn_mobilenet_v3_small": _read("crnn_mobilenet_v3_small", 3, 32, 128, pretrained_backbone=False),
    "crnn_vgg16_bn": _read("crnn_vgg16_bn", 3, 32, 128, pretrained_backbone=False),
    "db_mobilenet_v3_large": _found("db_mobilenet_v3_large"),
    "fast_tiny": _found("fast_tiny"),
    "linknet_resnet18": _found("linknet_resnet18"),
    "magc_resnet31": on_images(named("classification:magc_resnet31", num_classes=5), 3, 32, 64),
    "vit_s": on_images(named("classification:vit_s", num_classes=5), 3, 32, 32),
    "viptr_tiny": _read("viptr_tiny", 3, 32, 128, pretrained_backbone=False),
}


def _enformer(package: Any) -> nn.Module:
    config = package.EnformerConfig(
        dim=96,
        depth=2,
        heads=2,
        output_heads={"human": 5, "mouse": 3},
        target_length=4,
        attn_dim_key=16,
        dim_divisible_by=16,
        num_downsamples=4,
        use_tf_gamma=False,
    )
    return Told(package.Enformer(config), lambda net, x: tuple(net(x).values()))


def _genes(batch: int, seed: int) -> Call:
    return (torch.randint(0, 4, (batch, 160), generator=dice_of(seed)),), {}


def _nbeats(**options: Any) -> Make:
    def make(package: Any) -> nn.Module:
        network: nn.Module = package.NBeatsNet(nb_blocks_per_stack=2, hidden_layer_units=24, **options)
        network._modules["learnt"] = network._modules.pop("parameters")  # the name of a method
        return network

    return called_with(make, partial(dense, (10,)))


_VOLUMES = {"encoder_name": "resnet18", "encoder_weights": None, "classes": 2, "in_channels": 1}
_LEVELS = {"layer2": 1, "layer3": 2, "layer4": 3}
SCIENCES: dict[str, tuple[str, dict[str, Make]]] = {
    "bigvgan": (
        "bigvgan",
        {
            "snake": _vocoder(resblock="1", activation="snake"),
            "snakebeta": _vocoder(
                resblock="2", activation="snakebeta", use_tanh_at_final=False, use_bias_at_final=False
            ),
        },
    ),
    "d3rlpy": ("d3rlpy.models.torch", D3RLPY),
    "deepxde": (
        "deepxde",
        {
            "DeepONet": _of_functions("DeepONetCartesianProd", [10, 24, 24], [2, 24, 24]),
            "FNN": called_with(named("nn.pytorch:FNN", [2, 24, 24, 1], "tanh", "Glorot normal"), partial(dense, (2,))),
            "PFNN": called_with(
                named("nn.pytorch:PFNN", [2, [16, 16], [16, 16], 2], "tanh", "Glorot normal"), partial(dense, (2,))
            ),
        },
    ),
    "doctr": ("doctr.models", DOCTR),
    "easyocr": (
        "easyocr",
        {
            "CRAFT": on_images(lambda package: Told(import_module("easyocr.craft").CRAFT(), first_of), 3, 64, 64),
            "resnet": on_images(
                lambda package: Told(
                    import_module("easyocr.model.model").Model(1, 32, 32, 20), lambda net, x: net(x, None)
                ),
                1,
                32,
                64,
            ),
            "vgg": on_images(
                lambda package: Told(
                    import_module("easyocr.model.vgg_model").Model(1, 32, 32, 20), lambda net, x: net(x, None)
                ),
                1,
                32,
                64,
            ),
        },
    ),
    "enformer": ("enformer_pytorch", {"Enformer": called_with(_enformer, _genes)}),
    "gluonts": ("gluonts", GLUONTS),
    "nbeats": (
        "nbeats_pytorch.model",
        {
            "generic": _nbeats(stack_types=("generic", "generic")),
            "interpretable": _nbeats(share_weights_in_stack=True),
        },
    ),
    "neuraloperator": ("neuralop.models", OPERATORS),
    "pointnet": (
        "pointnet",
        {
            "PointNetCls": called_with(
                lambda package: package.PointNetCls(3, 5, stn_3d=package.STN(3)), partial(dense, (3, 20))
            ),
            "PointNetSeg": called_with(
                lambda package: package.PointNetSeg(3, 5, stn_3d=package.STN(3)), partial(dense, (3, 20))
            ),
            "PointNet2ClsSSG": called_with(
                lambda package: package.PointNet2ClsSSG(3, 5, downsample_points=(16, 8), ks=(4, 4), dropout=0.0),
                partial(many, ((3, 24), (3, 24))),
            ),
        },
    ),
    "retinaface": (
        "retinaface.network",
        {"RetinaFace": on_images(lambda package: package.RetinaFace("Resnet50", False, 256, _LEVELS, 64), 3, 64, 64)},
    ),
    "rin": (
        "rin_pytorch",
        {
            "RIN": called_with(
                lambda package: package.RIN(
                    32,
                    16,
                    patch_size=4,
                    depth=2,
                    latent_self_attn_depth=1,
                    dim_latent=48,
                    num_latents=8,
                    heads=2,
                    dim_head=16,
                ),
                partial(many, ((3, 16, 16), ())),
            )
        },
    ),
    "segmentation-models-3d": (
        "segmentation_models_pytorch_3d",
        {name: called_with(named(name, **_VOLUMES), partial(dense, (1, 32, 32, 32))) for name in ("FPN", "Unet")},
    ),
    "torch-rechub": ("torch_rechub.models.ranking", RECHUB),
    "torch-rechub-tasks": ("torch_rechub.models.multi_task", TASKS),
    "torchani": ("torchani", {"ANI": called_with(_energies, _molecules)}),
    "video-diffusion": (
        "video_diffusion_pytorch",
        {
            "Unet3D": called_with(
                named("Unet3D", 16, dim_mults=(1, 2), attn_heads=2, attn_dim_head=16),
                partial(many, ((3, 4, 16, 16), 100)),
            )
        },
    ),
}
