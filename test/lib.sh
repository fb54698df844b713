# lib.sh: what the test scripts share. They begin with `. test/lib.sh`, in the repository root, and
# end with `exit $failures`. Each check prints a line, "ok ..." or "FAIL ...".

dir=$(mktemp -d)                # gone when the script ends
trap 'rm -rf "$dir"' EXIT
failures=0

check() # STATUS DESCRIPTION: 0 is good
{
    if [ "$1" -eq 0 ]; then echo "ok   $2"; else echo "FAIL $2"; failures=$((failures + 1)); fi
}

succeeds() # DESCRIPTION COMMAND...
{
    description=$1
    shift
    "$@"
    check $? "$description"
}

# Before `fails`: the name of the program, with which its messages begin; -F if the words are no
# pattern; alone=yes if nothing else may stand on stderr.
speaker= match= alone=

fails() # STATUS WORDS COMMAND...: ends with that status and one sentence that holds the words
{
    wanted=$1 words=$2
    shift 2
    "$@" >"$dir/stdout" 2>"$dir/stderr"
    got=$?
    [ $got -eq "$wanted" ] && [ "$(grep -c "^$speaker: " "$dir/stderr")" -eq 1 ] &&
        tail -n 1 "$dir/stderr" | grep "^$speaker: " | grep -q $match -- "$words" &&
        { [ -z "$alone" ] || [ "$(wc -l <"$dir/stderr")" -eq 1 ]; }
    result=$?
    check $result "status $wanted, \"$words\""
    [ $result -eq 0 ] || { echo "     status $got:"; cat "$dir/stderr"; }
}

same_model() # DIR DIR
{
    cmp "$1/model.safetensors" "$2/model.safetensors" && cmp "$1/config.json" "$2/config.json"
}

same_run() # A B DESCRIPTION: two runs of train_gpt, but for the log's columns of time
{
    same_model "$1" "$2" && same_model "$1/last" "$2/last" &&
        cmp "$1/state.safetensors" "$2/state.safetensors" &&
        cut -f1-7 "$1/log.tsv" >a.txt && cut -f1-7 "$2/log.tsv" >b.txt && cmp a.txt b.txt
    check $? "$3"
}

# Whether there is a terminal to show something on.
has_terminal() { script -qec true /dev/null >/dev/null 2>&1; }

# What stays of a command's output on a terminal of 40 columns, and what a file gets: the same, but
# for lines of progress, which hold a word. Numbers and the order, which may differ, are left out.
stays_on_terminal() # DESCRIPTION WORD FILE-COMMAND TERMINAL-COMMAND
{
    lines() { tr -d '\r' | sed "s/.*$(printf '\033')\[K//; s/[0-9][0-9.e+-]*/N/g" | grep -v "$1" | sort; }
    sh -c "$3" 2>&1 | lines "$2" >"$dir/file_lines"
    script -qec "stty cols 40; $4" /dev/null </dev/null | lines "$2" >"$dir/terminal_lines"
    [ -s "$dir/file_lines" ] && diff "$dir/file_lines" "$dir/terminal_lines"
    check $? "$1: what a file gets stays on a terminal"
}

wait_for() # COMMAND...: until it succeeds, for at most 20 seconds
{
    tries=0
    until "$@" 2>/dev/null || [ $tries -eq 1000 ]; do sleep 0.02; tries=$((tries + 1)); done
    [ $tries -lt 1000 ] || check 1 "waited in vain: $*"
}

has_rows() { [ "$(wc -l <"$1")" -ge "$2" ]; }    # FILE N
