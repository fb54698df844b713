#!/bin/sh
# Files that are hostile, or change while they are in use: models, tokenizers and shards. What a
# single byte can do to them is in test_hostile.c.

. test/lib.sh
speaker=finetune_cls match=-F

printf 'good film\nbad film\na fine story\na poor story\n' >"$dir/corpus"
printf 'label\ttext\npos\tgood film\nneg\tbad film\npos\tfine\nneg\tpoor\n' >"$dir/data"
tiny='--lr 1e-3 --dropout 0 --layers 1 --heads 1 --channels 16 --context 32 --batch 2'
{
    ./tokenizer train --vocab 260 --out "$dir/tok" "$dir/corpus" &&
    ./tokenizer encode --tokenizer "$dir/tok" --split lines --out "$dir/corpus" "$dir/corpus" &&
    ./train_gpt train --data "$dir/corpus_*.bin" --tokenizer "$dir/tok" --out "$dir/base" \
        $tiny --steps 5 &&
    ./finetune_cls train --model "$dir/base" --train "$dir/data" --tune probe --out "$dir/cls"
} >"$dir/log" 2>&1 || { echo "FAIL the models: $(tail -n 1 "$dir/log")"; exit 1; }
LC_ALL=C
export LC_ALL
escape=$(printf '\033')

limited() { (ulimit -t 5; exec "$@"); } # COMMAND...: within five seconds of work
fresh() { rm -rf "$dir/bad"; cp -R "$dir/cls" "$dir/bad"; } # the classifier once more, to spoil
predict() { limited ./finetune_cls predict --model "$dir/bad" "$@"; }
little_endian() # N: in eight bytes
{
    printf "$(printf '\\%o' $(($1 % 256)) $(($1 / 256 % 256)) $(($1 / 65536)) 0 0 0 0 0)"
}
header() # the text on standard input becomes a model.safetensors without data
{
    cat >"$dir/header"
    { little_endian "$(wc -c <"$dir/header")"; cat "$dir/header"; } >"$dir/bad/model.safetensors"
}
same_length() # FILE FROM TO: replaces a text in a binary file by one of the same length
{
    sed "s/$2/$3/" "$dir/cls/$1" >"$dir/bad/$1"
    [ "$(wc -c <"$dir/cls/$1")" -eq "$(wc -c <"$dir/bad/$1")" ] || echo "FAIL $1: another length"
}

# --- Time and memory grow with the size of a file, not with its square ---

fresh
awk 'BEGIN {
    printf "{\"a\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}"
    for (i = 0; i < 80000; i++)
        printf ",\"t%d\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}", i
    print "}"
}' | header
fails 1 "tensor a is not part of a GPT-2" predict x
fresh
awk 'BEGIN { printf "{\"id2label\": {"
    for (i = 0; i < 200000; i++) printf "%s\"%d\": \"x\"", i ? ", " : "", i; print "}}" }' \
    >"$dir/bad/config.json"
fails 1 "id2label must give each of its 200000 classes, at most 10000" predict x
fresh                                   # sizes that the file does not have: no memory is taken
same_length model.safetensors config_checksum no_checksum_now
sed -i -e 's/"vocab_size": [0-9]*/"vocab_size": 4000000/' -e 's/"n_embd": 16/"n_embd": 4000/' \
    "$dir/bad/config.json"
fails 1 "tensor transformer.wte.weight" predict x
fresh
zeros() # N: the config with so many values that mean nothing
{
    printf '{"a": ['; yes 0, | head -n "$1" | tr -d '\n'; printf '0],\n'
    tail -n +2 "$dir/cls/config.json"
}
same_length model.safetensors config_checksum no_checksum_now
zeros 2000000 >"$dir/bad/config.json"
succeeds "4 MB of zeros in config.json: read in 300 MB" eval '
    (ulimit -v 300000; OMP_NUM_THREADS=1 predict x) 2>&1 | grep -q "x$"'
zeros 9000000 >"$dir/bad/config.json"
fails 1 "config.json: has more than 4.194 MB" predict x
awk 'BEGIN { print "text\tlabel\tx"; printf "a\tb"
    for (i = 0; i < 400000; i++) printf "\t\"a\"b"; print "" }' >"$dir/quotes"
fails 1 "400002 columns where the first line has 3" limited ./finetune_cls eval --model "$dir/cls" \
    --data "$dir/quotes"

# --- Messages and results: short, and nothing that a terminal obeys ---

fresh
{ printf '{"'; yes name | head -n 200000 | tr -d '\n'
  printf '":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'; } | header
predict x >/dev/null 2>"$dir/said"
succeeds "a tensor's name of 800 kB: $(wc -c <"$dir/said") bytes of message" \
    [ "$(wc -c <"$dir/said")" -lt 2100 ]
fresh
printf '{"\\u001b[31m\\u009b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}' | header
fails 1 'tensor ?[31m?? is not part of a GPT-2' predict x
fresh
same_length model.safetensors '"tune.tune":"probe"' '"\\u000a":"[1m bold"'
sed -i 's/"config_checksum"/"no_checksum_now"/' "$dir/bad/model.safetensors"
sed 's/"0": "neg"/"0": "\\u001b[31m\\u009bneg"/' "$dir/cls/config.json" >"$dir/bad/config.json"
predict --all x >"$dir/answer" 2>&1
succeeds "escape sequences in a label: $(cat "$dir/answer")" eval '
    grep -qF "?[31m??neg 0" "$dir/answer" && ! grep -q "$escape" "$dir/answer"'
