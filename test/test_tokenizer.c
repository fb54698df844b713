/* test_tokenizer.c: pieces, merges and training against their definitions written out plainly;
 * then the commands, as a user would call them, on all sorts of bytes. GPT2_VOCAB=vocab.bpe in
 * the environment adds GPT-2's own ids. */

#define main tokenizer_main
#include "../tokenizer.c"
#undef main
#include <sys/wait.h>
#include "check.h"
#include "reference.h"

static const char *const SAMPLE =
    "It was a dull film at first, but the end was good, and the actors weren't bad. I'm sure\n"
    "we'll see it again; they've said so. \"Don't,\" he said - 'never'.  In 1984, 3 of 10 liked\n"
    "the film.\r\n\r\n\tTabs,   spaces   \nCaf\xC3\xA9 na\xC3\xAFve \xE4\xBD\xA0\xE5\xA5\xBD"
    "\xE4\xB8\x96\xE7\x95\x8C \xD0\x9F\xD1\x80\xD0\xB8\xD0\xB2\xD0\xB5\xD1\x82 \xF0\x9F\x98\x80"
    "\xF0\x9F\x98\x80 x\xC2\xB2 \xE3\x80\x80 the film the film, the end. aaaaaaaa\n";

static char directory[] = "/tmp/test_tokenizer.XXXXXX";

/* A name in the test's own directory; four of them can be in use. */
static const char *in_directory(const char *name)
{
    static char names[4][256];
    static int next;
    char *path = names[next++ & 3];
    snprintf(path, sizeof names[0], "%s/%s", directory, name);
    return path;
}

static void write_plain(const char *name, const void *bytes, size_t n)
{
    FILE *f = fopen(in_directory(name), "wb");
    if (!f || fwrite(bytes, 1, n, f) != n || fclose(f)) die("%s: cannot be written.", name);
}

static struct Buffer read_plain(const char *name)
{
    struct Buffer b = {0};
    char block[4096];
    FILE *f = fopen(in_directory(name), "rb");
    append_bytes(&b, "", 0);
    for (size_t n; f && (n = fread(block, 1, sizeof block, f)); ) append_bytes(&b, block, n);
    if (f) fclose(f);
    return b;
}

static bool same_files(const char *a, const char *b)
{
    struct Buffer x = read_plain(a), y = read_plain(b);
    const bool same = x.size && x.size == y.size && !memcmp(x.data, y.data, x.size);
    free(x.data);
    free(y.data);
    return same;
}

/* Runs `tokenizer` with the words of the command, in the test's directory, stdin from the file
 * `in`, stdout and stderr to the files "out" and "err". Returns its status. --chunk-bytes N is no
 * option of the program: it sets chunk_bytes. */
