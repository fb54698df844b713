/* What finetune_cls.c holds, part by part: reading, labels, the split, truncation, batches, scores
 * and the solver of the probe. Whole trainings are in test_finetune.sh. */

#define FINETUNE_NO_MAIN
#define _GNU_SOURCE                 /* posix_openpt */
#include "fence.h"
#include "../finetune_cls.c"
#include "check.h"
#include "terminal.h"
#include <dirent.h>
#include <sys/wait.h>

static char directory[] = "/tmp/test_finetune_XXXXXX";

/* A file with these bytes; the name is the same each time. */
static const char *file_of(const char *bytes, size_t n)
{
    static char path[64];
    snprintf(path, sizeof path, "%s/data", directory);
    stage_file(path, bytes, n);
    commit_outputs();
    return path;
}

static const struct Columns usual;              /* no column is named */

static struct Examples read_as(const char *text, struct Columns columns)
{
    return read_examples(file_of(text, strlen(text)), columns);
}

#define EXAMPLES(literal) read_examples(file_of(literal, sizeof(literal) - 1), usual)
#define EXAMPLES_OF(literal, text, label) \
    read_examples(file_of(literal, sizeof(literal) - 1), \
                  (struct Columns){.names = {text, label}})

static bool same(struct Bytes b, const char *text, size_t n) { return b.size == n
                                                              && !memcmp(b.data, text, n); }

#define IS(bytes, literal) same(bytes, literal, sizeof(literal) - 1)

/* --- Reading --- */

static void test_formats(void)
{
    struct Examples e = EXAMPLES("label\tsentence\n0\thide \"new\" secretions\n1\ta, b\n");
    check(e.count == 2 && IS(e.items[0].text, "hide \"new\" secretions")
          && IS(e.items[0].label, "0")
          && IS(e.items[1].text, "a, b") && e.items[1].line == 3,
              "TSV: columns by name, quotes and commas are text");
    e = EXAMPLES("\xEF\xBB\xBF\r\nText\tLabel\r\ngood\tpos\r\n\r\n\tneg");
    check(e.count == 2 && IS(e.items[0].text, "good") && IS(e.items[0].label, "pos")
          && IS(e.items[1].text, "")
          && e.items[1].line == 5,
              "TSV: byte order mark, CRLF, blank lines, capitals, an empty text, no last line end");
    e = EXAMPLES("id,review,label\n1,\"two\nlines, a \"\"quote\"\"\",bad\n"
                 "2,plain,\"good\"\r\n3,\"\",bad");
    check(e.count == 3 && IS(e.items[0].text, "two\nlines, a \"quote\"")
          && IS(e.items[0].label, "bad")
          && e.items[1].line == 4 && IS(e.items[1].label, "good") && IS(e.items[2].text, ""),
          "CSV: quoted line ends, commas and quotes; line numbers go on");
    e = EXAMPLES("{\"text\": \"caf\\u00e9\\n\", \"label\": 1}\n\n"
                 "{\"label\": \"x\", \"id\": [1, {}], \"text\": \"\"}\r\n"
                 "{\"text\": \"t\", \"label\": -0.5}\n{\"text\": \"t\", \"label\": true}");
    check(e.count == 4 && IS(e.items[0].text, "caf\xC3\xA9\n") && IS(e.items[0].label, "1")
          && IS(e.items[1].label, "x")
          && e.items[1].line == 3 && IS(e.items[2].label, "-0.5") && IS(e.items[3].label, "true"),
          "JSON lines: escapes, labels that are numbers or truth values");
    e = EXAMPLES("text\tlabel\n\xFF\xFE\0\xC0\t1\n");
    check(e.count == 1 && IS(e.items[0].text, "\xFF\xFE\0\xC0"),
          "texts may hold invalid UTF-8 and NUL");
    e = EXAMPLES("content\ttext\tlabel\na\tb\tc\n");
    check(IS(e.items[0].text, "b"), "of several usual names the preferred one is taken");
    e = EXAMPLES_OF("text,label,stars\na,b,c\n", "label", "stars");
    check(IS(e.items[0].text, "b") && IS(e.items[0].label, "c"), "columns may be named");
}

/* Whether the examples are these: "text=label" of each, joined by bars. */
static bool hold(struct Examples e, const char *wanted)
{
    struct Buffer b = {0};
    append(&b, "%s", "");
    for (int i = 0; i < e.count; i++)
        append(&b, "%s%.*s=%.*s", i ? "|" : "", (int)e.items[i].text.size, e.items[i].text.data,
               (int)e.items[i].label.size, e.items[i].label.data ? e.items[i].label.data : "");
    const bool same = !strcmp(b.data, wanted);
    if (!same) printf("     read: %s\n", b.data);
    free(b.data);
    return same;
}

static void test_separators(void)
{
    check(hold(EXAMPLES("label;text\r\nlob;\"Gut; sehr, \"\"prima\"\"\"\r\ntadel;Mies, leider\r\n"),
               "Gut; sehr, \"prima\"=lob|Mies, leider=tadel"), "semicolons, quotes, CRLF");
    check(hold(EXAMPLES("label|text\npos|good, fine; well\nneg|\"a|b\"\n"),
               "good, fine; well=pos|a|b=neg"), "bars");
    check(hold(EXAMPLES("text,label\ngood; fine,pos\nbad; poor,neg\n"),
               "good; fine=pos|bad; poor=neg"), "commas; semicolons are text");
    check(hold(EXAMPLES_OF("pos;Good, nice\nneg;Bad\n", "2", "1"), "Good, nice=pos|Bad=neg"),
          "a row with commas, too: a semicolon comes before them");
    check(hold(EXAMPLES_OF("\"a; \"\"b\"\"; c\",pos\n\"d; e; f\",neg\n", "1", "2"),
               "a; \"b\"; c=pos|d; e; f=neg"), "a separator in quotes does not count");
    check(hold(EXAMPLES(",text,label\n0,good,pos\n"), "good=pos")
          && hold(EXAMPLES("\ttext\tlabel\n0\tgood\tpos\n"), "good=pos"),
          "a first column without a name, as pandas writes the index");
    check(hold(EXAMPLES("text, Label\ngood,pos\n"), "good=pos"), "blanks before names");
}

static void test_quotes_in_tsv(void)
{
    check(hold(EXAMPLES("text\tlabel\n\"He said \"\"great\"\", twice\"\tpos\nbad\tneg\n"
                        "\"tab\there\"\tpos\n\"line\nbreak\"\tneg\n\"\"\tneg\nwell\t\"pos\"\r\n"),
               "He said \"great\", twice=pos|bad=neg|tab\there=pos|line\nbreak=neg|=neg|well=pos"),
          "TSV: quoted fields, as pandas writes them");
    check(hold(EXAMPLES("text\tlabel\n\"Frailty\" has been\t1\n\" great\t0\n\"\"oh\"\" well\t1\n"
                        "it is \"\t0\nthe \"end\"\t1\n\"\t0\nsaid \"\t1\n"),
               "\"Frailty\" has been=1|\" great=0|\"\"oh\"\" well=1|it is \"=0|the \"end\"=1|\"=0|"
               "said \"=1"), "TSV: a quote that no other one closes is text");
    check(hold(EXAMPLES_OF("\" great\t0\nbad\t1\n", "1", "2"), "\" great=0|bad=1"),
          "so it is in the first row");
}

static void test_json(void)
{
    check(hold(EXAMPLES("[{\"text\": \"good\", \"label\": \"pos\"},\n {\"text\": \"bad\", "
                        "\"label\": \"neg\"}, {\"text\": \"fine\", \"label\": \"pos\"}]\n"),
               "good=pos|bad=neg|fine=pos"), "a JSON array");
    struct Examples e = EXAMPLES("\n  {\n  \"text\": \"good\",\n  \"label\": \"pos\"\n}\n{\n"
                                 "  \"text\": \"bad\",\n  \"label\": \"neg\"\n}\n");
    check(hold(e, "good=pos|bad=neg") && e.items[1].line == 6, "JSON on several lines");
    check(hold(EXAMPLES("\r\n \n {\"text\": \"good\", \"label\": \"pos\"}"), "good=pos")
          && hold(EXAMPLES("  \n\ntext\tlabel\ngood\tpos\n"), "good=pos"), "leading blank lines");
    check(hold(EXAMPLES("{\"text\": \"a\", \"label\": 1234567890123456789}\n"
                        "{\"text\": \"b\", \"label\": -12345678901234567890123456789012345678901234"
                        "567890123456789012345678901234567890}\n{\"text\": \"c\", \"label\": 1.0}"),
               "a=1234567890123456789|b=-12345678901234567890123456789012345678901234567890123456"
               "789012345678901234567890|c=1.0"), "JSON numbers stay as written");
}

static void test_columns(void)
{
    check(hold(EXAMPLES("__label__pos good film\r\n\n__label__neg\t bad, really\n__label__pos"),
               "good film=pos|bad, really=neg|=pos"), "fastText's format");
    const char *texts = usual_names[TEXTS];
    bool good = true;
    for (size_t n; ; texts += n + 1) {
        n = strcspn(texts, "|");
        char *file = text_of("id\t%.*s\tsentiment\n7\tgood\tpos\n", (int)n, texts);
        good = good && hold(read_examples(file_of(file, strlen(file)), usual), "good=pos");
        free(file);
        if (!texts[n]) break;
    }
    check(good, "usual names of texts: %s", usual_names[TEXTS]);
    check(hold(EXAMPLES("target\tClass\tbody\na\tb\tc\n"), "c=a"), "usual names of labels");
    check(hold(EXAMPLES_OF("pos\tgood\nneg\tbad\n", "2", "1"), "good=pos|bad=neg"),
          "columns by number: the first row is data");
    check(hold(EXAMPLES_OF("1\t2\tx\na\tb\tc\n", "2", "1"), "2=1|b=a")
          && hold(read_as("2,1\na,b\n", (struct Columns){{"2", "1"}, .header = "yes"}), "b=a"),
          "a number is a position, also where columns are called so");
    check(hold(EXAMPLES_OF("id,Text,Score\n1,a,5\n", "2", "3"), "a=5")
          && hold(EXAMPLES_OF("good\treview\nbad\tquestion\n", "1", "2"),
                  "good=review|bad=question"),
          "positions: a usual name at its own column makes a header, elsewhere not");
    check(hold(read_as("label\tx\na\tb\n", (struct Columns){{"2", "1"}, .header = "no"}),
               "x=label|b=a"), "--header no: the first row is data");
    check(hold(EXAMPLES_OF("label\tsome\na\tb\n", "2", NULL), "b=a"),
          "a number beside a name: the first row is a header");
}

