"""Train a row of the paper, and put the result beside the published one.

    python -m benchmarks.paper resnet18-cifar10 --data DIR --device cuda          # as published
    python -m benchmarks.paper resnet18-cifar10 --data DIR --full                 # the same without pruning
    python -m benchmarks.paper demonet-fashion-mnist --data DIR --epochs 10 --subset 6000
    python -m benchmarks.paper --table                                            # the README's tables

A stopped run goes on from its last epoch when the same command is given again. With fewer epochs, the schedule of the
learning rate and the pruning window keep their proportions.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import fx_oto
from benchmarks.paper import table
from benchmarks.paper.recipes import RECIPES
from benchmarks.paper.tasks import Options
from benchmarks.paper.training import Run, carry_out


def positive(text: str) -> int:
    """A number of things."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, found {text}")
    return value


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        "python -m benchmarks.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("recipe", nargs="?", choices=RECIPES, metavar="RECIPE", help=", ".join(RECIPES))
    made.add_argument(
        "--data", type=Path, help="folder of the data; what it must hold is in benchmarks/paper/README.md"
    )
    made.add_argument("--device", default="cpu", help="default: %(default)s")
    made.add_argument("--full", action="store_true", help="without pruning, by the base optimizer alone")
    made.add_argument("--epochs", type=positive, help="instead of the recipe's")
    made.add_argument("--batch", type=positive, help="instead of the recipe's")
    made.add_argument("--subset", type=positive, help="training samples, evenly spaced (default: all)")
    made.add_argument("--width", type=positive, help="channels of the first layer, of networks that have one width")
    made.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    made.add_argument("--bfloat16", action="store_true", help="train under autocast")
    made.add_argument("--weights", type=Path, help="trained weights: a file of a state dict, or BERT's folder")
    made.add_argument("--workers", type=int, default=0, help="processes that read ImageNet (default: %(default)s)")
    made.add_argument("--results", type=Path, default=table.RESULTS, help="finished runs (default: %(default)s)")
    made.add_argument("--checkpoints", type=Path, default=Path("paper_checkpoints"), help="default: %(default)s")
    made.add_argument("--table", action="store_true", help="only write the tables into the README")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; 2 where it cannot be done."""
    options = parser().parse_args(arguments)
    if options.table:
        table.write(table.load(options.results))
        return 0
    if options.recipe is None or options.data is None:
        parser().error("a recipe and --data DIR are needed, or --table")
    try:
        lines = [_result(options)]
    except fx_oto.FxOtoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table.results(lines))
    return 0


def _result(options: argparse.Namespace) -> dict:
    """The line of the run: of the file if it is there, else of a training."""
    recipe = RECIPES[options.recipe]
    run = Run(
        options.recipe,
        options.full,
        options.epochs or recipe.epochs,
        options.subset,
        options.width,
        options.seed,
        "bfloat16" if options.bfloat16 else "float32",
        options.batch or recipe.batch,
    )
    for line in table.load(options.results):
        if all(line[name] == getattr(run, name) for name in Run.__dataclass_fields__):
            return line
    reading = Options(options.device, options.subset, options.weights, options.workers)
    line = carry_out(run, options.data, reading, options.checkpoints, lambda text: print(text, flush=True))
    table.append(options.results, line)
    return line


if __name__ == "__main__":
    sys.exit(main())
