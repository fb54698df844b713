#!/usr/bin/env python3
"""Does what a machine does to the three programs on its worst days, and checks what is left.

    make
    nice python3 dev/torture.py [--count 1000] [--seed 1] [--kind KIND] [--case CASE] [--fault N]
    nice python3 dev/torture.py --every rename      SIGKILL before each name that is given

Linux, strace; as root also disks that are full or read-only. A fault is one of these, at random:

    kill         SIGKILL, SIGTERM or SIGINT at some moment of the run
    signal       one of them at some system call (strace -e inject=CALL:signal=...:when=N)
    error        some system call fails, at every kind of call that the program makes
    disk full    a file system with a few pages, or a few files, to spare
    read-only    a file system or a directory in which nothing can be written
    file size    ulimit -f
    few files    ulimit -n
    stdout       /dev/full, closed, or a pipe that nobody reads
    stderr       the same

It meets one of the commands of CASES, with inputs and models so small that a run takes 50 ms. Then:

 1. The command ended by itself, with the status 0, or 1 or 2 and a sentence that names the place of
    the fault, or as a signal ends it. With 0, all is as without the fault, what it printed included.
    With 1 or 2, or after SIGINT or SIGTERM, no temporary file is left.
 2. Every reader of what is on disk answers as it did before the command, or as it does when a
    command has just saved, in a directory that held nothing before; or it refuses, with a sentence,
    or says that a shard is missing.
    Unless the fault struck between two names, not all refuse. A command that refuses to replace
    what is there has changed nothing.
 3. The command again (with --resume or --overwrite), which in a third of the cases meets a fault
    itself, and then once more without one, ends with the bytes of the undisturbed run. Only columns
    of time may differ. Nothing else is left, and no temporary file.

Prints a line for each kind of fault and `N faults, M differ`; the exit status is 1 if any does. What
differs is kept in --keep, a directory for each, with the state before and after and the command that
repeats it.
"""
import argparse
import collections
import glob
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SIGNALS = {"KILL": 137, "TERM": 143, "INT": 130}
ENDS = {0, 1, 2, 141, *SIGNALS.values()}        # statuses that a program may end with
TIMEOUT = 60
UNFINISHED = ".unfinished"                      # what a temporary name ends with

# What may go wrong with a system call. An answer that is not an error but a lie, such as ENOENT for
# a file that is there, is not among these: no program can notice it.
ERRORS = {
    "access": "EIO EACCES", "faccessat": "EIO EACCES", "faccessat2": "EIO EACCES",
    "openat": "EACCES EIO EMFILE ENOSPC EINTR", "open": "EACCES EIO EMFILE ENOSPC EINTR",
    "newfstatat": "EIO EACCES", "stat": "EIO EACCES", "fstat": "EIO", "statx": "EIO",
    "read": "EIO EINTR", "pread64": "EIO EINTR", "getdents64": "EIO", "mmap": "ENOMEM", "lseek": "EIO",
    "write": "ENOSPC EIO EINTR", "writev": "ENOSPC EIO EINTR", "fsync": "EIO ENOSPC EINTR",
    "close": "EIO ENOSPC", "rename": "EIO ENOSPC EACCES", "unlink": "EIO EACCES",
    "mkdir": "ENOSPC EACCES EIO", "rmdir": "EIO", "truncate": "EIO", "ftruncate": "EIO",
    "flock": "ENOLCK EINTR EAGAIN", "ioctl": "EIO"}

# --- Inputs: two of everything, "old" and "new" ---

WORDS = {"old": ("good fine great lovely", "bad poor awful dull", "pos neg"),
         "new": ("prize win cash free", "meet home later lunch", "spam ham")}
SIZES = ("--lr 1e-3 --dropout 0 --layers 2 --heads 2 --channels 16 --context 16 --batch 2 --threads 1 --eval-every 2 "
         "--save-every 3")
TUNING = "--val ../in/val_{0}.tsv --threads 1 --batch 4"


