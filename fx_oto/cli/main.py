"""The commands, their options and their help; errors as messages, and exit codes.

Exit codes: 0 done; 1 a mistake of ours, with a traceback; 2 something that the user can mend; 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fx_oto
from fx_oto.cli import texts
from fx_oto.cli.subject import add_model_options
from fx_oto.cli.tables import wrapped
from fx_oto.core.errors import FxOtoError, FxOtoWarning

__all__ = ["main"]

SCHEMA = 1


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m fx_oto`` and of ``fx-oto``; returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        return _carry_out(options)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # whoever read has gone: nothing more can be said
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _carry_out(options: argparse.Namespace) -> int:
    output = sys.stdout
    try:
        # what the user's code prints must not end up in the JSON
        with _shown_warnings() as seen, contextlib.redirect_stdout(sys.stderr if options.json else output):
            found = options.run(options)
            text = _as_json(options.command, found, seen) if options.json else str(found)
    except FxOtoError as error:
        if options.traceback:
            traceback.print_exception(error)
        else:
            print(f"error: {error}", file=sys.stderr)
        return 2
    print(text, file=output, flush=True)
    return 0


def _as_json(command: str, found: Any, seen: list[str]) -> str:
    head = {"schema": SCHEMA, "command": command, "version": fx_oto.__version__}
    return json.dumps({**head, **found.to_dict(), "warnings": seen}, indent=2, ensure_ascii=False)


@contextlib.contextmanager
def _shown_warnings() -> Iterator[list[str]]:
    """Our own warnings as one message each, without the line of our code that gave it; others as they are."""
    seen: list[str] = []
    with warnings.catch_warnings():
        usual = warnings.showwarning
        warnings.simplefilter("always", FxOtoWarning)

        def show(message: Warning | str, category: type[Warning], *place: Any, **where: Any) -> None:
            if not issubclass(category, FxOtoWarning):
                usual(message, category, *place, **where)
            elif str(message) not in seen:
                seen.append(str(message))
                print(wrapped(f"warning: {message}"), file=sys.stderr)

        warnings.showwarning = show
        yield seen


def _parser() -> argparse.ArgumentParser:
    program = "fx-oto" if Path(sys.argv[0]).stem == "fx-oto" else "python -m fx_oto"
    parser = argparse.ArgumentParser(prog=program, description=texts.FX_OTO, **_layout(texts.EXAMPLES))
    parser.add_argument("--version", action="version", version=f"fx_oto {fx_oto.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _add_inspect(commands)
    _add_compress(commands)
    _add_demo(commands)
    return parser


def _layout(epilog: str) -> dict[str, Any]:
    return {"epilog": epilog, "formatter_class": argparse.RawDescriptionHelpFormatter}


def _command(commands: Any, name: str, text: str, epilog: str, run: Callable[..., Any]) -> argparse.ArgumentParser:
    description = wrapped(f"{text[0].upper()}{text[1:]}.")
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=description, **_layout(epilog))
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    parser.set_defaults(run=run)
    return parser


def _add_inspect(commands: Any) -> None:
    parser = _command(commands, "inspect", texts.INSPECT, texts.INSPECT_EXAMPLES, _inspect)
    add_model_options(parser)
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        nargs="+",
        action="extend",
        default=[],
        help="only parameters or modules that match a glob pattern, and every axis of theirs",
    )
    parser.add_argument("--frozen", action="store_true", help="list every parameter axis that is kept whole, and why")
    _add_draw(parser, "what is tied together")


def _add_compress(commands: Any) -> None:
    parser = _command(commands, "compress", texts.COMPRESS, texts.COMPRESS_EXAMPLES, _compress)
    add_model_options(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--train",
        metavar="MODULE:FUNCTION",
        help="a function (gm, optimizer) that trains: your loop, over the prepared model and the optimizer given to it",
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
        nargs="+",
        action="extend",
        default=[],
        help="further arguments of it, or of fx_oto.DHSPG: momentum=0.9 round_to=8",
    )
    for name, text in texts.TARGETS.items():
        group.add_argument(f"--target-{name}", metavar="FRACTION", type=float, help=text)
    group.add_argument("--total-steps", metavar="N", type=int, help="steps that FUNCTION takes in all")


def _add_draw(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--draw", metavar="FILE", type=Path, help=f"write a picture of {what}: .svg, .png or .pdf")


def _add_demo(commands: Any) -> None:
    from fx_oto.demo.job import add_options

    add_options(_command(commands, "demo", texts.DEMO, texts.DEMO_EXAMPLES, _demo))


def _inspect(options: argparse.Namespace) -> Any:
    from fx_oto.cli.inspecting import inspect

    return inspect(options)


def _compress(options: argparse.Namespace) -> Any:
    from fx_oto.cli.compressing import compress

    return compress(options)


def _demo(options: argparse.Namespace) -> Any:
    from fx_oto.demo.job import run

    return run(options)
