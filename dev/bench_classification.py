#!/usr/bin/env python3
"""Sentences per second of one classifier: `finetune_cls predict` and `eval`, and transformers.

    python3 dev/bench_classification.py --model DIR [--data data/sst2/test.tsv] [--rounds 3]

DIR holds a classifier that finetune_cls has made; --data is a TSV file, the label and then the text.
Both read the same texts and tokenize them, <|endoftext|> first. transformers'
GPT2ForSequenceClassification gets batches of --batch texts, padded to the longest of them: in the
order of the file, and, as the fairer rival, sorted by length. The programs take turns, the best of
the rounds counts; start-up is measured on one text and taken off. The labels must agree.
Needs torch, transformers and tokenizers.
"""
import argparse
import subprocess
import tempfile
import time

import torch
from transformers import AutoModelForSequenceClassification, GPT2TokenizerFast


def run(command, **more):
    """What a command printed, and the seconds it took."""
    start = time.time()
    printed = subprocess.run(command, check=True, capture_output=True, text=True, **more).stdout
    return printed, time.time() - start


def texts_of(lines):
    return [line.split("\t")[1] for line in lines]


def ours(options, lines):
    """Labels; seconds of predict and of eval, start-up taken off."""
    rest = ["--model", options.model, "--threads", str(options.threads)]
    _, start = run([options.program, "predict", *rest, "a"])
    printed, predict = run([options.program, "predict", *rest], input="\n".join(texts_of(lines)) + "\n")
    _, evaluate = run([options.program, "eval", *rest, "--data", options.data])
    return [line.split("\t")[0] for line in printed.splitlines()], predict - start, evaluate - start


def theirs(options, model, tokenizer, texts, by_length):
    """Labels and seconds, tokenizing included."""
    start = time.time()
    eot, most = model.config.eos_token_id, model.config.n_positions - 1
    ids = [[eot] + row[-most:] for row in tokenizer(texts)["input_ids"]]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i])) if by_length else list(range(len(ids)))
    labels = [None] * len(ids)
    with torch.inference_mode():
        for first in range(0, len(ids), options.batch):
            chosen = order[first:first + options.batch]
            width = max(len(ids[i]) for i in chosen)
            tokens = torch.full((len(chosen), width), model.config.pad_token_id)
            mask = torch.zeros((len(chosen), width), dtype=torch.long)
            for row, i in enumerate(chosen):
                tokens[row, :len(ids[i])] = torch.tensor(ids[i])
                mask[row, :len(ids[i])] = 1
            for i, k in zip(chosen, model(tokens, attention_mask=mask).logits.argmax(-1).tolist()):
                labels[i] = model.config.id2label[k]
    return labels, time.time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", default="data/sst2/test.tsv")
    parser.add_argument("--program", default="./finetune_cls")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=1, help="the texts so many times over")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with open(options.data, encoding="utf-8") as file:
        header, *lines = file.read().splitlines()
    lines *= options.repeat
    model = AutoModelForSequenceClassification.from_pretrained(options.model).eval()
    tokenizer = GPT2TokenizerFast(f"{options.model}/vocab.json", f"{options.model}/merges.txt")
    best, labels = {}, {}
    with tempfile.NamedTemporaryFile("w", suffix=".tsv", encoding="utf-8") as copy:
        copy.write("\n".join([header, *lines]) + "\n")
        copy.flush()
        options.data = copy.name
        for _ in range(options.rounds):
            labels["ours"], predict, evaluate = ours(options, lines)
            times = {"predict": predict, "eval": evaluate}
            for name, by_length in (("padded", False), ("sorted", True)):
                labels[name], times[name] = theirs(options, model, tokenizer, texts_of(lines),
                                                   by_length)
            best = {name: min(t, best.get(name, t)) for name, t in times.items()}
    same = sum(a == b for a, b in zip(labels["ours"], labels["padded"]))
    rate = {name: len(lines) / t for name, t in best.items()}
    print(f"{len(lines)} texts, {options.threads} threads, torch {torch.__version__}, "
          f"best of {options.rounds}; {same} labels agree")
    for name, what in (("predict", "finetune_cls predict"), ("eval", "finetune_cls eval"),
                       ("padded", "transformers, order of the file"),
                       ("sorted", "transformers, sorted by length")):
        print(f"{what:33} {rate[name]:8.0f} sentences/s  predict is {rate['predict'] / rate[name]:5.2f} times it")


if __name__ == "__main__":
    main()
