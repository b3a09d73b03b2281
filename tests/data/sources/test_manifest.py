import os
import unicodedata

import pytest
from PIL import Image

from cvt.data.config import DataConfig
from cvt.data.load import load_dataset
from cvt.data.sources.manifest import manifest
from cvt.system.errors import InputError


def table(home, text, name="list.csv"):
    (home / name).write_text(text)
    return home / name


def paint(home, *names):
    for i, name in enumerate(names):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, i, i)).save(home / name)


SPLIT = """path,label,split
a/1.png,cat,train
a/2.png,dog,train
/tmp/3.png,dog,Validation
a/4.png,dog,test
"""


def test_a_table_names_images_classes_and_split(tmp_path):
    paint(tmp_path, "a/1.png", "a/2.png")
    data = manifest(table(tmp_path, SPLIT))
    assert data.train.classes == ("cat", "dog")
    assert data.train.labels == (0, 1)
    assert data.val.names == ["/tmp/3.png"]
    assert data.train.read(1).getpixel((0, 0)) == (1, 1, 1)


def test_parquet_says_the_same(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    csv = pytest.importorskip("pyarrow.csv")
    parquet.write_table(csv.read_csv(table(tmp_path, SPLIT)), tmp_path / "list.parquet")
    one, other = (manifest(tmp_path / name) for name in ("list.csv", "list.parquet"))
    assert (one.train.names, one.train.labels) == (other.train.names, other.train.labels)
    assert one.val.names == other.val.names


def test_without_a_split_a_fraction_of_each_class_is_held_out(tmp_path):
    rows = "".join(f"{i}.png,{i % 2}\n" for i in range(20))
    path = table(tmp_path, "path,label\n" + rows)
    data = load_dataset(DataConfig(name="manifest", root=str(path), val_fraction=0.3))
    assert sorted(data.val.labels) == [0, 0, 0, 1, 1, 1]
    assert len({*data.train.names, *data.val.names}) == 20


def test_numbers_are_classes_by_value(tmp_path):
    rows = "".join(f"{i}-{j}.png,{i}\n" for i in (10, 9, 2) for j in (0, 1))
    assert manifest(table(tmp_path, "path,label\n" + rows), 0.5).train.classes == ("2", "9", "10")


def parquet(home, **columns):
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pytest.importorskip("pyarrow").table(columns), home / "list.parquet")
    return home / "list.parquet"


NAN = float("nan")


def test_whole_numbers_in_a_column_of_floats_are_whole(tmp_path):
    path = parquet(tmp_path, path=[f"{i}.png" for i in range(6)],
                   label=[10.0, 10.0, 2.0, 2.0, 0.5, 0.5], split=["train", "val"] * 3,
                   unreadable=[NAN] * 6)
    data = manifest(path)
    assert data.train.classes == ("0.5", "2", "10")
    assert data.train.labels == (2, 1, 0)


