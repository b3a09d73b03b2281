"""Register CvT with timm: after `import cvt.weights.timm_models` timm can create every variant.

    timm.create_model("cvt_13.msft_in1k", pretrained=True, num_classes=5, in_chans=1)
    timm.create_model("cvt_13", features_only=True, out_indices=(0, 2))
    timm.list_pretrained("cvt*")

The tags are those of `cvt.zoo`. Besides the arguments of timm, those of `TimmCvT` are accepted;
others raise TypeError. Follows timm 1.0.31, tests/test_models.py.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    is_model,
    model_entrypoint,
    register_model,
    register_notrace_module,
)
from torch import Tensor, nn

from cvt.config import VARIANTS
from cvt.model import CvT, DropPath, positions
from cvt.system.errors import InputError
from cvt.weights.load import check_finite, resize_pos_embed, to_native
from cvt.weights.tensors import SAFETENSORS
from cvt.weights.timm import build_config, global_pool, pretrained_cfg
from cvt.zoo import ZOO, shipped

_F = TypeVar("_F", bound=Callable[..., nn.Module])


def _source(tag: str) -> dict[str, str]:
    """Where the weights of a tag are, and their origin, as entries of a pretrained cfg."""
    row, home = ZOO[tag], shipped(tag)
    about = {"license": row.license, "paper_ids": "arXiv:2103.15808"}
    if home is not None:
        return {**about, "file": str(home / SAFETENSORS)}
    return {**about, "origin_url": "https://github.com/microsoft/CvT",
            "hf_hub_id": f"{row.repo}" if row.revision == "main" else f"{row.repo}@{row.revision}"}


default_cfgs: Any = generate_default_cfgs({
    tag: {**pretrained_cfg(VARIANTS[row.variant], row.preprocess), **_source(tag)}
    for tag, row in ZOO.items()})
"""Pretrained cfgs for timm: every tag of ZOO."""


class TimmCvT(CvT):
    """A CvT with the interface of timm; its parameters have the names of `CvT`.

    variant: a key of VARIANTS. Rates, act_layer, img_size and stages change it, see
    `cvt.weights.timm.build_config`. global_pool: how `forward_head` pools the sequence
    (B, [1 +] T, C): "token" takes the class token, "avg" the mean over the T tokens of the grid, ""
    applies the classifier to every token. By default the class token if the last stage has one,
    else the mean. Raises InputError for invalid values.
    """

    def __init__(self, variant: str, *, num_classes: int | None = None, in_chans: int = 3,
                 global_pool: str | None = None, drop_rate: float | None = None,
                 attn_drop_rate: float | None = None, drop_path_rate: float | None = None,
                 act_layer: str | None = None, img_size: int | Sequence[int] | None = None,
                 stages: Sequence[Mapping[str, Any]] | None = None) -> None:
        super().__init__(build_config(
            variant, num_classes=num_classes, in_chans=in_chans, act_layer=act_layer,
            drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate,
            img_size=img_size, stages=stages))
        self.global_pool = self._pool(global_pool)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without a classifier."""
        return self.config.num_classes

    @property
    def in_chans(self) -> int:
        """Channels of the input image."""
        return self.config.in_chans

    @property
    def head_hidden_size(self) -> int:
        """Channels of the input of the classifier."""
        return self.num_features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Output of `forward_features` to logits (B, num_classes), pooled by `global_pool`.

        With global_pool="" the logits are (B, [1 +] T, num_classes). With `pre_logits` returns the
        input of the classifier: (B, C), or (B, [1 +] T, C).
        """
        if self.global_pool == "token":
            x = x[:, 0]
        elif self.global_pool == "avg":
            x = x[:, 1:] if self.config.stages[-1].cls_token else x
            x = x.mean(1)
        return x if pre_logits else self.head(x)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a newly initialised one; 0 removes it.

        global_pool: replaces the pooling; None keeps it. Raises InputError for an unsupported
        pooling, and then changes nothing.
        """
        pool = self.global_pool if global_pool is None else self._pool(global_pool)
        super().reset_classifier(num_classes)
        self.global_pool = pool

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] | None = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove the stages after the last of `indices`; returns the indices, from 0.

        indices: as in `forward_intermediates`. The norm is removed with the last stage, or with
        `prune_norm`. prune_head: removes the classifier and the pooling. Raises InputError for an
        index out of range, and if stages are removed but not the head.
        """
        kept = positions(indices, len(self.stages))
        if not kept:
            raise InputError("indices is empty; give one stage or more")
        end = max(kept) + 1
        if end < len(self.stages) and not prune_head:
            raise InputError(f"prune_head=False keeps a classifier of the last stage's features, "
                             f"but indices={indices} needs only {end} of {len(self.stages)} "
                             "stages; set prune_head=True")
        if prune_head:
            self.reset_classifier(0, "")
        if prune_norm or end < len(self.stages):
            self.norm = cast("nn.LayerNorm", nn.Identity())
        self.stages = self.stages[:end]
        self.config = dataclasses.replace(self.config, stages=self.config.stages[:end])
        self.num_features = self.config.stages[-1].dim
        return kept

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that group parameters into layers, from the input to the classifier.

        A layer is the stem, a block or the classifier; the embedding of a later stage belongs to
        its first block, the norm to the last block. With `coarse` a layer is a stage.
        """
        enter = r"(?:embed|pos_embed|cls_token)"
        return {"stem": rf"^stages\.0\.{enter}", "blocks": r"^stages\.(\d+)" if coarse else [
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (rf"^stages\.(\d+)\.{enter}", (0,)),
            (r"^norm", (99999,)),  # means the group before, in timm
        ]}

    def _pool(self, pool: str | None) -> str:
        default = global_pool(self.config)
        if pool is None:
            return default
        known = ("token", "avg", "") if default == "token" else ("avg", "")
        if pool not in known:
            raise InputError(f"global_pool={pool!r} is not a pooling of this network; "
                             f"choose from {', '.join(map(repr, known))}")
        return pool


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """`state_dict` with official, transformers or native names, under native names.

    Position embeddings are resized to the model's; timm adapts the head and the first convolution.
    Raises InputError for weights of another network, since timm ignores missing tensors when it
    adapts, and for values that are not finite.
    """
    cfg = getattr(model, "pretrained_cfg", {})
    path = Path(next((cfg[key] for key in ("file", "hf_hub_id", "url") if cfg.get(key)), "weights"))
    tensors, _, _ = to_native(state_dict, path)
    expected = model.state_dict()
    for name in expected:
        if name.endswith(".pos_embed") and name in tensors and tensors[name].ndim == 4:
            tensors[name] = resize_pos_embed(tensors[name], expected[name].shape)
    wrong = {name for name in tensors.keys() ^ expected.keys() if not name.startswith("head.")}
    if wrong:
        raise InputError(f"{path} is not a checkpoint of this architecture: {len(wrong)} names are "
                         f"missing or unexpected ({min(wrong)}); create the model that it is of")
    check_finite(tensors, path)
    return tensors


