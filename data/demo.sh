#!/bin/sh
# The whole story on embedded data: write reviews, learn a vocabulary, pretrain, look at samples, then
# learn without labels and from few in eight ways and compare. Needs the programs built; writes to out/demo. The
# run is the same every time, unless the machine is so slow that the time limit ends the pretraining.
set -eu
unset CDPATH
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
    --out "$dir/model" --dropout 0 --layers 2 --heads 4 --channels 128 --context 128 --batch 16 --cut documents \
    --lr 6e-3 --steps 1100 --time-limit 150s
steps=$(./train_gpt info --model "$dir/model/last" | value step)
[ "$steps" -eq 1100 ] ||
    echo "The time limit left room for $steps of 1,100 steps, so the figures below are not the README's."

say "4. What it writes now"
./train_gpt sample --model "$dir/model" --prompt "" --tokens 120 --count 3 --seed 1 2>/dev/null

say "5. What is that worth with 100 labels, and without any? Eight ways, three times each"
suffix=" I am"      # after it the grammar must say how the writer feels
words="positive=glad,happy;negative=sorry"
echo "After every text stands \"$suffix\"; label words: $words"
./finetune_cls compare --model "$dir/model" --train "$dir/text/train.tsv" --test "$dir/text/test.tsv" \
    --out "$dir/compare" --labels 0,all --seeds 3 --batch 16 --suffix "$suffix" --label-words "$words" \
    --methods majority,nb,nbsvm,scratch,prompt,probe,last:1,full
echo "No classifier can be right more often than $possible: some reviews are of two minds."

say "6. A classifier made from the model, and how it reads a sentence"
./finetune_cls train --model "$dir/model" --train "$dir/text/train.tsv" --out "$dir/full" --tune full \
    --batch 16 --suffix "$suffix" --label-words "$words" >"$dir/full.log" 2>&1 ||
    { cat "$dir/full.log"; exit 1; }
./finetune_cls predict --model "$dir/full" "The script is gripping and witty. I had a wonderful time." \
    "The script is clumsy and dull. I wanted my money back."
./finetune_cls explain --model "$dir/full" "The script is clumsy and dull. I wanted my money back."

say "Done in $(($(date +%s) - began)) seconds; everything is in $dir."
