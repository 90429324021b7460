"""The smallest model of each of timm's modules, one for each family of architectures.

The choice is kept in ``timm_families.json``; ``python zoo_timm.py`` beside it makes it anew.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import timm
import torch
from networks import Built, of_images
from torch import nn

CHOICE = Path(__file__).with_name("timm_families.json")
SMALL = (64, 96, 128)


def names() -> list[str]:
    return sorted(set(json.loads(CHOICE.read_text()).values()))


def build(name: str) -> Built:
    """The model, on the smallest images that it takes."""
    model = timm.create_model(name)
    given = model.pretrained_cfg
    channels, *default = given.get("input_size", (3, 224, 224))
    candidates = [] if given.get("fixed_input_size") else [(size, size) for size in SMALL if size < default[0]]
    for size in candidates:
        if _runs(model, (channels, *size)):
            return of_images(model, channels, *size)
    return of_images(model, channels, *default)


def _runs(model: nn.Module, shape: tuple[int, ...]) -> bool:
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *shape))
    except Exception:  # too small an image fails in as many ways as there are models
        return False
    return True


def _parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in timm.create_model(name).parameters())


def choose() -> dict[str, str]:
    """For each module of timm, its model with the fewest parameters, timm's own toys aside."""
    warnings.simplefilter("ignore")
    listed = {module: timm.list_models(module=module, exclude_filters="test_*") for module in timm.list_modules()}
    return {module: min(models, key=lambda name: (_parameters(name), name)) for module, models in listed.items()}


if __name__ == "__main__":
    CHOICE.write_text(json.dumps(choose(), indent=1) + "\n")
