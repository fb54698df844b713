"""Writes data/unicode_classes.h, the character classes that tokenizer.c includes, from a JSON file.

    python3 dev/make_unicode_table.py unicode16_classes.json            writes the header
    python3 dev/make_unicode_table.py unicode16_classes.json --check    compares it with the one that is there

The JSON file holds {"L": [[first, last], ...], "N": [...], "White_Space": [...]}: the general
categories L* and N* and the property White_Space, as DerivedGeneralCategory.txt and PropList.txt of
https://www.unicode.org/Public/16.0.0/ucd/ list them. Those two files are accepted in its place:

    python3 dev/make_unicode_table.py DerivedGeneralCategory.txt PropList.txt
"""
import json
import os
import re
import sys

HEADER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "data", "unicode_classes.h")

COMMENT = """\
/* unicode_classes.h: the class of every Unicode character, for tokenizer.c. Written by
 * dev/make_unicode_table.py from the Unicode 16.0 character database.
 *
 * A run of n consecutive code points of the same class is the number 4 n + class. The
 * classes are 0 other, 1 letter (L*), 2 number (N*), 3 White_Space. The runs begin at U+0000; what
 * follows the last run is of class 0. */

"""

OTHER, LETTER, NUMBER, SPACE = range(4)


def read_classes(paths):
    """Code point -> class, for those that are not OTHER."""
    sets = {"L": [], "N": [], "White_Space": []}
    for path in paths:
        text = open(path, encoding="utf-8").read()
        if path.endswith(".json"):
            data = json.loads(text)
            sets.update({name: data[name] for name in sets})
            continue
        for line in text.splitlines():
            found = re.match(r"([0-9A-F]+)(?:\.\.([0-9A-F]+))?\s*;\s*(\w+)", line)
            if not found:
                continue
            first, last, name = found[1], found[2] or found[1], found[3]
            name = name if name == "White_Space" else name[0] if len(name) == 2 else ""
            if name in sets:
                sets[name].append([int(first, 16), int(last, 16)])
    classes = {}
    for name, value in (("L", LETTER), ("N", NUMBER), ("White_Space", SPACE)):
        for first, last in sets[name]:
            for c in range(first, last + 1):
                assert c not in classes, hex(c)
                classes[c] = value
    return classes


def runs(classes):
    """[length * 4 + class, ...] from U+0000 up to the last code point that is not OTHER."""
    result, start = [], 0
    for c in range(max(classes) + 2):
        if classes.get(c, OTHER) != classes.get(start, OTHER):
            result.append((c - start) * 4 + classes.get(start, OTHER))
            start = c
    return result


def c_array(numbers):
    lines, line = [], "   "
    for number in numbers:
        if len(line) + len(str(number)) + 2 > 99:
            lines.append(line)
            line = "   "
        line += f" {number},"
    lines.append(line)
    return "static const uint32_t CLASS_RUNS[] = {\n" + "\n".join(lines) + "\n};\n"


def main():
    paths = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    if not paths:
        sys.exit(__doc__)
    text = COMMENT + c_array(runs(read_classes(paths)))
    if "--check" not in sys.argv:
        with open(HEADER, "w", encoding="utf-8") as f:
            f.write(text)
        return
    same = os.path.exists(HEADER) and open(HEADER, encoding="utf-8").read() == text
    print("data/unicode_classes.h " + ("is this table" if same else "is another table"))
    sys.exit(0 if same else 1)


main()
