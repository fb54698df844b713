#!/usr/bin/env python3
"""Checks that a GGUF file of dev/to_gguf.py means to llama.cpp what the model means here.

    pip install gguf llama-cpp-python
    python3 dev/check_gguf.py MODEL_DIR [--texts FILE]

Converts the model, opens the file with llama.cpp and compares with our programs, built in the
repository root: the ids of 200 lines (made at random, or the first 200 of FILE), and 50 tokens after
each of some prompts, the likeliest each time. Nothing is added by hand: the file itself says that
<|endoftext|> comes first. Prints ok or FAIL for each comparison; the exit status is the number of
failures.
"""
import argparse
import os
import random
import subprocess
import sys
import tempfile

import llama_cpp

HERE = os.path.dirname(os.path.abspath(__file__))
PROMPTS = ["", "The", "I saw", "The acting is", "A story of 12 naïve cafés:", "What a film! "]
WORDS = ["the", "film", "Don't", "we'll", "IT'S", "12,345.60", "(and)", "\"so\"", "--", "...", "naïve", "Ünïcode",
         "日本語", "кино", "سينما", "🎬👍🏽", "e\u0301", "½", "Ⅷ", "a_b", "x=y+1;", "http://a.b/c?d=e", "<|endoftext|>",
         "wonderfulness", "\u00a0", "\u3000", "\t"]
failures = 0


def check(good, what):
    global failures
    print(("ok   " if good else "FAIL ") + what, flush=True)
    failures += not good


def run(program, *arguments, text=""):
    done = subprocess.run([os.path.join(HERE, "..", program), *arguments], input=text.encode(),
                          capture_output=True, check=True)
    return done.stdout.decode(errors="ignore")


def random_lines():
    r = random.Random(1)
    return ["".join(r.choice(WORDS) + r.choice([" ", " ", " ", "  ", "", "\n"])
                    for _ in range(r.randrange(1, 20))) for _ in range(200)]


def check_ids(model, directory, lines):
    same = 0
    for line in lines:
        ours = run("tokenizer", "ids", "--tokenizer", directory, text=line).split()
        theirs = model.tokenize(line.encode(), add_bos=False, special=False)
        if ours == [str(i) for i in theirs]:
            same += 1
        else:
            print(f"     {line!r}:\n     {' '.join(ours)}\n     {' '.join(map(str, theirs))}")
    check(same == len(lines) > 0, f"the ids of {same} of {len(lines)} lines")


def check_text(model, directory, prompt):
    ours = run("train_gpt", "sample", "--model", directory, "--prompt", prompt, "--tokens", "50",
               "--temperature", "0")
    first = not prompt          # llama-cpp-python counts <|endoftext|> as answer if it is all of the prompt
    answer = model.create_completion(prompt, max_tokens=50 + first, temperature=0, repeat_penalty=1)
    theirs, count = answer["choices"][0]["text"], answer["usage"]["completion_tokens"] - first
    check((prompt + theirs).rstrip() == ours.rstrip(), f"{count} tokens after {prompt!r}")
    if (prompt + theirs).rstrip() != ours.rstrip():
        print(f"     ours:   {ours!r}\n     theirs: {prompt + theirs!r}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", metavar="MODEL_DIR")
    parser.add_argument("--texts", metavar="FILE")
    a = parser.parse_args()
    lines = random_lines()
    if a.texts:
        with open(a.texts, encoding="utf-8") as f:
            lines = f.read().split("\n")[:200]
    with tempfile.TemporaryDirectory() as work:
        path = os.path.join(work, "model.gguf")
        subprocess.run([sys.executable, os.path.join(HERE, "to_gguf.py"), a.model, path], check=True)
        model = llama_cpp.Llama(path, n_ctx=0, verbose=False)
        check_ids(model, a.model, lines)
        for prompt in PROMPTS:
            check_text(model, a.model, prompt)
    sys.exit(failures)


if __name__ == "__main__":
    main()
