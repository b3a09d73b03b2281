"""CvT in timm: after `import cvt.weights.timm_models` timm's functions know every variant.

    timm.create_model("cvt_13.msft_in1k", pretrained=True, num_classes=5, in_chans=1)
    timm.create_model("cvt_13", features_only=True, out_indices=(0, 2))
    timm.list_pretrained("cvt*")

The tags are those of `cvt.zoo`. Arguments beside timm's own are those of `TimmCvT`; any other is a
TypeError. Source of the contract: timm 1.0.31, tests/test_models.py.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch.nn.functional as F
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
from cvt.weights.load import is_finite, to_native
from cvt.weights.timm import WEIGHTS, build_config, global_pool, pretrained_cfg
from cvt.zoo import ZOO, shipped

_F = TypeVar("_F", bound=Callable[..., nn.Module])


def _source(tag: str) -> dict[str, str]:
    """Where timm finds the weights of a tag, and where they come from."""
    row, home = ZOO[tag], shipped(tag)
    about = {"license": row.licence, "paper_ids": "arXiv:2103.15808"}
    if home is not None:
        return {**about, "file": str(home / WEIGHTS)}
    return {**about, "origin_url": "https://github.com/microsoft/CvT",
            "hf_hub_id": f"{row.repo}" if row.revision == "main" else f"{row.repo}@{row.revision}"}


default_cfgs: Any = generate_default_cfgs({
    tag: {**pretrained_cfg(VARIANTS[row.variant], row.preprocess), **_source(tag)}
    for tag, row in ZOO.items()})
"""timm's pretrained cfgs: every tag of ZOO."""


