#!/bin/sh
# Labelled files on the command line of finetune_cls: columns, repeated texts, options without
# effect, and what predict reads and prints. How each format is read is in test_finetune.c.

. test/lib.sh
speaker=finetune_cls match=-F

printf 'good film\nbad film\na fine story\na poor story\n' >"$dir/corpus"
{
    ./tokenizer train --vocab 260 --out "$dir/tok" "$dir/corpus" &&
    ./tokenizer encode --tokenizer "$dir/tok" --split lines --out "$dir/corpus" "$dir/corpus" &&
    ./train_gpt train --data "$dir/corpus_*.bin" --tokenizer "$dir/tok" --out "$dir/base" \
        --lr 1e-3 --dropout 0 --layers 1 --heads 1 --channels 16 --context 32 --batch 2 --steps 5
} >"$dir/log" 2>&1 || { echo "FAIL the pretrained model: $(tail -n 1 "$dir/log")"; exit 1; }

train() { # FILE OPTION...: a probe in $dir/new; what it says in $dir/said
    file=$1
    shift
    ./finetune_cls train --model "$dir/base" --train "$dir/$file" --tune probe --out "$dir/new" \
        --overwrite "$@" >/dev/null 2>"$dir/said"
    trained=$?
}

try() # FILE OPTION...: the same, saying it aloud
{
    file=$1
    shift
    ./finetune_cls train --model "$dir/base" --train "$dir/$file" --tune probe --out "$dir/none" "$@"
}

says() # WORDS DESCRIPTION: one line of what `train` said has the words
{
    [ "$(grep -cF -- "$1" "$dir/said")" -eq 1 ]
    result=$?
    check $result "$2: $1"
    [ $result -eq 0 ] || cat "$dir/said"
}

silent() # WORDS DESCRIPTION: no line has
{
    [ $trained -eq 0 ] && ! grep -qF -- "$1" "$dir/said"
    check $? "$2"
}

# --- Formats ---

printf 'label\ttext\npos\tgood film\nneg\tbad film\npos\tfine\nneg\tpoor\n' >"$dir/plain.tsv"
train plain.tsv --seed 2
mv "$dir/new" "$dir/plain"
same_as_plain() # FILE OPTION...
{
    rm -rf "$dir/new"
    train "$@" --seed 2
    succeeds "$*: the model that a plain TSV file gives" \
        cmp "$dir/new/config.json" "$dir/plain/config.json"
    ./finetune_cls predict --model "$dir/new" x y >"$dir/new.answers"
    ./finetune_cls predict --model "$dir/plain" x y | cmp - "$dir/new.answers"
    check $? "$*: and its probabilities"
}
printf 'label;text\r\npos;"good film"\r\nneg;bad film\r\npos;fine\r\nneg;poor\r\n' >"$dir/semi"
printf '__label__pos good film\n__label__neg bad film\n__label__pos fine\n__label__neg poor\n' \
    >"$dir/fasttext"
printf '[{"tweet": "good film", "class": "pos"},\n{"tweet": "bad film", "class": "neg"},
    {"tweet": "fine", "class": "pos"}, {"tweet": "poor", "class": "neg"}]' >"$dir/array"
tail -n +2 "$dir/plain.tsv" >"$dir/headless"
same_as_plain semi
same_as_plain fasttext
same_as_plain array
same_as_plain headless --text-column 2 --label-column 1
says "is no header: it is data" "columns by number"
succeeds "eval numbers the columns as the training did" eval '
    ./finetune_cls eval --model "$dir/new" --data "$dir/headless" 2>&1 | grep -q "^examples 4"'
succeeds "eval of a file with a header" eval '
    ./finetune_cls eval --model "$dir/new" --data "$dir/plain.tsv" 2>&1 |
        grep -q "^examples 4"'
same_as_plain plain.tsv --text-column 2 --label-column label
same_as_plain plain.tsv --text-column 2 --label-column 1 --header yes
fails 2 "--header no: columns are numbered then" try plain.tsv --header no
train headless --text-column 2 --label-column 1 --header yes
succeeds "eval takes the first row for a header, as the training did" eval '
    ./finetune_cls eval --model "$dir/new" --data "$dir/headless" 2>&1 | grep -q "^examples 3"'