def write_texts(name):
    """NAME.txt to pretrain on, NAME.tsv and val_NAME.tsv with labels."""
    good, bad, labels = (part.split() for part in WORDS[name])
    r = random.Random(name)
    rows = []
    for i in range(24):
        word = r.choice((good, bad)[i % 2])
        rows.append(f"{r.choice(['a', 'the', 'this'])} {word} {r.choice(['film', 'story', 'day'])} {i}"
                    f"\t{labels[i % 2]}\n")
    with open(f"in/{name}.txt", "w") as f:
        f.writelines(row.split("\t")[0] + "\n" for row in rows)
    for path, part in ((f"in/{name}.tsv", rows[:16]), (f"in/val_{name}.tsv", rows[16:])):
        with open(path, "w") as f:
            f.writelines(["text\tlabel\n"] + part)


def pretrain(name, out):
    return (f"train_gpt train --data ../in/{name}_0*.bin --val ../in/val_{name}_000000.bin "
            f"--tokenizer ../in/tok_{name} --out {out} {SIZES}")


def tune(name, out):
    return (f"finetune_cls train --model ../in/base_{name} --train ../in/{name}.tsv --out {out} "
            + TUNING.format(name))


def inputs(name):
    """The commands that make them, in ROOT/w."""
    small = "--min-frequency 1 --threads 1"
    return [f"tokenizer train --vocab 275 {small} --out ../in/tok_{name} ../in/{name}.txt",
            f"tokenizer encode --tokenizer ../in/tok_{name} --split lines --val-fraction 0.3 --threads 1 "
            f"--shard-tokens 60 --out ../in/{name} ../in/{name}.txt",
            pretrain(name, f"../in/base_{name}") + " --steps 4",
            tune(name, f"../in/cls_{name}") + " --steps 12"]


# --- Commands, and who reads what they write ---

Case = collections.namedtuple("Case", "name command before again readers", defaults=([], None, []))

READ_TOKENIZER = ["tokenizer ids --tokenizer out <../in/new.txt", "tokenizer show --tokenizer out film"]
READ_SHARDS = ["tokenizer decode --tokenizer ../in/tok_old out/s_0*.bin",
               "tokenizer decode --tokenizer ../in/tok_new out/s_0*.bin",
               "train_gpt eval --threads 1 --model ../in/base_old --data out/s_0*.bin",
               "train_gpt eval --threads 1 --model ../in/base_new --data out/s_0*.bin"]
READ_RUN = [f"train_gpt {what} --threads 1 --model {model} {rest}" for model in ("out", "out/last")
            for what, rest in (("eval", "--data ../in/old_0*.bin"), ("eval", "--data ../in/new_0*.bin"),
                               ("sample", "--prompt film --tokens 8"))]
READ_CLASSIFIER = [f"finetune_cls predict --threads 1 --model out --all --data ../in/val_{name}.tsv"
                   for name in ("old", "new")]


def encode(name, rest):
    return (f"tokenizer encode --tokenizer ../in/tok_{name} --split lines --threads 1 --out out/s {rest} "
            f"../in/{name}.txt")


