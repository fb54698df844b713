#!/usr/bin/env python3
"""The rows of `make bench` beside PyTorch's: the same shapes, whole training steps, generation and
classification with transformers' GPT-2.

    make out/bench && python3 dev/bench_torch.py [--rows A,C,generation] [--rounds 2] [--threads 2]

Needs torch and transformers (and accelerate for the Trainer). A training step is forward, backward,
clipping to norm 1 and AdamW (fused, with decay on matrices only) on random tokens; the median of the
steps counts. PyTorch has four modes: eager or torch.compile (the default backend, which needs a C++
compiler), in float32 or under torch.autocast(bfloat16). `trainer` is transformers.Trainer with its
default arguments, as the user meets it. Every figure comes from a process of its own: a second
torch.compile in one process was once ten times slower than the first. Machines are shared and differ
from minute to minute, so ours and theirs take turns, for as many rounds as are asked for, and the
best round of each mode counts. `fp32` is our float32 by the better of PyTorch's float32 modes; `best`
is the better of our two precisions by the best of PyTorch's four modes. Memory is the peak of the
process, libraries included.
"""
import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time

SHAPES = {      # layers, heads, channels, context, vocabulary, batch
    "A": (12, 12, 768, 64, 50257, 4), "B": (6, 6, 384, 256, 65, 16), "C": (6, 4, 256, 256, 8192, 16),
    "D": (4, 4, 128, 64, 65, 12), "E": (4, 4, 128, 128, 4096, 32), "F": (12, 12, 768, 1024, 50257, 4),
}
OURS = {"fp32": "our fp32", "bf16": "our bf16"}
FP32_MODES, BF16_MODES = ["eager fp32", "compile fp32"], ["eager bf16", "compile bf16"]


def config(layers, heads, channels, context, vocabulary, **more):
    from transformers import GPT2Config
    return GPT2Config(n_layer=layers, n_head=heads, n_embd=channels, n_positions=context,
                      vocab_size=vocabulary, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0,
                      use_cache=False, bos_token_id=0, eos_token_id=0, **more)


def enough(times, begin, budget):
    return len(times) >= 2 and (time.time() - begin >= budget or len(times) >= 200)


def time_training(row, mode, budget):
    """Tokens/s of the median step, after one that compiles and touches new memory."""
    import torch
    from transformers import GPT2LMHeadModel
    layers, heads, channels, context, vocabulary, batch = SHAPES[row]
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

    forward = torch.compile(loss_of) if mode.startswith("compile") else loss_of
    times, begin = [], None
    while not enough(times, begin, budget):
        start = time.time()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=mode.endswith("bf16")):
            loss = forward(tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if begin is None:
            begin = time.time()
        else:
            times.append(time.time() - start)
    return [batch * context / statistics.median(times)]


def time_trainer(row, budget):
    """The same shape with transformers.Trainer and its defaults: the median step between its callbacks."""
    import torch
    from transformers import GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments
    layers, heads, channels, context, vocabulary, batch = SHAPES[row]
    tokens = torch.randint(vocabulary, (batch * 8, context))
    stamps = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            stamps.append(time.time())
            control.should_training_stop = enough(stamps[2:], stamps[0], budget)
            return control

    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(out, per_device_train_batch_size=batch, num_train_epochs=1000,
                                      save_strategy="no", report_to=[], disable_tqdm=True)
        Trainer(GPT2LMHeadModel(config(layers, heads, channels, context, vocabulary)), arguments,
                train_dataset=[{"input_ids": t, "labels": t} for t in tokens], callbacks=[Clock()]).train()
    return [batch * context / statistics.median(b - a for a, b in zip(stamps, stamps[1:]))]


def generation(mode, budget):
    """Tokens/s of shape A's model, one sequence with a key-value cache after a prompt of 512, and of the
    prompt."""
    import torch
    from transformers import GPT2LMHeadModel
    model = GPT2LMHeadModel(config(12, 12, 768, 1024, 50257)).eval()
    model.config.use_cache = True
    if mode.endswith("bf16"):
        model = model.to(torch.bfloat16)
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
    return [count / (time.time() - start), reading]


def classification(mode, budget):
    """Sentences/s on shape C's trunk, lengths 4 to 40, 93 a batch, padded to the longest."""
    import torch
    from transformers import GPT2ForSequenceClassification
    generator = torch.Generator().manual_seed(2)
    model = GPT2ForSequenceClassification(config(6, 4, 256, 256, 8192, num_labels=2, pad_token_id=0)).eval()
    lengths = torch.randint(4, 41, (93,), generator=generator)
    width = int(lengths.max())
    tokens = torch.randint(1, 8192, (93, width), generator=generator)
    mask = (torch.arange(width)[None] < lengths[:, None]).long()
    tokens = tokens * mask
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mode.endswith("bf16")):
        model(tokens, attention_mask=mask)
        count, start = 0, time.time()
        while count < 20 and time.time() - start < budget:
            model(tokens, attention_mask=mask)
            count += 1
    return [93 * count / (time.time() - start)]


