"""Carries commands out; errors as messages, and exit codes.

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
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import fx_oto
from fx_oto.cli.options import parser
from fx_oto.core.errors import FxOtoError, FxOtoWarning
from fx_oto.core.tables import wrapped

__all__ = ["main"]

SCHEMA = 1


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m fx_oto`` and of ``fx-oto``; returns the exit code."""
    commands = parser()
    options = commands.parse_args(argv)
    if options.command is None:
        commands.print_help()
        return 0
    try:
        return _carry_out(options)
    except KeyboardInterrupt as stop:
        print("\n" + _with_notes("interrupted", stop), file=sys.stderr)
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
            found = getattr(import_module(_COMMANDS[options.command]), options.command)(options)
            text = _as_json(options.command, found, seen) if options.json else str(found)
    except FxOtoError as error:
        if options.traceback:
            traceback.print_exception(error)
        else:
            print(_with_notes(f"error: {error}", error), file=sys.stderr)
        return 2
    print(text, file=output, flush=True)
    return 0


def _with_notes(text: str, error: BaseException) -> str:
    return "\n".join([text, *getattr(error, "__notes__", [])])


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


# Loaded when it is asked for: what one command needs, another does without.
_COMMANDS = {"inspect": "fx_oto.cli.inspecting", "compress": "fx_oto.cli.compressing", "demo": "fx_oto.demo.job"}
