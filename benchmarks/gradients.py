"""Accuracy of the gradients at batch 1, and the time of the layout of maps that it needs.

    python benchmarks/gradients.py [--rounds 10]

First the relative error, in float64: the derivative in a random direction of input and parameters,
from the gradients and from finite differences, for every form of a small network (projections,
class tokens, sizes, evaluation and training) and for CvT-13. Then the time of a step, forward and
backward, with the present layout and the previous one, which turned tokens into a map through
(B, C, T): interleaved in one process on one thread, in seconds of processor time, which is least
sensitive to other load. --rounds applies to CvT-13; cvt_nano takes five times as many. Exits with 1
if an error is 1e-6 or more, or if a step takes over 2 % longer than before.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cvt
import cvt.model
from cvt.config import VARIANTS, CvTConfig, StageConfig
from cvt.fast.training import TrainingForm
from cvt.model import CvT
from timing import interleaved, keep, ratio, summary

BOUND, SLOWER = 1e-6, 1.02
BEFORE = "model, layout of before"
PROJECTIONS: dict[str, dict[str, Any]] = {
    "conv 2": {}, "conv 1": {"stride_kv": 1},
    "avg 2": {"projection": "avg"}, "avg 1": {"projection": "avg", "stride_kv": 1},
    "linear": {"projection": "linear", "stride_kv": 1}}
CLS_TOKENS: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (2,), (0, 1, 2))
SIZES = ((35, 51), (4, 64), (64, 4), (4, 4), (16, 24), (36, 36))
# Network, pixels, batch, and factor of --rounds.
STEPS = (("cvt_13", 224, 8, 1), ("cvt_13", 224, 1, 5), ("cvt_nano", 28, 64, 5),
         ("cvt_nano", 28, 1, 5))

Form = Callable[[Tensor], Tensor]


def before(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` with the previous layout of maps and tokens."""
    def run(*args: Any) -> Any:
        with patch.multiple(cvt.model,
                            to_map=lambda x, grid: x.transpose(1, 2).unflatten(2, grid),
                            to_tokens=lambda x: x.flatten(2).transpose(1, 2)):
            return call(*args)

    return run


def small(fields: dict[str, Any], cls_tokens: tuple[int, ...]) -> CvTConfig:
    return CvTConfig(num_classes=10, image_size=64, stages=tuple(
        StageConfig(**{"dim": 8 * (i + 1), "num_heads": i + 1, "depth": 1, "embed_kernel": kernel,
                       "embed_stride": stride, "embed_padding": padding, "cls_token":
                       i in cls_tokens, **fields})
        for i, (kernel, stride, padding) in enumerate([(7, 4, 2), (3, 2, 1), (3, 2, 1)])))


def perturbed(model: CvT) -> CvT:
    """The model in float64, with changed parameters and statistics."""
    with torch.no_grad():
        for name, tensor in model.double().state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor), alpha=0.1)
    return model


def loss(form: Form, x: Tensor) -> Tensor:
    logits = form(x)
    return (logits @ torch.linspace(-1, 2, logits.shape[1], dtype=logits.dtype)).sum()


def gradients(model: CvT, x: Tensor, form: Form) -> tuple[Tensor, ...]:
    """Gradients of the input and of every parameter."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(loss(form, x), [x, *model.parameters()])


def errors(model: CvT, x: Tensor, forms: dict[str, Form], step: float
           ) -> Iterator[tuple[str, float]]:
    """Relative error of each form's gradients against fourth-order finite differences."""
    point = [x.clone(), *(p.detach() for p in model.parameters())]
    along = [torch.randn_like(tensor) for tensor in point]
    # Ascending in every tensor, so that the contributions do not cancel.
    along = [d if (g * d).sum() >= 0 else -d
             for d, g in zip(along, gradients(model, x, model), strict=True)]
    expected, at = 0.0, 0
    with torch.no_grad():
        for steps, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
            torch._foreach_add_(point, along, alpha=(steps - at) * step)
            expected += weight * loss(model, point[0]).item() / (12 * step)
            at = steps
        torch._foreach_add_(point, along, alpha=-at * step)
    for name, form in forms.items():
        slope = sum((g * d).sum().item()
                    for g, d in zip(gradients(model, x, form), along, strict=True))
        yield name, abs(slope - expected) / abs(expected)


