"""Screenshots of the server's page for docs/serving.md.

    python examples/serve_screenshots.py [DIRECTORY]

Starts `cvt serve` on a free port, and chromium with its driver (Debian packages chromium and
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
    """Take a screenshot of the full page at `url` after a sample image, or after `file`."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                     "--disable-background-networking", "--hide-scrollbars"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})

        def set_height(pixels: int) -> None:
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
                "width": width, "height": pixels, "deviceScaleFactor": 1, "mobile": width < 600})

        def displayed(selector: str) -> bool:
            elements = browser.find_elements(By.CSS_SELECTOR, selector)
            return bool(elements) and elements[0].is_displayed()

        set_height(600)
        browser.get(url)
        wait = WebDriverWait(browser, 30)
        wait.until(lambda _: displayed("#samples button"))
        if file is None:
            browser.find_element(By.CSS_SELECTOR, "#samples button[title=dress]").click()
            wait.until(lambda _: displayed("#explanation"))
            browser.find_element(By.CSS_SELECTOR, "input[value=rollout]").click()
        else:
            browser.find_element(By.ID, "file").send_keys(str(file))
            wait.until(lambda _: browser.find_element(By.ID, "error").text)
        set_height(browser.execute_script("return document.documentElement.offsetHeight"))
        browser.save_screenshot(str(path))
    finally:
        browser.quit()


def main() -> None:
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images")
    output.mkdir(parents=True, exist_ok=True)
    server = subprocess.Popen([sys.executable, "-m", "cvt", "serve", "--port", "0"],
                              stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        url = json.loads(next(line for line in server.stderr if '"listening"' in line))["url"]
        with tempfile.TemporaryDirectory() as name:
            text = Path(name) / "letter.txt"
            text.write_text("This is not an image.")
            shoot(url, output / "serve_light.png", width=1100)
            shoot(url, output / "serve_dark.png", width=1100, dark=True)
            shoot(url, output / "serve_phone.png", width=390)
            shoot(url, output / "serve_error.png", width=1100, file=text)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