/* What was decided for the training's file holds for others. */
static void test_like_training(void)
{
    struct Columns by_names = {.kept_format = "tsv"},
                   by_numbers = {{"2", "1"}, .kept_format = "tsv"};
    const struct Examples e = EXAMPLES("ID\tReview\tclass\n1\ta\tb\n");
    check(!strcmp(e.columns.format, "tsv") && !strcmp(e.columns.header, "yes")
          && !e.columns.names[TEXTS] && !e.columns.names[LABELS],
          "what is kept: format, header, no names but those that were said");
    check(hold(read_as("body\ttext\tlabel\na\tb\tc\n", by_names), "b=c")
          && hold(read_as("c\tlabel\na\tb\n", by_numbers), "label=c|b=a"),
          "usual names are found in each file, positions hold");
    by_names.format = "csv";
    check(hold(read_as("text,label\na,b\n", by_names), "a=b"), "--format csv, other than in training");
    by_names.format = "auto";
    by_names.texts_only = by_numbers.texts_only = true;
    check(hold(read_as("\n\"Well\" now, this\nand, \"that\n\n", by_names),
               "=|\"Well\" now, this=|and, \"that=|=")
          && hold(read_as("Clear, text, and message\nx\n", by_names),
                  "Clear, text, and message=|x=")
          && hold(read_as("Comment\nx\n", by_names), "Comment=|x=")
          && hold(read_as("a, b\n", by_numbers), "a, b="),
          "texts without the training's separator are lines; blank ones keep their place");
    check(hold(read_as("text\n\"Well, now\"\n\nx\n", by_names), "Well, now=|=|x=")
          && hold(read_as("text\tlabel\na\tb\n\nc\td\n", by_names), "a=|=|c="),
          "with the texts' name they are a table, of one column or more");
    check(hold(read_as("Text\nx\n", by_names), "x="), "without regard to capitals");
    by_names.names[TEXTS] = "body";
    check(hold(read_as("a, b\nx\n", by_names), "a, b=|x="), "lines with commas, and a name");
    by_names.format = "csv";
    check(hold(read_as("id,body\n1,\"a, b\"\n", by_names), "a, b="), "the name in a header of CSV");
    check(hold(read_as("2\nx\n", by_numbers), "2=|x="), "a position is no name");
    struct Columns pairs = {{"a", NULL, "b"}, .texts_only = true, .format = "lines"};
    check(hold(read_as("x\ty\n", pairs), "x\ty="), "pairs as lines keep their tab");
    pairs.format = "auto";
    check(hold(read_as("b\ta\ny z\tx\n\n", pairs), "x\ty z=|\t="), "pairs of columns");
    check(hold(read_as("a, text\n", (struct Columns){.format = "lines", .texts_only = true}),
               "a, text="), "--format lines");
}

static void test_left_out(void)
{
    check(hold(EXAMPLES("text,label,,\na,b,,\n,,,\n , ,,\n\"\",\"\", ,\nc,d,,\n"), "a=b|c=d")
          && hold(EXAMPLES("text,label\n\"\n\"\"x\",a\n\"\"\"\n\",b\n"), "\n\"x=a|\"\n=b"),
          "rows without content are left out, texts that begin with a line end or a quote not");
    check(hold(EXAMPLES("[{\"text\": \"a\", \"label\": 1}]\n\xEF\xBB\xBF[{\"text\": \"b\", "
                        "\"label\": 2}]\n"), "a=1|b=2"), "so are JSON arrays with such marks");
    check(hold(EXAMPLES("text\tlabel\na\tb\ntext\tlabel\r\nc\td\n\xEF\xBB\xBF" "text\tlabel\ne\tf\n"),
               "a=b|c=d|e=f")
          && hold(EXAMPLES("{\"text\": \"a\", \"label\": 1}\n\xEF\xBB\xBF{\"text\": \"b\", "
                           "\"label\": 2}"), "a=1|b=2"),
          "files that were put together: rows that repeat the header, byte order marks");
}

/* Reading the bytes and naming the classes must end with status 1 and a message with `wanted`. */
static void check_refused(const char *bytes, size_t n, const char *wanted)
{
    char message[1024];
    int ends[2], status;
    const char *path = file_of(bytes, n);
    if (pipe(ends)) return;
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        struct Examples e = read_examples(path, usual);
        int classes;
        char **names = class_names(&e, &classes);
        struct Example others[9];
        static const char *const labels[] = {"new", "u", "new", "v", "new", "w", "new", "x", "y"};
        for (int i = 0; i < 9; i++)
            others[i] = (struct Example){{"", 0}, {labels[i], strlen(labels[i])}, 7 + i};
        const struct Examples unknown = {.path = e.path, .items = others, .count = 9};
        add_examples(NULL, NULL, &unknown, names, classes, (struct Window){0});
        exit(0);
    }
    close(ends[1]);
    size_t length = 0;
    ssize_t got;
    while ((got = read(ends[0], message + length, sizeof message - 1 - length)) > 0) length += got;
    message[length] = 0;
    close(ends[0]);
    waitpid(child, &status, 0);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 1 && strstr(message, wanted), "refused: %s",
          wanted);
    if (!strstr(message, wanted)) printf("     but it said: %s\n", message);
}

#define REFUSED(literal, wanted) check_refused(literal, sizeof(literal) - 1, wanted)

static void test_refusals(void)
{
    struct Buffer many = {0};
    for (int i = 0; i <= 1000; i++) append(&many, i ? "a\t%d\n" : "text\tlabel\n", i);
    append(&many, "a\t%d\n", 0);
    check_refused(many.data, many.size, "data: more than 1000 different labels");
    free(many.data);
    REFUSED("", "data: the file is empty");
    REFUSED("\n\r\n", "data: the file is empty");
    REFUSED("text\tlabel\n", "data: has a header but no examples");
    REFUSED("\xFF\xFEt\0", "data: is UTF-16");
    REFUSED("a\tlabel\nx\ty\n",
            "data: 1 record cannot be used: line 1: no column is named text|sentence|content|review|tweet|");
    REFUSED("a\tlabel\nx\ty\n", "|message (there are: a, label). --text-column");
    REFUSED("text,b\nx,y\n", "polarity (there are: text, b)");
    REFUSED("just a line\n", "data:1: no tab, comma, semicolon or bar is between a text and");
    REFUSED("text\tlabel\na\tb\na\tb\tc\n",
            "data: 1 record cannot be used: line 3: 3 columns where the first line has 2 (a text "
            "with separators");
    REFUSED("text,label\na\n",
            "line 2: 1 column where the first line has 2 (a text with");
    REFUSED("text,label\nx,y\n\"a\nb", "2 records cannot be used: line 3: 1 column where");
    REFUSED("text,label\n\"a\nb\"c,d\n", "data: 1 record cannot be used: line 2: 1 column where");
    REFUSED("text\tlabel\na\t\n", "line 2: the label is empty");
    REFUSED("text,label\na,\"b\nc\"\n", "line 2: the label holds a control character");
    REFUSED("text,label\na,\"b\xC2\x85\"\n", "line 2: the label holds a control character");
    REFUSED("text\tlabel\na\t\xC3\n", "line 2: the label holds a control character, or is not UTF-8");
    REFUSED("text\tlabel\na\tb\nc\tb\n", "data: every label is \"b\". Two classes are needed");
    REFUSED("text\tlabel\na\tb\nc\td\n",
            "data: 9 records cannot be used: line 7: the model does not know \"new\"; line 8: the model "
            "does not know \"u\"; line 9: the model does not know \"new\"; .... Its labels are: b, d.");
    REFUSED("{\"text\": \"a\", \"label\": 1}\n{\"text\": \"a\"}\n",
            "polarity (there are: text). --label-column chooses one");
    REFUSED("text\tname",
            "polarity (there are: text, name). --label-column chooses one by its name or number");
    REFUSED("text,\"two\nlines\"\nx,y\n", "line 1: no column is named label");
    REFUSED("{\"text\": \"a\", \"label\": 1}\n{\"text\": \"a\n", "data:2: not valid JSON");
    REFUSED("{}\n", "(there are: none). --text-column");
    REFUSED("{\"text\": [3], \"label\": 1}\n", "line 1: \"text\" is no string and no number");
    REFUSED("{\"text\": \"a\", \"label\": null}\n",
            "line 1: \"label\" is no string and no number");
    REFUSED("t\0e\0x\0t\0", "data: is UTF-16, not plain text in UTF-8. Give text instead; `iconv");
    REFUSED("\x1F\x8B\x08", "data: is compressed");
    REFUSED("text\tlabel\rgood\tpos\r", "data: its lines end with CR alone, as on old Macs");
    REFUSED("a\x1B\rb\tlabel\nx\ty\n", "(there are: a??b, label)");
    REFUSED("text,label\ngood,tr\xE8s\n", "not UTF-8 (from Windows text, iconv -f CP1252 -t UTF-8");
    REFUSED("__label__a x\ny\n", "line 2: does not begin with __label__");
    REFUSED("__label__a __label__b x\n", "line 1: the text has several labels");
    REFUSED("__label__ x\n", "line 1: the label is empty");
    REFUSED("text\tlabel\na\t\n\nb\t\nc\nd\t\n", "data: 4 records cannot be used: line 2: the label "
            "is empty; line 4: the label is empty; line 5: 1 column where the first line has 2 "
            "(a text with separators or line ends needs quotes); .... Correct the file");
    REFUSED("[{\"text\": \"a\", \"label\": 1},\n 3]", "line 2: is no JSON object");
    REFUSED("text;label\na;b;c\n", "line 2: 3 columns where the first line has 2");
}

static void test_classes(void)
{
    struct Examples e = EXAMPLES("text\tlabel\na\tpos\na\tneg\na\tpo\na\tpos\n"
                                 "a\tNEG\na\t10\na\t9\n");
    int classes;
    char **names = class_names(&e, &classes);
    const char *wanted[] = {"10", "9", "NEG", "neg", "po", "pos"};
    bool good = classes == 6;
    for (int k = 0; k < classes && good; k++) good = !strcmp(names[k], wanted[k]);
    check(good, "classes are the labels in the order of their bytes");
    struct Examples numbers = EXAMPLES("text,label\na,10\na,9\na,-1\na,2.5\n"
                                       "a,1234567890123456790\na,1234567890123456789\n");
    int count;
    char **values = class_names(&numbers, &count);
    check(count == 6 && !strcmp(joined(values, 6),
                                  "-1, 2.5, 9, 10, 1234567890123456789, 1234567890123456790"),
          "labels that are all numbers are in the order of their values");
    static char *const elsewhere[] = {"pos", "neg", "po"};
    struct Example some[] = {{{"", 0}, {"neg", 3}, 1}, {{"", 0}, {"po", 2}, 2}, {{"", 0}, {"pos", 3}, 3}};
    struct Dataset d = {0};
    struct Tokenizer t = {0};
    add_examples(&d, &t, &(struct Examples){.path = "", .items = some, .count = 3}, elsewhere, 3,
                 (struct Window){.max = 8, .truncate = "head"});
    check(d.count == 3 && d.labels[0] == 1 && d.labels[1] == 2 && d.labels[2] == 0,
          "names in another order, as in a model from elsewhere; one that begins another");
    check(hides_something("e\xCC\x81te") && hides_something("pos\xC2\xA0")
          && hides_something("\xE2\x80\x8Bpos") && hides_something("po\xEF\xBB\xBFs")
          && hides_something(" pos") && hides_something("pos "),
          "names with blanks that are not seen or accents of their own");
    check(!hides_something("\xC3\xA9t\xC3\xA9") && !hides_something("very good"),
          "names without");
    check(!count_invalid("a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", 10)
          && count_invalid("\xC0\x80", 2)
          && count_invalid("\xED\xA0\x80", 3)
          && count_invalid("\xF4\x90\x80\x80", 4)
          && count_invalid("\xE2\x82", 2),
              "UTF-8 is recognised");
}

/* --- Examples --- */

