#!/bin/sh
# What is on disk when a program is stopped while it writes: what was there before, what comes
# after, or a mixture that every reader refuses. One writer at a time; nothing is removed that is
# another's.

[ -w /dev/shm ] && export TMPDIR=/dev/shm       # many files are flushed to disk
. test/lib.sh
tokenizer=$PWD/tokenizer train=$PWD/train_gpt finetune=$PWD/finetune_cls
cd "$dir" || exit 1
unfinished=.unfinished                  # what a temporary name ends with

# --- Two of everything, "old" and "new" ---

printf 'good film\nbad film\na fine story\na poor story\n' >old.txt
printf 'win a prize\nsee you there\nprize money now\nsee the money\n' >new.txt
printf 'text\tlabel\ngood film\tpos\nbad film\tneg\nfine\tpos\npoor\tneg\n' >old.tsv
printf 'text\tlabel\ngood film\tspam\nbad film\tham\nfine\tspam\npoor\tham\n' >new.tsv
sizes="--lr 1e-3 --dropout 0 --layers 1 --heads 1 --channels 16 --context 16 --batch 2 --threads 1"
prepare() # NAME: tokenizer, shards, base model
{
    "$tokenizer" train --vocab 262 --out tok_$1 $1.txt &&
    "$tokenizer" encode --tokenizer tok_$1 --split lines --out $1 --shard-tokens 5 $1.txt &&
    "$train" train --data "$1_0*.bin" --tokenizer tok_$1 --out base_$1 $sizes --steps 3
}
prepare old >log 2>&1 && prepare new >>log 2>&1
check $? "two tokenizers, two sets of shards, two models"

classify() # NAME OUT OPTION...
{
    name=$1 out=$2
    shift 2
    "$finetune" train --model base_$name --train $name.tsv --tune probe --threads 1 \
        --out "$out" "$@"
}
classify old cls_old >/dev/null 2>&1 && classify new cls_new >/dev/null 2>&1
check $? "two classifiers"
answer_cls() { "$finetune" predict --model $1 "good film" "bad film"; }
answer_tok() { "$tokenizer" ids --tokenizer $1 <old.txt; }
answer_run() { "$train" eval --model $1 --data $2_000000.bin | tail -n 1; }

# --- Stopped at each name ---

# A directory in the place of a file makes the command fail when it is this file's turn. Then the
# file is put back as it was: the directory is as a kill leaves it.
stopped_at() # DIRECTORY FILE COMMAND...
{
    at=$1/$2
    shift 2
    mv "$at" kept && mkdir "$at"
    "$@" >/dev/null 2>said
    [ $? -eq 1 ] && tail -n 1 said | grep -q "^$speaker: $at: cannot be replaced"
    check $? "$(tail -n 1 said)"
    rmdir "$at" && mv kept "$at"
    left=$(find "$dir" -name "*$unfinished*")
    [ -z "$left" ]
    check $? "no temporary file is left${left:+ but $left}"
}

# Whether $answer, with the status $status, is the old one, the new one, or one sentence.
answers() # DESCRIPTION
{
    if [ $status -ne 0 ]; then
        [ $status -eq 1 ] && [ "$(grep -c "^$speaker: " said)" -eq 1 ] && refused=$((refused + 1))
    else
        [ "$answer" = "$old" ] || [ "$answer" = "$new" ]
    fi
    check $? "$1: status $status, ${answer:-$(tail -n 1 said)}"
}

speaker=finetune_cls refused=0
old=$(answer_cls cls_old) new=$(answer_cls cls_new)
for file in log.tsv vocab.json merges.txt tokenizer_config.json tokenizer.json config.json \
    model.safetensors; do
    cp -r cls_old mixed
    stopped_at mixed $file classify new mixed --overwrite
    answer=$(answer_cls mixed 2>said)
    status=$?
    answers "a classifier replaced up to $file"
    rm -r mixed
done
[ $refused -eq 2 ]
check $? "from what is done to a text to the model, the mixture is refused ($refused)"

# The same tokenizer: only config.json, or what is done to a text, tells the two apart.
"$finetune" train --model base_old --train new.tsv --tune probe --out cls_new --truncate head \
    --overwrite >/dev/null 2>&1
