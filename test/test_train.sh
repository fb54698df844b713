#!/bin/sh
# test_train.sh: ./tokenizer and ./train_gpt as a user runs them, on a few kilobytes of text. What
# looks at the clock is in test_time.sh.
# Run from the repository root. Prints "ok ..." or "FAIL ..."; the status is the number of failures.

. test/lib.sh
speaker=train_gpt
train=$PWD/train_gpt
tokenizer=$PWD/tokenizer
cd "$dir" || exit 1

# --- Text with something to learn, two shards for training, one for validation ---

awk 'BEGIN {
    srand(7)
    split("the a one this", article)
    split("cat dog bird fish naïve-one", noun)
    split("sees likes eats hears", verb)
    for (i = 0; i < 1500; i++)
        printf "%s %s %s %s %s.\n", article[int(rand() * 4) + 1], noun[int(rand() * 5) + 1],
               verb[int(rand() * 4) + 1], article[int(rand() * 4) + 1], noun[int(rand() * 5) + 1]
}' >text.txt
head -n 1300 text.txt >train.txt
tail -n 200 text.txt >val.txt
"$tokenizer" train --vocab 300 --out tok train.txt 2>/dev/null &&
    "$tokenizer" encode --tokenizer tok --out train --shard-tokens 8000 train.txt 2>/dev/null &&
    "$tokenizer" encode --tokenizer tok --out val val.txt 2>/dev/null && [ -f train_000001.bin ]
check $? "tokenizer and shards"

data="--data train_0*.bin --val val_0*.bin --tokenizer tok"
tiny="--dropout 0 --layers 2 --heads 2 --channels 32 --context 32 --batch 4 --lr 3e-3 --threads 1"
head -n 6 train.txt >few.txt
"$tokenizer" encode --tokenizer tok --out few few.txt 2>/dev/null
"$train" train $tiny --data few_000000.bin --val val_000000.bin --tokenizer tok --lr 1e-2 --steps 200 \
    --eval-every 40 --out by-heart >/dev/null 2>err.txt &&
    grep -q '^train_gpt: val_loss went up from its first value, .* or the text is learnt by heart' err.txt
check $? "a text that is learnt by heart: a rising val_loss is explained"
set -f                                  # patterns are for train_gpt, not for this shell

# --- Learning, evaluation, samples ---

"$train" train $data $tiny --steps 150 --batch 8 --out learn >out.txt 2>err.txt
check $? "train"
first=$(sed -n 2p learn/log.tsv | cut -f2)
last=$(tail -n 1 learn/log.tsv | cut -f2)
[ "$(wc -l <learn/log.tsv)" -eq 151 ] && awk "BEGIN { exit !($first > 5 && $last < 3) }"
check $? "the loss falls, from $first to $last"
head -n 1 learn/log.tsv | grep -q 'step	loss	val_loss.*lr	norm.*tokens_per_second'
check $? "log.tsv has its columns"
awk -F '\t' 'NR == 3 { second = $7 } END { exit !(second == 512 && $7 > 38000 && $7 <= 38400) }' \
    learn/log.tsv                       # the last sequence of the text may be short
check $? "log.tsv counts the tokens of all steps"
for file in model.safetensors config.json merges.txt vocab.json; do
    [ -s learn/$file ] && [ -s learn/last/$file ] || check 1 "$file in learn and learn/last"
done
"$train" eval --model learn --data 'val_0*.bin' --context 32 --threads 1 >eval.txt 2>err.txt &&
    tail -n 1 eval.txt | sed 's/[0-9][0-9]*/N/g' |
    grep -qx 'loss N.N perplexity N.N bits_per_byte N.N tokens N'
check $? "eval: $(tail -n 1 eval.txt)"
best=$(cut -f3 learn/log.tsv | grep '[0-9]' | sort -n | head -n 1)
[ "$(tail -n 1 eval.txt | cut -d' ' -f2)" = "$best" ]
check $? "eval of the kept model gives the lowest val_loss of the log ($best)"
# A run whose validation gets worse: it learns documents that are all "ab", 2,000 bytes in all.
yes ab | head -n 1000 >lines.txt
"$tokenizer" encode --tokenizer tok --split lines --out lines lines.txt 2>/dev/null &&
    "$train" train --data 'lines_0*.bin' --val 'val_0*.bin' --tokenizer tok $tiny --cut documents \
        --steps 20 --warmup 5 --eval-every 1 --out worse >/dev/null 2>&1
losses() { cut -f3 worse/log.tsv | grep '[0-9]'; }
loss_of() { "$train" eval --model $1 --data 'val_0*.bin' --threads 1 2>/dev/null | sed -n 's/^loss \([0-9.]*\) .*/\1/p'; }
[ "$(losses | sort -n | head -n 1)" != "$(losses | tail -n 1)" ] &&
    [ "$(loss_of worse)" = "$(losses | sort -n | head -n 1)" ] &&
    [ "$(loss_of worse/last)" = "$(losses | tail -n 1)" ]
