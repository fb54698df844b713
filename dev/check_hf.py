#!/usr/bin/env python3
"""Checks that model directories mean the same here and to Hugging Face's transformers.

    python3 dev/check_hf.py                  everything, on tiny models of its own
    python3 dev/check_hf.py LM --lm-data 'GLOB' [CLASSIFIER] [--texts FILE]
                                             these directories: the loss on token shards, and texts,
                                             one a line, to classify and to tokenize

Needs torch and transformers, and the programs built in the repository root. Without arguments it
makes, in a temporary directory, a tokenizer, a model and classifiers with our programs and opens
them with AutoModelForCausalLM, AutoModelForSequenceClassification and AutoTokenizer; and it makes
random models with transformers, saved as float32, float16 and bfloat16, and opens them with our
programs. Loss and class probabilities must agree to 1e-4, token ids exactly. Prints ok or FAIL for
each comparison; the exit status is the number of failures.
"""
import argparse
import glob
import os
import random
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import torch
import transformers
from transformers import (AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification,
                          AutoTokenizer, GPT2Config, GPT2ForSequenceClassification,
                          GPT2LMHeadModel)

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
TOLERANCE = 1e-4
failures = 0

TEXTS = [
    "A wonderful film.", "the plot was dull ,  and the acting was weak", "", " ", "x",
    "Not a dull moment!", "It's 1,234.50 naïve crêpes; I'll say \"we've\" THEY'RE done.",
    "tabs\tand   spaces   ", "日本語のテキスト と emoji 🎬👍🏽", "Ελληνικά, кириллица, العربية, हिन्दी",
    "under_score camelCase http://example.com/?a=b&c=d", "café e\u0301 ﬁ ½ ² Ⅷ",
]


def check(good, what):
    global failures
    print(("ok   " if good else "FAIL ") + what, flush=True)
    failures += not good


