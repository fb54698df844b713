#!/bin/sh
# finetune_cls compare, layers and explain from end to end, on a tiny pretrained model and reviews
# from data/reviews: the rows of a comparison, interruptions, refusals; probes of every block; the
# probability after each token.

. test/lib.sh
speaker=finetune_cls match=-F

./data/reviews --out "$dir/data" --unlabelled 300 --labelled 60 --test 80 >"$dir/log" 2>&1 &&
{
    ./tokenizer train --vocab 320 --out "$dir/tok" "$dir/data/unlabelled.txt" &&
    ./tokenizer encode --tokenizer "$dir/tok" --split lines --out "$dir/corpus" \
        "$dir/data/unlabelled.txt" &&
    ./train_gpt train --data "$dir/corpus_*.bin" --tokenizer "$dir/tok" --out "$dir/base" \
        --dropout 0 --layers 2 --heads 2 --channels 32 --context 48 --batch 8 --steps 60 --lr 3e-3
} >"$dir/log" 2>&1 || { echo "FAIL the pretrained model: $(tail -n 1 "$dir/log")"; exit 1; }
train=$dir/data/train.tsv test=$dir/data/test.tsv

# compare OUT OPTION...: later options count. run=exec: in place of the (sub)shell.
run=
compare() {
    out=$1
    shift
    $run ./finetune_cls compare --model "$dir/base" --train "$train" --test "$test" \
        --out "$out" "$@"
}

# The comparison of most tests: 8 methods, 2 numbers of labels, 2 seeds.
methods=majority,nb,nbsvm,scratch,probe,last:1,full+l2sp:1,full+l2sp:1e30
whole() {
    out=$1
    shift
    compare "$out" --methods $methods --labels 12,24 --seeds 2 --steps 4 --batch 8 --threads 1 "$@"
}

# Rows without their seconds.
rows() { cut -f 1-6,8- "$1/compare.tsv"; }
same_rows() { rows "$1" >"$dir/rows1"; rows "$2" | cmp -s "$dir/rows1" -; }
none_twice() { [ -z "$(cut -f 1-3 "$1/compare.tsv" | sort | uniq -d)" ]; }

# --- The rows ---

whole "$dir/one" >"$dir/one.out" 2>"$dir/one.err"
table=$dir/one/compare.tsv
tab=$(printf '\t')
succeeds "compare.tsv: its header" [ "$(head -n 1 "$table")" = \
    "$(echo method labels seed accuracy macro_f1 loss seconds right |
        tr ' ' '\t')" ]
succeeds "compare.tsv: 8 columns, scores from 0 to 1" awk -F '\t' '
    NF != 8 { exit bad = 1 }
    NR > 1 && !($4 >= 0 && $4 <= 1 && $5 >= 0 && $5 <= 1 && $7 >= 0) { exit bad = 1 }
    END { exit bad }' "$table"
for method in $(echo $methods | tr , ' '); do
    for labels in 12 24; do
        for seed in 1 2; do echo "$method$tab$labels$tab$seed"; done
    done
done | sort >"$dir/wanted"
succeeds "compare.tsv: all of seed 1 comes before seed 2" eval '
    tail -n +2 "$table" | cut -f 3 | sort -nc'
succeeds "compare.tsv: one row for each method, number of labels and seed" \
    eval 'tail -n +2 "$table" | cut -f 1-3 | sort | cmp -s "$dir/wanted" -'
succeeds "compare.tsv: the ones of its last column are the accuracy" eval '
    tail -n +2 "$table" | awk -F "\t" "
        { right = length(\$8); accuracy = gsub(1, 1, \$8) / 80 }
        right != 80 || accuracy - \$4 > 1e-6 || \$4 - accuracy > 1e-6 { exit bad = 1 }
        END { exit bad || NR != 32 }"'
counts=$(tail -n +2 "$test" | cut -f 2 | sort | uniq -c | awk '{ printf "%.6f ", $1 / 80 }')
succeeds "majority: the part of one label" awk -v counts="$counts" '
    $1 == "majority" && index(counts, $4 " ") == 0 { exit bad = 1 } END { exit bad }' "$table"
succeeds "the table has the means; the best method of each column has a star" awk '
    FNR == NR { if (FNR > 1) sum[$1, $2 == 24] += $4; next }
    ($1, 0) in sum {
        rows++
        for (b = 0; b < 2; b++) {
            mean = sum[$1, b] / 2
            if ($(2 + 2 * b) - mean > 5.1e-4 || mean - $(2 + 2 * b) > 5.1e-4) bad = 1
            star = $(3 + 2 * b) ~ /[*]$/
            if (mean > top[b] + 1e-6) { top[b] = mean; starred[b] = star }
            else if (mean > top[b] - 1e-6) starred[b] = starred[b] || star
        }
    }
    END { exit bad || rows != 8 || !starred[0] || !starred[1] }' "$table" "$dir/one.out"
