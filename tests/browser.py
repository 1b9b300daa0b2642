"""A headless Chromium that reaches this machine alone, for tests of pages."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from extras import require

CHROMIUM, DRIVER = "chromium", "chromedriver"
PATIENCE = 600  # seconds until an answer is given up; nothing is timed
SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-unsafe-swiftshader",  # the canvas to paint on is drawn by WebGL
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)


@contextmanager
def chromium(width: int = 1280, height: int = 900) -> Iterator[Any]:
    """A window of a new Chromium, driven by selenium. Its network ends at this machine."""
    require("selenium", programs=(CHROMIUM, DRIVER))
    from selenium import webdriver

    with TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which(CHROMIUM)
        for switch in (*SWITCHES, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(switch)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which(DRIVER)))
        # A headless window is no narrower than 500 pixels, but the page can be told that it is.
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        try:
            yield driver
        finally:
            driver.quit()


def wait(until: Callable[[], Any], what: str) -> Any:
    """The first result that is true, of calls again and again. A part of the page may vanish while it is read."""
    from selenium.common.exceptions import WebDriverException

    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if found := until():
                return found
        except WebDriverException:
            pass
        time.sleep(0.2)
    raise AssertionError(f"waited {PATIENCE} seconds in vain for {what}")


def part(driver: Any, selector: str) -> Any:
    """The first part of the page that is shown and fits a CSS selector."""
    from selenium.webdriver.common.by import By

    return wait(
        lambda: next((e for e in driver.find_elements(By.CSS_SELECTOR, selector) if e.is_displayed()), None), selector
    )


def click(driver: Any, selector: str) -> None:
    """Click a button once it can be clicked."""
    wait(lambda: part(driver, selector).is_enabled(), f"{selector} to be enabled")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", part(driver, selector))
    wait(lambda: part(driver, selector).click() or True, f"a click on {selector}")


def tab(driver: Any, name: str) -> None:
    """Open a tab of the page by its name."""
    from selenium.webdriver.common.by import By

    def found() -> Any:
        buttons = driver.find_elements(By.CSS_SELECTOR, "button[role=tab]")
        return next((button for button in buttons if button.text.strip() == name and button.is_displayed()), None)

    wait(lambda: wait(found, name).click() or True, f"the tab {name}")


def write(driver: Any, selector: str, text: str) -> None:
    """Replace what stands in a field."""
    from selenium.webdriver.common.keys import Keys

    field = part(driver, selector)
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(text, Keys.TAB)


def images(driver: Any, selector: str) -> list[str]:
    """The addresses of the images in a part of the page that have been loaded."""
    script = "return [...document.querySelectorAll(arguments[0] + ' img')].filter(i => i.naturalWidth).map(i => i.src)"
    return driver.execute_script(script, selector)


def outside(driver: Any) -> list[str]:
    """What the page asked of another address than its own."""
    script = "return performance.getEntriesByType('resource').map(e => e.name)"
    own = ("http://127.0.0.1:", "data:", "blob:http://127.0.0.1:")
    return [name for name in driver.execute_script(script) if not name.startswith(own)]


def errors(driver: Any) -> list[str]:
    """The errors on the console."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def paint(driver: Any, selector: str, strokes: list[tuple[int, int, int, int]]) -> None:
    """Paint straight strokes (x, y, dx, dy), pixels from the middle of a canvas."""
    from selenium.webdriver.common.action_chains import ActionChains

    canvas = part(driver, selector)
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    for x, y, dx, dy in strokes:
        moves = ActionChains(driver).move_to_element_with_offset(canvas, x, y).click_and_hold()
        for _ in range(4):
            moves = moves.move_by_offset(dx // 4, dy // 4)
        moves.release().perform()


def screenshot(driver: Any, path: Path) -> None:
    """Write what the window shows as a PNG file."""
    driver.save_screenshot(str(path))


def choose(driver: Any, selector: str, name: str) -> None:
    """Choose an entry of a list that opens."""
    from selenium.webdriver.common.by import By

    click(driver, f"{selector} input")

    def entry() -> Any:
        entries = driver.find_elements(By.CSS_SELECTOR, "[role=option]")
        return next((e for e in entries if name in e.text and e.is_displayed()), None)

    wait(lambda: wait(entry, name).click() or True, name)
    wait(lambda: part(driver, f"{selector} input").get_attribute("value") == name, f"{name} to be chosen")


def upload(driver: Any, selector: str, file: Path) -> None:
    """Upload a file, in place of the one that is there."""
    from selenium.webdriver.common.by import By

    for button in driver.find_elements(By.CSS_SELECTOR, f"{selector} button[aria-label=Clear]"):
        button.click()
    wait(lambda: driver.find_elements(By.CSS_SELECTOR, f"{selector} input[type=file]"), selector)[0].send_keys(
        str(file)
    )


def messages(driver: Any) -> str:
    """The text of all messages that the page shows now."""
    from selenium.webdriver.common.by import By

    return "\n".join(e.text for e in driver.find_elements(By.CSS_SELECTOR, ".toast-body"))
