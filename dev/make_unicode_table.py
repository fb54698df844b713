#!/usr/bin/env python3
"""Prints the table of character classes in tokenizer.c from the exact Unicode 16 ranges.

usage: dev/make_unicode_table.py CLASSES.json

CLASSES.json holds lists of [first, last] code points under the names L, N and White_Space (or S).
The output is a list of boundaries: code point * 4 + class (0 other, 1 letter, 2 number, 3 space)
where the class changes, as differences to the boundary before.
"""
import json
import sys


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with open(sys.argv[1]) as file:
        data = json.load(file)
    classes = bytearray(0x110000)
    for value, names in ((1, ("L",)), (2, ("N",)), (3, ("White_Space", "S"))):
        ranges = next(data[name] for name in names if name in data)
        for first, last in ranges:
            for code in range(first, last + 1):
                classes[code] = value
    entries, before = [], 0
    for code in range(0x110000):
        if classes[code] != before:
            before = classes[code]
            entries.append(code * 4 + before)
    deltas = [b - a for a, b in zip([0] + entries, entries)]
    line = "   "
    for delta in deltas:
        text = f" {delta},"
        if len(line) + len(text) > 99:
            print(line)
            line = "   "
        line += text
    print(line)
    print(f"{len(deltas)} boundaries", file=sys.stderr)


main()