printf 'stars\ttext\tbody\npos\tx\tgood film\nneg\ty\tbad film\n' >"$dir/stars"
printf 'id\tcomment\tsentiment\n7\tvery good\tpos\n8\tvery bad\tneg\n' >"$dir/val"
train array --val "$dir/val"
succeeds "train and val have other usual names" grep -q "4 texts to train on, 2 for" "$dir/said"
train stars --text-column body --label-column stars --val "$dir/stars"
./finetune_cls predict --model "$dir/new" --data "$dir/stars" >"$dir/answers"
succeeds "predict reads the column that the training chose" \
    [ "$(cut -f 3 "$dir/answers" | tr '\n' ,)" = "good film,bad film," ]
succeeds "eval, too, and the label's" eval '
    ./finetune_cls eval --model "$dir/new" --data "$dir/stars" 2>/dev/null | grep -q "^examples 2"'
fails 1 "polarity (there are: stars, text, body)" ./finetune_cls eval --model "$dir/plain" --data "$dir/stars"
fails 1 "semi: looks like csv, but the training's file was tsv. Say what it is: --format csv" \
    ./finetune_cls eval --model "$dir/plain" --data "$dir/semi"
fails 1 "array: looks like jsonl, but the training's file was tsv" \
    ./finetune_cls predict --model "$dir/plain" --data "$dir/array"
fails 1 "semi: looks like csv, but the training's file was tsv. Say what it is: --format csv" \
    ./finetune_cls predict --model "$dir/plain" --data "$dir/semi"
printf 'id,body\n1,"good, film"\n' >"$dir/five.csv"
fails 1 "five.csv: looks like csv, but the training's file was tsv. Say what it is: --format csv" \
    ./finetune_cls predict --model "$dir/plain" --data "$dir/five.csv" --text-column body
succeeds "--format auto: whatever it was" eval '
    ./finetune_cls predict --model "$dir/plain" --data "$dir/array" --format auto >/dev/null 2>&1'
printf '\n\n' >"$dir/blank"
fails 1 "blank: the file is empty. It needs texts." ./finetune_cls predict --model "$dir/plain" --data "$dir/blank"
succeeds "eval --format csv" eval '
    ./finetune_cls eval --model "$dir/plain" --data "$dir/semi" --format csv 2>/dev/null |
        grep -q "^examples 4"'

# --- What is noted of texts and labels ---

printf 'text,label\ncaf\351,pos\nbad,neg\nna\357ve,pos\npoor,neg\n' >"$dir/cp1252.csv"
train cp1252.csv
says "cp1252.csv: 2 of 4 texts are not valid UTF-8" "invalid UTF-8 is counted"
says "iconv -f CP1252 -t UTF-8 FILE" "and the conversion named"
printf 'text,label\ngood,pos\nfine,pos \nbad,neg\npoor,neg\n' >"$dir/blank.csv"
train blank.csv
says 'blank.csv: label "pos " may look like another' "a blank"
printf 'text,label\ngood,pos\nfine,Pos\nbad,neg\npoor,neg\n' >"$dir/case.csv"
train case.csv
says 'case.csv: labels "Pos" and "pos" differ by case only' "case"
train plain.tsv
silent "finetune_cls: $dir" "nothing is noted of a good file"
printf 'text\tlabel\na\tx\nb\ty\na\tx\na\ty\nc\tx\nd\ty\ne\tx\n' >"$dir/twice"
printf 'text\tlabel\nc\tx\nb\tx\nc\tx\nf\ty\n' >"$dir/twice.val"
train twice --val "$dir/twice.val"
says "twice: 4 of 7 texts are repeated or in $dir/twice.val, 2 with another label: scores may" "repeated texts"
train twice --val "$dir/twice.val" --dedupe
says "twice: 4 of 7 texts are repeated or in $dir/twice.val, 2 with another label: left out" "--dedupe"
says "3 texts to train on, 4 for validation" "--dedupe"
silent "finetune_cls: $dir/twice" "nothing is repeated then"
fails 2 "--format lines: $dir/twice then has no labels" ./finetune_cls train --model "$dir/base" \
    --train "$dir/twice" --format lines --out "$dir/none"
awk 'BEGIN { print "text\tlabel"; for (i = 0; i < 60; i++) print "t" i % 30 "\t" i % 2 }' \
    >"$dir/doubled"
train doubled --val-part 0.5
succeeds "the part set aside shares texts with train" \
    grep -q "doubled: 30 of 60 texts are repeated: scores may" "$dir/said"
