#!/bin/sh
# Runs the test programs and scripts named as arguments, shows what fails, and closes with
# "N passed, N failed". A test that ends without having printed a check, or whose status is not the
# number of its failures, counts as a failure itself. RUN, if set, is put before each program: an
# emulator for programs of another machine.

export OMP_WAIT_POLICY=passive      # more threads than cores, in some tests
passed=0
failed=0
for name in "$@"; do
    log=$(mktemp)
    start=$(date +%s)
    case $name in
        *.sh) sh "$name" >"$log" 2>&1 ;;
        *)    $RUN "$name" >"$log" 2>&1 ;;
    esac
    status=$?
    good=$(grep -c '^ok ' "$log")
    bad=$(grep -c '^FAIL ' "$log")
    if [ $((good + bad)) -eq 0 ] || [ "$status" -ne "$bad" ]; then
        bad=$((bad + 1))
        echo "FAIL $name ended with status $status after $good passed checks"
        tail -n 20 "$log"
    fi
    grep '^FAIL ' "$log"
    echo "$name: $good passed, $bad failed, $(($(date +%s) - start)) s"
    passed=$((passed + good))
    failed=$((failed + bad))
    rm -f "$log"
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