def cases():
    steps, more = " --steps 6", " --cut documents --accumulate 2 --dropout 0.1 --steps 6"
    many = "finetune_cls compare --model ../in/base_new --train ../in/new.tsv --test ../in/val_new.tsv " \
           "--methods majority,nb,probe,full --labels 8,all --seeds 2 --steps 3 --threads 1 --out out"
    predictions = "finetune_cls eval --threads 1 --model ../in/cls_{0} --data ../in/val_{0}.tsv " \
                  "--predictions out.tsv"
    new_tokenizer = "tokenizer train --vocab 275 --min-frequency 1 --threads 1 --out out ../in/new.txt"
    all_cases = [
        Case("tokenizer", new_tokenizer, again="--overwrite", readers=READ_TOKENIZER),
        Case("tokenizer --overwrite", new_tokenizer + " --overwrite",
             [new_tokenizer.replace("new.txt", "old.txt")], readers=READ_TOKENIZER),
        Case("tokenizer refused", new_tokenizer, [new_tokenizer.replace("new.txt", "old.txt")],
             readers=READ_TOKENIZER),
        Case("encode", encode("new", "--shard-tokens 40"), again="--overwrite", readers=READ_SHARDS),
        Case("encode --overwrite", encode("new", "--shard-tokens 60 --overwrite"),
             [encode("old", "--shard-tokens 40")], readers=READ_SHARDS),
        Case("encode refused", encode("new", "--shard-tokens 30"), [encode("old", "--shard-tokens 40")],
             readers=READ_SHARDS),
        Case("encode more", encode("old", "--shard-tokens 30 --val-fraction 0.3 --overwrite"),
             [encode("old", "--shard-tokens 60")], readers=READ_SHARDS),
        Case("train", pretrain("new", "out") + steps, again="--resume", readers=READ_RUN),
        Case("train documents", pretrain("new", "out") + more, again="--resume", readers=READ_RUN),
        Case("train --overwrite", pretrain("new", "out") + steps + " --overwrite",
             [pretrain("old", "out") + steps], readers=READ_RUN),
        Case("train --resume", "train_gpt train --resume --threads 1 --out out --steps 6",
             [pretrain("new", "out") + " --steps 3"], readers=READ_RUN),
        Case("train refused", pretrain("new", "out") + steps, [pretrain("old", "out") + steps],
             readers=READ_RUN),
        Case("train beside", pretrain("new", "out") + steps, [new_tokenizer.replace("new.txt", "old.txt")],
             readers=READ_TOKENIZER),
        Case("compare", many, again="--resume"),
        Case("compare refused", many, [many.replace("new", "old")]),
        Case("compare --resume", many + " --resume", ["TERM write 12: " + many]),
        Case("compare --overwrite", many + " --overwrite", [many.replace("new", "old")]),
        Case("predictions", predictions.format("new"), readers=["cat out.tsv"]),
        Case("predictions again", predictions.format("new"), [predictions.format("old")],
             readers=["cat out.tsv"]),
        Case("reading", "finetune_cls predict --threads 1 --all --model ../in/cls_new "
             "--data ../in/val_new.tsv"),
        Case("reading shards", "train_gpt eval --threads 1 --model ../in/base_new --data ../in/new_0*.bin"),
        Case("reading ids", "tokenizer ids --tokenizer ../in/tok_new <../in/new.txt")]
    for how, rest in (("full", " --steps 12"), ("last:1", " --tune last:1 --average 0 --steps 12"),
                      ("probe", " --tune probe")):
        fresh, old = tune("new", "out") + rest, tune("old", "out") + rest
        if how != "full":                   # then only config.json and the weights are others
            old = old.replace("base_old", "base_new")
        all_cases += [
            Case(how, fresh, again="--resume", readers=READ_CLASSIFIER),
            Case(how + " --resume", fresh + " --resume",
                 [] if how == "probe" else ["TERM write 40: " + fresh], readers=READ_CLASSIFIER),
            Case(how + " refused", fresh, [old], readers=READ_CLASSIFIER),
            Case(how + " --overwrite", fresh + " --overwrite", [old], readers=READ_CLASSIFIER)]
    return all_cases


# --- Running a command, perhaps with a fault ---

Fault = collections.namedtuple("Fault", "kind what call when where", defaults=(None, 0, None))
Result = collections.namedtuple("Result", "status out err seconds")


def words_of(command):
    """The arguments as the shell would pass them, except that only our * is left to the program."""
    command, _, source = command.strip().partition(" <")
    words = shlex.split(command)
    if words[0] == "tokenizer":         # which takes files, not a pattern
        words = [w for word in words for w in (sorted(glob.glob(word)) or [word])]
    if words[0] in ("tokenizer", "train_gpt", "finetune_cls"):
        words[0] = os.path.join(HERE, words[0])
    return words, open(source) if source else subprocess.DEVNULL


def traced(fault):
    """strace with the fault: an error of the fault's call, or a signal at it."""
    what = fault.what if "=" in fault.what else "error=" + fault.what
    return ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + fault.call,
            "-e", f"inject={fault.call}:{what}:when={fault.when}"]


