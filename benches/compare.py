#!/usr/bin/env python3
"""Every figure that `cuda.md` is to hold, ours beside its peer's, in one run on one machine.

    python3 benches/compare.py --landmark target/release/landmark [--only attention,train,decode] [--json results.json]

Runs `landmark bench` and the scripts in `peers/` in turns and prints a table: figure, ours, the peer's, the ratio, what
the ratio must be and what is aimed at. Needs an NVIDIA GPU, and PyTorch for the peers.
"""

import argparse
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
SHAPES = [(16, 8, 512), (4, 32, 2048), (2, 32, 4096), (1, 32, 8192), (1, 32, 32768)]


class Bench:
    def __init__(self, landmark):
        self.landmark, self.rows, self.raw = landmark, [], []

    def call(self, command):
        """The JSON objects that a command prints, one a line; none if it fails."""
        found = subprocess.run(command, capture_output=True, text=True)
        if found.returncode != 0:
            print(f"{' '.join(command)}: {found.stderr.strip()[-600:]}", file=sys.stderr)
            return []
        results = [json.loads(line) for line in found.stdout.splitlines() if line.startswith("{")]
        self.raw += [{"command": command[1:], "result": result} for result in results]
        return results

    def ours(self, *flags):
        results = self.call([self.landmark, "bench", *map(str, flags), "--device", "cuda", "--json", "--quiet"])
        return results[0] if results else None

    def peer(self, script, *flags):
        return self.call([sys.executable, os.path.join(HERE, "peers", script), *map(str, flags)])

    def row(self, figure, ours, peer, ratio, must, aim):
        self.rows.append((figure, ours, peer, ratio, must, aim))
        print("| " + " | ".join(str(x) for x in self.rows[-1]) + " |", flush=True)

    def attention(self):
        shapes = [",".join(map(str, shape)) for shape in SHAPES]
        peers = {(p["batch"], p["heads"], p["tokens"]): p for p in self.peer("attention.py", "--shapes", *shapes)}
        for shape in SHAPES:
            batch, heads, length = shape
            small = length < 2048
            at = ["--batch-size", batch, "--n-head", heads, "--sequence-length", length, "--head-dim", 128, "--steps", 20]
            blocks = {block: self.ours("attention", *at, "--block", block) for block in (64, 51)}
            for way, must, aim in [
                ("forward", 2.0 if small else 1.5, 1.3 if small else 1.1),
                ("backward", 2.0 if small else 1.8, 1.4 if small else 1.25),
            ]:
                key = f"{way}_milliseconds"
                ours, peer, other = blocks[64], peers.get(shape), blocks[51]
                if ours and peer:
                    ratio = f"{ours[key] / peer[key]:.2f}x"
                    self.row(f"{way} {shape}, ms", f"{ours[key]:.3f}", f"{peer[key]:.3f}", ratio, f"{must}x", f"{aim}x")
                if ours and other:
                    ratio = f"{other[key] / ours[key]:.2f}x"
                    self.row(f"{way} {shape}, block 51 over 64", f"{other[key]:.3f}", f"{ours[key]:.3f}", ratio, "1.25x", "1.1x")

    def train(self):
        ours = self.ours("train", "--shape", "gpt", "--batch-size", 16, "--acc-steps", 8, "--steps", 10)
        peer = self.peer("gpt.py", "--json")
        if ours:
            speed, memory = ours["tokens_per_second"], ours["device_memory_bytes"] / 2**30
            there = f"{peer[0]['tokens_per_second']:.0f}" if peer else "-"
            ratio = f"{speed / peer[0]['tokens_per_second']:.2f}x" if peer else "-"
            self.row("training GPT 12 x 1024, tokens/s", f"{speed:.0f}", there, ratio, "300000", "400000")
            there = f"{peer[0]['device_memory_bytes'] / 2**30:.1f}" if peer else "-"
            self.row("... device memory, GiB", f"{memory:.1f}", there, "-", "10", "8")

    def decode(self):
        llama = ["decode", "--shape", "llama-7b", "--new-tokens", 192]
        at = {n: self.ours(*llama, "--context", n) for n in (4096, 32768, 131072)}
        host = self.ours(*llama, "--context", 32768, "--device-memory", "2GiB")
        peer = (self.peer("llama.py", "--json") or [None])[0]
        if middle := at[32768]:
            for key, name, must, aim in [
                ("prefill_tokens_per_second", "LLaMA 7B prefill at 32,768, tokens/s", 20000, 35000),
                ("decode_tokens_per_second", "LLaMA 7B decode at 32,768, tokens/s", 150, 200),
            ]:
                there = f"{peer[key]:.1f}" if peer else "-"
                ratio = f"{middle[key] / peer[key]:.2f}x" if peer else "-"
                self.row(name, f"{middle[key]:.1f}", there, ratio, must, aim)
        for key, name, far, near in [
            ("prefill_tokens_per_second", "prefill at 131,072 over 32,768", 131072, 32768),
            ("decode_tokens_per_second", "decode at 131,072 over 4,096", 131072, 4096),
        ]:
            if at[far] and at[near]:
                ratio = f"{at[far][key] / at[near][key]:.2f}x"
                self.row(name, f"{at[far][key]:.1f}", f"{at[near][key]:.1f}", ratio, "0.85x", "0.95x")
        if host:
            self.row("decode, memory in host memory, tokens/s", f"{host['decode_tokens_per_second']:.1f}", "-", "-", 100, 180)
            self.row("... device memory, GiB", f"{host['device_memory_bytes'] / 2**30:.1f}", "-", "-", 18, 16)
        gpt = self.ours("decode", "--shape", "gpt", "--context", 32768, "--new-tokens", 1024)
        if gpt:
            self.row("GPT 12 x 1024 decode at 32,768, tokens/s", f"{gpt['decode_tokens_per_second']:.0f}", "-", "-", 2500, 4000)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--landmark", default="target/release/landmark", help="the program")
    parser.add_argument("--only", default="attention,train,decode", help="which parts")
    parser.add_argument("--json", help="a file for all results")
    args = parser.parse_args()
    bench = Bench(args.landmark)
    print("| figure | ours | peer | ratio | must | aim |\n|---|---|---|---|---|---|")
    for part in args.only.split(","):
        getattr(bench, part)()
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(bench.raw, file, indent=1)


if __name__ == "__main__":
    main()
