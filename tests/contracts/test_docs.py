"""The how-to's of docs/ work as they stand there."""

import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers import CvtConfig, CvtForImageClassification
from transformers.utils import logging

import cvt
from cvt.cli import main
from cvt.weights.convert import convert
from cvt.zoo import ZOO

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WEIGHTS = (ROOT / "docs/weights.md").read_text()
logging.disable_progress_bar()


def blocks(text, kind):
    """Its blocks of code, with lines that end in a backslash joined."""
    return re.findall(rf"```{kind}\n(.*?)```", text.replace("\\\n", " "), re.DOTALL)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A directory with the files that the page speaks of."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = cvt.CvT(cvt.VARIANTS["cvt_13"])
    cvt.save_model("thirteen", model, cvt.Preprocess(), tuple(map(str, range(1000))))
    convert("thirteen", "CvT-13-224x224-IN-1k.pth", "official")
    Path("CvT-13-224x224-IN-1k.yaml").rename("cvt-13-224x224.yaml")
    CvtForImageClassification(CvtConfig(
        embed_dim=[8, 16, 24], num_heads=[1, 2, 3], depth=[1, 2, 3],
        id2label={0: "benign", 1: "malignant"})).save_pretrained("my-finetune")
    embeds = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
    small = cvt.CvT(cvt.CvTConfig(num_classes=2, image_size=32, stages=tuple(
        cvt.StageConfig(dim=8 * (i + 1), num_heads=i + 1, depth=(1, 2, 3)[i], cls_token=i == 2,
                        embed_kernel=kernel, embed_stride=stride, embed_padding=padding)
        for i, (kernel, stride, padding) in enumerate(embeds))))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    cvt.save_model("runs/mine", small, cvt.Preprocess(size=32), ("cat", "dog"))
    return tmp_path


def test_the_page_on_weights_runs_from_top_to_bottom(desk, capsys):
    for text in blocks(WEIGHTS, "sh"):
        for line in text.splitlines():
            assert main(shlex.split(line)[1:]) == 0
    capsys.readouterr()
    names = {"CLONE": str(ROOT)}
    for text in blocks(WEIGHTS, "python"):
        if not text.startswith("# from the hub"):
            exec(text, names)

    out = capsys.readouterr().out
    assert "tensors in official names" in out
    assert "('benign', 'malignant')" in out
    assert "adapted" in out
    assert "'stride4': (1, 256, 64, 80)" in out
    assert "[192, 384]" in out
    assert "('Shirt', 0." in out
    assert names["hidden"].shape == (2, 20, 384)
    assert names["model"].config.num_classes == 10
    assert names["port"].config.id2label == {0: "cat", 1: "dog"}


def test_the_page_on_training_shows_a_run_that_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    start, again, longer, dry = (shlex.split(text)[1:] for text in
                         blocks((ROOT / "docs/training.md").read_text(), "sh"))
    stage = cvt.StageConfig(dim=8, num_heads=1, depth=1, cls_token=True)
    cvt.CvTConfig(stages=(stage,), num_classes=10, image_size=8).save("small.json")
    small = ["--model", "small.json", "--image_size", "8"]
    assert main([*dry, *small]) == 0
    assert "1,437 to train" in capsys.readouterr().out
    assert main([*start, *small, "--quiet"]) == 0
    assert len(list(tmp_path.glob("runs/digits/checkpoints/step-*"))) in (2, 3)
    Path("runs/digits/metrics.json").unlink()  # as if it had been stopped before its end
    assert main([*again, "--quiet"]) == 0
    assert capsys.readouterr().out.count("report: runs/digits/report.html") == 2
    assert main([*longer, "--quiet"]) == 0
    assert len(Path("runs/digits/metrics.jsonl").read_text().splitlines()) == 5


def test_the_page_on_fine_tuning_runs_from_top_to_bottom(desk, monkeypatch, capsys):
    for i in range(24):
        path = Path("photos", ("cat", "dog")[i % 2], f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40, 30), 10 + 60 * (i % 2)).convert("RGB").save(path)
    text = (ROOT / "docs/finetuning.md").read_text()
    for command in blocks(text, "sh"):  # the published weights are a download of 80 MB
        command = command.replace("cvt_13.msft_in1k", "runs/mine").replace(
            "--batch_size 32", "--batch_size 6" if "find_lr" not in command else "--batch_size 2")
        assert main(shlex.split(command)[1:]) == 0, command

    out = capsys.readouterr().out
    assert "the run" in out
    assert "try --optim.lr" in out
    for run in ("photos", "probe", "balanced"):
        assert Path("runs", run, "report.html").is_file()
    assert Path("runs/find/lr_finder.png").is_file()


