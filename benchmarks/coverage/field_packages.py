"""Networks of packages that nobody here wrote, see ``zoo_packages``: densities, policies, tables, molecules, spikes.

    pip install --no-deps nflows normflows zuko stable-baselines3 gymnasium deepctr-torch tab-transformer-pytorch \
        hyper-connections egnn-pytorch spikingjelly complextorch siren-pytorch facexlib geffnet timesformer-pytorch \
        rotary-embedding-torch super-image unet
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from attention_packages import ATTENTIONS
from making import Make, Told, called_with, dense, dice_of, first_of, many, named, on_images
from networks import Call
from science_packages import SCIENCES
from sequence_packages import SEQUENCES
from torch import Tensor, nn

__all__ = ["FIELDS"]


def _density(flow: Callable[[Any], nn.Module], call: Callable[..., Any]) -> Make:
    return called_with(lambda package: Told(flow(package), call), partial(dense, (6,)))


def _log_prob(flow: Any, x: Tensor) -> Any:
    return flow.log_prob(x)


def _conditional(flow: Any, x: Tensor) -> Any:
    return flow().log_prob(x)


def _autoregressive(package: Any) -> nn.Module:
    kinds = import_module("nflows.transforms")
    layers = [(kinds.ReversePermutation(6), kinds.MaskedAffineAutoregressiveTransform(6, 24)) for _ in range(2)]
    all_layers = kinds.CompositeTransform([layer for pair in layers for layer in pair])
    network: nn.Module = package.Flow(all_layers, import_module("nflows.distributions").StandardNormal([6]))
    return network


def _coupled(package: Any) -> nn.Module:
    layers = []
    for _ in range(2):
        layers.append(package.flows.AffineCouplingBlock(package.nets.MLP([3, 24, 24, 6], init_zeros=True)))
        layers.append(package.flows.Permute(6, mode="swap"))
    network: nn.Module = package.NormalizingFlow(package.distributions.DiagGaussian(6), layers)
    return network


def _actor_and_critic(package: Any) -> nn.Module:
    spaces = import_module("gymnasium").spaces
    kind = import_module("stable_baselines3.common.policies").ActorCriticPolicy
    nets = {"pi": [24, 24], "vf": [24]}
    net = kind(spaces.Box(-1, 1, (8,)), spaces.Discrete(4), lambda _: 1e-3, net_arch=nets)
    return Told(net, lambda net, x: net.evaluate_actions(x, torch.zeros(len(x), dtype=torch.long)))


def _actor(package: Any) -> nn.Module:
    box, layers = import_module("gymnasium").spaces.Box, import_module("stable_baselines3.common.torch_layers")
    seen, kind = box(-1, 1, (8,)), import_module("stable_baselines3.sac.policies").Actor
    net = kind(seen, box(-1, 1, (3,)), [24, 24], layers.FlattenExtractor(seen), 8)
    return Told(net, lambda net, x: net(x, deterministic=True))


def _clicks(name: str) -> Make:
    """Three columns of categories and four of numbers."""

    def make(package: Any) -> nn.Module:
        inputs = import_module("deepctr_torch.inputs")
        columns = [inputs.SparseFeat(f"category{i}", 10, embedding_dim=8) for i in range(3)]
        columns += [inputs.DenseFeat(f"number{i}", 1) for i in range(4)]
        network: nn.Module = getattr(package, name)(columns, columns, dnn_hidden_units=(24, 16))
        return network

    def rows(batch: int, seed: int) -> Call:
        categories = torch.randint(0, 10, (batch, 3), generator=dice_of(seed))
        return (torch.cat([categories.float(), torch.randn(batch, 4, generator=dice_of(seed))], 1),), {}

    return called_with(make, rows)


def _spiking(package: Any) -> nn.Module:
    neuron, layer, functional = (
        import_module(f"{package.__name__}.{name}") for name in ("neuron", "layer", "functional")
    )
    first = nn.Sequential(layer.Conv2d(3, 12, 3, padding=1, bias=False), layer.BatchNorm2d(12), neuron.LIFNode())
    net = nn.Sequential(first, layer.MaxPool2d(2, 2), layer.Flatten(), layer.Linear(12 * 64, 10))

    def call(net: nn.Module, x: Tensor) -> Any:
        functional.reset_net(net)
        return sum(net(x) for _ in range(3))

    return Told(net, call)


def _larger(name: str, **sizes: int) -> Make:
    """Images twice as large."""
    config = named(f"{name}Config", scale=2, **sizes)
    return on_images(lambda package: getattr(package, f"{name}Model")(config(package)), 3, 24, 24)


_LARGER: dict[str, dict[str, int]] = {"A2n": {}, "Carn": {}, "Edsr": {"n_resblocks": 2, "n_feats": 16}}
_LARGER |= {"Msrn": {"n_blocks": 2, "n_feats": 16}, "Pan": {}}


def _particles(batch: int, seed: int) -> Call:
    return (torch.randint(0, 21, (batch, 12), generator=dice_of(seed)), *dense((12, 3), batch, seed)[0]), {}


def _table(batch: int, seed: int) -> Call:
    return (torch.randint(0, 5, (batch, 4), generator=dice_of(seed)), *dense((6,), batch, seed)[0]), {}


_TABLE = {"categories": (5, 6, 7, 8), "num_continuous": 6, "dim": 32, "depth": 2, "heads": 2, "dim_out": 3}
_GRAPH = {"num_tokens": 21, "num_positions": 16, "dim": 24, "depth": 2, "num_nearest_neighbors": 4}
_VIDEO = {"dim": 48, "num_frames": 4, "num_classes": 10, "image_size": 32, "patch_size": 8, "depth": 2, "heads": 3}
_UNET = {"num_encoding_blocks": 3, "out_channels_first_layer": 8, "padding": 1}
OTHERS: dict[str, tuple[str, dict[str, Make]]] = {
    "complextorch": (
        "complextorch.nn",
        {
            "conv": called_with(
                lambda package: Told(
                    nn.Sequential(package.Conv2d(3, 12, 3), package.CReLU(), package.Conv2d(12, 6, 3)),
                    lambda net, x: torch.view_as_real(net(torch.complex(x, x.flip(-1)))),
                ),
                partial(dense, (3, 12, 12)),
            )
        },
    ),
    "deepctr": (
        "deepctr_torch.models",
        {name: _clicks(name) for name in ("AutoInt", "DCN", "DeepFM", "FiBiNET", "xDeepFM")},
    ),
    "egnn": (
        "egnn_pytorch",
        {
            "EGNN": called_with(named("EGNN", 24), partial(many, ((12, 24), (12, 3)))),
            "EGNN_Network": called_with(named("EGNN_Network", **_GRAPH), _particles),
        },
    ),
    "facexlib": (
        "facexlib.parsing.bisenet",
        {"BiSeNet": on_images(lambda package: Told(package.BiSeNet(7), first_of), 3, 64, 64)},
    ),
    "geffnet": (
        "geffnet",
        {
            name: on_images(named(name), 3, 64, 64)
            for name in ("efficientnet_es", "mixnet_s", "mobilenetv3_small_075", "semnasnet_075")
        },
    ),
    "nflows": (
        "nflows.flows",
        {
            "MAF": _density(_autoregressive, _log_prob),
            "SimpleRealNVP": _density(named("SimpleRealNVP", 6, 24, 2, 1), _log_prob),
        },
    ),
    "normflows": ("normflows", {"RealNVP": _density(_coupled, _log_prob)}),
    "siren": ("siren_pytorch", {"SirenNet": called_with(named("SirenNet", 2, 32, 3, 3), partial(dense, (2,)))}),
    "spikingjelly": (
        "spikingjelly.activation_based",
        {"LIF": called_with(_spiking, partial(dense, (3, 16, 16)))},
    ),
    "stable-baselines3": (
        "stable_baselines3",
        {
            "ActorCriticPolicy": called_with(_actor_and_critic, partial(dense, (8,))),
            "SAC_Actor": called_with(_actor, partial(dense, (8,))),
        },
    ),
    "super-image": ("super_image", {name: _larger(name, **sizes) for name, sizes in _LARGER.items()}),
    "tab-transformer": (
        "tab_transformer_pytorch",
        {"FTTransformer": called_with(named("FTTransformer", **_TABLE), _table)},
    ),
    "timesformer": (
        "timesformer_pytorch",
        {"TimeSformer": called_with(named("TimeSformer", **_VIDEO, dim_head=16), partial(dense, (4, 3, 32, 32)))},
    ),
    "unet": (
        "unet",
        {
            "UNet": on_images(
                named("UNet", 1, 2, **_UNET, normalization="batch", residual=True, upsampling_type="linear"), 1, 64, 64
            ),
            "UNet3D": called_with(
                named("UNet3D", 1, 2, **_UNET, normalization="instance", activation="PReLU"),
                partial(dense, (1, 16, 16, 16)),
            ),
        },
    ),
    "zuko": (
        "zuko.flows",
        {
            name: _density(named(name, 6, transforms=2, hidden_features=(24, 24)), _conditional)
            for name in ("MAF", "NSF")
        },
    ),
}
FIELDS = SEQUENCES | OTHERS | ATTENTIONS | SCIENCES