def run(*command, text=None):
    """What one of our programs writes to stdout."""
    program = os.path.join(ROOT, command[0])
    done = subprocess.run([program, *command[1:]], input=(text or "").encode(), capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: status {done.returncode}: {done.stderr.decode()}")
    return done.stdout.decode()


# --- Ours: what the programs print ---

def our_loss(directory, pattern):
    lines = run("train_gpt", "eval", "--model", directory, "--data", pattern).splitlines()
    words = lines[-1].split()
    values = dict(zip(words[::2], words[1::2]))
    return float(values["loss"]), int(values["tokens"])


def our_predictions(directory, texts):
    """(label, probability) of each text."""
    lines = run("finetune_cls", "predict", "--model", directory, *["--"] + texts).split("\n")[:-1]
    return [(label, float(p)) for label, p, _ in (line.split("\t", 2) for line in lines)]


def our_ids(directory, text, *options):
    ids = run("tokenizer", "ids", "--tokenizer", directory, *options, text=text)
    return [int(i) for i in ids.split()]


def our_eot(directory):
    return our_ids(directory, "<|endoftext|>", "--special")[0]


# --- Theirs: the same with transformers ---

def read_shards(pattern):
    """llm.c's format: 256 int32 of header, then uint16."""
    parts = []
    for name in sorted(glob.glob(pattern)):
        header = np.fromfile(name, dtype="<i4", count=256)
        assert header[0] == 20240520 and header[1] == 1, name
        parts.append(np.fromfile(name, dtype="<u2", offset=1024)[:header[2]])
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def their_loss(model, x):
    """Windows of the model's context; every token but the first is a target once."""
    T, total = model.config.n_positions, 0.0
    with torch.no_grad():
        for at in range(0, len(x) - 1, T):
            inputs = x[at:min(at + T, len(x) - 1)]
            targets = x[at + 1:at + 1 + len(inputs)]
            log_p = model(inputs[None]).logits[0].double().log_softmax(-1)
            total -= log_p.gather(1, targets[:, None]).sum().item()
    return total / (len(x) - 1), len(x) - 1


def their_probabilities(model, rows):
    """One text at a time: its class is read at its last token."""
    with torch.no_grad():
        return torch.cat([model(torch.tensor([ids])).logits.double().softmax(-1) for ids in rows])


def padded_probabilities(model, rows):
    """All texts in one padded batch, which pad_token_id in config.json must make possible."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), model.config.pad_token_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, :len(row)] = torch.tensor(row)
        mask[i, :len(row)] = 1
    with torch.no_grad():
        return model(ids, attention_mask=mask).logits.double().softmax(-1)


# --- Comparisons ---

def compare_loss(model, directory, pattern, what):
    ours, count = our_loss(directory, pattern)
    theirs, all_tokens = their_loss(model.eval(), read_shards(pattern))
    check(abs(ours - theirs) < TOLERANCE and count == all_tokens,
          f"{what}: loss {ours:.6f}, transformers {theirs:.6f}, on {count} tokens")


def compare_ids(directory, texts):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    wrong = [t for t in texts if our_ids(directory, t) != tokenizer(t)["input_ids"]]
    for t in wrong[:3]:
        print(f"     {t!r}: {our_ids(directory, t)}, transformers {tokenizer(t)['input_ids']}")
    check(not wrong, f"AutoTokenizer: the same ids for {len(texts)} texts")
    ids = our_ids(directory, texts[0])
    check(tokenizer.decode(ids) == texts[0], "AutoTokenizer: decodes our ids")
    return tokenizer


def compare_classes(model, directory, texts, what, padded=True):
    """Each text as <|endoftext|> and its ids, the last that the context holds."""
    eot = our_eot(directory)
    most = model.config.n_positions - 1
    rows = [[eot] + our_ids(directory, t)[-most:] for t in texts]
    ours, names = our_predictions(directory, texts), model.config.id2label
    answers = {"": their_probabilities(model.eval(), rows)}
    if padded:
        answers[", padded batch"] = padded_probabilities(model, rows)
    for name, theirs in answers.items():
        error, same = 0.0, 0
        for (label, p), q in zip(ours, theirs):
            same += label in [names[k] for k in range(len(q)) if q[k] > q.max() - TOLERANCE]
            error = max(error, abs(p - q.max().item()))
        check(error < TOLERANCE and same == len(texts),
              f"{what}{name}: {same} of {len(texts)} labels, probabilities within {error:.1e}")


# --- Directories of our own making ---

def write_texts(directory):
    """Sentences with something to learn, and labelled ones."""
    source = random.Random(1)
    nouns = ["film", "plot", "cast", "café", "naïve hero", "score"]
    verbs = ["is", "was", "seems", "isn't"]
    good, bad = ["brilliant", "moving", "fun", "wonderful"], ["dull", "weak", "tired", "awful"]

    def sentence(words):
        noun, verb, word = source.choice(nouns), source.choice(verbs), source.choice(words)
        return f"The {noun} {verb} {word}, {source.randint(1, 99)}."

    with open(os.path.join(directory, "text.txt"), "w", encoding="utf-8") as f:
        f.writelines(sentence(good + bad) + "\n" for _ in range(3000))
    with open(os.path.join(directory, "labelled.tsv"), "w", encoding="utf-8") as f:
        f.write("text\tlabel\n")
        for _ in range(120):
            name = source.choice(["good", "bad"])
            f.write(sentence(good if name == "good" else bad) + "\t" + name + "\n")


def make_ours(directory):
    write_texts(directory)
    def inside(name):
        return os.path.join(directory, name)

    run("tokenizer", "train", "--vocab", "400", "--out", inside("tokenizer"), inside("text.txt"))
    run("tokenizer", "encode", "--tokenizer", inside("tokenizer"), "--split", "lines",
        "--shard-tokens", "30000", "--out", inside("shard"), inside("text.txt"))
    run("train_gpt", "train", "--data", inside("shard_*.bin"), "--val", inside("shard_*.bin"),
        "--eval-tokens", "2000", "--tokenizer", inside("tokenizer"), "--out", inside("lm"),
        "--layers", "2", "--heads", "2", "--channels", "32", "--context", "48", "--steps", "40",
        "--batch", "8", "--lr", "3e-3")
    for tune, options in {"probe": [], "full": ["--epochs", "3", "--lr", "3e-3"]}.items():
        run("finetune_cls", "train", "--model", inside("lm"), "--train", inside("labelled.tsv"),
            "--out", inside(tune), "--tune", tune, *options)
    return inside


def check_ours(directory, pattern, classifiers, texts):
    model = AutoModelForCausalLM.from_pretrained(directory)
    tied = model.lm_head.weight is model.transformer.wte.weight
    check(type(model) is GPT2LMHeadModel and tied,
          "AutoModelForCausalLM: a GPT2LMHeadModel with a tied head")
    compare_loss(model, directory, pattern, "AutoModelForCausalLM, our directory")
    tokenizer = compare_ids(directory, texts)
    eot = our_eot(directory)
    check(tokenizer.convert_tokens_to_ids("<|endoftext|>") == eot == model.config.eos_token_id,
          f"<|endoftext|> is {eot}")
    for path in classifiers:
        model = AutoModelForSequenceClassification.from_pretrained(path)
        name = os.path.basename(os.path.normpath(path))
        compare_classes(model, path, texts, f"AutoModelForSequenceClassification, {name}")
        compare_ids(path, texts)


# --- Directories of theirs ---

def random_gpt2(kind, ours, **more):
    """As transformers initialises it, but with weights large enough for probabilities to differ."""
    like = AutoConfig.from_pretrained(ours)
    config = GPT2Config(n_layer=3, n_head=4, n_embd=48, n_positions=40, vocab_size=like.vocab_size,
                        bos_token_id=like.eos_token_id, eos_token_id=like.eos_token_id,
                        initializer_range=0.15, **more)
    return kind(config).eval()


def save_theirs(model, directory, tokenizer_directory):
    model.save_pretrained(directory)
    for name in ["merges.txt", "vocab.json"]:
        shutil.copy(os.path.join(tokenizer_directory, name), directory)


def check_theirs(inside, pattern, texts):
    torch.manual_seed(1)
    ours, names = inside("lm"), ["schlecht", "mäßig", "gut"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {n: k for k, n in enumerate(names)}}
    for dtype in [torch.float32, torch.float16, torch.bfloat16]:
        word = str(dtype).removeprefix("torch.")
        model, path = random_gpt2(GPT2LMHeadModel, ours).to(dtype), inside("theirs_" + word)
        save_theirs(model, path, ours)
        compare_loss(model.float(), path, pattern, f"random GPT2LMHeadModel, {word}")
        model = random_gpt2(GPT2ForSequenceClassification, ours, **labels).to(dtype)
        path = inside("theirs_classifier_" + word)
        save_theirs(model, path, ours)
        compare_classes(model.float(), path, texts, f"random GPT2ForSequenceClassification, {word}",
                        padded=False)
    model, path = random_gpt2(GPT2LMHeadModel, ours), inside("theirs_trunk")
    save_theirs(model.transformer, path, ours)
    compare_loss(model, path, pattern, "random GPT2Model, names without transformer.")
    model, path = random_gpt2(GPT2ForSequenceClassification, ours), inside("theirs_unnamed")
    save_theirs(model, path, ours)
    what = "random GPT2ForSequenceClassification, labels without names"
    compare_classes(model, path, texts, what, padded=False)


def attempt(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        check(False, f"{function.__name__}: {error}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lm", nargs="?", help="model directory of a language model")
    parser.add_argument("classifier", nargs="?", help="model directory of a classifier")
    parser.add_argument("--lm-data", help="token shards to compare the loss on")
    parser.add_argument("--texts", help="texts to classify and to tokenize, one a line")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    texts = TEXTS
    if arguments.texts:
        with open(arguments.texts, encoding="utf-8") as f:
            texts = f.read().splitlines()
    if arguments.lm:
        if not arguments.lm_data:
            parser.error("--lm-data must name token shards")
        classifiers = [arguments.classifier] if arguments.classifier else []
        attempt(check_ours, arguments.lm, arguments.lm_data, classifiers, texts)
    else:
        with tempfile.TemporaryDirectory() as directory:
            inside = make_ours(directory)
            shards = inside("shard_*.bin")
            attempt(check_ours, inside("lm"), shards, [inside("probe"), inside("full")], texts)
            attempt(check_theirs, inside, shards, texts)
    print(f"{failures} failed" if failures else "all the same")
    sys.exit(min(failures, 255))


if __name__ == "__main__":
    main()
