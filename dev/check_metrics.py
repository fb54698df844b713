"""Compares every score that `finetune_cls eval` prints with scikit-learn's.

    pip install scikit-learn
    python3 dev/check_metrics.py --model CLASSIFIER --data FILE

The labels, predictions and probabilities come from `eval --predictions`. The calibration error, which scikit-learn lacks,
is computed here by its definition, and the interval of the accuracy by scipy. Exit status 1 if anything differs by more
than 1e-6, the last digit that is printed.
"""
import argparse
import os
import subprocess
import sys
import tempfile

import numpy as np
from scipy.stats import binomtest
from sklearn import metrics

HERE = os.path.dirname(os.path.abspath(__file__))


def run(model, data):
    """What eval prints: scores by name, a row of four numbers for each class, and the confusion matrix; then the rows of
    --predictions."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "predictions.tsv")
        command = [os.path.join(HERE, "..", "finetune_cls"), "eval", "--model", model, "--data", data, "--predictions", path]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as f:
            rows = [line.rstrip("\n").split("\t") for line in f]
    lines = output.split("\n")
    table = next(i for i, line in enumerate(lines) if line.startswith("precision "))
    classes = len(rows[0]) - 5
    scores = dict(line.split(" ") for line in lines[:table])
    per_class = [line.split(None, 4)[:4] for line in lines[table + 1:table + 1 + classes]]
    matrix = [line.split()[:classes] for line in lines[table + 2 + classes:] if line]
    return scores, per_class, matrix, rows


def calibration_error(probabilities, truth):
    """15 bins of equal width by the probability of the predicted class; |sum of (right - probability)| of each."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    bins = np.minimum((confidence * 15).astype(int), 14)
    return sum(abs((right - confidence)[bins == b].sum()) for b in range(15)) / len(truth)


def expected(names, truth, predicted, p):
    """The scores by name, and the arguments of every one as scikit-learn wants them."""
    right, n = int((truth == predicted).sum()), len(truth)
    interval = binomtest(right, n).proportion_ci(0.95, "wilson")
    scores = {
        "accuracy": metrics.accuracy_score(truth, predicted),
        "accuracy_low": interval.low,
        "accuracy_high": interval.high,
        "macro_f1": metrics.f1_score(truth, predicted, average="macro", zero_division=0),
        "loss": metrics.log_loss(truth, p / p.sum(axis=1, keepdims=True), labels=range(len(names))),
        "ece": calibration_error(p, truth),
        "examples": n,
        "majority": np.bincount(truth).max() / n,
    }
    if len(names) == 2:
        scores["auc"] = metrics.roc_auc_score(truth, p[:, 1])
        scores["mcc"] = metrics.matthews_corrcoef(truth, predicted)
    return scores


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    args = parser.parse_args()
    printed, per_class, matrix, rows = run(args.model, args.data)
    names = [name[2:] for name in rows[0][4:-1]]
    truth = np.array([names.index(row[1]) for row in rows[1:]])
    predicted = np.array([names.index(row[2]) for row in rows[1:]])
    p = np.array([row[4:-1] for row in rows[1:]], dtype=np.float64)
    wanted = expected(names, truth, predicted, p)
    if list(wanted) != list(printed):
        sys.exit(f"eval prints {list(printed)}, expected were {list(wanted)}")
    worst = 0
    for name, value in wanted.items():
        difference = abs(float(printed[name]) - value)
        worst = max(worst, difference)
        print(f"{name:18s} eval {printed[name]:>12s}  here {value:.8f}  difference {difference:.1e}")
    table = np.array(metrics.precision_recall_fscore_support(truth, predicted, labels=range(len(names)), zero_division=0)).T
    difference = abs(table - np.array(per_class, dtype=float)).max()
    print(f"{len(names)} classes: precision, recall, F1, examples: largest difference {difference:.1e}")
    worst = max(worst, difference)
    if matrix:
        difference = abs(metrics.confusion_matrix(truth, predicted, labels=range(len(names))) - np.array(matrix, dtype=int)).max()
        print(f"confusion matrix: largest difference {difference}")
        worst = max(worst, difference)
    sys.exit(int(worst > 1e-6))


if __name__ == "__main__":
    main()