succeeds "the verdict says what significant means" grep -q "Holm's correction" "$dir/one.out"
succeeds "the verdict says that the best is flattered, and that test texts are few" eval '
    grep -q "^The best of several is a little flattered" "$dir/one.out" &&
    grep -q "^accuracy on 80 test texts, so few that" "$dir/one.out"'
succeeds "the verdict says what pretraining is worth, and ends with a choice" eval '
    grep -q "^Pretraining is worth [a-z0-9 ]*: with 12 labels " "$dir/one.out" &&
    tail -n 1 "$dir/one.out" | grep -q "^For these data, with 24 labels: [a-z]"'
whole "$dir/two" --threads 2 >/dev/null 2>&1
succeeds "1 and 2 threads give the same rows" same_rows "$dir/one" "$dir/two"

# --- Interrupted and resumed ---

reaches() { wait_for has_rows "$1/compare.tsv" "$2"; }  # OUT LINES

# Killed when so many rows are there.
{ run=exec; whole "$dir/killed" >/dev/null 2>&1; } & pid=$!
for wanted in 4 11 20 27; do
    reaches "$dir/killed" $wanted
    lines=$(cat "$dir/killed/compare.tsv" | wc -l)
    kill -9 $pid 2>/dev/null
    wait $pid 2>/dev/null
    echo "$lines" >>"$dir/moments"
    { run=exec; whole "$dir/killed" --resume >/dev/null 2>&1; } & pid=$!
done
wait $pid
succeeds "killed 4 times, at rows $(echo $(cat "$dir/moments")): the same rows" \
    eval '[ "$(head -n 1 "$dir/moments")" -lt 33 ] && same_rows "$dir/one" "$dir/killed"'