def broken_stream(where):
    """A descriptor that cannot be written to."""
    if where == "full":
        return os.open("/dev/full", os.O_WRONLY)
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def limits(fault):
    """What the new process does before it becomes the program."""
    def apply():
        number = {"stdout": 1, "stderr": 2}.get(fault.kind)
        if number and fault.where == "closed":
            os.close(number)
        elif number:
            os.dup2(broken_stream(fault.where), number)
        elif fault.kind == "file size":
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault.when, fault.when))
        elif fault.kind == "few files":
            resource.setrlimit(resource.RLIMIT_NOFILE, (fault.when, fault.when))
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)       # as a shell starts a program
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    return apply


def run(command, fault=Fault("none", "")):
    words, source = words_of(command)
    if fault.call:
        words = traced(fault) + words
    start = time.time()
    p = subprocess.Popen(words, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         preexec_fn=limits(fault))
    try:
        if fault.kind == "kill":
            try:
                p.wait(fault.when)
            except subprocess.TimeoutExpired:
                p.send_signal(getattr(signal, "SIG" + fault.what))
        out, err = p.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        p.kill()
        out, err = p.communicate()
        err += b"\nno end after %d s" % TIMEOUT
    status = p.returncode if p.returncode >= 0 else 128 - p.returncode
    if source is not subprocess.DEVNULL:
        source.close()
    return Result(status, out, err.decode(errors="replace"), time.time() - start)


def has_sentence(result, command):
    """Whether the last thing said is a sentence of the program that names a file, option or place."""
    lines = [line for line in result.err.split("\n") if line]
    return bool(lines) and re.match(
        re.escape(command.split()[0]) + r": .*(\S/\S|--\w|\.(tsv|bin|txt|json|safetensors)\b|memory|"
        r"\bout\b|standard (in|out)put)", lines[-1]) is not None


# --- The directory of the command, ROOT/w ---

def mounted(*options):
    return not subprocess.run(["mount", *options], stderr=subprocess.DEVNULL).returncode


def mount_again(options):
    """Undoes a fault; a mount that fails must not look like a fault of the commands that follow."""
    for _ in range(100):
        if mounted("-o", "remount," + options, "w", os.getcwd()):
            return
        time.sleep(0.1)
    sys.exit(f"mount -o remount,{options} {os.getcwd()}: failed a hundred times. Run again.")


def used_pages():
    s = os.statvfs(".")
    return s.f_blocks - s.f_bfree, s.f_files - s.f_ffree


def run_in_place(command, fault):
    """run(), in a file system that is full or read-only if the fault is that."""
    if fault.kind == "disk full":
        pages, files = used_pages()
        limit = f"size={(pages + fault.when) * 4096}" if fault.where == "pages" else \
                f"nr_inodes={files + fault.when}"
        mounted("-o", "remount," + limit, "w", os.getcwd())
        result = run(command)
        mount_again("size=64m,nr_inodes=100000")
    elif fault.kind == "read-only":
        mounted("-o", "remount,ro", "w", os.getcwd())
        result = run(command)
        mount_again("rw")
    else:
        result = run(command, fault)
    return result


def empty():
    for name in os.listdir("."):
        if os.path.isdir(name):
            shutil.rmtree(name)
        else:
            os.unlink(name)