static void test_split(void)
{
    enum { N = 1000 };
    int labels[N], list[N], again[N], other[N], aside[4] = {0}, seen[N] = {0};
    for (int i = 0; i < N; i++) {
        labels[i] = i < 1 ? 0 : i < 3 ? 1 : i < 303 ? 2 : 3;
        list[i] = again[i] = other[i] = i;
    }
    int *const lists[] = {list, again, other};
    int train;
    for (int i = 0; i < 3; i++) {
        struct Task t = {.train = lists[i], .train_count = N, .data.labels = labels,
                         .base.config.labels = 4, .set.seed = 7 + i / 2};
        split_stratified(&t, 0.1, 1);
        train = t.train_count;
    }
    for (int i = 0; i < N; i++) seen[list[i]]++;
    for (int i = train; i < N; i++) aside[labels[list[i]]]++;
    bool once = true;
    for (int i = 0; i < N; i++) once = once && seen[i] == 1;
    check(once, "split: every example once");
    check(aside[0] == 0 && aside[1] == 1 && aside[2] == 30 && aside[3] == 70,
          "split: a tenth of each class, at least one, never the last: %d %d %d %d", aside[0],
              aside[1], aside[2], aside[3]);
    check(!memcmp(list, again, sizeof list) && memcmp(list, other, sizeof list),
          "split: a function of the seed");
}

static void test_truncation(void)
{
    struct { const char *how; int n, most, want[4], count; } cases[] = {
        {"head", 6, 4, {1, 2, 3, 4}, 4}, {"tail", 6, 4, {3, 4, 5, 6}, 4},
            {"both", 6, 4, {1, 2, 5, 6}, 4},
        {"both", 6, 3, {1, 2, 6}, 3}, {"tail", 6, 0, {0}, 0}, {"tail", 3, 4, {1, 2, 3}, 3},
    };
    for (int i = 0; i < COUNT(cases); i++) {
        int ids[6] = {1, 2, 3, 4, 5, 6};
        truncate_ids(ids, cases[i].n, cases[i].most, cases[i].how);
        check(!memcmp(ids, cases[i].want, cases[i].count * sizeof *ids),
              "truncate %s: %d of %d", cases[i].how,
              cases[i].most, cases[i].n);
    }
}

/* --- Batches --- */

/* 256 bytes, one merge and <|endoftext|>. */
static struct Tokenizer *small_tokenizer(void)
{
    struct Tokenizer *t = tokenizer_load(file_of("#version: 0.2\na b\n", 18));
    t->usage.begins = true;
    return t;
}

static struct Dataset random_texts(struct Tokenizer *t, int count, int longest, struct Window w)
{
    struct Dataset d = {0};
    struct Random r = random_stream(3, 0);
    for (int i = 0; i < count; i++) {
        char text[256];
        const int n = (int)random_below(&r, longest + 1);
        for (int k = 0; k < n; k++) text[k] = (char)random_below(&r, 256);
        add_text(&d, t, (struct Bytes){text, n}, i % 3, w);
    }
    return d;
}

/* A model from elsewhere may read texts without <|endoftext|> before them. */
static void test_first_token(void)
{
    struct Tokenizer *t = small_tokenizer();
    struct Dataset d = {0};
    t->usage.begins = false;
    add_text(&d, t, (struct Bytes){"abc", 3}, 0, (struct Window){4, "tail"});
    add_text(&d, t, (struct Bytes){"", 0}, 0, (struct Window){4, "tail"});
    add_text(&d, t, (struct Bytes){"xyzzy", 5}, 0, (struct Window){4, "head"});
    check(length_of(&d, 0) == 2 && d.tokens[0] == 256 && length_of(&d, 1) == 1
          && d.tokens[2] == 257 && length_of(&d, 2) == 4 && d.tokens[3] == 87 && d.truncated == 1,
          "without first token: the text alone; an empty one is <|endoftext|>");
}

/* The longer text of a pair loses tokens first. A maximum of 1 leaves <|endoftext|>. */
static void test_pairs(void)
{
    static const struct { const char *pair, *how; int max, want[9], count; } cases[] = {
        {"xy\tz", "head", 9, {257, 87, 88, 257, 89}, 5},
        {"xyzxy\tz", "head", 5, {257, 87, 88, 257, 89}, 5},
        {"z\txyzxy", "tail", 5, {257, 89, 257, 87, 88}, 5},
        {"xyz\txyz", "head", 4, {257, 87, 257, 87}, 4},
        {"xyz\tz", "head", 2, {257, 257}, 2},
        {"xyz\tz", "head", 1, {257}, 1}};
    struct Tokenizer *t = small_tokenizer();
    int wrong = 0;
    for (int i = 0; i < COUNT(cases); i++) {
        struct Dataset d = {0};
        const struct Bytes text = {cases[i].pair, strlen(cases[i].pair)};
        add_text(&d, t, text, 0, (struct Window){cases[i].max, cases[i].how, true});
        wrong += length_of(&d, 0) != cases[i].count || d.truncated != (cases[i].max < 9)
              || memcmp(d.tokens, cases[i].want, cases[i].count * sizeof(int));
        free(d.tokens), free(d.starts), free(d.labels);
    }
    check(wrong == 0, "pairs are cut to their window: %d of %d wrong", wrong, COUNT(cases));
}

/* The suffix follows every text; what is cut is the text. An empty text is the first token and the
 * suffix, or the suffix alone. */
static void test_suffix(void)
{
    static const struct {
        const char *text, *how;
        int max, begins, pairs, want[9], count;
    } cases[] = {
        {"xyz", "tail", 9, 1, 0, {257, 87, 88, 89, 13, 0}, 6},
        {"xyz", "tail", 4, 1, 0, {257, 89, 13, 0}, 4},
        {"xyz", "head", 4, 0, 0, {87, 88, 13, 0}, 4},
        {"xyzx", "both", 5, 1, 0, {257, 87, 87, 13, 0}, 5},
        {"xyz\txyz", "head", 6, 1, 1, {257, 87, 257, 87, 13, 0}, 6},
        {"", "tail", 9, 1, 0, {257, 13, 0}, 3},
        {"", "tail", 9, 0, 0, {13, 0}, 2}};
    struct Tokenizer *t = small_tokenizer();
    int wrong = 0;
    set_suffix(t, ".!", 4);
    for (int i = 0; i < COUNT(cases); i++) {
        struct Dataset d = {0};
        const struct Bytes text = {cases[i].text, strlen(cases[i].text)};
        t->usage.begins = cases[i].begins;
        add_text(&d, t, text, 0, (struct Window){cases[i].max, cases[i].how, cases[i].pairs});
        wrong += length_of(&d, 0) != cases[i].count || d.truncated != (cases[i].max < 9)
              || memcmp(d.tokens, cases[i].want, cases[i].count * sizeof(int));
        free(d.tokens), free(d.starts), free(d.labels);
    }
    check(wrong == 0, "a suffix follows every text, whatever is cut: %d of %d wrong", wrong,
          COUNT(cases));
    set_suffix(t, NULL, 4);
    check(t->usage.suffix_count == 0, "and can be taken away");
}

static void test_batches(void)
{
    enum { N = 97, K = 3, C = 24 };
    struct Tokenizer *t = small_tokenizer();
    struct Dataset d = random_texts(t, N, 60, (struct Window){32, "tail"});
    struct Model model;
    char *names[] = {"a", "b", "c"};
    model_create(&model, (struct Config){2, 3, C, 32, 258, K, names});
    model_init(&model, 1);
    struct Runner many, single;
    runner_create(&many, &model, &d, 128, WORK_EVAL);
    runner_create(&single, &model, &d, 32, WORK_EVAL);
    check(d.longest == 32 && d.truncated > 0 && d.tokens[0] == 257,
          "texts start with <|endoftext|> and are cut to the window");

    int list[N], most = 0, seen = 0;
    for (int i = 0; i < N; i++) list[i] = N - 1 - i;
    while (seen < N) {
        const struct Batch b = gather(&many, list + seen, N - seen);
        most = max_int(most, b.rows);
        seen += b.sequences;
    }
    check(most <= 128 && most > 96, "batches are filled, but not beyond their rows: %d of 128",
          most);

    real p[N * K], x[N * C], q[K], y[C];
    const double loss = run_examples(&many, p, x, list, N, NULL);
    double sum = 0;
    bool good = true;
    for (int i = 0; i < N; i++) {
        sum += run_examples(&single, q, y, &list[i], 1, NULL);
        good = good && !memcmp(q, p + i * K, sizeof q) && !memcmp(y, x + i * C, sizeof y);
    }
    check(good, "a text has the same bits of probabilities and features alone and among others");
    check(fabs(loss - sum) < 1e-9 * sum, "the losses add up");
    runner_free(&many);
    runner_free(&single);
    model_free(&model);
}

/* --- Gradient steps --- */

/* A fine-tuning of a single update, 21 s after the last line of progress, stderr being a file. */
static void test_one_update(void)
{
    enum { N = 5 };
    static struct Option none[] = {{0}};
    char *names[] = {"a", "b", "c"}, line[200] = "";
    int list[N] = {0, 1, 2, 3, 4}, truth[N];
    real p[3 * N];
    struct Json meta = {0};
    struct Task t = {.set = {.every = 1, .steps = 1, .batch = 8, .lr = 1e-3, .head_lr_ratio = 1,
                             .warmup = 0.1, .layer_decay = 1, .kind = FULL, .out = directory},
                     .train = list, .val = list, .train_count = N, .val_count = N, .truth = truth,
                     .probabilities = p, .options = none,
                     .tokenizer = small_tokenizer(), .layout = {.format = "tsv"}};
    t.data = random_texts(t.tokenizer, N, 20, (struct Window){32, "tail"});
    model_create(&t.model, (struct Config){2, 3, 24, 32, 258, 3, names});
    model_init(&t.model, 1);
    choose_weights(&t);
    runner_create(&t.runner, &t.model, &t.data, 128, WORK_TRAIN);
    memcpy(truth, t.data.labels, sizeof truth);
    const size_t bytes = t.model.parameter_count * sizeof(real);
    real *before = resize(NULL, bytes);
    memcpy(before, t.model.weights, t.model.parameter_count * sizeof *before);
    FILE *file = tmpfile();
    const int terminal = dup(2);
    dup2(fileno(file), 2);
    t.runner.timer.shown = seconds() - 21;
    train_steps(&t, &meta);
    dup2(terminal, 2);
    rewind(file);
    check(fgets(line, sizeof line, file) && strstr(line, "epoch 1/1  step 1/1  loss ")
          && fgets(line, sizeof line, file) && strstr(line, "val accuracy")
          && !fgets(line, sizeof line, file), "training writes a line now and then, also to a file");
    int changed = 0;
    for (int i = 0; i < t.model.tensor_count; i++)
        changed += memcmp(before + t.model.tensors[i].offset, t.model.weights
                          + t.model.tensors[i].offset, t.model.tensors[i].size * sizeof(real)) != 0;
    check(changed == t.model.tensor_count, "one update changes all %d tensors: %d",
          t.model.tensor_count, changed);
    fclose(file), close(terminal);
    static const struct { double ago, saving; bool stop, due; } cases[] = {
        {61, 0, false, true}, {50, 0, false, false}, {61, 2, false, false}, {50, 0, true, true}};
    bool good = true;
    for (int i = 0; i < COUNT(cases); i++) {
        const double saved = seconds() - cases[i].ago;
        struct TrainState run = {.best = before, .saved = saved, .saving = cases[i].saving};
        save_if_due(&t, &run, cases[i].stop);
        good = good && (run.saved > saved) == cases[i].due;
    }
    check(good, "a state is written every minute, or more rarely if that takes seconds");
    free(before);
    runner_free(&t.runner);
    model_free(&t.model);
}

