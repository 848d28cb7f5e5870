#!/usr/bin/env python3
"""Training speed of a plain GPT in PyTorch: what `landmark bench train` is to be compared with.

    python3 gpt.py [--layers 12 --width 1024 --heads 8 --length 512 --batch 16 --acc 8] [--json]

A pre-LayerNorm GPT with rotary positions on adjacent pairs, exact GELU, tied embedding and no biases, trained with
fused AdamW in bfloat16 autocast, attention through `scaled_dot_product_attention` (cuDNN or flash, whichever PyTorch
picks), compiled with `torch.compile`. It has no landmarks: it is the cost of the same model without the method.
Needs PyTorch 2.4 or later and a GPU; on a CPU it runs uncompiled, for a look at whether it works.
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F
from torch import nn


def rotate(x, cos, sin):
    """Adjacent pairs `(2i, 2i + 1)` of the last dimension turned by their angles."""
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).type_as(x)


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x, cos, sin):
        batch, length, width = x.shape
        q, k, v = self.qkv(self.ln_1(x)).view(batch, length, 3, self.heads, -1).unbind(2)
        q, k, v = rotate(q, cos, sin).transpose(1, 2), rotate(k, cos, sin).transpose(1, 2), v.transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.ln_2(x))))


class Gpt(nn.Module):
    def __init__(self, vocab, layers, width, heads, length):
        super().__init__()
        self.table = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width, bias=False)
        head_dim = width // heads
        angles = torch.outer(torch.arange(length), 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim))
        self.register_buffer("cos", angles.cos()[:, None])
        self.register_buffer("sin", angles.sin()[:, None])
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens, targets):
        x = self.table(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = F.linear(self.ln_f(x), self.table.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in dict(layers=12, width=1024, heads=8, length=512, batch=16, acc=8, vocab=50304, steps=10).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = Gpt(args.vocab, args.layers, args.width, args.heads, args.length).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=device == "cuda")
    run = torch.compile(model) if device == "cuda" else model
    tokens = torch.randint(args.vocab, (args.batch, args.length + 1), device=device)

    def step():
        for _ in range(args.acc):
            with torch.autocast(device, torch.bfloat16):
                loss = run(tokens[:, :-1], tokens[:, 1:])
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        return loss.item()

    for _ in range(2):
        step()
    times = []
    for _ in range(args.steps):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    median = sorted(times)[len(times) // 2]
    result = {
        "what": "plain GPT, PyTorch " + torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "tokens_per_second": args.batch * args.length * args.acc / median,
        "device_memory_bytes": torch.cuda.max_memory_reserved() if device == "cuda" else None,
        "settings": vars(args),
    }
    print(json.dumps(result) if args.json else f"{result['tokens_per_second']:.0f} tokens/s, {result['device_memory_bytes']} bytes")


if __name__ == "__main__":
    main()
