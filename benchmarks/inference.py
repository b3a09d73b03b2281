"""How fast is each exact form of CvT-13 on this CPU, against the port in transformers?

    python benchmarks/inference.py [--batches 1 16] [--rounds 11] [--only eager-fp32 ...]

Random weights, 224 pixels, all forms in one process and interleaved; the port in transformers,
eager and fp32, is 1.0. The machine's own matrix-product rate is measured between the rounds, so
that the utilization of a form does not depend on other load of the machine. int8 is calibrated on
the sample images, as only its speed is measured here.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

import cvt
from cvt.deploy.backends import optimize
from cvt.deploy.bench import build_peer, forward_call
from cvt.fast.verify import samples
from cvt.networks.complexity import multiply_adds
from timing import interleaved, keep, ratio, summary

FORMS = ("plain", "eager-fp32", "eager-bf16", "compile-fp32", "compile-bf16", "openvino-fp32",
         "openvino-bf16", "openvino-int8", "onnxruntime-fp32")
SIDE = 2048


Form = Callable[[Tensor], Tensor]


def forms(model: cvt.CvT, names: list[str], batch_size: int) -> dict[str, Form]:
    made: dict[str, Form] = {}
    calibration = list(samples(model.config, 32).split(8))
    for name in names:
        if name == "plain":
            made[name] = model
            continue
        backend, precision = name.split("-")
        optimized = optimize(model, backend, precision, batch_size=batch_size,  # type: ignore[arg-type]
                             calibration=calibration if precision == "int8" else None,
                             tolerance=1.0 if precision == "int8" else None)
        print(f"  {name}: largest difference {optimized.agreement.difference:.1e}", flush=True)
        made[name] = optimized
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", nargs="+", default=list(FORMS), choices=FORMS)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = cvt.create_model("cvt_13")
    port = build_peer("transformers:cvt_13", 224)
    one, other = torch.randn(2, SIDE, SIDE)
    flops = 2 * multiply_adds(model.config, (224, 224))
    result: dict[str, object] = {"threads": torch.get_num_threads(), "size": 224}
    for batch_size in args.batches:
        images = torch.randn(batch_size, 3, 224, 224)
        calls = {"transformers": forward_call(port, images),
                 **{name: forward_call(form, images)
                    for name, form in forms(model, args.only, batch_size).items()},
                 "matmul": lambda: torch.mm(one, other)}
        seconds = interleaved(calls, args.rounds, warmup=3)
        peak = 2 * SIDE**3 / statistics.median(seconds.pop("matmul"))
        rows = {}
        print(f"batch {batch_size}; matrix product {peak / 1e9:.0f} GFLOP/s in fp32")
        for name, s in seconds.items():
            rate = batch_size / summary(s)["median_s"]
            rows[name] = {**summary(s), "img_per_s": rate,
                          "speedup": ratio(seconds["transformers"], s),
                          "share_of_fp32_matmul": rate * flops / peak}
            speed = rows[name]["speedup"]
            print(f"  {name:<18}{rate:7.2f} img/s  {speed['median']:5.2f}x "
                  f"[{speed['quartile1']:.2f}, {speed['quartile3']:.2f}]  "
                  f"{rate * flops / peak:.2f} of the matrix product", flush=True)
        result[f"batch_{batch_size}"] = {"matmul_gflops": peak / 1e9, "forms": rows}
    print(keep("inference_cvt_13", result))


if __name__ == "__main__":
    main()