/* --- The options of a training --- */

enum { TASK_TEXTS = 15, TASK_VAL = 6, TASK_LABELS = 3 };

/* A fine-tuning of a random model with three blocks, whose weights are all other than 0, on 15
 * texts, with six for validation. The caller may have set options in t->set. */
static void start_task(struct Task *t)
{
    static char *names[] = {"a", "b", "c"};
    struct Settings *s = &t->set;
    struct Random r = random_stream(9, 0);
    if (!s->class_weights) s->class_weights = "none";
    if (!s->layer_decay) s->layer_decay = 1;
    if (!s->head_lr_ratio) s->head_lr_ratio = 1;
    if (!s->batch) s->batch = 5;
    if (!s->every) s->every = 3;
    t->quiet = true;
    t->tokenizer = small_tokenizer();
    t->data = random_texts(t->tokenizer, TASK_TEXTS + TASK_VAL, 20, (struct Window){32, "tail"});
    model_create(&t->model, (struct Config){3, 2, 16, 32, 258, TASK_LABELS, names});
    model_init(&t->model, 1);
    const size_t n = t->model.parameter_count;
    real *source = resize(NULL, n * sizeof *source);
    for (size_t i = 0; i < n; i++) source[i] = t->model.weights[i] += 0.1 * random_normal(&r);
    t->base.weights = source;
    t->train_count = TASK_TEXTS;
    t->val_count = TASK_VAL;
    t->train = resize(NULL, (TASK_TEXTS + TASK_VAL) * sizeof *t->train);
    for (int i = 0; i < TASK_TEXTS + TASK_VAL; i++) t->train[i] = i;
    t->val = t->train + TASK_TEXTS;
    t->truth = t->data.labels + TASK_TEXTS;
    t->order = random_stream(1, STREAM_ORDER);
    t->masks = random_stream(1, STREAM_MASKS);
    prepare(t);
}

static void end_task(struct Task *t)
{
    free(t->base.weights);
    free(t->train);
    runner_free(&t->runner);
    model_free(&t->model);
}

/* The gradient of one update on the examples of list, into g (parameter_count). With beta1 0 it is
 * AdamW's first moment, but for the clipping; with a rate of 0 the weights stay. Returns what
 * train_step calls its norm. */
static double gradient(struct Task *t, double *g, const int *list, int count)
{
    double norm;
    t->model.beta1 = 0;
    t->masks = random_stream(1, STREAM_MASKS);
    train_step(t, &norm, list, count, 0, 1);
    for (size_t i = 0; i < t->model.parameter_count; i++) g[i] = t->model.m[i] * fmax(norm, 1);
    return norm;
}

/* Whether a tensor has the same bits in the model and in its source. */
static bool unchanged(const struct Task *t, const struct Tensor *p)
{
    return !memcmp(t->model.weights + p->offset, t->base.weights + p->offset,
                   p->size * sizeof(real));
}

/* |weights - source|, without the head. */
static double distance(const struct Task *t)
{
    double sum = 0;
    for (size_t i = 0; i < t->model.tensors[t->model.tensor_count - 1].offset; i++)
        sum += pow((double)t->model.weights[i] - t->base.weights[i], 2);
    return sqrt(sum);
}

/* The step's objective of one weight: |w - w_adamw|^2 / (2 rate) + lambda/2 |w - source|^2. */
static double pulled(double w, double adamw, double source, double rate, double lambda)
{
    return (w - adamw) * (w - adamw) / (2 * rate) + lambda / 2 * (w - source) * (w - source);
}

/* The proximal step's result is the minimum of its objective: every other weight is worse. */
static void test_proximal_step(void)
{
    struct Task t = {.set = {.kind = LAST, .last = 2, .layer_decay = 0.5}};
    start_task(&t);
    const size_t n = t.model.parameter_count;
    struct Random r = random_stream(4, 0);
    double *adamw = resize(NULL, n * sizeof *adamw);
    for (size_t i = 0; i < n; i++)
        adamw[i] = t.model.weights[i] += (real)(0.3 * random_normal(&r));
    proximal_step(&t.model, t.base.weights, 0.1, 7);
    int lower = 0, moved = 0, learn = 0, still = 0;
    for (int i = 0; i < t.model.tensor_count; i++) {
        const struct Tensor *p = &t.model.tensors[i];
        const bool pulls = p->lr_scale > 0 && strcmp(p->name, "score.weight");
        for (size_t k = p->offset; k < p->offset + p->size; k++) {
            const double w = t.model.weights[k], rate = 0.1 * p->lr_scale;
            moved += w != adamw[k];
            learn += pulls;
            still += !pulls && w == adamw[k];
            if (!pulls) continue;
            const double F = pulled(w, adamw[k], t.base.weights[k], rate, 7);
            lower += pulled(w + 1e-4, adamw[k], t.base.weights[k], rate, 7) <= F
                  || pulled(w - 1e-4, adamw[k], t.base.weights[k], rate, 7) <= F;
        }
    }
    check(lower == 0 && moved > 0.99 * learn, "proximal step: each of %d weights is at the minimum",
          learn);
    check(still == (int)n - learn, "frozen weights and the head are not pulled");
    free(adamw);
    end_task(&t);
}

/* How far from the source --l2sp lets the weights go: returns the distance after six updates. */
static double distance_with(double l2sp, bool *trunk_stays, bool *head_learns)
{
    struct Task t = {.set = {.kind = FULL, .l2sp = l2sp, .lr = 1e-2, .epochs = 2, .steps = 6,
                             .average = 1e-9}};
    struct Json meta = {0};
    start_task(&t);
    train_steps(&t, &meta);
    *trunk_stays = true;
    for (int i = 0; i < t.model.tensor_count - 1; i++)
        *trunk_stays = *trunk_stays && unchanged(&t, &t.model.tensors[i]);
    *head_learns = !unchanged(&t, &t.model.tensors[t.model.tensor_count - 1]);
    const double far = distance(&t);
    end_task(&t);
    return far;
}

static void test_l2sp(void)
{
    bool stays, learns, goes, some;
    const double none = distance_with(1e30, &stays, &learns);
    const double half = distance_with(30, &goes, &some), free = distance_with(0, &goes, &some);
    check(stays && learns && none == 0, "--l2sp 1e30: the trunk stays to the bit, the head learns");
    check(half > 0.05 * free && half < 0.9 * free, "--l2sp 30: %.3f from the source, %.3f without",
          half, free);
}

/* The factor of each tensor's rate, and that an update moves its weights by so much: AdamW's first
 * step is the rate itself, since m / sqrt(v) is then 1 or -1. */
static void test_rates(void)
{
    static const double want[3][5] = {          /* of layers -1, 0, 1, 2, 3 */
        {0.125, 0.25, 0.5, 1, 1}, {0, 0, 0.5, 1, 1}, {0, 0.25, 0.5, 1, 1}};
    static const char *const tunes[] = {"full", "last:2", "last:3"};
    for (int last = 0; last < 3; last++) {
        struct Task t = {.set = {.kind = last ? LAST : FULL, .last = last + 1, .layer_decay = 0.5,
                                 .head_lr_ratio = 10}};
        start_task(&t);
        double norm, scale = 0, move = 0;
        train_step(&t, &norm, t.train, TASK_TEXTS, 1e-3, 1);
        for (int i = 0; i < t.model.tensor_count; i++) {
            const struct Tensor *p = &t.model.tensors[i];
            const double wanted = strcmp(p->name, "score.weight") ? want[last][p->layer + 1] : 10;
            double far = 0;
            for (size_t k = p->offset; k < p->offset + p->size; k++) {
                const double d = fabs((double)t.model.weights[k] - t.base.weights[k]);
                if (d > far) far = d;       /* fmax here ends gcc 12 for aarch64 */
            }
            scale = fmax(scale, fabs(p->lr_scale - wanted));
            move = fmax(move, fabs(far / 1e-3 - wanted) / 10);
        }
        check(scale == 0, "%s --layer-decay 0.5 --head-lr-ratio 10: the rate of each tensor",
              tunes[last]);
        check(move < 2e-3, "and one update moves its weights by that rate: %.1e", move);
        end_task(&t);
    }
}

/* The gradient of the language model's mean loss on the examples of list, by itself. */
static void lm_gradient(struct Task *t, double *g, const int *list, int count)
{
    struct Runner *r = &t->runner;
    const struct Batch b = gather(r, list, count);
    trunk_forward(r->model, &r->ws, &b, 0, 0);
    lm_head(r->model, &r->ws, &b, set_next_tokens(b), (real)1 / (b.rows - b.sequences));
    trunk_backward(r->model, &r->ws, &b);
    for (size_t i = 0; i < t->model.parameter_count; i++) g[i] = t->model.grads[i];
    memset(t->model.grads, 0, t->model.parameter_count * sizeof(real));
}

/* --lm-coef: the gradient is the classifier's plus so many times the language model's, also when
 * memory makes several batches of an update. */
static void test_lm_coef(void)
{
    struct Task t = {.set = {.kind = FULL}};
    start_task(&t);
    const size_t n = t.model.parameter_count;
    double *both = resize(NULL, 3 * n * sizeof *both), *sum = both + n, *lm = sum + n;
    gradient(&t, sum, t.train, TASK_TEXTS);
    lm_gradient(&t, lm, t.train, TASK_TEXTS);
    for (size_t i = 0; i < n; i++) sum[i] += 0.3 * lm[i];
    t.set.lm_coef = 0.3;
    gradient(&t, both, t.train, TASK_TEXTS);
    check(relative_error(both, sum, n) < 1e-5, "--lm-coef 0.3: the sum of both gradients: %.1e",
          relative_error(both, sum, n));
    t.runner.minibatch.max_rows = 40;
    gradient(&t, both, t.train, TASK_TEXTS);
    check(relative_error(both, sum, n) < 1e-5, "and in several batches: %.1e",
          relative_error(both, sum, n));
    end_task(&t);

    struct Task last = {.set = {.kind = LAST, .last = 1, .lm_coef = 1}};
    start_task(&last);
    const double norm = gradient(&last, both, last.train, TASK_TEXTS);
    check(fabs(norm / sqrt(dot(both, both, n)) - 1) < 1e-5,
          "last:1 --lm-coef: the norm is that of the weights that learn");
    double again;
    bool good = true;
    train_step(&last, &again, last.train, TASK_TEXTS, 1e-2, 1);
    for (int i = 0; i < last.model.tensor_count; i++) {
        const struct Tensor *p = &last.model.tensors[i];
        good = good && unchanged(&last, p) == (p->layer < 2);
    }
    check(good, "and frozen tensors stay, among them the language model's head");
    free(both);
    end_task(&last);
}

