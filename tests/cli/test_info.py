import json

from cvt.cli import main


def test_info_prints_the_papers_figures(capsys):
    assert main(["info", "cvt_13", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["parameters"] == 19_997_480
    assert printed["multiply_adds"] == 4_566_089_216
    assert [s["grid"] for s in printed["stages"]] == [[56, 56], [28, 28], [14, 14]]
    assert [s["tokens"] for s in printed["stages"]] == [3136, 784, 197]


def test_info_prints_a_table_for_any_size(capsys):
    assert main(["info", "cvt_nano", "--size", "40x28"]) == 0
    out = capsys.readouterr().out
    assert "20x14" in out
    assert "multiply-adds" in out


def test_info_prints_the_keys_of_unlike_blocks(tiny, tmp_path, capsys):
    tiny(last={"stride_kv": (1, 2)}).save(tmp_path / "x.yaml")
    assert main(["info", str(tmp_path / "x.yaml")]) == 0
    assert "17 or 5" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "x.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"][2]["keys"] == [[4, 4], [2, 2]]


def test_info_knows_the_zoo(capsys):
    assert main(["info", "cvt_w24.msft_in22k_ft_in1k_384", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["parameters"], printed["size"]) == (277_196_392, [384, 384])
