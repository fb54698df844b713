#!/usr/bin/env bash
# Speed of the tokenizer beside tiktoken and Hugging Face tokenizers, when Python has them.
#
#    dev/bench_tokenizer.sh TEXT VOCAB_DIR [ROUNDS]
#
# TEXT is a large UTF-8 file (IMDb's 100 MB, say); VOCAB_DIR holds GPT-2's merges.txt (or vocab.bpe) and encoder.json.
# Every figure is the best of ROUNDS (3) runs of the whole program, file to file, seconds by the clock;
# "cpu" is the time that the processor spent, which tells more on a machine that is shared. The Python
# tools read the same text, as lines; reading the vocabulary and the file is not counted for them.
set -e

if [ $# -lt 2 ]; then sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; fi
text=$1
vocab=$2/merges.txt
[ -f "$vocab" ] || vocab=$2/vocab.bpe
rounds=${3:-3}
here=$(cd "$(dirname "$0")/.." && pwd)
tokenizer=${TOKENIZER:-$here/tokenizer}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
kilobytes=$(($(wc -c <"$text") / 1000))

# best NAME KILOBYTES COMMAND...: the best clock and processor time, and MB/s of both. What the run
# before wrote is removed first: to replace a file is slower than to make one.
TIMEFORMAT='%R %U %S'
best() {
    local name=$1 size=$2 i
    shift 2
    for ((i = 0; i < rounds; i++)); do
        rm -rf "$work"/shard_* "$work/trained"
        { time "$@" >/dev/null 2>&1; } 2>>"$work/times"
    done
    awk -v name="$name" -v size="$size" '
        { cpu = $2 + $3; if (NR == 1 || $1 < real) real = $1; if (NR == 1 || cpu < min) min = cpu }
        END { if (real < 0.001) real = 0.001
              if (min < 0.001) min = 0.001
              printf "%-44s %8.3f s  %7.1f MB/s   cpu %7.3f s  %7.1f MB/s\n", name, real, size / 1000 / real,
                     min, size / 1000 / min }
    ' "$work/times"
    rm -f "$work/times"
}

echo "$text: $kilobytes kB"
for threads in 1 2; do
    best "encode, GPT-2 vocabulary, $threads thread(s)" "$kilobytes" "$tokenizer" encode --overwrite \
        --threads $threads --tokenizer "$vocab" --out "$work/shard" "$text"
    cp "$work/shard_000000.bin" "$work/threads_$threads.bin"
done
cmp "$work/threads_1.bin" "$work/threads_2.bin" && echo "    the same bytes for both"
mkdir "$work/kept"
mv "$work"/shard_*.bin "$work/kept"
best "decode" "$kilobytes" "$tokenizer" decode --tokenizer "$vocab" "$work"/kept/*.bin
"$tokenizer" decode --tokenizer "$vocab" "$work"/kept/*.bin | cmp - "$text" && echo "    the text comes back"
for threads in 1 2; do
    best "train 32,000 tokens, $threads thread(s)" "$kilobytes" "$tokenizer" train --overwrite \
        --threads $threads --vocab 32000 --out "$work/trained" "$text"
done
for what in a ' ' 中; do
    awk -v s="$what" 'BEGIN { n = 1000000 / (s ~ /[a ]/ ? 1 : 3); for (i = 0; i < n; i++) printf "%s", s }' >"$work/run"
    best "a megabyte of '$what'" 1000 "$tokenizer" encode --overwrite --tokenizer "$vocab" --out "$work/run" "$work/run"
done
printf x >"$work/run"
best "load the vocabulary, encode one byte" 0 "$tokenizer" encode --overwrite --threads 1 --tokenizer "$vocab" \
    --out "$work/run" "$work/run"

${PYTHON:-python3} - "$text" "$2" "$vocab" <<'PYTHON' || echo "(no Python with tiktoken or tokenizers to compare with)"
import json, os, sys, time

text_path, folder, merges = sys.argv[1:]
size = 20_000_000       # of the text, from its beginning: these are slow
text = open(text_path, "rb").read(size).decode("utf-8", "ignore")
lines = text.splitlines(keepends=True)
size = len(text.encode())


def show(name, run):
    start, cpu = time.time(), time.process_time()
    run()
    real, cpu = time.time() - start, time.process_time() - cpu
    print(f"{name:44} {real:8.3f} s  {size / 1e6 / real:7.1f} MB/s   cpu {cpu:7.3f} s  {size / 1e6 / cpu:7.1f} MB/s", flush=True)


try:
    import tiktoken
    visible = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 255 and b != 173]
    byte_of = {chr(b): b for b in visible}
    byte_of.update({chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in visible)})
    ids = json.load(open(os.path.join(folder, "encoder.json"), encoding="utf-8"))
    mark = "<|endoftext|>"
    pattern = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
    encoding = tiktoken.Encoding("gpt2", pat_str=pattern, special_tokens={mark: ids[mark]}, mergeable_ranks={
        bytes(byte_of[c] for c in s): i for s, i in ids.items() if s != mark})
    show(f"tiktoken {tiktoken.__version__}, 1 thread", lambda: [encoding.encode_ordinary(line) for line in lines])
    show("tiktoken, 2 threads", lambda: encoding.encode_ordinary_batch(lines, num_threads=2))
except ImportError:
    print("(tiktoken is not installed)")
try:
    os.environ["RAYON_NUM_THREADS"] = "2"
    import tokenizers
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    hf = Tokenizer(models.BPE.from_file(os.path.join(folder, "encoder.json"), merges))
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    show(f"Hugging Face tokenizers {tokenizers.__version__}, 1 thread", lambda: [hf.encode(line).ids for line in lines])
    show("Hugging Face tokenizers, 2 threads", lambda: hf.encode_batch(lines))
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    show("Hugging Face, train 32,000 tokens, 2 threads", lambda: trained.train_from_iterator(lines, trainers.BpeTrainer(
        vocab_size=32000, min_frequency=2, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())))
except ImportError:
    print("(tokenizers is not installed)")
print(f"(the Python rows: the first {size / 1e6:.0f} MB)")
PYTHON