./train_gpt info --model "$dir/bad" >"$dir/answer" 2>&1
succeeds "info: escape sequences and line ends in metadata" grep -q '^?  *\[1m bold$' "$dir/answer"
long_name() # N: a label of so many bytes
{
    sed "s/\"0\": \"neg\"/\"0\": \"$(yes x | head -n "$1" | tr -d '\n')\"/" \
        "$dir/cls/config.json" >"$dir/bad/config.json"
}
long_name 201
fails 1 "a name of at most 200 bytes" predict x
long_name 200
succeeds "a label of 200 bytes" eval 'predict --all x 2>/dev/null | grep -q "x\{200\}"'
printf 'a \033[31m b\n' | ./finetune_cls predict --model "$dir/cls" >"$dir/answer"
succeeds "a text keeps its bytes in a pipe" grep -q "a $escape\[31m b" "$dir/answer"

# --- Files that are no files ---

for name in config.json tokenizer.json tokenizer_config.json model.safetensors; do
    fresh
    ln -sf /dev/zero "$dir/bad/$name"
    fails 1 "$name: is no regular file" predict x
    rm "$dir/bad/$name"
    mkfifo "$dir/bad/$name"
    fails 1 "$name: is no regular file" predict x
done
mkfifo "$dir/pipe"
cat "$dir/data" >"$dir/pipe" &
succeeds "labelled texts through a pipe" eval './finetune_cls eval --model "$dir/cls" \
    --data "$dir/pipe" 2>/dev/null | grep -q "^examples 4"'
fresh
sed 's/: 259}/: 258}/' "$dir/cls/vocab.json" >"$dir/bad/vocab.json"
rm "$dir/bad/tokenizer.json"
fails 1 "no id of its own to token" predict x

# --- Files that change while they are in use ---

# Of a model: its weights were read once, so it does no harm.
during() # COMMAND: predict answers once; COMMAND changes the model; then it answers once more
{
    fresh
    rm -f "$dir/lines" "$dir/answers"
    mkfifo "$dir/lines"
    predict <"$dir/lines" >"$dir/answers" 2>"$dir/said" &
    pid=$!
    exec 3>"$dir/lines"
    echo good >&3
    wait_for test -s "$dir/answers"
    "$@"
    echo good >&3
    exec 3>&-
    wait $pid && [ "$(wc -l <"$dir/answers")" -eq 2 ] && [ "$(sort -u "$dir/answers" | wc -l)" -eq 1 ]
    check $? "a model in use: $*, and the answer stays"
}
cut_short() { : >"$dir/bad/model.safetensors"; }
rewritten() { printf x | dd of="$dir/bad/model.safetensors" bs=1 seek=20000 conv=notrunc 2>/dev/null; }
replaced() { cp "$dir/base/model.safetensors" "$dir/new" && mv "$dir/new" "$dir/bad/model.safetensors"; }
for change in cut_short rewritten replaced; do during $change; done

# Of shards: each step reads some more.
speaker=train_gpt
beyond() { { head -c 1024 "$dir/corpus_000000.bin"
             tail -c +1025 "$dir/corpus_000000.bin" | tr '\000-\377' '\377'; } >"$dir/new"
           dd if="$dir/new" of="$dir/bad.bin" conv=notrunc 2>/dev/null; }
while_training() # COMMAND: changes the shard of a run that is under way
{
    rm -rf "$dir/run"
    cp "$dir/corpus_000000.bin" "$dir/bad.bin"
    limited ./train_gpt train --data "$dir/bad.bin" --tokenizer "$dir/tok" --out "$dir/run" \
        $tiny --steps 1000000 --save-every 100000 >/dev/null 2>"$dir/said" &
    pid=$!
    wait_for has_rows "$dir/run/log.tsv" 10
    "$@"
    wait $pid
}
cut_shard() { : >"$dir/bad.bin"; }
for change in beyond cut_shard; do
    while_training $change
    [ $? -eq 1 ] && tail -n 1 "$dir/said" |
        grep -q "^train_gpt: .*bad.bin: was cut or rewritten while it was in use"
    check $? "a shard in use, $change: $(tail -n 1 "$dir/said")"
done

# --- Options ---

printf 'no shard' >"$dir/none.bin"
train="./train_gpt train --data $dir/none.bin --tokenizer $dir/tok --out $dir/none"
fails 2 "--channels 256: not a multiple of --heads 3" $train --channels 256 --heads 3
fails 2 "--batch 65536: times --context 65536 is too much" $train --batch 65536 --context 65536
fails 1 "--val $dir/nowhere: no such file" $train --val "$dir/nowhere"
fails 2 "--out: the value is empty" $train --out ''
speaker=tokenizer
fails 2 "--out: the value is empty" ./tokenizer train --out '' "$dir/corpus"
exit $failures
