#!/bin/sh
# test_precision.sh: --precision bf16 in train_gpt and finetune_cls, as a user meets it.
# Run from the repository root. Prints "ok ..." or "FAIL ..."; the status is the number of failures.

. test/lib.sh
speaker=train_gpt
programs=$PWD
cd "$dir" || exit 1

"$programs"/data/reviews --out reviews --seed 1 >out.txt &&
    head -n 3000 reviews/unlabelled.txt >text.txt
"$programs"/tokenizer train --vocab 400 --out tok text.txt 2>/dev/null &&
    "$programs"/tokenizer encode --tokenizer tok --split lines --out all text.txt 2>/dev/null
check $? "tokenizer and shards"
set -f
model="--dropout 0 --layers 2 --heads 2 --channels 64 --context 64 --batch 8 --lr 3e-3"
data="--data all_0*.bin --val all_0*.bin --eval-tokens 4000 --tokenizer tok"
train() # OUT OPTIONS...
{
    out=$1
    shift
    OMP_WAIT_POLICY=passive "$programs"/train_gpt train $data $model --steps 120 --out "$out" \
        "$@" 2>err.txt
}
loss() { tail -n 1 "$1/log.tsv" | cut -f3; }
near() # A B PART: A differs from B by at most that part
{
    awk -v a="$1" -v b="$2" -v part="$3" 'BEGIN { exit !(a > 0 && (a - b)^2 <= (part * b)^2) }'
}

train fp32 --threads 2 && train bf16 --threads 2 --precision bf16
check $? "train with fp32 and with bf16"
near "$(loss bf16)" "$(loss fp32)" 0.005
check $? "bf16's loss $(loss bf16) is within 0.5% of fp32's $(loss fp32)"
[ -s bf16/model.safetensors ] && ! cmp -s fp32/model.safetensors bf16/model.safetensors
check $? "--precision bf16 has an effect"
for threads in 1 3; do
    train threads$threads --threads $threads --precision bf16 && same_model bf16 threads$threads
    check $? "bf16: 2 = $threads threads, the same bytes"
done
steady="--schedule constant --warmup 1 --eval-every 20"
train whole --threads 1 --precision bf16 --steps 40 $steady &&
    train parts --threads 1 --precision bf16 --steps 20 $steady &&
    train parts --resume --steps 40 && same_model whole parts
check $? "bf16: resumed with more steps, the precision need not be repeated"
fails 2 '--precision fp32: the run in whole has bf16' "$programs"/train_gpt train $data --resume \
    --out whole --precision fp32

"$programs"/train_gpt eval --model bf16 --data 'all_0*.bin' --tokens 4000 >a.txt 2>err.txt &&
    "$programs"/train_gpt eval --model bf16 --data 'all_0*.bin' --tokens 4000 --precision bf16 \
        >b.txt 2>err.txt
near "$(sed -n 's/^loss \([^ ]*\).*/\1/p' b.txt)" "$(sed -n 's/^loss \([^ ]*\).*/\1/p' a.txt)" 0.002
check $? "eval: $(tail -n 1 b.txt), fp32 $(tail -n 1 a.txt)"
for threads in 1 2; do
    "$programs"/train_gpt sample --model bf16 --tokens 40 --precision bf16 --threads $threads \
        >sample$threads.txt 2>err.txt
done
[ -s sample1.txt ] && cmp sample1.txt sample2.txt
check $? "sample with weights in 16 bits: 1 = 2 threads"

speaker=finetune_cls
head -n 201 reviews/test.tsv >few.tsv
for threads in 1 2; do
    "$programs"/finetune_cls train --model bf16 --train few.tsv --out cls$threads --tune last:1 \
        --steps 20 --precision bf16 --threads $threads 2>err.txt
done
same_model cls1 cls2
check $? "finetune_cls train --precision bf16: 1 = 2 threads"
"$programs"/finetune_cls predict --model cls1 --data few.tsv --precision bf16 2>err.txt |
    cut -f1,2 >bf16.txt
"$programs"/finetune_cls predict --model cls1 --data few.tsv 2>err.txt | cut -f1,2 >fp32.txt
paste fp32.txt bf16.txt | awk '
    { if ($1 != $3) n++; d = $2 - $4; if (d < 0) d = -d; if (d > w) w = d }
    END { exit !(NR == 200 && n <= 2 && w > 0 && w < 0.02) }'
check $? "predict: probabilities like fp32's within 0.02, and not the same"
"$programs"/finetune_cls eval --model cls1 --data few.tsv --precision bf16 >bf16.txt 2>err.txt
"$programs"/finetune_cls eval --model cls1 --data few.tsv >fp32.txt 2>err.txt
a=$(head -n 1 bf16.txt) b=$(head -n 1 fp32.txt)
near "${a#* }" "${b#* }" 0.02
check $? "eval: $a with bf16, $b with fp32"
compare() { "$programs"/finetune_cls compare --model bf16 --train few.tsv --labels 40 --seeds 2 \
    --methods probe,last:1 --steps 10 --out compare "$@"; }
compare --precision bf16 >out.txt 2>err.txt && [ "$(wc -l <compare/compare.tsv)" -eq 5 ]
check $? "compare --precision bf16"
fails 2 'precision fp32: the run in compare has bf16' compare --resume --precision fp32
fails 2 "--precision fp16: " "$programs"/finetune_cls eval --model cls1 --data few.tsv \
    --precision fp16
exit $failures
