#!/bin/sh
# The lesson prints what test/golden/lesson.txt holds: the same words, and the same numbers, of which
# one with a decimal point may differ by one in its last digit, as it may between compilers.
# After a change that is meant: out/lesson >test/golden/lesson.txt

. test/lib.sh

# compare WANT GOT: a line of stdout for each line that differs; fails if there is one.
compare()
{
    awk -v got="$2" '
        function unit(word) {           # one in the last digit of 12.345 or 1.2e-03
            exponent = 0
            if (match(word, /e[-+][0-9]+$/)) {
                exponent = substr(word, RSTART + 1)
                word = substr(word, 1, RSTART - 1)
            }
            sub(/^[^.]*[.]?/, "", word)
            return 10 ^ (exponent - length(word))
        }
        function same(a, b) {           # two words
            while (match(a, number)) {
                x = substr(a, RSTART, RLENGTH)
                before = substr(a, 1, RSTART - 1)
                a = substr(a, RSTART + RLENGTH)
                if (!match(b, number) || substr(b, 1, RSTART - 1) != before) return 0
                y = substr(b, RSTART, RLENGTH)
                b = substr(b, RSTART + RLENGTH)
                if (x != y && (x !~ /[.]/ || y !~ /[.]/ || unit(x) != unit(y))) return 0
                difference = x - y
                if (difference < 0) difference = -difference
                if (difference > 1.01 * unit(x)) return 0
            }
            return a == b
        }
        BEGIN { number = "-?[0-9]+([.][0-9]+)?(e[-+][0-9]+)?" }
        {
            if ((getline line <got) <= 0) { print "missing: " $0; bad = 1; next }
            n = split(line, words, " ")
            good = n == NF
            for (i = 1; i <= n && good; i++) good = same($i, words[i])
            if (!good) { print "line " NR ": " line; print "     not: " $0; bad = 1 }
        }
        END {
            while ((getline line <got) > 0) { print "too much: " line; bad = 1 }
            exit bad
        }' "$1"
}

golden=test/golden/lesson.txt
$RUN out/lesson >"$dir/lesson.txt"
check $? "the lesson runs"
compare $golden "$dir/lesson.txt" >"$dir/differences"
check $? "it prints what it is known to print"
head -n 20 "$dir/differences"
awk 'length > 100 { exit 1 }' "$dir/lesson.txt"
check $? "in lines of at most 100 columns"

# The bridge from the lesson to model.h.
$RUN out/bridge >"$dir/bridge.txt"
check $? "the functions of model.h agree with the lesson, number by number"
[ "$(grep -c ' [0-9.]*e-[0-9]*$' "$dir/bridge.txt")" = 30 ] &&
    tail -n 1 "$dir/bridge.txt" | grep -q '^Every number agrees[.]$'
check $? "in 30 quantities"

# A wrong number is found, a rounded one is let pass.
sed 's/2\.7726/2.7727/' $golden >"$dir/rounded"
! cmp -s $golden "$dir/rounded" && compare $golden "$dir/rounded" >/dev/null
check $? "a last digit may be rounded differently"
for change in 's/2\.7726/2.7728/' 's/4 of 4/3 of 4/' 's/e-07/e-06/' 's/draws n$/draws m/' '$d' \
    '$p' 's/1\.000/1.0/' 's/-inf/inf/'; do
    sed "$change" $golden >"$dir/wrong"
    cmp -s $golden "$dir/wrong" || compare $golden "$dir/wrong" >/dev/null
    [ $? -eq 1 ] && ! cmp -s $golden "$dir/wrong"
    check $? "$change is found"
done

exit $failures
