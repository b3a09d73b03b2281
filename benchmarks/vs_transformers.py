"""The plain model against the CvT of Hugging Face transformers: speed and memory.

    python benchmarks/vs_transformers.py [--model cvt_13] [--batch 16] [--size 224] [--rounds 9]

fp32 on the CPU, random weights, both models in one process and interleaved. Inference is a forward
pass in evaluation mode; a training step is forward, cross entropy, backward and AdamW. Peak memory
is what the step adds to the resident set of a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CvtConfig, CvtForImageClassification

import cvt
from timing import interleaved, keep, ratio, summary


def theirs(name: str) -> nn.Module:
    """The port, configured to the same network."""
    stages = cvt.VARIANTS[name].stages
    config = CvtConfig(embed_dim=[s.dim for s in stages], num_heads=[s.num_heads for s in stages],
                       depth=[s.depth for s in stages], num_labels=1000)
    return CvtForImageClassification(config)


def ours(name: str) -> nn.Module:
    return cvt.CvT(cvt.VARIANTS[name])


def logits(out: object) -> Tensor:
    return out if isinstance(out, Tensor) else out.logits  # type: ignore[attr-defined]


def train_step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        loss = F.cross_entropy(logits(model(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def inference(model: nn.Module, images: Tensor) -> Callable[[], None]:
    model.eval()

    def forward() -> None:
        with torch.inference_mode():
            model(images)

    return forward


def peak(build: Callable[[str], nn.Module], args: argparse.Namespace, out: object) -> None:
    """In a process of its own: what two training steps add to the resident set, in MB."""
    torch.manual_seed(0)
    model = build(args.model)
    images, labels = batch(args)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = train_step(model, images, labels)
    step()
    step()
    out.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)  # type: ignore[attr-defined]


def batch(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    images = torch.randn(args.batch, 3, args.size, args.size)
    return images, torch.randint(1000, (args.batch,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="cvt_13")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()

    memory = {}
    context = multiprocessing.get_context("spawn")
    for name, build in (("transformers", theirs), ("cvt", ours)):
        queue = context.Queue()
        process = context.Process(target=peak, args=(build, args, queue))
        process.start()
        memory[name] = queue.get()
        process.join()

    torch.manual_seed(0)
    images, labels = batch(args)
    models = {"transformers": theirs(args.model), "cvt": ours(args.model)}
    result: dict[str, object] = {
        "model": args.model, "batch": args.batch, "size": args.size, "dtype": "float32",
        "threads": torch.get_num_threads(), "train_step_peak_mb": memory,
        "train_step_peak_ratio": memory["cvt"] / memory["transformers"]}
    for what, make in (("inference", lambda m: inference(m, images)),
                       ("train_step", lambda m: train_step(m, images, labels))):
        seconds = interleaved({name: make(m) for name, m in models.items()}, args.rounds)
        speedup = ratio(seconds["transformers"], seconds["cvt"])
        result[what] = {**{name: {**summary(s), "img_per_s": args.batch / summary(s)["median_s"]}
                           for name, s in seconds.items()}, "speedup": speedup}
        rates = ", ".join(f"{n} {args.batch / summary(s)['median_s']:.2f} img/s"
                          for n, s in seconds.items())
        print(f"{what}: {rates}, {speedup['median']:.2f}x "
              f"[{speedup['quartile1']:.2f}, {speedup['quartile3']:.2f}]")
    print("peak memory of the training step: "
          + ", ".join(f"{n} {mb:.0f} MB" for n, mb in memory.items()))
    print(keep(f"vs_transformers_{args.model}", result))


if __name__ == "__main__":
    main()
