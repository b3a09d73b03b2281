"""The page in a real browser: Debian's chromium and chromium-driver."""

import base64
import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))

pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="there is no browser; apt-get install chromium chromium-driver")]


@pytest.fixture(scope="module")
def chrome():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                     "--disable-background-networking", "--disable-dev-shm-usage",
                     "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def samples(tmp_path, image):
    for i in range(3):
        (tmp_path / f"sample {i}.png").write_bytes(image(i))
    return tmp_path


@pytest.fixture
def page(chrome, served, samples):
    """page(width=1100, dark=False, **server): a server's page in a window of that width."""
    def page(width=1100, dark=False, **server):
        client = served(samples=samples, **server)
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600})
        chrome.get_log("browser")
        chrome.get(f"http://127.0.0.1:{client.port}/")
        return chrome

    return page


def find(page, selector):
    return page.find_element(By.CSS_SELECTOR, selector)


def until(page, condition):
    return WebDriverWait(page, 20, poll_frequency=0.05).until(lambda _: condition())


def click(page, selector):
    until(page, lambda: page.find_elements(By.CSS_SELECTOR, selector))
    find(page, selector).click()


def until_seen(page):
    until(page, lambda: find(page, "#explanation").is_displayed())


def bars(page):
    return [item.text.split("\n") for item in page.find_elements(By.CSS_SELECTOR, "#classes li")]


def overlay(page):
    return page.execute_script("return document.getElementById('overlay').toDataURL()")


def label(page):
    return find(page, "#overlay").get_attribute("aria-label")


def test_a_sample_shows_its_predictions_and_explanation(page, predictor, image):
    page = page()
    assert "tiny, 4 classes, eager fp32" in until(page, lambda: find(page, "#model").text)
    click(page, "#samples li:nth-child(2) button")
    until_seen(page)

    [prediction] = predictor([image(1)], 4)
    assert bars(page) == [[name, f"{p:.1%}"] for name, p in prediction.classes]
    widths = [bar.size["width"] for bar in page.find_elements(By.CSS_SELECTOR, ".bar div")]
    assert widths == sorted(widths, reverse=True)
    assert "ms on the server" in find(page, "#latency").text
    assert find(page, "#status").get_attribute("textContent").startswith(prediction.classes[0][0])
    tokens = page.find_elements(By.CSS_SELECTOR, "#tokens figcaption")
    until(page, lambda: [t.text for t in tokens] == ["Stage 1: 8x8", "Stage 2: 4x4"])
    assert page.get_log("browser") == []


def test_each_option_shows_another_map(page):
    page = page()
    click(page, "#samples button")
    until_seen(page)
    seen = {label(page): overlay(page)}

    Select(find(page, "#stage")).select_by_value("1")
    seen[label(page)] = overlay(page)
    click(page, "input[value=attention]")
    seen[label(page)] = overlay(page)
    for selector, value in (("#head", "0"), ("#head", "1"), ("#block", "0")):
        Select(find(page, selector)).select_by_value(value)
        seen[label(page)] = overlay(page)
    for value in ("rollout", "input"):
        click(page, f"input[value={value}]")
        seen[label(page)] = overlay(page)

    assert len(seen) == 8
    assert len(set(seen.values())) == 8
    assert not find(page, "#stage").is_displayed()
    click(page, "input[value=grad_cam]")
    target = Select(find(page, "#target"))
    other = target.options[1].get_attribute("value")
    target.select_by_value(other)
    until(page, lambda: f"Grad-CAM of {other} " in label(page))


def test_names_are_text_and_never_markup(page):
    page = page()
    click(page, "#samples button")
    until_seen(page)
    assert "<b>dog</b>" in [name for name, _ in bars(page)]
    assert page.find_elements(By.TAG_NAME, "b") == []


