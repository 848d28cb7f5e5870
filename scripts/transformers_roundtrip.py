"""Models to transformers and back; scripts/transformers-roundtrip runs it.

One way: `landmark convert` writes a fixture anew (sharded, float32), transformers loads it. The other way: transformers makes
a random model and saves it, this program reads it. Each time the five largest logits of the next token are compared after
prompts of several lengths. Models with landmarks are compared as plain ones, by leaving the landmark fields out of
config.json: transformers has no landmark attention.
"""

import json
import math
import pathlib
import shutil
import subprocess
import sys
import tempfile

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

PROGRAM = sys.argv[1]
FIXTURES = pathlib.Path("tests/fixtures")
TOLERANCE = 1e-4
LENGTHS = [1, 7, 40]
LANDMARK_FIELDS = ["mem_id", "mem_freq", "train_context_length", "include_landmark_in_loss"]

SMALL = dict(hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4, vocab_size=201,
             max_position_embeddings=128, eos_token_id=None, bos_token_id=None)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)


def landmark(*arguments):
    """The JSON object that a run of the program prints."""
    run = subprocess.run([PROGRAM, *map(str, arguments), "--json", "--quiet"], capture_output=True, text=True)
    if run.returncode != 0:
        raise SystemExit(f"{arguments}: {run.stderr}")
    return json.loads(run.stdout)


def prompt(length):
    return [(i * i * 31 + i * 7) % 190 + 3 for i in range(length)]


def ours(folder, tokens):
    """The five largest logits of the next token: [(token, logit)]."""
    text = ",".join(map(str, tokens))
    run = landmark("generate", "--model", folder, "--prompt-tokens", text, "--max-new-tokens", 1,
                   "--lm-cache", "none", "--logits")
    return [(int(top["token"]), top["logit"]) for top in run["steps"][0]["top"]]


def compare(what, folder, model):
    """Prints the largest difference; False if it is too large or another token wins."""
    worst, agrees = 0.0, True
    for length in LENGTHS:
        tokens = prompt(length)
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0, -1].double()
        top = ours(folder, tokens)
        worst = max([worst] + [abs(logits[token].item() - logit) for token, logit in top])
        agrees = agrees and top[0][0] == int(logits.argmax())
        agrees = agrees and all(math.isfinite(logit) for _, logit in top)
    is_good = agrees and worst <= TOLERANCE
    print(f"{'ok    ' if is_good else 'FAILED'} {what:72} largest difference {worst:.1e}")
    return is_good


def as_plain(folder):
    """Leaves the landmark fields out of a folder's configuration."""
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    for name in LANDMARK_FIELDS:
        fields.pop(name, None)
    path.write_text(json.dumps(fields))


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def from_us(scratch):
    for name in ["llama_gqa", "llama", "llama_bin"]:
        folder = scratch / f"ours-{name}"
        landmark("convert", FIXTURES / name, folder, "--dtype", "f32", "--max-shard-size", "100KB")
        shards = len(list(folder.glob("model-*.safetensors")))
        assert shards > 1, folder
        as_plain(folder)
        yield compare(f"landmark -> transformers: {name}, {shards} files", folder, load(folder))


def from_transformers(scratch):
    torch.manual_seed(1)
    cases = {
        "plain": dict(),
        "grouped heads, tied head": dict(num_key_value_heads=2, tie_word_embeddings=True),
        "biases, head_dim 32": dict(attention_bias=True, mlp_bias=True, head_dim=32),
        "llama3 positions, grouped heads": dict(num_key_value_heads=1, rope_parameters=LLAMA3 | {"rope_theta": 5e5}),
        "linear positions": dict(rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=1e4)),
        "qwen2": None,
    }
    for name, changes in cases.items():
        if changes is None:
            model = Qwen2ForCausalLM(Qwen2Config(**SMALL, num_key_value_heads=2))
        else:
            model = LlamaForCausalLM(LlamaConfig(**SMALL | changes))
        # Random weights of a size that makes the logits differ; biases are born as zeros.
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.08)
        folder = scratch / name.replace(" ", "-").replace(",", "")
        model.save_pretrained(folder, max_shard_size="100KB")
        shards = len(list(folder.glob("model*.safetensors")))
        yield compare(f"transformers -> landmark: {name}, {shards} files", folder, load(folder))
        # And back: converted again, it has to be the same model to both.
        again = scratch / (folder.name + "-again")
        landmark("convert", folder, again)
        yield compare(f"transformers -> landmark -> transformers: {name}", folder, load(again))
        shutil.rmtree(folder)


def main():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        results = [*from_us(pathlib.Path(scratch)), *from_transformers(pathlib.Path(scratch))]
    print(f"{sum(results)} of {len(results)} agree to {TOLERANCE}")
    raise SystemExit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
