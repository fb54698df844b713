#!/bin/sh
# Fuzzes every reader of files with libFuzzer under the address and undefined sanitizers.
#
#    dev/fuzz/run.sh [SECONDS [READER...]]      default: 1800 each, all readers
#
# Needs clang with libFuzzer (Debian: clang and libclang-rt-14-dev). Corpora begin with what our own
# writers make, grow in out/fuzz/READER, and are kept. A finding ends its reader: the input is in
# out/fuzz/READER.found-*, and `out/fuzz/READER.fuzz FILE` runs it again. Status: readers with one.

cd "$(dirname "$0")/../.." || exit 1
seconds=${1:-1800}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- model state merges tokenizer shard tsv csv jsonl json comparison log texts
mkdir -p out/fuzz
make -s out/test/test_hostile out/test/test_hostile_train out/test/test_hostile_texts || exit 1
bad=0
for reader in "$@"; do
    case $reader in
        log) test=test_hostile_train program=-DHOSTILE_TRAIN_GPT ;;
        texts) test=test_hostile_texts program=-DHOSTILE_TOKENIZER ;;
        *) test=test_hostile program= ;;
    esac
    clang -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -Wall \
        -Wextra -DREADER="\"$reader\"" $program -o "out/fuzz/$reader.fuzz" dev/fuzz/fuzz.c -lm ||
        exit 1
    mkdir -p "out/fuzz/$reader"
    for seed in 0 1; do
        out/test/$test "$reader" seed $seed >"out/fuzz/$reader/seed$seed"
    done
    ASAN_OPTIONS=detect_leaks=0 "out/fuzz/$reader.fuzz" -max_total_time="$seconds" \
        -max_len=16384 -timeout=10 -rss_limit_mb=2000 -print_final_stats=1 -close_fd_mask=3 \
        -artifact_prefix="out/fuzz/$reader.found-" "out/fuzz/$reader" >"out/fuzz/$reader.log" 2>&1
    status=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "out/fuzz/$reader.log")
    echo "$reader: $runs runs in $seconds s, $([ $status -eq 0 ] && echo nothing found ||
        grep -m 1 ERROR "out/fuzz/$reader.log")"
    [ $status -eq 0 ] || bad=$((bad + 1))
done
exit $bad
