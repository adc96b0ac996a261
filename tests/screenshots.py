"""A report in a headless Chromium, and the pictures of it that README.md shows.

.venv/bin/python tests/screenshots.py runs/grid/report
"""

import base64
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SCREENSHOTS = Path(__file__).with_name("screenshots")


class Picture(NamedTuple):
    """What of a report's page is shown: from which heading on, how large, in which scheme."""

    heading: str
    width: int
    height: int
    scheme: str


PICTURES = {
    "report_figures": Picture("Training loss", 1400, 1020, "light"),
    "report_phone_dark": Picture("Table 2", 400, 920, "dark"),
}


@contextmanager
def browsing() -> Generator[webdriver.Chrome]:
    """A headless Chromium that keeps what pages log."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or ""
    for switch in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, Service(DRIVER)) as driver:
        yield driver


def opened(
    browser: webdriver.Chrome, report: Path, width: int, scheme: str, height: int = 900
) -> None:
    """Open the report's page in a window of so many pixels, in the "light" or "dark" scheme."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get((report / "report.html").resolve().as_uri())


def take(browser: webdriver.Chrome, report: Path, folder: Path) -> None:
    """Write the pictures into the folder as png."""
    for name, (heading, width, height, scheme) in PICTURES.items():
        opened(browser, report, width, scheme, height)
        element = browser.find_element("xpath", f"//h3[starts-with(., '{heading}')]")
        browser.execute_script("arguments[0].scrollIntoView()", element)
        png = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
        (folder / f"{name}.png").write_bytes(base64.b64decode(png))


if __name__ == "__main__":
    with browsing() as browser:
        take(browser, Path(sys.argv[1]), SCREENSHOTS)
