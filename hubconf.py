"""CvT (arXiv:2103.15808) for torch.hub; the code of this clone is used, even if installed.

    torch.hub.load("/path/to/clone", "cvt_13", source="local", weights="msft_in1k", num_classes=5)

Every function returns a model in evaluation mode. weights: a tag with or without its variant
("msft_in1k", "cvt_13.msft_in1k"; `cvt zoo` lists them), a file or a directory of weights, or
"hf-hub:org/name"; None for an untrained network. num_classes: a number different from the weights'
gives a new classifier, 0 none. in_chans: another number adapts the first convolution.
"""

from __future__ import annotations

import pathlib
import sys
import typing

if typing.TYPE_CHECKING:
    from cvt.model import CvT as _CvT

# torch.hub lists every public callable as a model, so all other names start with an underscore.
_SOURCE = str(pathlib.Path(__file__).resolve().parent / "src")
if _SOURCE not in sys.path:
    sys.path.insert(0, _SOURCE)

dependencies = ["huggingface_hub", "safetensors", "timm", "torch", "yaml"]


def cvt_13(weights: str | None = None, num_classes: int | None = None,
           in_chans: int | None = None) -> _CvT:
    """CvT-13, 20.0 M parameters: images (B, in_chans, H, W) to logits (B, num_classes).

    weights: "msft_in1k" (81.6 % top-1 on ImageNet), "msft_in1k_384" (83.0 %),
    "msft_in22k_ft_in1k_384" (83.3 %), a path or "hf-hub:org/name"; None for an untrained network.
    num_classes: by default the weights', else 1000; 0 gives features (B, 384). in_chans: by default
    the weights', else 3. Raises ValueError if the model cannot be built or loaded.
    """
    return _create("cvt_13", weights, num_classes, in_chans)


def cvt_21(weights: str | None = None, num_classes: int | None = None,
           in_chans: int | None = None) -> _CvT:
    """CvT-21, 31.6 M parameters: images (B, in_chans, H, W) to logits (B, num_classes).

    weights: "msft_in1k" (82.5 % top-1 on ImageNet), "msft_in1k_384" (83.3 %),
    "msft_in22k_ft_in1k_384" (84.9 %), a path or "hf-hub:org/name"; None for an untrained network.
    num_classes: by default the weights', else 1000; 0 gives features (B, 384). in_chans: by default
    the weights', else 3. Raises ValueError if the model cannot be built or loaded.
    """
    return _create("cvt_21", weights, num_classes, in_chans)


def cvt_w24(weights: str | None = None, num_classes: int | None = None,
            in_chans: int | None = None) -> _CvT:
    """CvT-W24, 277 M parameters: images (B, in_chans, H, W) to logits (B, num_classes).

    weights: "msft_in22k_ft_in1k_384" (87.7 % top-1 on ImageNet), a path or "hf-hub:org/name"; None
    for an untrained network. num_classes: by default the weights', else 1000; 0 gives features
    (B, 1024). in_chans: by default the weights', else 3. Raises ValueError if the model cannot be
    built or loaded.
    """
    return _create("cvt_w24", weights, num_classes, in_chans)


def cvt_nano(weights: str | None = None, num_classes: int | None = None,
             in_chans: int | None = None) -> _CvT:
    """CvT-nano, for images of 28 to 64 pixels: (B, in_chans, H, W) to logits (B, num_classes).

    weights: "fashion_mnist" (93.58 % top-1 on Fashion-MNIST), "digits" (99.17 % on 360 held-out
    digits), which lie in the package, a path or "hf-hub:org/name"; None for an untrained network.
    num_classes: by default the weights', else 10; 0 gives features (B, 128). in_chans: by default
    the weights', else 3. Raises ValueError if the model cannot be built or loaded.
    """
    return _create("cvt_nano", weights, num_classes, in_chans)


def _create(variant: str, weights: str | None, num_classes: int | None, in_chans: int | None
            ) -> _CvT:
    from cvt import create_model, list_models

    tag = f"{variant}.{weights}"
    return create_model(variant, weights=tag if tag in list_models() else weights,
                        num_classes=num_classes, in_chans=in_chans)
