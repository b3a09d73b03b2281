"""Malicious files: rejected in one line, without running, hanging or filling memory."""

import copy
import functools
import json
import operator
import os
import pickle
import re
import struct
import subprocess
import sys
import textwrap
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from cvt import create_model, load_model, load_weights, save_model
from cvt.config import Preprocess
from cvt.model import CvT
from cvt.system.errors import InputError
from cvt.weights.tensors import read_tensors

pytestmark = pytest.mark.slow


def linear():
    return torch.nn.Linear(4, 10)


def rejected(path, match, load=None):
    """Load `path`, which must end in one InputError of one readable line."""
    with pytest.raises(InputError, match=match) as error:
        load(path) if load else load_weights(linear(), path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 2000


class Call:
    """Calls function(*args) when an ordinary unpickler reads it."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def system(marker):
    return Call(os.system, f"touch {marker}")


def evaluate(marker):
    return Call(eval, f"__import__('os').mkdir({str(marker)!r})")


def chained(marker):
    """A call of what another call gives."""
    return Call(operator.call, Call(functools.partial, os.mkdir, str(marker)))


def dump_zip(data, path, protocol):
    torch.save(data, path, pickle_protocol=protocol)


def dump_older(data, path, protocol):
    torch.save(data, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)


def dump_bare(data, path, protocol):
    path.write_bytes(pickle.dumps(data, protocol))


def dump_hidden(data, path, protocol):
    """A pickle in front, an innocent archive behind, where an archive's list of contents is."""
    torch.save({"weight": torch.zeros(10, 4), "bias": torch.zeros(10)}, path)
    path.write_bytes(pickle.dumps(data, protocol) + path.read_bytes())


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("dump", [dump_zip, dump_older, dump_bare, dump_hidden])
@pytest.mark.parametrize("trick", [system, evaluate, chained])
@pytest.mark.parametrize("place", ["alone", "a value", "under state_dict", "a key"])
def test_a_pickle_that_calls_is_rejected_and_does_not_run(tmp_path, place, trick, dump, protocol):
    marker, path = tmp_path / "ran", tmp_path / "w.bin"
    call = trick(marker)
    dump({"alone": call, "a value": {**linear().state_dict(), "x": call},
          "under state_dict": {"state_dict": {"weight": call}, "epoch": 3},
          "a key": {call: torch.zeros(3)}}[place], path, protocol)

    rejected(path, "imports .* could run code" if protocol == 2 else
                    "protocol 4.* could run code")

    assert not marker.exists()
    with path.open("rb") as file:
        (pickle.load if dump in (dump_bare, dump_hidden) else
         lambda f: torch.load(f, weights_only=False))(file)
    assert marker.exists()  # the file was dangerous indeed


# Pickles written by hand; a value is what `pickletools` calls the opcodes.
def text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def number(value):
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def tensor(shape, stride, numel=16, offset=0):
    storage = (b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
               + number(numel) + b"tQ")
    sizes, strides = (b"(" + b"".join(map(number, v)) + b"t" for v in (shape, stride))
    return (b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + sizes + strides
            + b"\x89ccollections\nOrderedDict\n)RtR")


def mapping(**values):
    return b"}" + b"".join(text(key) + value + b"s" for key, value in values.items())


def write_archive(path, body, data=bytes(64), name="w", **more):
    """What torch.save writes, around the opcodes `body`."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/data.pkl", b"\x80\2" + body + b".")
        archive.writestr(f"{name}/byteorder", "little")
        archive.writestr(f"{name}/data/0", data)
        archive.writestr(f"{name}/version", "3\n")
        for key, value in more.items():
            archive.writestr(f"{name}/{key}", value)


def write_older(path, body, data=bytes(64)):
    """What torch.save wrote before archives, around the opcodes `body`."""
    head = b"".join(pickle.dumps(part, 2) for part in (
        0x1950A86A20F9469CFC6C, 1001,
        {"protocol_version": 1001, "little_endian": True,
         "type_sizes": {"short": 2, "int": 4, "long": 4}}))
    body = body.replace(b"tQ", b"NtQ")  # a storage had one field more
    path.write_bytes(head + b"\x80\2" + body + b"." + pickle.dumps(["0"], 2)
                     + struct.pack("<q", len(data) // 4) + data)


def test_the_archives_made_by_hand_are_what_torch_save_writes(tmp_path):
    """Else the tests below would test nothing."""
    values = torch.arange(50.0)
    body = mapping(weight=tensor((10, 4), (4, 1), 50), bias=tensor((10,), (1,), 50, 40))
    for write in (write_archive, write_older):
        write(tmp_path / "w.bin", body, values.numpy().tobytes())
        model = linear()
        load_weights(model, tmp_path / "w.bin")
        assert torch.equal(model.weight, values[:40].reshape(10, 4))
        assert torch.equal(model.bias, values[40:])


NAMES = b"(" + b"".join(text(f"n{i:08}") for i in range(5000)) + b"t"


@pytest.mark.parametrize("write", [write_archive, write_older])
def test_a_long_tuple_of_names_is_harmless_unless_it_is_used_again(tmp_path, write):
    path, weight = tmp_path / "w.bin", tensor((4, 4), (4, 1))
    model = b"}" + text("state_dict") + mapping(weight=weight) + b"s"
    write(path, model + text("classes") + NAMES + b"s")
    assert list(read_tensors(path)) == ["weight"]
    for again in (NAMES + b"q\1s" + text("k") + b"h\1s", NAMES + b"2\x86s", NAMES + b"\x85s",
                  b"(" + b"K\1K\2\x86" * 500 + b"ts"):
        write(path, model + text("classes") + again)
        with pytest.raises(InputError, match="a tuple of more than 1000 objects"):
            read_tensors(path)


GIANT = number(10**12)
DEEP = b")" + b"\x85" * 300_000  # a tuple in a tuple in a ...
WIDE = b")" + b"q\1h\1\x86" * 64  # (a, a) of (a, a) of ..., 2^64 when written out
FOUR = tensor((4,), (1,))
BODIES = {
    "a bytearray of a terabyte": mapping(weight=b"c__builtin__\nbytearray\n" + GIANT + b"\x85R"),
    "a storage of a terabyte": mapping(weight=tensor((10**12,), (1,), 10**12)),
    "a storage beyond the file": mapping(weight=tensor((1000, 1000), (1000, 1), 10**6)),
    "a storage made by a call": mapping(
        weight=b"ctorch.storage\nUntypedStorage\n" + number(10**10) + b"\x85R"),
    "a tensor outside of its storage": mapping(weight=tensor((10, 4), (4, 1), 16, 10**6)),
    "negative strides": mapping(weight=tensor((10, 4), (-4, -1), 16, 40)),
    "a negative shape": mapping(weight=tensor((-10, -4), (4, 1))),
    "a head of strides of zero": mapping(**{"head.weight": tensor((10**10, 384), (0, 0))}),
    "a head without values": mapping(**{"head.weight": tensor((10**10, 0), (1, 1))}),
    "a key as deep as the stack": b"}" + DEEP + FOUR + b"s",
    "a key as wide as the stars": b"}" + WIDE + FOUR + b"s",
    "an empty stack": b"ss",
    "a memo that is not there": b"h\7",
    "a mark that is not there": b"t",
    "attributes in place of methods": b"ccollections\nOrderedDict\n)R" + text("a") + FOUR + b"s"
    + mapping(values=b"K\3", items=b"K\3", get=b"K\3", keys=b"K\3") + b"b",
    "a name of many lines": mapping(**{"we\night\x1b[2J": FOUR}),
    "an endless name": mapping(**{"w" * 10**6: FOUR}),
    "a number for a name": b"}K\3" + FOUR + b"s",
    "numbers for tensors": mapping(weight=b"K\3", bias=b"K\4"),
    "words for tensors": mapping(weight=text("a"), bias=text("b")),
    "nothing": b"N",
}




def header(entries, data=b""):
    """A safetensors file, whatever its header says."""
    words = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(words)) + words + data


def write_bombs(directory):
    for name, body in BODIES.items():
        write_archive(directory / f"{name}, archive.bin", body)
        write_older(directory / f"{name}, older.bin", body)
    good = mapping(weight=tensor((10, 4), (4, 1), 40), bias=tensor((10,), (1,), 10, 40))
    with zipfile.ZipFile(directory / "deflated.bin", "w", zipfile.ZIP_DEFLATED, compresslevel=1
                         ) as archive:
        archive.writestr("w/data.pkl", b"\x80\2" + good + b".")
        archive.writestr("w/data/0", bytes(400 << 20))
    write_archive(directory / "overlapping.bin", good, bytes(1 << 20))
    with zipfile.ZipFile(directory / "overlapping.bin", "a") as archive:
        for i in range(4000):
            again = copy.copy(archive.getinfo("w/data/0"))
            again.filename = f"w/data/{i + 1}"
            archive.filelist.append(again)
        archive.writestr("w/end", "")
    write_archive(directory / "a program.bin", good,
                  **{"constants.pkl": b"\x80\2).", "code/x.py": "pass"})
    shared = {f"w{i}": tensor((4096,), (1,), 4096) for i in range(2000)}
    for write in (write_archive, write_older):
        write(directory / f"shared, {write.__name__}.bin", mapping(**shared), bytes(4 * 4096))
    deep = "[" * 200_000
    (directory / "deep.safetensors.index.json").write_text(deep)
    (directory / "deep.safetensors").write_bytes(header(deep.encode()))
    empty = {"head.weight": {"dtype": "F32", "shape": [10**10, 0], "data_offsets": [0, 0]}}
    (directory / "a head without values.safetensors").write_bytes(header(empty))
    for size in (2**63, 2**64 - 1, 10**10, 10**8):
        (directory / f"header of {size}.safetensors").write_bytes(struct.pack("<Q", size) + b"{}")


BOMBS = [*(f"{name}, {kind}.bin" for name in BODIES for kind in ("archive", "older")),
         "shared, write_archive.bin", "shared, write_older.bin", "deflated.bin",
         "overlapping.bin", "a program.bin", "deep.safetensors.index.json", "deep.safetensors",
         "a head without values.safetensors",
         *(f"header of {size}.safetensors" for size in (2**63, 2**64 - 1, 10**10, 10**8))]
WHY = {"deflated.bin": "unpacks to more", "overlapping.bin": "unpacks to more",
       "shared": "cannot contain", "a head of strides of zero": "cannot contain",
       "a head without values": "cannot contain",
       "a bytearray of a terabyte": "imports 'bytearray|imports '__builtin__.bytearray"}
READER = """
    import json, os, resource, signal, sys
    import torch
    from cvt import create_model, load_weights
    create_model("cvt_13", weights=sys.argv[1])  # imports whatever loading needs
    size = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + (2 << 30), resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for path in sys.argv[2:]:
        signal.alarm(30)  # ends the process
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        errors = []
        for load in (lambda: load_weights(torch.nn.Linear(4, 10), path),
                     lambda: create_model("cvt_13", weights=path)):
            try:
                load()
            except BaseException as error:
                errors.append((type(error).__name__, str(error)))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(json.dumps([os.path.basename(path), errors, grown]), flush=True)
"""


def read_bombs(paths, model):
    """What a process of bounded memory says of each file, until one ends it."""
    results = {}
    while paths:
        done = subprocess.run([sys.executable, "-W", "error", "-c", textwrap.dedent(READER),
                               model, *paths], capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        results |= {name: (errors, grown) for name, errors, grown in lines}
        if len(lines) < len(paths):
            results[paths[len(lines)].name] = ([f"exit {done.returncode}: {done.stderr}"], 0)
        paths = paths[len(lines) + 1:]
    return results


@pytest.fixture(scope="module")
def bombs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bombs")
    write_bombs(directory)
    assert {path.name for path in directory.iterdir()} == set(BOMBS)
    torch.save(create_model("cvt_13").state_dict(), directory / "good.bin")
    return read_bombs([directory / name for name in BOMBS], directory / "good.bin")


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_does_not_go_off(bombs, name):
    errors, grown = bombs[name]

    assert [kind for kind, _ in errors] == ["InputError"] * 2, errors
    assert re.search(WHY.get(name.split(",")[0], ""), errors[0][1])
    for _, message in errors:
        assert message.isprintable()
        assert len(message) < 2000
    assert grown < 300 << 10  # KiB


CORRUPT = "corrupt"
LIES = {
    "an end beyond the file": {"weight": ("F32", [10, 4], [0, 160]), "bias": ("F32", [10],
                                                                               [160, 4000])},
    "an offset beyond all memory": {"weight": ("F32", [10, 4], [2**63, 2**63 + 160])},
    "an offset past 64 bits": {"weight": ("F32", [10, 4], [2**64, 2**64 + 160])},
    "tensors on top of each other": {"weight": ("F32", [10, 4], [0, 160]), "bias": ("F32", [10],
                                                                                     [0, 40])},
    "a hole": {"weight": ("F32", [10, 4], [0, 160]), "bias": ("F32", [10], [164, 204])},
    "an end before the start": {"weight": ("F32", [10, 4], [160, 0])},
    "a negative offset": {"weight": ("F32", [10, 4], [-160, 0])},
    "a negative shape": {"weight": ("F32", [-10, -4], [0, 160])},
    "a shape that overflows": {"weight": ("F32", [2**33, 2**33], [0, 160])},
    "a shape of more than its bytes": {"weight": ("F32", [100, 4], [0, 160])},
    "values twice as wide": {"weight": ("F64", [10, 4], [0, 160])},
    "an unknown type": {"weight": ("F33", [10, 4], [0, 160])},
    "a type of half a byte": {"weight": ("F4", [80, 4], [0, 160])},
    "an axis in words": {"weight": ("F32", ["10", 4], [0, 160])},
    "one offset": {"weight": ("F32", [10, 4], [0])},
    "a thousand axes": {"weight": ("F32", [1] * 1000 + [40], [0, 160])},
}


@pytest.mark.parametrize("name", LIES)
def test_a_safetensors_header_that_lies_is_rejected(tmp_path, name):
    path = tmp_path / "w.safetensors"
    path.write_bytes(header({key: {"dtype": dtype, "shape": shape, "data_offsets": offsets}
                             for key, (dtype, shape, offsets) in LIES[name].items()}, bytes(200)))

    rejected(path, CORRUPT)


@pytest.mark.parametrize("words", [
    b"", b"[]", b"3", b"null", b'"weight"', b"{", b"{}" + b"\0" * 8, b"\xff\xfe{}",
    b'{"weight": 3}',
    b'{"weight": {}}', b'{"__metadata__": {"a": [1]}}', b'{"__metadata__": 3}',
    b'{"weight": {"dtype": "F32", "shape": [1e1], "data_offsets": [0, 40]}}',
    b'{"weight": {"dtype": "F32", "shape": [10], "data_offsets": [0, 40], "dtype": "F32"}}',
])
def test_a_safetensors_header_that_is_none_is_rejected(tmp_path, words):
    (tmp_path / "w.safetensors").write_bytes(header(words, bytes(40)))

    rejected(tmp_path / "w.safetensors", CORRUPT)


def test_a_name_given_twice_hides_nothing(tmp_path):
    """Of {"bias": one place, "bias": another} a reader may take either; the file is rejected."""
    bias = '"bias": {"dtype": "F32", "shape": [10], "data_offsets": '
    one, two = bias + "[160, 200]}", bias + "[200, 240]}"
    weight = '"weight": {"dtype": "F32", "shape": [10, 4], "data_offsets": [0, 160]}'
    path = tmp_path / "w.safetensors"

    path.write_bytes(header(f"{{{weight}, {one}, {two}}}".encode(), bytes(240)))

    rejected(path, CORRUPT)


def load_or_reject(path, expected):
    """Whether `path` was read; then as `expected` says, else rejected."""
    model = linear()
    try:
        load_weights(model, path)
    except InputError:
        return False
    assert expected is None or all(torch.equal(t, expected[name])
                                   for name, t in model.state_dict().items())
    return True


def test_any_bit_of_a_safetensors_header_may_flip(tmp_path):
    path = tmp_path / "w.safetensors"
    tensors = {name: torch.randn(t.shape) for name, t in linear().state_dict().items()}
    whole = save(tensors, {"format": "pt", "by": "a test of this package"})
    size = 8 + struct.unpack("<Q", whole[:8])[0]
    assert size > 180

    read = 0
    for i in range(8 * size):
        flipped = bytearray(whole)
        flipped[i // 8] ^= 1 << i % 8
        path.write_bytes(flipped)
        read += load_or_reject(path, tensors)

    assert 0 < read < 2 * size  # a letter of the metadata may be any other


@pytest.mark.parametrize("write", [write_archive, write_older])
def test_any_bit_of_a_pickle_may_flip(tmp_path, write):
    """Values are not checked by these formats, so another file may be read; nothing else ends."""
    path = tmp_path / "w.bin"
    write(path, mapping(weight=tensor((10, 4), (4, 1), 50), bias=tensor((10,), (1,), 50, 40)),
          bytes(200))
    whole = path.read_bytes()

    read = 0
    for i in range(0, 8 * len(whole), 3):
        flipped = bytearray(whole)
        flipped[i // 8] ^= 1 << i % 8
        path.write_bytes(flipped)
        read += load_or_reject(path, None)

    assert 0 < read < 8 * len(whole) / 3


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize(("change", "match"), [
    (lambda t: {name: t.to(torch.float8_e4m3fn) for name, t in t.items()},
     "float8_e4m3fn|_rebuild_tensor_v3"),
    (lambda t: {name: t.to(torch.complex64) for name, t in t.items()},
     "complex64|ComplexFloat"),
    (lambda t: {**t, "bias": t["bias"].int()}, "bias has torch.int32 values"),
    (lambda t: {**t, "bias": t["bias"] / 0}, r"not finite \(bias\)"),
    (lambda t: {**t, "weight": t["weight"] * torch.inf}, r"not finite \(weight\)"),
    (lambda t: {"encoder.layer.0.weight": t["weight"]}, "not a checkpoint of this architecture"),
    (lambda t: {**t, "a\nb": torch.zeros(3)}, "named 'a.nb'"),
    (lambda t: {**t, "": torch.zeros(3)}, "unexpected"),
])
def test_tensors_that_are_not_weights_of_the_model_are_rejected(tmp_path, change, match, suffix):
    path = tmp_path / f"w{suffix}"
    tensors = change({"weight": torch.randn(10, 4), "bias": torch.zeros(10)})
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    model = linear()
    before = {name: t.clone() for name, t in model.state_dict().items()}

    rejected(path, match, lambda path: load_weights(model, path))

    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.filterwarnings("ignore")  # torch's, of kinds of tensors that it is still building
@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("make", [
    lambda: torch.eye(4).to_sparse(), lambda: torch.eye(4).to_sparse_csr(),
    lambda: torch.empty(4, device="meta"),
    lambda: torch.nested.nested_tensor([torch.zeros(2)], layout=torch.jagged),
    lambda: torch.quantize_per_tensor(torch.zeros(4), 1.0, 0, torch.qint8),
    lambda: torch.zeros(2).numpy(), linear, lambda: 3, lambda: None, lambda: [1],
])
def test_values_that_are_no_plain_tensors_are_rejected(tmp_path, make, older):
    torch.save({"weight": torch.zeros(10, 4), "bias": make()}, tmp_path / "w.bin",
               _use_new_zipfile_serialization=not older)

    rejected(tmp_path / "w.bin", r"could run code|plain|state dict")


@pytest.fixture
def directory(tmp_path, tiny):
    """A trained model that can be read, to be spoilt."""
    save_model(tmp_path / "model", CvT(tiny()), Preprocess(size=64, crop=1.0),
               tuple(map(str, range(10))))
    load_model(tmp_path / "model")
    return tmp_path / "model"


def edit(directory, **changes):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))


BERT = {"model_type": "bert", "hidden_size": 768, "vocab_size": 30522}
CVT = {"model_type": "cvt", "architectures": ["CvtForImageClassification"]}


@pytest.mark.parametrize(("words", "match"), [
    ("", "cannot be read"), ("{", "cannot be read"), ("[1, 2]", "has a list"),
    ("null", "not a mapping"), ('"cvt"', "has a str"), (b"\xff\xfe\x00", "cannot be read"),
    ("<!doctype html>", "cannot be read"), ("{}", "lacks the key"),
    (json.dumps(BERT), "is of a 'bert' model"), (json.dumps({"model_type": 3}), "is of a 3 model"),
    (json.dumps({**CVT, "embed_dim": 3}), "embed_dim=3"),
    (json.dumps({**CVT, "embed_dim": [64, 192]}), "one entry for each stage"),
    (json.dumps({**CVT, "embed_dim": ["64", 192, 384]}), "'64' must be of type int"),
    (json.dumps({**CVT, "depth": [1, 2, -10]}), "depth=-10"),
    (json.dumps({**CVT, "id2label": [1, 2]}), "id2label"),
    (json.dumps({"architecture": "resnet50"}), "not a CvT"),
    (json.dumps({"architecture": "cvt_13", "model_args": 3}), "not a mapping"),
    (json.dumps({"architecture": "cvt_13", "model_args": {"depth": 3}}), "depth"),
], ids=lambda v: str(v)[:30])
def test_a_config_that_is_none_of_a_cvt_is_rejected(directory, words, match):
    path = directory / "config.json"
    path.write_bytes(words) if isinstance(words, bytes) else path.write_text(words)

    rejected(directory, match, load_model)


@pytest.mark.parametrize("changes", [
    {"model": {}}, {"model": 3}, {"model": [1]}, {"model": {"stages": []}}, {"classes": "many"},
    {"model": {"stages": [{"dim": 1.5, "num_heads": 1, "depth": 1}]}}, {"classes": [1, 2]},
    {"model": {"stages": [{"dim": 10**30, "num_heads": 1, "depth": 1}]}, "classes": []},
    {"preprocess": {"size": "64"}}, {"preprocess": {"mean": ["x"]}}, {"preprocess": 3},
    {"classes": {"a": 1}}, {"weights": "/etc/passwd"},
], ids=str)
def test_a_config_with_values_of_the_wrong_kind_is_rejected(directory, changes):
    edit(directory, **changes)

    rejected(directory, re.escape(str(directory)), load_model)


def test_a_directory_without_config_or_weights_is_rejected(directory):
    (directory / "config.json").rename(directory / "config.txt")
    rejected(directory, "has no config.json", load_model)
    (directory / "best.safetensors").unlink()
    rejected(directory, "no weights", load_model)


def shard(directory, **places):
    """Cut best.safetensors into two parts and write their index, with `places` changed."""
    tensors = torch_load(directory / "best.safetensors")
    (directory / "best.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, directory / f"part-{i}.safetensors")
        weight_map |= dict.fromkeys(part, f"part-{i}.safetensors")
    index = {"metadata": {"total_size": 3}, "weight_map": {**weight_map, **places}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def torch_load(path):
    return {name: t.clone() for name, t in load_file(path).items()}


def test_an_index_is_followed(directory):
    before = load_model(directory)[0].state_dict()
    before = {name: t.clone() for name, t in before.items()}
    shard(directory)

    after = load_model(directory)[0].state_dict()

    assert all(torch.equal(t, before[name]) for name, t in after.items())


@pytest.mark.parametrize("name", [
    "../secret.safetensors", "/etc/secret.safetensors", "a/../../secret.safetensors",
    "..\\secret.safetensors", "C:secret.safetensors", "../model/part-0.safetensors", "..", ".", "",
    "sub/part.safetensors", "part-0.safetensors\n", "part-0.safetensors\0", "part-0.npz",
    "model.safetensors.index.json", "~/secret.safetensors", 3, None, ["part-0.safetensors"], {},
], ids=repr)
def test_an_index_leads_nowhere_else(directory, name):
    save_file({"head.bias": torch.zeros(10)}, directory.parent / "secret.safetensors")
    shard(directory, **{"head.bias": name})

    rejected(directory, "names the file|corrupt", load_model)


def test_a_part_that_is_missing_is_named(directory):
    shard(directory)
    (directory / "part-1.safetensors").unlink()

    rejected(directory, r"names part-1\.safetensors, which is not next to it", load_model)


@pytest.mark.parametrize(("places", "match"), [
    ({"head.bias": "part-1.safetensors", "norm.weight": "part-1.safetensors",
      "extra": "part-0.safetensors"}, "disagree about 'extra'"),
    ({"head.bias": "part-2.safetensors"}, "names part-2.safetensors"),
])
def test_an_index_that_disagrees_with_its_parts_is_rejected(directory, places, match):
    shard(directory, **places)

    rejected(directory, match, load_model)


@pytest.mark.parametrize("words", ["", "[]", "{}", "3", '{"weight_map": 3}', '{"weight_map": []}',
                                   '{"weight_map": {}}', '{"weight_map": ' + "9" * 5000 + "}"],
                         ids=lambda words: words[:20])
def test_an_index_that_is_none_is_rejected(directory, words):
    shard(directory)
    (directory / "model.safetensors.index.json").write_text(words)

    rejected(directory, re.escape(str(directory)), load_model)


@pytest.mark.parametrize(("name", "match"), [("config.json", "has no config.json"),
                                             ("best.safetensors", "no weights")])
def test_links_that_lead_in_a_circle_are_rejected(directory, name, match):
    (directory / name).unlink()
    (directory / name).symlink_to(directory / "other")
    (directory / "other").symlink_to(directory / name)

    with pytest.raises((InputError, FileNotFoundError), match=match):
        load_model(directory)


def test_a_directory_that_is_its_own_link_is_rejected(tmp_path):
    (tmp_path / "model").symlink_to(tmp_path / "model")

    rejected(tmp_path / "model", "no model at", load_model)


def test_a_name_of_the_zoo_does_not_make_a_hostile_file_good(tmp_path):
    """The tag says which network it is; the file is read as warily as any."""
    marker, path = tmp_path / "ran", tmp_path / "CvT-13-224x224-IN-1k.pth"
    torch.save({"weight": system(marker)}, path)

    rejected(path, "could run code", lambda p: create_model("cvt_13.msft_in1k", weights=p))
    rejected(path, "could run code", load_model)

    assert not marker.exists()
