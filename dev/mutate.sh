#!/bin/sh
# mutate.sh [N] [SEED] [RESULTS] [PART/PARTS]: do the tests notice a wrong line? Changes N lines, one
# at a time, in a copy of the sources (a sign, a factor, an index, a comparison, a word of logic, a
# statement left out), builds the tests that concern the section of the file, runs the quick ones
# first and stops at the first failure. Run from the repository root; it changes nothing there but
# RESULTS.
#
#     nice -n 19 dev/mutate.sh 80 1 out/mutants.tsv
#     for i in 1 2; do nice -n 19 dev/mutate.sh 80 1 out/mutants$i.tsv $i/2 & done; wait
#     QUICK=1 nice -n 19 dev/mutate.sh 500 2 out/mutants.tsv
#
# The seed determines which lines and which changes. RESULTS has a row for each: verdict, what
# noticed it, file:line:column, the change, the line. What it already holds is not done again, so an
# interrupted run goes on, and a larger N adds to it. dev/mutants.md tells what survives, and why.
#
#     caught      a test failed, or was not done in its time
#     survived    all passed: a test is missing, or the change changes nothing that matters
#     open        the test programs passed, and QUICK=1 leaves out the scripts, which take longer;
#                 without QUICK they are all that is still done
#     same        the compiler made the same programs of it: not counted
#     invalid     it does not compile: not counted

N=${1:-80} seed=${2:-1} results=${3:-out/mutants.tsv} part=${4:-1/1}
CC=${CC:-cc}
limit=60                        # seconds of a processor that a program may take
patience=600                    # seconds that a test may take
export clock='time-limit|four fifths|time that was left|ms a step|measuring'      # fail on a busy machine
regions="model.h:1-10 model.h:14-14 train_gpt.c:1-3 train_gpt.c:6-6 finetune_cls.c:1-5 tokenizer.c:9-9"

