"""What a figure is made of, read from its artists: no pixels are looked at."""

from itertools import combinations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import AxesImage
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.text import Text

from ditscope.plot.theme import CHOSEN, themed


def words(figure):
    """Every text of the figure, in one string."""
    return "\n".join(text.get_text() for text in figure.findobj(Text) if text.get_text())


def titles(figure):
    """Titles of the panels, in order."""
    return [axes.get_title("left") for axes in figure.axes if axes.get_title("left")]


def images(figure):
    """Arrays of all images, in drawing order of the panels; hidden cells are NaN."""
    found = [image for axes in figure.axes for image in axes.findobj(AxesImage)]
    return [
        array.filled(float("nan")) if hasattr(array := image.get_array(), "filled") else array
        for image in found
        if image.get_array().dtype.kind == "f"
    ]


def pictures(figure):
    """Arrays of all images that have colours of their own."""
    found = [image for axes in figure.axes for image in axes.findobj(AxesImage)]
    return [image.get_array().data for image in found if image.get_array().ndim == 3]


def norms(figure):
    """(lowest, highest) of the colour scale of every image of numbers."""
    found = [image for axes in figure.axes for image in axes.findobj(AxesImage)]
    return [
        (image.norm.vmin, image.norm.vmax) for image in found if image.get_array().dtype.kind == "f"
    ]


def outlined(figure):
    """(row, column) of the outlined patch of every panel that has one."""
    frames = [r for axes in figure.axes for r in axes.findobj(Rectangle)]
    chosen = [frame for frame in frames if _hex(frame.get_edgecolor()) == CHOSEN]
    return [
        (round(f.get_y() + f.get_height() / 2), round(f.get_x() + f.get_width() / 2))
        for f in chosen
    ]


def hatched(figure):
    """Number of panels with a "no data" hatch."""
    return sum(any(p.get_hatch() for p in axes.findobj(PathPatch)) for axes in figure.axes)


@themed
def collisions(figure):
    """Texts that overlap each other or leave the figure; a well laid out figure has none."""
    FigureCanvasAgg(figure).draw()
    boxes = [
        (text.get_text(), text.get_window_extent())
        for text in figure.findobj(Text)
        if text.get_text().strip() and text.get_visible()
    ]
    outside = [
        words
        for words, box in boxes
        if box.x0 < -1 or box.y0 < -1 or box.x1 > figure.bbox.x1 + 1 or box.y1 > figure.bbox.y1 + 1
    ]
    touching = [
        (first[0], second[0])
        for first, second in combinations(boxes, 2)
        if min(first[1].x1, second[1].x1) - max(first[1].x0, second[1].x0) > 1
        and min(first[1].y1, second[1].y1) - max(first[1].y0, second[1].y0) > 1
    ]
    return outside + touching


def _hex(colour):
    return "#" + "".join(f"{round(part * 255):02x}" for part in colour[:3])
