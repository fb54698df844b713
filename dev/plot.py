#!/usr/bin/env python3
"""Pictures of what the programs write. What a file holds is told by its first line.

    python3 dev/plot.py --out PICTURE FILE...

FILE is one of these; several of one kind share a picture, PICTURE.svg and PICTURE.png:
  a directory with log.tsv, or such a file, of train_gpt (loss and validation loss by step, or bits
    per byte if vocabularies differ), of finetune_cls train (losses and accuracy by epoch) or of its
    probe (the same by l2);
  compare.tsv of finetune_cls compare: accuracy by number of labels, the mean of each method and
    its 95% interval, as in the printed table;
  the output of finetune_cls eval: the confusion matrix.
Needs matplotlib.
"""
import argparse
import collections
import itertools
import json
import math
import os
import re
import statistics
import sys

plt = None      # matplotlib.pyplot: imported by main, after --help

KINDS = {b"step\tloss\t": "pretraining", b"epoch\tstep\t": "epochs", b"l2\t": "probe",
         b"method\t": "compare"}


def read(path):
    """The kind of a file and its bytes. Ends the program if it is none of those above."""
    if os.path.isdir(path):
        path = os.path.join(path, "log.tsv")
    try:
        content = open(path, "rb").read()
    except OSError as error:
        sys.exit(f"plot.py: {path}: cannot be read ({error.strerror}). Check the name.")
    for start, kind in KINDS.items():
        if content.startswith(start):
            return kind, content
    if b"confusion matrix" in content:
        return "confusion", content
    sys.exit(f"plot.py: {path}: neither a log, nor compare.tsv, nor the output of eval. Check it.")


def table(content):
    """The rows of a TSV file as dictionaries. A last row that was cut off is left out."""
    lines = content.decode().split("\n")[:-1]
    names = lines[0].split("\t")
    rows = [line.split("\t") for line in lines[1:]]
    return [dict(zip(names, row)) for row in rows if len(row) == len(names)]


def points(rows, x, y):
    """Two lists: the numbers in columns x and y of the rows that have both."""
    pairs = [(float(row[x]), float(row[y])) for row in rows if row.get(x) and row.get(y)]
    return [p[0] for p in pairs], [p[1] for p in pairs]


def smooth(values, width):
    """The mean of each value and those up to `width` before and after it."""
    return [statistics.fmean(values[max(0, i - width):i + width + 1]) for i in range(len(values))]


def name_of(path):
    """What a legend calls a run: its directory, or its file elsewhere than in log.tsv."""
    path = os.path.normpath(path)
    if os.path.basename(path) == "log.tsv":
        path = os.path.dirname(os.path.abspath(path))
    return os.path.basename(path)


def vocabulary(path):
    """The size of the vocabulary of a run's model, or 0 if it is not known."""
    directory = path if os.path.isdir(path) else os.path.dirname(path)
    try:
        return json.load(open(os.path.join(directory, "config.json"))).get("vocab_size", 0)
    except (OSError, ValueError):
        return 0