/* --class-weights: a weight of 2 is the example twice. */
static void test_class_weights(void)
{
    const int list[] = {0, 1, 2, 3}, twice[] = {0, 1, 1, 2, 3};     /* classes 0 1 2 0 */
    real weights[] = {1, 2, 1};
    struct Task t = {.set = {.kind = FULL}};
    start_task(&t);
    const size_t n = t.model.parameter_count;
    double *weighted = resize(NULL, 2 * n * sizeof *weighted), *repeated = weighted + n;
    gradient(&t, repeated, twice, 5);
    t.class_weights = weights;
    gradient(&t, weighted, list, 4);
    for (size_t i = 0; i < n; i++) { weighted[i] *= 4; repeated[i] *= 5; }
    check(relative_error(weighted, repeated, n) < 1e-5,
          "class weight 2: the gradient of the example twice: %.1e",
          relative_error(weighted, repeated, n));
    free(weighted);

    t.set.class_weights = "auto";
    t.train_count = 7;                                              /* classes 0 1 2 0 1 2 0 */
    real *w = weigh_classes(&t);
    check(fabs(w[0] - 7.0 / 9) < 1e-6 && fabs(w[1] - 7.0 / 6) < 1e-6 && w[1] == w[2]
          && fabs(3 * w[0] + 2 * w[1] + 2 * w[2] - 7) < 1e-5,
          "--class-weights auto: N / (K n_k), 1 on average");
    free(w);
    end_task(&t);
}

/* What the command line leaves open depends on kind, size and the number of texts; what it says
 * stays. */
static void test_defaults(void)
{
    static const struct {
        int kind, parameters, texts, val_texts, epochs, steps;
        double lr, head, dropout, average;
        int want_epochs, want_steps;
    } cases[] = {
        {FULL, 10000000, 3200, 100, 0, 0, 3e-4, 10, 0.1, 0, 3, 300},
        {FULL, 40000000, 3200, 99, 0, 0, 1.5e-4, 10, 0.1, 0.1, 3, 300},
        {FULL, 100000, 33, 100, 0, 0, 1e-3, 10, 0.1, 0, 100, 200},
        {FULL, 40000000, 100, 100, 0, 0, 7.5e-5, 10, 0.1, 0, 50, 200},
        {SCRATCH, 40000000, 32, 100, 0, 0, 5e-4, 1, 0.1, 0, 200, 200},
        {SCRATCH, 100000, 96, 100, 0, 7, 1e-3, 1, 0.1, 0, 0, 7},
        {LAST, 10000000, 100, 100, 2, 0, 1.5e-4, 10, 0, 0, 2, 8},
    };
    int wrong = 0;
    for (int i = 0; i < COUNT(cases); i++) {
        const struct Model m = {.parameter_count = cases[i].parameters};
        struct Settings s = {.kind = cases[i].kind, .batch = 32, .dropout = -1, .average = -1,
                             .epochs = cases[i].epochs, .steps = cases[i].steps},
                        said = {.kind = cases[i].kind, .batch = 32, .dropout = 0.3, .average = 0.7,
                                .lr = 0.5, .head_lr_ratio = 3, .steps = 9};
        choose_defaults(&s, &m, cases[i].texts, cases[i].val_texts);
        wrong += fabs(s.lr / cases[i].lr - 1) > 1e-9 || s.head_lr_ratio != cases[i].head
              || s.dropout != cases[i].dropout || s.average != cases[i].average
              || s.epochs != cases[i].want_epochs || s.steps != cases[i].want_steps;
        choose_defaults(&said, &m, cases[i].texts, cases[i].val_texts);
        wrong += said.lr != 0.5 || said.head_lr_ratio != 3 || said.dropout != 0.3
              || said.average != 0.7 || said.steps != 9;
    }
    check(wrong == 0, "defaults of %d trainings, and what was said stays", COUNT(cases));
}

/* A training with its files, in silence. */
static void train_with_files(struct Task *t, struct Json *meta)
{
    static struct Option none[] = {{0}};
    const int terminal = dup(2), nothing = open("/dev/null", O_WRONLY);
    t->quiet = false;
    t->options = none;
    t->layout.format = "tsv";
    t->set.out = directory;
    dup2(nothing, 2);
    train_steps(t, meta);
    dup2(terminal, 2);
    close(terminal), close(nothing);
    t->quiet = true;
}

/* The rows of log.tsv, as read_journal has them. */
static char *rows_of_log(void)
{
    char *path = text_of("%s/log.tsv", directory), *rows = read_journal(path, steps_header);
    free(path);
    return rows;
}

/* The validations in log.tsv, at most max: returns how many. */
struct Look { int step; double loss, accuracy; };

static int read_log(struct Look *looks, int max)
{
    char *rows = rows_of_log();
    int n = 0;
    for (const char *row = rows; *row && n < max; row = strchr(row, '\n') + 1, n++)
        sscanf(row, "%*d\t%d\t%*f\t%lf\t%lf", &looks[n].step, &looks[n].loss, &looks[n].accuracy);
    free(rows);
    return n;
}

/* How long a training lasts, and which weights it ends with. */
static void test_length(void)
{
    static const struct { int epochs, steps, patience; double lr; int rows, last; } cases[] = {
        {0, 7, 0, 1e-3, 7, 7}, {2, 0, 0, 1e-3, 2, 6}, {0, 0, 0, 1e-3, 17, 201},
        {0, 41, 0, 1e-3, 14, 41}, {0, 6, 0, 1e-3, 6, 6}, {0, 7, 2, 1e-30, 3, 3}, {0, 7, 1, 1e-30, 2, 2},
    };
    int earlier = 0;
    for (int i = 0; i < COUNT(cases); i++) {
        struct Task t = {.set = {.kind = LAST, .last = 1, .epochs = cases[i].epochs,
                                 .steps = cases[i].steps, .patience = cases[i].patience,
                                 .lr = cases[i].lr}};
        struct Look looks[50];
        struct Json meta = {0};
        start_task(&t);
        choose_defaults(&t.set, &t.model, TASK_TEXTS, TASK_TEXTS);
        train_with_files(&t, &meta);
        const int rows = read_log(looks, 50);
        check(rows == cases[i].rows && looks[rows - 1].step == cases[i].last,
              "--epochs %d --steps %d --patience %d: %d looks at validation, the last after %d",
              cases[i].epochs, cases[i].steps, cases[i].patience, rows, looks[rows - 1].step);
        int top = 0;
        for (int k = 1; k < rows; k++)
            if (looks[k].accuracy > looks[top].accuracy
                || (looks[k].accuracy == looks[top].accuracy && looks[k].loss < looks[top].loss))
                top = k;
        const struct Scores now = validate(&t);
        check(fabs(now.loss - looks[top].loss) < 1e-6
              && atoi(json_text(&meta, "best_step", NULL)) == looks[top].step,
              "and the best weights stay, of step %d", looks[top].step);
        earlier += top < rows - 1;
        end_task(&t);
    }
    check(earlier > 2, "which in %d cases are not the last", earlier);
}

/* A classifier is saved whenever it is the best; read again it gives the same bits. */
static void test_reload(void)
{
    struct Task t = {.set = {.kind = FULL, .lr = 1e-2, .steps = 9}};
    struct Json meta = {0};
    struct Task c = {.set = DEFAULT_SETTINGS};
    real again[TASK_VAL * TASK_LABELS];
    start_task(&t);
    train_with_files(&t, &meta);
    validate(&t);
    c.set.model = directory;
    load_classifier(&c);
    c.data = t.data;
    run_examples(&c.runner, again, NULL, t.val, TASK_VAL, NULL);
    check(!memcmp(again, t.probabilities, sizeof again),
          "a saved classifier, read again, gives the same bits");
    runner_free(&c.runner);
    model_free(&c.model);
    end_task(&t);
}

/* The log has the mean loss of all texts since the look before, though the last update of an epoch
 * has fewer texts than the others. */
static void test_train_loss(void)
{
    enum { BATCH = 4, UPDATES = 4, EPOCHS = 2 };
    struct Task t = {.set = {.kind = FULL, .lr = 1e-2, .batch = BATCH, .every = UPDATES,
                             .steps = UPDATES * EPOCHS}}, u = t;
    struct Json meta = {0};
    start_task(&t), start_task(&u);
    double norm, worst = 0;
    train_with_files(&t, &meta);
    char *rows = rows_of_log(), *row = rows;
    for (int epoch = 0; epoch < EPOCHS; epoch++) {
        double sum = 0, got = 0;
        shuffle(u.train, TASK_TEXTS, &u.order);
        for (int i = 0, step = epoch * UPDATES + 1; i < TASK_TEXTS; i += BATCH, step++) {
            const int count = min_int(BATCH, TASK_TEXTS - i);
            const double lr = learning_rate("cosine", step, UPDATES * EPOCHS + 1, 0, 1e-2, 0);
            sum += count * train_step(&u, &norm, u.train + i, count, lr, step);
        }
        sscanf(row, "%*d\t%*d\t%lf", &got);
        row = strchr(row, '\n') + 1;
        worst = fmax(worst, fabs(got - sum / TASK_TEXTS));
    }
    free(rows);
    check(worst < 2e-6, "the log has the mean loss of each epoch's texts: %.1e", worst);
    end_task(&t), end_task(&u);
}

/* A training of three updates on a terminal, a line of progress after the first, and what is said
 * when a signal has ended one. If it is quiet, only the training. */
static void speak_of_training(void *task)
{
    struct Task *t = task;
    struct Json meta = {0};
    static struct Option none[] = {{0}};
    const bool quiet = t->quiet;
    start_task(t);
    t->runner.timer.shown = 0;
    t->quiet = quiet;
    t->options = none;
    t->layout.format = "tsv";
    train_steps(t, &meta);
    end_task(t);
}

/* On a terminal of 40 columns, what must stay is there as a whole, a line each. What was replaced,
 * stands before a sign that erases it. */
static void test_lines_that_stay(void)
{
    static const char *const ends[] = {"  best", "", "", "stopped: 2 times no better on validation"};
    struct Task t = {.set = {.kind = LAST, .last = 1, .steps = 7, .every = 1, .patience = 2,
                             .lr = 1e-30, .out = directory}},
                quiet = t;
    quiet.quiet = true;
    const char *seen = on_terminal(40, speak_of_training, &t);
    int lines = 0, wrong = 0;
    for (const char *end; seen && (end = strstr(seen, "\r\n")); seen = end + 2, lines++) {
        char *line = text_of("%.*s", (int)(end - seen), seen), *at = line;
        for (char *erased; (erased = strstr(at, "\033[K")); ) at = erased + 3;
        const size_t n = strlen(at), want = lines < COUNT(ends) ? strlen(ends[lines]) : 0;
        wrong += lines >= COUNT(ends) || n < want || strcmp(at + n - want, ends[lines])
                 || (lines < 3 && !strstr(at, " s"));
        free(line);
    }
    check(!seen || (lines == COUNT(ends) && wrong == 0 && !*seen),
          "lines that stay on a terminal: %d, and %d wrong%s", lines, wrong,
          seen ? "" : " (no terminal here)");
    t = quiet;
    seen = on_terminal(40, speak_of_training, &t);
    check(!seen || !*seen, "a quiet training says nothing");
}

/* One look at a head that is `factor` times as large. Returns its scores. */
static struct Scores look_at(struct Task *t, struct TrainState *c, const real *head, double factor,
                             int step)
{
    for (int k = 0; k < TASK_LABELS * 16; k++) t->model.w.score_w[k] = (real)factor * head[k];
    c->examples = 1;
    c->step = step;
    validate_and_keep(t, c);
    return validate(t);
}

