#!/bin/sh
# Searches shape, batch, rate, dropout and beta2 of train_gpt at a fixed amount of computing, so that
# neither the load of the machine nor its speed decides. Each run has a directory in OUT and a row in
# OUT/results.tsv. A second call goes on where the first stopped.
#
#     sh dev/search.sh TRAIN.txt VAL.txt OUT FLOPS [SEED...]       (5e12 is half a minute on two cores)
#     sort -t "$(printf '\t')" -k 2,2 -g OUT/results.tsv           best bits per byte first
set -eu
[ $# -ge 4 ] || { sed -n 's/^#     //p' "$0" >&2; exit 2; }
train=$1 val=$2 out=$3 flops=$4
shift 4
[ $# -gt 0 ] || set -- 1
cd "$(dirname "$0")/.."
results=$out/results.tsv
vocabulary=${VOCAB:-512}

mkdir -p "$out"
if [ ! -e "$out/tokenizer/merges.txt" ]; then
    ./tokenizer train --vocab "$vocabulary" --out "$out/tokenizer" "$train"
fi
for part in train val; do
    text=$train
    [ $part = train ] || text=$val
    [ -e "$out/${part}_000000.bin" ] ||
        ./tokenizer encode --tokenizer "$out/tokenizer" --out "$out/$part" "$text"
done
[ -e "$results" ] || printf 'run\tbits_per_byte\tsteps\tseconds\n' >"$results"

# The steps that FLOPS allow: forward and backward, as train_gpt counts them (its section 7).
steps_of() # LAYERS CHANNELS CONTEXT BATCH
{
    awk -v L="$1" -v C="$2" -v T="$3" -v B="$4" -v V="$vocabulary" -v flops="$flops" 'BEGIN {
        token = 3 * (24 * L * C * C + 4 * L * T * C + 2 * V * C)
        printf "%d", flops / token / (B * T) }'
}

try() # LAYERS HEADS CHANNELS CONTEXT BATCH RATE DROPOUT BETA2 SEED
{
    name=l$1-h$2-c$3-t$4-b$5-lr$6-d$7-b2_$8-s$9
    ! grep -q "^$name	" "$results" || return 0
    steps=$(steps_of "$1" "$3" "$4" "$5")
    if ./train_gpt train --data "$out/train_0*.bin" --val "$out/val_0*.bin" \
           --tokenizer "$out/tokenizer" --out "$out/$name" --resume --steps "$steps" \
           --layers "$1" --heads "$2" --channels "$3" --context "$4" --batch "$5" --lr "$6" \
           --optimizer adamw --dropout "$7" --beta2 "$8" --seed "$9" --eval-tokens 0 >"$out/$name.log" 2>&1; then
        awk -F '\t' -v name="$name" '$4 != "" && NR > 1 { bits = $4 } { steps = $1; time = $9 }
            END { printf "%s\t%s\t%s\t%s\n", name, bits, steps, time }' \
            "$out/$name/log.tsv" >>"$results"
    else
        printf '%s\tfailed, see %s.log\n' "$name" "$out/$name" >>"$results"
    fi
}

# One thing at a time around one centre; the whole grid would take days.
for seed; do
    for rate in 4e-3 2e-3 8e-3; do try 2 4 128 128 8 $rate 0 0.99 "$seed"; done
    for batch in 4 16 32; do try 2 4 128 128 $batch 4e-3 0 0.99 "$seed"; done
    for shape in '2 2 64' '4 4 128' '1 4 128' '2 6 192' '4 6 192' '6 4 64'; do
        try $shape 128 8 4e-3 0 0.99 "$seed"
    done
    try 2 4 128 64 16 4e-3 0 0.99 "$seed"
    try 2 4 128 256 4 4e-3 0 0.99 "$seed"
    for beta2 in 0.95 0.999; do try 2 4 128 128 8 4e-3 0 $beta2 "$seed"; done
    for dropout in 0.1 0.2; do try 2 4 128 128 8 4e-3 $dropout 0.99 "$seed"; done
    for rate in 2e-3 8e-3 16e-3; do try 2 2 64 128 8 $rate 0 0.99 "$seed"; done
    for rate in 1e-3 2e-3; do try 4 6 192 128 8 $rate 0 0.99 "$seed"; done
done
sort -t "$(printf '\t')" -k 2,2 -g "$results"
