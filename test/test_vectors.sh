#!/bin/sh
# Vectors of another width add in another order, so that runs differ in their last digits, and in no
# more than that. Builds train_gpt for 256 and 128 bits and compares a short run with that of
# ./train_gpt: losses of all steps within 1e-4 of their value, of the first step within 1e-6.
# Run from the repository root, on a processor that has wider vectors than 128 bits.

. test/lib.sh
compiler=${CC:-cc}
flags="-O1 -march=native -fno-math-errno -fno-trapping-math"

# Whether a build with these flags has a narrower vector than one without: fewer of the macros.
wide() { echo | $compiler -march=native $1 -dM -E - 2>/dev/null | grep -cE '__AVX512F__|__AVX__'; }

yes 'the cat sees the dog, and the dog sees the cat.' | head -n 200 >"$dir/text"
{
    ./tokenizer train --vocab 300 --out "$dir/tok" "$dir/text" &&
        ./tokenizer encode --tokenizer "$dir/tok" --out "$dir/text" "$dir/text"
} 2>/dev/null
check $? "a tokenizer and a shard"
run() # PROGRAM OUT
{
    "$1" train --data "$dir/text_000000.bin" --tokenizer "$dir/tok" --out "$dir/$2" --dropout 0 --layers 2 \
        --heads 2 --channels 48 --context 40 --batch 4 --lr 3e-3 --dropout 0.1 --steps 60 \
        --threads 1 >/dev/null 2>&1
}
run ./train_gpt native
check $? "a run of ./train_gpt"
before=$(wide '')
for flag in -mno-avx512f -mno-avx; do
    [ "$(wide $flag)" -lt "$before" ] || continue
    before=$(wide $flag)
    $compiler $flags $flag -w -o "$dir/train_gpt" train_gpt.c -lm && run "$dir/train_gpt" other
    check $? "a run of a build with $flag"
    paste "$dir/native/log.tsv" "$dir/other/log.tsv" | awk -F '\t' 'NR > 1 {
        off = ($2 > $11 ? $2 - $11 : $11 - $2) / $2
        if (off > (NR == 2 ? 1e-6 : 1e-4)) { print "     step " $1 ": " $2 ", not " $11; bad = 1 }
    } END { exit bad || NR != 61 }'
    check $? "$flag: the losses of 60 steps agree"
    rm -r "$dir/other"
done
exit $failures
