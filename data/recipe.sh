#!/usr/bin/env bash
# A sentiment classifier for film reviews from two cores in an evening: IMDb's or SST-2's texts, one
# language model for both, then classifiers from 0 labels to all, beside naive Bayes.
#
#     data/recipe.sh imdb|sst2 [DIR [TIME]]
#
# Each step is skipped when its output is in DIR (out/recipe), and goes on where it was interrupted.
# TIME (2h) is the most that pretraining may take, and each table: seeds that do not fit are left out
# of it. `make imdb` and `make sst2` build the programs first. Test texts are read by steps 7 to 9
# alone; the language model never sees IMDb's test half.
set -euo pipefail
unset CDPATH
cd "$(dirname "$0")/.."

task=${1:-} dir=${2:-out/recipe} time=${3:-2h}
case $task in imdb|sst2) ;; *) sed -n 's/^#     //p' "$0" >&2; exit 2 ;; esac
seeds=3
pretrained=$dir/model text=$dir/text

# bf16 is faster with Intel's AMX, and with AMD's AVX512_BF16, but not with Intel's. What has begun
# goes on with its own precision.
precision=fp32
if [ -e "$dir/precision" ]; then
    precision=$(cat "$dir/precision")
elif grep -qs -e amx_bf16 -e AuthenticAMD /proc/cpuinfo && grep -qs avx512_bf16 /proc/cpuinfo; then
    precision=bf16
fi

say() { printf '\n%s: %s\n' "$(date +%H:%M)" "$*"; }
done_or() { [ -e "$1" ] && [ ! -e "${1%model.safetensors}state.safetensors" ] && echo "done    " || echo "$2"; }

plan() {
    cat <<TEXT
$task, in $dir. Times are those of two cores with AVX-512 and bf16; others take about twice as long.
  1 texts                   $(done_or "$text/$task-train.tsv" "1m ")
  2 vocabulary and shards   $(done_or "$dir/val_shards_000000.bin" "1m ")
  3 pretraining             $(done_or "$dir/pretrained" "at most $time ")  7.0M parameters; $precision
  4 the task's own texts    $(done_or "$own" "1m ")  without their labels
  5 a suffix                $(done_or "$dir/$task-suffix" "2m ")  chosen on 1,000 texts of train
  6 its own answers         $(done_or "$self/model.safetensors" "$self_time ")  to $asked training texts
  7 0 to 1,000 labels       $(done_or "$dir/$task-few/done" "at most $time ")  $seeds seeds
  8 5,000 and all labels    $(done_or "$dir/$task-many/done" "at most $time ")  $seeds seeds
  9 the classifier          $(done_or "$dir/$task/model.safetensors" "$last_time ")  all labels, all test texts
TEXT
}

# --- 1 and 2: texts in lower case ---

# SST-2 is published in lower case. So that one model knows the words of both, IMDb's letters A to Z
# become small, too: "The" and "the" share what is learnt of them and one place in the vocabulary.
lower() { LC_ALL=C tr A-Z a-z; }

