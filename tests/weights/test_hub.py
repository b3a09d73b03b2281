"""The hub's real client against a real server on the loopback interface."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import ConvNextImageProcessor, CvtConfig, CvtForImageClassification

from cvt import CvTConfig, Preprocess, StageConfig, save_model
from cvt.model import CvT

from .hub_server import Hub, commit

pytestmark = pytest.mark.slow

TOKEN = "hf_that_may_read"
# Takes steps, [what, its argument], and prints what came of each. "together" takes several.
SCRIPT = """
import json, resource, signal, sys, urllib.request
from concurrent.futures import ThreadPoolExecutor
from huggingface_hub import constants

def logits(source):
    import torch
    from cvt import load_model
    model, card = load_model(source)
    x = torch.linspace(-2, 2, 3 * 64 * 64).reshape(1, 3, 64, 64)
    with torch.no_grad():
        return {"logits": model(x)[0].tolist(), "act": model.config.act,
                "size": card.preprocess.size, "file": model.load_report.path.name}

def create(name):
    from cvt import create_model
    model = create_model(name)
    return {"act": model.config.act, "outputs": model.head.out_features,
            "parameters": sum(p.numel() for p in model.parameters())}

def card(source):
    from cvt import load_model
    model, card = load_model(source)
    return {"act": model.config.act, "classes": len(card.classes), "first": card.classes[0],
            "size": card.preprocess.size, "crop": card.preprocess.crop}

def fetch(source):
    from cvt.weights.hub import fetch
    repo, _, revision = source.partition("@")
    return sorted(path.name for path in fetch(repo, revision or "main").iterdir())

def heal(repo):
    urllib.request.urlopen(f"{constants.ENDPOINT}/heal/{repo}").close()

def limit(size):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def together(steps):
    with ThreadPoolExecutor(len(steps)) as pool:
        return list(pool.map(take, steps))

def take(step):
    try:
        return globals()[step[0]](step[1])
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}

for step in json.load(sys.stdin):
    print(json.dumps(take(step)), flush=True)
"""


def ask(hub, home, *steps, **variables):
    """What the steps, taken in a process of their own, came to."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": hub if isinstance(hub, str) else hub.url,
                    "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1",
                    **variables}
    done = subprocess.run([sys.executable, "-c", SCRIPT], input=json.dumps(steps), text=True,
                          capture_output=True, check=False, env=environment)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(steps), done.stderr
    return results


def rejected(result, match):
    assert result.get("error") == "InputError", result
    assert re.search(match, result["message"]), result["message"]
    assert result["message"].isprintable()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Directories of transformers' own making, of ours, and the logits of each."""
    root = tmp_path_factory.mktemp("checkpoints")
    expected = {}
    x = torch.linspace(-2, 2, 3 * 64 * 64).reshape(1, 3, 64, 64)
    for seed, name in enumerate(("safe", "pickled", "shards", "pickled_shards", "older")):
        torch.manual_seed(seed)
        port = CvtForImageClassification(CvtConfig(
            embed_dim=[16, 32, 48], num_heads=[1, 2, 3], depth=[1, 2, 3], num_labels=10)).eval()
        for buffer in port.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
        port.save_pretrained(root / name, max_shard_size="150KB" if "shards" in name else "1GB")
        with torch.no_grad():
            expected[name] = port(x).logits[0].tolist()
        if "pickled" in name:
            pickle(root / name, port.state_dict())
    ConvNextImageProcessor(size={"shortest_edge": 96}, crop_pct=0.75).save_pretrained(root / "safe")
    (root / "safe/pytorch_model.bin").write_bytes(b"not weights at all")
    torch.manual_seed(9)
    native = CvT(CvTConfig(stages=(StageConfig(dim=8, num_heads=1, depth=1, cls_token=True),),
                           num_classes=3, image_size=64)).eval()
    save_model(root / "native", native, Preprocess(size=64, crop=1.0), ("a", "b", "c"))
    with torch.no_grad():
        expected["native"] = native(x)[0].tolist()
    return root, expected


