import json

from cvt.cli import main


def test_the_zoo_is_printed_as_a_table_and_as_json(capsys):
    assert main(["zoo"]) == 0
    out = capsys.readouterr().out
    assert all(tag in out for tag in ("cvt_13.msft_in1k ", "cvt_w24.msft_in22k_ft_in1k_384 ",
                                      "cvt_nano.fashion_mnist "))
    assert "In this package, nothing is downloaded" in out
    assert max(map(len, out.splitlines())) <= 80
    assert main(["zoo", "cvt_21*", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["tag"] for row in rows] == [
        "cvt_21.msft_in1k", "cvt_21.msft_in1k_384", "cvt_21.msft_in22k_ft_in1k_384"]
    assert rows[2]["paper_top1"] == 84.9
    assert rows[2]["size"] == 384
    assert rows[1]["preprocess"]["mode"] == "squash"
