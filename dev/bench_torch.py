#!/usr/bin/env python3
"""The rows of `make bench`, for PyTorch: the same shapes, whole training steps, generation and
classification with transformers' GPT-2.

    python3 dev/bench_torch.py [--threads 2] [--seconds 12] [--shapes ABCDEF] [--no-compile]

Needs torch and transformers. A training step is forward, backward, clipping to norm 1 and AdamW
(fused, with decay on matrices only), in float32, on random tokens. Each shape is timed in eager mode and
with torch.compile (the default backend, which needs a C++ compiler); the median of the steps is printed,
after the first ones. FLOPs are counted as in dev/bench.c. With `--ours FILE`, the output of out/bench, a
column with the ratio of tokens/s is added: run the two one after the other, since machines differ.
"""
import argparse
import re
import statistics
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
    """Median seconds of a step; at least three, then as many as the budget allows."""
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
    while len(times) < 5 or (time.time() - begin < budget and len(times) < 200):
        start = time.time()
        optimizer.zero_grad(set_to_none=True)
        forward(tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if begin is None:
            begin = time.time()                 # the first step compiles and touches new memory
        else:
            times.append(time.time() - start)
    return statistics.median(times[1:])


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
    return 93 * count / (time.time() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=12, help="for each row")
    parser.add_argument("--shapes", default="ABCDEF")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--ours", help="what out/bench printed")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {options.threads} threads")
    ours = {}
    for line in open(options.ours) if options.ours else []:
        row = re.match(r"([A-F])  L.*B\d+\s+[\d.]+\s+(\d+)", line)
        if row:
            ours[row[1]] = float(row[2])
        generated = re.search(r"batch 1: ([\d.]+) tokens/s.*prompt (\d+)", line)
        if generated:
            ours["generation"], ours["prompt"] = float(generated[1]), float(generated[2])
        classified = re.search(r"tokens: (\d+) sentences/s", line)
        if classified:
            ours["classification"] = float(classified[1])

    def ratio(key, theirs):
        return f"{ours[key] / theirs:9.2f}" if key in ours else ""

    print(f"{'training step':42} {'eager ms':>9} {'compiled':>9} {'tokens/s':>9} {'GFLOP/s':>9}"
          + (f" {'ours / it':>8}" if ours else ""))
    for name in options.shapes:
        shape = SHAPES[name]
        eager = time_training(shape, False, options.seconds)
        compiled = float("nan")
        if not options.no_compile:
            try:
                compiled = time_training(shape, True, options.seconds)
            except Exception as error:          # without a C++ compiler, say
                print(f"torch.compile: {type(error).__name__}: {str(error).splitlines()[0]}")
            torch._dynamo.reset()
        best = min(eager, compiled) if compiled == compiled else eager
        rate = shape[3] * shape[5] / best
        title = "%s  L%d H%d C%d T%d V%d B%d" % (name, *shape)
        print(f"{title:42} {1e3 * eager:9.1f} {1e3 * compiled:9.1f} {rate:9.0f} {flops(*shape) / best / 1e9:9.1f}"
              + ratio(name, rate), flush=True)
    rate, reading = generation(options.seconds)
    print(f"generation, shape A, batch 1: {rate:.1f} tokens/s {ratio('generation', rate)}; "
          f"prompt {reading:.0f} tokens/s {ratio('prompt', reading)}")
    rate = classification(options.seconds)
    print(f"classification, L6 H4 C256, 4 to 40 tokens: {rate:.0f} sentences/s {ratio('classification', rate)}")


if __name__ == "__main__":
    main()