def measure_here(row, mode, options):
    """In the process of one figure: prints [values, MB]."""
    import torch
    torch.set_num_threads(options.threads)
    if row in SHAPES:
        values = (time_trainer(row, options.seconds) if mode == "trainer"
                  else time_training(row, mode, options.seconds))
    else:
        values = {"generation": generation, "classification": classification}[row](mode, options.seconds)
    print(json.dumps([values, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3]))


def theirs(row, mode, options):
    done = subprocess.run([sys.executable, __file__, "--one", row, "--mode", mode, "--threads", str(options.threads),
                           "--seconds", str(options.seconds)], capture_output=True, text=True,
                          env=dict(os.environ, TOKENIZERS_PARALLELISM="false"))
    if done.returncode:
        print(f"{row} {mode}: {done.stderr.strip().splitlines()[-1]}", flush=True)
        return [float("nan")] * 2, float("nan")
    return json.loads(done.stdout.splitlines()[-1])


def ours(row, mode, options):
    """The same of one row of out/bench."""
    printed = subprocess.run([options.bench, "--only", row, "--threads", str(options.threads), "--precision",
                              mode.split()[1]], check=True, capture_output=True, text=True).stdout
    if row in SHAPES:
        found = re.search(row + r"  L.*B\d+\s+[\d.]+\s+(\d+)\s+[\d.]+\s+[\d.]+%\s+[\d.]+%\s+(\d+)", printed)
        return [float(found[1])], float(found[2])
    if row == "generation":
        found = re.search(r"A, T1024\s+([\d.]+).*?(\d+)$", printed, re.M)
        return [float(found[1]), float(found[2])], float("nan")
    return [float(re.search(r"tokens: (\d+) sentences/s", printed)[1])], float("nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", default="out/bench", help="our program")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8, help="for each of PyTorch's figures")
    parser.add_argument("--rows", default="A,B,C,D,E,F,generation,classification")
    parser.add_argument("--modes", default=",".join(FP32_MODES + BF16_MODES + ["trainer"]))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return measure_here(options.one, options.mode, options)
    modes = list(OURS.values()) + options.modes.split(",")
    print(f"{options.threads} threads, best of {options.rounds}; tokens/s (MB), of classification sentences/s")
    print(f"{'':22}" + "".join(f"{m:>16}" for m in modes) + f"{'fp32':>7}{'best':>7}", flush=True)
    for row in options.rows.split(","):
        best = {}
        for _ in range(options.rounds):
            for mode in modes:
                if row not in SHAPES and (mode == "trainer" or mode.startswith("compile")):
                    continue
                values, memory = (ours if mode.startswith("our") else theirs)(row, mode, options)
                for i, value in enumerate(values):
                    if not value <= best.get((i, mode), (0, 0))[0]:
                        best[i, mode] = value, memory
        for i in range(2 if row == "generation" else 1):
            def top(names):
                return max((best[i, m][0] for m in names if (i, m) in best and best[i, m][0] == best[i, m][0]),
                           default=float("nan"))
            title = row if row not in SHAPES else "%s L%d H%d C%d T%d V%d B%d" % (row, *SHAPES[row])
            cells = [f"{best[i, m][0]:9.0f} ({best[i, m][1]:.0f})" if (i, m) in best else "" for m in modes]
            print(f"{title + (' prompt' if i else ''):22.22}" + "".join(f"{c:>16}" for c in cells)
                  + f"{top(['our fp32']) / top(FP32_MODES):7.2f}"
                  + f"{top(OURS.values()) / top(FP32_MODES + BF16_MODES):7.2f}", flush=True)


if __name__ == "__main__":
    main()