scratch=$(mktemp -d)
root=$scratch/original          # a copy, so that work may go on meanwhile
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM
export TMPDIR="$scratch/tmp" OMP_WAIT_POLICY=passive
mkdir -p "$TMPDIR" "$scratch/base" "$root" "$(dirname "$results")"
touch "$results"
results=$(cd "$(dirname "$results")" && pwd)/$(basename "$results")
cp -r ./*.c ./*.h Makefile data test "$root"
cd "$root" || exit 1
sed 's/failures=$((failures + 1));/echo "$2" | grep -qE "$clock" || exit 1; &/' test/lib.sh >lib.sh
mv lib.sh test/lib.sh           # scripts stop at the first failure, too
echo 'int main(void) { return 0; }' >"$scratch/probe.c"
openmp=$($CC -fopenmp -o "$scratch/probe" "$scratch/probe.c" 2>/dev/null && echo -fopenmp)

# --- The changes: all that are possible, in a random order, one for each line ---

# Prints file, line, column, length, new text. In `code`, strings and comments are blank, so that
# columns are those of the line. A statement is left out if it stands alone and declares nothing;
# what frees memory, shows progress or measures time stays.
list() # FILE FIRST LAST: sections of the file
{
    awk -v file="$1" -v first="$2" -v last="$3" '
    function offer(column, length_, text) { printf "%s\t%d\t%d\t%d\t%s\n", file, NR, column, length_, text }
    function blank(s,  out, i, c, quote) {
        out = ""
        for (i = 1; i <= length(s); i++) {
            c = substr(s, i, 1)
            if (comment) { if (substr(s, i, 2) == "*/") { comment = 0; out = out "  "; i++ } else out = out " " }
            else if (quote != "") { out = out " "; if (c == "\\") { out = out " "; i++ } else if (c == quote) quote = "" }
            else if (substr(s, i, 2) == "/*") { comment = 1; out = out "  "; i++ }
            else if (c == "\"" || c == "\047") { quote = c; out = out " " }
            else out = out c
        }
        return out
    }
    BEGIN {
        count = split(" + > - @ - > + @ * > / @ / > * @ < > <= @ <= > < @ > > >= @ >= > > @ == > != @ != > == @ += > -= @ -= > += @ && > || @ || > && ", pairs, "@")
        for (i = 1; i <= count; i++) {
            from[i] = " " substr(pairs[i], 2, index(substr(pairs[i], 2), " "))
            to[i] = " " substr(pairs[i], length(from[i]) + 3)
        }
        plain["= 0;"] = "= 1;"; plain[" + 1"] = ""; plain[" - 1"] = ""; plain["2 * "] = "3 * "
        plain["(!"] = "("; plain["true"] = "false"; plain["false"] = "true"; plain["0.5"] = "0.6"
    }
    { code = blank($0) }
    /^\/\* [0-9]+\. / { section = $2 + 0 }
    section < first || section > last || /^#/ || /^[^ ]/ { ended = 1; next }
    {
        for (i = 1; i <= count; i++)
            for (at = 1; (k = index(substr(code, at), from[i])); at += k) offer(at + k - 1, length(from[i]), to[i])
        for (text in plain)
            for (at = 1; (k = index(substr(code, at), text)); at += k) offer(at + k - 1, length(text), plain[text])
        words = code; sub(/^ +/, "", words); sub(/ +$/, "", words)
        if (ended && words ~ /;$/ && words !~ /^(const|int|struct|double|size_t|real|float|static|return|char|bool|u?int[0-9]|break|continue|FILE|unsigned|long|enum|for|if|while|else|case|goto|floats|va_|free\(|release\(|lap\(|progress\(|fclose)/ && words !~ /[{}]/)
            offer(1, length($0), ";")
        if (words != "") ended = words ~ /[;{}]$/
    }' "$1"
}

# A random order (each line of input gets a key), then the first change of each line of code.
chosen()
{
    for region in $regions; do
        sections=${region#*:}
        list "${region%:*}" "${sections%-*}" "${sections#*-}" | sort -t '	' -k 2n -k 3n -k 5
    done | awk -v seed="$seed" 'BEGIN { x = (seed * 48271 + 11) % 2147483647 }
        { x = x * 16807 % 2147483647; printf "%010d\t%s\n", x, $0 }' |
        sort | cut -f 2- | awk -F '\t' '!seen[$1, $2]++' | head -n "$N" |
        awk -v part="${part%/*}" -v parts="${part#*/}" 'NR % parts == part % parts'
}

# --- One change ---

build() # OUT SOURCE [FLAG]
{
    $CC -O1 -march=native -fno-math-errno -fno-trapping-math $openmp -w $3 -o "$1" "$2" -lm 2>/dev/null
}

build "$root/data/reviews" data/reviews.c
cp -r "$root" "$scratch/tree"

# The tests of a section: NAME for test/NAME.c, NAME=double for its build in double precision, then
# scripts.
tests_of() # FILE SECTION
{
    case $1:$2 in
        model.h:1[0-9]) echo test_checkpoint test_hostile test_model test_train test_finetune \
            test_hostile.sh test_writing.sh test_train.sh test_finetune.sh test_files.sh ;;
        model.h:*) echo test_model test_model=double test_precision test_checkpoint test_train \
            test_finetune test_precision.sh test_train.sh test_finetune.sh test_vectors.sh ;;
        train_gpt.c:*) echo test_train test_hostile_train test_train.sh test_precision.sh \
            test_hostile.sh test_writing.sh test_vectors.sh ;;
        finetune_cls.c:*) echo test_finetune test_hostile test_compare test_finetune.sh \
            test_files.sh test_compare.sh ;;
        tokenizer.c:*) echo test_tokenizer test_hostile test_train test_hostile.sh \
            test_writing.sh test_train.sh test_data.sh ;;
    esac
}

section_of() # FILE LINE
{
    sed "$2q" "$root/$1" | sed -n 's|^/\* \([0-9]*\)\. .*|\1|p' | tail -n 1
}

# Whether a program must be built anew: a source that it includes has changed, or it is not there.
concerns() # PROGRAM
{
    [ -f "$scratch/base/script.sh/$1" ] || return 0
    for source in "$1.c" model.h tokenizer.c; do
        cmp -s $source "$root/$source" || return 0
    done
    return 1
}

# Builds a test program, or for a script the three programs, in a tree. What comes out goes to OUT.
make_test() # TREE TEST OUT
{
    (
        cd "$1" || exit 1
        mkdir -p "$3"
        case $2 in
            *.sh) for p in tokenizer train_gpt finetune_cls; do
                      if concerns $p; then build "$3/$p" $p.c || exit 1
                      else cp "$scratch/base/script.sh/$p" "$3/$p"; fi
                  done ;;
            *=double) build "$3/${2%=*}" "test/${2%=*}.c" -DREAL=double ;;
            *) build "$3/$2" "test/$2.c" ;;
        esac
    )
}

same_files() { for f in "$1"/*; do cmp -s "$f" "$2/${f##*/}" || return 1; done; }

