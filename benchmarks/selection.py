"""Which groups should go? Orders within families, and ways to share a target among families, with all else the same.

    pip install -e '.[bench]'
    python benchmarks/selection.py --data DIR           # the folder of the four idx files of Fashion-MNIST
    python benchmarks/selection.py --trained            # needs the packages of benchmarks/pretrained/minilm.py

The first trains the benchmark's ResNet from scratch by DHSPG at 15% of the MACs, three seeds, as ``quality.py`` does,
and counts test images. The second prunes a trained sentence encoder at once, at 70%, and trains nothing: how far are
its answers from what they were (see ``minilm.distance``)? Finished runs are kept in ``selection.json``.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

import torch
from quality import Run, Training
from tabulate import tabulate

import fx_oto

HERE = Path(__file__).parent
SEEDS = range(3)
ORDERS = ("random", "magnitude", "batch norm's scale", "otov2", "taylor1", "taylor2")
SHARES = ("uniform", "global", "measured")


def saliency(order: str, model: torch.nn.Module, seed: int = 0):
    """A saliency by name; ``random`` and the scale of batch norms stand here."""
    if order == "random":
        generator = torch.Generator().manual_seed(seed)
        return lambda zigs: [torch.rand(len(family.square), generator=generator) for family in zigs]
    if order != "batch norm's scale":
        return order
    norms = {name for name, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}

    def smallest(zigs):
        parameters = dict(model.named_parameters())
        scores = []
        for family in zigs:
            scales = [s for s in family.family.variables if s.tensor in {f"{name}.weight" for name in norms}]
            scores.append(-sum(parameters[s.tensor].detach().abs()[s.index].sum(1) for s in scales))
        return scores

    return smallest


def from_scratch(order: str, share: str, seed: int, data: Path) -> float:
    """Accuracy, in percent."""
    run = Run("resnet", "dhspg", 0.15, seed, 4000, 8, 1)
    training = Training(run, data, "cpu")
    gm = fx_oto.prepare(training.model, training.example)
    images, labels = training.images.train[:512], training.images.train_labels[:512]
    allocation = share if share != "measured" else lambda gm: torch.nn.functional.cross_entropy(gm(images), labels)
    settings = {"saliency": saliency(order, training.model, seed), "allocation": allocation}
    target = {"target_macs": run.target, "total_steps": training.steps}
    training.fit(gm, fx_oto.DHSPG(gm, training.base, **settings, **target, **training.settings), 0, run.epochs)
    return training.accuracy(fx_oto.compress(gm))


def of_a_trained_network(order: str, share: str) -> float:
    """The distance to the network as it was."""
    from benchmarks.pretrained import minilm

    some = minilm.texts()
    model, tokenizer = minilm.network()
    teacher = copy.deepcopy(model)
    model.embeddings.requires_grad_(False)

    def texts(start: int):
        lines = some.train[start : start + 32]
        given = tokenizer(lines, padding=True, truncation=True, max_length=64, return_tensors="pt")
        return given["input_ids"], given["attention_mask"]

    batches = [texts(start) for start in range(100, len(some.train) - 32, len(some.train) // 14)]
    held, few, data = batches[:4], batches[4:6], batches[6:]
    gm = fx_oto.prepare(model, texts(0))

    def loss(gm, batch):  # dropout brings the gradients: the network agrees with itself
        return minilm.distance(gm.train(), teacher, *batch)

    allocation = share if share != "measured" else lambda gm: sum(minilm.distance(gm, teacher, *b) for b in few) / 2
    fx_oto.prune(gm, target_macs=0.7, saliency=order, allocation=allocation, data=data, loss=loss)
    model.eval()
    with torch.no_grad():
        return float(sum(minilm.distance(model, teacher, *batch) for batch in held)) / len(held)


def main() -> None:
    """Do what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the four idx files")
    parser.add_argument("--trained", action="store_true", help="prune the trained sentence encoder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = HERE / "selection.json"
    done = json.loads(path.read_text()) if path.exists() else {"from scratch": {}, "trained": {}}

    def note(part: str, key: str, find) -> None:
        if key not in done[part]:
            done[part][key] = round(find(), 3)
            path.write_text(json.dumps(done, indent=1) + "\n")
            print(part, key, done[part][key], flush=True)

    cases = [*((order, "uniform") for order in ORDERS), ("otov2", "global"), ("taylor1", "measured")]
    for seed, (order, share) in ((seed, case) for seed in SEEDS for case in cases if options.data):
        note(
            "from scratch",
            f"{order}, {share}, {seed}",
            lambda a=order, b=share, c=seed: from_scratch(a, b, c, options.data),
        )
    for order, share in ((order, share) for share in SHARES for order in ORDERS if options.trained):
        if order not in ("random", "batch norm's scale"):
            note("trained", f"{order}, {share}", lambda a=order, b=share: of_a_trained_network(a, b))
    rows = []
    for order, share in cases:
        found = [done["from scratch"].get(f"{order}, {share}, {seed}") for seed in SEEDS]
        values = [value for value in found if value is not None]
        if values:
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            rows.append((order, share, f"{statistics.mean(values):.2f}{spread}"))
    print(tabulate(rows, ("order within families", "shares", "accuracy (%)"), "github", disable_numparse=True))
    rows = [(order, *(done["trained"].get(f"{order}, {share}", "–") for share in SHARES)) for order in ORDERS[1:]]
    shown = [row for row in rows if set(row[1:]) != {"–"}]
    print(tabulate(shown, ("order within families", *SHARES), "github"))


if __name__ == "__main__":
    main()
