"""Every published CvT by name: where its weights are, what computes them, what they reach.

microsoft's are on the hub, those of `cvt_nano` in this package. A name is a variant (`cvt_13`: the
network, untrained) or a tag (`cvt_13.msft_in1k`: the network with these weights). Wherever the
package takes a model, it takes a tag, a path or `hf-hub:org/name`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from cvt.card import CONFIG, ModelCard, find_config
from cvt.config import VARIANTS, Act, CvTConfig, Preprocess, imagenet_preprocess
from cvt.errors import InputError, did_you_mean
from cvt.model import CvT
from cvt.weights.checkpoint import Checkpoint, build, read_card, read_checkpoint
from cvt.weights.hub import fetch

HUB = "hf-hub:"

_SHIPPED = Path(__file__).parent / "shipped"


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A row of the zoo: one set of weights."""

    variant: str
    """The network, a key of VARIANTS."""
    repo: str | None = None
    """The hub's repository, with the weights in the names of transformers; None for weights that
    lie in this package, in shipped/TAG/."""
    file: str | None = None
    """What the official release called the file."""
    trained_on: tuple[str, ...]
    """The datasets it learned from, in the hub's words where it has them; the last has its
    classes."""
    preprocess: Preprocess
    """From a picture to the network's input."""
    tested_on: str
    """The labelled pictures that the figures are of."""
    n: int
    """How many they are."""
    paper_top1: float | None = None
    """Top-1 in percent, Table 3 of the paper."""
    measured_top1: float
    """Top-1 in percent: microsoft's as others measured it (README of the PaddleViT port), ours as
    benchmarks/shipped.py did."""
    measured_top5: float
    """Top-5 of the same measurement."""
    act: Act = "quick_gelu"
    """The activation that the weights were trained with."""
    revision: str = "main"
    """The repository's revision: a branch, a tag or a commit."""
    licence: str = "apache-2.0"
    """As the repository's card says, or the one in shipped/TAG/."""

    @property
    def size(self) -> int:
        """Side in pixels of the pictures it sees."""
        return self.preprocess.size


def _msft(variant: str, repo: str, file: str, size: int, *top: float) -> Pretrained:
    return Pretrained(variant=variant, repo=f"microsoft/{repo}", file=file,
                      preprocess=imagenet_preprocess(size),
                      trained_on=(*(["imagenet-21k"] if "22k" in repo else []), "imagenet-1k"),
                      tested_on="ImageNet-1k", n=50000,
                      paper_top1=top[0], measured_top1=top[1], measured_top5=top[2])


def _ours(variant: str, data: str, preprocess: Preprocess, tested_on: str, n: int, *top: float
          ) -> Pretrained:
    return Pretrained(variant=variant, trained_on=(data,), preprocess=preprocess,
                      tested_on=tested_on, n=n, measured_top1=top[0], measured_top5=top[1])


ZOO: Mapping[str, Pretrained] = {
    "cvt_13.msft_in1k":
        _msft("cvt_13", "cvt-13", "CvT-13-224x224-IN-1k.pth", 224, 81.6, 81.59, 95.72),
    "cvt_13.msft_in1k_384":
        _msft("cvt_13", "cvt-13-384", "CvT-13-384x384-IN-1k.pth", 384, 83.0, 83.00, 96.36),
    "cvt_13.msft_in22k_ft_in1k_384":
        _msft("cvt_13", "cvt-13-384-22k", "CvT-13-384x384-IN-22k.pth", 384, 83.3, 83.26, 97.09),
    "cvt_21.msft_in1k":
        _msft("cvt_21", "cvt-21", "CvT-21-224x224-IN-1k.pth", 224, 82.5, 82.52, 96.06),
    "cvt_21.msft_in1k_384":
        _msft("cvt_21", "cvt-21-384", "CvT-21-384x384-IN-1k.pth", 384, 83.3, 83.27, 96.16),
    "cvt_21.msft_in22k_ft_in1k_384":
        _msft("cvt_21", "cvt-21-384-22k", "CvT-21-384x384-IN-22k.pth", 384, 84.9, 84.91, 97.62),
    "cvt_w24.msft_in22k_ft_in1k_384":
        _msft("cvt_w24", "cvt-w24-384-22k", "CvT-w24-384x384-IN-22k.pth", 384, 87.7, 87.58, 98.47),
    "cvt_nano.fashion_mnist":
        _ours("cvt_nano", "zalando-datasets/fashion_mnist",
              Preprocess(size=28, crop=1.0, mean=(0.286,) * 3, std=(0.353,) * 3),
              "Fashion-MNIST, test", 10000, 93.58, 99.86),
    "cvt_nano.digits":
        _ours("cvt_nano", "digits",
              Preprocess(size=16, crop=1.0, mean=(0.305,) * 3, std=(0.376,) * 3),
              "digits, held out", 360, 99.17, 100.00),
}
"""The row of every tag, by which `create_model` and `load_model` know it."""


def shipped(name: str | Path) -> Path | None:
    """The directory in this package that holds the weights of a tag; None for any other name."""
    row = ZOO.get(str(name))
    return _SHIPPED / str(name) if row and row.repo is None else None


def list_models(pattern: str = "*") -> list[str]:
    """Every name that `create_model` takes, variants and tags, that matches `pattern`.

    >>> list_models("cvt_w24*")
    ['cvt_w24', 'cvt_w24.msft_in22k_ft_in1k_384']
    """
    return sorted(name for name in (*VARIANTS, *ZOO) if fnmatchcase(name, pattern))


