"""A finished picture, and the settings that all are drawn with: no pyplot, no global state, always the same bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fx_oto.core.errors import MissingPackageError, SettingsError
from fx_oto.core.paths import check_file
from fx_oto.core.preserve import uncollected

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Picture", "check_picture", "drawing", "new_figure"]

_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that widths are the same everywhere
    "font.size": 9.0,
    "text.parse_math": False,  # a name may hold a dollar sign
    "text.hinting": "no_hinting",  # a text is as wide at any resolution
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "fx-oto",
    "svg.fonttype": "path",
}
# Without them, a file holds the time when it was written.
_TIMELESS: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


@dataclass(frozen=True, eq=False)
class Picture:
    """A matplotlib figure that was made without pyplot; a notebook shows it as PNG.

    A notebook gets a PNG only: it stores what it shows, and the SVG of a large network is ten times the size.

    Attributes:
        figure: the ``matplotlib.figure.Figure``, to change what you like before saving.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> picture = fx_oto.partition(fx_oto.prepare(net, torch.randn(2, 4))).draw()
        >>> picture.to_svg().startswith("<?xml")
        True
    """

    figure: Figure

    def save(self, path: str | PathLike[str], dpi: float = 150) -> Path:
        """Write a file, in the format of its suffix; the same picture gives the same bytes.

        Args:
            path: ends in ``.png``, ``.svg``, ``.pdf`` or another suffix that matplotlib knows.
            dpi: pixels per inch, for formats that have pixels.

        Returns:
            The path.

        Raises:
            SettingsError: the suffix names no format.
        """
        path = Path(path)
        path.write_bytes(self._render(_kind(path), dpi))
        return path

    def to_svg(self) -> str:
        """The picture as an SVG document, its text as outlines, so that it looks the same with any fonts."""
        return self._render("svg", 72).decode()

    def _repr_png_(self) -> bytes:
        from PIL import Image  # noqa: PLC0415 - matplotlib brings it

        width, height = self.figure.get_size_inches()
        dpi = max(80, min(110, 1000 / width))  # as wide as a notebook
        pixels = Image.frombytes("RGBA", (int(width * dpi), int(height * dpi)), self._render("rgba", dpi))
        buffer = io.BytesIO()
        pixels.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(buffer, "png")  # a third of the size
        return buffer.getvalue()

    def _render(self, kind: str, dpi: float) -> bytes:
        buffer = io.BytesIO()
        with drawing():
            self.figure.savefig(buffer, format=kind, dpi=dpi, metadata=_TIMELESS.get(kind))
        return buffer.getvalue()


def check_picture(path: Path, option: str) -> None:
    """Check that a picture can be drawn and written there, before long work.

    Args:
        path: of the file.
        option: by which it was given, as errors say it.

    Raises:
        InputError: no file can be written there.
        MissingPackageError: matplotlib is not installed.
        SettingsError: the suffix names no format.
    """
    check_file(path, option)
    with drawing():
        _kind(path)


def _kind(path: Path) -> str:
    """The format that the suffix of a path names."""
    from matplotlib.backend_bases import FigureCanvasBase  # noqa: PLC0415 - an extra

    kind, known = path.suffix.removeprefix(".").lower(), FigureCanvasBase.get_supported_filetypes()
    if kind not in known:
        raise SettingsError(
            f"a picture cannot be saved as {path.name!r}: expected a suffix such as .png, .svg or .pdf, found "
            f"{path.suffix or 'none'!r}; matplotlib knows {', '.join(sorted(known))}"
        )
    return kind


@contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib's defaults with this package's style, whatever the user's settings, which come back afterwards.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: PLC0415 - an extra, and slow to load
    except ImportError as error:
        raise MissingPackageError(
            "pictures need matplotlib, which is not installed: pip install 'fx-oto[plot]'"
        ) from error
    settings: dict[Any, Any] = {
        key: matplotlib.rcParamsDefault[key] for key in matplotlib.rcParamsDefault if "backend" not in key
    }
    with matplotlib.rc_context(settings | _STYLE), uncollected():
        yield


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """An empty figure, its size in inches; to be called within ``drawing()``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra

    figure = Figure((width, height), facecolor="white", **options)
    FigureCanvasAgg(figure)
    return figure
