#!/bin/sh
# finetune_cls from end to end, on a tiny pretrained model and short film reviews: every way to
# tune, eval, predict, the same bytes for 1, 2, 3, 4 and 8 threads, and what happens to wrong input.

. test/lib.sh
speaker=finetune_cls match=-F alone=yes

at_least() {    # at_least FILE NAME VALUE: the line "NAME number" has at least that number
    awk -v name="$2" -v least="$3" '$1 == name { good = $2 >= least } END { exit !good }' "$1"
}

# "the plot was not very dull": the adjective and the negation make the label.
reviews() {     # reviews SEED COUNT
    awk -v seed="$1" -v count="$2" '
        function pick(list, a) { return a[int(rand() * split(list, a, " ")) + 1] }
        BEGIN {
            srand(seed)
            print "label\ttext"
            for (i = 0; i < count; i++) {
                good = rand() < 0.5
                not = rand() < 0.3 ? "not " : ""
                word = pick(good ? "good fine warm witty moving" : "bad dull flat clumsy awful")
                very = rand() < 0.5 ? pick("very rather quite") " " : ""
                positive = not == "" ? good : !good
                noun = pick("film plot story music end")
                print (positive ? "positive" : "negative") "\tthe " noun " was " not very word
            }
        }'
}

reviews 1 4000 | cut -f 2 | tail -n +2 >"$dir/corpus"
reviews 2 200 >"$dir/train.tsv"
reviews 3 300 >"$dir/test.tsv"
{
    ./tokenizer train --vocab 320 --out "$dir/tok" "$dir/corpus" &&
    ./tokenizer encode --tokenizer "$dir/tok" --split lines --out "$dir/corpus" "$dir/corpus" &&
    ./train_gpt train --data "$dir/corpus_*.bin" --tokenizer "$dir/tok" --out "$dir/base" \
        --dropout 0 --layers 2 --heads 2 --channels 32 --context 32 --batch 16 --steps 200 --lr 3e-3
} >"$dir/log" 2>&1 || { echo "FAIL the pretrained model: $(tail -n 1 "$dir/log")"; exit 1; }

# Every way to tune, on 1, 2, 3, 4 and 8 threads. run=exec: in place of the (sub)shell.
began=$(date +%s)
run=
train() { $run ./finetune_cls train --model "$dir/base" --train "$dir/train.tsv" --seed 3 "$@"; }
for tune in probe last:1 full scratch; do
    for threads in 1 2 3 4 8; do
        train --tune $tune --threads $threads --out "$dir/$tune$threads" \
            >"$dir/$tune$threads.log" 2>&1
    done
    out=$dir/${tune}1
    for threads in 2 3 4 8; do
        succeeds "$tune: 1 and $threads threads write the same bytes" \
            same_model "$out" "$dir/$tune$threads"
    done
    succeeds "$tune: log.tsv has a header and rows" eval '
        [ "$(wc -l <"$out/log.tsv")" -gt 3 ] && head -n 1 "$out/log.tsv" | grep -q val_loss'
    ./finetune_cls eval --model "$out" --data "$dir/test.tsv" >"$out.eval" 2>/dev/null
    succeeds "$tune: new reviews, $(sed -n 1p "$out.eval")" at_least "$out.eval" accuracy 0.75
done
succeeds "full: epochs and updates in plain words" \
    grep -q '^[0-9]* updates, [0-9]* to an epoch  batch 32' "$dir/full1.log"
succeeds "the tokenizer is beside the classifier" \
    cmp -s "$dir/base/merges.txt" "$dir/full1/merges.txt"
succeeds "names, options and scores are in the model" eval '
    (for name in tokenizer_hash labels tune.tune tune.seed data.format val_accuracy val_loss; do
        grep -qa "\"$name\"" "$dir/full1/model.safetensors" || exit 1
    done)'
succeeds "eval: names and values, then the table of the classes" [ \
    "$(sed "/^precision/q" "$dir/full1.eval" | cut -d " " -f 1 | tr "\n" " ")" = "accuracy \
accuracy_low accuracy_high macro_f1 loss ece examples majority auc mcc \
precision " ]
succeeds "eval: a row for each class" [ \
    "$(sed -n "/^precision/,/^confusion/p" "$dir/full1.eval" | awk '{ print $5 }' |
        tr "\n" " ")" = "label negative positive label, " ]