def test_a_file_that_is_no_image_shows_an_error_and_the_next_is_classified(page, tmp_path, image):
    page = page()
    until(page, lambda: find(page, "#model").text)
    (tmp_path / "text.txt").write_text("no image")
    (tmp_path / "good.png").write_bytes(image(5))
    find(page, "#file").send_keys(str(tmp_path / "text.txt"))
    until(page, lambda: "not an image" in find(page, "#error").text)
    assert not find(page, "#predictions").is_displayed()
    assert find(page, "#error").get_attribute("role") == "alert"

    find(page, "#file").send_keys(str(tmp_path / "good.png"))
    until_seen(page)
    assert find(page, "#error").get_attribute("textContent") == ""


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_an_image_may_be_dropped_or_pasted(page, image, kind):
    page = page()
    until(page, lambda: find(page, "#model").text)
    page.execute_script("""
        const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], "a.png", {type: "image/png"}));
        document.dispatchEvent(arguments[1] === "drop"
            ? new DragEvent("drop", {dataTransfer: data, bubbles: true})
            : new ClipboardEvent("paste", {clipboardData: data, bubbles: true}));
        """, base64.b64encode(image()).decode(), kind)
    until_seen(page)
    assert len(bars(page)) == 4


def test_the_camera_takes_an_image(page):
    page = page()
    until(page, lambda: find(page, "#model").text)
    click(page, "#camera")
    until(page, lambda: page.execute_script("return document.getElementById('video').videoWidth"))
    click(page, "#capture")
    until_seen(page)
    assert len(bars(page)) == 4
    assert not find(page, "#live").is_displayed()


def test_it_works_with_the_keyboard_alone(page):
    page = page()
    until(page, lambda: page.find_elements(By.CSS_SELECTOR, "#samples button"))

    def focused():
        return page.switch_to.active_element

    def tab_to(wanted):
        for _ in range(30):
            if wanted(focused()):
                return
            ActionChains(page).send_keys(Keys.TAB).perform()
        raise AssertionError("the keyboard does not reach it")

    tab_to(lambda e: e.get_attribute("title") == "sample 1")
    ActionChains(page).send_keys(Keys.ENTER).perform()
    until_seen(page)
    before = overlay(page)
    tab_to(lambda e: e.get_attribute("name") == "show")
    ActionChains(page).send_keys(Keys.ARROW_DOWN).perform()
    assert label(page).startswith("Attention of the class token")
    assert overlay(page) != before


def test_every_control_has_a_name_for_screen_readers(page):
    page = page()
    click(page, "#samples button")
    until_seen(page)
    tree = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {"button", "combobox", "radio", "slider", "link", "textbox", "img", "image", "Canvas"}
    nodes = [n for n in tree if not n["ignored"] and n["role"]["value"] in roles]
    assert len(nodes) > 12
    assert [n["role"]["value"] for n in nodes if not n.get("name", {}).get("value")] == []
    headings = [n["name"]["value"] for n in tree if not n["ignored"]
                and n["role"]["value"] == "heading"]
    assert headings[:2] == ["CvT", "Image"]


def test_a_phone_needs_no_horizontal_scrolling(page):
    page = page(width=360)
    click(page, "#samples button")
    until_seen(page)
    assert page.execute_script("return document.documentElement.scrollWidth") <= 360


def test_it_follows_the_color_scheme(page):
    def lightness(page):
        color = find(page, "body").value_of_css_property("background-color")
        return sum(int(c) for c in color[color.index("(") + 1:-1].split(",")[:3])

    assert lightness(page()) > 700
    assert lightness(page(dark=True)) < 100


def test_a_protected_server_asks_for_its_api_key(page):
    page = page(api_key="0123456789abcdef")
    until(page, lambda: find(page, "#key").is_displayed())
    find(page, "#key-value").send_keys("wrong" + Keys.ENTER)
    until(page, lambda: "API key is required" in find(page, "#error").text)
    find(page, "#key-value").clear()
    find(page, "#key-value").send_keys("0123456789abcdef" + Keys.ENTER)
    until(page, lambda: find(page, "#model").text)
    click(page, "#samples button")
    until_seen(page)


def test_a_model_that_cannot_be_explained_shows_only_predictions(page):
    page = page(explainable=False)
    click(page, "#samples button")
    until(page, lambda: find(page, "#predictions").is_displayed())
    until(page, lambda: find(page, "#status").get_attribute("textContent").endswith("%"))
    assert not find(page, "#explanation").is_displayed()


def test_the_page_loads_nothing_from_other_hosts(page):
    page = page()
    click(page, "#samples button")
    until_seen(page)
    loaded = page.execute_script(
        "return performance.getEntriesByType('resource').map((entry) => entry.name)")
    own = page.current_url
    assert all(url.startswith((own, "data:")) for url in loaded)
    assert page.get_log("browser") == []
