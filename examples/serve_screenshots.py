"""Images of the server's page, in a real browser, for docs/serving.md.

    python examples/serve_screenshots.py [DIRECTORY]

It starts `cvt serve` on a free port, and chromium with its driver (Debian's packages chromium and
chromium-driver).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait


def shoot(url: str, path: Path, *, width: int, dark: bool = False, file: Path | None = None
          ) -> None:
    """The page at `url` after a sample, or after `file` was chosen, as high as it is."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                     "--disable-background-networking", "--hide-scrollbars"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})

        def high(pixels: int) -> None:
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
                "width": width, "height": pixels, "deviceScaleFactor": 1, "mobile": width < 600})

        def seen(selector: str) -> bool:
            found = browser.find_elements(By.CSS_SELECTOR, selector)
            return bool(found) and found[0].is_displayed()

        high(600)
        browser.get(url)
        wait = WebDriverWait(browser, 30)
        wait.until(lambda _: seen("#samples button"))
        if file is None:
            browser.find_element(By.CSS_SELECTOR, "#samples button[title=dress]").click()
            wait.until(lambda _: seen("#explanation"))
            browser.find_element(By.CSS_SELECTOR, "input[value=rollout]").click()
        else:
            browser.find_element(By.ID, "file").send_keys(str(file))
            wait.until(lambda _: browser.find_element(By.ID, "error").text)
        high(browser.execute_script("return document.documentElement.offsetHeight"))
        browser.save_screenshot(str(path))
    finally:
        browser.quit()


def main() -> None:
    to = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images")
    to.mkdir(parents=True, exist_ok=True)
    server = subprocess.Popen([sys.executable, "-m", "cvt", "serve", "--port", "0"],
                              stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        url = json.loads(next(line for line in server.stderr if '"listening"' in line))["url"]
        with tempfile.TemporaryDirectory() as name:
            text = Path(name) / "letter.txt"
            text.write_text("This is not an image.")
            shoot(url, to / "serve_light.png", width=1100)
            shoot(url, to / "serve_dark.png", width=1100, dark=True)
            shoot(url, to / "serve_phone.png", width=390)
            shoot(url, to / "serve_error.png", width=1100, file=text)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