def _create(variant: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    if arguments.get("feature_cls", "getter") != "getter":
        raise InputError(f"feature_cls={arguments['feature_cls']!r} is not supported, since a "
                         "stage returns a sequence and not a map; leave it out")
    return build_model_with_cfg(
        functools.partial(TimmCvT, variant), variant, pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": None, "feature_cls": "getter"},  # None: every stage
        **arguments)


def _registered(create: _F) -> _F:
    """Register `create`, without a warning from timm if this module is reloaded."""
    name = create.__name__
    with warnings.catch_warnings():
        if is_model(name) and model_entrypoint(name).__module__ == __name__:
            warnings.simplefilter("ignore")
        register_model(create)
    return create


@_registered
def cvt_13(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CvT-13, 20.0 M parameters; takes the arguments of `TimmCvT` and timm.create_model."""
    return _create("cvt_13", pretrained, kwargs)


@_registered
def cvt_21(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CvT-21, 31.6 M parameters; takes the arguments of `TimmCvT` and timm.create_model."""
    return _create("cvt_21", pretrained, kwargs)


@_registered
def cvt_w24(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CvT-W24, 277 M parameters; takes the arguments of `TimmCvT` and timm.create_model."""
    return _create("cvt_w24", pretrained, kwargs)


@_registered
def cvt_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Our own for small images; takes the arguments of `TimmCvT` and timm.create_model."""
    return _create("cvt_nano", pretrained, kwargs)


# A leaf for timm's tracers, so that the graphs of training and evaluation are the same.
register_notrace_module(DropPath)