before=$(cat "$dir/killed"/*.t* | cksum)
whole "$dir/killed" --resume >"$dir/again.out" 2>"$dir/again.err"
succeeds "--resume of a whole comparison: runs nothing" \
    [ "$(cat "$dir/killed"/*.t* | cksum)" = "$before" ]
succeeds "--resume of a whole comparison: says the same but for seconds" eval '
    sed "s/ *[0-9.]*$//; /^For these/d" "$dir/one.out" >"$dir/said" &&
    sed "s/ *[0-9.]*$//; /^For these/d" "$dir/again.out" | cmp -s "$dir/said" -'

# Stopped by SIGTERM and SIGINT, also within a long training, which is left out.
default=
env --default-signal=INT true 2>/dev/null && default='env --default-signal=INT'
codes=
for moment in "TERM 3" "TERM 14" "${default:+INT} 24"; do
    set -- $moment
    [ $# -eq 2 ] || continue
    { run="exec $default"; whole "$dir/stopped" --resume >/dev/null 2>"$dir/err"; } & pid=$!
    reaches "$dir/stopped" $2
    kill -$1 $pid 2>/dev/null
    wait $pid
    codes="$codes $?"
    rows=$(($(wc -l <"$dir/stopped/compare.tsv") - 1))
    succeeds "stopped after row $rows: it says how to go on" grep -q "^stopped after $rows of 32 \
trainings and saved. Go on with: .*finetune_cls compare --out $dir/stopped --resume$" "$dir/err"
done
succeeds "with the status of the signal:$codes" [ "$codes" = " 143 143${default:+ 130}" ]
./finetune_cls compare --out "$dir/stopped" --resume >/dev/null 2>&1
succeeds "resumed with --out alone: the same rows" same_rows "$dir/one" "$dir/stopped"
{
    run=exec
    compare "$dir/long" --methods nb,full --labels 24 --seeds 1 --steps 1000000 >/dev/null \
        2>"$dir/err"
} & pid=$!
reaches "$dir/long" 2
kill -TERM $pid
wait $pid
status=$?
succeeds "a long training is stopped within it, status $status" eval '
    [ $status -eq 143 ] && [ "$(wc -l <"$dir/long/compare.tsv")" -eq 2 ] &&
    grep -q "^stopped after 1 of 2 trainings" "$dir/err"'
{
    sleep 0.2
    compare "$dir/unread" --methods nb,last:1 --labels 24 --seeds 1 --steps 2
    echo $? >"$dir/status"
} 2>&1 | true
succeeds "nobody reads the output: the rows are there, status 1" eval '
    [ "$(cat "$dir/status")" -eq 1 ] && [ "$(wc -l <"$dir/unread/compare.tsv")" -eq 3 ]'

# Without its last bytes, a table has a row less, or several.
size=$(wc -c <"$table")
for bytes in 1 9 200; do
    cp -r "$dir/one" "$dir/cut$bytes"
    head -c $((size - bytes)) "$table" >"$dir/cut$bytes/compare.tsv"
    left=$(wc -l <"$dir/cut$bytes/compare.tsv")
    sed "2,\$s/$tab[0-9.]*$tab\([01]*\)$/${tab}1000.00$tab\1/" \
        "$dir/cut$bytes/compare.tsv" >"$dir/marked" && mv "$dir/marked" "$dir/cut$bytes/compare.tsv"
    whole "$dir/cut$bytes" --resume >/dev/null 2>&1
    succeeds "cut by $bytes bytes: $((33 - left)) done again, each row once" eval '
        [ "$(cut -f 7 "$dir/cut$bytes/compare.tsv" | grep -c "^1000.00$")" -eq $((left - 1)) ] &&
        same_rows "$dir/one" "$dir/cut$bytes"'
done
awk -F '\t' 'BEGIN { OFS = FS }
    NR == 5 { $7 = "" } NR == 9 { $8 = $8 "1" } NR == 12 { $3 = "" } 1' "$table" \
    >"$dir/cut9/compare.tsv"
whole "$dir/cut9" --resume >/dev/null 2>&1
succeeds "rows that cannot be are done again" eval '
    same_rows "$dir/one" "$dir/cut9" || { rows "$dir/one" | sort >"$dir/rows1"
        rows "$dir/cut9" | sort | cmp -s "$dir/rows1" -; }'
head -n 10 "$dir/one/compare.tsv" >"$dir/cut1/compare.tsv"
whole "$dir/cut1" --resume --methods nb >/dev/null 2>&1
whole "$dir/cut1" --resume >/dev/null 2>&1
succeeds "rows of methods that a --resume does not name stay" \
    eval 'none_twice "$dir/cut1" && [ "$(wc -l <"$dir/cut1/compare.tsv")" -eq 33 ]'

# --- Refusals: nothing of another comparison is added to a table ---

head -n 60 "$test" >"$dir/shorter.tsv"
alone=
fails 1 "was made with other input" whole "$dir/one" --resume --test "$dir/shorter.tsv"
./train_gpt train --data "$dir/corpus_*.bin" --tokenizer "$dir/tok" --out "$dir/base2" --dropout 0 --layers 2 \
    --heads 2 --channels 32 --context 48 --steps 1 >/dev/null 2>&1
fails 1 "was made with other input" whole "$dir/one" --resume --model "$dir/base2"
for set in train test; do sed "s/${tab}negative\$/${tab}nasty/" "$dir/data/$set.tsv" >"$dir/$set.nasty"; done
fails 1 'input: its labels is ["negative", "positive"], here ["nasty", "positive"]' \
    whole "$dir/one" --resume --train "$dir/train.nasty" --test "$dir/test.nasty"
sed "2,\$s/^/$(printf 'aa %.0s' $(seq 60))/" "$train" >"$dir/long.tsv"
sed "2s/aa/zz/" "$dir/long.tsv" >"$dir/long2.tsv"               # beyond what the model reads
compare "$dir/words" --train "$dir/long.tsv" --methods nb --labels 12 --seeds 1 >/dev/null 2>&1
fails 1 "was made with other input" \
    compare "$dir/words" --resume --train "$dir/long2.tsv"
fails 2 "--max-tokens 32: the run in $dir/one has 48" whole "$dir/one" --resume --max-tokens 32
fails 2 "--steps 5: the run in $dir/one has 4" whole "$dir/one" --resume --steps 5
fails 2 "--label-column label: the run in $dir/one has none" \
    whole "$dir/one" --resume --label-column label
fails 2 "--precision bf16: the run in $dir/one has fp32" whole "$dir/one" --resume --precision bf16
cp -r "$dir/one" "$dir/odd"
: >"$dir/odd/compare.tsv"
fails 1 "odd/compare.tsv: is not the table of a comparison" whole "$dir/odd" --resume
rm "$dir/odd/state.safetensors"
fails 2 "odd: already holds compare.tsv" whole "$dir/odd" --resume
head -n 2 "$dir/one/compare.tsv" >"$dir/odd/compare.tsv"
fails 2 "odd: already holds compare.tsv" whole "$dir/odd" --resume
head -n 1 "$dir/one/compare.tsv" >"$dir/odd/compare.tsv"        # as a kill between two names leaves it
succeeds "a table without rows begins anew" eval '
    whole "$dir/odd" --resume --methods majority,nb >/dev/null 2>&1 &&
    [ "$(wc -l <"$dir/odd/compare.tsv")" -eq 9 ]'
alone=yes
fails 2 "one: already holds state.safetensors. Give --resume, --overwrite" whole "$dir/one"
fails 2 "--resume and --overwrite: choose one" whole "$dir/one" --resume --overwrite
fails 2 "--max-tokens 49: the model's context is 48" compare "$dir/no" --max-tokens 49
succeeds "--overwrite keeps the old table until the new one has a row" eval '
    whole "$dir/two" --overwrite --time-limit 0.001s >/dev/null 2>&1 && same_rows "$dir/one" "$dir/two"'
succeeds "--overwrite begins anew" eval '
    whole "$dir/two" --overwrite --methods majority,nb >/dev/null 2>&1 &&
    [ "$(wc -l <"$dir/two/compare.tsv")" -eq 9 ]'

# A method has the suffix of its own, or none, or that of --suffix.
suffixed() { compare "$@" --labels 12 --seeds 1 --steps 4 --batch 8 >/dev/null 2>&1; }
suffixed "$dir/own" --methods "nb,probe,full,probe+suffix:. it was,full+suffix:. it was"
suffixed "$dir/common" --methods nb,probe+suffix:,full+suffix:,probe,full --suffix ". it was"
succeeds "+suffix: of a method is not noted as that of all" eval '
    grep -qa "at most [0-9]* tokens\"" "$dir/own/state.safetensors" &&
    ! grep -qa "the last of them" "$dir/own/state.safetensors"'
bare_rows() { rows "$dir/$1" | sed "1d; s/+suffix:[^$tab]*//"; }
succeeds "+suffix: and --suffix: the same rows, which differ from those without" eval '
    [ "$(bare_rows own)" = "$(bare_rows common)" ] && [ "$(bare_rows own | wc -l)" -eq 5 ] &&
    [ "$(bare_rows own | sort -u | wc -l)" -eq 5 ]'

for wrong in "some|not one of prompt, probe, last:K, full, scratch, majority, nb, nbsvm" \
    "last:0|not one of prompt" "last:K|not one of prompt" "last:2x|not one of prompt" \
    "nb,,probe|not one of prompt" "last:3|the model has 2 blocks" "nb,full,nb|nb is named twice" \
    "nb+lr:1|nb has no options" "full+l2:1|l2 is no option of a method" \
    "full+l2sp|l2sp is no option of a method" "full+|is no option of a method" \
    "full+lr:fast|lr fast: not a number" "full+lr:|lr : not a number" \
    "full+lr:11|lr 11: out of range, 0 to 10" \
    "full+dropout:0.95|dropout 0.95: out of range, -1 to 0.9" \
    "full+layer-decay:0|layer-decay 0: out of range, 0.01 to 1" \
    "full+l2sp:-1|l2sp -1: out of range, 0 to 1e+30" "full+class-weights:some|not one of none" \
    "full+seed:2|seed is no option of a method" "full+suffix|suffix is no option of a method" \
    "full+suffix:x${tab}y|compare.tsv cannot hold a tab"; do
    fails 2 "${wrong#*|}" compare "$dir/no" --methods "${wrong%%|*}"
done
alone=
fails 2 "--labels 24,12: numbers must rise" compare "$dir/no" --methods nb --labels 24,12
fails 2 "--labels 12,12: numbers must rise" compare "$dir/no" --methods nb --labels 12,12
compare "$dir/no" --labels 2,3 >/dev/null 2>"$dir/err"
status=$?
succeeds "too few labels for two texts of each class: status 2" eval '
    [ $status -eq 2 ] && tail -n 1 "$dir/err" | grep -q "^finetune_cls: --labels 2,3: no number is left"'
fails 1 "every text is in $train, too" compare "$dir/no" --test "$train"
fails 2 "--labels 12.5: not a number of labels" compare "$dir/no" --methods nb --labels 12.5
fails 2 '--labels : not a number of labels, nor "all"' compare "$dir/no" --methods nb --labels 12,
succeeds "nothing was written by a refused comparison" [ -z "$(ls "$dir/no" 2>/dev/null)" ]

warns() {   # warns WORDS OPTION...
    words=$1
    shift
    compare "$dir/warned" --overwrite --seeds 1 --labels 12 "$@" >/dev/null 2>"$dir/err"
    succeeds "warning: $words" grep -qF -- "$words" "$dir/err"
}
warns "--lr: has no effect with --tune probe" --methods probe+lr:1
warns "--class-weights: has no effect with --tune prompt" --methods nb,prompt+class-weights:auto
warns "prior:positive=9;negative=1: prior has no effect without label words" \
    --methods "nb,probe+prior:,probe+prior:positive=9;negative=1"
warns "--layer-decay: has no effect with --tune last:1" --methods last:1+layer-decay:0.5 --steps 1
sed 's/positive$/very positive/' "$train" >"$dir/words.tsv"
sed 's/positive$/very positive/' "$test" >"$dir/words_test.tsv"
warns "prompt is left out, since not every class's name is a token" --train "$dir/words.tsv" \
    --test "$dir/words_test.tsv" --steps 1
warns "--labels 3: left out, since 2 classes need 4 at least" --methods nb --labels 3,12
compare "$dir/quiet" --seeds 1 --labels 12 --methods nb,full --steps 1 --max-tokens 20 \
    >/dev/null 2>"$dir/err"
succeeds "no warning of options with effect" eval '! grep -q "has no effect" "$dir/err"'

# --- Texts, numbers of labels, time ---

{ cat "$train"; sed -n 2,4p "$test"; sed -n 5,6p "$train"; } >"$dir/overlap.tsv"
compare "$dir/overlap" --train "$dir/overlap.tsv" --methods nb --labels 12,all --seeds 1 \
    >/dev/null 2>"$dir/err"
succeeds "texts that are in --test or repeated are left out and counted" \
    grep -q "overlap.tsv: 5 of 65 texts are repeated or in .*test.tsv: left out" "$dir/err"
compare "$dir/clean" --methods nb --labels 12,all --seeds 1 >"$dir/clean.out" 2>&1
succeeds "what one seed does not tell" grep -q "^With one seed the choice of labels is not in" "$dir/clean.out"
succeeds "the verdict on a single method compares it with none" eval '
    ! grep -q "Holm\|flattered" "$dir/clean.out" &&
    grep -q "^For these data, with 60 labels: nb," "$dir/clean.out"'
succeeds "without them the rows are the same; all are 60 labels" eval '
    same_rows "$dir/overlap" "$dir/clean" &&
    grep -q "^nb${tab}60${tab}1$tab" "$dir/clean/compare.tsv"'
compare "$dir/many" --methods nb --labels 3,12,1k,all --seeds 2 >"$dir/many.out" 2>"$dir/err"
succeeds "more labels than texts are all of them, too few for the classes are left out" eval '
    [ "$(cut -f 2 "$dir/many/compare.tsv" | sort -u | tr "\n" " ")" = "12 60 labels " ] &&
    grep -q "^With all labels every seed has the same texts" "$dir/many.out"'

# The kinds of test files that tell little.
sed -n '1p; /negative$/p' "$test" >"$dir/negative.tsv"
compare "$dir/one_class" --methods majority,nb --labels 12 --seeds 2 --test "$dir/negative.tsv" \
    >"$dir/one_class.out" 2>&1
succeeds "test texts of one class: no verdict" eval '
    grep -q "^All test texts are of one class" "$dir/one_class.out" &&
    ! grep -q "^For these data" "$dir/one_class.out"'
{ sed -n 1p "$test"; grep -m 1 "negative$" "$test"; grep -m 1 "positive$" "$test"; } \
    >"$dir/pair.tsv"
compare "$dir/pair" --methods majority,nb,nbsvm --labels 12 --seeds 3 --test "$dir/pair.tsv" \
    >"$dir/pair.out" 2>/dev/null
succeeds "two test texts: intervals within 0 to 1 and not narrow" awk '
    NR == 1 { good = /^accuracy on 2 test texts/ }
    $1 == "majority" || $1 == "nb" || $1 == "nbsvm" {
        split($3, ends, "-")
        good = good && ends[1] >= 0 && ends[2] + 0 <= 1 && ends[2] - ends[1] > 0.6
        rows++
    }
    END { exit !(good && rows == 3) }' "$dir/pair.out"
succeeds "two test texts: nothing is significantly better, and they are said to be few" eval '
    [ "$(grep -c "^[a-z]* *[01].*[*] [0-9.]*$" "$dir/pair.out")" -eq 3 ] &&
    grep -q "^accuracy on [0-9]* test texts, so few that" "$dir/pair.out"'

# Without --test, a part of each class is the test, the same for every seed.
apart() {
    ./finetune_cls compare --model "$dir/base" --train "$train" --out "$1" --methods nb,probe \
        --labels 12 --seeds 2 >"$1.out" 2>&1
}
apart "$dir/apart" && apart "$dir/apart2"
succeeds "without --test: 18 of 60 texts are the test" eval '
    grep -q "^accuracy on 18 test texts" "$dir/apart.out" && same_rows "$dir/apart" "$dir/apart2"'

# Seed 1 took 1,000 seconds a training, as the table has it, so a limit of 60 leaves out seed 2 of
# every method, and no method.
cp -r "$dir/one" "$dir/slow"
awk -F '\t' 'BEGIN { OFS = FS } NR > 1 { $7 = "1000.00" } $3 != 2' "$table" \
    >"$dir/slow/compare.tsv"
whole "$dir/slow" --resume --time-limit 60 >"$dir/slow.out" 2>"$dir/slow.err"
succeeds "--time-limit: late seeds are left out, and it says so" eval '
    grep -q "^stopped after 16 of 32 trainings and saved. Go on with: .*--resume$" "$dir/slow.err" &&
    [ "$(wc -l <"$dir/slow/compare.tsv")" -eq 17 ] &&
    grep -q "^With one seed the choice of labels is not in" "$dir/slow.out"'
succeeds "--time-limit: every method has a place in the table" eval '
    [ "$(grep -c " 0\.[0-9]* [01]\.[0-9]*-[01]\.[0-9]*[*]*  *0\.[0-9]* " "$dir/slow.out")" -eq 8 ]'
whole "$dir/slow" --resume >/dev/null 2>&1
succeeds "--resume without it makes up for them" same_rows "$dir/one" "$dir/slow"
whole "$dir/none" --time-limit 1e-9s >"$dir/none.out" 2>/dev/null
succeeds "--time-limit: a table of nothing" eval '
    [ "$(grep -c " -  *-  *-$" "$dir/none.out")" -eq 8 ] && ! grep -q "nan\|best" "$dir/none.out"'

# On a terminal a line says which training runs, and what is left once a seed has been through.
if has_terminal; then
    script -qec "./finetune_cls compare --model $dir/base --train $train --test $test \
        --out $dir/seen --methods majority,scratch --labels 12 --seeds 2 --steps 400" /dev/null \
        </dev/null | tr '\r' '\n' >"$dir/lines"
    succeeds "a line says which training runs, and its steps" \
        grep -q "training 2/4: scratch, 12 labels: [0-9]*/400 steps" "$dir/lines"
    succeeds "and the time of all that are left, from seed 2 on" eval '
        grep -q "training 4/4, [0-9]*s left: scratch" "$dir/lines" &&
        ! grep -q "training [12]/4, " "$dir/lines"'
fi

# 45, 10 and 45 texts: by rounding, the rare class has 3 of 22 labels but 2 of 23.
awk 'BEGIN {
    print "label\ttext"
    for (i = 0; i < 100; i++) {
        kind = i % 20 < 9 ? "a" : i % 20 < 18 ? "c" : "b"
        print kind "\tfilm number " i " is of kind " kind
    }
}' >"$dir/three.tsv"
sed 's/film/play/' "$dir/three.tsv" >"$dir/three_test.tsv"
for labels in 22 22,23; do
    compare "$dir/three$labels" --train "$dir/three.tsv" --test "$dir/three_test.tsv" \
        --methods probe,last:1 --steps 2 --seeds 1 --labels $labels >/dev/null 2>&1
