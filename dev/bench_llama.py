#!/usr/bin/env python3
"""Generation beside llama.cpp's: tokens/s after a short prompt, with the same weights.

    pip install gguf llama-cpp-python
    make && python3 dev/bench_llama.py MODEL_DIR [--tokens 200] [--rounds 3] [--threads 2]

Converts the model with dev/to_gguf.py to F32 and F16. `train_gpt sample` and llama.cpp take turns, and
the best round of each counts. Both draw the likeliest token each time; ours is the rate that sample
prints, theirs is measured around as many single-token evaluations.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))


def ours(options, precision):
    done = subprocess.run([os.path.join(HERE, "..", "train_gpt"), "sample", "--model", options.model, "--prompt", "The",
                           "--tokens", str(options.tokens), "--min-tokens", "1G", "--temperature", "0", "--precision",
                           precision, "--threads", str(options.threads)], check=True, capture_output=True, text=True)
    return float(re.search(r", (\d+) tokens/s", done.stderr)[1])


def theirs(options, path):
    import llama_cpp
    model = llama_cpp.Llama(path, n_ctx=options.tokens + 16, n_threads=options.threads,
                            n_threads_batch=options.threads, verbose=False)
    model.eval(model.tokenize(b"The"))
    start = time.time()
    for _ in range(options.tokens):
        model.eval([model.sample(temp=0)])
    return options.tokens / (time.time() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL_DIR")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        files = {kind: os.path.join(work, kind + ".gguf") for kind in ("f32", "f16")}
        for kind, path in files.items():
            subprocess.run([sys.executable, os.path.join(HERE, "to_gguf.py"), options.model, path, "--type", kind],
                           check=True, capture_output=True)
        runs = {"ours fp32": lambda: ours(options, "fp32"), "llama.cpp F32": lambda: theirs(options, files["f32"]),
                "ours bf16": lambda: ours(options, "bf16"), "llama.cpp F16": lambda: theirs(options, files["f16"])}
        best = dict.fromkeys(runs, 0)
        for _ in range(options.rounds):
            for name, run in runs.items():
                best[name] = max(best[name], run())
    print(f"tokens/s, {options.threads} threads, best of {options.rounds}: "
          + ", ".join(f"{name} {rate:.1f}" for name, rate in best.items()))
    print(f"ours by theirs: fp32 {best['ours fp32'] / best['llama.cpp F32']:.2f}, "
          f"16 bits {best['ours bf16'] / best['llama.cpp F16']:.2f}")


if __name__ == "__main__":
    main()