check $? "--out keeps the best model, $(loss_of worse), last/ the last, $(loss_of worse/last)"
"$train" eval --model worse --data 'lines_0*.bin' >eval.txt 2>/dev/null
tail -n 1 eval.txt | awk '{ want = $2 * $8 / log(2) / 2000; exit !($6 > want - 1e-3 && $6 < want + 1e-3) }'
check $? "bits per byte are those of the text, without <|endoftext|>: $(tail -n 1 eval.txt)"
awk '$1 == "loss" { want = $2 / $6 } { ratio[$1] = $2 / ($1 == "loss" ? $6 : $4) }
    END { for (k in ratio) if (ratio[k] < 0.99 * want || ratio[k] > 1.01 * want) exit 1
        exit !("uniform" in ratio && "unigram" in ratio) }' eval.txt
check $? "the baselines, too: $(grep unigram eval.txt)"
cat="--model learn --prompt the_cat --tokens 60"
"$train" sample $cat --seed 3 >a.txt 2>err.txt && grep -q '^the_cat' a.txt &&
    grep -q 'tokens/s' err.txt && iconv -f UTF-8 -t UTF-8 a.txt >/dev/null
check $? "sample begins with the prompt and is valid UTF-8"
"$train" sample $cat --seed 3 --threads 1 2>/dev/null | cmp a.txt -
check $? "sample: the same seed gives the same text"
! "$train" sample $cat --seed 4 2>/dev/null | cmp -s a.txt -
check $? "sample: another seed gives another text"
greedy="--model learn --temperature 0 --tokens 80"
"$train" sample $greedy --seed 1 >a.txt 2>/dev/null &&
    "$train" sample $greedy --seed 2 >b.txt 2>/dev/null && cmp a.txt b.txt
check $? "sample: temperature 0 needs no seed, also beyond the context, from an empty prompt"
"$train" info --model learn >info.txt && grep -q '^parameters  *[0-9]' info.txt &&
    grep -q '^tokenizer_hash' info.txt && grep -q '^history' info.txt &&
    grep -q '^tokenizer_usage  *begin 1, keep tail 1, at most 32 ' info.txt &&
    grep -q 'train.lr  *0.003' info.txt
check $? "info"
evaluated=$(awk -F '\t' 'NR > 1 && $3 != "" { printf "%d %.3f\n", $1, $3 }' learn/log.tsv)
[ "$(sed -n '/^history/,/^seconds/p' info.txt | awk 'NF == 3 && $1 ~ /^[0-9]/ {
    printf "%d %.3f\n", $1, $2 }')" = "$evaluated" ] && [ "$evaluated" ]
check $? "its history has the steps and losses of all evaluations"
# A run that is killed while it writes may leave a row without its end: the time is that of the last
# whole row.
cp -r learn cut && printf '151\t2.5\t\t\t0.001\t0.5\t99999\t8' >>cut/log.tsv
want=$(grep '^seconds' info.txt)
[ -n "$want" ] && [ "$("$train" info --model cut | grep '^seconds')" = "$want" ]
check $? "info leaves out a row of the log that was cut off"

# The first and the last training loss of a log; a row with a NUL byte is left out.
losses() { { head -n 1 learn/log.tsv && cat; } >cut/log.tsv && "$train" info --model cut | grep '^loss '; }
{ printf '1\t4.5\t\t\t1\t1\t1\t1\t1\n2\t3.25\t\t\t1\t1\t1\t1\t1\n' && echo '3	9.9' | tr . '\000'; } | losses |
    grep -qx 'loss  *4.5000 at first, 3.2500 at last'
check $? "info has the losses of a log"
printf '1\tnan\t\t\t1\t1\t1\t1\t1\n' | losses >out.txt
[ ! -s out.txt ] && rm cut/log.tsv && "$train" info --model cut >out.txt && ! grep -q '^loss ' out.txt
check $? "none without losses or a log"
printf 'epoch\tstep\ttrain_loss\n1\t2\t3\n' >cut/log.tsv
"$train" info --model cut >out.txt && ! grep -q '^loss ' out.txt
check $? "and none of the log of another program"

# The profile's time of a step is that of the log's steps, without the first.
"$train" train $data $tiny --steps 5 --profile --out profiled >profile.txt 2>/dev/null
ms=$(sed -n 's/^profile of 4 steps, \([0-9.]*\) ms each.*/\1/p' profile.txt)
awk -F '\t' -v ms="$ms" 'NR > 2 { sum += ($7 - before) / $8 } { before = $7 }
    END { each = 1000 * sum / 4; exit !(ms > 0.9 * each && ms < 1.1 * each) }' profiled/log.tsv
check $? "profile: $ms ms a step, as in the log"

# --- Where texts end: a model of documents that are all "ab" ---

"$train" train --data 'lines_0*.bin' --tokenizer tok $tiny --cut documents --steps 60 --out lines \
    >/dev/null 2>&1
