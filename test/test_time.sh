#!/bin/sh
# test_time.sh: ./train_gpt train --time-limit. Its checks look at the clock, so it runs alone
# (test/run.sh). Run from the repository root; the status is the number of failures.

. test/lib.sh
train=$PWD/train_gpt
tokenizer=$PWD/tokenizer
cd "$dir" || exit 1

awk 'BEGIN {
    srand(7)
    split("the a one cat dog bird fish sees likes eats hears", word)
    for (i = 0; i < 9000; i++) printf "%s%s", word[int(rand() * 11) + 1], i % 6 == 5 ? ".\n" : " "
}' >text.txt
"$tokenizer" train --vocab 300 --out tok text.txt 2>/dev/null &&
    "$tokenizer" encode --tokenizer tok --split lines --val-fraction 0.1 --out text text.txt 2>/dev/null
check $? "tokenizer and shards"
data="--data text_0*.bin --val val_text_0*.bin --tokenizer tok"
tiny="--dropout 0 --layers 2 --heads 2 --channels 32 --context 32 --batch 4 --lr 3e-3 --threads 1"
set -f                                  # patterns are for train_gpt, not for this shell

# Sends SIGTERM to the command when WHEN succeeds.
stop_when() # "WHEN" COMMAND...
{
    when=$1
    shift
    rm -f err.txt
    "$@" >/dev/null 2>err.txt &
    pid=$!
    wait_for eval "$when"
    kill -TERM $pid
    wait $pid
}

# --- A time limit: the rate stays at 3e-3, and falls when four fifths of the time are over ---

# Whether the log ends in time, and its rates are as they should be: constant until the message that
# has "step FALL/STEPS", then 1 - sqrt, down to a tenth at the step STEPS, or near it if it got slower.
# If it got much slower, a later message has other numbers, and the rate falls anew from where it is.
fitted() # DIR SECONDS
{
    decided=$(sed -n 's/^step \([0-9/]*\).* the learning rate falls from here .*/\1/p' err.txt)
    awk -F '\t' -v limit=$2 -v decided="$(echo $decided)" '
        NR > 1 { rate[$1] = $5; seconds[$1] = $9; last = $1; val = $3 }
        END {
            count = split(decided, pair, "[ /]") / 2
            fell = count ? seconds[pair[1]] : 0
            time = seconds[last]
            for (i = 101; i <= last && !bad; i++) {
                while (k < count && i > pair[2 * k + 1]) {
                    from = pair[2 * k + 1]
                    steps = pair[2 * ++k]
                }
                want = k ? 3e-4 + (rate[from] - 3e-4) * (1 - sqrt((i - from) / (steps - from))) : 3e-3
                if (rate[i] > want + 1e-7 || rate[i] < want - 1e-7) bad = i
            }
            if (bad) print "     step " bad ": rate " rate[bad] ", not " want
            print "     " last " of " steps " steps, falling from " decided ", " fell " s to " time " s"
            exit bad || !k || k < count || last > steps || val == "" || rate[last] > 6e-4 ||
                fell < 0.7 * limit || fell > 0.95 * limit || time < 0.88 * limit || time > 1.2 * limit
        }' $1/log.tsv
}
"$train" train $data $tiny --time-limit 3s --out timed >/dev/null 2>err.txt
fitted timed 3
check $? "--time-limit 3s: all of it is used, then comes an evaluation"
grep -Eq 'tokens, [0-9.]+ epochs in 3s( \(3 to 20 suit most: [0-9]+s to [0-9]+s\))?$' err.txt
check $? "--time-limit alone: how often the text is read, and what suits: $(sed -n 's/.*threads.* tokens, //p' err.txt)"
grep -qa "\"train.steps\":\"$(tail -n 1 timed/log.tsv | cut -f1)\"" timed/state.safetensors
check $? "the state has the number of steps"
stops="$data $tiny --batch 16 --schedule constant --steps 400 --eval-every 60 --eval-tokens 500"
"$train" train $stops --out unlimited >/dev/null 2>&1
"$train" train $stops --time-limit 0.6s --out "it's limited" >/dev/null 2>err.txt &&
    grep -q 'stopped after step .*/400, by --time-limit, and saved. Go on with' err.txt &&
    [ -s "it's limited/model.safetensors" ] && cp "it's limited/log.tsv" a.txt &&
    [ "$(wc -l <a.txt)" -lt 401 ] &&
    eval "$(sed -n 's/.*Go on with: //p' err.txt) --threads 1" >/dev/null 2>err.txt
