#!/usr/bin/env bash
# Fetches public data sets and converts them to what the programs read. Needs curl, tar, gzip, awk.
#
# Each data set is a function `make_NAME`, which writes its files into the directory $work out of
# what `fetch` has downloaded and checked. Only complete files get their final names, so a second run
# has nothing to do, and one that was interrupted goes on where it stopped.

set -euo pipefail
export LC_ALL=C                 # bytes, not characters: the same order and result everywhere

names="tinyshakespeare sst2 imdb gpt2-vocab"

help() {
    cat <<'TEXT'
data/get_data.sh [--out DIR] NAME...

  tinyshakespeare   input.txt, and its first 90% as train.txt, the rest as val.txt           1 MB
  sst2              train.tsv, dev.tsv, test.tsv: sentences from film reviews, label 0 or 1   4 MB
                    ("ca n't , really" is written "can't, really", in all three alike)
  imdb              pretrain.txt (train and unsup), train.tsv, test.tsv: label neg or pos   165 MB
  gpt2-vocab        merges.txt, encoder.json: the published vocabulary of GPT-2              2 MB

  --out DIR         where to write DIR/NAME/... (the directory of this script)
  -h, --help        this text

Environment: DATA_MIRROR=DIR takes DIR/HOST/PATH instead of https://HOST/PATH and checks it against
DIR/SHA256SUMS. Status: 0 done, 1 failed, 2 wrong usage.
TEXT
}

fail()       { echo "get_data.sh: $*" >&2; exit 1; }
fail_usage() { echo "get_data.sh: $* See data/get_data.sh --help." >&2; exit 2; }
say()        { echo "$*" >&2; }
have()       { command -v "$1" >/dev/null 2>&1; }

# --- What is published where: address, checksum ---

github=raw.githubusercontent.com
nlp_optimizers=$github/nlpaueb/nlp-optimizers/9f573468d63730ec394391837dc02d94583eec8b
sst2_url=$nlp_optimizers/data/SST2
char_rnn=$github/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e
shakespeare_url=$char_rnn/data/tinyshakespeare/input.txt
imdb_url=ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz
gpt2_url=openaipublic.blob.core.windows.net/gpt-2/encodings/main

published_sum() {
    case $1 in
        "$shakespeare_url")
            echo sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed ;;
        "$sst2_url/train.tsv")
            echo sha256:dc4a10637729af71aeb11f573482b10031ba7ffe53159403599d06759e484e30 ;;
        "$sst2_url/dev.tsv")
            echo sha256:84207e6be5873fb18db798cc6faec86871f5a426554650ff64a1c34e87665f6f ;;
        "$sst2_url/test.tsv")
            echo sha256:fcd46f967b7b8efd8b5398481dadf873886298d092195167af907fd532e81e1c ;;
        "$gpt2_url/vocab.bpe")
            echo sha256:1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5 ;;
        "$gpt2_url/encoder.json")
            echo sha256:196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783 ;;
        "$imdb_url")
            echo md5:7c2ac02c03563afcf9b574c7e56c153a ;;
    esac
}

# checksum sha256|md5 FILE, with whichever tool this system has
checksum() {
    local kind=$1 file=$2
    if have "${kind}sum"; then "${kind}sum" <"$file"
    elif [ "$kind" = sha256 ] && have shasum; then shasum -a 256 <"$file"
    elif [ "$kind" = md5 ] && have md5; then md5 -q <"$file"
    else fail "${kind}sum: no such program. Install it (coreutils)."
    fi | cut -d ' ' -f 1
}

# fits FILE KIND:SUM
fits() { local sum; sum=$(checksum "${2%%:*}" "$1") || exit 1; [ "$sum" = "${2#*:}" ]; }

# --- Getting one file: its path is then in $file ---

fetch() {
    if [ -n "${DATA_MIRROR:-}" ]; then from_mirror "$1"; else download "$1"; fi
}

# The file stays where it is. SHA256SUMS speaks for the mirror; a published archive is good, too.
from_mirror() {
    local sums=$DATA_MIRROR/SHA256SUMS sum
    file=$DATA_MIRROR/$1
    [ -r "$sums" ] ||
        fail "$sums: cannot be read. Set DATA_MIRROR to a directory that holds SHA256SUMS."
    [ -r "$file" ] ||
        fail "$file: cannot be read. Add it to the mirror, or unset DATA_MIRROR to download."
    sum=$(awk -v path="$1" '{ sub(/^\*?(\.\/)?/, "", $2) } $2 == path { print $1; exit }' "$sums")
    [ -n "$sum" ] || fail "$sums: does not list $1. Add the file's SHA-256."
    fits "$file" "sha256:$sum" || fits "$file" "$(published_sum "$1")" ||
        fail "$file: its SHA-256 is not the one in $sums. Copy the file again."
}

