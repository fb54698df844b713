#!/usr/bin/env python3
"""Checks that model directories mean the same here and to Hugging Face's transformers.

    python3 dev/check_hf.py                  everything, on small models of its own
    python3 dev/check_hf.py --lm DIR [--lm-data 'GLOB'] [--texts FILE]
    python3 dev/check_hf.py --classifier DIR --texts FILE
                                             these directories, on the texts of FILE, one a line

Needs torch and transformers (5, or 4 of 2024), and the programs built in the repository root.
Everything is used as a user does: pipeline() and generate() on the directory, nothing added by
hand. Without arguments it makes, in a temporary directory, a tokenizer, a model and classifiers
with our programs and opens them there; and it makes models with transformers, a classifier
fine-tuned there among them, in several formats, and opens them here. Losses must agree to 1e-4,
probabilities to 1e-3, labels and token ids exactly. Prints ok or FAIL for each comparison; the exit
status is the number of failures.
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
from transformers import (AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config,
                          GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast,
                          pipeline)

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
TOLERANCE, PROBABILITY_TOLERANCE = 1e-4, 1e-3
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
    lines = run("finetune_cls", "predict", "--model", directory,
                text="".join(t + "\n" for t in texts)).split("\n")[:-1]
    return [(label, float(p)) for label, p, _ in (line.split("\t", 2) for line in lines)]


def our_ids(directory, text):
    return [int(i) for i in run("tokenizer", "ids", "--tokenizer", directory, text=text).split()]


def our_sample(directory, prompt, tokens):
    return run("train_gpt", "sample", "--model", directory, "--temperature", "0", "--tokens",
               str(tokens), "--prompt", prompt)[:-1]


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


def their_predictions(directory, texts, **options):
    """(label, probability) of each text, from the pipeline. Long texts are cut as the tokenizer of
    the directory says."""
    classify = pipeline("text-classification", model=directory)
    return [(d["label"], d["score"]) for d in classify(texts, truncation=True, **options)]


# --- Comparisons ---

def compare_loss(model, directory, pattern, what):
    ours, count = our_loss(directory, pattern)
    theirs, all_tokens = their_loss(model.eval(), read_shards(pattern))
    check(abs(ours - theirs) < TOLERANCE and count == all_tokens,
          f"{what}: loss {ours:.6f}, transformers {theirs:.6f}, on {count} tokens")


def compare_tokens(directory, texts):
    """Ids without the tokens that the template adds, and the way back from all of them."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    rows = tokenizer(texts)["input_ids"]
    wrong = [t for t in texts
             if our_ids(directory, t) != tokenizer(t, add_special_tokens=False)["input_ids"]]
    for t in wrong[:3]:
        print(f"     {t!r}: {our_ids(directory, t)}, transformers {tokenizer(t)['input_ids']}")
    check(not wrong, f"AutoTokenizer: the same ids for {len(texts)} texts")
    lost = [t for t, row in zip(texts, rows)
            if tokenizer.decode(row, skip_special_tokens=True) != t]
    check(not lost, f"AutoTokenizer: {len(texts)} texts decode to themselves {lost[:2]}")
    return tokenizer


def compare_classes(directory, texts, what, batches=True, pairs=False):
    """predict and pipeline(), one text at a time and in padded batches. A label may differ only
    where two probabilities are equal. The two texts of a pair have a tab between them."""
    ours = our_predictions(directory, texts)
    if pairs:
        texts = [dict(zip(["text", "text_pair"], text.split("\t"))) for text in texts]
    ways = {"one by one": {}, "batches of 16": {"batch_size": 16}}
    for name, options in ways.items():
        if not batches and options:
            continue
        theirs = their_predictions(directory, texts, **options)
        error = max(abs(p - q) for (_, p), (_, q) in zip(ours, theirs))
        same = sum(x == y for (x, _), (y, _) in zip(ours, theirs))
        check(error < PROBABILITY_TOLERANCE and same == len(texts),
              f"{what}, pipeline {name}: {same} of {len(texts)} labels, "
              f"probabilities within {error:.1e}")