for file in config.json tokenizer_config.json; do
    cp -r cls_old mixed
    cp cls_new/$file mixed
    fails 1 "mixed.*$file: do.* not belong to model.safetensors" answer_cls mixed
    rm -r mixed
done

speaker=tokenizer refused=0
old=$(answer_tok tok_old) new=$(answer_tok tok_new)
for file in vocab.json merges.txt tokenizer_config.json tokenizer.json; do
    cp -r tok_old mixed
    stopped_at mixed $file "$tokenizer" train --vocab 262 --out mixed --overwrite new.txt
    answer=$(answer_tok mixed 2>said)
    status=$?
    answers "a tokenizer replaced up to $file"
    rm -r mixed
done
[ $refused -eq 0 ]
check $? "it is the old one or the new one ($refused)"
"$tokenizer" train --vocab 264 --min-frequency 1 --out tok_more old.txt 2>/dev/null
cp -r tok_old mixed && cp tok_more/vocab.json tok_more/merges.txt mixed
[ "$(answer_tok mixed)" = "$old" ]
check $? "tokenizer.json alone says all"
rm mixed/tokenizer.json
[ "$(answer_tok mixed)" = "$(answer_tok tok_more)" ]
check $? "without it, merges.txt and vocab.json do"
cp tok_old/merges.txt mixed
[ "$(answer_tok mixed)" = "$old" ] || fails 1 "mixed/vocab.json: " answer_tok mixed
rm mixed/*.json
[ "$(answer_tok mixed)" = "$old" ]
check $? "merges.txt alone is a tokenizer"
rm -r mixed
for file in vocab.json tokenizer.json merges.txt; do
    mkdir some && touch some/$file
    fails 2 "some: already holds $file" "$tokenizer" train --vocab 262 --out some old.txt
    rm -r some
done

# --- A run replaced by another ---

# The parts of a run that do not depend on time.
same_run() # A B
{
    for file in model.safetensors config.json merges.txt tokenizer.json state.safetensors \
        last/model.safetensors last/merges.txt; do
        cmp "$1/$file" "$2/$file" || return 1
    done
    cut -f1-7 "$1/log.tsv" >a && cut -f1-7 "$2/log.tsv" | cmp a -
}
run_of() # NAME OUT: the options; their pattern is for train_gpt
{
    echo "train --data ${1}_0*.bin --val ${1}_val.bin --tokenizer tok_$1 --out $2 $sizes"
}
run() # NAME OUT OPTION...
{
    set -f
    options=$(run_of $1 $2)
    shift 2
    "$train" $options "$@"
    result=$?
    set +f
    return $result
}
cp old_000000.bin old_val.bin && cp new_000000.bin new_val.bin
endless="--steps 1000000000 --eval-every 1000000000 --overwrite"
speaker=train_gpt refused=0
run old run_old --steps 2 --eval-every 2 >/dev/null 2>&1 &&
    run new run_new --steps 2 --eval-every 2 >/dev/null 2>&1 &&
    cp -r run_old on_old && "$train" train --resume --out on_old --steps 3 >/dev/null 2>&1 &&
    cp -r run_new on_new && "$train" train --resume --out on_new --steps 3 >/dev/null 2>&1
check $? "two runs, and both with a step more"
loss_old=$(answer_run run_old old) loss_new=$(answer_run run_new new)
for file in log.tsv vocab.json merges.txt last/merges.txt config.json model.safetensors \
    last/config.json last/model.safetensors state.safetensors; do
    cp -r run_old mixed
    stopped_at mixed $file run new mixed --steps 2 --eval-every 2 --overwrite
    for name in old new; do         # a model that reads the old shards, or the new ones, or neither
        eval "old=\$loss_$name new=\$loss_$name"
        answer=$(answer_run mixed $name 2>said)
        if [ -z "$answer" ]; then status=1; else status=0; fi
        answers "a run replaced up to $file, on $name shards"
    done
    if "$train" train --resume --out mixed --steps 3 >/dev/null 2>said; then
        same_run mixed on_old
    else
        [ "$(grep -c "^$speaker: " said)" -eq 1 ]
    fi
    check $? "and resumed: $(tail -n 1 said)"
    rm -r mixed
done

# Until its first save a run that replaces another leaves it as it was.
cp -r run_old replaced
set -f
"$train" $(run_of new replaced) $endless --save-every 1000000000 >/dev/null 2>&1 &
pid=$!
set +f
wait_for has_rows replaced/log.tsv$unfinished 6
speaker=train_gpt
fails 1 "replaced: another program is writing there" run new replaced --steps 1 --overwrite
fails 1 "replaced: another program is writing there" \
    "$train" train --resume --out replaced --steps 9
fails 1 "replaced/last: another program is writing there" run new replaced/last --overwrite
speaker=finetune_cls
fails 1 "replaced: another program is writing there" classify old replaced --overwrite
fails 1 "replaced: another program is writing there" "$finetune" compare --model base_old \
    --train old.tsv --out replaced
speaker=tokenizer
fails 1 "replaced: another program is writing there" \
    "$tokenizer" train --out replaced --overwrite old.txt
[ "$(answer_run replaced old)" = "$loss_old" ]
check $? "readers do not wait"
kill -KILL $pid
wait $pid 2>/dev/null
[ -f replaced/log.tsv$unfinished ] && same_run replaced run_old
check $? "killed before its first save, it leaves the old run as it was"
run new replaced --steps 2 --eval-every 2 --overwrite >/dev/null 2>&1 &&
    same_run replaced run_new && [ -z "$(find replaced -name "*$unfinished*")" ]
check $? "the next one replaces it, and removes what the killed one left"
cp -r run_old unevaluated
set -f
"$train" $(run_of new unevaluated) $endless --save-every 100 >/dev/null 2>&1 &
pid=$!
set +f
other_state() { ! cmp -s unevaluated/state.safetensors run_old/state.safetensors; }
wait_for other_state
kill -KILL $pid
wait $pid 2>/dev/null
answer_run unevaluated new | grep -q '^loss'
check $? "saved before it was evaluated, it leaves no model of the old run"
rm -r unevaluated               # with the temporary files of the killed run, if it was writing then

# A directory with a tokenizer and no model.
cp -r tok_new some
speaker=train_gpt
fails 2 "--out some: holds another tokenizer" run old some --steps 1
speaker=finetune_cls
fails 2 "--out some: holds another tokenizer" classify old some
diff -r some tok_new && classify new some >/dev/null 2>&1 && [ -s some/model.safetensors ]
check $? "another tokenizer stays, the same one is completed by a model"
rm -r some mixed 2>/dev/null

# Files of the user's with a name that a run gives to one of its own.
for file in config.json compare.tsv; do
    mkdir mine && echo mine >mine/$file
    speaker=finetune_cls
    if [ $file = config.json ]; then
        fails 2 "mine: already holds $file" classify old mine
        speaker=train_gpt
        fails 2 "mine: already holds $file" run old mine --steps 1
    else
        fails 2 "mine: already holds $file" "$finetune" compare --model base_old --train old.tsv \
            --out mine
    fi
    [ "$(cat mine/$file)" = mine ] && [ "$(ls mine)" = $file ]
    check $? "$file of the user's stays as it is"
    rm -r mine
done

# The same tokenizer and sizes: only the log's rows tell the two runs apart.
run old seed_2 --steps 2 --eval-every 2 --seed 2 >/dev/null 2>&1
cp -r run_old mixed && cp seed_2/log.tsv mixed
speaker=train_gpt
fails 1 "mixed/log.tsv: is not the log of the run beside it" \
    "$train" train --resume --out mixed --steps 3
fails 1 "mixed/log.tsv: is not the log of the run beside it" \
    "$train" train --resume --out mixed     # which is finished
{ head -n 2 run_old/log.tsv; tail -n +3 run_old/log.tsv | tr . '\000'; } >mixed/log.tsv
fails 1 "mixed/log.tsv: is not the log of the run beside it" \
    "$train" train --resume --out mixed --steps 3
rm mixed/log.tsv
fails 1 "mixed/log.tsv: is not the log of the run beside it" \
    "$train" train --resume --out mixed --steps 3

# --- Shards ---

speaker=train_gpt
eval_set() { "$train" eval --model base_old --data "$1"; }
ls old_000003.bin >/dev/null && ! ls old_000009.bin 2>/dev/null
check $? "a set of at least four shards"
count=$(ls old_0*.bin | wc -l)
cp old_000001.bin whole
"$tokenizer" encode --tokenizer tok_old --split lines --shard-tokens 5 --out other new.txt \
    2>/dev/null
cp other_000001.bin old_000001.bin
fails 1 "old_000001.bin: is not of the same run of .tokenizer encode. as old_000000.bin" \
    eval_set 'old_0*.bin'
fails 1 "old_000002.bin: is not of the same run of .tokenizer encode. as old_000001.bin" \
    eval_set 'old_00000[12].bin'
speaker=tokenizer
fails 1 "old_000001.bin: is not of the same run" \
    "$tokenizer" decode --tokenizer tok_old old_000000.bin old_000001.bin
speaker=train_gpt
{ head -c 24 whole && head -c 12 /dev/zero && tail -c +37 whole; } >old_000001.bin
fails 1 "old_000001.bin: is not of the same run" eval_set 'old_0*.bin'
rm old_000001.bin
fails 1 "old_000001.bin: is missing; $count shards were encoded together" eval_set 'old_0*.bin'
"$tokenizer" decode --tokenizer tok_old old_000000.bin 2>said >/dev/null
grep -q "^tokenizer: old_000001.bin: is missing; $count shards were encoded together, so" said
check $? "$(cat said)"
eval_set 'old_00000[023456789].bin' >/dev/null
check $? "a part of a set by its names"
{ head -c 1026 whole && printf '\001' && tail -c +1028 whole; } >old_000001.bin
fails 1 "old_000000.bin: the tokens are not those that were encoded" eval_set 'old_0*.bin'
mv whole old_000001.bin
eval_set 'old_0*.bin' >/dev/null
check $? "the whole set"

speaker=tokenizer
encode() # PREFIX OPTION...
{
    prefix=$1
    shift
    "$tokenizer" encode --tokenizer tok_old --split lines --out "$prefix" "$@" old.txt
}
mkdir set
cp old_0*.bin set
rm set/old_000000.bin
fails 1 "set/old_00000[1-9].bin: exists" encode set/old
cp -r set before
fails 1 "is left to train on" encode set/old --val-fraction 1 --overwrite
diff -r set before
check $? "what fails replaces nothing, and leaves nothing"
rm set/old_000002.bin
cp old_000000.bin set/val_old_000000.bin
encode set/old --overwrite 2>said && [ "$(ls set)" = "old_000000.bin
val_old_000000.bin" ] && cmp set/val_old_000000.bin old_000000.bin
check $? "fewer shards: the others of the older set are gone, behind gaps, too; no other file is"
grep -q 'set/val_old_000000.bin: stays, and its texts may be in the new set/old' said
check $? "$(head -n 1 said)"
encode set/old --val-fraction 0.5 --seed 2 --overwrite 2>/dev/null &&
    ! cmp -s set/val_old_000000.bin old_000000.bin
check $? "with --val-fraction that is replaced, too"
echo "my own" >set/old_000007.bin
cp -r set again
fails 1 "set/old_000007.bin: is not a token shard, so it is not replaced" encode set/old --overwrite
diff -r set again
check $? "and nothing is"
rm -r set

# --- One writer of a prefix, and what a killed process has left ---

mkdir set
mkfifo pipe
"$tokenizer" encode --tokenizer tok_old --out set/a - <pipe 2>/dev/null &
pid=$!
exec 3>pipe
wait_for test -e set/a_000000.bin$unfinished
fails 1 "set/a_000000.bin.unfinished: another program is writing there" encode set/a
fails 1 "set/a_000000.bin.unfinished: another program is writing there" encode set/a --overwrite
encode set/b 2>/dev/null
check $? "two prefixes in a directory at the same time"
echo text >&3
exec 3>&-
wait $pid && [ "$(ls set)" = "a_000000.bin
b_000000.bin" ]
check $? "the first one ends well"
echo left >set/a_000000.bin$unfinished
encode set/a --overwrite 2>/dev/null
[ "$(LC_ALL=C ls set | tr '\n' ' ')" = "a_000000.bin b_000000.bin " ]
check $? "what a killed process has left of a shard is gone"
rm -r set
mkdir o1 'o[12]'
for out in o1 'o[12]'; do
    echo left >"$out/model.safetensors$unfinished" && echo left >"$out/config.json$unfinished"
done
classify old 'o[12]' >/dev/null 2>&1
[ "$(ls o1 | wc -l)" -eq 2 ] && [ -s 'o[12]/config.json' ] && ! ls 'o[12]' | grep -q "$unfinished"
check $? "--out 'o[12]' is no pattern; what was left there is gone"
rm -r o1 'o[12]'
yes left | head -n 1000 >p$unfinished
"$finetune" eval --model cls_old --data old.tsv --predictions p >/dev/null 2>&1 &&
    [ -s p ] && ! grep -q left p && [ ! -e p$unfinished ]
check $? "--predictions, too"

# --- compare ---

speaker=finetune_cls
printf 'text\tlabel\na good story\tpos\na bad story\tneg\n' >test.tsv
compare() # OPTION...
{
    "$finetune" compare --model base_old --train old.tsv --test test.tsv --out cmp \
        --methods majority --labels 4 --seeds 1 "$@"
}
compare >/dev/null 2>&1 && cp -r cmp before_cmp
stopped_at cmp compare.tsv compare --overwrite --seeds 2
diff -r cmp before_cmp
check $? "a comparison is replaced when the new one has its first row"
compare --overwrite --seeds 2 >/dev/null 2>&1 && [ "$(wc -l <cmp/compare.tsv)" -eq 3 ]
check $? "and is then"

# --- No place, no right ---

for limit in 8 40; do
    cp -r cls_old full
    limited() { (ulimit -f $limit && classify new full --overwrite); }
    limited >/dev/null 2>said
    [ $? -eq 1 ] && tail -n 1 said | grep -q '^finetune_cls: full/.*: writing failed'
    check $? "$(tail -n 1 said)"
    diff -r full cls_old
    check $? "a disk with room for $limit blocks: the old classifier stays"
    rm -r full
done
# What the system does not tell, or does not do, is not passed over.
cp -r cls_old stays && mkdir stays/state.safetensors
classify new stays --overwrite >/dev/null 2>said
[ $? -eq 1 ] && tail -n 1 said | grep -q 'stays/state.safetensors: is out of date and cannot be r'
check $? "$(tail -n 1 said)"
rm -r stays
mkdir some && ln -s merges.txt some/merges.txt      # a link to itself can be neither read nor seen
speaker=tokenizer
fails 2 "some: already holds merges.txt" "$tokenizer" train --vocab 262 --out some old.txt
fails 1 "some/merges.txt: cannot be read" answer_tok some
speaker=train_gpt
fails 1 'some/merges.txt/[*]: \(cannot be read\|cannot be searched for\|no such file\)' \
    eval_set 'some/merges.txt/*'        # glob of musl finds nothing there
fails 1 '--data none/[*]: no such file' eval_set 'none/*'
rm -r some
mkdir set && cp old_0*.bin set
cat old_0*.bin >old_all.bin
few_files()
{
    (ulimit -n 4 && exec "$tokenizer" encode --tokenizer tok_new --out set/old new.txt)
}
few_files 2>said
grep -q '^OMP: ' said ||        # clang's OpenMP needs a file itself
    grep -q '^tokenizer: set/old_000000.bin: cannot be read (\(Too many open files\|No file descriptors available\))' said
check $? "too few files to look at an older shard: $(tail -n 1 said)"
cat set/old_0*.bin | cmp - old_all.bin
check $? "and the shards there stay"
rm -r set

if [ "$(id -u)" -ne 0 ]; then
    speaker=finetune_cls
    cp -r cls_old fixed && chmod a-w fixed
    fails 1 'cannot be written (Permission denied)' classify new fixed --overwrite
    fails 1 'fixed: cannot be written (Permission denied)' \
        "$finetune" train --model none --train old.tsv --out fixed --overwrite  # first of all
    chmod u+w fixed
fi
exit $failures
