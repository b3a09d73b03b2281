"""Duration of a training step of CvT-13: the model, its training form, the port in transformers.

    python benchmarks/training_step.py [--batch 16] [--rounds 9]

Forward, cross entropy, backward and AdamW, in fp32 and under bf16 autocast, interleaved in one
process. Speedups are relative to the port in fp32.
"""

from __future__ import annotations

import argparse

import torch

import cvt
from cvt.deploy.bench import build_peer, train_step
from cvt.fast.training import TrainingForm
from timing import interleaved, keep, ratio, summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.manual_seed(0)
    images = torch.randn(args.batch, 3, 224, 224)
    networks = {"transformers": build_peer("transformers:cvt_13", 224),
                "model": cvt.create_model("cvt_13"),
                "form": TrainingForm(cvt.create_model("cvt_13"))}
    seconds = interleaved({f"{name} {precision}": train_step(net, images, precision)
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
