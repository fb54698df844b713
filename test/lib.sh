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
