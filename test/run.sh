#!/bin/sh
# Runs the test programs and scripts named as arguments, two at a time (or JOBS), then alone those that
# look at the clock. Shows what fails, a line for each test as it ends, and at last "N passed, N
# failed". A test that ends without having printed a check, or whose status is not the number of its
# failures, counts as a failure itself. RUN, if set, is put before each program: an emulator for
# programs of another machine.

clock='/test_time\.sh$'

# Runs one test; its numbers of checks go to a line of COUNTS.
run_one() # COUNTS TEST
{
    log=$(mktemp)
    start=$(date +%s)
    case $2 in
        *.sh) sh "$2" >"$log" 2>&1 ;;
        *)    $RUN "$2" >"$log" 2>&1 ;;
    esac
    status=$?
    good=$(grep -c '^ok ' "$log")
    bad=$(grep -c '^FAIL ' "$log")
    {
        if [ $((good + bad)) -eq 0 ] || [ "$status" -ne "$bad" ]; then
            bad=$((bad + 1))
            echo "FAIL $2 ended with status $status after $good passed checks"
            tail -n 20 "$log"
        fi
        grep '^FAIL ' "$log"
        echo "$2: $good passed, $bad failed, $(($(date +%s) - start)) s"
    } >"$log.said"
    cat "$log.said"             # at once, so that lines of two tests do not mix
    echo "$good $bad" >>"$1"
    rm -f "$log" "$log.said"
}

if [ "$1" = --one ]; then [ $# -lt 3 ] || run_one "$2" "$3"; exit 0; fi

export OMP_WAIT_POLICY=passive      # more threads than cores, in some tests
counts=$(mktemp)
trap 'rm -f "$counts"' EXIT
printf '%s\n' "$@" | grep -v "$clock" | xargs -n 1 -P "${JOBS:-2}" sh "$0" --one "$counts"
printf '%s\n' "$@" | grep "$clock" | xargs -n 1 sh "$0" --one "$counts"
awk -v tests=$# '{ passed += $1; failed += $2 }
    END { failed += tests - NR; print passed + 0 " passed, " failed " failed"; exit failed > 0 }' "$counts"