/* Which weights are the best: the most accurate, of equally accurate ones those with the lowest
 * loss. A head that is k > 0 times as large is as accurate; with k < 0 it has another accuracy. */
static void test_best(void)
{
    static const double factors[] = {4, 1, 2, 1e-3, 8, 0.5, 1.5};
    struct Task t = {.set = {.kind = FULL, .lr = 1e-3, .epochs = 1, .steps = 7}};
    start_task(&t);
    real head[TASK_LABELS * 16];
    struct TrainState c, start = {.best_scores = {.accuracy = -1, .loss = INFINITY},
                                  .best = resize(NULL, t.model.parameter_count * sizeof(real))};
    const real *kept = start.best + (t.model.w.score_w - t.model.weights);
    int lowest = 0, wrong = 0;
    double losses[COUNT(factors)];
    memcpy(head, t.model.w.score_w, sizeof head);
    c = start;
    for (int i = 0; i < COUNT(factors); i++) {
        losses[i] = look_at(&t, &c, head, factors[i], i + 1).loss;
        if (losses[i] < losses[lowest]) lowest = i;
        wrong += c.best_step != lowest + 1
                 || kept[0] != (real)factors[lowest] * head[0];
    }
    check(wrong == 0 && lowest > 0, "of equally accurate weights those with the lowest loss stay");
    look_at(&t, &c, head, 1, 1);
    for (int i = 0; i < TASK_VAL; i++)          /* right but once, and then very sure */
        t.truth[i] = (most_probable(t.probabilities + i * TASK_LABELS, TASK_LABELS) + !i)
                     % TASK_LABELS;
    for (int order = 0; order < 2; order++) {
        c = start;
        look_at(&t, &c, head, order ? -1e-3 : 1e3, 1);
        look_at(&t, &c, head, order ? 1e3 : -1e-3, 2);
        wrong += kept[0] != (real)1e3 * head[0] || c.best_scores.accuracy < 0.8 || c.best_scores.loss < 2;
    }
    check(wrong == 0, "and the more accurate ones in spite of a higher loss, %.1f", c.best_scores.loss);
    free(start.best);
    end_task(&t);
}

/* --average 0.5 of 8 updates: the mean of the weights after updates 5, 6, 7 and 8. */
static void test_average(void)
{
    struct Task t = {.set = {.kind = FULL, .lr = 1e-2, .epochs = 3, .steps = 8, .average = 0.5,
                             .warmup = 0.2}}, u = t;
    struct Json meta = {0};
    start_task(&t), start_task(&u);
    const size_t n = t.model.parameter_count;
    double *mean = allocate_zeroed(n * sizeof *mean), *got = resize(NULL, n * sizeof *got), norm;
    train_steps(&t, &meta);
    for (int step = 1; step <= 8; step++) {
        if (step % 3 == 1) shuffle(u.train, TASK_TEXTS, &u.order);
        train_step(&u, &norm, u.train + (step - 1) % 3 * 5, 5,
                   learning_rate("cosine", step, 9, 1, 1e-2, 0), step);
        for (size_t i = 0; i < n && step >= 5; i++) mean[i] += u.model.weights[i] / 4.0;
    }
    for (size_t i = 0; i < n; i++) got[i] = t.model.weights[i];
    check(relative_error(got, mean, n) < 1e-6, "--average 0.5 of 8 updates: the mean of four: %.1e",
          relative_error(got, mean, n));
    for (size_t i = 0; i < n; i++) got[i] = u.model.weights[i];
    check(relative_error(got, mean, n) > 1e-4, "which is not the last weights");
    release(mean, n * sizeof *mean);
    free(got);
    end_task(&t);
    end_task(&u);
}

/* The mean loss of probabilities p (N, K) at a temperature, as its definition says. */
static double loss_at(double temperature, const real *p, const int *labels, int N, int K)
{
    double loss = 0;
    for (int n = 0; n < N; n++) {
        double sum = 0;
        for (int k = 0; k < K; k++) sum += pow(p[n * K + k], 1 / temperature);
        loss -= log(pow(p[n * K + labels[n]], 1 / temperature) / sum) / N;
    }
    return loss;
}

static void test_calibration(void)
{
    enum { N = 200, K = 3 };
    real p[N * K];
    int labels[N];
    struct Random r = random_stream(8, 0);
    for (double scale = 0.5; scale < 10; scale *= 4) {
        double lowest = INFINITY, wanted = 0;
        for (int n = 0; n < N; n++) {
            double z[K], sum = 0, u = random_uniform(&r);
            for (int k = 0; k < K; k++) sum += exp(z[k] = random_normal(&r));
            labels[n] = 0;
            for (int k = 0; k < K - 1; k++) labels[n] += (u -= exp(z[k]) / sum) >= 0;
            sum = 0;
            for (int k = 0; k < K; k++) sum += exp(scale * z[k]);
            for (int k = 0; k < K; k++) p[n * K + k] = (real)(exp(scale * z[k]) / sum);
        }
        for (double T = 0.05; T < 20; T *= 1.0005) {
            const double loss = loss_at(T, p, labels, N, K);
            if (loss < lowest) { lowest = loss; wanted = T; }
        }
        const double T = fit_temperature(p, labels, N, K);
        check(fabs(T / wanted - 1) < 1e-3, "temperature %.4f; tried one by one: %.4f", T, wanted);
    }

    struct Task t = {.set = {.kind = LAST, .last = 1}};
    struct Json meta = {0};
    real before[TASK_VAL * TASK_LABELS];
    start_task(&t);
    for (size_t i = 0; i < t.model.tensors[t.model.tensor_count - 1].size; i++)
        t.model.w.score_w[i] *= 10;
    const struct Scores sure = validate(&t);
    memcpy(before, t.probabilities, sizeof before);
    calibrate(&t, &meta);
    const double T = strtod(json_text(&meta, "temperature", NULL), NULL);
    const struct Scores fitted = validate(&t);
    check(fitted.accuracy == sure.accuracy && fitted.loss < sure.loss && T > 1,
          "--calibrate: the accuracy stays, the loss falls: %.4f, %.4f", sure.loss, fitted.loss);
    check(fabs(fitted.loss - loss_at(T, before, t.truth, TASK_VAL, TASK_LABELS)) < 1e-5,
          "and the model itself gives the probabilities of that temperature");
    end_task(&t);
}

/* last:K: the frozen blocks may read each text once, once for every update, or in a full pass. */
static void test_frozen_blocks(void)
{
    struct Task t = {.set = {.kind = LAST, .last = 1, .lm_coef = 0.5}};
    real p[2][TASK_VAL * TASK_LABELS];
    start_task(&t);
    const int C = t.model.config.channels, list[] = {4, 2, 7, 11};
    const size_t n = t.model.parameter_count;
    double *g[4];
    for (int i = 0; i < 4; i++) g[i] = resize(NULL, n * sizeof *g[i]);
    check(t.model.first_layer == 2 && t.runner.cache, "last:1 of 3 blocks: two are kept");
    struct Runner once = t.runner;
    gradient(&t, g[0], t.train, TASK_TEXTS);
    validate(&t);
    t.runner.minibatch.max_rows = 24;       /* an update takes several batches */
    t.runner.cache = allocate_zeroed(t.runner.cache_bytes);
    gradient(&t, g[0], t.train, TASK_TEXTS);
    validate(&t);
    check(once.cache_bytes == t.data.starts[t.data.count] * C * sizeof(real)
          && !memcmp(once.cache, t.runner.cache, once.cache_bytes)
          && once.cache[t.data.starts[TASK_TEXTS] * C] != 0,
          "in several batches the same is kept");
    release(once.cache, once.cache_bytes);
    gradient(&t, g[0], list, 4);
    t.set.dropout = 0.3;
    gradient(&t, g[1], list, 4);
    validate(&t);
    memcpy(p[0], t.probabilities, sizeof p[0]);

    /* The input of the block that learns, with dropout and without. */
    real x[4 * 32 * 16];
    const struct Batch b = gather(&t.runner, list, 4);
    check(b.sequences < 4, "the first batch has %d of 4 texts", b.sequences);
    const size_t bytes = (size_t)b.rows * C * sizeof(real);
    for (int kept = 1; kept >= 0; kept--) {
        forward(&t.runner, list, 4, 0, 0);
        memcpy(x, t.runner.ws.activations[2].x, bytes);
        forward(&t.runner, list, 4, 0.3, 5);
        check(!memcmp(x, t.runner.ws.activations[2].x, bytes),
              "dropout does not touch frozen blocks, %s", kept ? "kept" : "computed again");
        if (!kept) break;
        release(t.runner.cache, t.runner.cache_bytes);
        t.runner.cache = NULL;
    }
    gradient(&t, g[3], list, 4);
    t.set.dropout = 0;
    gradient(&t, g[2], list, 4);
    struct Model whole = t.model;           /* all blocks in one pass */
    whole.first_layer = 0;
    t.runner.model = &whole;
    validate(&t);
    t.runner.model = &t.model;
    memcpy(p[1], t.probabilities, sizeof p[1]);
    check(!memcmp(g[0], g[2], n * sizeof *g[0]), "last:1: the same gradient when nothing is kept");
    check(!memcmp(g[1], g[3], n * sizeof *g[0]) && memcmp(g[0], g[1], n * sizeof *g[0]),
          "with dropout, too");
    check(!memcmp(p[0], p[1], sizeof p[0]), "and the same probabilities in a full pass");
    for (int i = 0; i < 4; i++) free(g[i]);
    end_task(&t);
}

static void test_training_options(void)
{
    test_proximal_step();
    test_l2sp();
    test_rates();
    test_lm_coef();
    test_class_weights();
    test_length();
    test_reload();
    test_defaults();
    test_train_loss();
    test_lines_that_stay();
    test_best();
    test_average();
    test_calibration();
    test_frozen_blocks();
}

/* --- Scores --- */

static void test_scores(void)
{
    /* True classes 0 0 0 1 1 2, predicted 0 0 1 1 1 1; class 3 never occurs. */
    const real p[] = {0.9, 0.1, 0, 0,  0.6, 0.4, 0, 0,  0.1, 0.9, 0, 0,  0, 1, 0, 0,  0.2, 0.8, 0,
                      0,  0.3, 0.4, 0.3, 0};
    const int truth[] = {0, 0, 0, 1, 1, 2};
    struct ClassCounts counts[4];
    const struct Scores s = score(p, truth, 3, 6, 4);
    check(fabs(s.accuracy - 4.0 / 6) < 1e-12 && s.loss == 0.5, "accuracy and mean loss");
    check(fabs(s.macro_f1 - (4.0 / 5 + 4.0 / 6 + 0) / 3) < 1e-12,
          "macro F1 over the classes that occur");
    /* Bins of 1/15: 0.9 twice (one right), 0.6, 1, 0.8, 0.4 (wrong). */
    const double wanted = (fabs(1 - 1.8) + 0.4 + 0 + 0.2 + 0.4) / 6;
    check(fabs(s.ece - wanted) < 1e-6, "calibration error %.4f", s.ece);
    check(s.majority == 0.5, "the commonest class's share");
    count_classes(counts, p, truth, 6, 4);
    const struct ClassCounts c = counts[1];
    check(c.truly == 2 && c.predicted == 4 && c.right == 2 && fabs(f1_of(c) - 2.0 / 3) < 1e-12
          && f1_of(counts[3]) == 0, "counts and F1 of a class, and of one that never occurs");
}

