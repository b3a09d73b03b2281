import json
import os
import shutil

import pytest
import torch

from cvt.system.errors import InputError
from cvt.train.checkpoints import CheckpointStore, TrainingCheckpoint, _signed


def checkpoint(step, value=0.1):
    generator = torch.Generator().manual_seed(step)
    return TrainingCheckpoint(step=step, tensors={
        "model": {"w": torch.randn(3, 4, generator=generator), "n": torch.tensor(step)},
        "optimizer": {"0.exp_avg": torch.randn(3, generator=generator)}},
        state={"progress": {"step": step, "loss": value, "history": [{"lr": 1e-3}]}})


@pytest.fixture
def store(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", keep=3)
    for step in (10, 20, 30):
        store.save(checkpoint(step))
    return store


def same(one, other):
    return (one.step == other.step and one.state == other.state
            and one.tensors.keys() == other.tensors.keys()
            and all(torch.equal(one.tensors[kind][name], tensor)
                    for kind, tensors in other.tensors.items() for name, tensor in tensors.items()))


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    store = CheckpointStore(tmp_path / "new" / "checkpoints")
    value = 0.1 + 0.2  # no short decimal
    store.save(checkpoint(7, value))
    assert store.repair() == []
    assert same(store.read(store.latest_step()), checkpoint(7, value))
    assert store.read(store.latest_step()).state["progress"]["loss"] == value


def test_the_last_few_and_the_protected_one_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for step in range(1, 7):
        store.save(checkpoint(step), protect=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step-00000002", "step-00000005", "step-00000006"]
    assert same(store.read(2), checkpoint(2))


def test_an_empty_store_has_nothing_to_resume_from(tmp_path):
    store = CheckpointStore(tmp_path / "none")
    assert store.repair() == []
    assert store.latest_step() is None


def test_a_checkpoint_replaces_that_of_the_same_step(store):
    store.save(checkpoint(30, 5.0))
    assert store.read(store.latest_step()).state["progress"]["loss"] == 5.0


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json",
                                  "manifest.json"])
@pytest.mark.parametrize("change", ["cut", "gone", "empty", "swapped", "longer"])
def test_a_corrupt_checkpoint_is_named_renamed_and_skipped(store, name, change):
    file = store.directory / "step-00000030" / name
    if change == "gone":
        file.unlink()
    elif change == "swapped":
        shutil.copy(store.directory / "step-00000020" / name, file)
    else:
        data = file.read_bytes()
        file.write_bytes({"cut": data[:len(data) // 2], "empty": b"",
                          "longer": data + b" "}[change])

    messages = store.repair()

    assert len(messages) == 1
    assert "step-00000030 is corrupt" in messages[0]
    assert "renamed to corrupt-step-00000030" in messages[0]
    assert (store.directory / "corrupt-step-00000030").is_dir()
    assert same(store.read(store.latest_step()), checkpoint(20))


def test_every_flipped_bit_is_detected(store):
    place = store.directory / "step-00000030"
    generator = torch.Generator().manual_seed(0)
    files = sorted(place.iterdir())
    for _ in range(60):
        file = files[int(torch.randint(len(files), (1,), generator=generator))]
        data = bytearray(whole := file.read_bytes())
        bit = int(torch.randint(8 * len(data), (1,), generator=generator))
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        with pytest.raises(InputError, match="corrupt"):
            store.read(30)
        file.write_bytes(whole)
    assert same(store.read(30), checkpoint(30))


def test_a_directory_under_another_step_is_not_used_for_it(store):
    (store.directory / "step-00000030").rename(store.directory / "step-00000040")
    messages = store.repair()
    assert "holds step 30" in messages[0]
    assert same(store.read(store.latest_step()), checkpoint(20))


def test_if_all_are_corrupt_nothing_is_loaded(store):
    for path in store.directory.iterdir():
        (path / "model.safetensors").unlink()
    before = sorted(store.directory.iterdir())
    for _ in range(2):  # a second attempt does not find an empty run, and begin it anew
        with pytest.raises(InputError, match=r"no checkpoint in .* is intact: .*step-00000030.*"):
            store.repair()
        assert sorted(store.directory.iterdir()) == before


def test_a_later_format_is_rejected_by_name(store):
    path = store.directory / "step-00000030" / "manifest.json"
    path.write_bytes(_signed({**json.loads(path.read_text()), "format": 3}))
    for attempt in (lambda: store.read(30), store.repair):
        with pytest.raises(InputError, match="has format 3, and this version reads 2"):
            attempt()
    assert path.is_file()  # where the version that wrote it finds it


def test_a_corrupt_format_number_is_corruption_and_the_checkpoint_before_is_used(store):
    path = store.directory / "step-00000030" / "manifest.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 3'))
    [message] = store.repair()
    assert "step-00000030 is corrupt: the contents of manifest.json have changed" in message
    assert same(store.read(store.latest_step()), checkpoint(20))


@pytest.mark.parametrize("call", ["save_file", "_sync", "_manifest"])
@pytest.mark.parametrize("number", [28, 5, 13])
def test_a_failing_disk_leaves_what_was_there(store, monkeypatch, call, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(f"cvt.train.checkpoints.{call}", fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        store.save(checkpoint(40))
    monkeypatch.undo()
    assert sorted(p.name for p in store.directory.iterdir()) == [
        f"step-000000{step}" for step in (10, 20, 30)]
    assert same(store.read(store.latest_step()), checkpoint(30))


def test_remains_of_a_killed_process_are_removed(store):
    (store.directory / ".step-00000040.x").mkdir()
    (store.directory / ".step-00000040.x" / "model.safetensors").write_bytes(b"half")
    store.repair()
    assert not list(store.directory.glob(".*"))
    assert store.latest_step() == 30