def plot_pretraining(runs, paths):
    """Training loss, each step pale and smoothed strong, and validation loss as circles. A loss per
    token says nothing about models with different vocabularies: they are compared in bits per byte,
    which only validation has."""
    figure, axis = plt.subplots(figsize=(8, 5))
    vocabularies = {vocabulary(path) for path in paths} - {0}
    for number, (name, content) in enumerate(runs):
        rows, color = table(content), f"C{number}"
        if len(vocabularies) > 1:
            axis.plot(*points(rows, "step", "val_bits_per_byte"), "o--", color=color, linewidth=1,
                      markeredgecolor="black", markersize=5, label=f"{name}: validation")
            continue
        steps, losses = points(rows, "step", "loss")
        axis.plot(steps, losses, color=color, alpha=0.25, linewidth=0.7)
        axis.plot(steps, smooth(losses, len(losses) // 100), color=color, label=f"{name}: training")
        steps, losses = points(rows, "step", "val_loss")
        if steps:
            axis.plot(steps, losses, "o--", color=color, markeredgecolor="black", markersize=5,
                      linewidth=1, label=f"{name}: validation")
    axis.set(xlabel="step", ylabel="bits per byte" if len(vocabularies) > 1
             else "loss (nats per token)")
    return figure, [axis]


def plot_finetuning(runs, x, label):
    """Losses on the left, accuracy on the right. x: the column that runs to the right."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5))
    for number, (name, content) in enumerate(runs):
        rows, color = table(content), f"C{number}"
        left.plot(*points(rows, x, "train_loss"), ".-", color=color, label=f"{name}: training")
        left.plot(*points(rows, x, "val_loss"), "o--", color=color, markersize=4,
                  label=f"{name}: validation")
        right.plot(*points(rows, x, "val_accuracy"), "o-", color=color, markersize=4, label=name)
    left.set(xlabel=label, ylabel="loss (nats per text)")
    right.set(xlabel=label, ylabel="accuracy on validation")
    for axis in (left, right) if x == "l2" else ():     # from the strongest penalty to the weakest
        axis.set_xscale("log")
        axis.invert_xaxis()
    return figure, [left, right]


def student_tail(t, df):
    """The probability that Student's t is at least so far from 0 (finetune_cls.c, student_tail)."""
    df, steps = min(df, 1e4), 400
    a = math.atan(t / math.sqrt(df))
    inside = 1 + math.cos(a) ** (df - 1)
    inside += sum((4 if i % 2 else 2) * math.cos(a * i / steps) ** (df - 1)
                  for i in range(1, steps))
    everything = math.sqrt(math.pi) * math.exp(math.lgamma(df / 2) - math.lgamma((df + 1) / 2))
    return 1 - 2 * inside * a / steps / 3 / everything


def student_quantile(df):
    low, high = 1.9, 12.8
    while high - low > 1e-4:
        low, high = ((low + high) / 2, high) if student_tail((low + high) / 2, df) > 0.05 \
            else (low, (low + high) / 2)
    return low


def interval(rights):
    """Mean and 95% interval of a method with a number of labels, from one string of right answers
    a seed: as finetune_cls.c has it in mean_right and estimate."""
    seeds, texts = len(rights), len(rights[0])
    by_seed = [right.count("1") / texts for right in rights]
    by_text = [column.count("1") / seeds for column in zip(*rights)]
    mean = statistics.fmean(by_seed)
    texts_part = statistics.variance(by_text, mean) / texts if texts > 1 else 0
    seeds_part = statistics.variance(by_seed, mean) / seeds if seeds > 1 else 0
    both, half = texts_part + seeds_part, 0
    if both:
        df = both ** 2 / (texts_part ** 2 / max(texts - 1, 1) + seeds_part ** 2 / max(seeds - 1, 1))
        half = student_quantile(df) * math.sqrt(both)
    zz = 1.959964 ** 2 / texts                  # Wilson's interval of so many texts
    middle, wilson = mean + zz / 2, math.sqrt(zz * (mean * (1 - mean) + zz / 4))
    return (mean, max(0, min(mean - half, (middle - wilson) / (1 + zz))),
            min(1, max(mean + half, (middle + wilson) / (1 + zz))))


def plot_compare(runs):
    """A line for each method: its mean accuracy over the seeds, with intervals."""
    rights = collections.defaultdict(lambda: collections.defaultdict(list))
    for _, content in runs:
        for row in table(content):
            rights[row["method"]][int(row["labels"])].append(row["right"])
    figure, axis = plt.subplots(figsize=(8, 5))
    for number, (method, by_labels) in enumerate(rights.items()):
        labels = sorted(by_labels)
        means, lows, highs = zip(*(interval(by_labels[label]) for label in labels))
        shift = 1.015 ** (number - len(rights) / 2)         # so that intervals do not overlap
        axis.errorbar([label * shift for label in labels], means,
                      [[m - low for m, low in zip(means, lows)],
                       [high - m for m, high in zip(means, highs)]],
                      marker="osv^Dxp*"[number % 8], markersize=5, capsize=3, label=method)
    ticks = sorted({label for by_labels in rights.values() for label in by_labels})
    least = next((label for label in ticks if label > 0), 1)    # 0 labels stand left of it
    axis.set_xscale("symlog", linthresh=least, linscale=0.6)
    axis.set(xlabel="labelled examples", ylabel="accuracy (mean, 95% interval)")
    axis.set_xticks(ticks, labels=ticks)
    axis.minorticks_off()
    return figure, [axis]


def confusion_of(content):
    """Names and counts. Each of K lines has K counts and a name, which may hold spaces."""
    lines = content.decode().split("confusion matrix", 1)[1].split("\n")[1:]
    lines = list(itertools.takewhile(lambda line: re.match(r"( +\d+)+  \S", line), lines))
    if not lines:
        sys.exit("plot.py: no confusion matrix as this finetune_cls prints it. Run eval again.")
    rows = [line.split(None, len(lines)) for line in lines]
    return [row[-1] for row in rows], [[int(cell) for cell in row[:-1]] for row in rows]


def plot_confusion(runs):
    """Counts in a grid, shaded by the part of the true class that they are."""
    figure, axes = plt.subplots(1, len(runs), squeeze=False)
    for axis, (name, content) in zip(axes[0], runs):
        names, counts = confusion_of(content)
        parts = [[count / max(1, sum(row)) for count in row] for row in counts]
        axis.imshow(parts, cmap="Blues", vmin=0, vmax=1)
        for i, row in enumerate(counts):
            for j, count in enumerate(row):
                axis.text(j, i, f"{count}\n{100 * parts[i][j]:.0f}%", ha="center", va="center",
                          color="white" if parts[i][j] > 0.5 else "black")
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axis.set_yticks(range(len(names)), names)
        axis.set(xlabel="predicted", ylabel="true", title=name)
    figure.set_size_inches((2 + 0.8 * len(names)) * len(runs) + 1, 2.5 + 0.8 * len(names))
    return figure, []


def main():
    global plt
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="the picture's name without .svg or .png")
    parser.add_argument("files", nargs="+", metavar="FILE")
    options = parser.parse_args()
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        sys.exit("plot.py: matplotlib is missing. Install it: python3 -m pip install matplotlib")
    plt.switch_backend("Agg")
    found = [read(path) for path in options.files]
    kinds = {kind for kind, _ in found}
    if len(kinds) > 1:
        parser.error(f"one picture shows one kind of file, not {' and '.join(sorted(kinds))}.")
    names = [name_of(path) for path in options.files]
    names = names if len(set(names)) == len(names) else options.files
    runs = [(name, content) for name, (_, content) in zip(names, found)]
    figure, axes = {"pretraining": lambda runs: plot_pretraining(runs, options.files),
                    "compare": plot_compare,
                    "epochs": lambda runs: plot_finetuning(runs, "epoch", "epoch"),
                    "probe": lambda runs: plot_finetuning(runs, "l2", "l2 penalty, falling"),
                    "confusion": plot_confusion}[kinds.pop()](runs)
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.tight_layout()
    if axes:                        # above the picture, where no point is
        figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center",
                      bbox_to_anchor=(0.5, 1), ncols=4, fontsize="small")
    for suffix in ("svg", "png"):
        figure.savefig(f"{options.out}.{suffix}", dpi=120, bbox_inches="tight")
    print(f"{options.out}.svg and {options.out}.png")


if __name__ == "__main__":
    main()