# Into $out/download; what has arrived stays there as .part when the connection breaks.
download() {
    local url=https://$1 sum part
    sum=$(published_sum "$1")
    file=$out/download/$1
    part=$file.part
    fetched+=("$file")
    [ ! -e "$file" ] || return 0
    have curl || fail "curl: no such program. Install curl, or set DATA_MIRROR."
    mkdir -p "$(dirname "$file")" ||
        fail "$out/download: cannot be written. Choose another --out."
    if ! { [ -e "$part" ] && fits "$part" "$sum"; }; then
        say "$url"
        curl_to "$part" "$url"
    fi
    if ! fits "$part" "$sum"; then
        rm -f "$part"
        fail "$url: what arrived was deleted, its ${sum%%:*} is not the published one. Run again."
    fi
    mv "$part" "$file"
}

# HTTP status 416 and curl's 33: the server cannot go on from the middle, so start from the start.
curl_to() {
    local part=$1 url=$2 status http shown=--progress-bar
    [ -t 2 ] || shown=--silent
    while :; do
        status=0
        http=$(curl --fail --location --proto =https --retry 5 --connect-timeout 20 \
                    --speed-time 60 --speed-limit 100 $shown --write-out '%{http_code}' \
                    --continue-at - --output "$part" "$url") || status=$?
        [ -s "$part" ] && { [ "$status" = 33 ] || [ "$http" = 416 ]; } || break
        rm -f "$part"
    done
    [ "$status" = 0 ] || fail "$url: $(curl_trouble "$status" "$http")"
}

# What a status of curl means, and what to do
curl_trouble() {
    case $1 in
        6)     echo "the host's name cannot be resolved. Check the network, then run again." ;;
        7|28)  echo "the host does not answer. Run again later: it goes on where it stopped." ;;
        22)    echo "the server answers with HTTP status $2. Check the address or try later." ;;
        23)    echo "cannot be written into $out/download. Free some space, then run again." ;;
        35|60) echo "no secure connection. Check the system's certificates and clock." ;;
        *)     echo "the download broke off (curl status $1). Run again: it then goes on." ;;
    esac
}

# --- The data sets: files_NAME lists what make_NAME writes into $work ---

files_tinyshakespeare="input.txt train.txt val.txt"
make_tinyshakespeare() {
    local size
    fetch "$shakespeare_url"
    cat "$file" >"$work/input.txt"
    size=$(wc -c <"$file")
    head -c $((size * 9 / 10)) "$file" >"$work/train.txt"
    tail -c $((size - size * 9 / 10)) "$file" >"$work/val.txt"
}

files_sst2="train.tsv dev.tsv test.tsv"
make_sst2() {
    local part
    for part in $files_sst2; do
        fetch "$sst2_url/$part"
        undo_spacing <"$file" >"$work/$part"
    done
}

