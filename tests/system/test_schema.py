import json
from dataclasses import dataclass
from typing import Literal

import pytest

from cvt.system.errors import InputError
from cvt.system.schema import check_types, from_mapping, read_mapping, write_mapping


@dataclass(frozen=True)
class Recipe:
    epochs: int
    rate: float = 0.1
    shuffle: bool = False
    name: str = "a"
    kind: Literal["cosine", "step"] = "cosine"
    mean: tuple[float, ...] = (0.5,)
    size: tuple[int, int] = (1, 2)
    limit: int | None = None

    def __post_init__(self):
        check_types(self)


def test_plain_data_become_a_dataclass_with_lists_as_tuples():
    built = from_mapping(Recipe, {"epochs": 3, "mean": [0.1, 0.2], "limit": 4}, "recipe")

    assert built == Recipe(epochs=3, mean=(0.1, 0.2), limit=4)


def test_an_unknown_key_is_rejected_with_the_nearest():
    with pytest.raises(InputError, match="recipe has the unknown key 'epoch'; did you mean epochs"):
        from_mapping(Recipe, {"epoch": 3}, "recipe")


def test_a_key_that_is_needed_and_absent_is_named():
    with pytest.raises(InputError, match="recipe lacks the key 'epochs'"):
        from_mapping(Recipe, {"rate": 0.1}, "recipe")


def test_data_that_are_no_mapping_are_rejected():
    with pytest.raises(InputError, match=r"recipe is \[1\], not a mapping"):
        from_mapping(Recipe, [1], "recipe")


@pytest.mark.parametrize(("field", "value"), [
    ("epochs", True), ("epochs", "3"), ("epochs", 3.0), ("epochs", None),
    ("rate", float("nan")), ("rate", float("inf")), ("rate", True), ("rate", "0.1"),
    ("shuffle", 1), ("shuffle", "yes"), ("name", 3), ("kind", "cosin"), ("kind", 1),
    ("mean", 0.5), ("mean", (0.5, "x")), ("mean", (True,)), ("mean", [0.5]),
    ("size", (1,)), ("size", (1, 2, 3)), ("size", (1, 2.0)), ("limit", "4"), ("limit", True),
])
def test_a_value_of_another_type_is_rejected_by_name(field, value):
    with pytest.raises(InputError, match=f"^{field}="):
        Recipe(**{"epochs": 1, field: value})


@pytest.mark.parametrize(("field", "value"), [
    ("rate", 1), ("mean", ()), ("mean", (1, 0.5)), ("limit", None), ("limit", 4), ("kind", "step"),
])
def test_a_value_of_the_type_is_taken(field, value):
    assert getattr(Recipe(**{"epochs": 1, field: value}), field) == value


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_a_mapping_comes_back_from_its_file(tmp_path, suffix):
    data = {"b": 1e-05, "a": [1, None, True, "x"], "c": {"d": -0.1}}
    path = tmp_path / f"data{suffix}"

    write_mapping(data, path)

    assert read_mapping(path) == data
    assert list(read_mapping(path)) == ["b", "a", "c"]


def test_yaml_takes_tuples_as_lists(tmp_path):
    write_mapping({"a": (1, (2, 3))}, tmp_path / "data.yaml")

    assert read_mapping(tmp_path / "data.yaml") == {"a": [1, [2, 3]]}


def test_json_is_plain_json(tmp_path):
    write_mapping({"a": (1, 2)}, tmp_path / "data.json")

    assert json.loads((tmp_path / "data.json").read_text()) == {"a": [1, 2]}


def test_another_suffix_is_rejected_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match=r"'\.toml'; use \.json or \.yaml"):
        write_mapping({"a": 1}, tmp_path / "data.toml")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "content"), [
    ("broken.json", b'{"a": 1,\n'), ("broken.yaml", b"a: [1,\nb: {"), ("latin.yaml", b"a: \xe9"),
    ("list.yaml", b"- 1\n- 2"), ("empty.yaml", b""), ("number.json", b"3"),
    ("object.yaml", b"!!python/object/apply:os.getcwd []"),
])
def test_a_file_without_a_mapping_is_rejected_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(InputError, match=name) as error:
        read_mapping(tmp_path / name)

    assert "\n" not in str(error.value)