get_texts() {
    data/get_data.sh imdb $([ "$task" = imdb ] || echo "$task")
    mkdir -p "$text"
    local from to
    for from in imdb/pretrain.txt "$task/train.tsv" "$task/$test"; do
        to=$text/${from/\//-}
        [ -e "$to" ] || { lower <"data/$from" >"$to.unfinished"; mv "$to.unfinished" "$to"; }
    done
}

make_shards() {
    [ -e "$dir/tokenizer/merges.txt" ] ||
        ./tokenizer train --split eot --out "$dir/tokenizer" "$text/imdb-pretrain.txt"
    [ -e "$dir/val_shards_000000.bin" ] ||
        ./tokenizer encode --tokenizer "$dir/tokenizer" --split eot --val-fraction 0.01 \
            --out "$dir/shards" "$text/imdb-pretrain.txt"
}

# --- 3: the language model ---

pretrain() {
    [ ! -e "$dir/pretrained" ] || return 0
    ./train_gpt train --data "$dir/shards_0*.bin" --val "$dir/val_shards_*.bin" \
        --tokenizer "$dir/tokenizer" --out "$pretrained" --resume --precision $precision \
        --layers 6 --heads 4 --channels 256 --context 512 --cut documents --batch 8 --lr 3.5e-3 \
        --min-lr-ratio 0.02 --optimizer muon --dropout 0 --epochs 2 --schedule wsd --time-limit "$time"
    touch "$dir/pretrained"
}

# --- 4: the same model goes on with SST-2's own texts, which are sentences by critics (Howard and
# Ruder 2018). Those of IMDb it has read already. ---

backwards() { LC_ALL=C.UTF-8 rev; }     # rev stops at é in a locale without UTF-8

# The training texts that are whole sentences. SST-2 also has parts of each; those that end with the
# sentence are prefixes of it when both are read backwards, and so stand before it in order.
sentences() # FILE.tsv, the text in its last column
{
    awk -F '\t' 'NR > 1 && $NF ~ /[.!?]$/ { print $NF }' "$1" | backwards | LC_ALL=C sort -u |
        awk 'NR > 1 && index($0, last) != 1 { print last } { last = $0 } END { print last }' |
        backwards
}

read_own_texts() # as in step 3, but for AdamW, dropout, and a lower rate that falls all the time
{
    [ ! -e "$own" ] || return 0
    [ -e "$text/own.txt" ] || {
        sentences "$text/sst2-train.tsv" >"$text/own.unfinished"
        mv "$text/own.unfinished" "$text/own.txt"
    }
    [ -e "$dir/own_000000.bin" ] ||
        ./tokenizer encode --tokenizer "$dir/tokenizer" --split lines --out "$dir/own" "$text/own.txt"
    ./train_gpt train --data "$dir/own_0*.bin" --init "$pretrained" --out "$model" --resume \
        --precision $precision --cut documents --batch 8 --epochs 3 --lr 1e-3 --optimizer adamw \
        --min-lr-ratio 0.02 --warmup 10 --dropout 0.1
    touch "$own"
}

# --- 5: the words after each text, chosen by accuracy on training texts, never on test ---

try_suffix() # SUFFIX: prints its accuracy, then itself
{
    local out=$dir/$task-try
    rm -rf "$out"
    ./finetune_cls train --model "$model" --train "$out.tsv" --out "$out" --tune prompt \
        --suffix "$1" --label-words "$label_words" >"$out.log" 2>&1 || { cat "$out.log" >&2; exit 1; }
    ./finetune_cls eval --model "$out" --data "$out.tsv" 2>/dev/null |
        awk -v suffix="$1" '$1 == "accuracy" { print $2 "\t" suffix }'
}

choose_suffix() {
    [ ! -e "$dir/$task-suffix" ] || return 0
    head -n 1001 "$text/$task-train.tsv" >"$dir/$task-try.tsv"
    local suffix
    for suffix in ' It was' '. It was' '. The movie was' ' Overall, this movie was' \
                  '. All in all, it was' ' A'; do
        try_suffix "$(printf %s "$suffix" | lower)"
    done | sort -rn | tee "$dir/$task-suffixes"
    head -n 1 "$dir/$task-suffixes" | cut -f 2 >"$dir/$task-suffix"
    rm -rf "$dir/$task-try" "$dir/$task-try."*
}

# --- 6: the model learns from its own answers (self-training, Lee 2013). It is asked about training
# texts, without their labels; the surer an answer is, the more often it is right. From the surest half
# of each class the whole network learns, and all that follows begins with it. ---

learn_from_answers() {
    local out=$dir/$task-asked
    local common=(--suffix "$(cat "$dir/$task-suffix")" --label-words "$label_words" \
                  --precision "$precision")
    [ -e "$out.tsv" ] || {
        head -n $((asked + 1)) "$text/$task-train.tsv" >"$out.texts"
        ./finetune_cls train --model "$model" --train "$out.texts" --out "$out" --tune prompt --overwrite \
            "${common[@]}"
        ./finetune_cls predict --model "$out" --data "$out.texts" --precision $precision >"$out.answers"
        printf 'label\ttext\n' >"$out.unfinished"
        LC_ALL=C sort -s -t $'\t' -k 2,2r "$out.answers" |
            awk -F '\t' 'NR == FNR { n[$1]++; next } ++k[$1] <= n[$1] / 2 { print $1 "\t" $3 }' \
                "$out.answers" - >>"$out.unfinished"
        mv "$out.unfinished" "$out.tsv"
        rm -rf "$out" "$out.texts" "$out.answers"
    }
    [ -e "$self/model.safetensors" ] && [ ! -e "$self/state.safetensors" ] ||
        ./finetune_cls train --model "$model" --train "$out.tsv" --out "$self" --epochs 1 --resume \
            "${common[@]}"
}

# --- 7 and 8: the comparison on test texts ---

compare() # NAME LABELS METHODS
{
    local out=$dir/$task-$1
    [ ! -e "$out/done" ] || { cat "$out/table.txt"; return 0; }
    # Of IMDb's 25,000 test reviews every 25th, since each training of the table reads all of them:
    # 500 of each label, which take turns in the file.
    local some=$dir/$task-some.tsv
    [ -e "$some" ] || {
        awk -v each=$each 'NR == 1 || NR % each == 0' "$text/$task-$test" >"$some.unfinished"
        mv "$some.unfinished" "$some"
    }
    ./finetune_cls compare --model "$self" --train "$text/$task-train.tsv" \
        --test "$some" --out "$out" --resume --labels "$2" --methods "$3" \
        --seeds $seeds --time-limit "$time" --precision $precision --suffix "$(cat "$dir/$task-suffix")" \
        --label-words "$label_words" | tee "$out.txt"
    mv "$out.txt" "$out/table.txt"
    touch "$out/done"
}

# --- 9: the classifier of all labels, and its one evaluation on all test texts ---

classify() {
    [ -e "$dir/$task/model.safetensors" ] && [ ! -e "$dir/$task/state.safetensors" ] ||
        ./finetune_cls train --model "$self" --train "$text/$task-train.tsv" --out "$dir/$task" \
            --resume --precision $precision --suffix "$(cat "$dir/$task-suffix")" \
            --label-words "$label_words" --calibrate
    ./finetune_cls eval --model "$dir/$task" --data "$text/$task-$test" --precision $precision
}

praise=good,great,excellent,wonderful,brilliant,amazing,fun,superb
blame=bad,terrible,awful,boring,horrible,poor,dull,stupid
self=$dir/$task-self
case $task in               # IMDb's table is without scratch and last:2, which would double its time
    imdb) test=test.tsv each=25 last_time=50m model=$pretrained own=$dir/pretrained asked=8000 self_time=5m
          label_words="pos=$praise;neg=$blame" methods=nb,nbsvm,prompt,probe,full ;;
    sst2) test=dev.tsv each=1 last_time=15m model=$dir/sst2-model own=$dir/sst2-own asked=20000 self_time=3m
          label_words="1=$praise;0=$blame" methods=nb,nbsvm,scratch,prompt,probe,last:2,full ;;
esac

plan
mkdir -p "$dir"
echo $precision >"$dir/precision"
say "1 texts"
get_texts
say "2 vocabulary and shards"
make_shards
say "3 pretraining"
pretrain
say "4 the task's own texts"
read_own_texts
say "5 a suffix"
choose_suffix
say "6 the model's own answers"
learn_from_answers
say "7 from no label to 1,000"
compare few 0,20,100,500,1000 "$methods"
say "8 5,000 labels and all"
compare many 5000,all nb,nbsvm,scratch,full
say "9 the classifier of all labels"
classify
say "done; the tables are in $dir/$task-few and $dir/$task-many, the classifier is $dir/$task"
