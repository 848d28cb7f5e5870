"""Trains the small SentencePiece models of the tests and writes what SentencePiece makes of some texts.

    pip install sentencepiece==0.2.3 && python make_sentencepiece.py

Everything is a function of the text below. LLaMA's settings: BPE, bytes where no piece is, digits one by one, no
normalisation, a blank before a text.
"""

import json
import pathlib

import sentencepiece

HERE = pathlib.Path(__file__).parent
CORPUS = """The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.
The pass key is 12345. Remember it. 12345 is the pass key. What is the pass key? The pass key is
There is an important info hidden inside a lot of irrelevant text. Find it and memorize them.
def memory(blocks): return [block for block in blocks if block.score > 0]
for index in range(10):    print(index, "the block")
Ein Bär aß über zwölf Äpfel. L'été est là, où êtes-vous? Это короткий текст. 这是一个句子。
""" * 20
TEXTS = [
    "",
    " ",
    "The pass key is 31415. Remember it.",
    "  two blanks before, two  within, two after  ",
    "def f(x):\n    return x**2\n\n\nprint(f(3))\t# tab",
    "naïve café, Ünïcödé, ﬁne ligature, e\u0301 combined",
    "日本語と中文 🙂👩‍👩‍👧 \u0000 \u200b",
    "0123456789 3.14159 1e-10 0x1F",
    "<s></s><unk> <landmark> [PAD] <0x41> ▁",
    "Это текст. И ещё один: щука!",
    "a" * 50 + "\r\n" + "-" * 20,
]


def train(name, **how):
    with open("corpus.txt", "w") as corpus:
        corpus.write(CORPUS)
    sentencepiece.SentencePieceTrainer.train(
        input="corpus.txt", model_prefix=str(HERE / name), vocab_size=420, byte_fallback=True,
        split_digits=True, minloglevel=2, num_threads=1, **how,
    )
    (HERE / f"{name}.vocab").unlink()
    model = sentencepiece.SentencePieceProcessor(model_file=str(HERE / f"{name}.model"))
    return {text: model.encode(text) for text in TEXTS}


LLAMA = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
expected = {
    "bpe": train("bpe", model_type="bpe", **LLAMA),
    "unigram": train("unigram", model_type="unigram", hard_vocab_limit=False, user_defined_symbols=["<sep>"], **LLAMA),
    "nmt": train("nmt", model_type="unigram", hard_vocab_limit=False, normalization_rule_name="nmt_nfkc"),
}
pathlib.Path("corpus.txt").unlink()
cases = {name: [[text, ids] for text, ids in texts.items()] for name, texts in expected.items()}
(HERE / "sentencepiece.json").write_text(json.dumps(cases, ensure_ascii=True, indent=1) + "\n")