done
succeeds "a row does not depend on the other numbers of labels" eval '
    rows "$dir/three22" | grep "${tab}22${tab}" >"$dir/rows1"
    rows "$dir/three22,23" | grep "${tab}22${tab}" | cmp -s "$dir/rows1" - && [ -s "$dir/rows1" ]'

# --- Without labels ---

asked() { # OUT OPTION...
    out=$1
    shift
    compare "$out" --suffix " I am" --label-words "positive=glad,happy;negative=sorry,ashamed" \
        --methods majority,nb,prompt,probe,probe+label-words:,last:1 --steps 2 --labels 0,12 --seeds 2 "$@"
}
asked "$dir/asked" --threads 1 >"$dir/asked.out" 2>"$dir/asked.err"
succeeds "0 labels: the majority and the prompt, and no other" eval '
    [ "$(awk -F "\t" "\$2 == 0 { print \$1, \$3 }" "$dir/asked/compare.tsv" | tr "\n" ,)" = \
        "majority 1,prompt 1,majority 2,prompt 2," ] &&
    [ "$(grep -c " - " "$dir/asked.out")" -eq 4 ]'
succeeds "all trainings are counted that there can be" \
    grep -q "^16 trainings done" "$dir/asked.err"
succeeds "label words of several tokens are said once for all methods" \
    [ "$(grep -c "^label word \"ashamed\": the first of its" "$dir/asked.err")" -eq 1 ]
