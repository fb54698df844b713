#!/usr/bin/env bash
# From text files to a language model in one command. Prints each command before it runs it; called
# again, it goes on where it stopped.
#
#     data/pretrain.sh TEXT... OUT TIME [-- OPTIONS OF train_gpt train]
#     data/pretrain.sh novel.txt my 30m
#
# TIME is that of pretraining: 90s, 30m or 8h. OUT gets tokenizer, text_*.bin and model, and is
# refused for other texts later. Documents end where a text holds <|endoftext|>; with fewer than 100 of
# these, all files are one text, whose end is for validation. Products are of bf16 where that is faster:
# with Intel's AMX, or AMD's AVX512_BF16.
set -euo pipefail

fail_usage() { echo "pretrain.sh: $*" >&2; exit 2; }

words=() options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do words+=("$1"); shift; done
[ $# -eq 0 ] || options=("${@:2}")
count=${#words[@]}
[ "$count" -ge 3 ] || { sed -n 's/^#     //p' "$0" >&2; exit 2; }
texts=("${words[@]:0:count-2}") out=${words[count-2]} time=${words[count-1]}
[[ $time =~ ^[0-9]*\.?[0-9]+[smh]$ && $time =~ [1-9] ]] || fail_usage "$time: not a time. Give it as 90s, 30m or 8h."

programs=$(CDPATH= cd -- "$(dirname "$0")/.." && pwd)
[ -x "$programs/train_gpt" ] || { echo "pretrain.sh: there are no programs yet. Run make." >&2; exit 1; }
bytes=0 ends=0 sums= split=file cut=length
for text in "${texts[@]}"; do
    [ -f "$text" ] && [ -r "$text" ] ||
        fail_usage "$text: no file that can be read. Name texts, then a directory, then a time."
    sum=$(cksum <"$text")
    sums+="$sum " bytes=$((bytes + ${sum#* }))
    ends=$((ends + $({ LC_ALL=C grep -aoF '<|endoftext|>' <"$text" || true; } | wc -l)))
done
[ $ends -lt 100 ] || split=eot cut=documents
aside=0.1                       # the part for validation; of a long text less is enough
[ "$bytes" -lt 20000000 ] || [ $split = eot -a $ends -lt 1000 ] || aside=0.01

run() # PROGRAM ARGUMENT...: prints the command so that it can be typed, and runs it
{
    local word line='$ '$1
    for word in "${@:2}"; do
        case $word in
            ''|*[!A-Za-z0-9_./=:,+-]*) word="'${word//\'/\'\\\'\'}'" ;;
        esac
        line+=" $word"
    done
    printf '\n%s\n' "$line"
    "$programs/${1#./}" "${@:2}"
}

mkdir -p -- "$out"
made=$out/tokenizer/merges.txt
[ -e "$made" ] || printf %s "$sums" >"$out/texts.cksum"
[ ! -e "$out/texts.cksum" ] || [ "$sums" = "$(<"$out/texts.cksum")" ] ||
    fail_usage "$out: was made from other texts. Choose another directory."
if [ $split = file ] && [ $((${#texts[@]} + ends)) -gt 1 ]; then    # one text, with line ends
    [ -e "$made" ] || LC_ALL=C sed -s $'1s/^\xEF\xBB\xBF//; s/<|endoftext|>/\\n/g; $a\\' -- \
        "${texts[@]}" >"$out/text.txt"
    texts=("$out/text.txt")
fi
[ -e "$made" ] || run ./tokenizer train --split $split --out "$out/tokenizer" "${texts[@]}"
[ -e "$out/val_text_000000.bin" ] ||
    run ./tokenizer encode --tokenizer "$out/tokenizer" --split $split --val-fraction $aside \
        --out "$out/text" "${texts[@]}"
shards=$(printf %s "$out" | sed 's/[][*?\\]/\\&/g')        # train_gpt takes a pattern, as shells do
precision=()                    # a run that has begun keeps its own
if ! [ -e "$out/model/model.safetensors" ] && ! [ -e "$out/model/state.safetensors" ] &&
   grep -qs -e amx_bf16 -e AuthenticAMD /proc/cpuinfo && grep -qs avx512_bf16 /proc/cpuinfo; then
    precision=(--precision bf16)
fi
run ./train_gpt train --data "$shards/text_0*.bin" --val "$shards/val_text_*.bin" \
    --tokenizer "$out/tokenizer" --out "$out/model" --cut $cut --time-limit "$time" --resume \
    ${precision[@]+"${precision[@]}"} ${options[@]+"${options[@]}"}
run ./train_gpt sample --model "$out/model" --count 3 --tokens 100
