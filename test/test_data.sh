#!/bin/sh
# data/get_data.sh on a mirror of a few lines, made here, and on a curl of our own; files of
# data/reviews.
# Runs from the repository root, without a network.
set -u
. test/lib.sh
speaker=get_data.sh

root=$PWD
get=$root/data/get_data.sh
mirror=$dir/mirror
github=$mirror/raw.githubusercontent.com
char_rnn=$github/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e
shakespeare=$char_rnn/data/tinyshakespeare
sst2=$github/nlpaueb/nlp-optimizers/9f573468d63730ec394391837dc02d94583eec8b/data/SST2
imdb=$mirror/ai.stanford.edu/~amaas/data/sentiment
gpt2=$mirror/openaipublic.blob.core.windows.net/gpt-2/encodings/main
tab=$(printf '\t')

# --- The mirror ---

mkdir -p "$shakespeare" "$sst2" "$imdb" "$gpt2"
printf 'To be, or not to be,\nthat is the question.' >"$shakespeare/input.txt"
{ printf 'label\tsentence\n'
  sed "s/^/1$tab/" <<'TEXT'
as they ca n't , really ; we 're sure it 's one of kids ' best : can not , wo n't , gon na !
`` never again '' is ( almost ) worth $ 100 -lrb- writer\/director -rrb- ... or not ?
the ` best picture ' of the ' 50 's -- those '70s -- at arm 's - length , yet - but not-nearly - as
's film ... as is # 3 , 100 %
TEXT
} >"$dir/treebank"
{ printf 'label\tsentence\n'
  sed "s/^/1$tab/" <<'TEXT'
as they can't, really; we're sure it's one of kids' best: cannot, won't, gonna!
"never again" is (almost) worth $100 (writer/director)... or not?
the 'best picture' of the '50's -- those '70s -- at arm's-length, yet - but not-nearly-as
's film... as is #3, 100%
TEXT
} >"$dir/usual"
for part in train dev test; do cp "$dir/treebank" "$sst2/$part.tsv"; done
printf '#version: 0.2\nt h\n' >"$gpt2/vocab.bpe"
printf '{"!": 0}\n' >"$gpt2/encoder.json"
for part in train/pos train/neg train/unsup test/pos test/neg; do
    mkdir -p "$dir/aclImdb/$part"
    for id in 10 9 0; do
        printf 'In %s, %s.<br /><br />So\tso.\nEnd.' $part $id >"$dir/aclImdb/$part/${id}_5.txt"
    done
done
tar -czf "$imdb/aclImdb_v1.tar.gz" -C "$dir" aclImdb
list_mirror() {
    (cd "$mirror" && find . -type f ! -name 'SHA*' | sed 's,^\./,,' | xargs sha256sum >SHA256SUMS)
}
list_mirror
DATA_MIRROR=$mirror
export DATA_MIRROR

# --- From the mirror ---

data=$dir/data
"$get" --out "$data" tinyshakespeare sst2 imdb gpt2-vocab >/dev/null 2>"$dir/err"
check $? "all four data sets from a mirror"
cd "$data/tinyshakespeare"
cat train.txt val.txt | cmp -s - "$shakespeare/input.txt" && [ "$(wc -c <train.txt)" -eq 37 ] &&
    cmp -s input.txt "$shakespeare/input.txt"
check $? "tinyshakespeare: 37 bytes of 42 for training"
(for part in train dev test; do cmp -s "$dir/usual" "$data/sst2/$part.tsv" || exit 1; done)
check $? "sst2: usual spacing, brackets, quotes and hyphens in train, dev and test"
cd "$data/gpt2-vocab"
cmp -s merges.txt "$gpt2/vocab.bpe" && cmp -s encoder.json "$gpt2/encoder.json"
check $? "gpt2-vocab: as published"
for part in pos neg unsup; do
    for id in 0 9 10; do printf 'In train/%s, %s.\n\nSo\tso.\nEnd.<|endoftext|>\n' $part $id; done
done | cmp -s - "$data/imdb/pretrain.txt"
check $? "imdb: pretrain.txt has train and unsup by number, lines kept, not test"
(for part in train test; do
    { printf 'text\tlabel\n'
      for id in 0 9 10; do
          for label in pos neg; do
              printf 'In %s/%s, %s. So so. End.\t%s\n' $part $label $id $label
          done
      done; } | cmp -s - "$data/imdb/$part.tsv" || exit 1
done)
check $? "imdb: train.tsv and test.tsv, one line a review, labels in turn"

# --- Again, interrupted, damaged ---

cd "$root"
list_data() { (cd "$data" && find . -type f -exec ls -li {} + | sort) >"$dir/$1"; }

list_data before
"$get" --out "$data" tinyshakespeare sst2 imdb gpt2-vocab >/dev/null 2>"$dir/err" &&
    [ "$(grep -c already "$dir/err")" -eq 4 ]
check $? "a second run finds all four"
list_data after
cmp -s "$dir/before" "$dir/after"
check $? "and changes nothing"
rm "$data/imdb/test.tsv"
mkdir "$data/imdb/unfinished"
echo half >"$data/imdb/unfinished/test.tsv"
echo mine >>"$data/imdb/train.tsv"
"$get" --out "$data" imdb >/dev/null 2>&1 && [ "$(wc -l <"$data/imdb/test.tsv")" -eq 7 ] &&
    [ ! -e "$data/imdb/unfinished" ] && grep -q mine "$data/imdb/train.tsv"
check $? "an interrupted run is completed; what stands there is kept"

echo x >>"$sst2/dev.tsv"
fails 1 'SST2/dev.tsv: its SHA-256' "$get" --out "$dir/new" sst2
[ -z "$(find "$dir/new" -type f)" ]
check $? "nothing is left of it"
rm "$sst2/test.tsv" "$sst2/dev.tsv"
fails 1 'SST2/dev.tsv: cannot be read' "$get" --out "$dir/new" sst2
sed -i.old '/input.txt/d' "$mirror/SHA256SUMS"
fails 1 'SHA256SUMS: does not list' "$get" --out "$dir/new" tinyshakespeare
head -c 200 "$imdb/aclImdb_v1.tar.gz" >"$dir/cut"
mv "$dir/cut" "$imdb/aclImdb_v1.tar.gz"
list_mirror
fails 1 'aclImdb_v1.tar.gz: cannot be unpacked' "$get" --out "$dir/new" imdb
rm "$mirror/SHA256SUMS"
fails 1 'SHA256SUMS: cannot be read' "$get" --out "$dir/new" gpt2-vocab

# --- Without a mirror: this curl goes on from what is there, then does what FAKE says ---

unset DATA_MIRROR
mkdir "$dir/bin"
cat >"$dir/bin/curl" <<'CURL'
#!/bin/sh
while [ $# -gt 1 ]; do [ "$1" = --output ] && file=$2; shift; done
case $1 in https://*) ;; *) exit 1 ;; esac
printf 'some' >>"$file"
echo "$FAKE"
[ "$FAKE" = 200 ] || exit "$CURL_STATUS"
CURL
chmod +x "$dir/bin/curl"
PATH=$dir/bin:$PATH
part=$dir/new/download/${shakespeare#"$mirror/"}/input.txt.part
export FAKE=000 CURL_STATUS=18
fails 1 'broke off (curl status 18)' "$get" --out "$dir/new" tinyshakespeare
fails 1 'broke off (curl status 18)' "$get" --out "$dir/new" tinyshakespeare
[ "$(cat "$part")" = somesome ]
check $? "a download goes on where it stopped"
FAKE=000 CURL_STATUS=6
fails 1 'cannot be resolved' "$get" --out "$dir/new" tinyshakespeare
FAKE=404 CURL_STATUS=22
fails 1 'HTTP status 404' "$get" --out "$dir/new" tinyshakespeare
FAKE=200
fails 1 'its sha256 is not' "$get" --out "$dir/new" tinyshakespeare
[ ! -e "$part" ] && [ ! -e "$dir/new/tinyshakespeare/input.txt" ]
check $? "wrong bytes are deleted"

# --- The command line ---

"$get" --help | grep -q '^  tinyshakespeare ' && "$get" -h | grep -q '^  gpt2-vocab '
check $? "--help lists the names"
fails 2 'name a data set' "$get"
fails 2 'mnist: no such data set' "$get" mnist
fails 2 '--fast: no such option' "$get" --fast imdb
fails 2 '--out: name a directory' "$get" --out
fails 1 'cannot be made a directory' "$get" --out "$get" sst2

# --- From texts to a model in one command ---

cd "$dir"
speaker=pretrain.sh
pretrain=$root/data/pretrain.sh
for i in 1 2 3 4 5 6 7 8; do echo "The cat that sat on mat $i saw a bird. It's a bird, said the cat."; done >"a text"
few="-- --layers 1 --channels 16 --heads 1 --context 16 --batch 2 --steps 3 --threads 1"
"$pretrain" "a text" "a text" lm 9s $few >"$dir/out" 2>"$dir/err"
[ $? -eq 0 ] && [ "$(grep -a '^\$ ' "$dir/out" | cut -d ' ' -f 2,3 | tr '\n' ' ')" = \
    "./tokenizer train ./tokenizer encode ./train_gpt train ./train_gpt sample " ] &&
    grep -qa "^\$ .* --val 'lm/val_text_\*.bin' " "$dir/out" && [ -s "$dir/lm/model/model.safetensors" ]
check $? "pretrain.sh: four commands, as they can be typed"
cp "$dir/lm/model/model.safetensors" "$dir/first"
rm -r "$dir/lm/model"
"$pretrain" "a text" "a text" lm 9s $few >"$dir/out" 2>"$dir/err" &&
    [ "$(grep -ac '^\$ ' "$dir/out")" -eq 2 ] && cmp -s "$dir/first" "$dir/lm/model/model.safetensors"
check $? "it goes on where it stopped"
"$pretrain" "a text" "a text" lm 9s $few >"$dir/out" 2>"$dir/err" &&
    ! grep -q precision "$dir/out" && cmp -s "$dir/first" "$dir/lm/model/model.safetensors"
check $? "and when all is done it changes nothing"
fails 2 'lm: was made from other texts' "$pretrain" "a text" lm 9s
printf '\357\273\277One line' >-marked
"$pretrain" -marked "a text" -marked "joined [1]" 1s $few >"$dir/out" 2>"$dir/err" &&
    { echo "One line"; cat "a text"; echo "One line"; } | cmp -s - "joined [1]/text.txt"
check $? "it joins texts without byte order marks and with line ends between them"
{ cat "a text"; echo '<|endoftext|>The end.'; } >"one document"
"$pretrain" "one document" single 1s $few >"$dir/out" 2>"$dir/err" &&
    { cat "a text"; echo; echo "The end."; } | cmp -s - single/text.txt
check $? "a text of few documents is one: their marks become line ends"
for i in $(seq 100); do printf 'The cat %d saw a bird.<|endoftext|>\n' $i; done >documents
"$pretrain" documents hundred 1s $few >"$dir/out" 2>"$dir/err" && grep -q -- '--split eot .*--val-fraction 0.1 ' "$dir/out"
check $? "with 100 it sets documents aside"
fails 2 '0s: not a time' "$pretrain" "$dir/a text" "$dir/lm" 0s
fails 2 'nowhere: no file' "$pretrain" "$dir/nowhere" "$dir/lm" 9s
fails 2 'lm: not a time' "$pretrain" "$dir/a text" 9s "$dir/lm"
"$pretrain" "$dir/lm" 9s 2>/dev/null
[ $? -eq 2 ]
check $? "and says how it is called"
cd "$root"

# --- The embedded reviews: files of the same seed are the same ---

reviews=$PWD/data/reviews
[ -x "$reviews" ] || { reviews=$dir/reviews; ${CC:-cc} -O2 -o "$reviews" data/reviews.c -lm; }
small="--unlabelled 300 --unlabelled-val 20 --labelled 50 --validation 10 --test 200"
cd "$dir"
"$reviews" --out a $small >a.txt && "$reviews" --out b $small --unlabelled 100 >b.txt
check $? "reviews are written"
cmp -s a.txt b.txt && cmp -s a/train.tsv b/train.tsv && cmp -s a/test.tsv b/test.tsv &&
    head -n 100 a/unlabelled.txt | cmp -s - b/unlabelled.txt
check $? "same seed, same reviews, whatever the other files' sizes"
"$reviews" --out c $small --seed 2 >/dev/null && ! cmp -s a/train.tsv c/train.tsv &&
    ! cmp -s a/test.tsv c/test.tsv
check $? "another seed, other reviews"
[ "$(head -n 1 a/test.tsv)" = "text${tab}label" ] &&
    [ "$(grep -c "^[A-Z][^$tab]*\.${tab}\(positive\|negative\)\$" a/test.tsv)" -eq 200 ] &&
    [ "$(wc -l <a/test.tsv)" -eq 201 ]
check $? "test.tsv: a header, then 200 lines of text and label"
awk -F'\t' '$2 == "positive" { n++ } END { exit !(n > 70 && n < 130) }' a/test.tsv
check $? "labels are in balance: $(grep -c 'positive$' a/test.tsv) of 200 are positive"
"$reviews" --out a $small >/dev/null 2>err
[ $? -eq 2 ] && grep -q 'holds reviews already' err
check $? "reviews: an --out that holds reviews is refused"

exit $failures