succeeds "prompt: the same with any labels" eval '
    [ "$(awk -F "\t" "\$1 == \"prompt\" && \$3 == 1 { print \$4, \$6, \$8 }" \
        "$dir/asked/compare.tsv" | uniq | wc -l)" -eq 1 ]'
succeeds "the verdict says what is known without labels" grep -q "^Without any label prompt is right \
in 0\.[0-9]*; naive Bayes needs [a-z]* [a-z]* 12 labels for that\.$" "$dir/asked.out"
asked "$dir/asked2" --threads 2 >/dev/null 2>&1
succeeds "0 labels: 1 and 2 threads give the same rows" same_rows "$dir/asked" "$dir/asked2"
succeeds "probe: words make a difference, and + takes them away" eval '
    compare "$dir/plain" --suffix " I am" --methods probe --labels 12 --seeds 1 >/dev/null 2>&1 &&
    row() { awk -F "\t" -v m="$2" "\$1 == m && \$2 == 12 && \$3 == 1 { print \$4, \$6, \$8 }" \
        "$1/compare.tsv"; }
    [ "$(row "$dir/plain" probe)" = "$(row "$dir/asked" probe+label-words:)" ] &&
    [ "$(row "$dir/plain" probe)" != "$(row "$dir/asked" probe)" ]'
