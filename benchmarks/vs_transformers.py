"""The plain model against the CvT of Hugging Face transformers: speed and memory.

    python benchmarks/vs_transformers.py [--model cvt_13] [--batch 16] [--size 224] [--rounds 9]

fp32 on the CPU, random weights, both models in one process and interleaved. Inference is a forward
pass in evaluation mode; a training step is forward, cross entropy, backward and AdamW. Peak memory
is what the step adds to the resident set of a separate process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource

import torch
from torch import nn

import cvt
from cvt.deploy.bench import build_peer, forward_call, train_step
from timing import interleaved, keep, ratio, summary


def build(library: str, args: argparse.Namespace) -> nn.Module:
    if library == "transformers":
        return build_peer(f"transformers:{args.model}", args.size)
    return cvt.create_model(args.model)


def peak(library: str, args: argparse.Namespace, out: object) -> None:
    """MB that two training steps add to the resident set; run in a separate process."""
    torch.manual_seed(0)
    model, images = build(library, args), torch.randn(args.batch, 3, args.size, args.size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = train_step(model, images)
    step()
    step()
    out.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="cvt_13")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()

    memory = {}
    context = multiprocessing.get_context("spawn")
    for name in ("transformers", "cvt"):
        queue = context.Queue()
        process = context.Process(target=peak, args=(name, args, queue))
        process.start()
        memory[name] = queue.get()
        process.join()

    torch.manual_seed(0)
    images = torch.randn(args.batch, 3, args.size, args.size)
    models = {name: build(name, args).eval() for name in memory}
    result: dict[str, object] = {
        "model": args.model, "batch": args.batch, "size": args.size, "dtype": "float32",
        "threads": torch.get_num_threads(), "train_step_peak_mb": memory,
        "train_step_peak_ratio": memory["cvt"] / memory["transformers"]}
    for what, make in (("inference", forward_call), ("train_step", train_step)):
        seconds = interleaved({name: make(m, images) for name, m in models.items()}, args.rounds)
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
