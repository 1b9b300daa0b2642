"""Charts of the report as plain values, which templates/charts.html draws as SVG. No torch.

matplotlib is no dependency of a run, and its pictures have fixed colours; these follow the page's light or dark scheme.
Sizes are in units of the SVG's own coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 60, 26, 12, 44  # margins around the plotted area
POINTS = 400  # the most points of a curve that are drawn, its last one not counted
LOGARITHMIC = 20  # ratio of the largest to the smallest value from which on a scale is logarithmic
NUMBERED = 100  # cells of a map that show their values, at most
SIDE = 32  # cells of a map's side, at most; of larger grids each cell is a mean
PARTS = ("distortion", "codes", "label", "rate")  # of bars, which look alike in all of them
COLOURS = 6  # curves of one chart that look different


@dataclass(frozen=True)
class Series:
    """One curve: its name, and its points in the order of x. Points that are not finite are left out."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]

    def points(self) -> list[tuple[float, float]]:
        """The points (x, y) to draw: every k-th of the finite ones, from the first on, and always the last one.

        k is the smallest whole number that leaves at most `POINTS` of them, the last one not counted. It is 1 if there
        are no more than `POINTS`.
        """
        found = [(x, y) for x, y in zip(self.xs, self.ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
        every = -(-len(found) // POINTS) or 1
        return found[::every] + (found[-1:] if (len(found) - 1) % every else [])


@dataclass(frozen=True)
class Tick:
    place: float
    label: str


@dataclass(frozen=True)
class Curve:
    """A drawn curve: its name, its look (a number below `COLOURS`), and the points as SVG has them."""

    name: str
    look: int
    points: str
    single: tuple[float, float] | None = None  # the place of a curve of one point, which a line would not show


@dataclass(frozen=True)
class Chart:
    """A chart of curves over one horizontal axis.

    Attributes:
        summary: what the chart shows, in words, for those who do not see it.
    """

    curves: list[Curve]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_label: str
    y_label: str
    summary: str
    kind: str = "chart"

    @property
    def legend(self) -> list[tuple[str, int]]:
        """The name and the look of each curve."""
        return [(curve.name, curve.look) for curve in self.curves]


@dataclass(frozen=True)
class Part:
    """A part of a bar: its name, the number of its colour, and its value as text.

    `start` and `length` are in per cent of the longest bar.
    """

    name: str
    look: int
    start: float
    length: float
    value: str


@dataclass(frozen=True)
class Bar:
    name: str
    parts: list[Part]
    total: str
    end: float


@dataclass(frozen=True)
class Bars:
    """Bars of several parts each, one below the other."""

    title: str
    bars: list[Bar]
    looks: dict[str, int]
    summary: str
    kind: str = "bars"


@dataclass(frozen=True)
class Cell:
    """A square of a map: its column and row, its strength from 0 to 1, and its value as text, empty if not shown."""

    column: int
    row: int
    strength: float
    text: str = ""
    empty: bool = False

    @property
    def opacity(self) -> float:
        """How strongly it is coloured: the weakest is still seen."""
        return round(0.08 + 0.92 * self.strength, 3)


@dataclass(frozen=True)
class Map:
    """A grid of values, the darker the larger.

    Attributes:
        low, high: the values of the weakest and of the strongest colour, as text.
    """

    title: str
    columns: int
    rows: int
    cells: list[Cell]
    low: str
    high: str
    summary: str


@dataclass(frozen=True)
class Maps:
    maps: list[Map] = field(default_factory=list)
    kind: str = "maps"


def short(value: float) -> str:
    """A number as a person reads it: four significant digits, whole thousands with commas."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1000 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.1e}" if abs(value) < 0.0001 else f"{value:.4g}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from `low` to `high`, with 2 and 5 times these where there are few."""
    factors = (1,) if high / low > 1000 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]


def _scale(low: float, high: float, start: float, end: float, logarithmic: bool) -> Callable[[float], float]:
    change = math.log if logarithmic else float
    first, span = change(low), change(high) - change(low)
    return lambda value: round(start + (end - start) * (change(value) - first) / span, 1)


def line_chart(series: Sequence[Series], x_label: str, y_label: str) -> Chart | None:
    """A chart of curves, or None if no curve has a point. Values of very different size get a logarithmic scale."""
    drawn = [(one, one.points()) for one in series]
    drawn = [(one, points) for one, points in drawn if points]
    if not drawn:
        return None
    xs, ys = ([point[axis] for _, points in drawn for point in points] for axis in (0, 1))
    logarithmic = min(ys) > 0 and max(ys) / min(ys) >= LOGARITHMIC
    (left, right), (low, high) = _range(xs), _range(ys)
    if logarithmic:
        low, high = min(ys) / 1.1, max(ys) * 1.1
    elif min(ys) >= 0 and low < 0.4 * high:
        low = 0.0
    across = _scale(left, right, LEFT, WIDTH - RIGHT, False)
    up = _scale(low, high, HEIGHT - BOTTOM, TOP, logarithmic)
    curves = []
    for number, (one, points) in enumerate(drawn):
        text = " ".join(f"{across(x)},{up(y)}" for x, y in points)
        single = (across(points[0][0]), up(points[0][1])) if len(points) == 1 else None
        curves.append(Curve(one.name, number % COLOURS, text, single))
    told = "; ".join(
        f"{one.name} from {short(points[0][1])} to {short(points[-1][1])}"
        if len(points) > 1
        else f"{one.name} {short(points[0][1])}"
        for one, points in drawn
    )
    return Chart(
        curves,
        [Tick(across(x), short(x)) for x in ticks(left, right)],
        [Tick(up(y), short(y)) for y in (log_ticks if logarithmic else ticks)(low, high)],
        x_label,
        f"{y_label} (logarithmic)" if logarithmic else y_label,
        f"{y_label} over {x_label}: {told}.",
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The smallest and the largest value, apart from one another also where they are the same."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        wide = abs(high) / 10 or 1.0
        return low - wide, high + wide
    return low, high


def bars(rows: dict[str, dict[str, float]], unit: str, title: str = "") -> Bars | None:
    """Bars by name, each of parts by name that add up to its length; None if there is nothing to draw."""
    names = list(dict.fromkeys(name for parts in rows.values() for name in parts))
    looks = {name: PARTS.index(name) % COLOURS if name in PARTS else len(PARTS) % COLOURS for name in names}
    longest = max((sum(parts.values()) for parts in rows.values()), default=0)
    if not longest > 0 or not math.isfinite(longest):
        return None
    found = []
    for name, parts in rows.items():
        place, drawn = 0.0, []
        for part, value in parts.items():
            length = 100 * max(0.0, value) / longest
            drawn.append(Part(part, looks[part], round(place, 2), round(length, 2), short(value)))
            place += length
        found.append(Bar(name, drawn, short(sum(parts.values())), round(place, 2)))
    told = "; ".join(
        f"{bar.name}: {bar.total}, of which " + ", ".join(f"{part.name} {part.value}" for part in bar.parts)
        for bar in found
    )
    return Bars(title, found, looks, f"{title or 'Bars'}, in {unit}: {told}.")


def grid_map(title: str, rows: Sequence[Sequence[float | None]], unit: str, numbers: bool = True) -> Map:
    """A map of a grid of values, row by row.

    None stands for a cell without a value, which is drawn empty; nan for no cell at all, at the end of the last row.

    Args:
        numbers: whether cells show their values, where there are few.
    """
    cells = _pooled(rows)
    cells = [[value for value in row if value is None or not math.isnan(value)] for row in cells]
    known = [value for row in cells for value in row if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    span = high - low
    texts = numbers and sum(map(len, cells)) <= NUMBERED
    drawn = [
        Cell(column, row, 0.0, empty=True)
        if value is None
        else Cell(column, row, round((value - low) / span, 3) if span else 0.5, f"{value:.3g}" if texts else "")
        for row, values in enumerate(cells)
        for column, value in enumerate(values)
    ]
    height, width = len(rows), len(rows[0])
    summary = f"{title}: a grid of {height} x {width} values of {unit}, from {short(low)} to {short(high)}."
    return Map(title, len(cells[0]), len(cells), drawn, short(low), short(high), summary)


def _pooled(rows: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    """A grid with at most `SIDE` cells a side: means of blocks of a larger one."""
    block = -(-max(len(rows), len(rows[0])) // SIDE)
    found: list[list[float | None]] = []
    for top in range(0, len(rows), block):
        line: list[float | None] = []
        for left in range(0, len(rows[0]), block):
            inside = [v for row in rows[top : top + block] for v in row[left : left + block] if v is not None]
            line.append(sum(inside) / len(inside) if inside else None)
        found.append(line)
    return found