succeeds "+label-words: and --label-words: the same rows" eval '
    compare "$dir/own_words" --suffix " I am" --labels 12 --seeds 1 --methods \
        "prompt+label-words:positive=glad,happy;negative=sorry,ashamed,probe" >/dev/null 2>&1 &&
    row() { awk -F "\t" -v m="$2" "index(\$1, m) == 1 && \$2 == 12 && \$3 == 1 { print \$4, \$6, \$8; exit }" \
        "$1/compare.tsv"; }
    [ "$(row "$dir/own_words" prompt)" = "$(row "$dir/asked" prompt)" ] &&
    [ "$(row "$dir/own_words" probe)" = "$(row "$dir/plain" probe)" ]'
alone=
fails 2 "--methods prompt: needs label words" compare "$dir/no" --methods prompt --labels 12
fails 2 '--label-words: "good" is no label' compare "$dir/no" --label-words "good=a" --labels 12
compare "$dir/zero" --methods nb --labels 0,12 --seeds 1 >"$dir/zero.out" 2>"$dir/zero.err"
succeeds "0 labels without a prompt are left out" eval '
    grep -q -- "--labels 0: left out, since no method is prompt" "$dir/zero.err" &&
    ! grep -q "^Without any label" "$dir/zero.out"'

# --- layers ---