train doubled --val-part 0.5 --dedupe
silent "scores may" "not after --dedupe"
train plain.tsv --val "$dir/plain.tsv"
says "plain.tsv: 4 of 4 texts are repeated or in $dir/plain.tsv: scores may" "the same file twice"
cp "$dir/plain.tsv" "$dir/copy.tsv"
fails 1 "plain.tsv: every text is in $dir/copy.tsv, too" ./finetune_cls train --model "$dir/base" \
    --train "$dir/plain.tsv" --val "$dir/copy.tsv" --out "$dir/none" --dedupe

# --- Options without effect ---

train plain.tsv --lr 1 --epochs 1 --batch 2 --head-lr-ratio 1 --warmup 0 --weight-decay 0 \
    --dropout 0 --patience 1 --layer-decay 1 --l2sp 0 --lm-coef 0 --average 0 \
    --class-weights auto --calibrate --val "$dir/val" --val-part 0.5
for option in lr epochs batch head-lr-ratio warmup weight-decay dropout patience layer-decay l2sp \
    lm-coef average; do
    says "--$option: has no effect with --tune probe" "warned of"
done
for option in class-weights calibrate; do
    silent "--$option: has no effect" "--$option has an effect with --tune probe"
done
says "--val-part: has no effect with --val" "warned of"
train plain.tsv --steps 2
says "--steps: has no effect with --tune probe" "warned of"
train plain.tsv --tune full --lr 1e-3 --epochs 1 --batch 2 --val-part 0.5
silent "has no effect" "not of options that have one"

# --- predict ---

predict() { ./finetune_cls predict --model "$dir/plain" "$@"; }
predict "good film" "bad film" fine poor >"$dir/answers" 2>/dev/null
while read -r file format; do
    succeeds "predict --data $file --format $format" \
        eval 'predict --data "$dir/$file" --format $format | cmp - "$dir/answers"'
done <<'END'
plain.tsv auto
semi csv
fasttext fasttext
array jsonl
END
succeeds "predict --data headless --text-column 2 --header no" eval '
    predict --data "$dir/headless" --text-column 2 --header no 2>/dev/null |
        cmp - "$dir/answers"'
cut -f 3 "$dir/answers" >"$dir/bare"
succeeds "predict --data of bare lines" eval 'predict --data "$dir/bare" | cmp - "$dir/answers"' \
    2>"$dir/said"
says "bare: the first row (good film) is no header: each line is a text" "and it is said"
awk 'BEGIN { for (i = 0; i < 5000; i++) print "text " i }' >"$dir/many"
succeeds "predict --data: many lines, as from standard input" eval '
    predict --data "$dir/many" 2>/dev/null >"$dir/a" && predict <"$dir/many" | cmp - "$dir/a"'
printf 'good film\n\nbad film\n  \n\n' >"$dir/gaps"
succeeds "predict --data: as many answers as lines, blank ones too" \
    [ "$(predict --data "$dir/gaps" 2>/dev/null | wc -l)" -eq 5 ]
fails 1 "no column is named body" predict --data "$dir/plain.tsv" --text-column body
fails 2 "--data $dir/bare: there are TEXTs, too" predict --data "$dir/bare" text
p='0\.[0-9]{4}'
succeeds "predict --all: label, probability, each class, text" eval '
    predict --all "good film" | tr "\t" "|" |
        grep -qE "^(neg|pos)\|$p\|neg $p\|pos $p\|good film$"'
printf 'a "\\\t\377\000b\n' | predict --json >"$dir/json"
succeeds "predict --json: text and label" \
    grep -qF '{"text": "a \"\\\u0009\ufffd\u0000b", "label": "' "$dir/json"
succeeds "predict --json: probability" grep -qE '"probability": 0\.[0-9]{6}\}$' "$dir/json"
json=$(predict --json --all x)
form='"probability": (0\.[0-9]*), "probabilities": \{"neg": (0\.[0-9]*), "pos": (0\.[0-9]*)\}\}$'
succeeds "predict --json --all: $json" eval 'echo "$json" | grep -qE "$form"'
predict --text-column text x >/dev/null 2>"$dir/said"
says "--text-column: has no effect without --data" "warned of"

# --- Files as they come: test/cases, each from a report ---

