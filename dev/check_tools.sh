#!/bin/sh
# check_tools.sh [TOOL...]: what other programs find in ours by reading or watching them. Each tool
# must find nothing; what it may not say, since it is wrong or meant so, stands here with a reason.
# Without names all tools run. Run from the repository root; logs are in out/tools.
# PROGRAMS=tokenizer reads that program alone (the first three tools).
#
#     analyzer    gcc -fanalyzer        19, 20, 38 s (tokenizer, train_gpt, finetune_cls), 4 GB; of
#                                       the latter two it reads a part, see analyzer()
#     tidy        clang-tidy            30, 21, 35 s; .clang-tidy has the checks
#     cppcheck    cppcheck              35, 34, 55 s
#     valgrind    28 s: a training, a fine-tuning and a tokenizer, without an invalid access
#     thread      18 s: clang's thread sanitizer with archer, which knows OpenMP's barriers: the
#                 same with 4 threads, without a data race
#
# Seconds of one processor's work; the machine was busy, the clock showed up to thirty times that.
#
# apt-get install gcc clang clang-tidy cppcheck valgrind libomp-dev libclang-rt-14-dev

all="tokenizer train_gpt finetune_cls"
programs=${PROGRAMS:-$all}
logs=$PWD/out/tools
mkdir -p "$logs"
failures=0

verdict() # TOOL STATUS LOG: 0 is good, if the log is empty
{
    if [ "$2" -eq 0 ] && [ ! -s "$3" ]; then echo "ok   $1"; return; fi
    echo "FAIL $1: $3"
    head -n 20 "$3"
    failures=$((failures + 1))
}

# The analyzer and clang-tidy see realloc as a function that they know nothing of. Otherwise they try
# sizes below 1, with which no loop fills the memory, and mistake the buffer of text_of for its
# argument. Valgrind watches memory that is not set; free is known to them.
memory=-Drealloc=unknown_realloc