./finetune_cls layers --model "$dir/base" --train "$train" --test "$test" >"$dir/layers" 2>/dev/null
./finetune_cls train --model "$dir/base" --train "$train" --tune probe --out "$dir/probe" \
    >"$dir/probe.out" 2>/dev/null
./finetune_cls eval --model "$dir/probe" --data "$test" >"$dir/probe.eval" 2>/dev/null
succeeds "layers: a header and two rows for 0, 1 and 2 blocks" [ "$(awk '{ printf "%s %s ", $1, $2 }' \
    "$dir/layers")" = "blocks token 0 last 0 mean 1 last 1 mean 2 last 2 mean On validation " ]
best=$(awk '$1 ~ /^[0-2]$/ && $3 > high { high = $3; best = $1 ".*the " $2 } END { print best }' "$dir/layers")
succeeds "layers: names the best block and tokens, $best" eval '
    tail -n 1 "$dir/layers" | sed "s/before the first block/after block 0/" | grep -q "is best after block $best"'
succeeds "layers: the last row is train --tune probe" [ "$(awk '
    FNR == 1 { file++ }
    $1 == "val_accuracy" || $1 == "accuracy" { printf "%.4f ", $2 }
    file == 3 && $1 == 2 && $2 == "last" { printf "%s %s ", $3, $4 }' \
    "$dir/probe.out" "$dir/probe.eval" "$dir/layers")" = "$(awk '$1 == 2 && $2 == "last" {
        printf "%s %s %s %s ", $3, $4, $3, $4 }' "$dir/layers")" ]
succeeds "layers: blocks differ" [ "$(grep "^ " "$dir/layers" | cut -c 7- | uniq | wc -l)" -ge 2 ]
succeeds "layers: 1 and 2 threads print the same" eval '(
    for threads in 1 2; do
        ./finetune_cls layers --model "$dir/base" --train "$train" --test "$test" \
            --threads $threads 2>/dev/null | cmp -s "$dir/layers" - || exit 1
    done)'