def compare_generation(directory, prompts, tokens):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    same = 0
    for prompt in prompts:
        row = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=tokens,
                             do_sample=False)[0]
        theirs = tokenizer.decode(row, skip_special_tokens=True)
        ours = our_sample(directory, prompt, tokens)
        same += ours == theirs
        if ours != theirs:
            print(f"     ours {ours!r}\n     theirs {theirs!r}")
    check(same == len(prompts), f"generate: {same} of {len(prompts)} prompts continued by the same "
          f"{tokens} tokens, or up to the same <|endoftext|>")


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
        f.write("text\tlabel\tother\n")
        for _ in range(120):
            name = source.choice(["good", "bad"])
            f.write(sentence(good if name == "good" else bad) + "\t" + name + "\t"
                    + sentence(good + bad) + "\n")


QUESTIONS = {        # six classes, as in TREC (Li and Roth 2002), by templates of our own
    "person": ["Who wrote {}?", "Which painter lived in {}?", "Who was the first king of {}?"],
    "place": ["Where is {}?", "What city lies north of {}?", "In which country was {} made?"],
    "number": ["How many people know {}?", "How far is it to {}?", "When did {} begin?"],
    "thing": ["What colour has {}?", "Which animal is seen in {}?", "What food comes from {}?"],
    "meaning": ["What does {} mean?", "Why is {} famous?", "What is the origin of {}?"],
    "short": ["What does the abbreviation of {} stand for?", "What is {} short for?"],
}


def write_questions(path, count, seed):
    """Writes labelled questions, some of them followed by one of another class, and returns
    them."""
    source = random.Random(seed)
    names = ["the old bridge", "Paris", "NATO", "the Nile", "opera", "Mr. Brown's café", "gold"]
    texts = []
    with open(path, "w", encoding="utf-8") as f:
        f.write("label\ttext\n")
        for _ in range(count):
            label = source.choice(list(QUESTIONS))
            texts.append(source.choice(QUESTIONS[label]).format(source.choice(names)))
            if source.random() < 0.2:
                other = source.choice(list(QUESTIONS))
                texts[-1] += " " + source.choice(QUESTIONS[other]).format(source.choice(names))
            f.write(f"{label}\t{texts[-1]}\n")
    return texts


def make_ours(directory):
    write_texts(directory)

    def inside(name):
        return os.path.join(directory, name)

    run("tokenizer", "train", "--vocab", "400", "--out", inside("tokenizer"), inside("text.txt"))
    run("tokenizer", "encode", "--tokenizer", inside("tokenizer"), "--shard-tokens", "30000",
        "--out", inside("shard"), inside("text.txt"))
    run("train_gpt", "train", "--data", inside("shard_*.bin"), "--val", inside("shard_*.bin"),
        "--eval-tokens", "2000", "--tokenizer", inside("tokenizer"), "--out", inside("lm"),
        "--layers", "2", "--heads", "2", "--channels", "32", "--context", "128", "--steps", "60",
        "--batch", "8", "--lr", "3e-3")
    classifiers = {"probe": [], "full": ["--lr", "3e-3"],
                   "short": ["--lr", "3e-3", "--max-tokens", "12", "--truncate", "head"],
                   "suffix": ["--lr", "3e-3", "--suffix", ". it was"],
                   "suffix head": ["--lr", "3e-3", "--suffix", " It's \"so\" naïve",
                                   "--max-tokens", "16", "--truncate", "head"],
                   "pairs": ["--lr", "3e-3", "--pair-column", "other", "--max-tokens", "24"]}
    classifiers["suffix pairs"] = classifiers["pairs"] + ["--suffix", " it was"]
    ask = ["--train", inside("text.txt"), "--format", "lines", "--suffix", ". it was"]
    classifiers["prompt"] = ask + ["--label-words", "good=fun,moving,wonderful;bad=dull,weak"]
    classifiers["prompt of four"] = ask + [
        "--label-words", "a=fun;b=moving,wonderful;c=dull,weak;d=tired,awful",
        "--prior", "a=1;b=2;c=2;d=3"]
    for name, options in classifiers.items():
        tune = name.split()[0] if name.startswith("pro") else "full"
        run("finetune_cls", "train", "--model", inside("lm"), "--train", inside("labelled.tsv"),
            "--out", inside(name), "--tune", tune, *options)
    return inside


