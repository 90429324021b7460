"""What can be read off a figure: its texts and where they lie."""

from __future__ import annotations


def texts(figure):
    """Every text that is drawn, with its box in pixels."""
    import matplotlib.text

    renderer = figure.canvas.get_renderer()
    figure.draw(renderer)
    beyond = {label for axes in figure.axes for label in _beyond(axes)}
    found = [text for text in figure.findobj(matplotlib.text.Text) if text.get_visible() and text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in found if text not in beyond]


def _beyond(axes):
    """Labels of ticks outside the axes, or of axes without any, which matplotlib keeps but does not draw."""
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if not (axes.axison and low <= tick.get_loc() <= high):
                yield from (tick.label1, tick.label2)


def check_legible(picture):
    """Every text lies within the figure and no two lie on one another."""
    width, height = picture.figure.canvas.get_width_height()
    found = texts(picture.figure)
    assert len(found) > 3
    outside = [t for t, box in found if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height]
    assert not outside, outside
    near = []
    for text, box in sorted(found, key=lambda one: one[1].x0):
        near = [(other, at) for other, at in near if at.x1 > box.x0]
        hit = [other for other, at in near if _overlap(at, box)]
        assert not hit, (text, hit)
        near.append((text, box))


def _overlap(one, other):
    slack = 0.5  # pixels
    across = min(one.x1, other.x1) - max(one.x0, other.x0)
    down = min(one.y1, other.y1) - max(one.y0, other.y0)
    return across > slack and down > slack


def lines_of(picture):
    """The texts of a strip's body by row, from left to right, as (x, text) in inches; title and subtitle left out."""
    axes = picture.figure.axes[0]
    rows = {}
    for text in axes.texts[2:]:
        x, y = text.get_position()
        rows.setdefault(round(y, 4), []).append((x, text.get_text()))
    return {y: sorted(row) for y, row in sorted(rows.items())}


def boxes_of(picture):
    """Every box of a strip that is filled, in the order of drawing: left, top, right and bottom in inches, colour."""
    import matplotlib.colors
    from matplotlib.collections import PolyCollection

    found = [one for one in picture.figure.axes[0].collections if isinstance(one, PolyCollection)]
    for boxes in found:
        for path, colour in zip(boxes.get_paths(), boxes.get_facecolors(), strict=True):
            (left, top), (right, bottom) = path.vertices.min(0), path.vertices.max(0)
            if colour[3]:
                yield left, top, right, bottom, matplotlib.colors.to_hex(colour).upper()


def fills_at(picture, x, y):
    """Colours of the boxes that cover a point, in inches."""
    return [
        colour for left, top, right, bottom, colour in boxes_of(picture) if left <= x <= right and top <= y <= bottom
    ]
