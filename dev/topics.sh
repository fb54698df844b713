#!/bin/sh
# Prompting with four classes: the topic of a note, which the model's texts name after notes, and what
# a question asks for, which no text names. Needs the programs built and Python; writes to out/topics,
# in three to eight minutes.
set -eu
cd "$(dirname "$0")/.."
dir=out/topics
rm -rf "$dir"
python3 dev/topics.py "$dir"
./tokenizer train --vocab 1024 --split lines --out "$dir/tokenizer" "$dir/plain.txt"
./tokenizer encode --tokenizer "$dir/tokenizer" --split lines --out "$dir/train" "$dir/plain.txt"
./tokenizer encode --tokenizer "$dir/tokenizer" --split lines --out "$dir/val" "$dir/plain_val.txt"
./train_gpt train --data "$dir/train_*.bin" --val "$dir/val_*.bin" --tokenizer "$dir/tokenizer" \
    --out "$dir/model" --dropout 0 --layers 2 --heads 4 --channels 128 --context 128 --batch 16 \
    --cut documents --optimizer adamw --lr 6e-3 --steps 600

# compare NAME SUFFIX WORDS METHODS
compare() {
    ./finetune_cls compare --model "$dir/model" --train "$dir/$1.tsv" --test "$dir/$1_test.tsv" \
        --out "$dir/compare_$1" --labels 0,20,100 --seeds 3 --batch 16 --suffix "$2" \
        --label-words "$3" --methods "majority,nb,nbsvm,$4"
}
plain=+suffix:+label-words:
compare topics " Read more about" "business=business;science=science;sport=sport;travel=travel" \
    "prompt,prompt+prior:sport=4;business=3;science=2;travel=1,probe$plain,probe,full$plain,full"
answers="person=Anna,Boris,Carla,David;place=Near;reason=Because;time=Probably"
compare questions " This asks for a" "person=person;place=place;reason=reason;time=time" \
    "prompt,prompt+suffix:+label-words:$answers,probe$plain,probe,full$plain,full"

# A classifier of four classes without a label, what it says, and why.
./finetune_cls train --model "$dir/model" --train "$dir/topics.tsv" --out "$dir/prompt" --tune prompt \
    --suffix " Read more about" --prior "sport=4;business=3;science=2;travel=1"
./finetune_cls eval --model "$dir/prompt" --data "$dir/topics_test.tsv"
./finetune_cls predict --model "$dir/prompt" --all "In Lyon a keeper won the penalty."
./finetune_cls explain --model "$dir/prompt" "In Lyon a keeper won the penalty."