def check_lm(directory, pattern, texts):
    model = AutoModelForCausalLM.from_pretrained(directory)
    tied = model.lm_head.weight is model.transformer.wte.weight
    check(type(model) is GPT2LMHeadModel and tied,
          "AutoModelForCausalLM: a GPT2LMHeadModel with a tied head")
    if pattern:
        compare_loss(model, directory, pattern, "AutoModelForCausalLM, our directory")
    tokenizer = compare_tokens(directory, texts)
    check(tokenizer.eos_token_id == model.config.eos_token_id == tokenizer.bos_token_id
          and tokenizer.pad_token_id == model.config.pad_token_id != tokenizer.eos_token_id,
          f"<|endoftext|> is {tokenizer.eos_token_id}, the pad token {tokenizer.pad_token_id}")
    room = model.config.n_positions - 100
    prompts = [t for t in texts if len(tokenizer(t)["input_ids"]) <= room]
    compare_generation(directory, prompts[:10], 100)


def check_ours(inside, texts):
    check_lm(inside("lm"), inside("shard_*.bin"), texts)
    long = ["The film is dull. " * 60, "A moving score, " * 40 + "but weak."]
    for name in ["probe", "full", "short", "suffix", "suffix head", "prompt", "prompt of four"]:
        compare_classes(inside(name), texts + long, f"our classifier {name}")
    alone = [t for t in texts if t and "\t" not in t] + long
    both = [a + "\t" + b for a in alone for b in alone]
    for name in ["pairs", "suffix pairs"]:
        compare_classes(inside(name), both, f"our classifier of {name}", pairs=True)
    write_questions(inside("questions.tsv"), 300, seed=1)
    run("finetune_cls", "train", "--model", inside("lm"), "--train", inside("questions.tsv"),
        "--out", inside("six"), "--lr", "3e-3", "--epochs", "8")
    compare_classes(inside("six"), write_questions(inside("more.tsv"), 500, seed=2),
                    "our classifier of six kinds of questions")


# --- Directories of theirs ---

def random_gpt2(kind, vocabulary, eot, **more):
    """As transformers initialises it, but with weights large enough for probabilities to differ."""
    config = GPT2Config(n_layer=3, n_head=4, n_embd=48, n_positions=128, vocab_size=vocabulary,
                        bos_token_id=eot, eos_token_id=eot, initializer_range=0.15, **more)
    return kind(config).eval()


def save_with(model, directory, names, source, **options):
    model.save_pretrained(directory, **options)
    for name in names:
        shutil.copy(os.path.join(source, name), directory)