def checkpointing(model: CvT) -> Form:
    def run(x: Tensor) -> Tensor:
        model.set_grad_checkpointing(True)
        logits = model(x)
        model.set_grad_checkpointing(False)
        return logits

    return run


def trainable(config: CvTConfig, batch: int, size: tuple[int, int]) -> bool:
    """Whether each BatchNorm has at least two values per channel, to compute a variance."""
    return all(batch * height * width > 1
               for stage, grid in zip(config.stages, config.grids(size), strict=True)
               for height, width in (grid, *stage.grids_kv(grid)))


def accuracy(batches: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """Maximum error of every form for each batch size, over all other cases."""
    worst: dict[str, dict[str, float]] = {}
    cases = itertools.product(batches, PROJECTIONS, CLS_TOKENS, SIZES, (False, True))
    for batch, projection, cls_tokens, size, training in cases:
        config = small(PROJECTIONS[projection], cls_tokens)
        if training and not trainable(config, batch, size):
            continue
        model = perturbed(CvT(config)).train(training)
        forms = {"model": model, "form": TrainingForm(model), BEFORE: before(model)}
        if training:
            forms["checkpointing"] = checkpointing(model)
        note(worst, batch, errors(model, torch.randn(batch, 3, *size).double(), forms, 2e-6))
    for batch, training in itertools.product(batches, (False, True)):
        model = perturbed(CvT(dataclasses.replace(VARIANTS["cvt_13"], num_classes=10)))
        for stage in model.stages:  # as in the paper, but without stochastic depth
            for block in stage.blocks:
                block.drop_path = nn.Identity()
        forms = {"cvt_13": model.train(training), "cvt_13, form": TrainingForm(model)}
        note(worst, batch, errors(model, torch.randn(batch, 3, 96, 80).double(), forms, 1e-7))
    for backend, training in (("aot_eager", False), ("aot_eager", True), ("inductor", True)):
        torch._dynamo.reset()
        model = perturbed(CvT(small({}, (2,)))).train(training)
        compiled = torch.compile(TrainingForm(model), fullgraph=True, backend=backend)
        x = torch.randn(1, 3, 41, 50).double()
        note(worst, 1, errors(model, x, {f"form, compiled by {backend}": compiled}, 2e-6))
    return worst


def note(worst: dict[str, dict[str, float]], batch: int, errors: Iterator[tuple[str, float]]
         ) -> None:
    for name, error in errors:
        row = worst.setdefault(name, {})
        row[f"batch {batch}"] = max(row.get(f"batch {batch}", 0.0), error)


def step(name: str, size: int, batch: int, form: str) -> Callable[[], None]:
    torch.manual_seed(0)
    model = cvt.create_model(name).train()
    network = TrainingForm(model) if form == "form" else model
    images, labels = torch.randn(batch, 3, size, size), torch.randint(10, (batch,))

    def run() -> None:
        model.zero_grad()
        F.cross_entropy(network(images), labels).backward()

    return run


def processor_clock(call: Callable[[], None]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    worst = accuracy((1, 2, 3))
    for name, row in worst.items():
        print(f"{name:<30}" + "  ".join(f"{b}: {e:.1e}" for b, e in row.items()), flush=True)
    rows = {}
    for (name, size, batch, times), form in itertools.product(STEPS, ("model", "form")):
        run = step(name, size, batch, form)
        seconds = interleaved({"before": before(run), "now": run}, times * args.rounds,
                              warmup=1, clock=processor_clock)
        share = ratio(seconds["now"], seconds["before"])
        what = f"{name} {form}, {size} px, batch {batch}"
        rows[what] = {**{k: summary(s) for k, s in seconds.items()}, "times_as_long": share}
        print(f"{what:<34}{share['median']:.3f} times as long as before "
              f"[{share['quartile1']:.3f}, {share['quartile3']:.3f}]", flush=True)
    print(keep("gradients", {"threads": 1, "errors": worst, "rows": rows}))
    if (max(e for name, row in worst.items() if name != BEFORE for e in row.values()) >= BOUND
            or max(row["times_as_long"]["median"] for row in rows.values()) > SLOWER):
        sys.exit(1)


if __name__ == "__main__":
    main()
