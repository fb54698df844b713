#!/bin/sh
# test_mpi.sh: ranks of MPI (make MPI=1) write the bytes of one process that is built without it,
# out/plain/train_gpt, also when they are stopped, killed and resumed with another number.
# Run from the repository root. Prints "ok ..." or "FAIL ..."; the status is the number of failures.

. test/lib.sh
train=$PWD/train_gpt
plain=$PWD/out/plain/train_gpt
tokenizer=$PWD/tokenizer
cd "$dir" || exit 1
export OMP_WAIT_POLICY=passive

# Root and more ranks than cores are allowed in a test. Nothing here lasts a minute.
launch="timeout 60 mpirun --allow-run-as-root --oversubscribe --bind-to none"
ranks() # R OPTIONS...
{
    R=$1
    shift
    $launch -n "$R" "$train" train "$@" >out.txt 2>err.txt
}

# 0.17M parameters, so that tensors have several chunks, which parts cut.
awk 'BEGIN {
    srand(3)
    for (i = 0; i < 700; i++) printf "%c%s the %d.\n", 97 + int(rand() * 20), substr("seaside", 1 + int(rand() * 5)), rand() * 90
}' >text.txt
"$tokenizer" train --vocab 600 --out tok text.txt 2>/dev/null &&
    "$tokenizer" encode --tokenizer tok --out train text.txt 2>/dev/null &&
    head -n 600 text.txt >other.txt && "$tokenizer" encode --tokenizer tok --out other other.txt 2>/dev/null &&
    "$tokenizer" encode --tokenizer tok --out val text.txt 2>/dev/null
check $? "tokenizer and shards"
rest="--val val_000000.bin --tokenizer tok --layers 2 --heads 2 --channels 72 --context 24 --batch 3
      --lr 3e-3 --dropout 0.1 --eval-every 2 --eval-tokens 400"
data="--data train_000000.bin $rest"

# --- The same bytes ---

five="$data --accumulate 5 --steps 4"       # 5 slots for 2 and 3 ranks
"$plain" train $five --threads 2 --out plain >/dev/null 2>&1
check $? "one process, built without MPI"
"$train" train $five --threads 1 --out alone >/dev/null 2>&1
same_run plain alone "without mpirun: the same bytes"
[ "$("$train" eval --model plain --data val_000000.bin 2>&1)" = "$("$plain" eval --model plain --data val_000000.bin 2>&1)" ]
check $? "eval says the same"
for R in 1 2 3; do
    ranks $R $five --threads $((R % 2 + 1)) --out ranks$R
    same_run plain ranks$R "ranks: $R, threads of each: $((R % 2 + 1)): the same bytes"
done
[ "$(wc -l <err.txt)" -lt 12 ] && [ "$(grep -c '^ranks3: best of step' out.txt)" -eq 1 ]
check $? "only rank 0 speaks"
half="$data --accumulate 4 --steps 3 --precision bf16 --threads 1 --optimizer muon"
"$plain" train $half --out plain16 >/dev/null 2>&1
ranks 3 $half --out ranks16
same_run plain16 ranks16 "bf16, 3 ranks for 4 slots: the same bytes"

# --- Killed, stopped, resumed with another number of ranks ---

long="$data --accumulate 3 --steps 60 --save-every 1 --threads 1 --optimizer muon"
"$plain" train $long --out whole >/dev/null 2>&1
process() # RANK: its number, of the run in $dir/killed
{
    for pid in $(pgrep -f -- "train .*--out $dir/killed"); do
        tr '\0' '\n' 2>/dev/null <"/proc/$pid/environ" | grep -qx "OMPI_COMM_WORLD_RANK=$1" && echo "$pid"
    done
}
after() { wait_for has_rows "$dir/killed/log.tsv" $(($1 + 1)); }      # ROWS
ranks 2 $long --out "$dir/killed" &
after 5
kill -KILL $(process 1)
wait $!
[ $? -ne 0 ] && [ "$(wc -l <killed/log.tsv)" -lt 60 ]
check $? "a rank that is killed ends the run, after $(wc -l <killed/log.tsv) rows"
ranks 3 --out "$dir/killed" --resume --threads 1 &
after 25
kill -TERM $(process 0)
wait $!
[ $? -ne 0 ] && [ "$(wc -l <killed/log.tsv)" -lt 60 ] && grep -q 'stopped after step.*saved' err.txt
check $? "3 ranks resume what 2 began; SIGTERM to rank 0 stops them, saved, after $(wc -l <killed/log.tsv) rows"
"$plain" train --out killed --resume >/dev/null 2>&1
same_run whole killed "one process resumes what 3 ranks began: the bytes of a run without interruption"

# Sizes that are not given follow from the speed, which no two ranks measure alike.
ranks 2 --data train_000000.bin --val val_000000.bin --tokenizer tok --accumulate 2 --time-limit 3s \
    --threads 1 --out limit
check $? "--time-limit ends all ranks: $(sed -n 's/.*bits_per_byte [0-9.]*; //p' out.txt)"

# --- What goes wrong ---

says() # WORDS DESCRIPTION: the run failed, and one sentence of it has the words
{
    [ $status -ne 0 ] && [ "$(grep -c '^train_gpt: ' err.txt)" -eq 1 ] &&
        grep '^train_gpt: ' err.txt | grep -q -- "$1"
    check $? "$2"
}
ranks 3 $data --accumulate 2 --out few
status=$?
says '--accumulate 2: a step has fewer batches than there are ranks (3)' "more ranks than slots"
mixture() # OPTIONS-OF-RANK-1...
{
    $launch -n 1 "$train" train $five --threads 1 --out mixed : -n 1 "$train" train "$@" >out.txt 2>err.txt
    status=$?
}
mixture --data other_000000.bin $rest --accumulate 5 --steps 4 --threads 1 --out mixed
says "rank 1 on $(hostname): data_fingerprint [0-9a-f]*, but on rank 0 data_fingerprint [0-9a-f]*" \
    "a rank with other data is named"
mixture $five --lr 1e-4 --threads 1 --out mixed
says "rank 1 on .*: train.lr 0.0001, but on rank 0 train.lr 0.003" "a rank with another setting"
cp "$train" copy && printf x >>copy         # the same program to the system, another to the hash
two() { $launch -n 1 "$train" train $five --threads 1 "$@" : -n 1 ./copy train $five --threads 1 "$@" >out.txt 2>err.txt; }
two --out mixed
status=$?
says 'rank 1 on .*: program .* --allow-mixed' "a rank with another program"
two --out mixed --allow-mixed
same_run plain mixed "--allow-mixed bears it"
# A file that may not grow is as a full disk; MPI by TCP writes none.
$launch --mca btl self,tcp -n 2 sh -c 'ulimit -f 200; exec "$@"' sh "$train" train $five --out full \
    >out.txt 2>err.txt
status=$?
says 'writing failed' "a full disk on rank 0 ends all ranks"
exit $failures
