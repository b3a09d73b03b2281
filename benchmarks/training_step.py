"""Duration of a training step of CvT-13: the model, its training form, the port in transformers.

    python benchmarks/training_step.py [--batch 16] [--rounds 9]

Forward, cross entropy, backward and AdamW, in fp32 and under bf16 autocast, interleaved in one
process. Speedups are relative to the port in fp32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cvt
from cvt.fast.training import TrainingForm
from timing import interleaved, keep, ratio, summary
from vs_transformers import logits, theirs


def step(network: nn.Module, images: Tensor, labels: Tensor, bf16: bool) -> Callable[[], None]:
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = logits(network(images))
        loss = F.cross_entropy(out.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.manual_seed(0)
    images, labels = torch.randn(args.batch, 3, 224, 224), torch.randint(1000, (args.batch,))
    networks = {"transformers": theirs("cvt_13"), "model": cvt.create_model("cvt_13"),
                "form": TrainingForm(cvt.create_model("cvt_13"))}
    seconds = interleaved({f"{name} {precision}": step(net, images, labels, precision == "bf16")
                           for precision in ("fp32", "bf16") for name, net in networks.items()},
                          args.rounds, warmup=1)
    rows = {}
    for name, s in seconds.items():
        precision = name.split()[1]
        rows[name] = {**summary(s), "img_per_s": args.batch / summary(s)["median_s"],
                      "speedup": ratio(seconds["transformers fp32"], s),
                      "speedup_in_its_precision": ratio(seconds[f"transformers {precision}"], s)}
        speed, own = rows[name]["speedup"], rows[name]["speedup_in_its_precision"]
        print(f"{name:<18}{rows[name]['img_per_s']:6.2f} img/s  {speed['median']:.2f}x "
              f"[{speed['quartile1']:.2f}, {speed['quartile3']:.2f}]  "
              f"{own['median']:.2f}x of the port in {precision}")
    print(keep("training_step", {"batch": args.batch, "threads": torch.get_num_threads(),
                                 "rows": rows}))


if __name__ == "__main__":
    main()