def test_bytes_and_categories_are_text(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    labels = pyarrow.array(["b", "a", "b", "a"]).dictionary_encode()
    path = parquet(tmp_path, path=[b"1.png", b"2.png", b"3.png", b"4.png"], label=labels,
                   split=["train", "train", "val", "val"])
    data = manifest(path)
    assert data.train.names == [str(tmp_path / "1.png"), str(tmp_path / "2.png")]
    assert data.train.labels == (1, 0)


@pytest.mark.parametrize(("column", "values", "message"), [
    ("label", [1.0, NAN], "row 2 after the heading: label is empty or NaN; fill it in"),
    ("label", ["a", "nan"], "row 2 after the heading: label is empty or NaN"),
    ("label", ["a", "<NA>"], "row 2 after the heading: label is empty or NaN"),
    ("label", ["a", None], "row 2 after the heading: label is empty or NaN"),
    ("label", [None, None], "row 1 after the heading: label is empty or NaN"),
    ("label", ["a", " "], "row 2 after the heading: label is empty or NaN"),
    ("path", ["1.png", None], "row 2 after the heading: path is empty or NaN"),
    ("path", [NAN, NAN], "row 1 after the heading: path is empty or NaN"),
    ("split", ["train", None], "row 2 after the heading: split is ''; write train, val or test"),
    ("split", [NAN, NAN], "row 1 after the heading: split is ''; write train, val or test"),
    ("label", [[1, 0], [0, 1]], "the column 'label' holds list<.*>; a cell is a text or a number"),
])
def test_an_empty_cell_of_a_parquet_file_is_no_class(tmp_path, column, values, message):
    columns = {"path": ["1.png", "2.png"], "label": ["a", "b"], "split": ["train", "val"]}
    with pytest.raises(InputError, match=message):
        manifest(parquet(tmp_path, **columns | {column: values}))


def test_classes_of_test_rows_alone_are_left_out_with_them(tmp_path):
    text = "path,label,split\n1.png,b,train\n2.png,a,train\n3.png,a,val\n4.png,0,test\n"
    data = manifest(table(tmp_path, text))
    assert data.train.classes == ("a", "b")
    assert data.train.labels == (1, 0)


@pytest.mark.parametrize("split", [True, False])
def test_a_class_whose_training_images_are_all_unreadable_is_rejected(tmp_path, split):
    heading = "path,label,unreadable" + ",split" * split
    rows = [f"{name}{i}.png,{name},{'corrupt' * (name == 'b')}" + f",{('val', 'train')[i]}" * split
            for name in "ab" for i in range(2)]
    with pytest.raises(InputError, match="the class 'b' in val but not in train"):
        manifest(table(tmp_path, "\n".join([heading, *rows]) + "\n"), 0.5)


@pytest.mark.parametrize("split", [True, False])
def test_what_cannot_be_read_is_left_out_of_training_and_kept_in_validation(tmp_path, split):
    rows = [(f"{i}.png", "ab"[i % 2], ("train", "val")[i // 10], "corrupt" if i in (3, 13) else "")
            for i in range(20)]
    text = "path,label,split,unreadable\n" if split else "path,label,unreadable\n"
    for path, label, half, why in rows:
        text += ",".join([path, label, half, why] if split else [path, label, why]) + "\n"
    data = manifest(table(tmp_path, text), 0.5)
    bad = {str(tmp_path / "3.png"), str(tmp_path / "13.png")}
    assert bad.isdisjoint(data.train.names)
    held_out = bad & set(data.val.names)
    assert len(data.train) + len(data.val) == 18 + len(held_out)
    if split:
        assert held_out == {str(tmp_path / "13.png")}


@pytest.mark.parametrize(("text", "message"), [
    ("", "one must be path"),
    ("path,label\n", "0 images of 0 classes"),
    ("path\na.png\n", "one must be label"),
    ("path,label,splits\na,b,c\n", "the column 'splits'; did you mean split"),
    ("file,label\na,b\n", "the columns file, label; one must be path, or choose it with "
                           "data.path_column"),
    ("path;class\na,b\n", "the columns path, class; one must be label"),
    ("Path,path ,label\na,b,c\n", "the columns Path, path , label; one must be path"),
    ("path,lable\na,b\n", "the column 'lable'; did you mean label"),
    ("path,label\na.png,x\nb.png,\n", "row 2 after the heading: label is empty"),
    ("path,label\na.png\n", "row 1 after the heading: 1 cells for 2 columns"),
    ("path,label\na.png,x\nb.png,x\n", "2 images of 1 classes"),
    ("path,label,split\na.png,x,train\nb.png,y,held\n", "split is 'held'; write train, val"),
    ("path,label,split\na.png,x,train\nb.png,y,train\n", "no image whose split is val"),
    ("path,label,split\na.png,x,train\nb.png,y,val\n", "the class 'y' in val but not in train"),
    ('path,label\n"a.png,x\n', "is not a CSV file"),
    ("path,label\na.png,x\nb.png,nan\n", "row 2 after the heading: label is empty or NaN"),
    ("path,label,split,split\na.png,x,train,val\n", "the columns .*; one must be split"),
    ("path,label\na.png,1\nb.png,01\n", "the classes '01' and '1' are the same number"),
    ("path,label\na.png,1.0\nb.png,1\n", "the classes '1' and '1.0' are the same number"),
    ("path,label\na.png,cat\nb.png,cat \n", "the classes 'cat' and 'cat ' are the same but"),
    ("path,label,split\na.png,cat,train\nb.png,b,train\nc.png,Cat,val\n", "'Cat' and 'cat' are"),
])
def test_a_table_that_cannot_be_used_says_why(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        manifest(table(tmp_path, text))


def test_other_files_are_rejected(tmp_path):
    with pytest.raises(InputError, match="is not a file"):
        manifest(tmp_path / "gone.csv")
    with pytest.raises(InputError, match=r"suffix '\.xlsx'"):
        manifest(table(tmp_path, "x", "list.xlsx"))
    with pytest.raises(InputError, match="is not a Parquet file"):
        manifest(table(tmp_path, "x", "list.parquet"))


ROWS = [("a/1.png", "cat", "train"), ("a/2.png", "dog", "train"), ("a/3.png", "cat", "val"),
        ("a/4.png", "dog", "val")]


def rows_of(data):
    return [(os.path.basename(name), half.classes[label])
            for half in (data.train, data.val)
            for name, label in zip(half.names, half.labels, strict=True)]


EXPECTED = [("1.png", "cat"), ("2.png", "dog"), ("3.png", "cat"), ("4.png", "dog")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "CSV"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", ", "])
@pytest.mark.parametrize("heading", [
    ("path", "label", "split"), ("Path", " label", "Split "), ("PATH", "LABEL", "SPLIT")])
def test_tables_as_programs_write_them(tmp_path, encoding, suffix, delimiter, heading):
    rows = [("", *heading, "width", "width"), *((str(i), *row, "8", "x") for i, row in
                                                 enumerate(ROWS))]
    text = "\r\n".join(map(delimiter.join, rows)) + "\r\n" + delimiter.rstrip() * 5 + "\r\n"
    path = tmp_path / f"list.{suffix}"
    path.write_bytes(text.encode(encoding))
    data = load_dataset(DataConfig(name="manifest", root=str(path)))
    assert rows_of(data) == EXPECTED
    assert data.notes == ()


def test_columns_are_chosen_by_name(tmp_path):
    text = "image_path,path,target,label,split\n" + "".join(
        f"{path},-,{label},-,{split}\n" for path, label, split in ROWS)
    path = str(table(tmp_path, text))
    chosen = {"path_column": "image_path", "label_column": "Target"}
    assert rows_of(load_dataset(DataConfig(name="manifest", root=path, **chosen))) == EXPECTED
    with pytest.raises(InputError, match="has the column 'target'; did you mean targets"):
        load_dataset(DataConfig(name="manifest", root=path, label_column="targets"))
    with pytest.raises(InputError, match=r"one must be file, or choose it with data\.path_column"):
        load_dataset(DataConfig(name="manifest", root=path, path_column="file"))
    for name in ("folder", "huggingface"):
        with pytest.raises(InputError, match=r"data\.path_column=x is for data\.name=manifest"):
            DataConfig(name=name, root=path, path_column="x")
    DataConfig(name="huggingface", root=path, label_column="x")
    with pytest.raises(InputError, match="huggingface and manifest, not folder"):
        DataConfig(name="folder", root=path, label_column="x")


def test_other_columns_of_a_parquet_file_are_not_read(tmp_path):
    paths, labels, splits = zip(*ROWS, strict=True)
    path = parquet(tmp_path, Path=paths, label=labels, split=splits, boxes=[[1, 2]] * 4,
                   image=[b"x"] * 4)
    assert rows_of(manifest(path)) == EXPECTED


@pytest.mark.parametrize(("listed", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_that_differ_in_unicode_normalization_are_one(tmp_path, listed, stored):
    def as_listed(text):
        return unicodedata.normalize(listed, text)

    def as_stored(text):
        return unicodedata.normalize(stored, text)

    folder, name, label = "\u00e9t\u00e9", "caf\u00e9.png", "\u00e9"
    paint(tmp_path, as_stored(f"{folder}/\u00e0.png"), f"{as_stored(folder)}/{as_listed(name)}",
          "z.png", "y.png")
    text = "\n".join(["path,label,split",
                      f"{as_listed(folder)}/{as_listed(chr(0xe0))}.png,{as_listed(label)},train",
                      f"{as_listed(folder)}/{as_listed(name)},{as_stored(label)},val",
                      "z.png,b,train", "y.png,b,val"])
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    data = manifest(tmp_path / "list.csv")
    assert data.train.classes == ("b", "\u00e9")
    assert [image.getpixel((0, 0))[0] for half in (data.train, data.val)
            for image in map(half.read, range(2))] == [0, 2, 1, 3]


def test_backslashes_separate_directories_unless_a_file_has_them(tmp_path):
    paint(tmp_path, "a/1.png", "b\\2.png", "b/2.png", "a/4.png")
    data = manifest(table(tmp_path, "path,label,split\na\\1.png,x,train\nb\\2.png,y,train\n"
                                    ".\\a\\4.png,x,val\nC:\\photos\\5.png,y,val\n"))
    assert [data.train.read(i).getpixel((0, 0))[0] for i in range(2)] == [0, 1]
    assert data.val.read(0).getpixel((0, 0))[0] == 3
    with pytest.raises(OSError, match="No such file") as caught:
        data.val.read(1)
    assert caught.value.filename == str(tmp_path / "C:\\photos\\5.png")


def test_files_that_are_listed_twice_are_noted(tmp_path):
    data = manifest(table(tmp_path, "path,label,split\na.png,x,train\n./a.png,x,train\n"
                                    "b.png,y,train\nb/../b.png,x,val\nc.png,y,val\n"))
    assert len(data.train) + len(data.val) == 5
    twice, both = data.notes
    assert twice == (f"{tmp_path}/list.csv lists 2 files more than once, such as "
                     f"{tmp_path}/a.png; 1 of them have different labels")
    assert "1 files both in train and in val, such as" in both
    assert "b.png" in both


def test_a_name_that_no_file_can_have_is_unreadable(tmp_path):
    data = manifest(table(tmp_path, "path,label,split\na\0.png,x,train\nb.png,y,train\n"
                                    "c.png,y,val\n"))
    with pytest.raises(OSError, match="contains a NUL"):
        data.train.read(0)
