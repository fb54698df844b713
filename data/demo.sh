#!/bin/sh
# The whole story on embedded data: write reviews, learn a vocabulary, pretrain, look at samples, then
# fine-tune on few labels in four ways and compare. Needs the programs built; writes to out/demo. The
# run is the same every time, unless the machine is so slow that the time limit ends the pretraining.
set -eu
cd "$(dirname "$0")/.."
dir=out/demo
rm -rf "$dir"
mkdir -p "$dir"
began=$(date +%s)
say() { if [ -t 1 ]; then printf '\n\033[1m%s\033[0m\n' "$*"; else printf '\n%s\n' "$*"; fi; }

# The value of a line "name value" of standard input.
value() { awk -v name="$1" '$1 == name {print $2}'; }

say "1. Short film reviews from a grammar: 20,000 without a label, 100 with one"
data/reviews --out "$dir/text" --seed 1 >/dev/null
head -n 3 "$dir/text/unlabelled.txt"
possible=$(value best_accuracy <"$dir/text/limits.txt")
echo "The lowest loss that any model of them can reach: $(value lowest_bits_per_byte <"$dir/text/limits.txt") bits per byte."

say "2. A tokenizer of 1,024 tokens, and the reviews as token shards"
./tokenizer train --vocab 1024 --split lines --out "$dir/tokenizer" "$dir/text/unlabelled.txt"
./tokenizer encode --tokenizer "$dir/tokenizer" --split lines --out "$dir/shards/train" "$dir/text/unlabelled.txt"
./tokenizer encode --tokenizer "$dir/tokenizer" --split lines --out "$dir/shards/val" "$dir/text/unlabelled_val.txt"
./tokenizer show --tokenizer "$dir/tokenizer" "There is not a dull moment in it." | head -n 1

say "3. Pretraining for about a minute: predict the next token, no labels needed"
./train_gpt train --data "$dir/shards/train_*.bin" --val "$dir/shards/val_*.bin" --tokenizer "$dir/tokenizer" \
    --out "$dir/model" --layers 2 --heads 4 --channels 128 --context 128 --batch 16 --cut documents \
    --lr 6e-3 --steps 1100 --time-limit 100s

say "4. What it writes now"
./train_gpt sample --model "$dir/model" --prompt "" --tokens 120 --count 3 --seed 1 2>/dev/null

say "5. A classifier from 100 labelled reviews: from nothing, and in three ways from the model"
printf '%-10s %9s %9s\n' "" "accuracy" "seconds" | tee "$dir/table"
for tune in scratch probe last:2 full; do
    out=$dir/$(echo "$tune" | tr -d :)
    start=$(date +%s)
    ./finetune_cls train --model "$dir/model" --train "$dir/text/train.tsv" --val "$dir/text/val.tsv" \
        --out "$out" --tune "$tune" >"$out.log" 2>&1 || { cat "$out.log"; exit 1; }
    took=$(($(date +%s) - start))
    accuracy=$(./finetune_cls eval --model "$out" --data "$dir/text/test.tsv" 2>/dev/null | value accuracy)
    printf '%-10s %9s %9d\n' "$tune" "$accuracy" "$took" | tee -a "$dir/table"
done
printf '%-10s %9s\n' "possible" "$possible" | tee -a "$dir/table"

say "6. Three sentences: plain, with negations, with a turn"
./finetune_cls predict --model "$dir/full" \
    "This is a wonderful comedy. The script is both gripping and witty." \
    "The new comedy at our cinema is never dull. There is not a boring moment in it." \
    "It is gripping at first, but dull by the end." 2>/dev/null

say "Done in $(($(date +%s) - began)) seconds; everything is in $dir."