# SST-2 is written as the Penn Treebank splits words, "ca n't , really", where all other text has
# "can't, really". Lines "label TAB text" get their usual spacing, brackets and quotes back. An
# apostrophe alone belongs to the word before it: it ends a quote or says whose ("kids ' story").
undo_spacing() {
    awk -F '\t' '
        function joins_the_last(word, last) {
            return word ~ /^([.,:;?!%)]+|-rrb-)$/ || word ~ /^(n\047t|\047(\047|s|re|ve|ll|d|m)?)$/ ||
                   (last == "can" && word == "not") || (last ~ /^(gon|wan)$/ && word == "na")
        }
        # "arm \047s - length" and "not-nearly - as-nasty" were one word, "yet - but" was not.
        function is_hyphen(last, word, following) {
            return word == "-" && (last ~ /\047(s|t|re)?$/ || last following ~ /-/)
        }
        function as_written(word) {
            if (word == "-lrb-") return "("
            if (word == "-rrb-") return ")"
            gsub(/\\\//, "/", word)
            gsub(/``|\047\047/, "\"", word)
            gsub(/`/, "\047", word)
            return word
        }
        {
            n = split($2, words, " ")
            text = ""
            joined = 1              # no space before the next word
            for (i = 1; i <= n; i++) {
                word = words[i]
                last = i > 1 ? words[i - 1] : ""
                opens = word ~ /^(``?|-lrb-|[($#])$/ ||
                        (word == "\047" && words[i + 1] ~ /^[0-9]/)
                hyphen = is_hyphen(last, word, words[i + 1])
                joined = joined || hyphen || (!opens && joins_the_last(word, last))
                text = text (joined ? "" : " ") as_written(word)
                joined = opens || hyphen
            }
            print $1 "\t" text
        }'
}

files_gpt2_vocab="merges.txt encoder.json"
make_gpt2_vocab() {
    fetch "$gpt2_url/vocab.bpe"
    cat "$file" >"$work/merges.txt"
    fetch "$gpt2_url/encoder.json"
    cat "$file" >"$work/encoder.json"
}

# One review is one file, ID_RATING.txt. The test reviews stay out of pretrain.txt. Positive and
# negative take turns, so that the first N lines of a TSV are balanced.
files_imdb="pretrain.txt train.tsv test.tsv"
make_imdb() {
    local part
    fetch "$imdb_url"
    say "imdb: unpacking 100,000 reviews"
    tar -xzf "$file" -C "$work" aclImdb/train/{pos,neg,unsup} aclImdb/test/{pos,neg} ||
        fail "$file: cannot be unpacked. See what tar says above."
    for part in train test; do
        imdb_reviews tsv "$work/aclImdb/$part/pos" >"$work/pos"
        imdb_reviews tsv "$work/aclImdb/$part/neg" >"$work/neg"
        printf 'text\tlabel\n' >"$work/$part.tsv"
        paste -d '\n' "$work/pos" "$work/neg" | sed '/^$/d' >>"$work/$part.tsv"
    done
    for part in pos neg unsup; do
        imdb_reviews text "$work/aclImdb/train/$part"
    done >"$work/pretrain.txt"
}

# imdb_reviews tsv|text DIR: all reviews of a directory by number. `text` keeps lines and ends each
# review with <|endoftext|>; `tsv` is a line "review TAB name of DIR".
imdb_reviews() {
    (cd "$2" && find . -name '*.txt' | sed 's,^\./,,' | sort -n |
     xargs awk -v form="$1" -v label="${2##*/}" '
        function flush() {
            gsub(/\r/, "", review)
            if (form == "text") {
                gsub(/ *<br *\/?> */, "\n", review)
                printf "%s<|endoftext|>\n", review
            } else {
                gsub(/ *(<br *\/?> *)+|[\t\n]+/, " ", review)
                printf "%s\t%s\n", review, label
            }
        }
        FNR == 1 { if (NR > 1) flush(); review = $0; next }
                 { review = review "\n" $0 }
        END      { flush() }')
}

# --- One data set ---

complete() {
    local name=$1 f
    for f in $2; do [ -s "$out/$name/$f" ] || return 1; done
}

get() {
    local name=$1 f files=files_${1//-/_}
    if complete "$name" "${!files}"; then
        say "$name: already in $out/$name"
        return
    fi
    mkdir -p "$out/$name" 2>/dev/null ||
        fail "$out/$name: cannot be made a directory. Choose another --out."
    work=$out/$name/unfinished
    rm -rf "$work"
    mkdir "$work" || fail "$out/$name: cannot be written. Choose another --out."
    fetched=()
    "make_${name//-/_}"
    for f in ${!files}; do
        [ -s "$out/$name/$f" ] || mv "$work/$f" "$out/$name/$f"
        say "$name: $out/$name/$f, $(($(wc -c <"$out/$name/$f"))) bytes"
    done
    rm -rf "$work"
    work=
    [ ${#fetched[@]} = 0 ] || rm -f "${fetched[@]}"
    [ ! -d "$out/download" ] || find "$out/download" -type d -empty -delete
}

out=$(dirname "$0")
work=                           # what is being made, removed at the end
fetched=()                      # what is no longer needed once the data set stands
wanted=()
while [ $# -gt 0 ]; do
    case $1 in
        -h|--help) help; exit 0 ;;
        --out)     [ $# -ge 2 ] && [ -n "$2" ] || fail_usage "--out: name a directory."
                   out=$2; shift ;;
        --out=?*)  out=${1#--out=} ;;
        -*)        fail_usage "$1: no such option." ;;
        *)         case " $names " in
                       *" $1 "*) wanted+=("$1") ;;
                       *)        fail_usage "$1: no such data set. Choose among $names." ;;
                   esac ;;
    esac
    shift
done
[ ${#wanted[@]} -gt 0 ] || fail_usage "name a data set: $names."
trap '[ -z "$work" ] || rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

for name in "${wanted[@]}"; do get "$name"; done