succeeds "eval: the table and the confusion matrix agree" eval '
    sed -n "/^precision/,\$p" "$dir/full1.eval" | awk "
        NR == 2 || NR == 3 { recall[\$5] = \$2; examples[\$5] = \$4 }
        NR == 5 || NR == 6 {
            bad += \$1 + \$2 != examples[\$3]
            bad += sprintf(\"%.6f\", \$(NR - 4) / (\$1 + \$2)) != recall[\$3]
        }
        END { exit bad || NR != 6 }"'

answers() {     # answers THREADS: of a classifier, all that it says
    for command in "eval --data" "predict --all --data"; do
        ./finetune_cls $command "$dir/test.tsv" --model "$dir/full1" --threads $1 2>/dev/null
    done
}
answers 1 >"$dir/one"
succeeds "eval and predict: answers" [ "$(wc -l <"$dir/one")" -gt 300 ]
for threads in 2 3 4 8; do
    answers $threads >"$dir/more"
    succeeds "eval and predict: 1 and $threads threads say the same" cmp "$dir/one" "$dir/more"
done

# eval --predictions: a row for each example, all or nothing.
cat >"$dir/odd.json" <<'END'
{"label": "positive", "text": "the film was good"}
{"label": "negative", "text": "\"a tab\there, a\nline\rend"}
{"label": "positive", "text": ""}
END
eval_full() { ./finetune_cls eval --model "$dir/full1" "$@"; }
succeeds "eval --predictions" eval '
    eval_full --data "$dir/odd.json" --format jsonl --predictions "$dir/rows.tsv" >"$dir/odd.eval" 2>/dev/null'
succeeds "its header" [ "$(head -n 1 "$dir/rows.tsv" | tr "\t" "|")" = \
    "number|label|predicted|probability|p_negative|p_positive|text" ]
succeeds "its rows: tabs and line ends are spaces, an empty text is empty" [ \
    "$(tail -n +2 "$dir/rows.tsv" | cut -f 1,2,7- | tr "\t" "|" | tr "\n" "+")" = \
    "1|positive|the film was good+2|negative|\"\"\"a tab here, a line end\"+3|positive|+" ]
eval_full --data "$dir/test.tsv" --predictions "$dir/rows.tsv" >"$dir/rows.eval" 2>/dev/null
succeeds "its rows give accuracy and loss" [ "$(tail -n +2 "$dir/rows.tsv" | awk -F "\t" '
    { right += $2 == $3; loss -= log($2 == "positive" ? $6 : $5); sum += $4 == ($5 > $6 ? $5 : $6) }
    END { printf "%.6f %.6f %d", right / NR, loss / NR, sum }')" = \
    "$(awk '$1 == "accuracy" || $1 == "loss" { printf "%s ", $2 }' "$dir/rows.eval")300" ]
fails 1 "rows.tsv: cannot be written" \
    eval_full --data "$dir/test.tsv" --predictions "$dir/none/rows.tsv"
cp "$dir/odd.json" "$dir/same"
fails 2 "same: holds no predictions, so it is not replaced" \
    eval_full --data "$dir/same" --predictions "$dir/./same"
succeeds "which is as it was" cmp "$dir/odd.json" "$dir/same"
printf 'number\tlabel\tpredicted\tprobability' >"$dir/same"
fails 2 "same: holds no predictions, so it is not replaced" \
    eval_full --data "$dir/test.tsv" --predictions "$dir/same"
before=$(cksum <"$dir/full1/model.safetensors")
fails 2 "model.safetensors: holds no predictions, so it is not replaced" \
    eval_full --data "$dir/test.tsv" --predictions "$dir/full1/model.safetensors"
succeeds "nor is it" [ "$(cksum <"$dir/full1/model.safetensors")" = "$before" ]

# predict: arguments and lines, in order, batches or not.
predict() { ./finetune_cls predict --model "$dir/full1" "$@" 2>/dev/null; }
tail -n +2 "$dir/test.tsv" | cut -f 2 >"$dir/texts"
predict <"$dir/texts" >"$dir/answers"
succeeds "predict: a line for each line, text last" \
    eval 'cut -f 3 "$dir/answers" | cmp -s - "$dir/texts"'
succeeds "a byte order mark is no text" eval '
    { printf "\357\273\277"; cat "$dir/texts"; } | predict | cmp -s - "$dir/answers"'
for i in 1 2 3 4 5 6 7 8 9; do cat "$dir/texts" "$dir/texts" "$dir/texts" "$dir/texts"; done |
    { ./finetune_cls predict --model "$dir/full1" 2>"$dir/err"; echo $? >"$dir/status"; } |
    head -n 1 >"$dir/first"
succeeds "predict | head: ends at once, silently" eval '
    [ "$(cat "$dir/status")" -eq 141 ] && [ ! -s "$dir/err" ]'
rm "$dir/first"
right=$(tail -n +2 "$dir/test.tsv" | cut -f 1 | paste - "$dir/answers" |
    awk -F '\t' '$1 == $2 { n++ } END { printf "%.6f", n / NR }')
succeeds "predict: as accurate as eval" grep -q "^accuracy $right" "$dir/full1.eval"
succeeds "predict: one text alone, as among others" \
    [ "$(predict "$(sed -n 7p "$dir/texts")")" = "$(sed -n 7p "$dir/answers")" ]
{
    head -n 1 "$dir/texts"
    for second in 1 2 3 4 5 6 7 8 9; do [ -s "$dir/first" ] || sleep 1; done
    cp "$dir/first" "$dir/early"
} | predict >"$dir/first"
succeeds "predict: answers come before the input ends" [ -s "$dir/early" ]
succeeds "predict: CRLF, empty lines, NUL, invalid UTF-8, no last line end" \
    [ "$(printf 'good\r\n\n\000\377\nbad' | predict | wc -l)" -eq 4 ]
succeeds "predict: a text beyond the context is cut, not refused" \
    [ "$(tr '\n' ' ' <"$dir/texts" | predict | wc -l)" -eq 1 ]
succeeds "predict: nothing in, nothing out" [ -z "$(predict </dev/null)" ]

# The formats give the same examples, hence the same model.
tail -n +2 "$dir/train.tsv" >"$dir/rows"
awk -F '\t' 'BEGIN { print "text,label" } { print "\"" $2 "\"," $1 "\r" }' \
    "$dir/rows" >"$dir/formats.csv"
awk -F '\t' '{ print "{\"label\": \"" $1 "\", \"review\": \"" $2 "\"}" }' \
    "$dir/rows" >"$dir/formats.jsonl"
awk -F '\t' '{ print $2 "\t" $1 }' "$dir/train.tsv" >"$dir/formats.tsv"
for format in tsv csv jsonl; do
    cp "$dir/formats.$format" "$dir/formats"
    train --train "$dir/formats" --tune probe --out "$dir/$format" >/dev/null 2>&1
done
weights() { tail -c 60000 "$dir/$1/model.safetensors" | cksum; }
succeeds "TSV, CSV and JSON lines give the same model" \
    eval '[ "$(weights csv) $(weights jsonl)" = "$(weights tsv) $(weights tsv)" ]'
succeeds "--val takes another file" eval '
    train --tune probe --val "$dir/test.tsv" --out "$dir/val" 2>&1 |
        grep -q "200 texts to train on, 300 for validation;"'

# Options of the training: without effect where they are 0, and the same for any number of threads.
few() { train --tune last:1 --steps 5 --average 0 "$@" >/dev/null 2>&1; }
few --out "$dir/few"
few --out "$dir/few0" --l2sp 0 --lm-coef 0 --layer-decay 1 --patience 0 \
    --class-weights none
succeeds "options that are 0, or none, change no byte" same_model "$dir/few" "$dir/few0"
for option in "--l2sp 1" "--lm-coef 0.5" "--average 0.5" "--class-weights auto"; do
    rm -rf "$dir/few1"
    few --out "$dir/few1" $option
    succeeds "$option changes weights" eval '
        [ -s "$dir/few1/model.safetensors" ] && [ "$(tail -c 9999 "$dir/few/model.safetensors" | cksum)" != \
          "$(tail -c 9999 "$dir/few1/model.safetensors" | cksum)" ]'
done
many() {
    train --tune full --steps 8 --patience 5 --layer-decay 0.8 --l2sp 1 --lm-coef 0.5 \
        --average 0.3 --class-weights auto --calibrate "$@" >/dev/null 2>&1
}
for threads in 1 2 3; do many --threads $threads --out "$dir/many$threads"; done
succeeds "all of them: 1, 2 and 3 threads write the same bytes" \
    eval 'same_model "$dir/many1" "$dir/many2" && same_model "$dir/many1" "$dir/many3"'

# Stopped by signals and resumed: the same bytes, but for the seconds of the log.
stop() { # SIGNAL ROWS OPTION...: sends it when the log has so many rows; sets status
    signal=$1 rows=$2
    shift 2
    { run="exec $default"; train "$@" >"$dir/out" 2>"$dir/err"; } & pid=$!
    wait_for has_rows "$dir/stopped/log.tsv" "$rows"
    kill "-$signal" $pid 2>/dev/null
    wait $pid
    status=$?
} 2>/dev/null
default=
env --default-signal=INT true 2>/dev/null && default='env --default-signal=INT'
for options in "full --lm-coef 0.5 --l2sp 1 --dropout 0.2" "last:1 --average 0" \
    "scratch --average 0.5"; do
    long="--tune $options --steps 301 --batch 16 --class-weights auto --calibrate --dedupe"
    train $long --out "$dir/whole" --overwrite >/dev/null 2>&1
    rm -rf "$dir/stopped"
    codes=
    for moment in "TERM 3" "KILL 6" "TERM 9" "${default:+INT} 11"; do
        set -- $moment
        [ $# -eq 2 ] || continue
        stop $1 $2 $long --resume --threads 2 --out "$dir/stopped"
        codes="$codes $status"
        [ $1 = TERM ] || continue
        succeeds "--tune $options: after $1 it says how to go on" grep -q "^stopped after step \
[0-9]*/301 and saved. Go on with: .*finetune_cls train --out $dir/stopped --resume" "$dir/err"
        ./finetune_cls predict --model "$dir/stopped" good >/dev/null
        check $? "--tune $options: the best classifier so far is there"
    done
    succeeds "--tune $options: stopped with the status of the signal:$codes" \
        [ "$codes" = " 143 137 143${default:+ 130}" ]
    rm -rf "$dir/halfway" && cp -r "$dir/stopped" "$dir/halfway"
    ./finetune_cls train --out "$dir/stopped" --resume >/dev/null 2>"$dir/err"
    succeeds "--tune $options: resumed = never stopped, byte for byte" eval '
        same_model "$dir/whole" "$dir/stopped" && grep -q "^resumed after step" "$dir/err" &&
        cut -f 1-6 "$dir/whole/log.tsv" >"$dir/rows" &&
        cut -f 1-6 "$dir/stopped/log.tsv" | cmp - "$dir/rows"'
done
hopeless="--tune last:1 --lr 1e-30 --steps 401 --patience 9 --average 0 --dedupe"
train $hopeless --out "$dir/whole" --overwrite >/dev/null 2>&1
rm -rf "$dir/stopped"
stop TERM 5 $hopeless --out "$dir/stopped"
mkdir "$dir/spoilt" && cp "$dir/stopped/log.tsv" "$dir/spoilt" && cp "$dir/stopped/state.safetensors" "$dir/spoilt/whole"
train $hopeless --resume --out "$dir/stopped" >/dev/null 2>&1
succeeds "--patience counts what was before" eval '
    [ $status -eq 143 ] && same_model "$dir/whole" "$dir/stopped" &&
        [ "$(wc -l <"$dir/whole/log.tsv")" -eq "$(wc -l <"$dir/stopped/log.tsv")" ]'
before=$(cksum <"$dir/stopped/model.safetensors")
succeeds "the state of a finished training is gone, and --resume says that it is finished" eval '
    [ ! -e "$dir/stopped/state.safetensors" ] &&
        train $hopeless --resume --out "$dir/stopped" 2>&1 | grep -q "stopped is finished" &&
        [ "$before" = "$(cksum <"$dir/stopped/model.safetensors")" ]'
printf 'text\tlabel\none\tpositive\ntwo\tpositive\nthree\tnegative\nfour\tnegative\n' >"$dir/others.tsv"
fails 1 "made with other input: its train_hash" \
    train $hopeless --resume --out "$dir/stopped" --train "$dir/others.tsv"
sed 's/positive/good/; s/negative/bad/' "$dir/train.tsv" >"$dir/worded.tsv"
for i in 1 2; do
    train --tune prompt --suffix " I am" --resume --train "$dir/worded.tsv" --out "$dir/asked" >/dev/null 2>"$dir/err"
done
succeeds "so it does of a prompt" grep -q "asked is finished" "$dir/err"
succeeds "without --train, which may be gone, its files are not read" eval '
    ./finetune_cls train --resume --out "$dir/stopped" 2>&1 | grep -q "stopped is finished"'
train --tune probe --dedupe --resume --out "$dir/anew" >/dev/null 2>"$dir/err"
succeeds "a probe: --resume starts, too" grep -q "^nothing to resume in .*anew: the tr" "$dir/err"
alone=
spoil() { LC_ALL=C sed "$1" "$dir/spoilt/whole" >"$dir/spoilt/state.safetensors"; }
for change in 's/\("position":"\)[0-9]/\1x/' 's/\("position":"[^"]*\)\./\1 /'; do
    spoil "$change"                     # the second has a number too many
    fails 1 "does not say where the training is" train $hopeless --resume --out "$dir/spoilt"
done
spoil 's/"log_hash"/"nothing!"/'
fails 1 "is not the log of the run beside it" train $hopeless --resume --out "$dir/spoilt"
fails 2 "--seed 4: the run in $dir/halfway has 3. Leave it out" \
    train $long --resume --out "$dir/halfway" --seed 4
fails 2 "--lr 0.002: the run in $dir/halfway has 0.001." \
    train $long --resume --out "$dir/halfway" --lr 2e-3
fails 2 "--tune probe: the run in $dir/halfway has scratch." \
    train --tune probe --dedupe --resume --out "$dir/halfway"
hash=$(grep -ao 'train_hash":"[0-9a-f]*' "$dir/halfway/state.safetensors" | cut -c 14-)
fails 1 "halfway was made with other input: its train_hash is ${hash:-missing}, here " \
    train $long --resume --out "$dir/halfway" --train "$dir/test.tsv"
fails 2 "--val-part 0.2: the run in $dir/halfway has 0.1." \
    train $long --resume --out "$dir/halfway" --val-part 0.2
fails 2 "--model: must be given" ./finetune_cls train --resume --out "$dir/nothing"
fails 2 "--seed 4: the run in $dir/anew has 3." \
    train --tune probe --dedupe --resume --out "$dir/anew" --seed 4
fails 1 "is not from a training that can be resumed" eval '
    cp -r "$dir/base" "$dir/other" && rm "$dir/other/state.safetensors" &&
        train --dedupe --resume --out "$dir/other"'
alone=yes
fails 2 "--resume and --overwrite: choose one" train --resume --overwrite --out "$dir/halfway"
{
    sleep 0.2
    train $long --tune last:1 --steps 5 --out "$dir/unread"
    echo $? >"$dir/status"
} 2>&1 | true
succeeds "nobody reads the output: trained to the end, status 1" eval '
    [ "$(cat "$dir/status")" -eq 1 ] && [ -s "$dir/unread/model.safetensors" ] &&
        [ ! -e "$dir/unread/state.safetensors" ]'

# --calibrate: what is saved is the calibrated model.
score() { awk -v name="$1" '$1 == name { print $2 }' "$2"; }
for calibrate in "" --calibrate; do
    train --tune probe --val "$dir/test.tsv" --out "$dir/probe$calibrate" $calibrate \
        >"$dir/probe$calibrate.said" 2>/dev/null
    ./finetune_cls eval --model "$dir/probe$calibrate" --data "$dir/test.tsv" 2>/dev/null \
        >"$dir/probe$calibrate.eval"
done
succeeds "--calibrate: the same accuracy" [ "$(score accuracy "$dir/probe.eval")" = \
    "$(score accuracy "$dir/probe--calibrate.eval")" ]
succeeds "--calibrate: a lower loss, $(score loss "$dir/probe--calibrate.eval")" awk \
    "BEGIN { exit !($(score loss "$dir/probe--calibrate.eval") < $(score loss "$dir/probe.eval")) }"
succeeds "--calibrate: eval of the saved model has the loss that train printed" \
    [ "$(score loss "$dir/probe--calibrate.eval")" = \
      "$(score val_loss "$dir/probe--calibrate.said")" ]

# A thousand classes of three texts each.
awk 'BEGIN {
    print "text\tlabel"
    for (i = 0; i < 3000; i++) print "the plot was number " i % 1000 "\t" i % 1000
}' >"$dir/thousand.tsv"
train --train "$dir/thousand.tsv" --tune last:1 --steps 10 --out "$dir/thousand" >/dev/null 2>&1
./finetune_cls eval --model "$dir/thousand" --data "$dir/thousand.tsv" \
    --predictions "$dir/thousand.rows" >"$dir/thousand.eval" 2>"$dir/thousand.said"
succeeds "1,000 classes: train and eval" grep -q "^examples 3000" "$dir/thousand.eval"
succeeds "1,000 classes: a row for each, no matrix" \
    [ "$(wc -l <"$dir/thousand.eval")" -eq 1009 ]
succeeds "1,000 classes: the rows of --predictions have 1,005 columns" [ \
    "$(awk -F "\t" '{ print NF }' "$dir/thousand.rows" | uniq -c | tr -s ' ')" = " 3001 1005" ]
answer=$(./finetune_cls predict --model "$dir/thousand" "the plot was number 7")
succeeds "1,000 classes: a text alone has the answer that it has among 3,000" \
    [ "$(printf '%s' "$answer" | cut -f 1)" = "$(sed -n 9p "$dir/thousand.rows" | cut -f 3)" ]

# What is said of data and results.
said() {    # said WORDS OPTION...: one line of what train says has the words
    words=$1
    shift
    succeeds "train says: $words" [ "$(train "$@" --overwrite --out "$dir/said" 2>&1 >/dev/null |
        grep -cF -- "$words")" -eq 1 ]
}
if has_terminal; then
    for options in "probe --calibrate" "last:1 --steps 9 --average 0.5"; do
        command="./finetune_cls train --model $dir/base --train $dir/train.tsv --dedupe --tune $options"
        stays_on_terminal "--tune $options" "left$" "$command --out $dir/shown1 --overwrite" \
            "$command --out $dir/shown2 --overwrite"
    done
fi
awk 'NR > 1 { sub(/\t.*/, "\tword") } NR % 4 == 1 { print }' "$dir/train.tsv" >"$dir/hopeless.tsv"
said "texts are too few to tell. Try another --tune" --train "$dir/hopeless.tsv" --tune probe
awk 'NR > 1 { sub(/\t.*/, "\tword") } NR == 1 || $1 == "positive" || NR % 5 == 0' \
    "$dir/train.tsv" >"$dir/rare.tsv"
awk 'NR == 1 || $1 == "negative" || NR % 5 == 0' "$dir/test.tsv" >"$dir/others.tsv"
said "): nothing was learnt, or $(($(wc -l <"$dir/others.tsv") - 1)) texts are too few to tell. Try another" \
    --train "$dir/rare.tsv" --val "$dir/others.tsv" --tune probe
./finetune_cls eval --model "$dir/probe1" --data "$dir/test.tsv" \
    --predictions "$dir/answers.tsv" >/dev/null 2>&1
awk -F "\t" 'NR == 1 { print "label\ttext" } $2 == $3 && !seen[$2]++ { print $2 "\t" $NF }' \
    "$dir/answers.tsv" >"$dir/easy.tsv"
said "--calibrate: has no effect, since all of 2 answers are right" --tune probe --calibrate \
    --val "$dir/easy.tsv"
succeeds "neither is said if something was learnt" eval '
    ! train --tune probe --val "$dir/test.tsv" --overwrite --out "$dir/said" 2>&1 |
        grep -qE "cannot tell|nothing was"'
awk 'NR == 1 || $1 == "positive"' "$dir/test.tsv" >"$dir/one.tsv"
said "texts have the same label: one class cannot tell" --tune probe --val "$dir/one.tsv"
eval_full --data "$dir/one.tsv" >"$dir/one.eval" 2>"$dir/one.said"
succeeds "eval of one class: no score of two, and it is said why" eval '
    grep -q "^majority 1.000000" "$dir/one.eval" && ! grep -qE "^(auc|mcc)" "$dir/one.eval" &&
        grep -q "one class cannot tell" "$dir/one.said"'
printf 'text\tlabel\n"He said ""good""."\tpositive\n" a tab\there"\tnegative\n' >"$dir/quotes.tsv"
eval_full --data "$dir/quotes.tsv" --predictions "$dir/quotes.rows" >/dev/null 2>&1
succeeds "quotes in --predictions are RFC 4180's" eval '
    grep -qF "$(printf "\t\"He said \"\"good\"\".\"")" "$dir/quotes.rows" &&
        grep -q "$(printf "\t a tab here$")" "$dir/quotes.rows" &&
        eval_full --data "$dir/quotes.rows" --text-column text --label-column label 2>&1 |
            grep -q "^examples 2"'
printf 'text\tlabel\n\tpositive\n\tnegative\nfine\tpositive\n\tnegative\nbad\tnegative\n' \
    >"$dir/empty.tsv"
said "empty.tsv: 3 of 5 texts are empty" --train "$dir/empty.tsv" --tune full --steps 2
succeeds "empty texts: eval" eval '
    eval_full --data "$dir/empty.tsv" 2>/dev/null | grep -q "^examples 5"'
said "--layer-decay: has no effect with --tune last:1" --tune last:1 --layer-decay 0.5 --steps 1
train --tune scratch --steps 2 --out "$dir/free" >/dev/null 2>&1
said "--l2sp: has no effect with --tune scratch" --tune scratch --steps 2 --l2sp 1e9
cut -f 1-6 "$dir/said/log.tsv" >"$dir/rows"
succeeds "nor has it" eval 'cut -f 1-6 "$dir/free/log.tsv" | cmp -s - "$dir/rows"'

# A training that diverges.
train --tune full --lr 10 --head-lr-ratio 1e4 --batch 300 --epochs 20 --warmup 0 \
    --out "$dir/diverged" >/dev/null 2>"$dir/stderr"
status=$?
succeeds "status $status, the gradient is not finite" eval '[ $status -eq 1 ] &&
    tail -n 1 "$dir/stderr" | grep -q "^finetune_cls: step [0-9]* of a training: the gradient is not \
finite. Start again with a lower lr than 10.$"'
succeeds "the advice works" eval 'train --lr 1e-3 --steps 9 --overwrite --out "$dir/diverged" \
    >/dev/null 2>&1'

# Wrong input: status and message; nothing is overwritten.
before=$(cksum <"$dir/full1/model.safetensors")
fails 2 "full1: already holds model.safetensors" train --out "$dir/full1"
fails 2 "base: is the pretrained model" train --out "$dir/base/../base" --overwrite
succeeds "what was there is untouched" [ "$before" = "$(cksum <"$dir/full1/model.safetensors")" ]
touch "$dir/full2/state.safetensors"
succeeds "--overwrite replaces it" \
    eval 'train --tune probe --out "$dir/full2" --overwrite >/dev/null 2>&1'
succeeds "the state of a pretraining that was there is gone" [ ! -e "$dir/full2/state.safetensors" ]
fails 2 '"": no such subcommand' ./finetune_cls
fails 2 '"tune": no such subcommand' ./finetune_cls tune
fails 2 "--model: must be given" ./finetune_cls eval --data x
fails 2 "--tune some: not one of prompt, probe" train --tune some --out "$dir/new"
fails 2 "--tune last:0: not one of prompt, probe" train --tune last:0 --out "$dir/new"
fails 2 "--tune last:4294967297: not one of prompt, probe" train --tune last:4294967297 --out "$dir/new"
fails 2 "--tune last:3: the model has 2 blocks" train --tune last:3 --out "$dir/new"
fails 2 "--max-tokens 33: the model's context is 32" train --max-tokens 33 --out "$dir/new"
fails 2 "--suffix: the value is empty" train --suffix "" --out "$dir/new"
fails 2 "--suffix abcd: has 4 tokens, which leave none of 5 to a text" \
    train --suffix abcd --max-tokens 5 --out "$dir/new"

# A suffix is the same as texts that end with it, where a piece begins with its blank. It is in the
# files, so only training has to name it.
sed '2,$s/$/ it was/' "$dir/train.tsv" >"$dir/longer.tsv"
cut -f 2 "$dir/test.tsv" | tail -n +2 >"$dir/bare"
train --tune probe --suffix " it was" --out "$dir/suffix" >/dev/null 2>&1
train --tune probe --train "$dir/longer.tsv" --out "$dir/longer" >/dev/null 2>&1
./finetune_cls predict --all --model "$dir/suffix" <"$dir/bare" | cut -f 1-4 >"$dir/suffix.out"
sed 's/$/ it was/' "$dir/bare" | ./finetune_cls predict --all --model "$dir/longer" |
    cut -f 1-4 >"$dir/longer.out"
succeeds "--suffix: texts that end with it give the same probabilities" eval '
    [ -s "$dir/suffix.out" ] && cmp "$dir/suffix.out" "$dir/longer.out" &&
    ! ./finetune_cls predict --all --model "$dir/longer" <"$dir/bare" | cut -f 1-4 |
        cmp -s - "$dir/suffix.out"'
succeeds "eval and explain read it, too" eval '
    [ "$(./finetune_cls eval --model "$dir/suffix" --data "$dir/train.tsv")" = \
      "$(./finetune_cls eval --model "$dir/longer" --data "$dir/longer.tsv")" ] &&
    [ "$(./finetune_cls explain --model "$dir/suffix" "the plot")" = \
      "$(./finetune_cls explain --model "$dir/longer" "the plot it was")" ]'
succeeds "layers: the same probes" eval '
    layers() { ./finetune_cls layers --model "$dir/base" --train "$1" --test "$2" $3 "$4"; }
    sed "2,\$s/$/ it was/" "$dir/test.tsv" >"$dir/longer_test.tsv" &&
    [ "$(layers "$dir/train.tsv" "$dir/test.tsv" --suffix " it was")" = \
      "$(layers "$dir/longer.tsv" "$dir/longer_test.tsv" --threads 1)" ]' 2>/dev/null
succeeds "info tells it" eval '
    ./train_gpt info --model "$dir/suffix" | grep -q "^tune.suffix * it was" &&
    ./train_gpt info --model "$dir/suffix" | grep -q "^tokenizer_usage .*, the last of them [0-9 ]*"'
cp -r "$dir/suffix" "$dir/mixed"
cp "$dir/longer/tokenizer.json" "$dir/longer/tokenizer_config.json" "$dir/mixed"
fails 1 "do not belong to model.safetensors" ./finetune_cls predict --model "$dir/mixed" x
# Directories that say otherwise what is done to a text, and no metadata that know it better.
foreign() { # DIR FROM TO
    LC_ALL=C sed -i s/tokenizer_usage/tokenizer_other/ "$1/model.safetensors"
    sed -i "s/$2/$3/" "$1/tokenizer_config.json"
}
cp -r "$dir/base" "$dir/midway"
foreign "$dir/midway" '"add_bos_token": true' '"add_bos_token": false'
succeeds "--suffix: what it means where texts do not begin with <|endoftext|>" eval '
    train --model "$dir/midway" --tune probe --suffix " it was" --out "$dir/begin" 2>&1 |
        grep -q "^finetune_cls: .*--suffix: .*/midway does not let texts begin with"'
foreign "$dir/suffix" '"model_max_length": 32' '"model_max_length": 3'
fails 1 "after a text, which leave none of 3 to the text" \
    ./finetune_cls predict --model "$dir/suffix" x

# Label words: after " the plot was not very" this model knows what may come, and after " it was" what
# it thinks of it. Prompting reads bare lines.
label_words='positive=good,fine,warm,witty,moving;negative=bad,dull,flat,clumsy,awful'
prompt() { train --tune prompt --label-words "$label_words" --suffix " the film was" "$@"; }
prompt --train "$dir/bare" --format lines --threads 1 --out "$dir/prompt" >"$dir/prompt.log" 2>&1
prompt --train "$dir/bare" --format lines --threads 2 --out "$dir/prompt2" >/dev/null 2>&1
succeeds "prompt: 1 and 2 threads write the same bytes" same_model "$dir/prompt" "$dir/prompt2"
succeeds "prompt: bare lines, whose --val is a table" eval '
    prompt --train "$dir/bare" --format lines --val "$dir/test.tsv" --calibrate --overwrite --out "$dir/prompt2" \
        2>&1 | grep -q "300 for validation"'
succeeds "prompt: no label is needed, those that are there are not read" eval '
    prompt --train "$dir/test.tsv" --out "$dir/prompt3" >/dev/null 2>&1 &&
    [ "$(./finetune_cls eval --model "$dir/prompt" --data "$dir/test.tsv" --format tsv)" = \
      "$(./finetune_cls eval --model "$dir/prompt3" --data "$dir/test.tsv")" ]' 2>/dev/null
succeeds "prompt: the layout of the training's table holds for other files, too" eval '
    { echo "a	b"; sed 1d "$dir/test.tsv"; } >"$dir/odd.tsv" &&
    prompt --train "$dir/odd.tsv" --text-column 2 --label-column 1 --header yes --out "$dir/prompt4" \
        >"$dir/odd.log" 2>&1 &&
    ./finetune_cls eval --model "$dir/prompt4" --data "$dir/odd.tsv" >"$dir/odd.log" 2>&1'
awk -F "\t" '{ print $0 "\t" (NR == 1 ? "more" : $2) }' "$dir/train.tsv" >"$dir/paired.tsv"
succeeds "prompt: a second column of texts holds for other files, too" eval '
    prompt --train "$dir/paired.tsv" --pair-column more --out "$dir/paired" >/dev/null 2>&1 &&
    paired() { ./finetune_cls eval --model "$dir/paired" --data "$dir/paired.tsv" "$@"; } &&
    [ -n "$(paired)" ] && [ "$(paired)" = "$(paired --pair-column more)" ]' 2>/dev/null
fails 1 '"one text": pairs of texts are read' ./finetune_cls predict --model "$dir/paired" "one text"
succeeds "predict: an empty line in place of a pair" eval '
    [ "$(printf "a\tb\n\n" | ./finetune_cls predict --model "$dir/paired" 2>/dev/null | wc -l)" -eq 2 ]'
for column in text label; do
    fails 1 "no other column is named $column" ./finetune_cls train --model "$dir/base" \
        --train "$dir/paired.tsv" --pair-column $column --out "$dir/new"
done
shares() { # MODEL: the mean probability of "positive" over the texts that gave the prior
    ./finetune_cls predict --all --model "$1" <"$dir/bare" | sed 's/.*positive \([0-9.]*\)\t.*/\1/' |
        awk '{ sum += $1 } END { printf "%.3f", sum / NR }'
}
succeeds "prompt: on average each class has its share" [ "$(shares "$dir/prompt")" = 0.500 ]
prompt --train "$dir/bare" --format lines --prior "positive=3;negative=1" --overwrite \
    --out "$dir/prompt2" >/dev/null 2>&1
succeeds "--prior gives other shares" [ "$(shares "$dir/prompt2")" = 0.750 ]
succeeds "prompt: --val is what it is judged by" eval '
    prompt --train "$dir/train.tsv" --val "$dir/test.tsv" --out "$dir/prompt3" --overwrite \
        2>/dev/null | grep -q "^val_accuracy"'
./finetune_cls explain --model "$dir/prompt" "the film was good" >"$dir/explained"
succeeds "explain: the label words with their probabilities" eval '
    [ "$(grep -c "^next, for [a-z]*:  \" .*\" 0\.[0-9]*" "$dir/explained")" -eq 2 ]'
train --tune scratch --steps 2 --label-words unread --out "$dir/wordless" >/dev/null 2>&1
succeeds "explain: label words that had no effect are not read" eval '
    ./finetune_cls explain --model "$dir/wordless" good >/dev/null'
for tune in probe last:1 full; do
    succeeds "$tune begins with label words" eval '
        train --tune $tune --label-words "$label_words" --suffix " the film was" --out "$dir/worded" \
            --overwrite >"$dir/worded.log" 2>&1 && grep -q "^val_accuracy 0\.[6-9]\|^val_accuracy 1" "$dir/worded.log"'
done
succeeds "probe: cross-validation tries the words and the channels" eval '
    train --tune probe --label-words "$label_words" --out "$dir/worded" --overwrite >/dev/null 2>&1 &&
    [ "$(cut -f 2 "$dir/worded/log.tsv" | uniq -c | tr -s " \n" " ")" = " 1 features 7 words 7 channels " ]'
alone=
nowhere() { train --dedupe --out "$dir/new" "$@"; }
fails 2 '--label-words: the label "negative" has no value. Write negative=VALUE.' \
    nowhere --tune probe --label-words "positive=good"
fails 2 '--label-words: the label "negative" has no value' \
    nowhere --tune prompt --label-words "positive=good;negative="
fails 2 '--label-words: "mixed" is no label, or named twice. There are: negative, positive.' \
    nowhere --tune full --label-words "positive=good;negative=bad;mixed=some"
fails 2 '--label-words: "positive" is no label, or named twice' \
    nowhere --tune probe --label-words "positive=good;negative=bad;positive=fine"
fails 2 '--label-words: "good" is a word of two labels' \
    nowhere --tune prompt --label-words "positive=good;negative=good"
fails 2 '--label-words: a word of "positive" is empty' \
    nowhere --tune prompt --label-words "positive=good, ;negative=bad"
succeeds "--label-words: blanks after a comma are no part of a word" eval '
    prompt --train "$dir/bare" --format lines --out "$dir/prompt2" --overwrite --label-words \
        "positive=good, fine, warm, witty,moving;negative=bad, dull,flat,clumsy,awful" >/dev/null 2>&1 &&
    [ "$(./finetune_cls explain --model "$dir/prompt2" "the film was good")" = "$(cat "$dir/explained")" ]'
fails 1 '--label-words: every label is "positive". Two classes are needed' \
    nowhere --tune prompt --label-words "positive=good"
fails 2 '--label-words: the label has more than 200 bytes' \
    nowhere --tune prompt --label-words "positive=good;$(printf '%201s' | tr ' ' n)=bad"
fails 2 '--label-words: the label is empty' nowhere --tune prompt --label-words "=good;negative=bad"
fails 2 '--prior none: is no share above 0' nowhere --tune prompt --label-words "$label_words" \
    --prior "positive=none;negative=1"
# Of ln_f, which is last in the file, every scale and bias is the largest float.
cp -r "$dir/base" "$dir/huge"
{
    LC_ALL=C sed 's/"checksum"/"nothing!"/' "$dir/base/model.safetensors" |
        head -c $(($(wc -c <"$dir/base/model.safetensors") - 256))
    for number in $(seq 64); do printf '\377\377\177\177'; done
} >"$dir/huge/model.safetensors"
fails 1 "huge: the features are not finite" nowhere --model "$dir/huge" --tune probe
fails 1 "huge: the features are not finite" nowhere --model "$dir/huge" --tune prompt \
    --label-words "$label_words"
fails 2 "--tune prompt: needs label words, since not every class's name is a token" \
    nowhere --tune prompt
succeeds "names of classes that are tokens are label words" eval '
    sed "s/^positive/good/; s/^negative/bad/" "$dir/train.tsv" >"$dir/named.tsv" &&
    train --tune prompt --train "$dir/named.tsv" --out "$dir/named" 2>&1 |
        grep -q "^label words: bad=bad;good=good, the names of the classes"'
succeeds "--prior: of the names of classes, too; without any words it is said to be idle" eval '
    prior="bad=3;good=1"
    train --tune prompt --train "$dir/named.tsv" --prior "$prior" --out "$dir/named2" >"$dir/prior.log" 2>&1 &&
    ! grep -q "no effect" "$dir/prior.log" && ! cmp -s "$dir/named/model.safetensors" "$dir/named2/model.safetensors" &&
    train --tune probe --train "$dir/named.tsv" --prior "$prior" --out "$dir/named2" --overwrite 2>&1 |
        grep -q -- "--prior: has no effect without label words"'
succeeds "of a word of several tokens the first is taken, and it is said" eval '
    prompt --train "$dir/bare" --format lines --label-words "positive=good;negative=zzz" \
        --out "$dir/several" 2>&1 | grep -q "^label word \"zzz\": the first of its [0-9] tokens stands for it"'
alone=yes

succeeds "options in vain are warned of, others not" eval '
    train --tune probe --lr 1e-3 --val "$dir/test.tsv" --val-part 0.2 --seed 4 --out "$dir/vain" \
        2>&1 | grep "has no effect" >"$dir/warnings"
    [ "$(wc -l <"$dir/warnings")" -eq 2 ] && grep -q -- "--lr: .*probe" "$dir/warnings" &&
        grep -q -- "--val-part: .* with --val" "$dir/warnings"'
fails 2 "--out: the value is empty" train --out ""
fails 2 "--val: the value is empty" train --val= --out "$dir/new"
said "--steps: has no effect with --epochs" --tune last:1 --steps 3 --epochs 2
fails 2 "--steps 2147483646: out of range" train --steps 2147483646 --out "$dir/new"
awk 'BEGIN { print "text\tlabel"; for (i = 0; i < 3000; i++) print "n " i "\t" i % 2 }' >"$dir/many"
fails 2 "--epochs 1000000: are more than 1000000000 updates" \
    train --batch 1 --epochs 1000000 --train "$dir/many" --out "$dir/new"
fails 2 "stray: not an option" train --out "$dir/new" stray
fails 1 "none: cannot be read" train --train "$dir/none" --out "$dir/new"
fails 1 "no column is named stars" train --label-column stars --out "$dir/new"
fails 1 "base: holds a language model, not a classifier" \
    ./finetune_cls predict --model "$dir/base" x
printf 'text\tlabel\nwell\tmixed\n' >"$dir/mixed.tsv"
fails 1 "mixed.tsv: 1 record cannot be used: line 2: the model does not know \"mixed\"." \
    eval_full --data "$dir/mixed.tsv" --predictions "$dir/unwritten.tsv"
succeeds "no part of a file is left" \
    eval '! ls "$dir" | grep -q unwritten'
fails 1 "every label is \"mixed\"" train --train "$dir/mixed.tsv" --out "$dir/new"
printf 'text\tlabel\nwell\ta\nbad\tb\n' >"$dir/two.tsv"
fails 1 "no class has two examples" train --train "$dir/two.tsv" --out "$dir/new"
cp -r "$dir/full1" "$dir/changed"
head -n 20 "$dir/base/merges.txt" >"$dir/changed/merges.txt"
rm "$dir/changed/vocab.json" "$dir/changed/tokenizer.json"
fails 1 "is not the tokenizer that the model was trained with" \
    ./finetune_cls predict --model "$dir/changed" x
printf 'text\tlabel\nwell\ta\nfine\ta\nbad\tb\nawful\tb\n' >"$dir/four.tsv"
fails 1 "cannot be made a directory" train --train "$dir/four.tsv" --out "$dir/corpus"
succeeds "--help exits with 0" eval '
    ./finetune_cls --help >/dev/null && ./finetune_cls train --help | grep -q "last:K"'
exit $failures