__attribute__((format(printf, 2, 3))) static int run(const char *in, const char *format, ...)
{
    va_list arguments;
    char line[1024], *words[64] = {"tokenizer"};
    int n = 1;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    chunk_bytes = 1 << 19;
    for (char *word = strtok(line, " "); word; word = strtok(NULL, " "))
        if (strcmp(word, "--chunk-bytes")) words[n++] = word;
        else chunk_bytes = atoi(strtok(NULL, " "));
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        if (chdir(directory) || !freopen(in ? in : "/dev/null", "rb", stdin)
            || !freopen("out", "wb", stdout)
            || !freopen("err", "wb", stderr)) _exit(99);
        exit(tokenizer_main(n, words));
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* The command ends with that status and a message that holds `part`, of one line if it failed. */
static void expect_error(int status, const char *part, const char *command)
{
    const int got = run(NULL, "%s", command);
    struct Buffer err = read_plain("err");
    const bool one_line = err.size && strchr(err.data, '\n') == err.data + err.size - 1;
    check(got == status && strstr(err.data, part) && (one_line || status != STATUS_FAILED),
          "status %d, \"%s\": %s", status, part, command);
    if (got != status || !strstr(err.data, part)) printf("     status %d: %s\n", got, err.data);
    free(err.data);
}

/* --- Random texts: all classes of characters, contractions, broken UTF-8 --- */

static size_t random_text(struct Random *r, uint8_t *text, int symbols, bool valid)
{
    static const char *const SYMBOLS[] = {
        "a", "e", "t", "S", "Z", " ", " ", " ", "\n", "\r\n", "\t", "'", "'s", "'ll", "'RE", "'ve",
            "0", "42", "!", ".",
        "_", "the", "wonderfulness", "incomprehensibilities", "\xC2\xA0", "\xC2\x85",
            "\xE3\x80\x80", "\xE2\x80\xA8",
        "\xC3\xA9", "\xCC\x81", "\xE4\xBD\xA0", "\xC2\xB2", "\xD9\xA3", "\xF0\x9F\x98\x80",
            "\xE2\x80\x8B", "\x1C",
        "\xE1\xB2\x89", "\xEF\xBF\xBD", "<|endoftext|>",
        "\xFF", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE4\xBD", "\xF0\x9F", "\x80"};
    const int count = COUNT(SYMBOLS) - (valid ? 7 : 0);
    size_t n = 0;
    for (int i = 0; i < symbols; i++) {
        const uint64_t k = random_below(r, (uint64_t)count + 1);
        if (k == (uint64_t)count) text[n++] = valid ? 0 : (uint8_t)random_below(r, 256);
        else for (const char *s = SYMBOLS[k]; *s; s++) text[n++] = (uint8_t)*s;
    }
    return n;
}

/* --- 1. Characters --- */

static void test_classes(void)
{
    int counts[4] = {0};
    for (uint32_t c = 0; c < CODE_POINTS; c++) counts[class_of[c]]++;
    check(counts[LETTER] == 141028 && counts[NUMBER] == 1911 && counts[SPACE] == 25,
          "Unicode 16 has 141,028 letters, 1,911 numbers, 25 spaces (%d, %d, %d)", counts[LETTER],
              counts[NUMBER],
          counts[SPACE]);
    static const struct { const char *bytes; int class, length; } cases[] = {
        {"\xC3\xA9", LETTER, 2}, {"\xE4\xBD\xA0", LETTER, 3}, {"\xF0\x90\x8C\xB0", LETTER, 4},
            {"\xC2\xB2", NUMBER, 2},
        {"\xE3\x80\x80", SPACE, 3}, {"\xF4\x8F\xBF\xBF", OTHER, 4}, {"\xF4\x90\x80\x80", OTHER, 1},
        {"\xED\xA0\x80", OTHER, 1}, {"\xC0\x80", OTHER, 1}, {"\xE0\x80\x80", OTHER, 1},
            {"\xE4\xBD", OTHER, 1},
        {"\x80", OTHER, 1}, {"\xFF", OTHER, 1}, {"\xE4\xBD" "a", OTHER, 1},
            {"\xE1\xB2\x89", LETTER, 3}};
    int good = 0;
    for (int i = 0; i < COUNT(cases); i++) {
        const uint8_t *p = (const uint8_t *)cases[i].bytes;
        int length, class = class_at(p, p + strlen(cases[i].bytes), &length);
        good += class == cases[i].class && length == cases[i].length;
    }
    check(good == COUNT(cases), "UTF-8 is read strictly (%d of %d)", good, COUNT(cases));
}

/* --- 2. Pieces --- */

/* The regular expression, alternative by alternative, over a text that is already an array of
 * classes. */
struct Decoded { int class[512]; uint32_t first_byte[512]; size_t at[513]; int n; };

static void decode_text(struct Decoded *d, const uint8_t *text, size_t size)
{
    d->n = 0;
    for (size_t at = 0; at < size; d->n++) {
        int length;
        d->class[d->n] = class_at(text + at, text + size, &length);
        d->first_byte[d->n] = text[at];
        d->at[d->n] = at;
        at += length;
    }
    d->at[d->n] = size;
}

static bool says(const struct Decoded *d, int i, const char *word)
{
    for (; *word; word++, i++) if (i >= d->n || d->first_byte[i] != (uint8_t)*word) return false;
    return true;
}

static int match(const struct Decoded *d, int i)
{
    static const char *const contractions[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
    static const int classes[] = {LETTER, NUMBER, OTHER};
    for (int k = 0; k < COUNT(contractions); k++)
        if (says(d, i, contractions[k])) return i + (int)strlen(contractions[k]);
    for (int k = 0; k < COUNT(classes); k++)
        /* greedy: with the space first */
        for (int space = says(d, i, " "); space >= 0; space--) {
            int j = i + space;
            while (j < d->n && d->class[j] == classes[k]) j++;
            if (j > i + space) return j;
        }
    int j = i;
    while (j < d->n && d->class[j] == SPACE) j++;
    /* \s+(?!\S) gives one back */
    if (j < d->n && j - 1 > i) j--;
    return j;
}

static void test_pieces(void)
{
    static const char *const cases[][2] = {         /* pieces are separated by | */
        {"   a", "  | a"}, {"a   ", "a|   "}, {"a  \n b", "a|  \n| b"}, {"\n\n\nx", "\n\n|\n|x"},
            {"\r\nx", "\r|\n|x"},
        {"\t\tx", "\t|\t|x"}, {"I'm we'LL", "I|'m| we|'|LL"}, {"''s", "''|s"}, {" 's", " '|s"},
            {"'", "'"}, {"x'", "x|'"},
        {"123456 7", "123456| 7"}, {"\xC2\xA0x", "\xC2\xA0|x"}, {" \xC2\xA0x", " |\xC2\xA0|x"},
        {"x\xE2\x80\xA8y", "x|\xE2\x80\xA8|y"}, {"a\xE2\x80\x8B" "b", "a|\xE2\x80\x8B|b"},
            {"a\x1C" "b", "a|\x1C|b"},
        {"e\xCC\x81", "e|\xCC\x81"}, {"a_b", "a|_|b"}, {"don\xE2\x80\x99t", "don|\xE2\x80\x99|t"},
        {"a\xE1\xB2\x89", "a\xE1\xB2\x89"}, {"\xFF\xFE!", "\xFF\xFE!"},
            {"the\xC3\xA9 end", "the\xC3\xA9| end"},
        {"so  low", "so| | low"}, {" abcdefghijklmno", " abcdefghijklmno"},
            {"abcdefghijklmnopq r", "abcdefghijklmnopq| r"}};
    for (int i = 0; i < COUNT(cases); i++) {
        struct Buffer got = {0};
        const uint8_t *p = (const uint8_t *)cases[i][0], *end = p + strlen(cases[i][0]);
        for (const uint8_t *q; p < end; p = q) {
            q = piece_end(p, end, end);
            append_bytes(&got, p, q - p);
            if (q < end) append(&got, "|");
        }
        if (strcmp(got.data, cases[i][1])) check(0, "pieces of \"%s\": %s", cases[i][0], got.data);
        free(got.data);
    }
    check(1, "pieces of %d edge cases", COUNT(cases));
    struct Random r = random_stream(1, 0);
    uint8_t text[1024];
    struct Decoded d;
    int bad_plain = 0, bad_fast = 0, bad_beyond = 0, pieces = 0;
    for (int round = 0; round < 50000; round++) {
        size_t n = random_text(&r, text, (int)random_below(&r, 20), round % 2);
        memcpy(text + n, "\nzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz", 31);
        decode_text(&d, text, n);
        for (int i = 0, j; i < d.n; i = j, pieces++) {
            j = match(&d, i);
            const uint8_t *p = text + d.at[i], *want = text + d.at[j];
            bad_plain += plain_piece_end(p, text + n) != want;
            bad_fast += piece_end(p, text + n, text + n) != want;
            bad_beyond += piece_end(p, text + n, text + n + 31) != want;
        }
    }
    check(!bad_plain, "plain_piece_end is the regular expression on %d random pieces (%d differ)",
          pieces, bad_plain);
    check(!bad_fast && !bad_beyond, "piece_end is plain_piece_end (%d, %d differ)", bad_fast,
          bad_beyond);
}

/* --- 3, 4, 7 and 8. Vocabulary, merging, encoding, files --- */

/* One id for each byte, and -1 after each piece; returns their number. */
static int plain_bytes(int *ids, const uint8_t *text, size_t n)
{
    int count = 0;
    for (const uint8_t *p = text, *end = text + n, *q; p < end; p = q, ids[count++] = -1)
        for (q = plain_piece_end(p, end); p < q; p++) ids[count++] = id_of_byte[*p];
    return count;
}

static int plain_ids(const struct Tokenizer *t, const uint8_t *text, size_t n, int *ids)
{
    static int merges[MAX_VOCABULARY][2];
    for (int r = 0; r < t->merges; r++)
        for (int k = 0; k < 2; k++) merges[r][k] = t->parts[r][k];
    const int with_ends = plain_encode(ids, plain_bytes(ids, text, n), merges, t->merges, BYTES);
    int count = 0;
    for (int i = 0; i < with_ends; i++)
        if (ids[i] >= 0) ids[count++] = ids[i];
    return count;
}

static bool decodes_to(const struct Tokenizer *t, const int *ids, int count, const uint8_t *text,
                       size_t n)
{
    size_t at = 0;
    for (int i = 0; i < count; i++) {
        const struct Bytes bytes = bytes_of_token(t, ids[i]);
        if (at + bytes.size > n || memcmp(bytes.data, text + at, bytes.size)) return false;
        at += bytes.size;
    }
    return at == n;
}

static void test_encoding(struct Tokenizer *t)
{
    static uint8_t text[8192];
    static int got[8192], want[2 * 8192];
    struct Random r = random_stream(2, 0);
    int bad = 0, lossy = 0;
    for (int round = 0; round < 3000; round++) {
        const size_t n = random_text(&r, text, (int)random_below(&r, 30), round % 3);
        const int a = tokenizer_encode(t, (char *)text, n, got), b = plain_ids(t, text, n, want);
        bad += a != b || memcmp(got, want, a * sizeof *got);
        lossy += !decodes_to(t, got, a, text, n);
    }
    check(!bad, "ids of 3,000 random texts are those of the definition (%d differ)", bad);
    check(!lossy, "decoding gives the bytes back (%d differ)", lossy);
    bad = 0;
    /* one piece each, on both sides of SHORT_PIECE */
    for (int round = 0; round < 300; round++) {
        const size_t n = 1 + random_below(&r, round % 3 ? 100 : 2000);
        const uint64_t kinds = 1 + random_below(&r, 4);
        for (size_t i = 0; i < n; i++) text[i] = "aeht"[random_below(&r, kinds)];
        const int a = tokenizer_encode(t, (char *)text, n, got), b = plain_ids(t, text, n, want);
        bad += a != b || memcmp(got, want, a * sizeof *got);
    }
    check(!bad, "so are those of long words (%d differ)", bad);
    check(tokenizer_encode(t, "", 0, got) == 0, "an empty text has no ids");
    const clock_t start = clock();              /* processor time: other programs do not count */
    const size_t million = 1000000;
    char *letters_a = resize(NULL, million);
    int *ids = resize(NULL, million * sizeof *ids);
    memset(letters_a, 'a', million);
    const int count = tokenizer_encode(t, letters_a, million, ids);
    const double spent = (double)(clock() - start) / CLOCKS_PER_SEC;
    check(decodes_to(t, ids, count, (uint8_t *)letters_a, million) && spent < 2,
          "a million times the letter a takes no quadratic time");
    free(letters_a);
    free(ids);
}

static void test_files(const struct Tokenizer *t)
{
    tokenizer_stage(t, in_directory("again"));
    commit_outputs();
    struct Tokenizer *u = tokenizer_load(in_directory("again"));
    check(u->vocabulary == t->vocabulary && u->eot == t->eot && u->eot == u->vocabulary - 1
          && u->hash == t->hash,
          "a saved tokenizer is read back with %d tokens, <|endoftext|> last", u->vocabulary);
    check(same_files("tok/merges.txt", "again/merges.txt")
          && same_files("tok/vocab.json", "again/vocab.json"),
          "and its files are the same");
    struct Buffer b = read_plain("tok/vocab.json");
    struct Json *j = json_parse(b.data, b.size, "vocab.json");
    int entries = 0;
    for (struct Json *e = j->child; e; e = e->next) entries++;
    check(entries == t->vocabulary && json_number(j, END_OF_TEXT, 0) == t->eot
          && json_number(j, "!", -1) == 0
          && json_number(j, "\xC4\xA0", -1) == 220,
              "vocab.json holds every token, a space as U+0120");
    json_free(j);
    free(b.data);
}

/* Writes a text to a file of a new directory. */
static void write_in(const char *directory, const char *name, const char *text, size_t n)
{
    make_directory(in_directory(directory));
    char *path = text_of("%s/%s", in_directory(directory), name);
    stage_file(path, text, n);
    commit_outputs();
    free(path);
}

/* tokenizer.json alone gives the same tokenizer, and tokenizer_config.json says what the model
 * does to a text. */
static void test_json_files(const struct Tokenizer *t)
{
    struct Buffer b = read_plain("tok/tokenizer.json");
    write_in("one_file", "tokenizer.json", b.data, b.size);
    struct Tokenizer *u = tokenizer_load(in_directory("one_file"));
    check(u->hash == t->hash && u->vocabulary == t->vocabulary && !u->file_ids && u->usage.begins,
          "tokenizer.json alone holds the same %d merges and ids; texts begin with <|endoftext|>",
          u->merges);
    struct Json *j = json_parse(b.data, b.size, "tokenizer.json");
    const struct Json *pad = json_get(j, "added_tokens")->child, *eot = pad->next;
    check(json_number(pad, "id", -1) == 208 && !strcmp(json_text(pad, "content", ""), "\xC4\x94")
          && json_number(pad, "single_word", 0) == 1 && json_number(eot, "id", -1) == t->eot
          && !strcmp(json_text(eot, "content", ""), END_OF_TEXT) && !eot->next,
          "its special tokens: pad, byte 0x14, and <|endoftext|>");
    json_free(j);
    free(b.data);
    b = read_plain("tok/tokenizer_config.json");
    j = json_parse(b.data, b.size, "tokenizer_config.json");
    check(json_number(j, "add_bos_token", 0) == 1 && !json_get(j, "model_max_length")
          && !strcmp(json_text(j, "truncation_side", ""), "left")
          && !strcmp(json_text(j, "padding_side", ""), "right")
          && !strcmp(json_text(j, "bos_token", ""), END_OF_TEXT)
          && !strcmp(json_text(j, "pad_token", ""), "\xC4\x94"),
          "tokenizer_config.json: first token, pad token, sides");
    json_free(j);
    free(b.data);
}

/* A directory from elsewhere says in tokenizer_config.json what happens to a text, or nothing. */
static void test_foreign_config(void)
{
    static const struct { const char *text; int begins, tail, longest; } cases[] = {
        {"{}", 0, 0, 0},
        {"{\"add_bos_token\": false, \"model_max_length\": 1000000000000000019884624838656}",
         0, 0, 0},
        {"{\"add_bos_token\": true, \"bos_token\": {\"content\": \"<|endoftext|>\"}, "
         "\"model_max_length\": 77, \"truncation_side\": \"left\"}", 1, 1, 77}};
    struct Buffer b = read_plain("tok/merges.txt");
    write_in("foreign", "merges.txt", b.data, b.size);
    free(b.data);
    for (int i = -1; i < COUNT(cases); i++) {
        if (i >= 0)
            write_in("foreign", "tokenizer_config.json", cases[i].text, strlen(cases[i].text));
        struct Tokenizer *u = tokenizer_load(in_directory("foreign"));
        const int begins = i < 0 ? 0 : cases[i].begins, tail = i < 0 ? 0 : cases[i].tail,
                  longest = i < 0 ? 0 : cases[i].longest;
        const struct Usage *is = &u->usage;
        check(is->begins == begins && is->keeps_tail == tail && is->max_length == longest,
              "%s: first token %d, tail %d, longest %d", i < 0 ? "no config" : cases[i].text,
              is->begins, is->keeps_tail, is->max_length);
    }
}

/* What follows every text is a special piece of the template, and is read back from tokenizer.json. */
static void test_suffix(struct Tokenizer *t)
{
    const char suffix[] = " it's \"so\" na\xC3\xAFve.";
    struct Usage *u = &t->usage, before = *u;
    u->suffix = resize(NULL, sizeof suffix * sizeof *u->suffix);
    u->suffix_count = tokenizer_encode(t, suffix, sizeof suffix - 1, u->suffix);
    for (int begins = 0; begins < 2; begins++) {
        u->begins = begins;
        tokenizer_stage(t, in_directory("suffix"));
        commit_outputs();
        struct Tokenizer *is = tokenizer_load(in_directory("suffix"));
        check(is->usage.begins == begins && is->usage.suffix_count == u->suffix_count
              && !memcmp(is->usage.suffix, u->suffix, u->suffix_count * sizeof *u->suffix),
              "%s first token, a suffix of %d tokens: read back", begins ? "a" : "no",
              is->usage.suffix_count);
    }
    free(u->suffix);
    *u = before;
}

/* Trainers often put special tokens first: their ids are read from vocab.json or tokenizer.json,
 * and a model's embeddings are brought into our order. */
static void test_foreign_order(const struct Tokenizer *t)
{
    enum { C = 2, EXTRA = 3, PADDED = 8 };
    static const char first[] = "{\"SpecialToken\": {\"id\": \"<s>\"}}, ";
    struct Buffer ids = {0}, json = {0}, merges = read_plain("tok/merges.txt");
    const int V = t->vocabulary + EXTRA + PADDED;
    append(&ids, "{\"<s>\": 0, \"" END_OF_TEXT "\": 1, \"<pad>\": 2, \"</s>\": 3");
    for (int i = 0; i < t->eot; i++) {
        append(&ids, ", \"");
        append_token(&ids, t, i, true);
        append(&ids, "\": %d", i + 1 + EXTRA);
    }
    append(&ids, "}");
    write_in("order", "merges.txt", merges.data, merges.size);
    write_in("order", "vocab.json", ids.data, ids.size);
    append(&json, "{\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false}, "
           "\"model\": {\"type\": \"BPE\", \"vocab\": %s, \"merges\": [", ids.data);
    for (int r = 0; r < t->merges; r++) {
        append(&json, r ? ", [\"" : "[\"");
        append_token(&json, t, t->parts[r][0], true);
        append(&json, "\", \"");
        append_token(&json, t, t->parts[r][1], true);
        append(&json, "\"]");
    }
    append(&json, "]}, \"added_tokens\": [{\"content\": \"a\"}, {\"content\": \"<s>\"}], "
           "\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [%s"
           "{\"Sequence\": {\"id\": \"A\"}}, {\"SpecialToken\": {\"id\": \"ab\"}}, "
           "{\"SpecialToken\": {\"id\": \"end\"}}], \"special_tokens\": {"
           "\"ab\": {\"ids\": [%d, %d], \"tokens\": [\"a\", \"b\"]}, "
           "\"end\": {\"ids\": [1], \"tokens\": [\"" END_OF_TEXT "\"]}}}}",
           first, id_of_byte['a'] + 1 + EXTRA, id_of_byte['b'] + 1 + EXTRA);
    write_in("order_json", "tokenizer.json", json.data, json.size);
    expect_error(1, "texts begin with \"<s>\"", "ids --tokenizer order_json a");
    memset(strstr(json.data, first), ' ', strlen(first));
    write_in("order_json", "tokenizer.json", json.data, json.size);
    memcpy(strstr(json.data, "single"), "double", 6);
    write_in("double", "tokenizer.json", json.data, json.size);
    expect_error(1, "its post_processor is no template", "ids --tokenizer double a");
    static const char *const directories[] = {"order", "order_json"};
    for (int d = 0; d < 2; d++) {
        struct Json none = {0};
        real *wte = resize(NULL, (size_t)V * C * sizeof *wte);
        struct Model model = {.config = {.vocabulary = V, .channels = C}, .w.wte = wte};
        for (int i = 0; i < V * C; i++) wte[i] = (real)i;
        struct Tokenizer *u = tokenizer_of_model(in_directory(directories[d]), &model, &none);
        bool good = u->hash == t->hash && u->vocabulary == t->vocabulary;
        for (int i = 0; i < t->eot; i++)
            good &= wte[C * i] == C * (i + 1 + EXTRA) && wte[C * i + 1] == wte[C * i] + 1;
        check(good && wte[C * t->eot] == C && wte[C * (t->eot + 1)] == 0
              && wte[C * (t->eot + 2)] == 2 * C && wte[C * (V - 1)] == C * (V - 1),
              "%s: embeddings are brought into our order, others follow", directories[d]);
        const int *suffix = u->usage.suffix;
        check(!u->usage.begins && u->usage.suffix_count == (d ? 3 : 0)
              && (!d || (suffix[0] == id_of_byte['a'] && suffix[1] == id_of_byte['b']
                         && suffix[2] == t->eot)),
              "%s: %d tokens follow a text, in our order", directories[d], u->usage.suffix_count);
        free(wte);
    }
    free(ids.data); free(json.data); free(merges.data);

    /* A token that is added to the merges is refused in a text, unless the directory splits it. */
    check(run(NULL, "ids --tokenizer order_json b<s") == 0, "a text without added tokens");
    expect_error(1, "<s>: is a token that was added", "ids --tokenizer order_json b<s>");
    write_plain("added", "b\n<s> b", 7);
    expect_error(1, "<s>: is a token that was added",
                 "encode --split lines --tokenizer order_json --out added added");
    expect_error(1, "<s>: is a token that was added",       /* no chunk ends inside it */
                 "encode --chunk-bytes 3 --tokenizer order_json --out added added");
    write_in("order_json", "tokenizer_config.json", "{\"split_special_tokens\": true}", 30);
    check(run(NULL, "ids --tokenizer order_json a<s>") == 0, "split_special_tokens: it is text");
    static const char prefix[] = "{\"add_prefix_space\": true}",
                      adds[] = "{\"added_tokens_decoder\": {\"600\": {\"content\": \"<sep>\"}, "
                               "\"1\": {\"content\": \"!\"}}}";
    write_in("order", "tokenizer_config.json", prefix, strlen(prefix));
    expect_error(1, "add_prefix_space is true", "ids --tokenizer order a");
    write_in("order", "tokenizer_config.json", adds, strlen(adds));
    expect_error(1, "<sep>: is a token that was added", "ids --tokenizer order a<sep>");
    expect_error(1, "!: is a token that was added", "ids --tokenizer order a!!");
    write_in("order", "vocab.json", "[\"a\"]", 5);
    expect_error(1, "gives no id of its own to token 0", "ids --tokenizer order a");
}

/* --- 5 and 6. Learning the merges, the heap --- */

/* All merges by the definition, up to the first pair that occurs less often than `minimum` times.
 * Returns their number. */
static int plain_train(uint16_t (*parts)[2], const char *text, size_t n, int merges, int minimum)
{
    static int ids[2 * 8192];
    int count = plain_bytes(ids, (const uint8_t *)text, n), pair[2];
    for (int r = 0; r < merges; r++) {
        if (plain_learn_merge(pair, ids, &count, BYTES + r, BYTES + r) < minimum) return r;
        for (int k = 0; k < 2; k++) parts[r][k] = (uint16_t)pair[k];
    }
    return merges;
}

/* Pushes and pops in any order, against a search through all entries. */
static void test_heap(void)
{
    struct Random r = random_stream(7, 0);
    struct Heap h = {0};
    struct Entry all[500];
    int count = 0, bad = 0;
    for (int round = 0; round < 20000; round++) {
        if (count < 500 && random_below(&r, 20) < (round % 2000 < 1000 ? 11 : 9)) {
            const struct Entry e = {(double)random_below(&r, 30), (uint32_t)round, -round};
            heap_push(&h, e);
            all[count++] = e;
        } else if (count) {
            int best = 0;
            for (int i = 1; i < count; i++)
                if (all[i].key > all[best].key
                    || (all[i].key == all[best].key && all[i].id < all[best].id)) best = i;
            const struct Entry e = heap_pop(&h);
            bad += e.key != all[best].key || e.id != all[best].id || e.index != all[best].index;
            all[best] = all[--count];
        }
    }
    check(!bad && (int)h.size == count,
          "the heap pops the largest key, of equals the smallest id (%d differ)", bad);
    free(h.entries);
}

static void test_training(const struct Tokenizer *t)
{
    static uint16_t parts[300][2];
    const int merges = plain_train(parts, SAMPLE, strlen(SAMPLE), 300, 1);
    check(merges == t->merges && !memcmp(parts, t->parts, merges * sizeof *parts),
          "the %d merges are those of counting all pairs again each time", merges);
    struct Random r = random_stream(3, 0);
    int bad = 0;
    for (int round = 0; round < 10; round++) {          /* few letters: many ties and overlaps */
        static uint8_t text[4096];
        size_t n = 0;
        for (int w = 0; w < 150; w++) {
            for (uint64_t k = 1 + random_below(&r, 10); k; k--)
                text[n++] = "aabc"[random_below(&r, 4)];
            text[n++] = ' ';
        }
        write_plain("ties", text, n);
        bad += run(NULL, "train --vocab 400 --out ties%d ties", round) != 0;
        char name[32];
        snprintf(name, sizeof name, "ties%d", round);
        struct Tokenizer *u = tokenizer_load(in_directory(name));
        const int count = plain_train(parts, (char *)text, n, 143, 2);
        bad += count != u->merges || memcmp(parts, u->parts, count * sizeof *parts);
    }
    check(!bad, "so they are with ties and overlapping pairs (%d of 10 differ)", bad);
    run(NULL, "train --vocab 400 --max-token-bytes 3 --min-frequency 4 --out short text");
    struct Tokenizer *u = tokenizer_load(in_directory("short"));
    int longest = 0;
    for (int id = 0; id < BYTES + u->merges; id++) longest = max_int(longest, token_length(u, id));
    check(longest == 3 && u->vocabulary == BYTES + u->merges + 1,
          "--max-token-bytes and --min-frequency are kept");
}

/* --- 9 to 11. Shards, documents, commands --- */

/* Every split, chunk size and number of threads gives the same shard, and decoding gives the
 * text. */
static void test_documents(void)
{
    static uint8_t text[40000];
    static const char *const splits[] = {"file", "lines", "eot"};
    struct Random r = random_stream(4, 0);
    for (int s = 0; s < 3; s++) {
        size_t n = random_text(&r, text, 500, false);
        /* no empty lines, \n only, and at the end */
        if (s == 1) {
            size_t kept = 0;
            for (size_t i = 0; i < n; i++)
                if (text[i] != '\r' && (text[i] != '\n' || (kept && text[kept - 1] != '\n')))
                    text[kept++] = text[i];
            text[n = kept] = '\n';
            n++;
        }
        write_plain("doc", text, n);
        run(NULL, "encode --tokenizer tok --split %s --overwrite --threads 1 --out a doc",
            splits[s]);
        int bad = 0;
        for (int chunk = 1; chunk <= 64; chunk += 1 + chunk / 8) {
            bad += run(NULL,
                       "encode --tokenizer tok --split %s --overwrite --threads %d --chunk-bytes "
                       "%d --out b doc",
                       splits[s], (int[]){1, 2, 3, 7}[chunk % 4], chunk) != 0;
            bad += !same_files("a_000000.bin", "b_000000.bin");
        }
        check(!bad,
              "--split %s: 1, 2, 3, 7 threads and chunks of 1 to 64 bytes give the same shard",
                  splits[s]);
        run(NULL, "decode --tokenizer tok --split %s a_000000.bin", splits[s]);
        if (s < 2) check(same_files("doc", "out"), "and it decodes to the text");
    }
    const char *marks = "one\r\n\r\n\ntwo\nthree";
    write_plain("marks", marks, strlen(marks));
    run(NULL, "encode --tokenizer tok --split lines --overwrite --out a marks");
    run(NULL, "decode --tokenizer tok --split lines a_000000.bin");
    struct Buffer out = read_plain("out");
    check(!strcmp(out.data, "one\ntwo\nthree\n"),
          "lines: \\r\\n is accepted, empty lines are no documents");
    free(out.data);
    marks = "<|endoftext|>\none\n<|endoftext|><|endoftext|>\r\n two<|endoftext|>";
    write_plain("marks", marks, strlen(marks));
    run(NULL, "encode --tokenizer tok --split eot --overwrite --out a marks");
    run(NULL, "decode --tokenizer tok --split eot a_000000.bin");
    out = read_plain("out");
    check(!strcmp(out.data, "one\n<|endoftext|> two"),
          "eot: a line end after the mark is not text");
    free(out.data);
    static const char *const every[] = {"file", "lines", "eot", "jsonl"};
    int differ = 0;
    marks = "\xEF\xBB\xBF{\"text\": \"a film\"}\n";
    write_plain("plain", marks + 3, strlen(marks) - 3);
    write_plain("marks", marks, strlen(marks));
    for (int i = 0; i < 4; i++) {
        run(NULL, "encode --tokenizer tok --split %s --overwrite --out a plain", every[i]);
        run(NULL, "encode --tokenizer tok --split %s --overwrite --out b marks", every[i]);
        differ += !same_files("a_000000.bin", "b_000000.bin");
    }
    check(!differ, "a byte order mark is no text, whatever --split (%d differ)", differ);
    expect_error(0, ", 2.00 bytes per token",
                 "encode --tokenizer tok --split jsonl --overwrite --out b marks");
}

/* Several files and a pipe pass through the window as one file does: the windows of the later
 * runs are 64 to 640 bytes, so the long word at the end makes them larger. */
static void test_windows(void)
{
    static uint8_t text[40000];
    static const char *const splits[] = {"file", "lines", "eot"};
    struct Random r = random_stream(6, 0);
    size_t n = random_text(&r, text, 3000, false);
    memset(text + n, 'a', 2000);
    n += 2000;
    write_plain("doc", text, n);
    write_plain("none", "", 0);
    n = random_text(&r, text, 2000, true);
    for (size_t i = 0; i < n; i++)
        if (text[i] < 128 && class_of[text[i]] == SPACE) text[i] = '1';
    write_plain("no_space", text, n);
    if (mkfifo(in_directory("pipe"), 0600)) die("%s: cannot be made.", in_directory("pipe"));
    int files = 0, pipes = 0;
    for (int s = 0; s < 3; s++) {
        char *feed = text_of("cat %s >%s &", in_directory("doc"), in_directory("pipe"));
        run(NULL,
            "encode --tokenizer tok --split %s --val-fraction 0.3 --seed 8 --overwrite --out a "
            "none doc no_space none text doc",
            splits[s]);
        for (int chunk = 1; chunk <= 9; chunk += 8) {
            files += run(NULL, "encode --tokenizer tok --split %s --val-fraction 0.3 --seed 8 "
                         "--overwrite --chunk-bytes %d --out b none doc no_space none text doc",
                         splits[s], chunk) != 0;
            files += !same_files("a_000000.bin", "b_000000.bin");
            files += !same_files("val_a_000000.bin", "val_b_000000.bin");
        }
        pipes += run(NULL, "encode --tokenizer tok --split %s --overwrite --out a doc", splits[s]);
        pipes += system(feed) != 0;
        pipes += run(in_directory("pipe"), "encode --tokenizer tok --split %s --overwrite "
                     "--chunk-bytes 10 --out b -", splits[s]);
        pipes += !same_files("a_000000.bin", "b_000000.bin");
        free(feed);
    }
    check(!files, "several files in small windows give the same shards (%d differ)", files);
    check(!pipes, "a pipe gives the same shard as the file (%d differ)", pipes);
}

static void test_shards(const struct Tokenizer *t)
{
    struct Buffer lines = {0}, sides = {0}, whole;
    for (int i = 0; i < 300; i++) append(&lines, "line %d of the film\n", i);
    write_plain("lines", lines.data, lines.size);
    run(NULL, "encode --tokenizer tok --split lines --out deep/er/one lines");
    run(NULL, "encode --tokenizer tok --split lines --shard-tokens 1000 --out deep/er/many lines");
    run(NULL,
        "decode --tokenizer tok --split lines deep/er/many_000000.bin deep/er/many_000001.bin "
        "deep/er/many_000002.bin "
              "deep/er/many_000003.bin");
    whole = read_plain("deep/er/many_000000.bin");
    check(same_files("lines", "out") && whole.size == 1024 + 2 * 1000,
          "shards of --shard-tokens follow one another");
    check(!memcmp(whole.data + 16, &t->hash, 8), "words 4 and 5 of the header are the hash");
    check(!run(NULL, "decode --tokenizer tok --split lines deep/er/many_000001.bin "
                     "deep/er/many_000000.bin deep/er/many_000002.bin deep/er/many_000003.bin"),
          "also in another order");
    free(whole.data);
    run(NULL, "encode --tokenizer tok --split lines --val-fraction 0.2 --threads 1 --out v1 lines");
    run(NULL,
        "encode --tokenizer tok --split lines --val-fraction 0.2 --threads 3 --chunk-bytes 7 "
        "--out v3 lines");
    check(same_files("v1_000000.bin", "v3_000000.bin")
          && same_files("val_v1_000000.bin", "val_v3_000000.bin"),
          "--val-fraction chooses the same documents for any number of threads");
    run(NULL, "decode --tokenizer tok --split lines v1_000000.bin");
    whole = read_plain("out");
    append_bytes(&sides, whole.data, whole.size);
    free(whole.data);
    run(NULL, "decode --tokenizer tok --split lines val_v1_000000.bin");
    whole = read_plain("out");
    append_bytes(&sides, whole.data, whole.size);
    int missing = 0, val = 0;
    for (int i = 0; i < 300; i++) {
        char line[64];
        snprintf(line, sizeof line, "line %d of the film\n", i);
        missing += !strstr(sides.data, line);
        val += strstr(whole.data, line) != NULL;
    }
    check(!missing && sides.size == lines.size && val > 30 && val < 90,
          "it sets %d of 300 aside and loses none", val);
    free(whole.data); free(lines.data); free(sides.data);
}

/* JSON lines give the shards and merges that their texts give, cut at marks. Every second line has
 * another string before the text, and a blank line after it. */
static void test_json_lines(void)
{
    static uint8_t text[2000];
    struct Random r = random_stream(9, 0);
    struct Buffer lines = {0}, marked = {0};
    for (int i = 0; i < 40; i++) {
        const size_t n = random_text(&r, text, 60, true);
        for (size_t k = 0; k < n; k++) if (!text[k] || text[k] == '|') text[k] = 'x';
        text[n] = 0;
        append(&lines, i % 2 ? "{\"other\": \"film\", \"text\": " : "{\"text\":");
        append_json_string(&lines, as_bytes((char *)text));
        append(&lines, i % 2 ? ", \"more\": [1, {}]}\r\n \n" : "}\n");
        append(&marked, "%s%s", i ? END_OF_TEXT : "", (char *)text);
    }
    write_plain("json", lines.data, lines.size - 3);
    write_plain("marked", marked.data, marked.size);
    free(lines.data); free(marked.data);
    run(NULL, "encode --tokenizer tok --split eot --overwrite --out a marked");
    run(NULL, "encode --tokenizer tok --split jsonl --val-fraction 0.3 --out jv --threads 1 json");
    int bad = 0;
    for (int chunk = 1; chunk <= 64; chunk += 9) {
        bad += run(NULL, "encode --tokenizer tok --split jsonl --overwrite --threads %d "
                   "--chunk-bytes %d --out b json", chunk % 3 + 1, chunk) != 0;
        bad += !same_files("a_000000.bin", "b_000000.bin");
        bad += run(NULL, "encode --tokenizer tok --split jsonl --val-fraction 0.3 --overwrite "
                   "--threads 2 --chunk-bytes %d --out b json", chunk) != 0;
        bad += !same_files("jv_000000.bin", "b_000000.bin");
        bad += !same_files("val_jv_000000.bin", "val_b_000000.bin");
    }
    check(!bad, "--split jsonl: the shards of the texts, for any threads and chunks (%d)", bad);
    run(NULL, "train --vocab 300 --split eot --out eot_tok marked");
    run(NULL, "train --vocab 300 --split jsonl --out jsonl_tok json");
    check(same_files("eot_tok/merges.txt", "jsonl_tok/merges.txt"), "and their merges");

    static const char escapes[] = "\xEF\xBB\xBF\n{\"b\\u006Fdy\": \"\\u00e4\\uD83D\\uDE00\\/\\\""
        "\\\\\\b\\f\\n\\r\\t\\u0000\\ud83d.\"}",
        bytes[] = "\xC3\xA4\xF0\x9F\x98\x80/\"\\\b\f\n\r\t\0\xEF\xBF\xBD.";
    write_plain("json", escapes, sizeof escapes - 1);
    run(NULL, "encode --tokenizer tok --split jsonl --text-field body --overwrite --out a json");
    run(NULL, "decode --tokenizer tok a_000000.bin");
    write_plain("want", bytes, sizeof bytes - 1);
    check(same_files("want", "out"), "escapes, surrogates and NUL become the text's bytes");
}

/* The third of four lines is wrong. Of many wrong lines in many threads, one is named. */
static void test_json_errors(void)
{
    static const struct { const char *line, *says; } rows[] = {
        {"[1]", "rows:3: not a JSON object"}, {"\"text\"", "rows:3: not a JSON object"},
        {"{\"txt\": \"a\"}", "rows:3: not a JSON object with a string \"text\""},
        {"{\"text\": null}", "rows:3: not a JSON object with a string \"text\""},
        {"{\"text\": \"a\"", "rows:3: not valid JSON"}, {"{\"text\": \"\\x\"}", "unknown escape"},
        {"{\"text\": \"a\"}}", "rows:3: not valid JSON"}};
    for (int i = 0; i < COUNT(rows); i++) {
        char *text = text_of("{\"text\": \"a\"}\n\n%s\n{\"text\": \"b\"}\n", rows[i].line);
        write_plain("rows", text, strlen(text));
        expect_error(1, rows[i].says, i % 2 ? "encode --tokenizer tok --split jsonl --out n rows"
                                            : "train --chunk-bytes 9 --split jsonl --out n rows");
        free(text);
    }
    expect_error(1, "rows:1: not a JSON object with a string \"text,b\". Name the member",
                 "encode --tokenizer tok --split jsonl --text-field text,b --out n rows");
    struct Buffer wrong = {0};
    for (int i = 0; i < 200; i++) append(&wrong, "[]\n");
    write_plain("wrong", wrong.data, wrong.size);
    free(wrong.data);
    int others = 0;
    for (int i = 0; i < 40; i++) {
        run(NULL, "encode --tokenizer tok --split jsonl --chunk-bytes 1 --threads 7 --out n wrong");
        struct Buffer err = read_plain("err");
        const char *why = strstr(err.data, "not a JSON object");
        others += !why || strstr(why + 1, "not a JSON object");
        free(err.data);
    }
    check(!others, "of seven threads that fail, one says why (not in %d of 40 runs)", others);
}

/* The one document of one file is cut in two at a line end: the shards are those of its parts. */
static void test_end_set_aside(void)
{
    struct Buffer text = {0};
    for (int i = 0; i < 100; i++) append(&text, "line %d of the film\n", 100 + i);
    write_plain("whole", text.data, text.size);
    write_plain("head", text.data, 80 * 21);
    write_plain("tail", text.data + 80 * 21, 20 * 21);
    free(text.data);
    run(NULL, "encode --tokenizer tok --out head head");
    run(NULL, "encode --tokenizer tok --out tail tail");
    int bad = 0;
    for (int chunk = 1; chunk <= 2000; chunk += 1 + chunk / 3) {
        bad += run(NULL, "encode --tokenizer tok --val-fraction 0.19%d --threads %d "
                   "--chunk-bytes %d --overwrite --out one whole", chunk % 8 + 1, chunk % 3 + 1,
                   chunk) != 0;
        bad += !same_files("head_000000.bin", "one_000000.bin");
        bad += !same_files("tail_000000.bin", "val_one_000000.bin");
    }
    check(!bad, "--val-fraction of one document: its last lines (%d differ)", bad);
    text = (struct Buffer){0};
    for (int i = 0; i < 1000; i++) append(&text, "%sword%d", i ? " " : "A title\n\n", i % 10);
    write_plain("whole", text.data, text.size);
    write_plain("head", text.data, 9 + 799 * 6 + 5);
    write_plain("tail", text.data + 9 + 799 * 6 + 5, 200 * 6);
    free(text.data);
    for (int i = 0; i < 2; i++) run(NULL, "encode --tokenizer tok --overwrite --out %s %s",
                                    i ? "head" : "tail", i ? "head" : "tail");
    run(NULL, "encode --tokenizer tok --val-fraction 0.199 --overwrite --out one whole");
    check(same_files("head_000000.bin", "one_000000.bin")
          && same_files("tail_000000.bin", "val_one_000000.bin"),
          "of a document without line ends near the place: its last words");
    const char *verse = "\u957f\u6068\u6b4c\u6c49\u7687\u91cd\u8272\n\u601d\u503e\u56fd\u5fa1";
    write_plain("whole", verse, strlen(verse));
    run(NULL, "encode --tokenizer tok --val-fraction 0.01 --overwrite --out one whole");
    run(NULL, "decode --tokenizer tok val_one_000000.bin");
    struct Buffer out = read_plain("out");
    check(!strcmp(out.data, strchr(verse, '\n') + 1), "of a short one its last line");
    free(out.data);
    write_plain("whole", "one-line", 8);
    expect_error(1, "of 1 document, none is",
                 "encode --tokenizer tok --val-fraction 0.2 --out n whole");
}

/* Texts that are probably not what was meant: some are refused, of marks a message speaks. */
static void test_other_kinds(void)
{
    static const char tar[512] = {'a', [257] = 'u', 's', 't', 'a', 'r'};
    static const struct { const char *bytes; size_t n; const char *says; } kinds[] = {
        {"\xFF\xFEt\0e\0", 6, "iconv -f UTF-16 -t UTF-8"}, {"\xFE\xFF\0t", 4, "iconv -f UTF-16 "},
        {"t\0e\0x\0t\0", 8, "iconv -f UTF-16LE "}, {"\0t\0e\0x\0t\0", 9, "iconv -f UTF-16BE "},
        {"\xFF\xFE\0\0t\0\0\0", 8, "iconv -f UTF-32 "},
        {"\x1F\x8B\x08\0", 4, "gzip -d"}, {"\x28\xB5\x2F\xFD\x04", 5, "zstd -d"},
        {"BZh91AY&SY..", 12, "bzip2 -d"}, {"\xFD" "7zXZ\0\0", 7, "xz -d"},
        {"PK\3\4\24\0", 6, ".docx"}, {"%PDF-1.7\n", 9, "pdftotext"},
        {"\xD0\xCF\x11\xE0\xA1", 5, "Excel"}, {"PAR1\x15\4", 6, "read_parquet"},
        {"ARROW1\0\0", 8, "an Arrow file"}, {"\x80\4\x95\1", 4, "a pickle"},
        {"\x80\5}q", 4, "a pickle"}, {"\x40\3\0\0\0\0\0\0{\"__", 11, "a safetensors file"},
        {"version https://git-lfs.github.com/spec/v1\n", 43, "git lfs pull"},
        {tar, sizeof tar, "tar -xf"}};
    for (int i = 0; i < COUNT(kinds); i++) {
        write_plain("kind", kinds[i].bytes, kinds[i].n);
        expect_error(1, kinds[i].says, i % 2 ? "train --vocab 300 --out n text kind"
                                             : "encode --tokenizer tok --out n text kind");
    }
    expect_error(1, "a token shard", "encode --tokenizer tok --out n r_000000.bin");
    check(run("r_000000.bin", "ids --tokenizer tok") == 1, "standard input is no token shard");
    write_plain("kind", "BZh? PK, a\0b\0c\0d", 17);
    check(run(NULL, "encode --tokenizer tok --overwrite --out a kind") == 0,
          "other texts are not refused");

    static const char *const hinted[] = {"file", "lines", "jsonl", "eot"};
    const char *marks = "{\"text\": \"a\"}\n{\"text\": \"<|endoftext|> <|endoftext|>\"}";
    write_plain("mark", marks, strlen(marks));
    for (int s = 0; s < 4; s++)
        for (int train = 0; train < 2; train++) {
            const int status = run(NULL, "%s --overwrite --chunk-bytes 3 --split %s mark",
                train ? "train --out mark_tok --vocab 300" : "encode --tokenizer tok --out a",
                hinted[s]);
            struct Buffer err = read_plain("err");
            const char *hint = strstr(err.data, "mark: holds <|endoftext|> as ordinary text");
            const bool once = hint && !strstr(hint + 7, "holds <|endoftext|>")
                           && strstr(hint, "--split eot");
            check(!status && (s < 3 ? once : !hint),
                  "%s --split %s: %s", train ? "train" : "encode", hinted[s],
                  s < 3 ? "says once that marks are not cut at" : "no hint");
            free(err.data);
        }
}

/* What is said once of a file that is read as it is, though it is probably not what was meant. */
static void test_hints(void)
{
    static const struct { const char *name, *text, *split, *says; } files[] = {
        {"latin", "caf\xE9 na\xEFve \xC3\xA9 \x80", "lines", "latin: not UTF-8: 3 bytes,"},
        {"gbk", "a\n\xC4\xE3\n", "file", "gbk: not UTF-8: 2 bytes,"},
        {"one", "a \xFF", "eot", "one: not UTF-8: 1 byte,"},
        {"utf8", "caf\xC3\xA9 { \"a\"}", "lines", NULL},
        {"json", "{\"text\": \"a\"}\n", "lines", "json: looks like JSON"},
        {"json", "{\"text\": \"a\"}\n", "jsonl", NULL},
        {"t.csv", "text,label\na,1\n", "lines", "t.csv: looks like a table"}};
    for (int i = 0; i < COUNT(files); i++)
        for (int train = 0; train < 2; train++) {
            write_plain(files[i].name, files[i].text, strlen(files[i].text));
            const int status = run(NULL, "%s --overwrite --threads 2 --chunk-bytes 3 --split %s %s",
                train ? "train --out hint_tok --vocab 300" : "encode --tokenizer tok --out a",
                files[i].split, files[i].name);
            struct Buffer err = read_plain("err");
            const char *hint = strstr(err.data, files[i].says ? files[i].says : "tokenizer: utf8"),
                       *other = files[i].says ? NULL : strstr(err.data, "json: looks");
            check(!status && (files[i].says ? hint && !strstr(hint + 1, files[i].says)
                                            : !hint && !other),
                  "%s --split %s %s: %s", train ? "train" : "encode", files[i].split,
                  files[i].name, files[i].says ? files[i].says : "nothing is said");
            free(err.data);
        }
}

/* What killed processes left of a set is removed, what others write is not. */
static void test_leftovers(void)
{
    static const struct { const char *name; bool stays; } files[] = {
        {"l_000000.bin.unfinished", false}, {"l_000005.bin.unfinished", false},
        {"val_l_000000.bin.unfinished", true}, {"ll_000000.bin.unfinished", true},
        {"l_0000005.bin.unfinished", true}, {"l_000001.bin.unfinished.x", true},
        {"l_00000a.bin.unfinished", true}, {"l_000001.txt", true}};
    for (int i = 0; i < COUNT(files); i++) write_plain(files[i].name, "left", 4);
    check(run(NULL, "encode --tokenizer tok --out l text") == 0, "encode ends well");
    for (int i = 0; i < COUNT(files); i++)
        check(file_exists(in_directory(files[i].name)) == files[i].stays, "%s: %s", files[i].name,
              files[i].stays ? "stays" : "is gone");
    run(NULL, "encode --tokenizer tok --overwrite --shard-tokens 7 --out l text");
    check(file_exists(in_directory("l_000011.bin")), "a set of many shards");
    expect_error(1, ".bin: exists", "encode --tokenizer tok --out l text");
    check(run(NULL, "encode --tokenizer tok --overwrite --out l text") == 0
          && file_exists(in_directory("l_000000.bin")) && !file_exists(in_directory("l_000001.bin"))
          && !file_exists(in_directory("l_000011.bin")), "the set after it has one");
    expect_error(1, "too many shards. Give a larger --shard-tokens",
                 "encode --tokenizer tok --shard-tokens 1 --out k random");
    check(!file_exists(in_directory("k_000000.bin.unfinished")), "what fails leaves nothing");
}

/* Two processes cannot write one set. */
static void test_one_writer(void)
{
    const int fd = open_locked(in_directory("w_000000.bin.unfinished"), O_RDWR | O_CREAT);
    expect_error(1, "w_000000.bin.unfinished: another program is writing there",
                 "encode --tokenizer tok --out w text");
    expect_error(1, "w_000000.bin.unfinished: another program is writing there",
                 "encode --tokenizer tok --overwrite --out w text");
    close(fd);
    check(run(NULL, "encode --tokenizer tok --out w text") == 0, "one after the other can");
}

static void test_lossless(void)
{
    const size_t n = 1 << 20;
    uint8_t *bytes = resize(NULL, n);
    struct Random r = random_stream(5, 0);
    for (size_t i = 0; i < n; i++) bytes[i] = i < 256 ? (uint8_t)i : (uint8_t)random_below(&r, 256);
    write_plain("random", bytes, n);
    int status = run(NULL, "encode --tokenizer tok --out r random");
    status |= run(NULL, "decode --tokenizer tok r_000000.bin");
    check(!status && same_files("random", "out"),
          "a megabyte of random bytes comes back as it was");
    write_plain("empty", "", 0);
    expect_error(1, "no document in the input", "encode --tokenizer tok --out e empty");
    free(bytes);
}

static void test_looking(struct Tokenizer *t)
{
    struct Buffer out, want = {0};
    int ids[8];
    write_plain("in", "a  <|endoftext|>  b", 19);
    run("in", "ids --tokenizer tok --special");
    out = read_plain("out");
    for (int i = 0, n = tokenizer_encode(t, "a  ", 3, ids); i < n; i++)
        append(&want, "%d ", ids[i]);
    append(&want, "%d", t->eot);
    for (int i = 0, n = tokenizer_encode(t, "  b", 3, ids); i < n; i++)
        append(&want, " %d", ids[i]);
    append(&want, "\n");
    check(!strcmp(out.data, want.data), "ids --special: a mark ends the text before it");
    free(out.data);
    run("in", "ids --tokenizer tok");
    out = read_plain("out");
    char eot[16];
    snprintf(eot, sizeof eot, " %d ", t->eot);
    check(!strstr(out.data, eot) && strchr(out.data, '\n') == out.data + out.size - 1,
          "ids: without it, the mark is text");
    free(out.data);
    check(run(NULL, "show --tokenizer tok film") == 0, "show runs");
    out = read_plain("out");
    check(strstr(out.data, "bytes per token") != NULL, "and prints bytes per token");
    free(out.data);
    free(want.data);
}

/* --- Errors --- */

/* The status of a child, and whether it says `part` in the file err. */
static int status_of(pid_t child, const char *part, bool *says)
{
    int status = 0;
    waitpid(child, &status, 0);
    struct Buffer err = read_plain("err");
    *says = strstr(err.data, part) != NULL;
    free(err.data);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Loads the tokenizer "tok" for a model, in a child. Its status, and whether it says `part`. */
static int status_of_model(int vocabulary, const char *hash, const char *part, bool *says)
{
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        struct Json meta = {0};
        if (hash) metadata_set(&meta, "tokenizer_hash", "%s", hash);
        if (!freopen(in_directory("err"), "wb", stderr)) _exit(99);
        struct Model model = {.config.vocabulary = vocabulary};
        tokenizer_of_model(in_directory("tok"), &model, &meta);
        exit(0);
    }
    return status_of(child, part, says);
}

/* A text of a gigabyte is refused before it is read. */
static void test_huge_text(struct Tokenizer *t)
{
    for (int special = 0; special < 2; special++) {
        struct Buffer text = {.data = (char *)"", .size = INT_MAX / 2};
        bool says;
        int count;
        fflush(stdout);
        const pid_t child = fork();
        if (child == 0) {
            if (!freopen(in_directory("err"), "wb", stderr)) _exit(99);
            if (special) ids_of_text(t, text, true, &count);
            else tokenizer_encode(t, text.data, text.size, NULL);
            exit(0);
        }
        check(status_of(child, "a text of 1.1 GB is too long", &says) == 1 && says,
              "a text of 1.1 GB is refused%s", special ? ", with <|endoftext|> as a token" : "");
    }
}

/* A file that becomes shorter while it is read gives an error, not the shards of a part of it. */
static void test_changed_text(void)
{
    char *path = text_of("%s/changed", directory);
    struct Chunk chunks[BATCH];
    bool says;
    write_plain("changed", SAMPLE, strlen(SAMPLE));
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        if (!freopen(in_directory("err"), "wb", stderr)) _exit(99);
        chunk_bytes = 1;                        /* a window of 65 bytes */
        struct Source source = source_open(&path, 1, "lines", "text");
        if (!next_chunks(&source, chunks, "reading") || truncate(path, 100)) _exit(99);
        while (next_chunks(&source, chunks, "reading")) ;
        exit(0);
    }
    check(status_of(child, "was cut or rewritten while it was in use", &says) == 1 && says,
          "a text that is cut while it is read is refused");
    free(path);
}

static void test_model_directory(const struct Tokenizer *t)
{
    const char *hash = hash_text(t->hash), *no = "is not the tokenizer that the model was trained";
    const int V = t->vocabulary;
    bool silent, says;
    check(!status_of_model(V, hash, "", &silent) && !status_of_model(V + 47, NULL, "", &silent),
          "a model's tokenizer: the same hash, or none, and a padded vocabulary are accepted");
    check(status_of_model(V, "0123456789abcdef", no, &says) == 1 && says,
          "another hash is refused");
    check(status_of_model(V - 1, hash, "the model only", &says) == 1 && says,
          "a vocabulary that is too small is refused");
}

static void test_shard_errors(void)
{
    struct Buffer shard = read_plain("r_000000.bin");
    write_plain("cut.bin", shard.data, shard.size - 10);
    expect_error(1, "cut.bin: 10 bytes fewer", "decode --tokenizer tok cut.bin");
    append_bytes(&shard, "", 1);
    write_plain("long.bin", shard.data, shard.size--);
    expect_error(1, "long.bin: 1 byte more", "decode --tokenizer tok long.bin");
    write_plain("short.bin", shard.data, 100);
    expect_error(1, "short.bin: not a token shard", "decode --tokenizer tok short.bin");
    shard.data[1024 + 2 * 7] = shard.data[1024 + 2 * 7 + 1] = (char)0xFF;
    write_plain("id.bin", shard.data, shard.size);
    expect_error(1, "id.bin: holds token 65535, but the tokenizer has only",
                 "decode --tokenizer tok id.bin");
    shard.data[0]++;
    write_plain("magic.bin", shard.data, shard.size);
    expect_error(1, "magic.bin: not a token shard", "decode --tokenizer tok magic.bin");
    shard.data[0]--;
    shard.data[16]++;
    write_plain("other.bin", shard.data, shard.size);
    expect_error(1, "other.bin: made by another tokenizer", "decode --tokenizer tok other.bin");
    memset(shard.data + 16, 0, 8);
    write_plain("unknown.bin", shard.data, shard.size);
    expect_error(1, "unknown.bin: holds token 65535", "decode --tokenizer tok unknown.bin");
    shard.data[4] = 2;
    write_plain("version.bin", shard.data, shard.size);
    expect_error(1, "version.bin: not a token shard of version 1",
                 "decode --tokenizer tok version.bin");
    free(shard.data);
}

static void test_errors(void)
{
    static const struct { const char *merges, *says; } bad[] = {
        {"#version: 0.2\nt h\nth\n", "line 3"}, {"#version: 0.2\nt h\nth e\nth e\n", "line 4"},
        {"#version: 0.2\nt h\nhe r\n", "line 3: \"he r\" is not two tokens"},
            {"#version: 0.2\nt h x\n", "line 2"},
        {"#version: 0.2\nt \xE2\x82\xAC\n", "line 2: \"t \xE2\x82\xAC\" is not two tokens"},
            {"#version: 0.2\nt \xFF\n", "line 2: \"t ?\" is not two tokens"},
        {"a b\nb c\na bc\nab c\n", "line 4: \"ab c\" makes a token that a line before makes"},
            {"#version: 0.2\n\nt h\n", "line 2"}};
    for (int i = 0; i < COUNT(bad); i++) {
        write_plain("bad.txt", bad[i].merges, strlen(bad[i].merges));
        expect_error(1, bad[i].says, "ids --tokenizer bad.txt");
    }
    static const char json[] = "{\"pre_tokenizer\": {\"type\": \"ByteLevel\", "
        "\"add_prefix_space\": false}, \"model\": {\"vocab\": {}, \"merges\": [\"t h\", \"thx\"]}}";
    write_plain("bad.json", json, sizeof json - 1);
    expect_error(1, "bad.json, as merges.txt: line 3", "ids --tokenizer bad.json");
    struct Buffer many = {0};
    static const char *const letters_64 =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int i = 0; i < 64 * 64; i++)
        append(&many, "%c %c\n", letters_64[i / 64], letters_64[i % 64]);
    for (int i = 0; i < 64 * 64 * 16; i++)
        append(&many, "%c%c %c\n", letters_64[i / 64 % 64], letters_64[i % 64],
               letters_64[i / 4096]);
    write_plain("many.txt", many.data, many.size);
    expect_error(1, "a shard has at most 65536 tokens", "ids --tokenizer many.txt");
    free(many.data);

    expect_error(2, "--overwrite", "train --vocab 300 --out tok text");
    expect_error(1, "--overwrite", "encode --tokenizer tok --out r random");
    expect_error(1, "nowhere", "train --vocab 300 --out never nowhere");
    expect_error(1, "nowhere", "encode --tokenizer tok --out never/n nowhere");
    check(!file_exists("never"), "a text that is not there: no directory is made");
    expect_error(1, "nowhere", "encode --tokenizer nowhere --out n text");
    expect_error(1, "set aside", "encode --tokenizer tok --val-fraction 1e-9 --split lines "
                 "--out n text");
    expect_error(2, "--vocab", "train --vocab 12 --out n text");
    expect_error(2, "--special", "train --special <|a|> --out n text");
    expect_error(2, "--special", "encode --tokenizer tok --special --out n text");
    expect_error(0, "--text-field: has no effect with --split file",
                 "encode --tokenizer tok --text-field body --overwrite --out a text");
    expect_error(0, "--seed: has no effect without --val-fraction",
                 "encode --tokenizer tok --seed 3 --overwrite --out a text");
    expect_error(0, "--seed: has no effect with one document",
                 "encode --tokenizer tok --seed 3 --val-fraction 0.2 --overwrite --out a text");
    expect_error(2, "--tokenizer", "ids");
    expect_error(2, "one TEXT is expected", "ids --tokenizer tok two texts");
    expect_error(2, "no such subcommand", "tokenise");
    expect_error(2, "not one of", "encode --tokenizer tok --out n --split words text");
    struct Buffer none = read_plain("n_000000.bin");
    check(!none.size && !file_exists(in_directory("n/merges.txt")),
          "what fails leaves no file under its name");
    free(none.data);
}

/* --- GPT-2's own vocabulary, if the environment names it --- */

static void test_gpt2(const char *path)
{
    static const struct { const char *text, *ids; } cases[] = {
        {"   a", "220 220 257"}, {"a  \n b", "64 220 220 198 275"}, {"\n\n\nx", "628 198 87"},
            {"\r\nx", "201 198 87"},
        {"I'm we'LL I'Ll 's", "40 1101 356 6 3069 314 6 43 75 705 82"}, {"''s", "7061 82"},
            {"x'", "87 6"},
        {"don\xE2\x80\x99t", "9099 447 247 83"}, {"123456 7", "10163 29228 767"},
        {"x\xC2\xB2 \xE2\x85\xA7 \xD9\xA3", "87 31185 2343 227 100 18923 96"},
            {" \xC2\xA0x", "220 1849 87"},
        {"\xE3\x80\x80x", "5099 222 87"}, {"a\xE2\x80\x8B" "b", "64 9525 65"},
            {"\xEF\xBB\xBFHi", "171 119 123 17250"},
        {"\xE4\xBD\xA0\xE5\xA5\xBD\xE4\xB8\x96\xE7\x95\x8C",
         "19526 254 25001 121 10310 244 45911 234"},
        {"e\xCC\x81", "68 136 223"}, {"!!!???", "10185 28358"}, {" \xEF\xBF\xBD", "20543"},
        {"<|endoftext|", "27 91 437 1659 5239 91"}, {"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
         "24794 24794 24794 24794 24794 24794 24794 24794"}};
    struct Tokenizer *t = tokenizer_load(path);
    int bad = 0, ids[64];
    for (int i = 0; i < COUNT(cases); i++) {
        struct Buffer got = {0};
        const int n = tokenizer_encode(t, cases[i].text, strlen(cases[i].text), ids);
        for (int k = 0; k < n; k++) append(&got, "%s%d", k ? " " : "", ids[k]);
        bad += strcmp(got.data, cases[i].ids) != 0;
        free(got.data);
    }
    check(t->vocabulary == 50257 && !bad, "GPT-2's ids of %d edge cases (%d differ)", COUNT(cases),
          bad);
}

int main(int argc, char **argv)
{
    (void)argc;
    begin_program("test_tokenizer", argv);  /* here, lest tokenizer_main starts it anew */
    if (!mkdtemp(directory)) die("%s: cannot be made.", directory);
    write_plain("text", SAMPLE, strlen(SAMPLE));
    check(run(NULL, "train --vocab 557 --min-frequency 1 --out tok text") == 0, "train runs");
    struct Tokenizer *t = tokenizer_load(in_directory("tok"));
    test_classes();
    test_pieces();
    test_encoding(t);
    test_files(t);
    test_json_files(t);
    test_foreign_config();
    test_suffix(t);
    test_foreign_order(t);
    test_heap();
    test_training(t);
    test_model_directory(t);
    test_huge_text(t);
    test_changed_text();
    test_documents();
    test_windows();
    test_shards(t);
    test_lossless();
    test_leftovers();
    test_one_writer();
    test_json_lines();
    test_json_errors();
    test_end_set_aside();
    test_other_kinds();
    test_hints();
    test_looking(t);
    test_shard_errors();
    test_errors();
    if (getenv("GPT2_VOCAB")) test_gpt2(getenv("GPT2_VOCAB"));
    char *remove_all = text_of("rm -r %s", directory);
    if (system(remove_all)) printf("%s is left behind\n", directory);
    free(remove_all);
    return report();
}
