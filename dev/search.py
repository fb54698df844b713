#!/usr/bin/env python3
"""Is what train_gpt chooses within 2% of the best? Runs of TIME: as it chooses, and with changes.

    python3 dev/search.py TRAIN.txt VAL.txt OUT 3m '' 'dropout 0' 'vocab 1024 context 64' ...
    sort -g OUT/results.tsv                                       # best bits per byte first

A change is options of train_gpt without hyphens, and `vocab` of tokenizer; what it does not name, of ''
all, is chosen by the rules. Each run has as many steps as two threads make in TIME, which its first
seconds tell on a machine that does nothing else, and the schedule of a run with --time-limit. With
these steps the runs then come in pairs, of one thread each: that is quicker, and the threads do not
change the weights. A call goes on where the last one stopped. SPLIT=lines is tokenizer's --split.
"""
import json, os, re, signal, subprocess, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MEASURE, TIMES = 24, 2                                              # seconds, how often


def shards(train, val, directory, vocab):
    """The tokenizer and the shards of a vocabulary, written once."""
    done, split = directory / "done", ["--split", os.environ.get("SPLIT", "file")]
    if not done.exists():
        tokenizer = directory / "tokenizer"
        subprocess.run(["./tokenizer", "train", "--vocab", vocab, "--out", tokenizer, "--overwrite", *split, train], check=True)
        for name, text in ("train", train), ("val", val):
            subprocess.run(["./tokenizer", "encode", "--tokenizer", tokenizer, "--out", directory / name, "--overwrite", *split, text], check=True)
        done.touch()
    return ["--data", f"{directory}/train_0*.bin", "--val", f"{directory}/val_0*.bin", "--tokenizer", directory / "tokenizer"]


def rows(run):
    """log.tsv as dictionaries, one for each step."""
    lines = [line.split("\t") for line in (run / "log.tsv").read_text().splitlines()]
    return [dict(zip(lines[0], line)) for line in lines[1:]]


def steps_a_second(seconds):
    """A high quantile of the speed in a second, since other work on the machine comes and goes."""
    speeds, last = [0.0], 0
    for first, begin in enumerate(seconds):
        while last < len(seconds) and seconds[last] < begin + 1:
            last += 1
        if last < len(seconds):
            speeds.append((last - first) / (seconds[last] - begin))
    return sorted(speeds)[len(speeds) * 9 // 10]


def measure(data, options, run, limit):
    """Begins a run of TIME. Returns the options that it chose, and its steps if it kept its pace."""
    command = ["./train_gpt", "train", *data, "--out", run, "--time-limit", limit, "--eval-tokens", "0", "--overwrite", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    threading.Timer(MEASURE, process.send_signal, [signal.SIGTERM]).start()
    said = process.communicate()[1]
    if process.returncode in (1, 2):
        sys.exit(said)
    chosen = re.search(": chosen(.*)", said)
    pace = steps_a_second([float(row["seconds"]) for row in rows(run)][5:])
    if not pace:
        sys.exit(f"{run}: no whole second of steps in {MEASURE} seconds. Make MEASURE larger.")
    return chosen[1].split() if chosen else [], pace * float(limit[:-1]) * {"s": 1, "m": 60, "h": 3600}[limit[-1]]


def main():
    train, val, out, limit, *changes = sys.argv[1:]
    out, jobs = Path(out), []
    for change in changes:
        words = change.split()
        given = dict(zip(words[::2], words[1::2]))
        vocab = given.pop("vocab", "auto")
        run = out / (change.replace(" ", "-") or "chosen")
        data = shards(train, val, out / f"vocab-{vocab}", vocab)
        options = [text for name, value in given.items() for text in (f"--{name}", value)]
        jobs.append((run, data, options))
    for run, data, options in TIMES * jobs:
        note = run.parent / (run.name + ".options")
        before = json.loads(note.read_text()) if note.exists() else []
        if len(before) < TIMES:                                     # the first decides what is chosen
            chosen, steps = measure(data, (before[0][0] if before else []) + options, run.parent / (run.name + ".start"), limit)
            note.write_text(json.dumps([*before, (chosen, steps)]))

    def go(job):
        run, data, given = job
        measured = json.loads((run.parent / (run.name + ".options")).read_text())
        chosen, steps = measured[0][0], max(steps for _, steps in measured)
        options = ["--steps", str(round(steps)), *chosen, *given]
        if "--schedule" not in given: options += ["--schedule", "wsd"]
        subprocess.run(["./train_gpt", "train", *data, "--out", run, "--eval-tokens", "0", "--eval-every", "1000000",
                        "--threads", "1", *options, *(["--resume"] if run.exists() else [])], check=True, stderr=open(run.parent / (run.name + ".log"), "a"))
        return run.name, rows(run)[-1]["val_bits_per_byte"], " ".join(options)

    with ThreadPoolExecutor(2) as pool, open(out / "results.tsv", "a") as table:
        for name, bits, options in pool.map(go, jobs):
            print(bits, name, options, sep="\t", file=table, flush=True)


main()