ends() # LINES WORDS OPTIONS...: a sample of so many characters, line end included, and what it says
{
    characters=$1 words=$2
    shift 2
    "$train" sample --model lines --tokens 30 --top-k 1 "$@" >a.txt 2>err.txt &&
        [ "$(wc -c <a.txt)" -ge "$characters" ] && [ "$(wc -c <a.txt)" -le $((2 * characters)) ] &&
        if [ -n "$words" ]; then grep -q -- "$words" err.txt; else [ "$(wc -l <err.txt)" -eq 1 ]; fi
    check $? "sample $*: $(wc -c <a.txt) bytes${words:+, says \"$words\"}"
}
ends 3 ''
ends 6 '' --prompt ab --count 2
ends 13 '' --min-tokens 12 --tokens 24
ends 31 '' --min-tokens 1M --temperature 0.8 --top-k 40
ends 2 '' --tokens 1 --prompt a
ends 31 '' --min-tokens 40

# --- The learning rate: 20 steps, of which 4 warm up ---

# The highest is 1. Expected: a rise in steps of a quarter; then by schedule, with t from 0 to 1.
rates() # SCHEDULE RATIO LAST: LAST is the number of the step at which t is 1
{
    "$train" train $data $tiny --lr 1 --steps 20 --warmup 4 --schedule $1 --min-lr-ratio $2 \
        --clip 1e-9 --overwrite --out rates >/dev/null 2>&1
    awk -F '\t' -v schedule=$1 -v ratio=$2 -v last=$3 'NR > 1 {
        t = ($1 - 4) / (last - 4)
        height = schedule == "cosine" ? (1 + cos(3.14159265358979 * t)) / 2 : 1
        if (schedule == "wsd" && t > 0.8) height = 1 - sqrt((t - 0.8) / 0.2)
        want = $1 <= 4 ? $1 / 4 : ratio + (1 - ratio) * height
        if ($5 - want > 1e-6 || want - $5 > 1e-6 || $5 <= 0) { print $1, $5, want; bad = 1 }
    } END { exit bad || NR != 21 }' rates/log.tsv
    check $? "learning rates of $1, at the end $2 of the highest"
}
for schedule in cosine wsd constant; do rates $schedule 0.1 20; done
rates cosine 0 21                       # the last step, too, has a rate above 0
rates wsd 0 21

# --- What suits the time and the text ---

