#!/usr/bin/env python3
"""Plain causal attention by cuDNN, through PyTorch: the practical limit for the products that landmark attention needs.

    python3 attention.py [--shapes 4,32,2048 2,32,4096] [--head-dim 128]

A line of JSON for each shape `batch,heads,length`: milliseconds forward, and backward alone, each the median of
twenty rounds of ten runs, bfloat16. Needs PyTorch 2.5 or later and an NVIDIA GPU.
"""

import argparse
import json

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

SHAPES = ["16,8,512", "4,32,2048", "2,32,4096", "1,32,8192", "1,32,32768"]


def median_milliseconds(run, rounds=20, runs=10):
    for _ in range(3):
        run()
    times = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(runs):
            run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / runs)
    return sorted(times)[rounds // 2]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="BATCH,HEADS,LENGTH")
    parser.add_argument("--head-dim", type=int, default=128)
    args = parser.parse_args()
    for shape in args.shapes:
        batch, heads, length = map(int, shape.split(","))
        # As a model has them: parts of one projection.
        qkv = torch.randn(batch, length, 3, heads, args.head_dim, device="cuda", dtype=torch.bfloat16)
        q, k, v = (x.transpose(1, 2).detach().requires_grad_() for x in qkv.unbind(2))
        dout = torch.randn_like(q)
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            with torch.no_grad():
                forward = median_milliseconds(lambda: scaled_dot_product_attention(q, k, v, is_causal=True))
            out = scaled_dot_product_attention(q, k, v, is_causal=True)
            backward = median_milliseconds(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True))
        print(json.dumps({
            "what": "cuDNN plain causal attention, PyTorch " + torch.__version__,
            "device": torch.cuda.get_device_name(),
            "batch": batch, "heads": heads, "tokens": length, "head_dim": args.head_dim,
            "forward_milliseconds": forward, "backward_milliseconds": backward,
        }), flush=True)


if __name__ == "__main__":
    main()
