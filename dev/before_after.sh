#!/bin/sh
# before_after.sh BEFORE AFTER [OUT [FOLDER]]: does a change of the code change what comes out?
# Runs the programs of two built checkouts on the same small inputs, and compares byte for byte what
# they write and print; with FOLDER also on its files, as labelled examples, as texts to classify and
# as texts to learn a vocabulary from. About a minute on two cores; needs python3.
#
#     dev/before_after.sh ../before . out/before_after ../cases
#
# Prints a line for each command: "same", or "differ" and what: a status, lines printed, files, tensors,
# keys of metadata, columns of a table. What depends on time is left out. What programs say on stderr may
# change; with FOLDER it is shown, as "says", and not counted. Status: 1 if anything differs. All
# that was compared stays in OUT/before and OUT/after: NAME.out, NAME.err, NAME.status, directories.

[ $# -ge 2 ] || { sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2; }
before=$(cd "$1" && pwd) && after=$(cd "$2" && pwd) || exit 2
out=${3:-out/before_after}
folder=${4:+$(cd "$4" && pwd)}
rm -rf "$out"
mkdir -p "$out/before" "$out/after" || exit 2
out=$(cd "$out" && pwd)
export OMP_NUM_THREADS=1 LC_ALL=C

# Runs a program of $side; what is said of it bears the name.
run() # NAME PROGRAM ARGUMENT...
{
    name=$1 program=$2
    shift 2
    echo "$name" >>order
    "$side/$program" "$@" >"$name.out" 2>"$name.err" </dev/null
    echo $? >"$name.status"
}

# The same, ended by a signal when the journal has 20 rows or an epoch has been shown. SIGTERM is
# what SIGINT is to the programs; a shell lets what runs behind it ignore the latter.
stopped() # NAME PROGRAM ARGUMENT...
{
    name=$1 program=$2
    shift 2
    echo "$name" >>order
    "$side/$program" "$@" >"$name.out" 2>"$name.err" </dev/null &
    pid=$!
    tries=0
    until [ "$(cat "$name"/log.tsv* 2>/dev/null | wc -l)" -gt 20 ] || grep -q '^epoch ' "$name.err" ||
        [ $tries -eq 500 ]; do sleep 0.02; tries=$((tries + 1)); done
    kill -TERM $pid
    wait $pid
    echo $? >"$name.status"             # 143, so that a run that was not stopped is seen
}

pretrain() # NAME OPTION...
{
    name=$1
    shift
    run "$name" train_gpt train --data 'shards_0*.bin' --val '*val_*.bin' --tokenizer tok --out "$name" \
        --lr 1e-3 --dropout 0 --layers 2 --heads 2 --channels 32 --context 64 --batch 3 --eval-every 20 --save-every 25 "$@"
}

tune() # NAME OPTION...
{
    name=$1
    shift
    run "$name" finetune_cls train --model length --train reviews/train.tsv --out "$name" --batch 8 "$@"
}

all_commands()
{
    run reviews data/reviews --out reviews --unlabelled 2000 --unlabelled-val 100 --labelled 100 \
        --validation 40 --test 100
    awk -F '\t' 'NR == 1 { print "text\tother\tlabel"; next }
        { print last "\t" $1 "\t" (half == $2 ? "same" : "not"); last = $1; half = $2 }' \
        reviews/train.tsv | sed 2d >pairs.tsv
    awk '{ printf "{\"text\": \"%s\"}\n", $0 }' reviews/unlabelled_val.txt >texts.jsonl
    head -n 100 reviews/unlabelled_val.txt | awk '{ print $0 "<|endoftext|>" }' >eot.txt

    run tok tokenizer train --vocab 500 --split lines --out tok reviews/unlabelled.txt
    run tok_eot tokenizer train --vocab 400 --split eot --out tok_eot eot.txt
    run shards tokenizer encode --tokenizer tok --split lines --val-fraction 0.1 --shard-tokens 50000 \
        --out shards reviews/unlabelled.txt
    run jsonl tokenizer encode --tokenizer tok --split jsonl --out jsonl texts.jsonl
    run file tokenizer encode --tokenizer tok --out file reviews/unlabelled_val.txt
    run decode tokenizer decode --tokenizer tok shards_0*.bin
    run show tokenizer show --tokenizer tok 'There is not a dull moment in it, caf\303\251.'

    pretrain length --steps 300
    pretrain documents --steps 60 --cut documents
    pretrain dropout --steps 60 --dropout 0.1 --batch 1 --accumulate 2 --skip-spikes
    pretrain wsd --steps 60 --schedule wsd --min-lr-ratio 0 --weight-decay 0.2 --clip 0.5
    pretrain constant --steps 60 --schedule constant --seed 2 --beta2 0.95
    pretrain bf16 --steps 60 --precision bf16
    pretrain init --steps 60 --init length --lr 1e-4
    pretrain epochs --epochs 0.3 --sample-every 40 --sample-tokens 10
    stopped stop train_gpt train --data 'shards_0*.bin' --val '*val_*.bin' --tokenizer tok --out stop \
        --lr 1e-3 --dropout 0 --layers 2 --heads 2 --channels 32 --context 64 --batch 3 --eval-every 100 --steps 400 --dropout 0.1
    run stop_resumed train_gpt train --out stop --resume
    cp -r length longer
    run longer train_gpt train --out longer --resume --steps 340
    run longer_again train_gpt train --out longer --resume
    run existing train_gpt train --data shards_000000.bin --tokenizer tok --out wsd
    run eval train_gpt eval --model length --data '*val_*.bin'
    run eval_bf16 train_gpt eval --model documents --data '*val_*.bin' --precision bf16 --context 32
    run sample train_gpt sample --model length --prompt 'The plot' --count 3 --tokens 60
    run sample_greedy train_gpt sample --model length --temperature 0 --min-tokens 80 --tokens 80
    run sample_top train_gpt sample --model length --top-k 5 --top-p 0.9 --seed 7 --min-tokens 20
    run info train_gpt info --model length

    tune probe --tune probe --calibrate
    tune last --tune last:1 --epochs 3 --patience 2
    tune full --steps 50 --val reviews/val.tsv
    tune scratch --tune scratch --steps 50 --class-weights auto
    tune l2sp --steps 50 --l2sp 10 --layer-decay 0.8
    tune lm --steps 50 --lm-coef 0.5 --average 0 --dropout 0
    tune average --steps 50 --average 0.5 --calibrate --seed 3
    tune truncate --tune probe --max-tokens 20 --truncate both --dedupe
    tune tune_bf16 --steps 30 --precision bf16
    run pairs finetune_cls train --model length --train pairs.tsv --pair-column other --out pairs --steps 40
    run pairs_probe finetune_cls train --model length --train pairs.tsv --pair-column other --tune probe \
        --out pairs_probe
    for how in full last:1; do
        stop=stop_${how%:1}
        set -- finetune_cls train --model length --train reviews/train.tsv --val reviews/val.tsv \
            --out "$stop" --tune $how --epochs 40 --batch 4
        stopped "$stop" "$@"
        run "${stop}_resumed" "$@" --resume
    done
    for cls in probe full pairs; do
        data=reviews/test.tsv
        [ $cls = pairs ] && data=pairs.tsv
        run eval_$cls finetune_cls eval --model $cls --data $data --predictions eval_$cls.tsv
        run predict_$cls finetune_cls predict --model $cls --data $data --all
        run json_$cls finetune_cls predict --model $cls --data $data --json
        run info_$cls train_gpt info --model $cls
    done
    run explain finetune_cls explain --model full 'The plot is dull, but I smiled.'
    run layers finetune_cls layers --model length --train reviews/train.tsv --test reviews/test.tsv
    run compare finetune_cls compare --model length --train reviews/train.tsv --test reviews/test.tsv \
        --out compare --labels 20,all --seeds 2 --steps 15 \
        --methods majority,nb,nbsvm,scratch,probe,last:1,full,full+l2sp:10
    [ -z "$folder" ] || for path in "$folder"/*.*; do
        case=folder_$(basename "$path")
        run "${case}_train" finetune_cls train --model length --train "$path" --tune probe --out "${case}_train"
        run "${case}_predict" finetune_cls predict --model full --data "$path"
        run "${case}_tok" tokenizer train --vocab 300 --out "${case}_tok" "$path"
    done
}

for name in before after; do
    (
        cd "$out/$name" || exit 1
        eval "side=\$$name"
        all_commands
    ) &
done
wait

python3 - "$out" <<'END'
import glob, json, os, re, struct, sys

TIMES = {"seconds", "tokens_per_second"}
out, sides = sys.argv[1], ("before", "after")
counts = {"same": 0, "differ": 0}


def read(side, name):
    with open(os.path.join(out, side, name), "rb") as f:
        return f.read()


def printed(text):
    """The lines, without durations: of `info`, of a training's last line, of compare's table."""
    return re.sub(rb"(?m)^(seconds +).*|, \d+s$|(?<= \d\.\d{3})   +\d+\.\d$", rb"\1", text).split(b"\n")


def said(text):
    return [re.sub(rb"[0-9][0-9.,e+-]*", b"N", line) for line in text.split(b"\n")]


def safetensors(data):
    n = struct.unpack("<Q", data[:8])[0]
    head = json.loads(data[8:8 + n])
    meta = head.pop("__metadata__", {})
    parts = {name: (t["dtype"], t["shape"], data[8 + n + t["data_offsets"][0]:8 + n + t["data_offsets"][1]])
             for name, t in head.items()}
    return parts, meta


def columns(data):
    rows = [line.split(b"\t") for line in data.split(b"\n") if line]
    return {name.decode(): [row[i] if i < len(row) else None for row in rows]
            for i, name in enumerate(rows[0])}


def unequal(a, b, what, left_out=()):
    """What of two dictionaries differs, in words."""
    words = []
    for key in sorted((a.keys() | b.keys()) - set(left_out)):
        if key not in a or key not in b:
            words.append(f"{what} {key} only {'after' if key in b else 'before'}")
        elif a[key] != b[key]:
            words.append(f"{what} {key}")
    return words if len(words) < 8 else words[:6] + [f"and {len(words) - 6} more"]


def file_differs(path):
    a, b = (read(side, path) for side in sides)
    if a == b:
        return []
    if path.endswith(".safetensors"):
        (a, old), (b, new) = safetensors(a), safetensors(b)
        # which config.json, itself compared, belongs to the model
        belongs = ("config_hash", "config_checksum")
        return unequal(a, b, "tensor") + unequal(old, new, "metadata", belongs)
    if path.endswith(".tsv"):
        return unequal(columns(a), columns(b), "column", TIMES)
    return ["bytes"]


def files_of(side, name):
    """What the command has written: its directory, files that its name begins, and NAME.tsv."""
    top = os.path.join(out, side)
    paths = [p for d, _, files in os.walk(os.path.join(top, name)) for p in (os.path.join(d, f) for f in files)]
    paths += glob.glob(os.path.join(top, name + "_*.bin")) + glob.glob(os.path.join(top, name + ".tsv"))
    return {os.path.relpath(p, top): True for p in paths}


def check(name):
    words = []
    if read("before", name + ".status") != read("after", name + ".status"):
        words.append("status %s, then %s" % tuple(read(s, name + ".status").decode().strip() for s in sides))
    a, b = (printed(read(side, name + ".out")) for side in sides)
    first = next((i for i, (x, y) in enumerate(zip(a + [None], b + [None])) if x != y), None)
    if first is not None:
        words.append(f"line {first + 1} of what is printed")
    old, new = files_of("before", name), files_of("after", name)
    words += unequal(old, new, "file")
    for path in sorted(old.keys() & new.keys()):
        words += [f"{path}: " + ", ".join(found) for found in [file_differs(path)] if found]
    verdict = "differ" if words else "same"
    counts[verdict] += 1
    print(f"{verdict:6} {name}{': ' if words else ''}{'; '.join(words)}")
    if name.startswith("folder_"):
        a, b = (said(read(side, name + ".err")) for side in sides)
        for mark, lines, others in (("<", a, b), (">", b, a)):
            for line in lines:
                if line not in others:
                    print(f"  says {mark} {line.decode(errors='replace')[:200]}")


for name in read("before", "order").decode().split("\n")[:-1]:
    check(name)
print(f"{counts['same']} same, {counts['differ']} differ")
sys.exit(1 if counts["differ"] else 0)
END