"$train" train $data --steps 12 --layers 1 --threads 1 --out suits >/dev/null 2>err.txt
chosen=$(sed -n 's/^about .* tokens, .* epochs: chosen //p' err.txt)
set -- $chosen
[ $# -eq 16 ] && "$train" train $data --steps 12 --layers 1 --threads 1 $chosen --out repeats \
    >/dev/null 2>err.txt && ! grep -q chosen err.txt
check $? "chosen: $chosen"
same_run suits repeats "with these options the run repeats, byte for byte"
"$train" train --resume --out suits --steps 14 --threads 1 >/dev/null 2>err.txt && ! grep -q chosen err.txt &&
    grep -qa '"train.layers":"1"' suits/state.safetensors && [ "$(wc -l <suits/log.tsv)" -eq 15 ]
check $? "--resume keeps them"
sizes() { "$train" train $data --plan "$@" 2>&1 >/dev/null | sed -n "s/^\(.*\): about .*chosen/\1:/p"; }
sizes | grep -q '^10m00s: --layers [0-9]* --heads .* --dropout 0.1$'
check $? "without a length: $(sizes)"
sizes --time-limit 1s --channels 96 --dropout 0 | grep -q '^1s: --layers 1 --heads 3 --context 128 --batch 8 --accumulate 1 --lr 0.0046 --optimizer muon$'
check $? "with little time a small one, and eight tokens a step for each channel; what is given stays"
sizes --time-limit 1s --channels 32 --batch 1 --lr 0 | grep -q -- '--lr 0.008 --optimizer adamw '
check $? "AdamW where a step has fewer"
sizes --time-limit 1s --channels 512 --optimizer adamw | grep -q -- '--batch 4 '
check $? "it needs no large step"
sizes --time-limit 1s --heads 6 | grep -q -- '--layers 1 --channels 66 '
check $? "heads that are given divide the width"
sizes --time-limit 1s --context 100 --channels 128 --layers 1 | grep -q -- '--optimizer muon'
check $? "a context that is no power of 2 has eight, too"
sizes --time-limit 1h --epochs 16 | grep -q -- '--dropout 0$' && sizes --time-limit 1h --epochs 17 | grep -q -- '--dropout 0.1$'
check $? "dropout beyond 16 passes"
"$train" train $data --steps 100 --layers 1 --channels 1024 --context 64 --plan 2>&1 >/dev/null |
    grep -q '^about 0.82M tokens, .* --batch 128 '
check $? "the tokens are those of the batch that is chosen"

# --- The same run gives the same bytes ---

run="$data $tiny --accumulate 2 --dropout 0.1 --steps 240 --seed 5"
run="$run --eval-every 40 --eval-tokens 500 --save-every 7"
"$train" train $run --out whole >/dev/null 2>err.txt
check $? "a run with dropout and accumulation"

default= stdout=out.txt stderr=err.txt
# Starts the run in the background, waits until it has saved and evaluated, and sends the signals.
interrupt() # OUT "SIGNAL..." [OPTIONS]
{
    out=$1 signals=$2
    shift 2
    $default "$train" train "$@" --out "$out" >$stdout 2>$stderr &
    pid=$!
    wait_for has_rows "$out/log.tsv" 60
    for signal in $signals; do kill "-$signal" $pid 2>/dev/null; done
    wait $pid 2>/dev/null
    status=$?
    steps=$(($(wc -l <"$out/log.tsv") - 1))
}

interrupt stopped TERM $run
[ $status -eq 143 ] && [ $steps -lt 240 ] && grep -q 'resume' err.txt
check $? "SIGTERM: saves after step $steps, status 143, says how to resume"
"$train" train --resume --out stopped --threads 1 >/dev/null 2>err.txt
check $? "resume without repeating the options"
same_run whole stopped "resumed after SIGTERM = never interrupted, byte for byte"

interrupt killed KILL $run
touch killed/state.safetensors.unfinished killed/last/model.safetensors.unfinished
[ $status -eq 137 ] && [ $steps -lt 240 ]
check $? "kill -9 in the middle (step $steps)"
"$train" train $run --resume --out killed >/dev/null 2>err.txt
check $? "resume with the same options repeated"
same_run whole killed "resumed after kill -9 = never interrupted, byte for byte"

[ -z "$(find killed -name "*.unfinished")" ]
check $? "what was being written when it was killed is gone"
# This shell ignores SIGINT in what it runs in the background.
env --default-signal=HUP true 2>/dev/null && default='env --default-signal=HUP'
interrupt hung 'HUP INT' $run
default=
check $status "SIGHUP, and a SIGINT that the parent ignores: trains to the end"
same_run whole hung "as if there had been none, byte for byte"
if command -v setsid >/dev/null && script -qec true /dev/null >/dev/null 2>&1; then
    setsid script -qec "set -f; exec $train train $run --sample-every 10 --out lost" /dev/null \
        </dev/null >out.txt 2>&1 &
    pid=$!
    until [ -s lost/last/model.safetensors ] || ! kill -0 $pid; do sleep 0.01; done
    kill -9 $pid                        # with it goes the terminal
    wait $pid 2>/dev/null
    wait_for grep -qa '"step":"240"' lost/state.safetensors
    same_run whole lost "the terminal goes away: trains to the end, byte for byte"
fi
mkfifo pipe
head -n 1 <pipe >/dev/null &            # the reader of all output, which soon goes
stdout=pipe stderr=pipe
interrupt unread TERM $run --sample-every 10 --sample-tokens 5
[ $status -eq 143 ] && grep -qa "\"step\":\"$steps\"" unread/state.safetensors
check $? "SIGTERM, when nobody reads the output any more: saves after step $steps, status 143"
if env --default-signal=INT true 2>/dev/null; then
    head -n 1 <pipe >/dev/null &
    default='env --default-signal=INT'
    interrupt unread2 INT $run
    default=
    [ $status -eq 130 ] && grep -qa "\"step\":\"$steps\"" unread2/state.safetensors
    check $? "Ctrl-C of a training and what reads it: saves after step $steps, status 130"
fi
stdout=out.txt stderr=err.txt
cp -r stopped odd
LC_ALL=C sed -i 's/"train.eval-every":"40"/"train.eval-every":"00"/' odd/state.safetensors
"$train" train --resume --out odd --steps 242 --threads 1 >/dev/null 2>err.txt
check $? "a state that leaves open how often to evaluate"
cp odd/state.safetensors whole_state
for change in 's/"position":"2/"position":"-/' 's/\("position":"[0-9]* [0-9]*\) /\1x/' \
    's/\("position":"[0-9]* [0-9]* [0-9]*\) [0-9]/\1 -/' 's/"position"/"nowhere!"/'; do
    LC_ALL=C sed "$change" whole_state >odd/state.safetensors
    fails 1 'odd/state.safetensors: does not say where the run is' \
        "$train" train --resume --out odd --steps 243 --threads 1
done
LC_ALL=C sed 's/"train.heads":"[0-9]*"/"train.heads":"0"/' whole_state >odd/state.safetensors
fails 1 'odd/state.safetensors: is not of a run' "$train" train --resume --out odd

short="$data $tiny --optimizer muon --dropout 0.1 --steps 12 --eval-every 5 --eval-tokens 500"
for threads in 1 2 3 4 8; do
    "$train" train $short --threads $threads --out threads$threads >/dev/null 2>err.txt &&
        "$train" eval --model threads$threads --data 'val_0*.bin' --threads $threads \
            >threads$threads.txt 2>/dev/null &&
        "$tokenizer" train --vocab 300 --threads $threads --out tok$threads train.txt 2>/dev/null &&
        "$tokenizer" encode --tokenizer tok --split lines --threads $threads --out ids$threads \
            train.txt 2>/dev/null
    check $? "--threads $threads: a run, its evaluation, a tokenizer, a shard"
done
for threads in 2 3 4 8; do
    same_run threads1 threads$threads "1 = $threads threads, byte for byte"
    cmp threads1.txt threads$threads.txt && cmp tok1/merges.txt tok$threads/merges.txt &&
        cmp tok1/tokenizer.json tok$threads/tokenizer.json &&
        cmp ids1_000000.bin ids${threads}_000000.bin
    check $? "and the same evaluation, tokenizer and shard"
done
OMP_NUM_THREADS=2,1 "$train" train $short --out nested >/dev/null 2>&1
same_run threads1 nested "as many threads as a list says, byte for byte"
{
    sleep 0.2
    "$train" train $short --sample-every 3 --out deaf
    echo $? >status.txt
} 2>&1 | true
[ "$(cat status.txt)" -eq 1 ]
check $? "nobody reads the output: status 1"
same_run threads1 deaf "but trained to the end, byte for byte"
{ "$train" sample $cat --tokens 1M --min-tokens 1M 2>err.txt; echo $? >status.txt; } |
    head -n 1 >a.txt
[ "$(cat status.txt)" -eq 141 ] && [ ! -s err.txt ]
check $? "sample | head: ends at once, silently"

# --- One command, killed again and again, from the first moment on ---

for moment in 0 0.02 0.04 0.06 0.08 0.1 0.15; do
    "$train" train $short --resume --threads 1 --out again-and-again >/dev/null 2>err.txt &
    sleep $moment
    kill -9 $! 2>/dev/null
    wait $! 2>/dev/null
done
"$train" train $short --resume --threads 1 --out again-and-again >/dev/null 2>err.txt
same_run threads1 again-and-again "--resume, killed 7 times from the first moment on, byte for byte"
"$train" train $short --resume --threads 1 --out fresh >/dev/null 2>err.txt &&
    grep -q '^nothing to resume in fresh: the run starts' err.txt
check $? "--resume starts where nothing is"

# --- Going on, starting from another model, other ends ---

"$train" train --resume --out threads1 --steps 14 --threads 1 >/dev/null 2>err.txt &&
    [ "$(tail -n 1 threads1/log.tsv | cut -f1)" = 14 ]
check $? "a larger --steps extends a finished run"
"$train" train --resume --out threads1 --threads 1 >out.txt 2>err.txt && grep -q 'finished' err.txt
check $? "resuming a finished run changes nothing"
fails 2 '--steps: fewer steps (13) than the run in threads1 has' \
    "$train" train --resume --out threads1 --steps 13
"$train" train $data --init learn --context 16 --batch 4 --steps 3 --lr 1e-4 --threads 1 \
    --out from >/dev/null 2>&1 && awk -F'\t' 'NR == 2 { exit !($2 < 3.5) }' from/log.tsv &&
    grep -q '"n_positions": 16' from/config.json
check $? "--init with a shorter context starts from a low loss"
sizes --init learn | grep -q -- '--lr 0.0019 --optimizer adamw '
check $? "--init has a quarter of the rate"
"$train" train $data $tiny --context 1 --steps 1 --out one >/dev/null 2>&1 &&
    grep -qa '"transformer.wpe.weight":{"dtype":"F32","shape":\[1,32\]' one/model.safetensors &&
    "$train" eval --model one --data 'val_0*.bin' >/dev/null 2>&1
check $? "a matrix of one row stays a matrix"
"$train" train --data 'val_0*.bin' --tokenizer tok $tiny --context 64 --batch 500 --epochs 2 \
    --out few >/dev/null 2>err.txt && cmp few/model.safetensors few/last/model.safetensors
check $? "data for less than one batch, --epochs, no --val"
"$train" train $data $tiny --steps 2 --out quiet >out.txt 2>&- && [ "$(wc -l <quiet/log.tsv)" -eq 3 ]
check $? "without a standard error, the log holds no messages"
"$train" train $data $tiny --steps 4 --sample-every 2 --sample-tokens 5 --out sampled \
    >out.txt 2>err.txt && [ "$(wc -l <out.txt)" -ge 3 ]
check $? "samples while training"
began=$(date +%s)
"$train" train $data $tiny --plan --out planned >plan.txt 2>/dev/null &&
    grep -q '^parameters  *[0-9]' plan.txt && grep -q '^  activations ' plan.txt &&
    grep -q '^duration ' plan.txt && [ ! -e planned ]
check $? "--plan prints sizes and duration and writes nothing"
"$train" train $data $tiny --batch 128 --steps 1000000000000 --plan 2>/dev/null | grep -q '^duration  *[0-9]\{6,\}h'
check $? "a duration of centuries"
# Its peak is the best of five attempts of at least 2^23 times 12 products and sums of four numbers.
awk -v most=$(($(date +%s) - began + 1)) '/^peak/ { exit !($2 * most > 4) }' plan.txt
check $? "the $(grep '^peak' plan.txt): no fewer than were computed in that time"
fails 1 '[0-9] MB of memory are needed, and this process may use [0-9]' \
    "$train" train $data --layers 100 --heads 4 --channels 16384 --context 64 --epochs 2 --plan

# --- Numbers that go wrong ---

# A run that diverges, on a text that is one sequence: the message names a file with what the step
# read, and two commands, which both work, whatever its name.
printf 'the cat\tsees\na dog\001\001\001\001\001\001' >one.txt
"$tokenizer" encode --tokenizer tok --out one one.txt 2>/dev/null
diverge="--data one_000000.bin --tokenizer tok --cut documents $tiny --clip 0 --warmup 0 --steps 50 --save-every 1"
fails 1 '^train_gpt: step [0-9]*: the loss is .*, the gradient.*diverged/step_[0-9]*.txt holds what' \
    "$train" train $diverge --lr 1000 --out "it's diverged"
text=$(sort -u "it's diverged/$(ls "it's diverged" | grep '^step_')")
[ "$text" = '<|endoftext|>the cat\tsees\na dog\x01\x01\x01\x01\x01\x01' ]
check $? "the file has the text of the step"
grep -q 'before. Start again with --overwrite and a lower --lr than 1000, or leave' stderr
check $? "the advice for a run without --skip-spikes"
rows=$(wc -l <"it's diverged/log.tsv")
fails 1 'it held before. Start again with --overwrite and a lower --lr than 1000\.$' \
    "$train" train --out "it's diverged" --resume --skip-spikes
[ "$(grep -c "^step [0-9]*  spike: .*skipped; it read it's diverged/step_[0-9]*.txt$" stderr)" -eq 16 ] &&
    [ "$(wc -l <"it's diverged/log.tsv")" -eq $((rows + 16)) ]
check $? "--resume --skip-spikes leaves steps out, but not for ever"
fails 1 'than 1000, or leave such steps out: --skip-spikes\.$' \
    "$train" train $diverge --lr 1000 --save-every 1000 --overwrite --out "it's diverged"
"$train" train $diverge --lr 1e-3 --overwrite --out "it's diverged" >/dev/null 2>&1 &&
    [ "$(wc -l <"it's diverged/log.tsv")" -eq 51 ]
check $? "a lower --lr with --overwrite"

# Text that is easy, with a part that is not: what is found there is a spike.
{
    yes 'the cat sees the dog' | head -n 300
    awk 'BEGIN { srand(3); for (i = 0; i < 200; i++) printf "%c", 33 + rand() * 90 }'
    yes 'the cat sees the dog' | head -n 300
} >spiky.txt
"$tokenizer" encode --tokenizer tok --out spiky spiky.txt 2>/dev/null
spiky="--data spiky_000000.bin --tokenizer tok $tiny --steps 250"
"$train" train $spiky --out reported >out.txt 2>reported.txt
spikes=$(grep -c '^step [0-9]*  spike: loss [0-9.]*, norm [0-9.]*, before it [0-9.]*$' reported.txt)
[ "$spikes" -gt 0 ] && ! grep -q skipped out.txt
check $? "$spikes spikes are reported"
"$train" train $spiky --skip-spikes --out skipped >out.txt 2>skipped.txt
spikes=$(grep -c '^step [0-9]*  spike: .*; skipped$' skipped.txt)
[ "$spikes" -gt 0 ] && grep -q "^skipped: 250 steps, $spikes of them skipped, " out.txt
check $? "--skip-spikes skips $spikes"
first=$(sed -n 's/^step \([0-9]*\)  spike.*/\1/p' skipped.txt | head -n 1)
same_until() { head -n $1 reported/log.tsv | cut -f1-7 >a.txt; head -n $1 skipped/log.tsv | cut -f1-7 | cmp -s a.txt -; }
same_until $((first + 1)) && ! same_until $((first + 2))
check $? "the first of them, step $first, is the first difference"
interrupt parts KILL $spiky --skip-spikes --save-every 9
"$train" train --resume --out parts >/dev/null 2>&1
same_run skipped parts "--skip-spikes, interrupted by kill -9 and resumed, byte for byte"

# --- What is said: help, warnings, plain words ---

says() # WORDS COMMAND...: succeeds, with the words on stdout or stderr
{
    words=$1
    shift
    "$@" >said.txt 2>&1 && grep -q -- "$words" said.txt
    check $? "says \"$words\""
}
says '^  sample  *let a model write' "$train" help
says '^  --warmup N' "$train" train --help
silent() # DESCRIPTION COMMAND...: no warning
{
    description=$1
    shift
    "$@" 2>&1 | grep '^train_gpt:' >said.txt
    check "$(wc -l <said.txt)" "$description: no warning"
}
if has_terminal; then
    for run in "$data $tiny --steps 12 --warmup 0 --sample-every 6 --sample-tokens 3" \
        "--resume --steps 14 --threads 1"; do
        run="set -f; $train train $run"
        stays_on_terminal "train" peak "$run --out shown1" "$run --out shown2"
    done
fi
plan="train $data $tiny --steps 20 --plan"
says '--warmup 30: more than the run.s 20 steps' "$train" $plan --warmup 30
says '--min-lr-ratio: has no effect with --schedule constant' \
    "$train" $plan --min-lr-ratio 0.2 --schedule constant
says '--eval-tokens: has no effect without --val' \
    "$train" train --data 'train_0*.bin' --tokenizer tok $tiny --eval-tokens 9 --plan
says '--sample-prompt: has no effect without --sample-every' "$train" $plan --sample-prompt ''
says '--profile: has no effect with --plan' "$train" $plan --profile
says '--warmup 1000000: more than the run.s [0-9]* steps' "$train" train $data $tiny --time-limit 1s \
    --warmup 1000000 --plan
says '^duration .*, cut to --time-limit 1s$' "$train" $plan --steps 1000000 --time-limit 1s
says 'ends in a blank' "$train" sample $cat --prompt 'a '
silent 'a prompt that ends with a line end' "$train" sample $cat --prompt 'a
'
silent 'options that have an effect' "$train" $plan --warmup 20 --min-lr-ratio 0.2 --eval-every 9
says '--top-k: has no effect with --temperature 0' "$train" sample $greedy --top-k 5
silent 'sampling with --top-k' "$train" sample $cat --top-k 5 --temperature 0.5
cores=$(getconf _NPROCESSORS_ONLN)
says "$((cores + 1)) threads: this process may use only\|built without OpenMP" \
    "$train" eval --model learn --data 'val_0*.bin' --threads $((cores + 1))
if command -v taskset >/dev/null; then
    core=$(taskset -cp $$ | sed 's/.*: *\([0-9]*\).*/\1/')
    says 'threads: 1' taskset -c "$core" "$train" $plan
    says '2 threads: this process may use only 1 core,\|built without' \
        taskset -c "$core" "$train" $plan --threads 2
fi
printf 'ab\nab\nab' >ab.txt
says 'gives only 1 merge, ' "$tokenizer" train --vocab 300 --out ab ab.txt
printf 'abcdefghijklmnopqrst' >few.txt
"$tokenizer" encode --tokenizer tok --out few-ids few.txt 2>/dev/null
tokens=$(($(wc -c <few-ids_000000.bin) / 2 - 512))
"$train" train --data few-ids_000000.bin --tokenizer tok --context 256 --batch 16 --steps 12 \
    --plan >said.txt 2>/dev/null
grep -q "^steps  *12 of $((16 * (tokens - 1))) tokens: 192 epochs (3 to 20 suit most: 1 to 2 steps)" said.txt
check $? "the plan of a run on $tokens tokens: $(grep '^steps' said.txt)"
"$train" train --data few-ids_000000.bin --tokenizer tok --time-limit 1m --plan 2>/dev/null |
    grep -q '^steps .* epochs in 1m00s (3 to 20 suit most: [0-9]*s to [0-9]*s)$'
check $? "the plan of a run that only time ends"

# --- What cannot be ---

cp learn/model.safetensors before
fails 2 'already holds model.safetensors' "$train" train $data $tiny --steps 2 --out learn
cmp -s before learn/model.safetensors
check $? "a refused --out is untouched"
"$train" train $data $tiny --steps 2 --overwrite --out learn >/dev/null 2>&1 &&
    [ "$(wc -l <learn/log.tsv)" -eq 3 ]
check $? "--overwrite replaces it"
mkdir nowhere && cp -r learn/model.safetensors nowhere
fails 2 'It has no state.safetensors, so there is nothing to resume' "$train" train $data $tiny --resume --out nowhere
fails 2 '--lr 0.1: the run in learn has 0.003' "$train" train --resume --out learn --lr 0.1
fails 1 'the run in learn was made with other input: its data_fingerprint is [0-9a-f]*, here [0-9a-f]*\.' \
    "$train" train --resume --out learn --data train_000000.bin --steps 9
fails 1 'the run in few was made with other input: its val_fingerprint' \
    "$train" train --resume --out few --val train_000000.bin
fails 1 'was made with other input: its data_fingerprint' \
    "$train" train --resume --out learn --data train_000001.bin --steps 9
fails 1 'was made with other input: its val_fingerprint' \
    "$train" train --resume --out learn --val lines_000000.bin --steps 9
fails 1 '--data none\*: no such file' "$train" train --data 'none*' --tokenizer tok --out new
fails 1 'text.txt: not a token shard' "$train" train --data text.txt --tokenizer tok --out new
head -c 2000 val_000000.bin >cut.bin
fails 1 'cut.bin: .*its header says' "$train" eval --model learn --data cut.bin
"$tokenizer" train --vocab 260 --out other train.txt 2>/dev/null
fails 1 'train_000000.bin: made by another tokenizer' \
    "$train" train --data 'train_0*.bin' --tokenizer other --plan --out new
head -c 900 val.txt >little.txt
"$tokenizer" train --vocab 300 --min-frequency 1 --out alike little.txt 2>/dev/null &&
    "$tokenizer" encode --tokenizer alike --out alike/val val.txt 2>/dev/null &&
    cp val_000000.bin alike/val_000001.bin
fails 1 'val_000001.bin: made by another tokenizer' \
    "$train" train --data 'alike/val*' --tokenizer alike --plan --out new
fails 1 'alike/val_000000.bin: made by another tokenizer' \
    "$train" eval --model learn --data 'alike/val*'
fails 1 'alike/val_000000.bin: made by another tokenizer' \
    "$train" train --data 'train_0*.bin' --val alike/val_000000.bin --tokenizer tok --plan --out new
{ head -c 16 val_000000.bin && head -c 8 /dev/zero && tail -c +25 val_000000.bin; } >unknown.bin
"$train" eval --model learn --data unknown.bin 2>err.txt | grep ^loss >a.txt
"$train" eval --model learn --data val_000000.bin 2>err.txt | grep ^loss | cmp - a.txt
check $? "a shard without a tokenizer's hash is read"
"$tokenizer" encode --tokenizer other --out other/val val.txt 2>/dev/null
fails 1 'trained with another tokenizer' \
    "$train" train --data other/val_000000.bin --tokenizer other --init learn --out new
says '--layers: has no effect with --init' "$train" train $data --init learn --layers 7 --plan
fails 2 'learn: is the model to start from' \
    "$train" train $data --init learn --overwrite --out ./learn/../learn
fails 2 '--context 99: the model' "$train" train $data --init learn --context 99 --out new
"$train" train $data --init learn --context 0 --plan 2>/dev/null | grep -q 'context 32,'
check $? "--init, --context 0: that of the model"
fails 2 'not a multiple' "$train" train $data $tiny --heads 5 --tokenizer nowhere --out new
fails 2 '--layers -1: out of range' "$train" train $data --layers -1 --out new
fails 2 '--context 1048577: out of range, 0 to 1048576' "$train" train $data --context 1048577 --out new
fails 2 '--schedule linear: not one of' "$train" train $data --schedule linear --out new
fails 2 '--data: must be given' "$train" train --out new
fails 2 '--epochs: choose one' "$train" train $data --steps 3 --epochs 2 --out new
fails 2 '"": no such subcommand' "$train"
for option in data val init tokenizer out; do
    fails 2 "--$option: the value is empty" "$train" train $data --$option ''
done
fails 2 '--model: the value is empty' "$train" eval --model= --data x
speaker=tokenizer
fails 2 '--out: the value is empty' "$tokenizer" train --out '' train.txt
fails 1 '"": cannot be read' "$tokenizer" train --out new ''
speaker=train_gpt
fails 2 '"trains": no such subcommand' "$train" trains
fails 1 'tok/merges.txt: cannot be made a directory (File exists)' \
    "$train" train $data $tiny --steps 2 --out tok/merges.txt/a/b
"$train" train $data $tiny --steps 2 --out "$(printf 'a/%.0s' $(seq 60000))" >/dev/null 2>stderr
[ $? -eq 1 ] && grep -q '^train_gpt: a/a/' stderr
check $? "a path that is too long"
if [ -d /sys ]; then                    # what the system said of /sys/x, not of /sys/x/y
    fails 1 '/sys/x: cannot be made a directory' \
        "$train" train $data $tiny --steps 2 --out /sys/x/y
    ! grep -q 'No such file' stderr
    check $? "the first directory that could not be made is named, with the reason"
fi
elsewhere() { (cd tok && exec "$@"); }
fails 1 '--val val_0\*.bin: no such file here' \
    elsewhere "$train" train --resume --out ../learn
fails 1 'tok: is no directory with config.json' "$train" sample --model tok
[ -z "$(ls -A new 2>/dev/null)" ]
check $? "nothing was written by what failed"
if [ -c /dev/full ]; then
    full() { "$@" >/dev/full; }
    fails 1 'standard output: writing failed' full "$train" info --model learn
fi
limited() { (ulimit -f 100 && exec "$@"); }
fails 1 'large/state.safetensors: writing failed' \
    limited "$train" train $data $tiny --steps 2 --out large
ls large | grep -q unfinished
[ $? -eq 1 ]
check $? "what could not be written is gone"
cp -r learn broken
printf 'XXXX' | dd of=broken/model.safetensors bs=1 seek=20000 conv=notrunc 2>/dev/null
fails 1 'damaged' "$train" eval --model broken --data val_000000.bin
head -c 20000 learn/state.safetensors >broken/state.safetensors
fails 1 'broken/state.safetensors' "$train" train --resume --out broken --steps 9

exit $failures