def pickle(directory, tensors):
    """Put the .bin files that transformers wrote before safetensors in the place of its files."""
    for file in directory.glob("*.safetensors"):
        file.unlink()
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        torch.save(tensors, directory / "pytorch_model.bin")
        return
    content = json.loads(index.read_text())
    index.unlink()
    content["weight_map"] = {name: "pytorch_" + file.replace("safetensors", "bin")
                             for name, file in content["weight_map"].items()}
    for file in set(content["weight_map"].values()):
        torch.save({name: tensors[name] for name, place in content["weight_map"].items()
                    if place == file}, directory / file)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def hub(checkpoints):
    root, _ = checkpoints
    with Hub() as server:
        for name in ("safe", "pickled", "shards", "pickled_shards", "native"):
            server.repos[f"org/{name}"] = {"main": root / name}
        server.repos["org/safe"] |= {"v0/a": root / "older"}
        server.repos["org/private"] = {"main": root / "native"}
        server.tokens["org/private"] = TOKEN
        yield server


NAMES = ("safe", "pickled", "shards", "pickled_shards", "native")


@pytest.fixture(scope="module")
def loaded(hub, tmp_path_factory):
    """The directory of a cache, and what was loaded through it."""
    home = tmp_path_factory.mktemp("home")
    sources = {name: f"hf-hub:org/{name}" for name in NAMES}
    sources |= {"older": "hf-hub:org/safe@v0/a", "private": "hf-hub:org/private",
                "again": "hf-hub:org/safe", "commit": "hf-hub:org/safe@" + commit(
                    hub.repos["org/safe"]["v0/a"])}
    results = ask(hub, home, *(["logits", source] for source in sources.values()))
    return home, dict(zip(sources, results, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_repository_is_loaded_as_transformers_computes_it(loaded, checkpoints, name):
    result = loaded[1][name]

    torch.testing.assert_close(result["logits"], checkpoints[1][name], rtol=0, atol=1e-5)
    assert result["act"] == ("quick_gelu" if name == "native" else "gelu")
    assert result["file"] == {
        "safe": "model.safetensors", "pickled": "pytorch_model.bin", "native": "best.safetensors",
        "shards": "model.safetensors.index.json",
        "pickled_shards": "pytorch_model.bin.index.json"}[name]


def test_preprocessing_comes_along_where_a_repository_has_it(loaded):
    assert loaded[1]["safe"]["size"] == 96
    assert loaded[1]["pickled"]["size"] == 224


def test_a_pickle_beside_safetensors_is_not_even_downloaded(loaded, hub):
    assert not [name for _, repo, _, name in hub.asked if repo == "org/safe" and ".bin" in name]


def test_a_revision_is_a_tag_or_a_commit(loaded, checkpoints):
    for name in ("older", "commit"):
        torch.testing.assert_close(loaded[1][name]["logits"], checkpoints[1]["older"], rtol=0,
                                   atol=1e-5)


def test_a_token_opens_a_private_repository(loaded):
    assert loaded[1]["private"]["logits"] == loaded[1]["native"]["logits"]


def test_what_is_in_the_cache_is_not_downloaded_again(loaded, hub):
    asked = [request for request in hub.asked if request[1] == "org/safe"]
    downloads = [request for request in asked if request[0] == "GET"]
    older = commit(hub.repos["org/safe"]["v0/a"])

    assert len(downloads) == len(set(downloads))
    # The commit was in the cache already, where nothing about it can have changed.
    assert not [request for request in asked if request[2] == older and request[3] == "config.json"]


def test_without_a_network_the_cache_is_enough(loaded, hub):
    home, online = loaded
    count = len(hub.asked)
    steps = [["logits", f"hf-hub:org/{name}"] for name in NAMES]
    steps += [["logits", "hf-hub:org/safe@v0/a"]]

    offline = ask(hub, home, *steps, ["fetch", "org/else"], ["fetch", "org/safe@v9"],
                  HF_HUB_OFFLINE="1")

    assert offline[:-2] == [online[name] for name in (*NAMES, "older")]
    for result, what in zip(offline[-2:], ("org/else at main", "org/safe at v9"), strict=True):
        rejected(result, f"{what} cannot be downloaded .*HF_HUB_OFFLINE is set, and config.json "
                        rf"is not in the cache, {home}/hub; unset it .* the path of its directory")
    assert len(hub.asked) == count


def test_a_cache_that_lacks_a_part_says_which(loaded, hub, tmp_path):
    home, _ = loaded
    copy = tmp_path / "home"
    subprocess.run(["cp", "-r", str(home), str(copy)], check=True)
    part = max(copy.glob("hub/models--org--shards/snapshots/*/*.safetensors"))
    part.unlink()
    for path in copy.glob("hub/models--org--native/snapshots/*/best.safetensors"):
        path.unlink()

    shards, native = ask(hub, copy, ["fetch", "org/shards"], ["fetch", "org/native"],
                         HF_HUB_OFFLINE="1")

    rejected(shards, f"and {part.name} is not in the cache")
    rejected(native, "and model.safetensors is not in the cache")


def test_a_hub_that_is_not_there_leaves_the_cache(loaded):
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        cached, absent = ask(url, loaded[0], ["logits", "hf-hub:org/safe"], ["fetch", "org/else"])

    assert cached == loaded[1]["safe"]
    rejected(absent, f"org/else at main cannot be downloaded from {url}: the connection failed.*"
                    "config.json is not in the cache.*try again, or check the connection")


def spoil(directory, root, **content):
    """A repository of config.json and files of the given content."""
    target = root / directory
    target.mkdir()
    (target / "config.json").write_text("{}")
    for name, data in content.items():
        file = target / name
        file.write_bytes(data) if isinstance(data, bytes) else file.write_text(json.dumps(data))
    return target


FAILURES = {  # where (see Hub) -> what fails there, and its message
    "org/gated": (403, "org/gated is gated; accept its terms at .*/org/gated, then set "),
    "org/down": (500, "org/down at main cannot be downloaded from .*: it responds with 500, and "
                      r"config\.json is not in the cache"),
    "org/busy": (503, "it responds with 503"),
    "org/slow": ("hang", "the request timed out"),
    "org/bare": ("bare", "does not respond like the hub .*; check HF_ENDPOINT"),
    "org/teapot": (418, r"does not respond like the hub \(.*418.*\); check HF_ENDPOINT"),
    "org/refusing/model.safetensors": (500, "responds with 500, and model.safetensors is not in"),
    "org/cut/model.safetensors": ("cut", "the connection failed .*model.safetensors"),
    "org/short/model.safetensors": ("short", "cannot be downloaded: Consistency check failed"),
    "org/cut_config/config.json": ("short", "cannot be downloaded: Consistency check failed"),
}


@pytest.fixture(scope="module")
def troubled(hub, checkpoints, tmp_path_factory):
    """What came of each troubled repository, and of it again when it was well; and the cache."""
    home, root = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("troubled")
    well = {key: "/".join(key.split("/")[:2]) for key in FAILURES}
    for key, repo in well.items():
        hub.failures[key] = FAILURES[key][0]
        hub.repos[repo] = {"main": checkpoints[0] / "safe"}
    index = {"weight_map": {"a": "../../../../../../secret.safetensors"}}
    parts = {"weight_map": {"a": "part-1.safetensors"}}
    hub.repos |= {
        "org/empty": {"main": spoil("empty", root)},
        "org/no_config": {"main": spoil("no_config", root, **{"model.safetensors": b"x"})},
        "org/traversal": {"main": spoil("traversal", root,
                                        **{"model.safetensors.index.json": index})},
        "org/part": {"main": spoil("part", root, **{"model.safetensors.index.json": parts})},
        "org/garbage": {"main": spoil("garbage", root,
                                      **{"pytorch_model.bin.index.json": b"<html>"})},
        "org/hidden": {"main": checkpoints[0] / "safe"},
        "org/full": {"main": checkpoints[0] / "safe"},
    }
    hub.repos["org/moving"] = {"main": checkpoints[0] / "safe", "next": checkpoints[0] / "pickled"}
    hub.failures["org/moving/config.json"] = "move"
    hub.tokens["org/hidden"] = "hf_of_another"
    (root / "no_config/config.json").unlink()
    save_file({"a": torch.zeros(3)}, root / "secret.safetensors")
    others = ["org/empty", "org/no_config", "org/traversal", "org/part", "org/garbage",
              "org/hidden", "org/nobody", "org/safe@v9", "cvt-13", "org/safe/model", "org/a--b",
              "../safe", "org/safe@../../main", "org/safe@a b", "org/moving"]
    names = [*well.values(), *others]
    first, _, second, _, full, _, room = ask(
        hub, home, ["together", [["fetch", name] for name in names]],
        ["together", [["heal", repo] for repo in well.values()]],
        ["together", [["fetch", repo] for repo in well.values()]],
        ["limit", 20_000], ["fetch", "org/full"], ["limit", -1], ["fetch", "org/full"])
    return {"first": dict(zip([*well, *others], first, strict=True)), "full": full, "room": room,
            "second": dict(zip(well, second, strict=True)), "home": home}


@pytest.mark.parametrize("key", FAILURES)
def test_errors_are_reported_in_one_line_and_are_temporary(troubled, key):
    rejected(troubled["first"][key], FAILURES[key][1])
    assert troubled["second"][key] == ["config.json", "model.safetensors",
                                       "preprocessor_config.json"]


@pytest.mark.parametrize("key", FAILURES)
def test_what_arrived_in_two_tries_is_whole(troubled, checkpoints, key):
    repo = "--".join(key.split("/")[:2])
    directory = next(troubled["home"].glob(f"hub/models--{repo}/snapshots/*"))

    for path in directory.iterdir():
        assert path.read_bytes() == (checkpoints[0] / "safe" / path.name).read_bytes()


@pytest.mark.parametrize(("name", "match"), [
    ("org/empty", r"org/empty at main has no weights \(model\.safetensors, best\.safetensors, "),
    ("org/no_config", r"org/no_config at main has no config\.json, which describes"),
    ("org/part", r"has no part-1\.safetensors, which its model\.safetensors\.index\.json names"),
    ("org/garbage", r"pytorch_model\.bin\.index\.json is corrupt: it has no weight_map"),
    ("org/hidden", "has no repository org/hidden, or it is private; .* HF_TOKEN"),
    ("org/nobody", "has no repository org/nobody, or it is private"),
    ("org/safe@v9", "org/safe has no revision 'v9'; choose a branch, a tag or a commit of "),
    ("cvt-13", "'cvt-13' is not a repository name; write hf-hub:org/name"),
    ("org/safe/model", "is not a repository name; write hf-hub:org/name"),
    ("org/a--b", "org/a--b"), ("../safe", r"\.\./safe"),
    ("org/safe@../../main", r"'\.\./\.\./main' is not a revision; write hf-hub:org/safe@REVISION"),
    ("org/safe@a b", "'a b' is not a revision"),
])
def test_what_a_hub_does_not_have_is_reported_with_what_to_do(troubled, name, match):
    rejected(troubled["first"][name], match)


def test_all_files_are_of_one_commit_though_another_is_pushed_meanwhile(troubled):
    assert troubled["first"]["org/moving"] == ["config.json", "model.safetensors",
                                               "preprocessor_config.json"]


def test_an_index_of_a_hub_leads_nowhere_else(troubled, hub):
    rejected(troubled["first"]["org/traversal"], r"names the file '\.\./.*next to their index")

    assert not [request for request in hub.asked if "secret" in request[3]]


def test_a_full_disk_is_reported_and_leaves_no_part_of_a_file(troubled):
    """The process may write no file of more than 20 kB: a real error of a real write."""
    rejected(troubled["full"], f"org/full cannot be written to the cache, {troubled['home']}/hub: "
                              "File too large; free some space, or set HF_HOME")
    assert troubled["room"] == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert not list(troubled["home"].rglob("*.incomplete"))


def test_the_published_weights_are_found_by_their_tag(hub, tmp_path):
    torch.manual_seed(0)
    port = CvtForImageClassification(CvtConfig(num_labels=1000))  # the port's default is CvT-13
    port.save_pretrained(tmp_path / "cvt-13")
    hub.repos["microsoft/cvt-13"] = {"main": tmp_path / "cvt-13"}

    model, by_tag, by_name = ask(
        hub, tmp_path / "home", ["create", "cvt_13.msft_in1k"], ["card", "cvt_13.msft_in1k"],
        ["card", "hf-hub:microsoft/cvt-13"])

    assert model == {"act": "quick_gelu", "outputs": 1000, "parameters": 19_997_480}
    assert "tench" in by_tag["first"]
    assert by_tag == {"act": "quick_gelu", "classes": 1000, "first": by_tag["first"], "size": 224,
                      "crop": 0.875}
    assert by_name == by_tag
    shutil.rmtree(tmp_path)  # 160 MB
