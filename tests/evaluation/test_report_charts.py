"""Charts of the report: where points, bars and cells are drawn, against arithmetic done here."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation.report_charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    POINTS,
    RIGHT,
    SIDE,
    TOP,
    WIDTH,
    Series,
    bars,
    grid_map,
    line_chart,
    log_ticks,
    short,
    ticks,
)


def places(points: str) -> np.ndarray:
    return np.array([[float(value) for value in point.split(",")] for point in points.split()])


def test_points_are_where_their_values_are():
    chart = line_chart([Series("a", [0, 50, 100], [2.0, 3.0, 4.0])], "step", "loss")
    (curve,) = chart.curves
    found = places(curve.points)
    assert found[:, 0] == pytest.approx([LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT], abs=0.1)
    assert found[:, 1] == pytest.approx([HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) / 2, TOP], abs=0.1)
    for tick in chart.y_ticks:
        expected = HEIGHT - BOTTOM - (float(tick.label) - 2) / 2 * (HEIGHT - BOTTOM - TOP)
        assert tick.place == pytest.approx(expected, abs=0.1)
    assert "loss over step: a from 2 to 4." in chart.summary


def test_values_of_very_different_size_get_a_logarithmic_scale():
    chart = line_chart([Series("a", [0, 1, 2], [1.0, 10.0, 100.0])], "step", "loss")
    ys = places(chart.curves[0].points)[:, 1]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)
    assert (
        "logarithmic" in chart.y_label
        and "logarithmic" not in line_chart([Series("a", [0, 1], [1.0, 2.0])], "step", "loss").y_label
    )


def test_values_that_are_not_numbers_are_left_out_and_nothing_is_no_chart():
    chart = line_chart([Series("a", [0, 1, 2], [math.nan, 1.0, math.inf]), Series("b", [0], [math.nan])], "x", "y")
    (curve,) = chart.curves
    assert curve.single is not None, "a curve of one point is drawn as a dot"
    assert line_chart([], "x", "y") is None and line_chart([Series("b", [0], [math.nan])], "x", "y") is None
    assert "nan" not in f"{chart}" and "inf" not in f"{chart}"


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-12, 5e9])
def test_equal_values_are_drawn_in_the_middle(value):
    chart = line_chart([Series("a", [0, 1], [value, value])], "x", "y")
    assert all(TOP <= y <= HEIGHT - BOTTOM for y in places(chart.curves[0].points)[:, 1])


def test_long_curves_are_thinned_and_keep_their_last_point():
    steps = list(range(10 * POINTS + 3))
    points = Series("a", steps, steps).points()
    assert len(points) <= POINTS + 1 and points[0] == (0, 0) and points[-1] == (steps[-1], steps[-1])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.13, 0.17), (-3, 12), (1e-7, 3e-7), (980, 1020)])
def test_ticks_are_round_and_inside(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 8 and all(low - 1e-12 <= tick <= high + 1e-12 for tick in found)
    step = found[1] - found[0]
    assert np.diff(found) == pytest.approx(step)
    assert f"{step:.3e}"[:3] in ("1.0", "2.0", "2.5", "5.0")


def test_logarithmic_ticks_are_powers_of_ten():
    assert log_ticks(0.5, 20000) == [1, 10, 100, 1000, 10000]
    assert log_ticks(1, 30) == [1, 2, 5, 10, 20]


def test_parts_of_bars_add_up():
    made = bars({"uniform": {"distortion": 3.0, "codes": 1.0}, "prior": {"distortion": 3.0, "codes": 0.5}}, "bits")
    longest, other = made.bars
    assert [part.length for part in longest.parts] == [75.0, 25.0] and longest.end == 100
    assert [part.length for part in other.parts] == [75.0, 12.5] and other.parts[1].start == 75.0
    assert longest.parts[0].look == other.parts[0].look != longest.parts[1].look
    assert made.looks["codes"] == bars({"prior": {"codes": 1.0}}, "bits").looks["codes"], "alike in every picture"
    assert (longest.total, other.total) == ("4", "3.5")
    assert bars({}, "bits") is None and bars({"prior": {"codes": 0.0}}, "bits") is None


def test_a_map_is_darkest_where_the_value_is_largest_and_empty_where_there_is_none():
    found = grid_map("codes", [[1.0, 2.0], [None, 3.0]], "bits")
    assert [(cell.strength, cell.empty) for cell in found.cells] == [
        (0.0, False),
        (0.5, False),
        (0.0, True),
        (1.0, False),
    ]
    assert (found.low, found.high) == ("1", "3") and "2 x 2" in found.summary


def test_a_codebook_that_fills_no_square_has_no_further_cells():
    found = grid_map("codebook", [[1.0, 2.0], [None, math.nan]], "times", numbers=False)
    assert [(cell.column, cell.row, cell.empty) for cell in found.cells] == [(0, 0, False), (1, 0, False), (0, 1, True)]
    assert (found.low, found.columns, found.rows) == ("1", 2, 2)


def test_a_large_map_has_means_of_blocks():
    values = np.arange(64 * 48, dtype=float).reshape(64, 48)
    found = grid_map("codes", values.tolist(), "bits")
    assert (found.rows, found.columns) == (32, 24) and max(found.rows, found.columns) <= SIDE
    means = values.reshape(32, 2, 24, 2).mean((1, 3))
    strengths = np.array([cell.strength for cell in found.cells]).reshape(32, 24)
    assert strengths == pytest.approx((means - means.min()) / (means.max() - means.min()), abs=1e-3)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (12345.6, "12,346"), (0.12345, "0.1235"), (1e-7, "1.0e-07"), (3.0, "3")]
)
def test_numbers_are_short(value, text):
    assert short(value) == text
