"""The studies as data: Tables 5 to 8 of the paper, and accuracy over the number of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from cvt.config import CvTConfig
from cvt.weights.card import Network

Change = Callable[[CvTConfig], CvTConfig]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One configuration of a study."""

    label: str
    """The name in the table."""
    change: Change = lambda config: config
    """Maps the studied variant to this configuration."""
    network: Network = "cvt"
    """The CvT, or a baseline."""
    paper_top1: float | None = None
    """ImageNet top-1 in percent from the paper's table, for CvT-13 or DeiT-S."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the paper about two configurations of a study."""

    text: str
    one: str
    """The label of the configuration that is claimed to be ahead, or not behind."""
    other: str
    """The label of the configuration that it is compared with."""
    kind: Literal["ahead", "not behind"] = "ahead"
    """ahead: more accurate (superiority). not behind: less accurate by at most `MARGIN`
    (non-inferiority)."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Configurations that differ in one aspect, and the paper's claims about them."""

    title: str
    """The subject, and its table in the paper."""
    rows: tuple[Row, ...]
    """In the order of the paper's table."""
    claims: tuple[Claim, ...]
    """Tested by the differences between runs with the same seed."""
    by_images: bool = False
    """Whether every row is trained on several numbers of images."""


# Points of top-1 that a configuration may lose and still count as not behind: the paper treats
# differences of up to 0.2 points as equal (Tables 5 and 6), from 0.6 on as different (6 to 8).
MARGIN = 0.5

SEEDS = (0, 1, 2)
SIZES = (100, 300, 1000, 3000, 10000)  # numbers of training images, for the study data


def stages_changed(config: CvTConfig, *stages: int, **values: Any) -> CvTConfig:
    """`config` with `values` in the given stages, 1 the first and -1 the last; none means all."""
    count = len(config.stages)
    which = {(s - 1 if s > 0 else count + s) for s in stages} or set(range(count))
    return replace(config, stages=tuple(
        replace(stage, **values) if i in which else stage for i, stage in enumerate(config.stages)))


def _position(*stages: int) -> Change:
    """Adds a position embedding to the given stages; none means all."""
    return lambda config: stages_changed(config, *stages, pos_embed=True)


def _patches(config: CvTConfig) -> CvTConfig:
    """Replaces the convolutional embedding by non-overlapping patches with the same strides."""
    return replace(config, stages=tuple(
        replace(stage, embed="patch", embed_kernel=stage.embed_stride, embed_padding=0)
        for stage in config.stages))


def _convolutional(first: int) -> Change:
    """Keeps the convolutional projection in the first `first` stages; the others get a Linear."""
    def change(config: CvTConfig) -> CvTConfig:
        later = range(first + 1, len(config.stages) + 1)
        return stages_changed(config, *later, projection="linear", stride_kv=1) if later else config

    return change


_VIT = Row(label="ViT with position embedding", network="vit", paper_top1=79.8)
_VIT_WITHOUT = Row(label="ViT without", network="vit_without_position", paper_top1=78.0)

STUDIES: Mapping[str, Study] = {
    "position": Study(
        title="Position embedding (Table 5)",
        rows=(
            _VIT, _VIT_WITHOUT,
            Row(label="CvT, in every stage", change=_position(), paper_top1=81.5),
            Row(label="CvT, in the first stage", change=_position(1), paper_top1=81.4),
            Row(label="CvT, in the last stage", change=_position(-1), paper_top1=81.4),
            Row(label="CvT, in none", paper_top1=81.6)),
        claims=(
            Claim(text="a ViT needs its position embedding", one=_VIT.label,
                  other=_VIT_WITHOUT.label),
            *(Claim(text="a CvT needs none", one="CvT, in none", other=f"CvT, in {where}",
                    kind="not behind")
              for where in ("every stage", "the first stage", "the last stage")))),
    "embedding": Study(
        title="Convolutional token embedding (Table 6)",
        rows=(
            Row(label="patches", change=_patches, paper_top1=80.7),
            Row(label="patches, with position embedding",
                change=lambda config: _position(1)(_patches(config)), paper_top1=81.1),
            Row(label="convolutional, with position embedding", change=_position(1),
                paper_top1=81.4),
            Row(label="convolutional", paper_top1=81.6)),
        claims=(
            Claim(text="the convolutional embedding is better", one="convolutional",
                  other="patches"),
            Claim(text="also than patches with a position embedding", one="convolutional",
                  other="patches, with position embedding"),
            Claim(text="with it, positions add nothing", one="convolutional",
                  other="convolutional, with position embedding", kind="not behind"))),
    "stride": Study(
        title="Stride of keys and values (Table 7)",
        rows=(
            Row(label="stride 1", change=partial(stages_changed, stride_kv=1), paper_top1=82.3),
            Row(label="stride 2", change=partial(stages_changed, stride_kv=2), paper_top1=81.6)),
        claims=(Claim(text="stride 1 is more accurate, and costs more", one="stride 1",
                      other="stride 2"),)),
    "projection": Study(
        title="Convolutional projection (Table 8)",
        rows=(
            Row(label="in no stage", change=_convolutional(0), paper_top1=80.6),
            Row(label="in stage 1", change=_convolutional(1), paper_top1=80.8),
            Row(label="in stages 1 and 2", change=_convolutional(2), paper_top1=81.0),
            Row(label="in all stages", paper_top1=81.6)),
        claims=(
            Claim(text="the convolutional projection helps", one="in all stages",
                  other="in no stage"),
            Claim(text="and the more, the more stages have it", one="in all stages",
                  other="in stages 1 and 2"),
            Claim(text="and the more, the more stages have it", one="in stages 1 and 2",
                  other="in stage 1"),
            Claim(text="and the more, the more stages have it", one="in stage 1",
                  other="in no stage"))),
    "data": Study(
        title="Accuracy against the number of training images",
        rows=(Row(label="CvT"), Row(label="ViT", network="vit"),
              Row(label="ResNet", network="resnet")),
        claims=(Claim(text="convolutions let a transformer learn from less", one="CvT",
                      other="ViT"),
                Claim(text="and, for comparison, more than a ResNet", one="CvT", other="ResNet")),
        by_images=True),
}
TABLES = tuple(name for name, study in STUDIES.items() if not study.by_images)