class TimmCvT(CvT):
    """A CvT with what only timm asks for; its parameters have the names of `CvT`.

    variant: a key of VARIANTS. Rates, act_layer, img_size and stages change it as
    `cvt.weights.timm.build_config` says. global_pool: how `forward_head` makes one feature of the
    sequence (B, [1 +] T, C): "token", the class token; "avg", the mean over the T tokens of the
    grid; "", not at all: the sequence stays, and the classifier is applied to each of its tokens.
    By default the class token where the last stage has one, else the mean. Raises InputError for
    values that cannot be built.
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
        """Width of the classifier; 0 for none."""
        return self.config.num_classes

    @property
    def in_chans(self) -> int:
        """Channels of the input image."""
        return self.config.in_chans

    @property
    def head_hidden_size(self) -> int:
        """Channels of what the classifier sees."""
        return self.num_features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """What `forward_features` returns to logits (B, num_classes), pooled by `global_pool`.

        With global_pool="" the logits are (B, [1 +] T, num_classes). With `pre_logits` returns what
        the classifier would see: (B, C), or (B, [1 +] T, C).
        """
        if self.global_pool == "token":
            x = x[:, 0]
        elif self.global_pool == "avg":
            x = x[:, 1:] if self.config.stages[-1].cls_token else x
            x = x.mean(1)
        return x if pre_logits else self.head(x)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a freshly initialised classifier of another width in place; 0 takes it away.

        global_pool: another pooling with it; None keeps the present one. Raises InputError for a
        pooling that this network does not have, and then changes nothing.
        """
        pool = self.global_pool if global_pool is None else self._pool(global_pool)
        super().reset_classifier(num_classes)
        self.global_pool = pool

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
        *,
        level: Literal["stage", "block"] = "stage",
        return_prefix_tokens: bool = False,
    ) -> Any:
        """As `CvT.forward_intermediates`; with `norm` the last stage's maps are normed.

        The norm is as wide as the last stage, so other stages' maps stay raw. Raises InputError for
        what `CvT` refuses, and for `norm` where the norm was pruned.
        """
        if norm and isinstance(self.norm, nn.Identity):
            raise InputError("norm=True, but the norm was pruned; prune with prune_norm=False, and "
                             "keep the last stage")
        out = super().forward_intermediates(
            x, indices, level=level, output_fmt=output_fmt, stop_early=stop_early,
            return_prefix_tokens=return_prefix_tokens, intermediates_only=intermediates_only)
        if not norm:
            return out
        maps = out if intermediates_only else out[1]
        for i, last in enumerate(self._in_last_stage(indices, level)):
            if last:
                maps[i] = self._normed(maps[i], output_fmt)
        return out

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] | None = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Take away, for good, the stages that no map asked for needs; returns their indices.

        indices: as in `forward_intermediates`; returned as positions from the first stage. The norm
        goes with the last stage, or with `prune_norm`. prune_head: takes the classifier and the
        pooling away. Raises InputError for an index out of range, and where stages go but the head
        should stay.
        """
        kept = positions(indices, len(self.stages))
        if not kept:
            raise InputError("indices is empty; name one stage or more")
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
        """Patterns that sort parameters into layers from the input to the classifier, for timm.

        A layer is the stem, a block, or the classifier; a later stage's embedding belongs to its
        first block and the norm to the last. With `coarse` it is a stage.
        """
        enter = r"(?:embed|pos_embed|cls_token)"
        return {"stem": rf"^stages\.0\.{enter}", "blocks": r"^stages\.(\d+)" if coarse else [
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (rf"^stages\.(\d+)\.{enter}", (0,)),
            (r"^norm", (99999,)),  # timm's sign for the group before
        ]}

    def _pool(self, pool: str | None) -> str:
        natural = global_pool(self.config)
        if pool is None:
            return natural
        known = ("token", "avg", "") if natural == "token" else ("avg", "")
        if pool not in known:
            raise InputError(f"global_pool={pool!r} is not a pooling of this network; "
                             f"choose from {', '.join(map(repr, known))}")
        return pool

    def _in_last_stage(self, indices: int | Sequence[int] | None, level: str) -> list[bool]:
        depths = [stage.depth for stage in self.config.stages]
        last = [False] * (sum(depths[:-1]) if level == "block" else len(depths) - 1)
        last += [True] * (depths[-1] if level == "block" else 1)
        return [last[i] for i in positions(indices, len(last))]

    def _normed(self, found: Any, output_fmt: str) -> Any:
        if isinstance(found, tuple):  # a map and the class token
            fmap, cls = found
            return self._normed(fmap, output_fmt), cls if cls is None else self.norm(cls)
        if output_fmt == "NLC":
            return self.norm(found)
        return self.norm(found.movedim(1, -1)).movedim(-1, 1)  # (B, C, H, W)


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """`state_dict` in official, transformers or native names as `model` takes it.

    Position embeddings are resized to the model's; the head and the first convolution are timm's to
    adapt. Raises InputError for weights of another network, since timm, where it adapts, ignores
    what is missing, and for values that are not finite.
    """
    cfg = getattr(model, "pretrained_cfg", {})
    path = Path(next((cfg[key] for key in ("file", "hf_hub_id", "url") if cfg.get(key)), "weights"))
    found, _, _ = to_native(state_dict, path)
    needed = model.state_dict()
    for name in needed:
        if name.endswith(".pos_embed") and name in found and found[name].ndim == 4:
            found[name] = F.interpolate(found[name].float(), needed[name].shape[2:],
                                        mode="bicubic", align_corners=False)
    odd = {name for name in found.keys() ^ needed.keys() if not name.startswith("head.")}
    if odd:
        name = min(odd)
        raise InputError(f"{path} is not a checkpoint of this architecture: {len(odd)} names are "
                         f"missing or left over ({name}); create the model that it is of")
    bad = [name for name, tensor in found.items() if not is_finite(tensor)]
    if bad:
        raise InputError(f"{path} holds values that are not finite ({bad[0]}); the training that "
                         "wrote it diverged, or the file is damaged")
    return found


def _create(variant: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    if arguments.get("feature_cls", "getter") != "getter":
        raise InputError(f"feature_cls={arguments['feature_cls']!r} would take a stage's sequence "
                         "for a map; leave it out")
    return build_model_with_cfg(
        functools.partial(TimmCvT, variant), variant, pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": None, "feature_cls": "getter"},  # None is every stage
        **arguments)


def _registered(create: _F) -> _F:
    """Register `create`; again without timm's warning where the module is loaded again."""
    name = create.__name__
    with warnings.catch_warnings():
        if is_model(name) and model_entrypoint(name).__module__ == __name__:
            warnings.simplefilter("ignore")
        register_model(create)
    return create


@_registered
def cvt_13(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CvT-13, 20.0 M parameters; keywords are those of `TimmCvT` and of timm.create_model."""
    return _create("cvt_13", pretrained, kwargs)


@_registered
def cvt_21(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CvT-21, 31.6 M parameters; keywords are those of `TimmCvT` and of timm.create_model."""
    return _create("cvt_21", pretrained, kwargs)


@_registered
def cvt_w24(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CvT-W24, 277 M parameters; keywords are those of `TimmCvT` and of timm.create_model."""
    return _create("cvt_w24", pretrained, kwargs)


@_registered
def cvt_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Our own for small images; keywords are those of `TimmCvT` and of timm.create_model."""
    return _create("cvt_nano", pretrained, kwargs)


# A leaf for timm's tracers, so that a network in training and in evaluation has one graph.
register_notrace_module(DropPath)