succeeds "layers: texts that are repeated or in --test are warned of; --dedupe leaves them out" eval '
    layers() { ./finetune_cls layers --model "$dir/base" --train "$dir/overlap.tsv" --test "$test" "$@"; }
    layers 2>&1 >/dev/null | grep -q "5 of 65 texts are repeated or in " &&
    layers --train "$test" 2>&1 >/dev/null | grep -q "\([0-9]*\) of \1 texts are repeated or in " &&
    [ "$(layers --dedupe 2>/dev/null)" = "$(cat "$dir/layers")" ]'

# --- explain ---

explain() { ./finetune_cls explain --model "$dir/probe" "$@" 2>/dev/null; }

# Rows as many as tokens, at most 48; the last probability is predict's; the largest change is
# named.
explains() {    # explains NAME TEXT
    explain "$2" >"$dir/explained"
    tokens=$(printf '%s' "$2" | ./tokenizer ids --tokenizer "$dir/base" | wc -w)
    [ "$tokens" -lt 47 ] || tokens=47
    answer=$(./finetune_cls predict --model "$dir/probe" "$2" 2>/dev/null | cut -f 1,2)
    succeeds "explain, $1: a line for each token" \
        [ "$(grep -c '^[01]\.[0-9]*  [-+]' "$dir/explained")" -eq $((tokens + 1)) ]
    succeeds "explain, $1: ends as predict does" [ "$answer" = "$(awk '
        /^P\(/ { label = $1; gsub(/^P\(|\)$/, "", label) }
        /^[01]\./ { last = $1 }
        END { print label "\t" last }' "$dir/explained")" ]
    succeeds "explain, $1: names the largest change" awk '
        function size(x) { return x < 0 ? -x : x }
        /^[01]\./ { change[++n] = $2; if (size($2) > most) most = size($2) }
        / moved it most, by / {
            named = $0
            sub(/.*\(number /, "", named)
            sub(/\).*/, "", named)
            good = size(change[named]) == most && $NF == change[named]
        }
        END { exit !(n == 1 ? named == "" : good) }' "$dir/explained"
    succeeds "explain, $1: no escape codes" eval '! grep -q "$(printf "\033")" "$dir/explained"'
}
for review in 2 3 4 5 6 7; do
    explains "review $review" "$(sed -n ${review}p "$test" | cut -c 1-60)"
    tail -n 1 "$dir/explained" | grep -o '[-+][.0-9]*$' | cut -c 1 >>"$dir/signs"
done
succeeds "explain: some largest changes are rises and some falls" \
    [ "$(sort -u "$dir/signs" | tr -d '\n' | wc -c)" -eq 2 ]
explains "one token" "."
explains "an empty text" ""
explains "a text beyond the window" "$(cut -f 1 "$test" | head -n 9 | tr '\n' ' ')"
succeeds "explain: texts one after another" eval '
    { explain one; echo; explain two; } >"$dir/both" && explain one two | cmp -s "$dir/both" -'
fails 2 "TEXT: must be given" ./finetune_cls explain --model "$dir/probe"
fails 1 "holds a language model, not a classifier" ./finetune_cls explain --model "$dir/base" x
# The usual methods name last:2; a model of one block has last:1, also when it goes on.
./train_gpt train --data "$dir/corpus_*.bin" --tokenizer "$dir/tok" --out "$dir/block" --dropout 0 --layers 1 \
    --heads 1 --channels 16 --context 48 --batch 4 --steps 2 >/dev/null 2>&1
usual() { compare "$dir/usual" --model "$dir/block" --labels 20 --seeds 1 --steps 1 "$@" 2>/dev/null; }
succeeds "the usual methods suit a model of one block" eval '
    usual | grep -q "^last:1 " && [ "$(usual --resume | grep -c "^last:1 ")" -eq 1 ]'
few() { ./finetune_cls compare --model "$dir/block" --train "$train" --test "$test" --labels 20 --seeds 1 \
    --methods nb,majority --out "$dir/fewer" >/dev/null 2>&1; }
succeeds "and other methods are gone on with as they were given" eval '
    few && ./finetune_cls compare --out "$dir/fewer" --resume 2>/dev/null | grep -q "^nb "'
if script -qec true /dev/null >/dev/null 2>&1; then
    script -qec "./finetune_cls explain --model '$dir/probe' 'a dull film'" /dev/null \
        </dev/null >"$dir/coloured" 2>/dev/null
    succeeds "explain: on a terminal each token has a colour, which ends with it" eval '
        lines=$(explain "a dull film" | grep -c "^[01]\.")
        escape=$(printf "\033")
        [ "$(grep -c "$escape\[48;5;[0-9]*;38;5;16m[01]\." "$dir/coloured")" -eq "$lines" ] &&
        [ "$(grep -c "$escape\[0m" "$dir/coloured")" -eq "$lines" ]'
fi
exit $failures