def test_the_page_on_predicting_runs_from_top_to_bottom(desk, capsys):
    for folder in ("photos", "scans", "shards"):
        Path(folder).mkdir()
    for i in range(6):
        Image.effect_noise((40, 30), 50).save(f"photos/{i}.png")
    shutil.copy("photos/0.png", "scans/0.png")
    Path("files.txt").write_text("photos/1.png\nphotos/2.png\n")
    with tarfile.open("shards/0.tar", "w") as archive:
        archive.add("photos")
    *single, jobs, shared = blocks((ROOT / "docs/predicting.md").read_text(), "sh")
    for command in "".join([*single, jobs]).splitlines():
        assert main(shlex.split(command)[1:]) == 0, command
    subprocess.run([sys.executable, "-m", "torch.distributed.run", *shlex.split(shared)[1:]],
                   check=True, capture_output=True)
    exec(blocks((ROOT / "docs/predicting.md").read_text(), "python")[0], {})

    out = capsys.readouterr().out
    assert "#1 ((" in out
    assert out.endswith("6 0\n")
    for output, parts in {"predictions": ["part-00000.csv"], "shared": ["part-00000.csv"],
                          "from_shards": ["part-00000.parquet", "part-00001.parquet"],
                          "from_list": ["part-00000.jsonl"], "again": ["part-00000.jsonl"]}.items():
        assert sorted(p.name for p in Path(output).glob("part-*")) == parts
        assert Path(output, "unreadable.csv").read_text() == "image,reason\n"


def test_the_page_on_data_shows_what_its_commands_print(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for photo, label in zip(photos, ("temple", "flower"), strict=True):
        for i in range(10):
            path = Path("photos", "train" if i < 8 else "val", label, f"{i}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            photo.crop((38 * i, 18 * i, 38 * i + 300, 18 * i + 240)).save(path)
    shutil.copy("photos/train/temple/3.jpg", "photos/train/flower/3b.jpg")
    Image.open("photos/train/flower/5.jpg").resize((200, 160)).save("photos/val/flower/small.jpg")
    Path("photos/train/temple/6.jpg").write_bytes(b"<html>404</html>")
    text = (ROOT / "docs/data.md").read_text()
    codes = []
    for line in "".join(blocks(text, "sh")).splitlines():
        codes.append(main([*shlex.split(line, comments=True)[1:], "--quiet"]))
    out = capsys.readouterr().out
    assert codes == [1, 0, 1, 1, 1]  # of the copy too: its val has an image of its train
    shown, = (block for block in blocks(text, "text") if "unreadable" in block)
    assert [line.rstrip() for line in shown.splitlines()] == [
        line.rstrip() for line in out.splitlines()[:len(shown.splitlines())]]
    assert sorted(p.name for p in Path("check").iterdir()) == [
        "check.json", "contact_sheet.png", "manifest.csv"]


def test_the_page_on_speed_runs_from_top_to_bottom(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for text in blocks((ROOT / "docs/fast.md").read_text(), "python"):
        exec(text, names)

    out = capsys.readouterr().out
    assert "Agreement(difference=" in out
    assert names["small"].precision == "int8"
    assert all(p.grad is not None for p in names["model"].parameters())


def test_the_page_on_explaining_runs_from_top_to_bottom(desk, capsys):
    Image.fromarray(load_sample_images().images[0]).save("shirt.png")
    text = (ROOT / "docs/explain.md").read_text()
    for line in "".join(blocks(text, "sh")).splitlines():
        assert main(shlex.split(line)[1:]) == 0
    assert Path("explained/shirt/explanation.json").is_file()
    for block in blocks(text, "python"):
        exec(block, {})
    assert Path("rollout.png").is_file()


def test_the_page_has_the_table_of_the_zoo():
    for tag, row in ZOO.items():
        if row.repo:
            assert (f"| `{tag}` | {row.repo} | {row.size} | {row.paper_top1:.1f} | "
                    f"{row.measured_top1:.2f} / {row.measured_top5:.2f} |") in WEIGHTS


def test_written_model_cards_show_code_that_runs(desk):
    for to in ("native", "timm", "huggingface"):
        convert("runs/mine", to, to)
        text = Path(to, "README.md").read_text()
        assert yaml.safe_load(text.split("---\n")[1])["library_name"]
        code, = blocks(text, "python")
        exec(code.replace('print(classify("photo.jpg"))', ""), {})