def tune_theirs(model, tokenizer, path):
    """Fine-tunes as transformers' users do: rows padded on the right, no first token."""
    rows = [line.rstrip("\n").split("\t")[:2] for line in open(path, encoding="utf-8")][1:]
    names = sorted({label for _, label in rows})
    model.config.pad_token_id = tokenizer.pad_token_id
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    for start in range(0, 3 * len(rows), 16):
        part = [rows[(start + i) % len(rows)] for i in range(16)]
        inputs = tokenizer([text for text, _ in part], padding=True, truncation=True,
                           return_tensors="pt")
        labels = torch.tensor([names.index(label) for _, label in part])
        model.train()(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def check_theirs(inside, pattern, texts):
    """Language models in their dtypes, with a padded vocabulary, or in several files, which are
    refused; untrained and tuned classifiers."""
    torch.manual_seed(1)
    texts = [t for t in texts if t]         # without a first token, no text is no row at all there
    ours, files = inside("lm"), ["merges.txt", "vocab.json"]
    like = AutoConfig.from_pretrained(ours)
    V, eot = like.vocab_size, like.eos_token_id
    names = ["schlecht", "mäßig", "gut"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {n: k for k, n in enumerate(names)}}
    for dtype in [torch.float32, torch.float16, torch.bfloat16]:
        word = str(dtype).removeprefix("torch.")
        model, path = random_gpt2(GPT2LMHeadModel, V, eot).to(dtype), inside("theirs_" + word)
        save_with(model, path, files, ours)
        compare_loss(model.float(), path, pattern, f"random GPT2LMHeadModel, {word}")
    model = random_gpt2(GPT2LMHeadModel, V + 13, eot)
    save_with(model, inside("theirs_padded"), files, ours)
    compare_loss(model, inside("theirs_padded"), pattern, "random GPT2LMHeadModel, padded vocabulary")
    save_with(model, inside("theirs_parts"), files, ours, max_shard_size="50KB")
    try:
        our_loss(inside("theirs_parts"), pattern)
        said = "it was read"
    except RuntimeError as error:
        said = str(error)
    check("no directory with config.json and model.safetensors" in said, "a model in several files is refused by name")
    model, path = random_gpt2(GPT2LMHeadModel, V, eot), inside("theirs_trunk")
    save_with(model.transformer, path, files, ours)
    compare_loss(model, path, pattern, "random GPT2Model, names without transformer.")
    model, path = random_gpt2(GPT2ForSequenceClassification, V, eot, **labels), inside("theirs_cls")
    save_with(model, path, files, ours)
    compare_classes(path, texts, "random GPT2ForSequenceClassification", batches=False)
    model, path = random_gpt2(GPT2ForSequenceClassification, V, eot), inside("theirs_unnamed")
    save_with(model, path, files, ours)
    compare_classes(path, texts, "random GPT2ForSequenceClassification, labels without names",
                    batches=False)


def check_suffix(inside, texts):
    """A classifier whose tokenizer transformers has saved again, suffix included."""
    path = inside("suffix_saved")
    shutil.copytree(inside("suffix"), path)
    for name in ["merges.txt", "vocab.json", "tokenizer.json", "tokenizer_config.json"]:
        os.remove(os.path.join(path, name))
    AutoTokenizer.from_pretrained(inside("suffix")).save_pretrained(path)
    compare_classes(path, texts, "our classifier suffix, tokenizer saved by transformers")


def check_tuned(inside, texts):
    """A tokenizer trained by tokenizers, special tokens first, and a classifier tuned on it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train([inside("text.txt")], trainers.BpeTrainer(
        vocab_size=350, special_tokens=["<pad>", "<s>", "<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|endoftext|>", pad_token="<pad>", model_max_length=30,
        model_input_names=["input_ids", "attention_mask"])
    torch.manual_seed(2)
    model = random_gpt2(GPT2ForSequenceClassification, 352, 2, id2label={0: "bad", 1: "good"},
                        label2id={"bad": 0, "good": 1})
    model, path = tune_theirs(model, tokenizer, inside("labelled.tsv")), inside("theirs_tuned")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    compare_classes(path, [t for t in texts if t] + ["The cast was weak. " * 30],
                    "classifier fine-tuned with transformers, tokenizer.json alone")


def attempt(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        check(False, f"{function.__name__}: {error}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lm", help="model directory of a language model")
    parser.add_argument("--classifier", help="model directory of a classifier")
    parser.add_argument("--lm-data", help="token shards to compare the loss on")
    parser.add_argument("--texts", help="texts to classify and to tokenize, one a line")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if hasattr(transformers.utils.logging, "disable_progress_bar"):
        transformers.utils.logging.disable_progress_bar()
    texts = TEXTS
    if arguments.texts:
        with open(arguments.texts, encoding="utf-8", newline="\n") as f:
            texts = f.read().removesuffix("\n").split("\n")
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    if arguments.lm:
        attempt(check_lm, arguments.lm, arguments.lm_data, texts)
    if arguments.classifier:
        attempt(compare_classes, arguments.classifier, texts, arguments.classifier)
    if not arguments.lm and not arguments.classifier:
        with tempfile.TemporaryDirectory() as directory:
            inside = make_ours(directory)
            attempt(check_ours, inside, texts)
            attempt(check_theirs, inside, inside("shard_*.bin"), texts)
            attempt(check_suffix, inside, texts)
            attempt(check_tuned, inside, texts)
    print(f"{failures} failed" if failures else "all the same")
    sys.exit(min(failures, 255))


if __name__ == "__main__":
    main()
