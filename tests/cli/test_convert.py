import json

from cvt.cli import main


def test_convert_prints_what_it_wrote_and_what_it_read(model, tmp_path, capsys):
    assert main(["convert", str(model), str(tmp_path / "x.pth"), "--to", "official"]) == 0
    out, err = capsys.readouterr()
    assert out.split() == [str(tmp_path / "x.yaml"), str(tmp_path / "x.pth")]
    assert "tensors in native names" in err
    assert main(["convert", str(tmp_path / "x.pth"), str(tmp_path / "t"), "--to", "timm"]) == 0
    assert main(["predict", str(tmp_path / "images/ant"), "--model", str(tmp_path / "t"),
                 "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["classes"][0]["name"] in "012"


def test_convert_rejects_in_one_line(model, tmp_path, capsys):
    for args, code, message in (
            ([str(model), str(tmp_path / "x"), "--to", "official"], 1, "one file; use a name"),
            ([str(model), str(model), "--to", "native"], 1, "--overwrite"),
            (["nowhere", "x", "--to", "native"], 1, "no model at nowhere"),
            ([str(model), "x", "--to", "onyx"], 2, "onyx"),
            ([str(model), "x"], 2, "required: to")):
        assert main(["convert", *args]) == code
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
