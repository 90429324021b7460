"""The networks on which only_train_once and Torch-Pruning were measured (``peers.csv``)."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from networks import Built, images, load
from sanity_networks import NETWORKS

ZOOS = {"tv": "torchvision", "timm": "timm", "hf": "transformers"}
ELSEWHERE = {"oto:densenet121": "tv:densenet121", "oto:hf_llama": "hf:llama_unpadded"}


def names() -> list[str]:
    with Path(__file__).with_name("peers.csv").open() as file:
        return sorted({row["network"] for row in csv.DictReader(file)})


def build(name: str) -> Built:
    zoo, own = ELSEWHERE.get(name, name).split(":")
    if zoo in ZOOS:
        return load(ZOOS[zoo]).build(own)
    network, size = NETWORKS[own]
    return network(), _noisy if own == "diffmodel_cifar" else images(3, size, size)


def _noisy(batch: int, seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    (image,), _ = images(3, 32, 32)(batch, seed)
    return (image, torch.randint(0, 1000, (batch,), generator=torch.Generator().manual_seed(seed))), {}