cp test/cases/* "$dir"
training() # FILE WORDS [OPTION...]: a probe can be trained, and the words are said
{
    file=$1 words=$2
    shift 2
    train "$file" "$@" --val "$dir/val.tsv"
    succeeds "$file $*: $words" eval 'grep -qF -- "$words" "$dir/said"'
}
answers() # MODEL FILE LINES: as many answers as that
{
    succeeds "predict of $2: $3 answers" \
        [ "$(./finetune_cls predict --model "$dir/$1" --data "$dir/$2" 2>/dev/null | wc -l)" -eq "$3" ]
}
printf 'text\tlabel\na\tnegative\nb\tpositive\n' >"$dir/val.tsv"
training excel_tail.csv "20 rows without any content left out"
fails 1 "5 records cannot be used: line 9: the label is empty; line 29:" try empty_labels.csv
training two_parts.csv "two_parts.csv:22: repeats the header, left out"
training two_parts_bom.tsv "labels: negative, positive"
training parts.jsonl "10 texts to train on"
same_as_plain excel_sep.csv
{ printf 'sep=\t\n'; cat "$dir/plain.tsv"; } >"$dir/sep_tab"
same_as_plain sep_tab
printf 'text\tlabel\na\tneg\nb\tpos\n' >"$dir/val.tsv"
training nbsp_zwsp.tsv "may look like another"
printf 'text\tlabel\na\t\303\251\n' >"$dir/val.tsv"
training nfc_nfd.tsv "may look like another"
fails 1 "(there are: __label__positive, word0 I saw" try unique.txt
columns() # FILE LABELS OPTION...: what the classes are, and the number of examples
{
    file=$1 labels=$2
    shift 2
    train "$file" "$@"
    says "labels: $labels" "$file $*"
    mv "$dir/new" "$dir/by_$file"
}
columns text_first.tsv "0, 1" --text-column 1 --label-column 2
columns label_first.tsv "0, 1" --text-column 2 --label-column 1
columns agnews_like.csv "3, 4" --text-column 3 --label-column 1
columns score.csv "1, 5" --text-column 2 --label-column 3
columns train.tsv "question, review" --text-column 1 --label-column 2
answers by_text_first.tsv text_first.tsv 30
answers by_train.tsv train.tsv 30
succeeds "eval of a file with a class that is called as a column" eval '
    ./finetune_cls eval --model "$dir/by_train.tsv" --data "$dir/train.tsv" 2>&1 |
        grep -q "^examples 30"'
for model in plain by_train.tsv; do
    answers $model u1.txt 3
    answers $model u4.txt 2
    answers $model n2.txt 6
    answers $model n3.txt 6
    answers $model n4.txt 6
    answers $model bl.txt 5
done
answers plain bl3.tsv 3
{ echo 'text,label'; echo '"stray,pos'; awk 'BEGIN { for (i = 0; i < 30; i++) print "t" i ",neg" }'
    echo 'end",pos'; echo 'x,neg'; } >"$dir/stray.csv"
train stray.csv --val "$dir/plain.tsv"
says "stray.csv:2: a row has 32 lines in quotes" "a long row"
printf '__label__pos,good\n__label__neg,bad\n' >"$dir/marks"
fails 1 "(there are: __label__pos, good)" try marks
printf '\037\213\010' >"$dir/packed.tsv"
fails 1 "packed.tsv: is compressed" try packed.tsv
printf 'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n' >"$dir/pointer.tsv"
fails 1 "pointer.tsv: is a Git LFS pointer" try pointer.tsv
fails 1 "standard input: is a Git LFS pointer" eval 'predict <"$dir/pointer.tsv"'
printf 'good\n\ncaf\351\n' | predict 2>"$dir/said" >"$dir/answers"
succeeds "an empty line has an answer" [ "$(wc -l <"$dir/answers")" -eq 3 ]
says "standard input: 1 of 3 texts are empty" "and is counted"
says "standard input: 1 of 3 texts are not valid UTF-8" "so is another encoding"
long=$(awk 'BEGIN { for (i = 0; i < 99; i++) printf "text " }')
predict "$long" "$long" short >"$dir/answers" 2>"$dir/said"
says "texts that were truncated: 2" "and what is read in part only"
printf 'text\tlabel\n%s\tpos\nb\tneg\n' "$long" >"$dir/long.tsv"
./finetune_cls eval --model "$dir/plain" --data "$dir/long.tsv" >/dev/null 2>"$dir/said"
says "texts that were truncated: 1" "by eval, too"
exit $failures
