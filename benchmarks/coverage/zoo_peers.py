"""The networks on which only_train_once and Torch-Pruning were measured (``peers.csv``)."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import torch
from networks import Built, Call, images, load, of_images
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
    if own == "diffmodel_cifar":
        return Built(network(), partial(_noisy, 32), {"image size": (partial(_noisy, 64),)})
    return of_images(network(), 3, size, size)


def _noisy(size: int, batch: int, seed: int) -> Call:
    (image,), _ = images(3, size, size)(batch, seed)
    return (image, torch.randint(0, 1000, (batch,), generator=torch.Generator().manual_seed(seed))), {}