def restore(tree):
    empty()
    for path, data in tree.items():
        if data is None:
            os.makedirs(path, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            with open(path, "wb") as f:
                f.write(data)


def read_tree():
    """Path -> bytes of every file, path -> None of every directory."""
    tree = {}
    for directory, names, files in os.walk("."):
        for name in names:
            tree[os.path.normpath(os.path.join(directory, name))] = None
        for name in files:
            path = os.path.normpath(os.path.join(directory, name))
            with open(path, "rb") as f:
                tree[path] = f.read()
    return tree


def without_times(tree):
    """The tree without the columns of time in its logs."""
    tree = dict(tree)
    for path, data in tree.items():
        if os.path.basename(path) in ("log.tsv", "compare.tsv") and data:
            rows = [row.split(b"\t") for row in data.split(b"\n")]
            tree[path] = [[x for i, x in enumerate(row) if i >= len(rows[0]) or
                           rows[0][i] not in (b"seconds", b"tokens_per_second")] for row in rows]
    return tree


def difference(tree, wanted):
    a, b = without_times(tree), without_times(wanted)
    return " ".join(sorted(p for p in a.keys() | b.keys() if p not in a or p not in b or a[p] != b[p]))


# --- An undisturbed run of a case: what it calls, what it leaves, and what its readers say ---

class Undisturbed:
    def __init__(self, case):
        empty()
        for command in case.before:
            fault = Fault("none", "")
            if ": " in command:
                fault, command = command.split(": ", 1)
                name, call, when = fault.split()
                fault = Fault("signal", "signal=" + name, call, int(when))
            result = run(command, fault)
            if result.status != (SIGNALS[name] if fault.call else 0):
                sys.exit(f"{command}: status {result.status}\n{result.err}")
        self.case, self.before = case, read_tree()
        self.calls, self.first, _ = trace(case.command)
        self.after = read_tree()
        restore(self.before)
        plain = run(case.command)
        self.status, self.seconds, self.out = plain.status, plain.seconds, plain.out
        wrong = self.status not in (1, 2) or difference(self.before, self.after) if self.refuses() \
            else self.status
        if wrong or difference(read_tree(), self.after):
            sys.exit(f"{case.command}: not the same twice: {plain} "
                     f"{difference(read_tree(), self.after)}")
        self.answers = [set() for _ in case.readers]
        self.note_answers(self.before)
        self.answered = any(self.answers)
        self.note_answers(self.after)
        start = self.before
        command = case.command.replace("--save-every 3", "--save-every 1")  # a signal stops anywhere
        if "train --resume" in command:
            command += " --save-every 1"
        if "--overwrite" in command:        # as if nothing had been there before
            start = {}
        restore(start)
        for call, when in trace(command)[2]:
            restore(start)
            run(command, Fault("signal", "signal=KILL", call, when))
            self.note_answers(read_tree())

    def refuses(self):
        return self.case.name.endswith(("refused", "beside"))

    def note_answers(self, tree):
        restore(tree)
        for answers, reader in zip(self.answers, self.case.readers):
            result = run(reader)
            if result.status == 0:
                answers.add(result.out)


def trace(command):
    """How often the command makes each call, how often before its main function begins, and the
    calls that follow directly on renames: there, a group of files has its names."""
    with tempfile.NamedTemporaryFile("r") as log:
        words, source = words_of(command)
        subprocess.run(["strace", "-f", "-qq", "-o", log.name] + words, stdin=source,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lines = log.read().split("\n")
    calls, first, commits, last = collections.Counter(), None, [], ""
    for line in lines:
        call = re.match(r"\d+ +(\w+)\(", line)
        if not call:
            continue
        if "F_GETFD" in line and first is None:
            first = collections.Counter(calls)
        calls[call[1]] += 1
        if last == "rename" != call[1]:
            commits.append((call[1], calls[call[1]]))
        last = call[1]
    return calls, first, commits


# --- Faults ---

def kinds():
    shared = ["kill"] * 4 + ["signal"] * 8 + ["error"] * 12 + ["file size", "few files", "stdout", "stderr"]
    return shared + ["disk full"] * 3 + ["read-only"] if os.getuid() == 0 else shared


def draw_fault(r, kind, u):
    """A fault of this kind for the case u. Calls before main are the C library's affair. Rare calls
    are met as often as common ones."""
    if kind == "kill":
        return Fault(kind, r.choice(list(SIGNALS)), None, r.uniform(0, 1.2 * u.seconds))
    if kind in ("signal", "error"):
        call = r.choice([c for c in sorted(u.calls) if u.calls[c] > u.first[c] and ERRORS.get(c)])
        when = r.randint(u.first[call] + 1, u.calls[call])
        what = r.choice(ERRORS[call].split()) if kind == "error" else \
            "signal=" + r.choice(list(SIGNALS))
        return Fault(kind, what, call, when)
    if kind == "disk full":
        where = r.choice(["pages", "files"])
        return Fault(kind, "", None, r.randint(0, 60 if where == "pages" else 20), where)
    if kind == "file size":
        return Fault(kind, "", None, int(2 ** r.uniform(0, 18)))
    if kind == "few files":
        return Fault(kind, "", None, r.randint(4, 9))
    return Fault(kind, "", None, 0, r.choice(["full", "closed", "pipe"]))


def judge(u, command, fault, result, earlier):
    """What is wrong with how the command ended, and with what it left. earlier: the tree before."""
    wrong, tree = [], read_tree()
    temporary = [path for path in tree if path.endswith(UNFINISHED)]
    said = has_sentence(result, command) or fault.kind == "stderr" or (
        fault.call in ("write", "writev") and (u.refuses() or not result.err))
    if result.status not in ENDS:
        wrong.append(f"status {result.status}")
    elif result.status in (1, 2) and not said:
        wrong.append(f"status {result.status} without a sentence")
    elif result.status in SIGNALS.values() and "kill" not in fault.kind and fault.kind != "signal":
        wrong.append(f"status {result.status} without a signal")
    elif result.status == 0 and difference(tree, u.after):
        wrong.append("status 0, but different: " + difference(tree, u.after))
    elif result.status == 0 and result.out != u.out and fault.kind != "stdout" \
            and "compare" not in command and "train" not in command:
        wrong.append("status 0, but it printed something else")
    others = fault.call == "flock" and fault.what == "EAGAIN"       # then the file is another writer's
    if set(temporary) - earlier.keys() and result.status != SIGNALS["KILL"] and fault.call != "unlink" \
            and not others:
        wrong.append("left " + " ".join(temporary))
    kept = {path: data for path, data in tree.items() if path not in temporary}
    if u.refuses() and difference(kept, u.before):
        wrong.append("changed " + difference(kept, u.before))
    return wrong


def judge_readers(u):
    """What is wrong with what readers say now, and whether one of them has an answer."""
    wrong, answered = [], False
    for reader, answers in zip(u.case.readers, u.answers):
        answer = run(reader)
        answered = answered or answer.status == 0
        if answer.status == 0 and answer.out not in answers and "is missing; " not in answer.err:
            wrong.append(f"wrong answer: {reader}")
        elif answer.status and not (reader.startswith("cat") or (answer.status in (1, 2)
                                                                 and has_sentence(answer, reader))):
            wrong.append(f"status {answer.status}: {reader}: {answer.err[-300:]}")
    return wrong, answered


def torture(u, number, options):
    """The case with one or two faults. Returns the fault, its result and what is wrong."""
    r = random.Random(f"{options.seed} {number}")
    kind = r.choice([k for k in kinds() if options.kind in (None, k)])
    restore(u.before)
    command, again = u.case.command, u.case.command + " " + (u.case.again or "")
    fault = draw_fault(r, kind, u)
    if options.every:
        fault = Fault("signal", "signal=KILL", options.every, number)
    result = run_in_place(command, fault)
    steps = [(command, fault, result, read_tree())]
    wrong = judge(u, command, fault, result, u.before)
    refused, answered = judge_readers(u)
    wrong += refused
    if u.answered and not answered and fault.call not in ("rename", "unlink") and result.status in (0, 1, 2):
        wrong.append("nothing can be read any more")
    if r.random() < 1 / 3:
        second = draw_fault(r, r.choice(["kill", "signal", "error"]), u)
        other = run_in_place(again, second)
        steps.append((again, second, other, read_tree()))
        wrong += judge(u, again, second, other, steps[0][3]) + judge_readers(u)[0]
    last = run(again)
    tree = read_tree()
    steps.append((again, Fault("none", ""), last, tree))
    if last.status != u.status:
        wrong.append(f"again: status {last.status}: {last.err[-300:]}")
    elif difference(tree, u.after):
        wrong.append("again: different: " + difference(tree, u.after))
    return fault, result, wrong, steps


def keep(u, number, options, wrong, steps):
    """Writes down what differs, and how to see it again."""
    at = os.path.join(options.keep, f"{options.seed}_{u.case.name.replace(' ', '_')}_{number}")
    shutil.rmtree(at, ignore_errors=True)
    os.makedirs(at)
    with open(os.path.join(at, "what.txt"), "w") as f:
        more = "".join(f" --{name} {shlex.quote(value)}" for name, value in
                       (("kind", options.kind), ("every", options.every), ("case", u.case.name)) if value)
        f.write(f"python3 dev/torture.py --seed {options.seed} --fault {number}{more}\n\n")
        for command, fault, result, _ in steps:
            strace = " ".join(traced(fault)) + " " if fault.call else ""
            f.write(f"{fault}\n{strace}{command}\nstatus {result.status}\n{result.err}\n\n")
        f.write("\n".join(wrong) + "\n")
    here = os.getcwd()
    for name, tree in [("before", u.before)] + [(f"step_{i + 1}", s[3]) for i, s in enumerate(steps)]:
        os.makedirs(os.path.join(at, name))
        os.chdir(os.path.join(at, name))
        restore(tree)
        os.chdir(here)


def torture_all(options, chosen):
    """Every case in turn, with its part of the faults."""
    faults, differ, ends = collections.Counter(), collections.Counter(), {}
    for i, case in enumerate(chosen):
        start, before = time.time(), sum(differ.values())
        numbers = range(i, options.count, len(chosen)) if options.fault is None else [options.fault]
        u = Undisturbed(case) if numbers else None
        if options.every and options.fault is None:
            numbers = range(u.first[options.every] + 1, u.calls[options.every] + 1)
        for number in numbers:
            fault, result, wrong, steps = torture(u, number, options)
            faults[fault.kind] += 1
            ends.setdefault(fault.kind, collections.Counter())[result.status] += 1
            differ[fault.kind] += bool(wrong)
            if wrong:
                keep(u, number, options, wrong, steps)
                print(f"FAIL {number} {case.name}: {fault}: {'; '.join(wrong)}", flush=True)
        print(f"{case.name}: {len(numbers)} faults, {sum(differ.values()) - before} differ, "
              f"{time.time() - start:.0f} s", flush=True)
    for kind in faults:
        statuses = ", ".join(f"{n} x status {s}" for s, n in sorted(ends[kind].items()))
        print(f"{kind:10} {faults[kind]:5} faults, {differ[kind]} differ ({statuses})")
    print(f"{sum(faults.values())} faults, {sum(differ.values())} differ")
    return 1 if sum(differ.values()) else 0


def main():
    names = [c.name for c in cases()]
    p = argparse.ArgumentParser(description="Faults for the programs; see the head of this file.")
    p.add_argument("--count", type=int, default=1000, help="faults in all")
    p.add_argument("--seed", default="1", help="other faults")
    p.add_argument("--kind", choices=sorted(set(kinds())), help="only faults of this kind")
    p.add_argument("--case", choices=names, help="only this command")
    p.add_argument("--every", metavar="CALL", help="instead: SIGKILL before each CALL of each command")
    p.add_argument("--fault", type=int, help="only this one, again")
    p.add_argument("--keep", default="out/torture", help="directory for what differs")
    options = p.parse_args()
    options.keep = os.path.abspath(options.keep)
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive", LC_ALL="C")
    root = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    os.chdir(root)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))       # and so cleans up
    os.mkdir("w")
    os.mkdir("in")
    mount = os.getuid() == 0 and mounted("-t", "tmpfs", "-o", "size=64m,nr_inodes=100000", "w", "w")
    if not mount:
        print("disk full, read-only: skipped, since nothing can be mounted here")
        globals()["kinds"] = lambda k=kinds(): [x for x in k if x not in ("disk full", "read-only")]
    try:
        for name in WORDS:
            write_texts(name)
        os.chdir("w")
        for command in inputs("old") + inputs("new"):
            result = run(command)
            if result.status:
                sys.exit(f"{command}: status {result.status}\n{result.err}")
        status = torture_all(options, [c for c in cases() if options.case in (None, c.name)])
    finally:
        os.chdir("/")
        if mount:
            subprocess.run(["umount", "-l", os.path.join(root, "w")])
        shutil.rmtree(root)
    sys.exit(status)


if __name__ == "__main__":
    main()
