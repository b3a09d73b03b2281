"""The report: complete, safe and self-contained."""

import re
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
import torch
from PIL import Image

from cvt.evaluate.metrics import score
from cvt.evaluate.report import percent, short, write_report
from cvt.system.errors import InputError

pytestmark = pytest.mark.slow

HOSTILE = "<script>alert(1)</script>"
SECTIONS = ["training", "confusion", "calibration", "misclassified", "classes", "configuration",
            "environment"]
HISTORY = [{"epoch": e, "train_loss": 2 / e, "val_loss": 2.1 / e, "val_top1": 1 - 1 / e,
            "lr": 1e-3 / e, "seconds": 1.5} for e in range(1, 5)]


def evaluation_of(classes, n=120, names=None):
    """An evaluation of random probabilities, right most of the time."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(len(classes), (n,), generator=generator)
    logits = torch.randn(n, len(classes), generator=generator)
    logits[torch.arange(n), labels] += 2.5
    names = names or [f"image {i}" for i in range(n)]
    return score(logits.softmax(1), labels, names, tuple(classes), 0.5)


def image(index):
    return Image.new("RGB", (8, 8), (index % 256, 0, 0))


class Page(HTMLParser):
    """What a test asks of a page: its tags with attributes, its sections and its text."""

    def __init__(self, html):
        super().__init__()
        self.html, self.tags, self.text = html, [], ""
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.text += "" if tag in ("b", "strong", "span", "wbr") else " "

    def handle_data(self, data):
        self.text += data

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]

    @property
    def sections(self):
        return [attrs["id"] for attrs in self.all("section")]


def make_page(directory, evaluation, **more):
    more = {"title": "a model", "read": image} | more
    write_report(directory / "report.html", evaluation=evaluation, **more)
    return Page((directory / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def page_of(tmp_path):
    return partial(make_page, tmp_path)


@pytest.fixture(scope="module")
def full_page(tmp_path_factory):
    return make_page(tmp_path_factory.mktemp("full"), evaluation_of("abcdefgh"), history=HISTORY,
                     facts={"processor": "a fast one"},
                     config={"model": "cvt_nano", "optim": {"betas": (0.9, 0.999)},
                             "root": Path("images")})


def test_all_sections_are_there_in_order(full_page):
    assert full_page.sections == SECTIONS
    assert "Most confused pairs" in full_page.text


def test_empty_sections_are_left_out(page_of):
    page = page_of(evaluation_of("abc"))
    assert page.sections == ["confusion", "calibration", "misclassified", "classes"]
    assert "Top-5" not in page.text
    links = [a["href"] for a in page.all("a")]
    assert links == ["#" + section for section in page.sections]


def test_the_header_shows_the_metrics(page_of):
    evaluation = evaluation_of("abcdefghijklmnop")
    text = page_of(evaluation).text
    for value in (evaluation.top1.value, evaluation.top1.low, evaluation.top1.high,
                  evaluation.top5.value, evaluation.macro_f1, evaluation.ece):
        assert f"{value:.1%}" in text
    assert "120 images, 16 classes" in text
    assert "0.500" in text


def test_the_file_has_no_external_references(full_page):
    assert not re.search(r"https?:|@import|@font-face", full_page.html)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in full_page.tags}
    sources = [attrs["src"] for _, attrs in full_page.tags if "src" in attrs]
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert all(attrs["href"].startswith("#") for _, attrs in full_page.tags if "href" in attrs)
    assert all(target.startswith("#") for target in re.findall(r"url\((.)", full_page.html))


def test_markup_from_users_is_escaped(page_of):
    classes = (HOSTILE, '" onmouseover="alert(1)', "c")
    names = [f"/a/very/long/way/to/images/{HOSTILE}/{i}.png" for i in range(120)]

    def fail(index):
        raise InputError(f"{HOSTILE} is not an image")

    page = page_of(evaluation_of(classes, names=names), title=HOSTILE, read=fail,
                   facts={HOSTILE: HOSTILE}, config={HOSTILE: HOSTILE})
    assert not page.all("script")
    assert not any("onmouseover" in attrs for _, attrs in page.tags)
    assert page.text.count(HOSTILE) > 10


def test_markup_in_names_of_many_classes_is_escaped(page_of):
    page = page_of(evaluation_of([f"{HOSTILE} {i}" for i in range(25)]))
    assert not page.all("script")


def test_charts_are_valid_xml_in_the_colors_of_the_page(full_page):
    charts = re.findall(r"<svg.*?</svg>", full_page.html, re.DOTALL)
    assert len(charts) == 4
    for chart in charts:
        root = ElementTree.fromstring(chart)
        assert root.get("role") == "img"
        assert root.get("aria-label")
        assert "var(--" in chart
        assert not re.search(r"#[0-9a-f]{6}\b", chart)


def test_ids_are_unique_and_references_resolve(full_page):
    ids = [attrs["id"] for _, attrs in full_page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', full_page.html)
    assert {a or b for a, b in used} <= set(ids)


def test_few_classes_make_a_table_of_counts(page_of):
    evaluation = evaluation_of("abc")
    cells = re.findall(r'<td class="(?:correct|wrong|none)[^>]*>\s*([\d,]+)\s*</td>',
                       page_of(evaluation).html)
    assert [int(c) for c in cells] == [
        count for row in evaluation.confusion_matrix for count in row]


@pytest.mark.parametrize(("k", "charts"), [(20, 0), (21, 1)])
def test_many_classes_make_an_image(page_of, k, charts):
    page = page_of(evaluation_of([f"class {i}" for i in range(k)]))
    images = [i for i in page.all("img") if i["alt"].startswith("Confusion matrix")]
    assert len(images) == charts
    assert ("Lowest F1" in page.text) == bool(charts)
    assert "Most confused pairs" in page.text


def test_pairs_are_the_most_frequent_first(page_of):
    predicted, labels = torch.tensor([1, 1, 2, 0, 1, 2]), torch.tensor([0, 0, 0, 0, 1, 2])
    evaluation = score(torch.eye(3)[predicted], labels, [""] * 6, ("ant", "bee", "cat"), 0.1)
    text = page_of(evaluation).text
    assert "ant bee 2 50.0% ant cat 1 25.0%" in text


def test_misclassified_images_show_their_predicted_and_true_class(page_of):
    probs = torch.tensor([[0.03, 0.97], [0.9, 0.1]])
    names = ["first.png", "second.png"]
    page = page_of(score(probs, torch.tensor([0, 0]), names, ("ant", "bee"), 1.0))
    assert "Predicted bee (97%), true ant first.png" in page.text
    assert "second.png" not in page.text
    assert page.all("img")[0]["alt"] == "True class ant, predicted bee"


def test_small_images_keep_hard_edges_and_large_ones_shrink(page_of):
    small = page_of(evaluation_of("abc"))
    large = page_of(evaluation_of("abc"), read=lambda _: Image.effect_noise((1600, 800), 50))
    assert all(image.get("class") == "pixelated" for image in small.all("img"))
    assert all(image.get("class") is None for image in large.all("img"))
    assert all(len(image["src"]) < 1.4 * 160 * 80 * 3 for image in large.all("img"))


@pytest.mark.parametrize("kind", [InputError, FileNotFoundError])
def test_an_unreadable_image_shows_its_error(page_of, kind):
    def read(index):
        raise kind("broken.png is corrupt or truncated")

    page = page_of(evaluation_of("abc"), read=read)
    assert not page.all("img")
    assert "broken.png is corrupt or truncated" in page.text


def test_an_error_leaves_no_file(tmp_path):
    def read(index):
        raise RuntimeError("unexpected")

    with pytest.raises(RuntimeError, match="unexpected"):
        write_report(tmp_path / "report.html", title="", evaluation=evaluation_of("abc"), read=read)
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_the_previous_report(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("the one before")
    with pytest.raises(TypeError):
        write_report(path, title="", evaluation=evaluation_of("abc"), read=None)
    assert path.read_text() == "the one before"


def test_a_perfect_model_needs_no_images(page_of):
    evaluation = score(torch.eye(2), torch.tensor([0, 1]), ["a", "b"], ("no", "yes"), 0.0)
    page = page_of(evaluation, read=None)
    assert "No images are misclassified." in page.text
    assert "None." in page.text


def test_a_class_without_images_has_no_scores(page_of):
    evaluation = score(torch.eye(3)[:2], torch.tensor([0, 1]), ["a", "b"], ("x", "y", "z"), 0.0)
    assert "z 0 \N{EN DASH} \N{EN DASH} \N{EN DASH}" in page_of(evaluation).text


def test_one_epoch_is_enough_for_curves(page_of):
    page = page_of(evaluation_of("abc"), history=HISTORY[:1])
    assert "highest in epoch 1 of 1" in page.text


def test_configuration_is_folded_yaml(full_page):
    assert "open" not in full_page.all("details")[0]
    assert "model: cvt_nano optim: betas: - 0.9 - 0.999 root: images" in full_page.text


def test_the_report_is_deterministic(page_of):
    first, second = (page_of(evaluation_of("abcdefgh"), history=HISTORY).html for _ in range(2))
    assert first == second


def test_matplotlibs_style_is_unchanged(page_of):
    before = dict(mpl.rcParams)
    page_of(evaluation_of("abc"), history=HISTORY)
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(("fraction", "digits", "shown"), [
    (0.9723, 1, "97.2%"), (1, 1, "100%"), (0.9999, 1, "&gt;99.9%"),
    (0.996, 0, "&gt;99%"), (0.0, 1, "0.0%"),
])
def test_only_1_is_100_percent(fraction, digits, shown):
    assert percent(fraction, digits) == shown


def test_a_file_name_that_is_not_utf8_is_escaped(page_of):
    page = page_of(evaluation_of("abc", names=["caf\udce9.png"] * 120))
    assert r"caf\xe9.png" in page.text


def test_long_paths_show_their_end():
    assert short("/images/of/all/sorts/of/animals/cat/1.png") == "&hellip;/<wbr>cat/<wbr>1.png"
    assert short("cat/1.png") == "cat/1.png"