check $? "--time-limit stops a run of a constant rate, and the command that it names goes on with it"
same_run unlimited "it's limited" "stopped by --time-limit after $(($(wc -l <a.txt) - 1)) of 400 = never"
"$train" train $data $tiny --time-limit 0.5s --schedule constant --out constant >/dev/null 2>err.txt &&
    [ -n "$(tail -n 1 constant/log.tsv | cut -f3)" ] && ! grep -q 'Go on with' err.txt
check $? "--time-limit alone, with a constant rate: ends with an evaluation"
"$train" train $data $tiny --steps 1000000 --schedule constant --time-limit 2s --out cut >/dev/null 2>&1
[ "$(cut -f 3 cut/log.tsv | grep -c '[0-9]')" -gt 3 ]
check $? "a run that --time-limit cuts is evaluated as often as another"
"$train" train $data $tiny --time-limit 3s --steps 1000000 --warmup 100 --out busy >/dev/null 2>err.txt &
pid=$!
until [ -s busy/log.tsv ] || ! kill -0 $pid; do sleep 0.02; done
for pause in 1 2 3; do              # busy at first: stopped for half of the time
    sleep 0.1 && kill -STOP $pid && sleep 0.4 && kill -CONT $pid
done
wait $pid
fitted busy 3
check $? "--time-limit 3s, with --steps and a slow start: all of it is used"
rows() { [ "$(wc -l <$1/log.tsv)" -ge 60 ]; }
stop_when 'rows late' "$train" train $data $tiny --time-limit 3s --save-every 20 --out late
status=$?
"$train" train --resume --out late --time-limit 4s --threads 1 >/dev/null 2>err.txt
fitted late 4
good=$?
[ $status -eq 143 ] && [ $good -eq 0 ]
check $? "resumed before four fifths, with another limit for the whole run"
"$train" train --resume --out late --epochs 1000 --plan 2>/dev/null | grep '^duration' | grep -vq 'time-limit'
check $? "--resume --epochs: the limit of the run is none any more"
stop_when 'rows early' "$train" train $data $tiny --time-limit 2s --out early
"$train" train --resume --out early >/dev/null 2>err.txt && grep -q 'rate falls from here' err.txt &&
    tail -n 1 early/log.tsv | awk -F '\t' '{ exit !($9 > 1.7 && $9 < 2.2) }'
check $? "resumed before four fifths: the time that was left, $(tail -n 1 early/log.tsv | cut -f9) s in all"
# With steps that do not fit: the same command goes on with those that do, and with the falling rate.
same="$data $tiny --time-limit 3s --steps 1000000 --warmup 100 --resume --out same"
stop_when "grep -q 'rate falls from here' err.txt" "$train" train $same
status=$?
"$train" train $same >/dev/null 2>&1 && "$train" train $same >/dev/null 2>err.txt &&
    grep -q 'is finished: .* With a larger N it goes on' err.txt && [ $status -eq 143 ] &&
    awk -F '\t' 'NR > 102 && $5 > rate { exit 1 } { rate = $5 }' same/log.tsv
check $? "the same command, resumed while the rate falls: it falls on; then the run is finished"
# Interrupted while the rate falls, and perhaps once more: the same bytes.
stop_when "grep -q 'rate falls from here' err.txt" "$train" train $data $tiny --time-limit 3s --out falling
[ $? -eq 143 ] && cp -r falling again && "$train" train --resume --out falling >/dev/null 2>&1
stop_when "grep -q '^step [0-9]*/' err.txt" "$train" train --resume --out again --threads 1
[ $? -eq 143 ] && "$train" train --resume --out again --threads 1 >/dev/null 2>&1
same_run falling again "resumed while the rate falls, once and twice, byte for byte"

exit $failures
