#!/usr/bin/env python3
"""The rows of `make bench` beside PyTorch's: the same shapes, whole training steps, generation and
classification with transformers' GPT-2.

    make out/bench && python3 dev/bench_torch.py [--rows A,C,generation] [--rounds 2] [--threads 2]

Needs torch and transformers. A training step is forward, backward, clipping to norm 1 and AdamW
(fused, with decay on matrices only), in float32, on random tokens; the median of the steps is taken.
Machines are shared and differ from minute to minute, so the programs take turns: of each row out/bench
first, then PyTorch in eager mode, then with torch.compile (the default backend, which needs a C++
compiler), and so on for as many rounds as are asked for; the best round of each counts. The ratio is
that of tokens/s to the better of PyTorch's two modes. FLOPs are counted as in dev/bench.c.
"""
import argparse
import os
import re
import statistics
import subprocess
import time

import torch
import transformers
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

SHAPES = {      # layers, heads, channels, context, vocabulary, batch
    "A": (12, 12, 768, 64, 50257, 4), "B": (6, 6, 384, 256, 65, 16), "C": (6, 4, 256, 256, 8192, 16),
    "D": (4, 4, 128, 64, 65, 12), "E": (4, 4, 128, 128, 4096, 32), "F": (12, 12, 768, 1024, 50257, 4),
}


def config(layers, heads, channels, context, vocabulary, **more):
    return GPT2Config(n_layer=layers, n_head=heads, n_embd=channels, n_positions=context,
                      vocab_size=vocabulary, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0,
                      use_cache=False, bos_token_id=0, eos_token_id=0, **more)


def time_training(shape, compiled, budget):
    """Median seconds of a step; at least two, then as many as the budget allows, after one that
    compiles and touches new memory."""
    layers, heads, channels, context, vocabulary, batch = shape
    torch.manual_seed(1)
    model = GPT2LMHeadModel(config(layers, heads, channels, context, vocabulary)).train()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1},
                                   {"params": vectors, "weight_decay": 0}], lr=1e-4, fused=True)
    tokens = torch.randint(vocabulary, (batch, context))

    def loss_of(tokens):
        logits = model(tokens).logits
        return torch.nn.functional.cross_entropy(logits.view(-1, vocabulary), tokens.view(-1))

    forward = torch.compile(loss_of) if compiled else loss_of
    times, begin = [], None
    while len(times) < 2 or (time.time() - begin < budget and len(times) < 200):
        start = time.time()
        optimizer.zero_grad(set_to_none=True)
        forward(tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if begin is None:
            begin = time.time()
        else:
            times.append(time.time() - start)
    torch._dynamo.reset()
    return statistics.median(times)


def flops(layers, heads, channels, context, vocabulary, batch):
    per_token = 6 * (12 * layers * channels ** 2 + vocabulary * channels) + 12 * layers * channels * context
    return per_token * batch * context


def generation(budget):
    """Tokens per second of shape A's model, one sequence with a key-value cache after a prompt of 512."""
    model = GPT2LMHeadModel(config(12, 12, 768, 1024, 50257)).eval()
    model.config.use_cache = True
    prompt = torch.arange(512)[None]
    with torch.no_grad():
        model(prompt)
        start = time.time()
        cache = model(prompt, use_cache=True).past_key_values
        reading = 512 / (time.time() - start)
        count, start = 0, time.time()
        while count < 64 and time.time() - start < budget:
            cache = model(torch.tensor([[count]]), past_key_values=cache, use_cache=True).past_key_values
            count += 1
    return count / (time.time() - start), reading


def classification(budget):
    """Sentences per second on shape C's trunk, lengths 4 to 40, 93 a batch, padded to the longest."""
    generator = torch.Generator().manual_seed(2)
    model = GPT2ForSequenceClassification(config(6, 4, 256, 256, 8192, num_labels=2, pad_token_id=0)).eval()
    lengths = torch.randint(4, 41, (93,), generator=generator)
    width = int(lengths.max())
    tokens = torch.randint(1, 8192, (93, width), generator=generator)
    mask = (torch.arange(width)[None] < lengths[:, None]).long()
    tokens = tokens * mask
    with torch.no_grad():
        model(tokens, attention_mask=mask)
        count, start = 0, time.time()
        while count < 20 and time.time() - start < budget:
            model(tokens, attention_mask=mask)
            count += 1
    return (93 * count / (time.time() - start),)


def ours(bench, row, threads):
    """Two figures of one row of out/bench: tokens/s and ms of training, tokens/s of generation and of
    reading the prompt, or sentences/s; NaN where there is no such program."""
    if not os.path.exists(bench):
        return float("nan"), float("nan")
    printed = subprocess.run([bench, "--only", row, "--threads", str(threads)], check=True,
                             capture_output=True, text=True).stdout
    found = re.search({"generation": r"batch 1: ([\d.]+) tokens/s.*prompt (\d+)",
                       "classification": r"tokens: (\d+) sentences/s, (\d+)"}
                      .get(row, row + r"  L.*B\d+\s+([\d.]+)\s+(\d+)"), printed)
    return float(found[1]), float(found[2])


def training_row(name, options):
    shape, best = SHAPES[name], {}
    for _ in range(options.rounds):
        times = {"ours": ours(options.bench, name, options.threads)[0] / 1e3,
                 "eager": time_training(shape, False, options.seconds)}
        if not options.no_compile:
            try:
                times["compiled"] = time_training(shape, True, options.seconds)
            except Exception as error:          # without a C++ compiler, say
                print(f"torch.compile: {type(error).__name__}: {str(error).splitlines()[0]}")
        best = {mode: min(t, best.get(mode, t)) for mode, t in times.items()}
    mine, eager, compiled = (best.get(mode, float("nan")) for mode in ("ours", "eager", "compiled"))
    theirs, tokens = min(best[mode] for mode in best if mode != "ours"), shape[3] * shape[5]
    title = "%s  L%d H%d C%d T%d V%d B%d" % (name, *shape)
    print(f"{title:40} {1e3 * mine:9.1f} {1e3 * eager:9.1f} {1e3 * compiled:9.1f} {tokens / mine:9.0f} "
          f"{tokens / theirs:9.0f} {flops(*shape) / theirs / 1e9:9.1f} {theirs / mine:6.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", default="out/bench", help="our program")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8, help="for each of PyTorch's figures")
    parser.add_argument("--rows", default="A,B,C,D,E,F,generation,classification")
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {options.threads} threads, "
          f"best of {options.rounds}")
    print(f"{'training step':40} {'ours ms':>9} {'eager ms':>9} {'compiled':>9} {'tokens/s':>9} {'PyTorch':>9} "
          f"{'GFLOP/s':>9} {'ratio':>6}")
    others = {"generation": generation, "classification": classification}
    for row in options.rows.split(","):
        if row in SHAPES:
            training_row(row, options)
            continue
        rounds = [(ours(options.bench, row, options.threads), others[row](options.seconds)) for _ in range(options.rounds)]
        names = {"generation": ("tokens/s, shape A, batch 1", "prompt tokens/s"),
                 "classification": ("sentences/s, L6 H4 C256, 4 to 40 tokens",)}[row]
        for i, name in enumerate(names):
            mine, theirs = max(r[0][i] for r in rounds), max(r[1][i] for r in rounds)
            print(f"{row}, {name}: {mine:.1f}, PyTorch {theirs:.1f}, ratio {mine / theirs:.2f}", flush=True)


if __name__ == "__main__":
    main()
