"""The commands and their options; nothing here loads torch, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import fx_oto
from fx_oto.cli import texts
from fx_oto.core.tables import wrapped

__all__ = ["parser"]

_SEVERAL: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}


def parser() -> argparse.ArgumentParser:
    """Parser of the command line; ``command`` is None in its result if there was none."""
    program = "fx-oto" if Path(sys.argv[0]).stem == "fx-oto" else "python -m fx_oto"
    parser = argparse.ArgumentParser(prog=program, description=texts.FX_OTO, **_layout(texts.EXAMPLES))
    parser.add_argument("--version", action="version", version=f"fx_oto {fx_oto.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command")
    _add_inspect(commands)
    _add_compress(commands)
    _add_demo(commands)
    return parser


def _layout(epilog: str) -> dict[str, Any]:
    return {"epilog": epilog, "formatter_class": argparse.RawDescriptionHelpFormatter}


def _command(commands: Any, name: str, text: str, epilog: str) -> argparse.ArgumentParser:
    description = wrapped(f"{text[0].upper()}{text[1:]}.")
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=description, **_layout(epilog))
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    return parser


def _add_inspect(commands: Any) -> None:
    parser = _command(commands, "inspect", texts.INSPECT, texts.INSPECT_EXAMPLES)
    _add_model(parser)
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        **_SEVERAL,
        help="only parameters or modules that match a glob pattern, and every axis of theirs",
    )
    parser.add_argument("--frozen", action="store_true", help="list every parameter axis that is kept whole, and why")
    _add_draw(parser, "what is tied together")


def _add_compress(commands: Any) -> None:
    parser = _command(commands, "compress", texts.COMPRESS, texts.COMPRESS_EXAMPLES)
    _add_model(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--train",
        metavar="MODULE:FUNCTION",
        help="a function (gm, optimizer) that trains: your loop, over the prepared model and the optimizer given. "
        "The trained weights are in NAME-trained.pt until --output NAME.pt2 is written; where that fails, they stay",
    )
    how.add_argument(
        "--dry-run",
        metavar="FRACTION",
        type=float,
        help="set this fraction of every family to zero, at random: what would the compact model cost?",
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="where to write the compact model: see below")
    parser.add_argument("--no-latency", action="store_true", help="do not measure latency")
    _add_draw(parser, "the widths before and after")
    group = parser.add_argument_group("with --train")
    group.add_argument("--method", choices=("dhspg", "hesso"), default="dhspg", help="default: %(default)s")
    group.add_argument(
        "--optimizer",
        metavar="NAME",
        default="SGD",
        help="of torch.optim, or MODULE:CLASS: what it wraps (default: %(default)s)",
    )
    group.add_argument("--lr", type=float, help="learning rate")
    group.add_argument(
        "--set",
        metavar="NAME=VALUE",
        **_SEVERAL,
        help="further arguments of it, or of fx_oto.DHSPG: momentum=0.9 round_to=8",
    )
    for name, text in texts.TARGETS.items():
        group.add_argument(f"--target-{name}", metavar="FRACTION", type=float, help=text)
    group.add_argument("--total-steps", metavar="N", type=int, help="steps that FUNCTION takes in all")


def _add_draw(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--draw", metavar="FILE", type=Path, help=f"write a picture of {what}: .svg, .png or .pdf")


def _add_model(parser: argparse.ArgumentParser) -> None:
    """The options that say which model, with which inputs, and how its analysis goes."""
    parser.add_argument(
        "model",
        metavar="MODULE:FACTORY",
        help="a function or class that returns the model, or the model itself, in an importable module or a file: "
        "package.module:factory, net.py:build",
    )
    parser.add_argument(
        "--kwargs",
        metavar="NAME=VALUE",
        **_SEVERAL,
        help="arguments of FACTORY: Python literals or words",
    )
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument(
        "--input",
        metavar="SHAPE",
        action="append",
        default=[],
        help="shape of an example input, batch first; again for more: 1,3,224,224 or 1,128:int64:0-30522 (integers "
        "from 0 to below 30522) or, as a keyword argument, mask=1,128:bool",
    )
    inputs.add_argument(
        "--inputs",
        metavar="MODULE:FUNCTION",
        help="a function that returns the example inputs, for anything else: a tensor, a tuple, a dict of keyword "
        "arguments or (args, kwargs)",
    )
    parser.add_argument(
        "--state-dict", metavar="FILE", type=Path, help="trained weights to load: torch.save'd, or .safetensors"
    )
    parser.add_argument(
        "--unprunable",
        metavar="PATTERN",
        **_SEVERAL,
        help="parameters or modules to keep whole, as glob patterns",
    )
    parser.add_argument(
        "--attention",
        choices=("heads", "head_dim"),
        default="heads",
        help="what attention loses: whole heads, or width of every head (default: %(default)s)",
    )
    parser.add_argument(
        "--device", default="cpu", help="where to build and run it, such as cuda (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of random weights and inputs (default: %(default)s)")


def _add_demo(commands: Any) -> None:
    demo = _command(commands, "demo", texts.DEMO, texts.DEMO_EXAMPLES)
    demo.add_argument("--data", choices=("digits", "fashion-mnist"), default="digits", help="default: %(default)s")
    demo.add_argument("--root", type=Path, default=Path("data"), help="folder of the Fashion-MNIST idx files")
    demo.add_argument("--target", type=float, default=0.7, help="group sparsity to reach (default: %(default)s)")
    demo.add_argument("--epochs", type=int, help="default: 30 for digits, 3 for fashion-mnist")
    demo.add_argument("--width", type=int, default=32, help="channels of the first stage (default: %(default)s)")
    demo.add_argument("--batch", type=int, default=64, help="batch size (default: %(default)s)")
    demo.add_argument("--lr", type=float, default=0.1, help="learning rate of SGD (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    demo.add_argument("--baseline", action="store_true", help="also train the same network without DHSPG")
    demo.add_argument("--draw", metavar="FOLDER", type=Path, help="write pictures of the families, widths and training")
    demo.add_argument("--quiet", action="store_true", help="no progress bar")