# What the analyzer and clang-tidy say wrongly: a piece of the line of ours that they name, or of
# their sentence. A finding in any other line is shown.
known()
{
    cat <<'END'
# There is at least one text and one example; the tool tries none.
return mix64(checksum(d->tokens + starts[0]
c->texts[i] = i < train.count
# --out is required: parse_options dies where it is missing.
static const char *shown_path(const char *path)
const int fd = open(path, O_RDONLY | O_CLOEXEC);
# A table of pairs that is empty finds none.
    p->count += change;
# A program asks for rows that its table has.
return find_option(table, name)->given;
# Without bytes nothing is read there: reserve has made room for n of them, and of none nothing is written.
memcpy(b->data + b->size, bytes, n);
fwrite(b->data, 1, b->size, stdout);
# read_ids sets them.
for (int k = 0; k < n; k++) counts[block[k]]++;
# Without --average there is no mean, and no update is averaged.
averaged > 0 ? run.mean : run.best
# decode_tokens has made room before it, in `reserve`, so there is memory.
memcpy(out->data + out->size, bytes,
# An array of pointers, and tokenizer.c is included by design.
w->shards = resize(w->shards, (w->number + 1) * sizeof *w->shards);
#include "tokenizer.c"
END
}

# The findings in a tool's output, on standard input, that are not known: each with its line of ours.
unknown()
{
    known | sed '/^# /d' >"$logs/known"
    awk 'NR == FNR { known[$0]; next }
         found { for (k in known) if (index(found "\n" $0, k)) { found = ""; break } }
         found { print found "\n" $0; found = "" }
         /: (warning|error): / { found = $0 }
         END { if (found) print found }' "$logs/known" -
}

# Memory is left to the end of the program, hence no leaks. Without OpenMP, since the analyzer loses
# its way in the functions that the compiler makes of parallel loops. By default gcc 12 stops after
# a number of states ("analysis bailed out early", says -Wanalyzer-too-complex) and does not even see
# a function that uses memory that it has freed. With one state for each place it reads all of
# tokenizer.c, and sees that. The other two are larger; their ok is of a part of the paths.
analyzer()
{
    for p in $programs; do
        whole='--param analyzer-max-enodes-per-program-point=1'
        whole="$whole --param analyzer-bb-explosion-factor=30"
        [ $p = tokenizer ] || whole=
        gcc -O1 $memory -fanalyzer $whole -Wno-analyzer-malloc-leak -Wno-analyzer-file-leak \
            -Wno-unknown-pragmas -c -o /dev/null $p.c 2>"$logs/analyzer_$p.all"
        status=$?
        unknown <"$logs/analyzer_$p.all" >"$logs/analyzer_$p"
        verdict "gcc -fanalyzer $p.c" $status "$logs/analyzer_$p"
    done
}

tidy()
{
    for p in $programs; do
        clang-tidy --quiet $p.c -- -O1 $memory -fopenmp >"$logs/tidy_$p.all" 2>/dev/null
        status=$?
        unknown <"$logs/tidy_$p.all" >"$logs/tidy_$p"
        verdict "clang-tidy $p.c" $status "$logs/tidy_$p"
    done
}

# invalidFunctionArg: log of a sum of exponentials, of which one is 1. nullPointer: `inverse` of
# attention_softmax is NULL only when it is not set. uninitvar: of the plot's line, 0 characters.
# invalidPointerCast: the bits of floats, by types that may alias any.
# toomanyconfigs: macros of compilers and systems; the first 12 combinations are read.
cppcheck_all()
{
    for p in $programs; do
        cppcheck --enable=warning,portability,performance --std=c11 -q --error-exitcode=1 \
            --suppress=missingIncludeSystem --suppress=invalidFunctionArg \
            --suppress=nullPointer:model.h --suppress=uninitvar:train_gpt.c \
            --suppress=invalidPointerCast:model.h --suppress=toomanyconfigs $p.c \
            2>"$logs/cppcheck_$p"
        verdict "cppcheck $p.c" $? "$logs/cppcheck_$p"
    done
}

# Builds the programs in $work with the flags, and runs them on a few lines: everything that has
# threads. What a tool says goes to its log.
watch() # NAME THREADS PREFIX COMPILER FLAGS...
{
    name=$1 threads=$2 prefix=$3
    shift 3
    work=$(mktemp -d)
    for p in $all; do
        "$@" -g -O1 -fno-math-errno -fno-trapping-math -w -o "$work/$p" $p.c -lm ||
            { verdict "$name: the build of $p" 1 /dev/null; return; }
    done
    yes 'the film was good and the plot was not' | head -n 60 >"$work/text"
    awk 'BEGIN { print "label\ttext"; for (i = 0; i < 24; i++) print i % 2 "\tfilm number " i }' \
        >"$work/labels"
    cd "$work" || exit 1
    export OMP_NUM_THREADS=$threads OMP_WAIT_POLICY=passive
    {
        $prefix ./tokenizer train --vocab 280 --out tok text &&
        $prefix ./tokenizer encode --tokenizer tok --split lines --out ids text &&
        $prefix ./train_gpt train --data ids_000000.bin --val ids_000000.bin --tokenizer tok \
            --layers 2 --heads 2 --channels 16 --context 16 --batch 4 --optimizer muon --dropout 0.1 --steps 3 \
            --sample-every 2 --sample-tokens 5 --out gpt &&
        $prefix ./train_gpt eval --model gpt --data ids_000000.bin &&
        $prefix ./finetune_cls train --model gpt --train labels --lm-coef 0.5 --l2sp 1 --steps 3 \
            --average 0.5 --calibrate --out full &&
        $prefix ./finetune_cls train --model gpt --train labels --tune probe --out probe &&
        $prefix ./finetune_cls eval --model probe --data labels
    } >"$logs/$name" 2>&1
    status=$?
    cd - >/dev/null || exit 1
    rm -rf "$work"
    grep -aE 'ThreadSanitizer|^==[0-9]+== *(Invalid|Conditional|Use of|Process)' "$logs/$name" >"$logs/$name.found"
    [ $status -eq 0 ] || tail -n 20 "$logs/$name" >>"$logs/$name.found"
    verdict "$name" $status "$logs/$name.found"
}

memcheck() { watch valgrind 1 'valgrind -q --error-exitcode=3' gcc -march=x86-64-v3 -fopenmp; }

# archer tells the sanitizer of barriers; libomp itself, which was built without it, is left out.
thread()
{
    TSAN_OPTIONS='ignore_noninstrumented_modules=1 exitcode=3'
    export TSAN_OPTIONS
    watch thread 4 '' clang -march=native -fopenmp -fsanitize=thread
}

for tool in ${*:-analyzer tidy cppcheck valgrind thread}; do
    case $tool in
        analyzer | tidy | thread) $tool ;;
        cppcheck) cppcheck_all ;;
        valgrind) memcheck ;;
        *) echo "check_tools.sh: $tool: no such tool." >&2; exit 2 ;;
    esac
done
exit $failures
