"""The report in headless Chromium, on a wide screen and on a phone's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import browser
import extras
import pytest

from evaluation import report

pytestmark = pytest.mark.slow

RUNS: dict[str, dict[str, Any]] = {
    "labelled": {},
    "unlabelled, two levels": {"shape": (3, 8, 16), "classes": 0, "strides": [2, 2], "sizes": [4, 6]},
    "long names": {"names": ("x" * 120, "a name of several words " * 6, "<b>bold</b>")},
}
# Parts that begin or end beside the page, but for those inside a box that scrolls by itself.
BESIDE = """
const wide = document.documentElement.clientWidth, scrolls = e => /auto|scroll/.test(getComputedStyle(e).overflowX);
const inside = e => { for (let p = e.parentElement; p; p = p.parentElement) if (scrolls(p)) return true; return false };
return [...document.body.querySelectorAll("*")].filter(e => {
    const box = e.getBoundingClientRect();
    return box.right > 0 && box.width && (box.left < -1 || box.right > wide + 1) && !inside(e);
}).map(e => e.tagName + " " + e.textContent.slice(0, 60));
"""
BROKEN = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"
HIDDEN = "return [...document.querySelectorAll('section, figure, h2')].filter(e => !e.offsetHeight).map(e => e.id)"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("arguments", RUNS.values(), ids=RUNS)
def test_the_page_is_shown_whole_and_asks_for_nothing(
    evaluated: Callable[..., Path], arguments: dict[str, Any], width: int
) -> None:
    extras.require("selenium", programs=(browser.CHROMIUM, browser.DRIVER))
    evaluated(**arguments)
    assert report.main([]) == 0
    with browser.chromium(width, 900) as driver:
        driver.get(report.REPORT.resolve().as_uri())
        assert driver.execute_script("return innerWidth") == width
        assert driver.execute_script("return document.querySelectorAll('section').length") > 5
        assert driver.execute_script(BESIDE) == []
        assert driver.execute_script(BROKEN) == [] and driver.execute_script(HIDDEN) == []
        assert [name for name in browser.outside(driver) if not name.startswith("file:")] == []
        assert browser.errors(driver) == []