/* The bounds of 8 right of 10 are Wilson's textbook case; by definition each bound q is 1.96 of its
 * own standard deviations away from the accuracy. */
static void test_interval(void)
{
    const double accuracies[] = {0.8, 0, 1, 0.5, 0.99};
    const int counts[] = {10, 10, 10, 1, 1000};
    double worst = 0;
    for (int i = 0; i < COUNT(counts); i++) {
        const double a = accuracies[i], low = wilson_bound(a, counts[i], -1),
                     high = wilson_bound(a, counts[i], 1);
        if (i == 0) check(fabs(low - 0.490162) < 1e-6 && fabs(high - 0.943318) < 1e-6,
                          "accuracy 8 of 10: 95%% interval %.6f to %.6f", low, high);
        for (int k = 0; k < 2; k++) {
            const double q = k ? high : low, z = 1.959963984540054;
            worst = fmax(worst, fabs((a - q) * (a - q) - z * z * q * (1 - q) / counts[i]));
        }
        worst = fmax(worst, fmax(low - a, a - high));               /* a is between them, */
        worst = fmax(worst, (low < 0) + (high > 1));                /* and they are shares */
    }
    check(worst < 1e-12, "bounds are 1.96 of their standard deviations away: %.1e", worst);
}

/* Probabilities of class 1, from the top: 0.9 +, 0.8 -, 0.7 + + -, 0.4 -, 0.2 +, 0.1 -. */
static void test_ranks(void)
{
    const double p1[] = {0.2, 0.7, 0.9, 0.1, 0.7, 0.8, 0.4, 0.7};
    const int truth[] = {1, 1, 1, 0, 1, 0, 0, 0}, all[] = {1, 1, 1, 1, 1, 1, 1, 1}, none[8] = {0};
    real p[16], broken[16];
    struct ClassCounts c[2];
    for (int i = 0; i < 8; i++) {
        p[2 * i + 1] = (real)p1[i];
        p[2 * i] = 1 - (real)p1[i];
        broken[2 * i] = broken[2 * i + 1] = NAN;
    }
    double auc = area_under_curve(p, truth, 8);
    check(fabs(auc - (4 + 2.5 + 2.5 + 1) / 16) < 1e-12, "area under the ROC curve %.6f", auc);
    check(isnan(area_under_curve(p, all, 8)) && isnan(area_under_curve(p, none, 8)),
          "examples of one class alone: no area");
    auc = area_under_curve(broken, truth, 8);
    check(auc >= 0 && auc <= 1, "probabilities that are not numbers");

    /* TP 3, TN 2, FP 2, FN 1. */
    count_classes(c, p, truth, 8, 2);
    check(fabs(matthews(c[0], c[1]) - (3.0 * 2 - 2 * 1) / sqrt(4.0 * 4 * 5 * 3)) < 1e-12,
          "Matthews' correlation %.6f", matthews(c[0], c[1]));
    count_classes(c, p, all, 8, 2);
    check(matthews(c[0], c[1]) == 0, "Matthews' correlation: 0 when there is one class");
    const struct ClassCounts many = {300000, 300000, 200000};
    check(fabs(matthews(many, many) - 1.0 / 3) < 1e-12,
          "and of more examples than an int can multiply");
}

/* --- Probe --- */

enum { N = 300, C = 20, K = 3 };

/* Features of very different sizes, one of them almost a copy of another, and noisy labels. */
static void make_problem(real *x, int *labels)
{
    struct Random r = random_stream(11, 0);
    for (int n = 0; n < N; n++) {
        double z = 0;
        for (int c = 0; c < C; c++) {
            const double u = random_normal(&r);
            x[n * C + c] = (real)(c == 1 ? x[n * C] + 0.01 * u : u * (1 + c % 5) + c % 2);
            z += c % 3 ? 0 : u;
        }
        z += random_normal(&r);
        labels[n] = z < -1 ? 0 : z < 1 ? 1 : 2;
    }
}

/* F as its definition says, without any care for speed. */
static double plain_objective(const real *x, const int *labels, const real *class_weights,
                              const double *w, double l2)
{
    double F = 0;
    for (int n = 0; n < N; n++) {
        double z[K] = {0}, sum = 0;
        for (int k = 0; k < K; k++) {
            for (int c = 0; c < C; c++) z[k] += w[k * C + c] * x[n * C + c];
            sum += exp(z[k]);
        }
        F -= (class_weights ? class_weights[labels[n]] : 1) * log(exp(z[labels[n]]) / sum) / N;
    }
    for (int i = 0; i < K * C; i++) F += l2 / 2 * w[i] * w[i];
    return F;
}

static struct Logistic problem_of(const real *x, const int *labels, double l2)
{
    double *z = allocate_zeroed((3 * N * K + N) * sizeof *z);
    return (struct Logistic){
        .N = N, .C = C, .K = K, .l2 = l2,
        .x = memcpy(resize(NULL, N * C * sizeof *x), x, N * C * sizeof *x),
        .labels = memcpy(resize(NULL, N * sizeof *labels), labels, N * sizeof *labels),
        .start = z, .z = z + N * K, .p = z + 2 * N * K, .losses = z + 3 * N * K};
}

static void problem_free(struct Logistic *f)
{
    free(f->x);
    free(f->labels);
    release(f->start, (3 * N * K + N) * sizeof *f->start);
}

/* Returns F at w and sets its gradient dw. */
static double evaluate(struct Logistic *f, double *dw, const double *w)
{
    logistic_scores(f->z, f, w);
    const double F = logistic_objective(f, w);
    logistic_gradient(dw, f, w);
    return F;
}

static void test_objective(const real *x, const int *labels, const real *class_weights)
{
    const char *how = class_weights ? "with class weights" : "plain";
    struct Logistic f = problem_of(x, labels, 0.3);
    f.class_weights = class_weights;
    struct Random r = random_stream(5, 0);
    double w[K * C], dw[K * C], difference[K * C], far[K * C];
    for (int i = 0; i < K * C; i++) w[i] = 0.1 * random_normal(&r);
    const double F = evaluate(&f, dw, w);
    for (int i = 0; i < K * C; i++) {
        const double old = w[i], h = 1e-5;
        w[i] = old + h;
        difference[i] = plain_objective(x, labels, class_weights, w, f.l2);
        w[i] = old - h;
        difference[i] -= plain_objective(x, labels, class_weights, w, f.l2);
        difference[i] /= 2 * h;
        w[i] = old;
    }
    check(fabs(F - plain_objective(x, labels, class_weights, w, f.l2)) < 1e-12,
          "logistic regression, %s: the objective", how);
    check(relative_error(dw, difference, K * C) < 1e-8,
          "logistic regression, %s: the gradient, by finite differences: %.1e", how,
          relative_error(dw, difference, K * C));

    double d[K * C], after[K * C], change[K * C], u[N * K];
    for (int i = 0; i < K * C; i++) { d[i] = random_normal(&r); far[i] = w[i] + 1e-6 * d[i]; }
    logistic_scores(u, &f, d);
    const double curvature = logistic_curvature(&f, d, u);
    evaluate(&f, after, far);
    for (int i = 0; i < K * C; i++) change[i] = (after[i] - dw[i]) / 1e-6;
    const double wanted = dot(d, change, K * C);
    check(fabs(curvature / wanted - 1) < 1e-5,
          "logistic regression, %s: the curvature, by finite differences: %.1e", how,
          fabs(curvature / wanted - 1));

    problem_free(&f);
}

/* The minimum by Newton's method with the whole Hessian, solved by Gauss-Jordan elimination. */
static void newton(double *w, const real *x, const int *labels, double l2)
{
    enum { SIZE = K * C };
    static double a[SIZE][SIZE + 1];
    struct Logistic f = problem_of(x, labels, l2);
    memset(w, 0, SIZE * sizeof *w);
    for (int step = 0; step < 30; step++) {
        double dw[SIZE];
        evaluate(&f, dw, w);
        for (int i = 0; i < SIZE; i++) {
            for (int j = 0; j < SIZE; j++) {
                a[i][j] = i == j ? l2 : 0;
                for (int n = 0; n < N; n++)
                    a[i][j] += ((i / C == j / C) - f.p[n * K + j / C]) * f.p[n * K + i / C]
                               * x[n * C + i % C] * x[n * C + j % C] / N;
            }
            a[i][SIZE] = dw[i];
        }
        for (int i = 0; i < SIZE; i++)
            for (int row = 0; row < SIZE; row++) {
                const double factor = a[row][i] / a[i][i];
                for (int j = i; j <= SIZE && row != i; j++) a[row][j] -= factor * a[i][j];
            }
        for (int i = 0; i < SIZE; i++) w[i] -= a[i][SIZE] / a[i][i];
    }
    problem_free(&f);
}

/* max |x_i|; NaN comes through. */
static double largest_of(const double *x, int n)
{
    double max = 0;
    for (int i = 0; i < n; i++) if (!(fabs(x[i]) <= max)) max = fabs(x[i]);
    return max;
}

static int solve(double *w, const real *x, const int *labels, double l2, int threads)
{
    struct Logistic f = problem_of(x, labels, l2);
    real gram[C * C];
    set_threads(threads);
    reserve_scratch(gemm_scratch());
    gemm(gram, transposed(matrix(x, C)), matrix(x, C), NULL, NULL, C, C, N);
    const int gradients = logistic_solve(&f, w, gram);
    problem_free(&f);
    return gradients;
}

static void test_solver(const real *x, const int *labels)
{
    for (double l2 = 1e2; l2 > 5e-5; l2 /= 100) {
        struct Logistic f = problem_of(x, labels, l2);
        double w[K * C] = {0}, far[K * C], dw[K * C], wanted[K * C];
        const int gradients = solve(w, x, labels, l2, 0);
        evaluate(&f, dw, w);
        check(largest_of(dw, K * C) <= 1e-7 && gradients < 60,
              "solver: l2 %g: gradient %.1e after %d evaluations", l2,
              largest_of(dw, K * C), gradients);
        newton(wanted, x, labels, l2);
        check(relative_error(w, wanted, K * C) < 1e-4,
              "solver: l2 %g: Newton's method finds the same weights: %.1e", l2,
              relative_error(w, wanted, K * C));
        /* adds up to 0 */
        for (int i = 0; i < K * C; i++) far[i] = (i / C - 1) * (i % C % 7 - 3);
        solve(far, x, labels, l2, 0);
        check(relative_error(far, w, K * C) < 1e-3,
              "solver: l2 %g: another start leads to the same weights: %.1e", l2,
              relative_error(far, w, K * C));
        problem_free(&f);
    }
    double one[K * C] = {0}, two[K * C] = {0}, three[K * C] = {0};
    solve(one, x, labels, 1e-3, 1);
    solve(two, x, labels, 1e-3, 2);
    solve(three, x, labels, 1e-3, 3);
    check(!memcmp(one, two, sizeof one) && !memcmp(one, three, sizeof one),
          "solver: 1, 2 and 3 threads give the same bits");
}