# Whether a test that make_test has built fails, or ends without having counted its failures. What
# looks at the clock is left out. Nobody reads beyond the first failure: SIGPIPE ends the program.
failing() # TEST BUILT
{
    cd "$scratch/tree" || exit 1
    ulimit -t $limit
    {
        case $1 in
            *.sh) cp "$2"/* . && timeout $patience sh "test/$1" ;;
            *) timeout $patience "$2/${1%=*}" ;;
        esac 2>/dev/null
        echo $? >"$scratch/status"
    } | awk '{ print } /^FAIL / && $0 !~ ENVIRON["clock"] { exit }' >"$scratch/log"
    [ "$(cat "$scratch/status")" -ne "$(grep -c '^FAIL ' "$scratch/log")" ] ||
        grep '^FAIL ' "$scratch/log" | grep -qvE "$clock"
}

# Why the test that was tried last has failed: its first failure, or the status with which it ended,
# 124 and 137 if its time was up.
reason()
{
    grep '^FAIL ' "$scratch/log" | grep -vE "$clock" | head -n 1 | grep . || echo "status $(cat "$scratch/status")"
}

# Ends everything if a test fails without any change: what it says of others would be worth nothing.
sound() # TEST BUILT
{
    [ -f "$scratch/sound_$1" ] && return
    mv "$scratch/tree" "$scratch/changed" && cp -r "$root" "$scratch/tree"
    if (failing "$1" "$2"); then echo "mutate.sh: $1 fails without any change." >&2; exit 1; fi
    touch "$scratch/sound_$1"
    rm -r "$scratch/tree" && mv "$scratch/changed" "$scratch/tree"
}

# Sets verdict and by. TRIED: the test programs are known to pass.
try() # FILE LINE COLUMN LENGTH TEXT [TRIED]
{
    verdict=${6:+survived} by=-
    verdict=${verdict:-same}
    awk -v line="$2" -v column="$3" -v n="$4" -v text="$5" 'NR == line {
        $0 = substr($0, 1, column - 1) text substr($0, column + n) } { print }' "$root/$1" >"$scratch/tree/$1"
    rm -rf "$scratch/built"
    for test in $(tests_of "$1" "$(section_of "$1" "$2")"); do
        kind=$test
        case $test in *.sh) kind=script.sh ;; *) [ "$6" ] && continue ;; esac
        if [ "$QUICK" ] && [ $kind = script.sh ] && [ $verdict != same ]; then verdict=open; break; fi
        [ -d "$scratch/base/$kind" ] || make_test "$root" "$test" "$scratch/base/$kind"
        [ -d "$scratch/built/$kind" ] || make_test "$scratch/tree" "$test" "$scratch/built/$kind" ||
            { verdict=invalid; break; }
        same_files "$scratch/built/$kind" "$scratch/base/$kind" && continue
        if [ "$QUICK" ] && [ $kind = script.sh ]; then verdict=open; break; fi
        verdict=survived
        (failing "$test" "$scratch/built/$kind") || continue
        verdict=caught by="$test: $(reason)"
        sound "$test" "$scratch/base/$kind"
        break
    done
    cp "$root/$1" "$scratch/tree/$1"
}

chosen >"$scratch/chosen"
tab='	'
while IFS="$tab" read -r file line column length text; do
    old=$(sed -n "${line}p" "$file" | cut -c "$column-$((column + length - 1))")
    code=$(sed -n "${line}p" "$file" | sed 's/^ *//')
    what="$file:$line:$column$tab$old -> $text$tab$code"
    grep -F -- "$tab$what" "$results" | grep -qv "^open" && continue
    tried=$(grep -F -- "$tab$what" "$results")
    [ "$QUICK" ] && [ "$tried" ] && continue
    try "$file" "$line" "$column" "$length" "$text" "$tried" </dev/null
    printf '%s\t%s\t%s\n' "$verdict" "$by" "$what" >>"$results"
done <"$scratch/chosen"

awk -F '\t' '{ verdict[$3 "  " $4 "  |  " $5] = $1 }
    END {
        for (m in verdict) { n[verdict[m]]++; if (verdict[m] ~ /survived|open/) print verdict[m] ": " m }
        all = n["caught"] + n["survived"] + n["open"]
        printf "%d of %d caught (%.1f%%), %d open; %d gave the same program, %d did not compile\n",
            n["caught"], all, all ? 100 * n["caught"] / all : 0, n["open"], n["same"], n["invalid"]
    }' "$results"
