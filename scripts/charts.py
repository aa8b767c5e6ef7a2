"""Line charts as SVG: panels with axes, marked places, and lines that are labelled where they end."""

import math
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

INK, QUIET, GRID, PAPER = "#222222", "#6b6b6b", "#e4e4e0", "#fdfdfb"
# Dark enough to be read as text on the paper, and told apart by most kinds of colour vision where lines are near.
COLOURS = ["#222222", "#1b62c4", "#c0392b", "#0b7a57", "#8e3bb5", "#a35a00", "#007a94", "#c2187a", "#5c6b1f", "#5b4bd0"]
LABEL_HEIGHT = 15


@dataclass
class Series:
    """A line: what is written at its end, and its points in order of x."""

    label: str
    points: list
    colour: str = INK
    width: float = 1.8


@dataclass
class Panel:
    """A chart; `left`, `top`, `width` and `height` are of the area between its axes, in px."""

    title: str
    y_label: str
    left: int
    top: int
    width: int
    height: int
    series: list
    x_label: str = "step"
    # Places on the x axis, where something happens, and what.
    marks: list = field(default_factory=list)
    # Whether equal proportions are equally far apart on the y axis.
    logarithmic: bool = False

    def __post_init__(self):
        points = [point for line in self.series for point in line.points]
        self.x_ticks = ticks(min(x for x, _ in points), max(x for x, _ in points), self.width // 90)
        y_range = min(y for _, y in points), max(y for _, y in points)
        self.y_ticks = log_ticks(*y_range) if self.logarithmic else ticks(*y_range, self.height // 45)
        self.x_end = max(x for x, _ in points)

    def x(self, value):
        return self.left + self.width * (value - self.x_ticks[0]) / (max(self.x_end, self.x_ticks[-1]) - self.x_ticks[0])

    def y(self, value):
        low, value, high = (math.log(y) if self.logarithmic else y for y in (self.y_ticks[0], value, self.y_ticks[-1]))
        return self.top + self.height * (high - value) / (high - low)


def ticks(low, high, most):
    """Round numbers from at most `low` to at least `high`, about `most` of them."""
    if low == high:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / max(most, 1)
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low, high):
    """Round numbers above 0, from at most `low` to at least `high`, some seven to a factor of ten."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    steps = [m * 10**decade for decade in decades for m in (1, 1.5, 2, 3, 4, 6, 8)]
    return [step for step in steps if max(s for s in steps if s <= low) <= step <= min(s for s in steps if s >= high)]


def spread(places, gap, lowest, highest):
    """Moves places (in any order) apart until they are `gap` from each other, as little as may be."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    # Groups of places that touch: where they would like to begin on the whole, and which they are.
    groups = []
    for i in order:
        groups.append(([places[i]], [i]))
        while len(groups) > 1 and top_of(groups[-2], gap) + gap * len(groups[-2][0]) > top_of(groups[-1], gap):
            (wanted, members), (more, others) = groups[-2:]
            groups[-2:] = [(wanted + more, members + others)]
    moved = [0.0] * len(places)
    for group in groups:
        begin = max(lowest, min(top_of(group, gap), highest - gap * (len(group[0]) - 1)))
        for n, i in enumerate(group[1]):
            moved[i] = begin + n * gap
    return moved


def top_of(group, gap):
    wanted, _ = group
    return sum(place - n * gap for n, place in enumerate(wanted)) / len(wanted)


def number(value):
    return f"{value:,.10g}"


def text(x, y, words, size=12, colour=INK, anchor="start", more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"{more}>{escape(words)}</text>'


def line(x1, y1, x2, y2, colour, width=1.0, more=""):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"{more}/>'


def axes(panel):
    right, bottom = panel.left + panel.width, panel.top + panel.height
    yield text(panel.left, panel.top - 32, panel.title, 14, more=' font-weight="600"')
    yield text(panel.left, panel.top - 14, panel.y_label, 11, QUIET)
    for tick in panel.y_ticks:
        yield line(panel.left, panel.y(tick), right, panel.y(tick), GRID)
        yield text(panel.left - 8, panel.y(tick) + 4, number(tick), 11, QUIET, "end")
    for tick in panel.x_ticks:
        yield line(panel.x(tick), bottom, panel.x(tick), bottom + 4, QUIET)
        yield text(panel.x(tick), bottom + 18, number(tick), 11, QUIET, "middle")
    yield line(panel.left, bottom, right, bottom, QUIET)
    yield text(right, bottom + 34, panel.x_label, 11, QUIET, "end")


def marks(panel):
    for place, words in panel.marks:
        x = panel.x(place)
        yield line(x, panel.top, x, panel.top + panel.height, QUIET, more=' stroke-dasharray="4 4"')
        yield text(x + 5, panel.top + 11, words, 11, QUIET)


def lines(panel):
    ends = [panel.y(one.points[-1][1]) for one in panel.series]
    labels = spread(ends, LABEL_HEIGHT, panel.top, panel.top + panel.height)
    for one, end, label in zip(panel.series, ends, labels):
        path = " ".join(f"{panel.x(x):.1f},{panel.y(y):.1f}" for x, y in one.points)
        yield f'<polyline points="{path}" fill="none" stroke="{one.colour}" stroke-width="{one.width}" stroke-linejoin="round"/>'
        x = panel.x(one.points[-1][0])
        yield f'<circle cx="{x:.1f}" cy="{end:.1f}" r="2.5" fill="{one.colour}"/>'
        yield line(x + 5, end, x + 18, label, one.colour, 0.7)
        yield text(x + 22, label + 4, one.label, 12, one.colour)


def draw(title, subtitle, panels, width, height):
    """The whole picture, as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, -apple-system, \'Segoe UI\', \'DejaVu Sans\', sans-serif" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
        text(32, 42, title, 20, more=' font-weight="600"'),
        text(32, 64, subtitle, 13, QUIET),
    ]
    for panel in panels:
        parts += [*axes(panel), *marks(panel), *lines(panel)]
    return "\n".join([*parts, "</svg>", ""])