def create_model(name: str, *, weights: str | Path | None = None, num_classes: int | None = None,
                 in_chans: int | None = None, act: Act | None = None) -> CvT:
    """A model in evaluation mode: a variant untrained, or with weights.

    name: a variant, a tag, or a configuration file. weights: a tag, a file, a directory of this
    package, transformers or timm, or `hf-hub:org/name[@revision]`; by default those of the tag,
    for a variant none. The network is that of the weights, or a configuration file's where one is
    given, but for classes, channels and activation. num_classes: another number puts a new head on,
    the weights' own number keeps theirs, whatever its classes; 0 takes it away. in_chans: another
    number fits the first convolution. act: instead of what the weights were trained with. What was
    done stands in the model's `load_report`. Raises InputError for an unknown name, for weights of
    another network, and where they cannot be had.
    """
    variant = ZOO[name].variant if name in ZOO else name
    if variant not in VARIANTS and Path(variant).suffix not in (".json", ".yaml", ".yml"):
        raise InputError(f"there is no model {name!r}; {did_you_mean(name, list_models())}")
    config = find_config(variant)
    if weights is None and name not in ZOO:
        return CvT(dataclasses.replace(
            config, num_classes=config.num_classes if num_classes is None else num_classes,
            in_chans=in_chans or config.in_chans, act=act or config.act)).eval()
    checkpoint = open_checkpoint(name if weights is None else weights, model=name, act=act)
    found = checkpoint.card.model
    if [(s.dim, s.depth) for s in found.stages] != [(s.dim, s.depth) for s in config.stages]:
        theirs = next((v for v, c in VARIANTS.items() if c.stages == found.stages), "another CvT")
        raise InputError(f"{weights} holds weights of {theirs}, not of {variant}; create that one")
    if variant not in VARIANTS:  # a file says more than a name does
        network = dataclasses.replace(config, num_classes=found.num_classes,
                                      in_chans=found.in_chans, act=found.act)
        checkpoint = dataclasses.replace(
            checkpoint, card=dataclasses.replace(checkpoint.card, model=network))
    return _build(checkpoint, num_classes, in_chans)


def load_model(source: str | Path, *, act: Act | None = None) -> tuple[CvT, ModelCard]:
    """A trained model in evaluation mode, and its card: preprocessing and class names.

    source: what `create_model` takes as weights, such as a directory that `cvt train` wrote, or
    one file in it. Raises InputError where something is missing, damaged or does not fit together.
    """
    checkpoint = open_checkpoint(source, act=act)
    return _build(checkpoint, None, None), checkpoint.card


def open_checkpoint(source: str | Path, *, model: str | None = None, act: Act | None = None
                    ) -> Checkpoint:
    """The weights and the card that `source` stands for, in any format.

    source: a tag, `hf-hub:org/name[@revision]`, a directory or a file. model: the tag, the variant
    or the configuration file that a bare file of weights is of, where its shapes do not tell.
    Raises InputError where there is nothing of that name, and for what cannot be read.
    """
    text = str(source)
    if text in ZOO:
        row = ZOO[text]
        return _open_tag(text, fetch(row.repo, row.revision) if row.repo else _SHIPPED / text, act)
    if text.startswith(HUB):
        repo, _, revision = text.removeprefix(HUB).partition("@")
        directory = fetch(repo, revision or "main")
        tag = next((tag for tag, row in ZOO.items() if row.repo == repo), None)
        return _open_tag(tag, directory, act) if tag else read_checkpoint(directory, act=act)
    path = Path(source)
    if not path.exists() and "/" not in text and not path.suffix:
        raise InputError(f"{text!r} is neither a path nor a tag; "
                         f"{did_you_mean(text, ZOO)}" if text.startswith("cvt_") else
                         f"no model at {text}; give a directory that `cvt train --output` wrote, a "
                         "tag of `cvt zoo`, or hf-hub:org/name")
    # The official files say in their names what they are.
    tag = model if model in ZOO else next((t for t, row in ZOO.items() if row.file == path.name),
                                          None)
    if tag and path.is_file():
        return _open_tag(tag, path, act)
    bare = path.is_file() and model is not None and not (path.parent / CONFIG).is_file()
    return read_checkpoint(path, config=model if bare else None, act=act)


def _open_tag(tag: str, path: Path, act: Act | None) -> Checkpoint:
    row = ZOO[tag]
    network = dataclasses.replace(config_of(tag), act=act or row.act)
    checkpoint = read_checkpoint(path, config=network)
    found = checkpoint.card.model
    home = shipped(tag)
    classes = ModelCard.load(home).classes if home else imagenet_classes()
    named = found.num_classes == len(classes)
    card = ModelCard(model=found, preprocess=row.preprocess.with_channels(found.in_chans),
                     classes=classes if named else checkpoint.card.classes)
    return dataclasses.replace(checkpoint, card=card, tag=tag, named=named)


def _build(checkpoint: Checkpoint, num_classes: int | None, in_chans: int | None) -> CvT:
    model, report = build(checkpoint, num_classes=num_classes, in_chans=in_chans)
    model.load_report = report
    return model


def config_of(name: str) -> CvTConfig:
    """The network of anything that has a name here, without its weights.

    name: a tag, a variant, a configuration file, or the directory of a model in any format. Raises
    InputError where it is none of these.
    """
    if (home := shipped(name)) is not None:
        return ModelCard.load(home).model
    if name in ZOO:
        return dataclasses.replace(VARIANTS[ZOO[name].variant], image_size=ZOO[name].size)
    if (Path(name) / CONFIG).is_file():
        return read_card(Path(name))[0].model
    return find_config(name)


@functools.cache
def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes, in the order of every checkpoint's logits."""
    from timm.data import ImageNetInfo  # where the names are, and slow to import

    info = ImageNetInfo()
    return tuple(info.index_to_description(i) for i in range(1000))