/* Folds and a start: what is held out changes nothing, and the start is where z begins. */
static void test_folds(const real *x, const int *labels)
{
    struct Logistic f = problem_of(x, labels, 0.1), few = problem_of(x, labels, 0.1);
    double w[K * C] = {0}, other[K * C] = {0};
    int folds[N];
    real gram[C * C];
    gemm(gram, transposed(matrix(x, C)), matrix(x, C), NULL, NULL, C, C, N);
    for (int n = 0; n < N; n++) {
        folds[n] = n % 4;
        if (n % 4 == 2) few.labels[n] = (labels[n] + 1) % K;
        for (int k = 0; k < K; k++) f.start[n * K + k] = few.start[n * K + k] = k * x[n * C];
    }
    f.folds = few.folds = folds;
    f.held_out = few.held_out = 2;
    logistic_solve(&f, w, gram);
    logistic_solve(&few, other, gram);
    check(!memcmp(w, other, sizeof w), "labels that are held out teach nothing");
    f.held_out = 1;
    memset(other, 0, sizeof other);
    logistic_solve(&f, other, gram);
    check(relative_error(other, w, K * C) > 1e-3, "other labels teach something else");
    f.l2 = 1e6;
    memset(w, 0, sizeof w);
    logistic_solve(&f, w, gram);
    check(largest_of(w, K * C) < 1e-5 && fabs(f.z[5 * K + 2] - 2 * x[5 * C]) < 1e-4,
          "under a strong penalty the scores stay where they begin");
    problem_free(&f);
    problem_free(&few);
}

/* Biases by shares: those of the definition, for scores of any size. */
static void test_bias(const real *x)
{
    const double share[K] = {0.5, 0.3, 0.2};
    for (double size = 0.1; size < 1000; size *= 100) {
        double z[N * K], b[K], mean[K] = {0};
        for (int i = 0; i < N * K; i++) z[i] = size * (x[i / K * C + i % K] + i % K);
        fit_bias(b, z, share, N, K);
        for (int n = 0; n < N; n++) {
            double sum = 0;
            for (int k = 0; k < K; k++) sum += exp(z[n * K + k] + b[k] - z[n * K] - b[0]);
            for (int k = 0; k < K; k++)
                mean[k] += exp(z[n * K + k] + b[k] - z[n * K] - b[0]) / sum / N;
        }
        check(fabs(mean[0] - 0.5) + fabs(mean[1] - 0.3) + fabs(mean[2] - 0.2) < 1e-3,
              "bias: scores of size %g: mean probabilities %.4f %.4f %.4f", size, mean[0], mean[1],
              mean[2]);
    }
}

/* A task whose model has features h = w xhat + b of N texts, as LayerNorm gives them. */
static struct Task task_of_features(real *h, const int *labels, const real *x, real bias)
{
    struct Task t = {.quiet = true, .train_count = N, .unlabelled_count = N};
    const struct Config config = {.layers = 1, .heads = 1, .channels = C, .context = 4,
                                  .vocabulary = 8, .labels = K};
    real mean[N], rstd[N];
    model_create(&t.model, config);
    model_init(&t.model, 3);
    t.train = t.unlabelled = resize(NULL, N * sizeof(int));
    t.data.labels = memcpy(resize(NULL, N * sizeof(int)), labels, N * sizeof(int));
    for (int n = 0; n < N; n++) t.train[n] = n;
    for (int c = 0; c < C; c++) {
        t.model.w.lnf_w[c] = 0.5 + c % 3;
        t.model.w.lnf_b[c] = bias * (c % 5);
    }
    layernorm_forward(h, mean, rstd, x, t.model.w.lnf_w, t.model.w.lnf_b, N, C);
    memset(t.model.w.score_w, 0, K * C * sizeof(real));
    return t;
}

/* The largest |u . h - 1| over N features. */
static double constant_error(const double *u, const real *h)
{
    double largest = 0;
    for (int n = 0; n < N; n++) {
        double sum = -1;
        for (int c = 0; c < C; c++) sum += u[c] * h[n * C + c];
        largest = fmax(largest, fabs(sum));
    }
    return largest;
}

/* A head without bias has one: the constant feature; the mean feature where there is none. */
static void test_constant(const real *x, const int *labels)
{
    static real h[N * C];
    double u[C];
    struct Task t = task_of_features(h, labels, x, 0.1);
    constant_feature(u, &t, h, N);
    check(constant_error(u, h) < 1e-5, "u . h is 1 for every feature: off by %.1e",
          constant_error(u, h));
    t = task_of_features(h, labels, x, 1e-4);
    constant_feature(u, &t, h, N);
    check(constant_error(u, h) < 1e-2, "also where it almost vanishes: off by %.1e",
          constant_error(u, h));
    t = task_of_features(h, labels, x, 0);
    constant_feature(u, &t, h, N);
    double mean = 0;
    for (int i = 0; i < N * C; i++) mean += u[i % C] * h[i] / N;
    check(fabs(mean - 1) < 1e-5, "without a bias in ln_f it is so on average: %.6f", mean);
}

/* Label words make the head, and the prior its bias: from then on every class has its share. */
static void test_label_words(const real *x, const int *labels)
{
    static real h[N * C];
    static int tokens[4 * N];
    static size_t starts[N + 1];
    struct Task t = task_of_features(h, labels, x, 0.1);
    for (int i = 0; i < 4 * N; i++) tokens[i] = i * i / 3 % 8;
    for (int n = 0; n < N; n++) starts[n + 1] = starts[n] + 1 + n % 4;
    t.data.tokens = tokens;
    t.data.starts = starts;
    runner_create(&t.runner, &t.model, &t.data, 64, WORK_EVAL);
    run_examples(&t.runner, NULL, h, NULL, N, NULL);
    double mean[K] = {0}, prior[K] = {0.6, 0.3, 0.1};
    t.set.kind = PROMPT;
    t.words = (struct Dataset){.count = K, .tokens = (int[]){1, 2, 5, 6, 3},
                               .starts = (size_t[]){0, 2, 3, 5}};
    t.prior = prior;
    begin_with_words(&t);
    real *head = t.model.w.score_w, *wte = t.model.w.wte;
    double u[C], b[K];
    constant_feature(u, &t, h, N);
    bool rows = true;
    for (int k = 0; k < K; k++) {
        const real *one = wte + (k == 0 ? 1 : k == 1 ? 5 : 6) * C,
                   *two = wte + (k == 0 ? 2 : k == 1 ? 5 : 3) * C;
        b[k] = (head[k * C] - (one[0] + two[0]) / 2) / u[0];
        for (int c = 0; c < C; c++)
            rows &= fabs(head[k * C + c] - (one[c] + two[c]) / 2 - b[k] * u[c]) < 1e-5;
    }
    check(rows, "a row of the head is the mean of its words' rows of wte, and a bias");
    for (int n = 0; n < N; n++) {
        real p[K];
        for (int k = 0; k < K; k++) p[k] = dot_product(h + n * C, head + k * C, C);
        softmax(p, 1, 1, K);
        for (int k = 0; k < K; k++) mean[k] += p[k] / N;
    }
    check(fabs(mean[0] - 0.6) + fabs(mean[1] - 0.3) < 1e-4,
          "the mean probabilities are the shares of --prior: %.4f %.4f", mean[0], mean[1]);
    t.prior = NULL;
    class_shares(prior, &t);
    check(prior[0] == 1.0 / 3 && prior[2] == prior[0], "without a label the shares are equal");
    t.set.kind = PROBE;
    class_shares(prior, &t);
    for (int n = 0; n < N; n++) t.data.labels[n] = n % 3 == 0 ? 2 : 1;
    class_shares(prior, &t);
    check(fabs(prior[1] - (N * 2 / 3 + 1.0) / (N + K)) < 1e-9 && fabs(prior[0] - 1.0 / (N + K)) < 1e-9,
          "labels that contradict it have their own");
    t.train_count = 12;
    for (int n = 0; n < 12; n++) t.data.labels[n] = n % 4 % K;
    class_shares(prior, &t);
    check(prior[0] == 1.0 / 3, "a few labels, 6 of them of one class among 12, do not");
    runner_free(&t.runner);
}

/* The probe as a head: the same scores as logistic regression on standardised features with a
 * constant beside them, by plain loops. */
static void test_probe(const real *x, const int *labels)
{
    static real h[N * C];
    double u[C], scores[N * K];
    int right = 0;
    struct Task t = task_of_features(h, labels, x, 0.1);
    t.words = (struct Dataset){.count = K, .tokens = (int[]){1, 2, 5, 6, 3},
                               .starts = (size_t[]){0, 2, 3, 5}};
    constant_feature(u, &t, h, N);
    for (int of_words = 0; of_words < 2; of_words++) {
        struct Probe p = probe_fit(&t, h, of_words);
        int parts[FOLDS][K] = {{0}};
        for (int n = 0; n < N; n++) parts[p.f.folds[n]][labels[n]]++;
        bool even = true;
        for (int i = 0; i < FOLDS * K; i++) even &= abs(parts[0][i % K] - parts[i / K][i % K]) <= 1;
        check(even, "folds: of every class the same part");
        add_to_head(&t, &p, h);
        logistic_scores(scores, &p.f, p.w);
        double largest = 0;
        for (int i = 0; i < N * K; i++)
            largest = fmax(largest, fabs(scores[i] - dot_product(h + i / K * C,
                                                     t.model.w.score_w + i % K * C, C)));
        check(p.f.C == (of_words ? 5 : C) + 1 && largest < 1e-3,
              "a probe of %s, as a head, gives the same scores: %.1e",
              of_words ? "label words" : "channels", largest);
        memset(t.model.w.score_w, 0, K * C * sizeof(real));
        probe_free(&p);
    }
    struct Json meta = {0};
    const struct Scores s = train_probe(&t, h, &meta);
    for (int n = 0; n < N; n++) {
        real z[K];
        for (int k = 0; k < K; k++) z[k] = dot_product(h + n * C, t.model.w.score_w + k * C, C);
        right += most_probable(z, K) == labels[n];
    }
    check(s.accuracy > 0.5 && (double)right / N > s.accuracy - 0.02,
          "cross-validation says %.3f, the texts that taught %.3f", s.accuracy, (double)right / N);
    check(!strcmp(json_text(&meta, "learned_from", NULL), "channels"),
          "words that say nothing are not chosen");
}

static void test_probes(void)
{
    static real x[N * C];
    int labels[N];
    make_problem(x, labels);
    test_objective(x, labels, NULL);
    test_objective(x, labels, (const real[]){0.5, 2, 1.25});
    test_solver(x, labels);
    test_folds(x, labels);
    test_bias(x);
    test_constant(x, labels);
    test_label_words(x, labels);
    test_probe(x, labels);
}

int main(void)
{
    program = "test_finetune";
    if (!mkdtemp(directory)) return 1;
    test_formats();
    test_separators();
    test_quotes_in_tsv();
    test_json();
    test_columns();
    test_like_training();
    test_left_out();
    test_refusals();
    test_classes();
    test_split();
    test_truncation();
    test_first_token();
    test_suffix();
    test_pairs();
    test_batches();
    test_one_update();
    test_training_options();
    test_scores();
    test_interval();
    test_ranks();
    test_probes();
    DIR *files = opendir(directory);
    for (struct dirent *f; (f = readdir(files)); ) {
        char *path = text_of("%s/%s", directory, f->d_name);
        unlink(path);
        free(path);
    }
    closedir(files);
    rmdir(directory);
    return report();
}
