#!/bin/sh
# The whole story on embedded data: write reviews, learn a vocabulary, pretrain, look at samples, then
# fine-tune on few labels in four ways and compare. Needs the programs built; writes to out/demo.
set -eu
cd "$(dirname "$0")/.."
dir=out/demo
rm -rf "$dir"
mkdir -p "$dir"
began=$(date +%s)
say() { printf '\n\033[1m%s\033[0m\n' "$*" | if [ -t 1 ]; then cat; else sed 's/\x1b\[[0-9]*m//g'; fi; }

say "1. Short film reviews from a grammar: many without a label, few with one"
data/reviews --out "$dir/text" --seed 1

say "2. A tokenizer of 1,024 tokens, and the reviews as token shards"
./tokenizer train --vocab 1024 --split lines --out "$dir/tokenizer" "$dir/text/unlabelled.txt"
./tokenizer encode --tokenizer "$dir/tokenizer" --split lines --out "$dir/shards/train" "$dir/text/unlabelled.txt"
./tokenizer encode --tokenizer "$dir/tokenizer" --split lines --out "$dir/shards/val" "$dir/text/unlabelled_val.txt"
./tokenizer show --tokenizer "$dir/tokenizer" "Not a dull moment." | head -n 1

say "3. Pretraining for a minute: predict the next token, no labels needed"
./train_gpt train --data "$dir/shards/train_*.bin" --val "$dir/shards/val_*.bin" --tokenizer "$dir/tokenizer" \
    --out "$dir/model" --layers 4 --heads 4 --channels 128 --context 128 --batch 16 --lr 2e-3 --time-limit 60s
printf 'The lowest loss that any model of these reviews can reach: %s bits per byte\n' "$(awk '$1 == "lowest_bits_per_byte" {print $2}' "$dir/text/limits.txt")"

say "4. What it writes now"
./train_gpt sample --model "$dir/model" --prompt "" --tokens 80 --count 3 --seed 1 2>/dev/null

say "5. A classifier from 100 labelled reviews: from nothing, and in three ways from the model"
printf '%-10s %12s %9s\n' "" "accuracy" "seconds" >"$dir/table"
for tune in scratch probe last:2 full; do
    out=$dir/$(echo "$tune" | tr -d :)
    start=$(date +%s)
    ./finetune_cls train --model "$dir/model" --train "$dir/text/train.tsv" --val "$dir/text/val.tsv" \
        --out "$out" --tune "$tune" >"$out.log" 2>&1 || { cat "$out.log"; exit 1; }
    end=$(date +%s)
    accuracy=$(./finetune_cls eval --model "$out" --data "$dir/text/test.tsv" 2>/dev/null | awk '$1 == "accuracy" {print $2}')
    printf '%-10s %12s %9d\n' "$tune" "$accuracy" $((end - start)) >>"$dir/table"
done
cat "$dir/table"
printf '%-10s %12s\n' 'possible' "$(awk '$1 == "best_accuracy" {print $2}' "$dir/text/limits.txt")"

say "6. Three sentences"
./finetune_cls predict --model "$dir/full" "A wonderful film with a brilliant cast." \
    "The plot was dull and the acting was weak." "There was not a dull moment." 2>/dev/null

say "Done in $(($(date +%s) - began)) seconds; everything is in $dir."
