/* tokenizer.c: byte-level byte-pair encoding, GPT-2's tokenizer: train, encode, decode, look at.
 *
 *    cc -O3 -march=native -fopenmp tokenizer.c -o tokenizer -lm        (-fopenmp may be left out)
 *
 *    1  Characters    UTF-8 and the three classes of Unicode 16 that matter
 *    2  Pieces        where GPT-2's regular expression cuts a text
 *    3  Vocabulary    merges.txt and vocab.json
 *    4  Encoding      one piece, by merges; the cache of words; whole texts
 *    5  Documents     files, cut into documents for the model and into chunks for the threads
 *    6  Training      counting words, then merging the most frequent pair again and again
 *    7  Shards        what the training program reads
 *    8  Commands      train, encode, decode, ids, show, stats
 *
 * The idea (Gage 1994; Sennrich, Haddow, Birch 2016; Radford et al. 2019). Every byte is a
 * token; a merge (a, b) makes the token ab. A text is first cut into pieces, roughly words with
 * the space before them, and no token crosses a cut. Within a piece, the earliest merge of the
 * list that applies is applied, until none does. Training finds the list: count the pairs of
 * neighbours in all pieces, merge the most frequent pair everywhere, count again. With the
 * merges (l, o), (Ġ, lo),
 *
 *    "so low"  ->  pieces "so", " low"  ->  s o  Ġ l o w  ->  s o  Ġ lo w  ->  s o  Ġlo w
 *
 * where Ġ is how the file writes a space. Any bytes can be encoded, and decoding gives them
 * back.
 *
 * Ids follow from the list alone: 256 bytes in GPT-2's order, merge number r as 256 + r, special
 * tokens last, <|endoftext|> the very last. With GPT-2's own list the ids are GPT-2's.
 *
 * Another program includes this file after `#define TOKENIZER_NO_MAIN` and gets sections 1 to 4:
 * tokenizer_load, tokenizer_encode, tokenizer_piece, tokenizer_save. */

#include "model.h"
#include "data/unicode_classes.h"
#include <limits.h>

/* ============================================================================================= */
/* 1. Characters                                                                                 */
/* ============================================================================================= */

enum { OTHER, LETTER, NUMBER, SPACE };      /* \p{L}, \p{N}, \s = White_Space, and the rest */

/* The table that CLASS_RUNS becomes: a code point's block of 256, then two bits within the block.
 * Blocks that are alike are stored once, which leaves 133 of 4,352: 13 KB instead of 278. */
enum { CODE_POINTS = 0x110000, BLOCKS = CODE_POINTS / 256, DISTINCT_BLOCKS = 133 };
static uint8_t block_of[BLOCKS], block_classes[DISTINCT_BLOCKS][64];
static uint8_t byte_class[256];             /* the class of an ASCII character; else NOT_ASCII */
enum { NOT_ASCII = 4 };

static int code_point_class(uint32_t c)
{
    return block_classes[block_of[c >> 8]][c >> 2 & 63] >> 2 * (c & 3) & 3;
}

/* Must have run before any other function of sections 1, 2 and 4. */
static void prepare_classes(void)
{
    int blocks = 0;
    size_t run = 0;
    const size_t runs = sizeof CLASS_RUNS / sizeof *CLASS_RUNS;
    uint32_t left = CLASS_RUNS[0] / 4;
    if (byte_class[255] == NOT_ASCII) return;
    for (int b = 0; b < BLOCKS; b++) {
        uint8_t block[64] = {0};
        for (int i = 0; i < 256 && run < runs; i++) {
            block[i / 4] |= (CLASS_RUNS[run] & 3) << 2 * (i & 3);
            if (--left == 0 && ++run < runs) left = CLASS_RUNS[run] / 4;
        }
        int same = 0;
        while (same < blocks && memcmp(block, block_classes[same], 64)) same++;
        if (same == blocks) memcpy(block_classes[blocks++], block, 64);
        block_of[b] = (uint8_t)same;
    }
    for (int c = 0; c < 256; c++) byte_class[c] = c < 128 ? code_point_class(c) : NOT_ASCII;
}

/* The class of the character at p < end and its number of bytes. A byte that is not part of
 * valid UTF-8 (RFC 3629: no overlong form, no surrogate, nothing above U+10FFFF) is one
 * character of class OTHER. */
static int utf8_class(const uint8_t *p, const uint8_t *end, int *length)
{
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    const int n = *p < 0xC2 ? 1 : *p < 0xE0 ? 2 : *p < 0xF0 ? 3 : *p < 0xF5 ? 4 : 1;
    uint32_t c = *p & (0xFF >> (n + 1));
    *length = 1;
    if (n == 1 || end - p < n) return OTHER;
    for (int i = 1; i < n; i++) {
        if ((p[i] & 0xC0) != 0x80) return OTHER;
        c = c << 6 | (p[i] & 0x3F);
    }
    if (c < least[n] || c >= CODE_POINTS || (c >= 0xD800 && c < 0xE000)) return OTHER;
    *length = n;
    return code_point_class(c);
}

static inline int class_at(const uint8_t *p, const uint8_t *end, int *length)
{
    *length = 1;
    return *p < 128 ? byte_class[*p] : utf8_class(p, end, length);
}

/* ============================================================================================= */
/* 2. Pieces                                                                                     */
/* ============================================================================================= */

/* The end of the piece that begins at p, where the text goes on to `end`: the first match of
 *
 *    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *
 * A space before a word belongs to it; of several, the last one does, and the rest are a piece:
 * "a   b" gives "a", "  ", " b". At the end of the text a run of white space stays whole. */
static const uint8_t *plain_piece_end(const uint8_t *p, const uint8_t *end)
{
    int n, ahead;
    if (*p == '\'' && end - p > 1) {
        if (p[1] == 's' || p[1] == 't' || p[1] == 'm' || p[1] == 'd') return p + 2;
        if (end - p > 2 && (!memcmp(p + 1, "re", 2) || !memcmp(p + 1, "ve", 2)
                            || !memcmp(p + 1, "ll", 2)))
            return p + 3;
    }
    const uint8_t *q = p;
    int class = class_at(q, end, &n);
    if (*p == ' ' && end - p > 1 && class_at(p + 1, end, &ahead) != SPACE)
        class = class_at(++q, end, &n);
    if (class != SPACE) {
        do q += n; while (q < end && class_at(q, end, &n) == class);
        return q;
    }
    const uint8_t *last = q;
    do { last = q; q += n; } while (q < end && class_at(q, end, &n) == SPACE);
    return q < end && last > p ? last : q;
}

/* The first 16 bytes at p as two numbers, the byte at p lowest. */
struct Pair64 { uint64_t low, high; };

static inline struct Pair64 load16(const uint8_t *p)
{
    struct Pair64 x;
    memcpy(&x, p, sizeof x);
    return x;
}

/* Bit i tells whether the byte p[i] is an ASCII letter, i < 16. */
static inline unsigned letter_mask(const uint8_t *p)
{
#ifdef __SSE2__
    typedef uint8_t bytes16 __attribute__((vector_size(16)));
    typedef char chars16 __attribute__((vector_size(16)));
    bytes16 x;
    memcpy(&x, p, sizeof x);
    return (unsigned)__builtin_ia32_pmovmskb128((chars16)((x | 32) - 'a' < 26));
#else
    /* In each byte, adding 0x1F to a lower-case letter, or 0x05 to what lies above z, reaches
     * the top bit and goes no further; the product gathers the eight top bits. */
    const uint64_t each = 0x0101010101010101u, part[2] = {load16(p).low, load16(p).high};
    unsigned mask = 0;
    for (int i = 0; i < 2; i++) {
        const uint64_t y = (part[i] | 0x20 * each) & 0x7F * each;
        const uint64_t top = (y + 0x1F * each) & ~(y + 0x05 * each) & ~part[i] & 0x80 * each;
        mask |= (unsigned)((top >> 7) * 0x0102040810204080u >> 56) << 8 * i;
    }
    return mask;
#endif
}

/* The same as plain_piece_end, faster for an optional space and up to 15 ASCII letters, which
 * nine pieces in ten of English are: 16 bytes are looked at in one step, and no branch depends
 * on the length. Bytes up to `readable` may be looked at; the one at `end`, if end < readable,
 * is no letter. */
static inline const uint8_t *piece_end(const uint8_t *p, const uint8_t *end,
                                       const uint8_t *readable)
{
    if (readable - p >= 16) {
        const unsigned space = *p == ' ';
        const unsigned n = (unsigned)__builtin_ctz(~(letter_mask(p) | space));
        if (n > space && n < 16 && p[n] < 128) return p + n;
    }
    return plain_piece_end(p, end);
}

/* ============================================================================================= */
/* 3. Vocabulary                                                                                 */
/* ============================================================================================= */

enum { BYTES = 256, MAX_VOCABULARY = 65536, MAX_TOKEN_BYTES = 65535 };
static const char *const END_OF_TEXT = "<|endoftext|>";
enum { END_OF_TEXT_BYTES = 13 };

/* Pairs of tokens -> the token that they make. Open addressing; a slot is pair << 32 | id + 1, 0
 * when empty, and at most half of the slots are taken. */
struct PairTable { uint64_t *slots; int bits; };

struct Tokenizer {
    int vocabulary;             /* 256 + merges + special tokens */
    int eot;                    /* the id of <|endoftext|>: vocabulary - 1 */
    uint64_t hash;              /* of the merges and special tokens: equal if all ids are equal */
    int merges;
    uint16_t (*parts)[2];       /* (merges): token 256 + r is these two, one after the other */
    struct PairTable pairs;
    uint8_t *bytes;             /* all tokens, one after the other, in the order of their ids */
    uint32_t *offset;           /* (vocabulary + 1) into bytes, after which 16 may be read */
    size_t room;                /* of bytes */
    struct Encoder *encoder;    /* tokenizer_encode's own */
};

/* GPT-2 numbers the bytes by how its files write them: first those that are visible characters of
 * Latin-1, then the others, 0-32, 127-160 and 173, which stand as U+0100, U+0101, ... */
static uint8_t byte_of_id[BYTES], id_of_byte[BYTES];

static bool visible(int byte)
{
    return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
}

static void prepare_bytes(void)
{
    int id = 0;
    for (int pass = 0; pass < 2; pass++)
        for (int byte = 0; byte < BYTES; byte++)
            if (visible(byte) == !pass) {
                byte_of_id[id] = (uint8_t)byte;
                id_of_byte[byte] = (uint8_t)id++;
            }
}

enum { VISIBLE = 188 };         /* the number of bytes that are visible */

/* The code point that stands for a byte, and back (-1 if none). */
static uint32_t symbol_of_byte(uint8_t byte)
{
    return visible(byte) ? byte : 0x100 + (uint32_t)id_of_byte[byte] - VISIBLE;
}

static int byte_of_symbol(uint32_t c)
{
    if (c < BYTES) return visible((int)c) ? (int)c : -1;
    return c < 0x100 + BYTES - VISIBLE ? byte_of_id[c - 0x100 + VISIBLE] : -1;
}

static const uint8_t *tokenizer_piece(const struct Tokenizer *t, int id, int *length)
{
    *length = (int)(t->offset[id + 1] - t->offset[id]);
    return t->bytes + t->offset[id];
}

/* --- Pairs --- */

static inline size_t pair_slot(const struct PairTable *table, uint32_t pair)
{
    return (size_t)(pair * 0x9E3779B97F4A7C15u >> (64 - table->bits));
}

/* What stands for the pair, or -1. */
static inline int pair_find(const struct PairTable *table, uint32_t pair)
{
    const size_t mask = ((size_t)1 << table->bits) - 1;
    for (size_t i = pair_slot(table, pair); table->slots[i]; i = (i + 1) & mask)
        if (table->slots[i] >> 32 == pair) return (int)(uint32_t)table->slots[i] - 1;
    return -1;
}

/* The pair must be new, and there must be room. */
static void pair_add(struct PairTable *table, uint32_t pair, int value)
{
    const size_t mask = ((size_t)1 << table->bits) - 1;
    size_t i = pair_slot(table, pair);
    while (table->slots[i]) i = (i + 1) & mask;
    table->slots[i] = (uint64_t)pair << 32 | (uint32_t)(value + 1);
}

static struct PairTable pair_table(int bits)
{
    return (struct PairTable){allocate_zeroed(sizeof(uint64_t) << bits), bits};
}

static inline uint32_t pair_of(int a, int b) { return (uint32_t)a << 16 | (uint32_t)b; }

static inline int merged(const struct Tokenizer *t, int a, int b)
{
    return pair_find(&t->pairs, pair_of(a, b));
}

/* --- Making a vocabulary --- */

/* A tokenizer of the 256 bytes, with room for `merges` more tokens. */
static struct Tokenizer *tokenizer_new(int merges)
{
    struct Tokenizer *t = resize(NULL, sizeof *t);
    *t = (struct Tokenizer){.vocabulary = BYTES};
    int bits = 10;
    while ((1 << bits) < 2 * merges) bits++;
    prepare_classes();
    prepare_bytes();
    t->pairs = pair_table(bits);
    t->parts = resize(NULL, (size_t)merges * sizeof *t->parts);
    t->offset = resize(NULL, ((size_t)MAX_VOCABULARY + 1) * sizeof *t->offset);
    t->bytes = resize(NULL, t->room = BYTES + 16);
    memcpy(t->bytes, byte_of_id, BYTES);
    for (int i = 0; i <= BYTES; i++) t->offset[i] = i;
    return t;
}

/* The room for the n bytes of one more token, whose id is the old t->vocabulary. */
static uint8_t *add_token(struct Tokenizer *t, size_t n)
{
    const size_t size = t->offset[t->vocabulary];
    if (size + n + 16 > t->room) t->bytes = resize(t->bytes, t->room = 2 * (size + n + 16));
    t->offset[++t->vocabulary] = (uint32_t)(size + n);
    return t->bytes + size;
}

/* Appends the token that is a and b, one after the other, and returns its id. */
static int add_merge(struct Tokenizer *t, int a, int b)
{
    const uint32_t *at = t->offset, a_bytes = at[a + 1] - at[a], b_bytes = at[b + 1] - at[b];
    const int id = t->vocabulary;
    uint8_t *bytes = add_token(t, a_bytes + b_bytes);
    memcpy(bytes, t->bytes + at[a], a_bytes);
    memcpy(bytes + a_bytes, t->bytes + at[b], b_bytes);
    t->parts[t->merges][0] = (uint16_t)a;
    t->parts[t->merges++][1] = (uint16_t)b;
    pair_add(&t->pairs, pair_of(a, b), id);
    return id;
}

/* Adds the special tokens, `specials` separated by spaces and <|endoftext|>, and closes the
 * vocabulary. */
static void add_specials(struct Tokenizer *t, const char *specials)
{
    struct Buffer all = {0};
    append(&all, "%s %s", specials, END_OF_TEXT);
    t->hash = 0xCBF29CE484222325u;          /* FNV-1a (Fowler, Noll, Vo), over 32 bits at a time */
    for (int r = 0; r < t->merges; r++)
        t->hash = (t->hash ^ pair_of(t->parts[r][0], t->parts[r][1])) * 0x100000001B3u;
    for (char *word = strtok(all.data, " "); word; word = strtok(NULL, " ")) {
        if (t->vocabulary == MAX_VOCABULARY)
            die("more than %d tokens with the special ones. Use fewer.", MAX_VOCABULARY);
        t->eot = t->vocabulary;
        memcpy(add_token(t, strlen(word)), word, strlen(word));
        for (char *s = word; *s; s++) t->hash = (t->hash ^ (uint8_t)*s) * 0x100000001B3u;
    }
    free(all.data);
}

/* --- Reading merges.txt: "#version: 0.2", then a merge a line, "Ġ lo" --- */

/* Byte strings -> ids, while a file is read. Open addressing over id + 1. */
struct Names { const struct Tokenizer *tokenizer; uint32_t *slots; size_t mask; };

static uint64_t hash_bytes(const uint8_t *bytes, size_t n)
{
    uint64_t h = n;
    for (size_t i = 0; i < n; i++) h = (h ^ bytes[i]) * 0x9E3779B97F4A7C15u, h ^= h >> 29;
    return h;
}

/* The id of the token with these bytes, or -1. `slot` is where it is or belongs. */
static int name_find(const struct Names *names, const uint8_t *bytes, size_t n, size_t *slot)
{
    size_t i = hash_bytes(bytes, n) & names->mask;
    for (; names->slots[i]; i = (i + 1) & names->mask) {
        int length, id = (int)names->slots[i] - 1;
        const uint8_t *token = tokenizer_piece(names->tokenizer, id, &length);
        if ((size_t)length == n && !memcmp(token, bytes, n)) break;
    }
    *slot = i;
    return (int)names->slots[i] - 1;
}

static void name_add(struct Names *names, int id)
{
    int length;
    size_t slot;
    const uint8_t *bytes = tokenizer_piece(names->tokenizer, id, &length);
    name_find(names, bytes, length, &slot);
    names->slots[slot] = (uint32_t)id + 1;
}

/* The symbol at *at, up to `stop` or a space, as bytes; its id, -1 if it is no token, or -2 if
 * it is not written in the 256 symbols. */
static int read_symbol(const struct Names *names, const char **at, const char *stop)
{
    uint8_t bytes[MAX_TOKEN_BYTES];
    size_t n = 0, slot;
    while (*at < stop && **at != ' ') {
        uint32_t c = (uint8_t)*(*at)++;
        const bool pair = c >= 0xC2 && c < 0xC8 && *at < stop && (**at & 0xC0) == 0x80;
        if (pair) c = (c & 0x1F) << 6 | (*(*at)++ & 0x3F);
        const int byte = pair || c < 0x80 ? byte_of_symbol(c) : -1;
        if (byte < 0 || n == sizeof bytes) return -2;
        bytes[n++] = (uint8_t)byte;
    }
    return name_find(names, bytes, n, &slot);
}

__attribute__((noreturn, format(printf, 3, 4)))
static void die_at_line(const char *path, int line, const char *format, ...)
{
    va_list arguments;
    char what[512];
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    die("%s: line %d: %s", path, line, what);
}

/* Appends the merge that the line holds, or ends the program. */
static void read_merge(struct Tokenizer *t, struct Names *names, const char *path, int line,
                       const char *text, const char *stop)
{
    const char *at = text, *middle = memchr(text, ' ', stop - text);
    const int shown = stop - text > 80 ? 80 : (int)(stop - text);
    if (!middle || middle == text || middle + 1 == stop
        || memchr(middle + 1, ' ', stop - middle - 1))
        die_at_line(path, line,
                    "\"%.*s\" is not two symbols with one space between. Replace the file.",
                    shown, text);
    int id[2];
    for (int i = 0; i < 2; i++, at++) {
        const char *symbol = at;
        id[i] = read_symbol(names, &at, i ? stop : middle);
        const int n = (int)((i ? stop : middle) - symbol), length = n > 80 ? 80 : n;
        if (id[i] == -2)
            die_at_line(path, line,
                        "\"%.*s\" is not written in GPT-2's 256 byte symbols. Replace the file.",
                        length, symbol);
        if (id[i] == -1)
            die_at_line(path, line,
                        "\"%.*s\" is no token yet: a merge that makes it must come first. "
                        "Replace the file.", length, symbol);
    }
    if (t->vocabulary == MAX_VOCABULARY - 1)
        die_at_line(path, line,
                    "more than %d tokens do not fit the 16 bits of a shard. Use fewer merges.",
                    MAX_VOCABULARY);
    int a_bytes, b_bytes;
    tokenizer_piece(t, id[0], &a_bytes);
    tokenizer_piece(t, id[1], &b_bytes);
    if (a_bytes + b_bytes > MAX_TOKEN_BYTES)
        die_at_line(path, line, "a token of more than %d bytes is not supported. Remove the line.",
                    MAX_TOKEN_BYTES);
    const size_t start = t->offset[t->vocabulary];
    const int made = add_merge(t, id[0], id[1]);
    size_t slot;
    const int before = name_find(names, t->bytes + start, a_bytes + b_bytes, &slot);
    if (before >= 0)
        die_at_line(path, line, "\"%.*s\" makes a token that line %d makes. Remove one of them.",
                    shown, text, line - (made - before));
    names->slots[slot] = (uint32_t)made + 1;
}

/* The special tokens that the first line names: "#version: 0.2 special: <|a|> <|b|>". */
static char *read_specials(const char *text, const char *stop)
{
    char *line = text_of("%.*s", (int)(stop - text > 65536 ? 65536 : stop - text), text);
    char *found = strstr(line, " special: ");
    char *specials = text_of("%s", found ? found + 10 : "");
    free(line);
    return specials;
}

static struct Tokenizer *read_merges(const char *path)
{
    const struct Bytes file = map_file(path);
    const char *at = file.data, *end = file.data + file.size;
    int lines = 1;
    for (const char *s = at; s < end && (s = memchr(s, '\n', end - s)); s++) lines++;
    if (lines > MAX_VOCABULARY) lines = MAX_VOCABULARY;
    struct Tokenizer *t = tokenizer_new(lines);
    struct Names names = {t, NULL, 4096 - 1};
    while (names.mask < 2 * (size_t)(lines + BYTES)) names.mask = 2 * names.mask + 1;
    names.slots = allocate_zeroed((names.mask + 1) * sizeof *names.slots);
    for (int i = 0; i < BYTES; i++) name_add(&names, i);
    char *specials = text_of("%s", "");
    for (int line = 1; at < end; line++) {
        const char *newline = memchr(at, '\n', end - at), *stop = newline ? newline : end;
        const char *next = newline ? newline + 1 : end;
        if (stop > at && stop[-1] == '\r') stop--;
        if (line == 1 && end - at >= 8 && !memcmp(at, "#version", 8)) {
            free(specials);
            specials = read_specials(at, stop);
        } else if (stop > at || next < end)
            read_merge(t, &names, path, line, at, stop);
        at = next;
    }
    if (!t->merges) warn("%s: holds no merge, so every byte is a token.", path);
    add_specials(t, specials);
    free(specials);
    release(names.slots, (names.mask + 1) * sizeof *names.slots);
    unmap_file(file);
    return t;
}

/* Ids follow from merges.txt; a vocab.json beside it that numbers tokens otherwise belongs to
 * another tokenizer. The number of <|endoftext|>, which comes last, tells. */
static void check_vocabulary_file(const struct Tokenizer *t, const char *path)
{
    const struct Bytes file = map_file(path);
    const char *at = file.data, *end = file.data + file.size;
    char *entry = text_of("\"%s\":", END_OF_TEXT);
    const size_t n = strlen(entry);
    while (at && (size_t)(end - at) > n && memcmp(at, entry, n))
        at = memchr(at + 1, '"', end - at - 1);
    if (!at || (size_t)(end - at) <= n)
        die("%s: has no %s. Name merges.txt itself if the file is not needed.", path, END_OF_TEXT);
    char number[16] = "";
    at += n;
    memcpy(number, at, end - at < 15 ? end - at : 15);
    if (strtol(number, NULL, 10) != t->eot)
        die("%s: %s is %ld, but by merges.txt it is %d. The two files do not belong together.",
            path, END_OF_TEXT, strtol(number, NULL, 10), t->eot);
    free(entry);
    unmap_file(file);
}

/* From a directory with merges.txt and vocab.json, which GPT-2's authors call vocab.bpe and
 * encoder.json; or from such a list of merges alone, under any name. */
static struct Tokenizer *tokenizer_load(const char *dir_or_merges)
{
    struct stat status;
    const bool directory = !stat(dir_or_merges, &status) && S_ISDIR(status.st_mode);
    char *merges = text_of(directory ? "%s/merges.txt" : "%s", dir_or_merges);
    char *original = text_of("%s/vocab.bpe", dir_or_merges);
    const bool renamed = directory && !file_exists(merges) && file_exists(original);
    char *numbers = text_of("%s/%s", dir_or_merges, renamed ? "encoder.json" : "vocab.json");
    const char *path = renamed ? original : merges;
    if (!file_exists(path))
        die("%s: no such file. Train a tokenizer, or name a merges.txt.", path);
    struct Tokenizer *t = read_merges(path);
    if (directory && file_exists(numbers)) check_vocabulary_file(t, numbers);
    free(merges);
    free(original);
    free(numbers);
    return t;
}

/* --- Writing --- */

static void append_token(struct Buffer *b, const struct Tokenizer *t, int id)
{
    int n;
    const uint8_t *bytes = tokenizer_piece(t, id, &n);
    for (int i = 0; i < n; i++) append_utf8(b, symbol_of_byte(bytes[i]));
}

/* The special tokens, in the order of their ids. */
static int first_special(const struct Tokenizer *t) { return BYTES + t->merges; }

static void append_merges(struct Buffer *b, const struct Tokenizer *t)
{
    append(b, "#version: 0.2");
    for (int id = first_special(t); id < t->eot; id++) {
        int n;
        const uint8_t *bytes = tokenizer_piece(t, id, &n);
        append(b, "%s %.*s", id == first_special(t) ? " special:" : "", n, (const char *)bytes);
    }
    for (int r = 0; r < t->merges; r++) {
        append(b, "\n");
        append_token(b, t, t->parts[r][0]);
        append(b, " ");
        append_token(b, t, t->parts[r][1]);
    }
    append(b, "\n");
}

/* {"!": 0, ..., "\u0120the": 262, ...}, all ASCII, as GPT-2's own file. */
static void append_vocabulary(struct Buffer *b, const struct Tokenizer *t)
{
    for (int id = 0; id < t->vocabulary; id++) {
        int n;
        const uint8_t *bytes = tokenizer_piece(t, id, &n);
        append(b, "%s\"", id ? ", " : "{");
        for (int i = 0; i < n; i++) {
            const uint32_t c = id < first_special(t) ? symbol_of_byte(bytes[i]) : bytes[i];
            if (c == '"' || c == '\\') append(b, "\\");
            append(b, c < 128 ? "%c" : "\\u%04x", c);
        }
        append(b, "\": %d", id);
    }
    append(b, "}");
}

/* merges.txt and vocab.json. */
static void tokenizer_save(const struct Tokenizer *t, const char *dir)
{
    struct Buffer merges = {0}, vocabulary = {0};
    char *merges_path = text_of("%s/merges.txt", dir);
    char *vocabulary_path = text_of("%s/vocab.json", dir);
    make_directory(dir);
    append_merges(&merges, t);
    append_vocabulary(&vocabulary, t);
    write_file(vocabulary_path, vocabulary.data, vocabulary.size);
    write_file(merges_path, merges.data, merges.size);
    free(merges.data);
    free(vocabulary.data);
    free(merges_path);
    free(vocabulary_path);
}

/* ============================================================================================= */
/* 4. Encoding                                                                                   */
/* ============================================================================================= */

/* --- A word of up to 15 bytes is a number of 16: its bytes, then zeros, then its length --- */

enum { WORD_BYTES = 15 };

/* Bytes from p up to `readable` may be looked at; there, one load and one mask do it. */
static inline struct Pair64 word_key(const uint8_t *p, size_t n, const uint8_t *readable)
{
    static const uint8_t KEEP[32] = {255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
                                     255, 255, 255, 255};
    struct Pair64 key = {0, 0};
    if (readable - p >= 16) {
        const struct Pair64 keep = load16(KEEP + 16 - n), x = load16(p);
        key = (struct Pair64){x.low & keep.low, x.high & keep.high};
    } else
        memcpy(&key, p, n);
    key.high |= (uint64_t)n << 56;
    return key;
}

static inline uint64_t key_differs(struct Pair64 a, struct Pair64 b)
{
    return (a.low ^ b.low) | (a.high ^ b.high);
}

/* A product of 128 bits, folded (as in Wang Yi's wyhash): every bit of the key reaches every
 * bit. */
static inline uint64_t key_hash(struct Pair64 key)
{
    const unsigned __int128 product =
        (unsigned __int128)(key.low ^ 0xA0761D6478BD642Fu) * (key.high ^ 0xE7037ED1A0B428DBu);
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* The cache: what words became, so that most of them are merged only once. A slot fills half a
 * cache line; a word is looked for in the two slots of one line. A full line gives up its older
 * word. */
enum { CACHE_BITS = 18, CACHE_IDS = 7 };
struct Slot { struct Pair64 key; uint16_t ids[CACHE_IDS], count; };
static const size_t CACHE_BYTES = sizeof(struct Slot) << CACHE_BITS;

/* What one thread needs to encode. */
struct Encoder {
    const struct Tokenizer *tokenizer;
    struct Slot *cache;
    uint16_t *ids;              /* (room) for tokenizer_encode */
    size_t room;
    int64_t pieces, single;     /* for `stats`: pieces, and those that are one token */
};

static struct Encoder *encoder_new(const struct Tokenizer *t)
{
    struct Encoder *e = resize(NULL, sizeof *e);
    *e = (struct Encoder){.tokenizer = t, .cache = allocate_zeroed(CACHE_BYTES)};
    return e;
}

static void encoder_free(struct Encoder *e)
{
    if (!e) return;
    release(e->cache, CACHE_BYTES);
    free(e->ids);
    free(e);
}

static void tokenizer_free(struct Tokenizer *t)
{
    encoder_free(t->encoder);
    release(t->pairs.slots, sizeof(uint64_t) << t->pairs.bits);
    free(t->parts);
    free(t->bytes);
    free(t->offset);
    free(t);
}

/* --- One piece --- */

enum { SHORT_PIECE = 48 };

/* By the definition: of all pairs of neighbours, merge the one that comes first in the list;
 * repeat. next[i] is what tokens i and i + 1 make, -1 for nothing; smaller means earlier in the
 * list. */
static int merge_short(const struct Tokenizer *t, const uint8_t *piece, int n, uint16_t *out)
{
    int next[SHORT_PIECE];
    for (int i = 0; i < n; i++) out[i] = id_of_byte[piece[i]];
    for (int i = 0; i + 1 < n; i++) next[i] = merged(t, out[i], out[i + 1]);
    for (;;) {
        int best = -1;
        for (int i = 0; i + 1 < n; i++)
            if ((unsigned)next[i] < (unsigned)(best < 0 ? -1 : next[best])) best = i;
        if (best < 0) return n;
        out[best] = (uint16_t)next[best];
        n--;
        for (int i = best + 1; i < n; i++) { out[i] = out[i + 1]; next[i - 1] = next[i]; }
        next[n - 1] = -1;
        if (best > 0) next[best - 1] = merged(t, out[best - 1], out[best]);
        if (best + 1 < n) next[best] = merged(t, out[best], out[best + 1]);
    }
}

/* A long piece is a doubly linked list of tokens, with the places of every possible merge in a
 * list of its own. A merge makes only pairs that come later in the list of merges, for they hold
 * the new token; so one sweep over the merges, in order, does them all, in time that grows only
 * with the length. It takes about 30 bytes of memory for each byte of the piece. */
struct Sweep {
    const struct Tokenizer *tokenizer;
    uint16_t *ids;              /* (n) the token that begins at each byte */
    uint32_t *next, *before;    /* (n) its neighbours; n is the end */
    uint32_t n;
    struct Place { uint32_t at, next; } *places;    /* 1, 2, ...: 0 ends a list */
    uint32_t place_count;
    /* of the list of the token that a merge makes */
    uint32_t first[MAX_VOCABULARY];
    uint64_t waiting[MAX_VOCABULARY / 64];          /* its bit: that list is not empty */
    uint32_t *sorted;           /* (3 n) one such list as an array */
};

static void add_place(struct Sweep *s, uint32_t at)
{
    if (at >= s->n || s->next[at] >= s->n) return;
    const int made = merged(s->tokenizer, s->ids[at], s->ids[s->next[at]]);
    if (made < 0) return;
    const uint64_t bit = 1ull << (made & 63);
    const uint32_t first = s->waiting[made >> 6] & bit ? s->first[made] : 0;
    s->places[++s->place_count] = (struct Place){at, first};
    s->waiting[made >> 6] |= bit;
    s->first[made] = s->place_count;
}

/* The places in `made`'s list as an array, from left to right, so that of "aaa" the first "aa"
 * is merged. That order counts only where both parts are one token; all such places were found
 * in one pass over the text, the one that made that token, so the list is in order already or in
 * reverse. */
static uint32_t take_places(struct Sweep *s, int made)
{
    uint32_t count = 0;
    for (uint32_t i = s->first[made]; i; i = s->places[i].next)
        s->sorted[count++] = s->places[i].at;
    if (count && s->sorted[0] > s->sorted[count - 1])
        for (uint32_t i = 0; i < count / 2; i++) {
            const uint32_t place = s->sorted[i];
            s->sorted[i] = s->sorted[count - 1 - i];
            s->sorted[count - 1 - i] = place;
        }
    return count;
}

/* Does the merge that makes `made` wherever it is still possible. */
static void sweep_merge(struct Sweep *s, int made)
{
    const uint16_t *parts = s->tokenizer->parts[made - BYTES];
    const uint32_t count = take_places(s, made);
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t at = s->sorted[i], right = s->next[at];
        if (s->ids[at] != parts[0] || right >= s->n || s->ids[right] != parts[1]) continue;
        s->ids[at] = (uint16_t)made;
        s->ids[right] = UINT16_MAX;         /* <|endoftext|> at the highest: no part of a merge */
        s->next[at] = s->next[right];
        if (s->next[at] < s->n) s->before[s->next[at]] = at;
        if (at) add_place(s, s->before[at]);
        add_place(s, at);
    }
}

static size_t merge_long(const struct Tokenizer *t, const uint8_t *piece, size_t n, uint16_t *out)
{
    if (n >= 1u << 30)
        die("a run of %.1f GB without a word boundary is too long. Split the text.", n / 1e9);
    struct Sweep *s = resize(NULL, sizeof *s);
    memset(s->waiting, 0, sizeof s->waiting);
    s->tokenizer = t;
    s->n = (uint32_t)n;
    s->place_count = 0;
    s->ids = resize(NULL, n * sizeof *s->ids);
    s->next = resize(NULL, n * sizeof *s->next);
    s->before = resize(NULL, n * sizeof *s->before);
    s->places = resize(NULL, (3 * n + 1) * sizeof *s->places);      /* two more by each merge */
    s->sorted = resize(NULL, 3 * n * sizeof *s->sorted);
    for (uint32_t i = 0; i < n; i++) {
        s->ids[i] = id_of_byte[piece[i]];
        s->next[i] = i + 1;
        s->before[i] = i - 1;
    }
    for (uint32_t i = (uint32_t)n; i-- > 0; ) add_place(s, i);
    for (int word = 0; word < MAX_VOCABULARY / 64; word++)
        while (s->waiting[word]) {
            const int bit = __builtin_ctzll(s->waiting[word]);
            s->waiting[word] &= s->waiting[word] - 1;
            sweep_merge(s, word * 64 + bit);
        }
    size_t count = 0;
    for (uint32_t i = 0; i < n; i = s->next[i]) out[count++] = s->ids[i];
    free(s->ids); free(s->next); free(s->before); free(s->places); free(s->sorted);
    free(s);
    return count;
}

/* --- Texts --- */

/* A piece that the cache does not have. Returns the number of ids. */
__attribute__((noinline))
static size_t encode_piece(struct Encoder *e, const uint8_t *p, size_t n, struct Slot *line,
                           struct Pair64 key, uint16_t *out)
{
    const struct Tokenizer *t = e->tokenizer;
    const size_t count = n <= SHORT_PIECE ? (size_t)merge_short(t, p, (int)n, out)
                                          : merge_long(t, p, n, out);
    if (line && count <= CACHE_IDS) {
        line[1] = line[0];
        line[0] = (struct Slot){.key = key, .count = (uint16_t)count};
        memcpy(line[0].ids, out, count * sizeof *out);
    }
    return count;
}

/* Encodes p .. end and returns the number of ids; `out` has room for one id a byte and 8 more.
 * Bytes up to `readable` may be looked at, and the one at `end`, if end < readable, must be no
 * letter.
 *
 * Pieces are found a few dozen at a time, and only then looked up: meanwhile the cache lines
 * that they need are on their way from memory, which otherwise takes more time than all the
 * rest. */
static size_t encode_text(struct Encoder *e, const uint8_t *p, const uint8_t *end,
                          const uint8_t *readable, uint16_t *out)
{
    enum { AHEAD = 32 };
    struct { const uint8_t *text; size_t n; struct Pair64 key; struct Slot *line; } pieces[AHEAD];
    uint16_t *o = out;
    while (p < end) {
        int found = 0;
        for (; found < AHEAD && p < end; found++) {
            const uint8_t *q = piece_end(p, end, readable);
            const size_t n = q - p;
            const struct Pair64 key = n <= WORD_BYTES ? word_key(p, n, readable)
                                                      : (struct Pair64){0, 0};
            struct Slot *line = e->cache + (key_hash(key) >> (65 - CACHE_BITS)) * 2;
            __builtin_prefetch(line);
            pieces[found].text = p;
            pieces[found].n = n;
            pieces[found].key = key;
            pieces[found].line = line;
            p = q;
        }
        e->pieces += found;
        for (int i = 0; i < found; i++) {
            const struct Pair64 key = pieces[i].key;
            const struct Slot *slot = pieces[i].line;
            slot += key_differs(slot->key, key) != 0;
            size_t count = slot->count;
            if (!key_differs(slot->key, key) && key.high)
                memcpy(o, slot->ids, sizeof slot->ids + sizeof slot->count);
            else
                count = encode_piece(e, pieces[i].text, pieces[i].n,
                                     key.high ? pieces[i].line : NULL, key, o);
            e->single += count == 1;
            o += count;
        }
    }
    return o - out;
}

/* The ids of a text of n bytes; `ids` has room for n. Special tokens in it are text. One thread
 * at a time may use a tokenizer. */
static int tokenizer_encode(struct Tokenizer *t, const char *text, size_t n, int *ids)
{
    if (!t->encoder) t->encoder = encoder_new(t);
    struct Encoder *e = t->encoder;
    if (n > INT_MAX) die("a text of %.1f GB is too long. Split it.", n / 1e9);
    if (e->room < n + 8) e->ids = resize(e->ids, (e->room = 2 * n + 8) * sizeof *e->ids);
    const uint8_t *p = (const uint8_t *)text;
    const size_t count = encode_text(e, p, p + n, p + n, e->ids);
    for (size_t i = 0; i < count; i++) ids[i] = e->ids[i];
    return (int)count;
}

/* The tokenizer that lies beside a model. Dies unless its hash is the one in the model's metadata, if
 * there is one there, and it has at most `vocabulary` tokens: the model may have more, unused. */
static struct Tokenizer *tokenizer_of_model(const char *dir, int vocabulary,
                                            const struct Metadata *meta)
{
    struct Tokenizer *t = tokenizer_load(dir);
    const char *wanted = metadata_get(meta, "tokenizer_hash");
    if (wanted && strcmp(wanted, hash_text(t->hash)))
        die("%s: the model was trained with tokenizer %s, but merges.txt is %s. Put the right "
            "merges.txt there.", dir, wanted, hash_text(t->hash));
    if (t->vocabulary > vocabulary)
        die("%s: merges.txt has %d tokens, the model only %d. Put the right merges.txt there.", dir,
            t->vocabulary, vocabulary);
    return t;
}

#ifndef TOKENIZER_NO_MAIN

/* ============================================================================================= */
/* 5. Documents                                                                                  */
/* ============================================================================================= */

/* A document is a file; or a line, without its \n or \r\n; or what stands between <|endoftext|>,
 * of which one line end is taken off the front. Empty lines, and nothing between two marks, are
 * no documents. */
enum Split { SPLIT_FILE, SPLIT_LINES, SPLIT_EOT };

static enum Split split_of(const char *name)
{
    return !strcmp(name, "lines") ? SPLIT_LINES : !strcmp(name, "eot") ? SPLIT_EOT : SPLIT_FILE;
}

/* Threads work on chunks: parts of files that no piece crosses. */
struct Chunk {
    const uint8_t *at, *end, *readable;     /* readable: as far as the file is in memory */
    int file_number;
    int64_t file_bytes;                     /* of the file, up to there */
    bool fresh;                             /* a document begins at `at` */
    enum Split split;
};

/* The class of the character that ends at p > text. */
static int class_before(const uint8_t *text, const uint8_t *p)
{
    for (int n = 1; n <= 4 && n <= p - text; n++) {
        int length, class = class_at(p - n, p, &length);
        if (length == n && (n > 1 || p[-1] < 128)) return class;
    }
    return OTHER;
}

/* Whether the text can be cut at p, text < p < end, without changing its pieces: between two
 * characters of different classes, the left one no white space, the right one no letter. No
 * piece has such a place inside it, and what stands left of it has the same pieces whether the
 * text ends there or not. With | on the right, it might be the middle of <|endoftext|>. */
static bool can_cut(const uint8_t *text, const uint8_t *p, const uint8_t *end)
{
    int length;
    const int class = class_at(p, end, &length), before = class_before(text, p);
    const bool whole = length > 1 || *p < 128;      /* else perhaps p is inside a character */
    return whole && class != LETTER && before != SPACE && before != class && *p != '|';
}

static bool mark_at(const uint8_t *p, const uint8_t *end)
{
    return end - p >= END_OF_TEXT_BYTES && !memcmp(p, END_OF_TEXT, END_OF_TEXT_BYTES);
}

static const uint8_t *skip_line_end(const uint8_t *p, const uint8_t *end)
{
    if (p < end && *p == '\n') return p + 1;
    return end - p >= 2 && p[0] == '\r' && p[1] == '\n' ? p + 2 : p;
}

static const uint8_t *find_mark(const uint8_t *p, const uint8_t *end)
{
    for (; (p = memchr(p, '<', end - p)); p++) if (mark_at(p, end)) return p;
    return NULL;
}

/* Takes the next part of a document off the chunk: its bytes begin .. end; `starts` if the
 * document does so here, not in an earlier chunk. False when nothing is left. */
static bool next_part(struct Chunk *c, const uint8_t **begin, const uint8_t **end, bool *starts)
{
    while (c->at < c->end || (c->fresh && c->split == SPLIT_FILE)) {
        const uint8_t *stop = NULL, *next = c->end;
        if (c->split == SPLIT_LINES) stop = memchr(c->at, '\n', c->end - c->at);
        if (c->split == SPLIT_EOT) stop = find_mark(c->at, c->end);
        const bool found = stop;
        if (found && c->split == SPLIT_LINES) next = stop + 1;
        if (found && c->split == SPLIT_EOT) next = skip_line_end(stop + END_OF_TEXT_BYTES, c->end);
        if (!found) stop = c->end;
        else if (c->split == SPLIT_LINES && stop > c->at && stop[-1] == '\r') stop--;
        *begin = c->at;
        *end = stop;
        *starts = c->fresh;
        c->at = next;
        c->fresh = found;
        if (*end > *begin || c->split == SPLIT_FILE) return true;
    }
    return false;
}

/* The input files, read one after the other into a window of memory, and cut into chunks there.
 * Files and pipes of any size pass through it; only a run without a place to cut makes it
 * larger. */
struct Source {
    char **paths;
    int count, number;          /* number: of files opened */
    enum Split split;
    int64_t chunk_bytes, done, total;   /* total: 0 if not known, for there is a pipe */
    int file;                   /* the descriptor of the open one, or -1 */
    bool ended;                 /* the window holds it to its end */
    bool fresh;                 /* a document begins at `at` */
    int64_t file_bytes;         /* of it that were read */
    uint8_t *window;
    size_t room, size, at;      /* what stands before `at` was handed out */
    double start, shown;        /* seconds: for the progress line */
};

enum { BATCH = 64 };            /* chunks that are handed out at a time */

static struct Source source_open(char **paths, int count, const char *split, int64_t chunk_bytes)
{
    struct Source s = {paths, count, .split = split_of(split), .chunk_bytes = chunk_bytes,
                       .file = -1, .room = (size_t)(BATCH * chunk_bytes), .start = seconds()};
    bool sized = true;
    if (!count) die_usage("no FILE is named. Name the texts to read, or - for standard input.");
    for (int i = 0; i < count; i++) {
        struct stat status;
        const bool standard = !strcmp(paths[i], "-");
        if (standard ? fstat(0, &status) : stat(paths[i], &status) || access(paths[i], R_OK))
            die("%s: cannot be read (%s). Check the name.", paths[i], strerror(errno));
        if (S_ISDIR(status.st_mode)) die("%s: is a directory. Name files.", paths[i]);
        sized = sized && S_ISREG(status.st_mode);
        s.total += status.st_size;
    }
    if (!sized) s.total = 0;
    s.window = allocate_zeroed(s.room);
    prepare_classes();
    prepare_bytes();
    return s;
}

static void source_close(struct Source *s) { release(s->window, s->room); }

/* Makes the window twice as large. */
static void grow_window(struct Source *s)
{
    uint8_t *larger = allocate_zeroed(2 * s->room);
    memcpy(larger, s->window, s->size);
    release(s->window, s->room);
    s->window = larger;
    s->room *= 2;
}

/* Fills the window with the open file, or the next one, as far as there is room. */
static void fill_window(struct Source *s)
{
    if (s->file < 0) {
        const char *path = s->paths[s->number++];
        s->file = strcmp(path, "-") ? open(path, O_RDONLY) : dup(0);
        s->file_bytes = 0;
        s->ended = false;
        s->fresh = true;
    }
    while (!s->ended && s->size < s->room) {
        const ssize_t n = s->file < 0 ? -1 : read(s->file, s->window + s->size, s->room - s->size);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) die("%s: cannot be read (%s).", s->paths[s->number - 1], strerror(errno));
        s->ended = n == 0;
        s->size += (size_t)n;
        s->file_bytes += n;
    }
}

/* Takes the next chunk off the window; false if a place to cut must be read first. */
static bool take_chunk(struct Source *s, struct Chunk *c)
{
    const uint8_t *at = s->window + s->at, *end = s->window + s->size, *stop = end;
    if (end - at > s->chunk_bytes) {
        stop = at + s->chunk_bytes;
        while (stop < end && !can_cut(at, stop, end)) stop++;
    }
    if (stop == end && !s->ended) return false;
    const bool after_mark = s->fresh && end - at < s->file_bytes;
    *c = (struct Chunk){after_mark ? skip_line_end(at, stop) : at, stop, end, s->number - 1,
                        s->file_bytes, s->fresh, s->split};
    s->fresh = s->split == SPLIT_EOT && stop - at >= END_OF_TEXT_BYTES
               && mark_at(stop - END_OF_TEXT_BYTES, stop);
    s->at += (size_t)(stop - at);
    s->done += stop - at;
    if (stop == end) {          /* the file is done */
        close(s->file);
        s->file = -1;
    }
    return true;
}

/* Cuts at most BATCH chunks; 0 at the end. Those of the call before must be done with. */
static int next_chunks(struct Source *s, struct Chunk *chunks)
{
    int n = 0;
    s->size -= s->at;
    memmove(s->window, s->window + s->at, s->size);
    s->at = 0;
    while (n < BATCH && (s->file >= 0 || s->number < s->count)) {
        fill_window(s);
        if (take_chunk(s, &chunks[n])) n++;
        else if (n) break;      /* chunks point into the window, so it must stay */
        else grow_window(s);
    }
    return n;
}

/* The line of progress, when it is time for one: ten a second on a terminal, else one in ten
 * seconds. */
static void show_progress(struct Source *s, const char *doing)
{
    const double now = seconds(), rate = s->done / (now - s->start + 1e-9);
    if (now - (s->shown > 0 ? s->shown : s->start) < (live() ? 0.1 : 10)) return;
    s->shown = now;
    if (s->total)
        progress(false, "%s %.0f of %.0f MB  %.1f MB/s  %s left", doing, s->done / 1e6,
                 s->total / 1e6, rate / 1e6, duration((s->total - s->done) / rate));
    else progress(false, "%s %.0f MB  %.1f MB/s", doing, s->done / 1e6, rate / 1e6);
}

/* ============================================================================================= */
/* 6. Training                                                                                   */
/* ============================================================================================= */

/* --- The words of the texts, each once, with their counts --- */

/* Up to 15 bytes are in the key; of a longer word it holds a hash, and `bytes` is a copy. */
struct Word { struct Pair64 key; int64_t count; uint8_t *bytes; };

/* Open addressing; an empty slot has count 0, and at most half of the slots are taken. */
struct WordTable { struct Word *slots; size_t count; int bits; };

/* stands where a short word has its length */
static const uint64_t LONG_WORD = 0xFFull << 56;

static size_t word_length(const struct Word *w)
{
    return w->key.high < LONG_WORD ? w->key.high >> 56 : w->key.high & ~LONG_WORD;
}

static struct WordTable word_table(int bits)
{
    return (struct WordTable){allocate_zeroed(sizeof(struct Word) << bits), 0, bits};
}

static void word_table_free(struct WordTable *table)
{
    for (size_t i = 0; i < (size_t)1 << table->bits; i++) free(table->slots[i].bytes);
    release(table->slots, sizeof(struct Word) << table->bits);
}

/* The slot where the word is or belongs. */
static inline struct Word *word_find(const struct WordTable *table, struct Pair64 key,
                                     const uint8_t *bytes)
{
    const size_t mask = ((size_t)1 << table->bits) - 1;
    for (size_t i = key_hash(key) >> (64 - table->bits); ; i = (i + 1) & mask) {
        struct Word *w = &table->slots[i];
        if (!w->count) return w;
        if (w->key.low == key.low && w->key.high == key.high
            && (key.high < LONG_WORD || !memcmp(w->bytes, bytes, key.high & ~LONG_WORD))) return w;
    }
}

static void word_table_grow(struct WordTable *table)
{
    struct WordTable larger = word_table(table->bits + 1);
    for (size_t i = 0; i < (size_t)1 << table->bits; i++) {
        const struct Word *w = &table->slots[i];
        if (w->count) *word_find(&larger, w->key, w->bytes) = *w;
    }
    larger.count = table->count;
    release(table->slots, sizeof(struct Word) << table->bits);
    *table = larger;
}

static inline void word_count(struct WordTable *table, struct Pair64 key, const uint8_t *bytes,
                              int64_t times)
{
    struct Word *w = word_find(table, key, bytes);
    if (!w->count) {
        const size_t n = key.high >= LONG_WORD ? key.high & ~LONG_WORD : 0;
        *w = (struct Word){key, 0, n ? memcpy(resize(NULL, n), bytes, n) : NULL};
        table->count++;
    }
    w->count += times;
    if (2 * table->count > (size_t)1 << table->bits) word_table_grow(table);
}

static void count_text(struct WordTable *table, const uint8_t *p, const uint8_t *end,
                       const uint8_t *readable)
{
    while (p < end) {
        const uint8_t *q = piece_end(p, end, readable);
        const size_t n = q - p;
        const struct Pair64 key = n > WORD_BYTES ? (struct Pair64){hash_bytes(p, n), n | LONG_WORD}
                                                 : word_key(p, n, readable);
        word_count(table, key, p, 1);
        p = q;
    }
}

/* The words of all documents. Each thread has a table of its own; at the end their counts are
 * added. Memory grows with the number of different words, 64 to 128 bytes for each of them and
 * thread, not with the length of the texts. */
static struct WordTable count_words(struct Source *source)
{
    const int threads = thread_count();
    struct WordTable *tables = resize(NULL, threads * sizeof *tables);
    struct Chunk chunks[BATCH];
    for (int i = 0; i < threads; i++) tables[i] = word_table(16);
    for (int n; (n = next_chunks(source, chunks)); show_progress(source, "counting words")) {
        #pragma omp parallel for schedule(dynamic, 1)
        for (int i = 0; i < n; i++) {
            const uint8_t *begin, *end;
            bool starts;
            while (next_part(&chunks[i], &begin, &end, &starts))
                count_text(&tables[thread_index()], begin, end, chunks[i].readable);
        }
    }
    for (int i = 1; i < threads; i++) {
        for (size_t k = 0; k < (size_t)1 << tables[i].bits; k++) {
            const struct Word *w = &tables[i].slots[k];
            if (w->count) word_count(&tables[0], w->key, w->bytes, w->count);
        }
        word_table_free(&tables[i]);
    }
    struct WordTable all = tables[0];
    free(tables);
    return all;
}

/* --- Merges --- */

/* A pair of neighbours: how often it occurs now, and a list of the words that hold it, or did. */
struct Neighbours { int64_t count; uint32_t pair, places, room, *words; };

/* The heap's order: the larger count first, then the smaller pair of ids. */
struct Candidate { int64_t count; uint32_t pair; int index; };

struct Trainer {
    uint16_t *ids;              /* of all words, one after the other */
    struct { size_t at; uint32_t length; int64_t count; } *words;
    uint32_t word_total;
    struct Neighbours *pairs;
    int pair_total, pair_room;
    struct PairTable index;     /* pair -> its place in pairs */
    struct Candidate *heap;
    size_t heap_size, heap_room;
};

static bool comes_before(const struct Candidate *a, const struct Candidate *b)
{
    return a->count != b->count ? a->count > b->count : a->pair < b->pair;
}

static void heap_push(struct Trainer *t, struct Candidate c)
{
    if (t->heap_size == t->heap_room)
        t->heap = resize(t->heap, (t->heap_room = 2 * t->heap_room + 1024) * sizeof *t->heap);
    size_t i = t->heap_size++;
    for (; i > 0 && comes_before(&c, &t->heap[(i - 1) / 2]); i = (i - 1) / 2)
        t->heap[i] = t->heap[(i - 1) / 2];
    t->heap[i] = c;
}

static struct Candidate heap_pop(struct Trainer *t)
{
    const struct Candidate top = t->heap[0], c = t->heap[--t->heap_size];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < t->heap_size; i = child) {
        if (child + 1 < t->heap_size && comes_before(&t->heap[child + 1], &t->heap[child])) child++;
        if (!comes_before(&t->heap[child], &c)) break;
        t->heap[i] = t->heap[child];
    }
    t->heap[i] = c;
    return top;
}

/* The place of the pair, made if it is new. */
static int pair_place(struct Trainer *t, uint32_t pair)
{
    const int found = pair_find(&t->index, pair);
    if (found >= 0) return found;
    if (t->pair_total == t->pair_room)
        t->pairs = resize(t->pairs, (t->pair_room = 2 * t->pair_room + 1024) * sizeof *t->pairs);
    if (2 * (size_t)t->pair_total >= (size_t)1 << t->index.bits) {
        release(t->index.slots, sizeof(uint64_t) << t->index.bits);
        t->index = pair_table(t->index.bits + 1);
        for (int i = 0; i < t->pair_total; i++) pair_add(&t->index, t->pairs[i].pair, i);
    }
    t->pairs[t->pair_total] = (struct Neighbours){.pair = pair};
    pair_add(&t->index, pair, t->pair_total);
    return t->pair_total++;
}

/* The pair occurs `change` times more, or less if negative, on account of this word. */
static void pair_change(struct Trainer *t, int a, int b, int64_t change, uint32_t word)
{
    const int place = pair_place(t, pair_of(a, b));
    struct Neighbours *p = &t->pairs[place];
    p->count += change;
    if (change < 0 || (p->places && p->words[p->places - 1] == word)) return;
    if (p->places == p->room)
        p->words = resize(p->words, (p->room = 2 * p->room + 2) * sizeof *p->words);
    p->words[p->places++] = word;
}

/* Replaces a b by `made` in the word and keeps the counts right: of x a b y, the pairs x a and b
 * y go, and the pairs x made and made y come. */
static void merge_word(struct Trainer *t, uint32_t word, int a, int b, int made)
{
    uint16_t *ids = t->ids + t->words[word].at;
    const int64_t count = t->words[word].count;
    const uint32_t length = t->words[word].length;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < length; i++) {
        if (ids[i] != a || i + 1 == length || ids[i + 1] != b) {
            ids[kept++] = ids[i];
            continue;
        }
        if (kept) {
            pair_change(t, ids[kept - 1], a, -count, word);
            pair_change(t, ids[kept - 1], made, count, word);
        }
        if (i + 2 < length) {
            pair_change(t, b, ids[i + 2], -count, word);
            pair_change(t, made, ids[i + 2], count, word);
        }
        ids[kept++] = (uint16_t)made;
        i++;
    }
    t->words[word].length = kept;
}

/* Every word as its bytes' ids, every pair counted, and all pairs in the heap. */
static void trainer_start(struct Trainer *t, const struct WordTable *table)
{
    size_t size = 0, words = 0;
    *t = (struct Trainer){.index = pair_table(16)};
    for (size_t i = 0; i < (size_t)1 << table->bits; i++)
        if (table->slots[i].count) size += word_length(&table->slots[i]);
    if (table->count >= UINT32_MAX)
        die("more than 4 billion different words are too many. Train on less text.");
    t->ids = resize(NULL, size * sizeof *t->ids);
    t->words = resize(NULL, table->count * sizeof *t->words);
    size = 0;
    for (size_t i = 0; i < (size_t)1 << table->bits; i++) {
        const struct Word *w = &table->slots[i];
        const size_t n = word_length(w);
        if (!w->count || n < 2) continue;
        if (n >= UINT32_MAX)
            die("a run of %.1f GB without a word boundary is too long. Split the text.", n / 1e9);
        const uint8_t *bytes = w->bytes ? w->bytes : (const uint8_t *)&w->key;
        for (size_t k = 0; k < n; k++) t->ids[size + k] = id_of_byte[bytes[k]];
        t->words[words].at = size;
        t->words[words].length = (uint32_t)n;
        t->words[words++].count = w->count;
        size += n;
    }
    t->word_total = (uint32_t)words;
    for (uint32_t word = 0; word < t->word_total; word++) {
        const uint16_t *ids = t->ids + t->words[word].at;
        for (uint32_t i = 0; i + 1 < t->words[word].length; i++)
            pair_change(t, ids[i], ids[i + 1], t->words[word].count, word);
    }
    for (int i = 0; i < t->pair_total; i++)
        heap_push(t, (struct Candidate){t->pairs[i].count, t->pairs[i].pair, i});
}

static void trainer_free(struct Trainer *t)
{
    for (int i = 0; i < t->pair_total; i++) free(t->pairs[i].words);
    release(t->index.slots, sizeof(uint64_t) << t->index.bits);
    free(t->ids); free(t->words); free(t->pairs); free(t->heap);
}

/* Merges the most frequent pair, of equals the one with the smallest ids, until there are
 * `merges`. A count in the heap may be out of date, but only too large: pairs become more
 * frequent only through a merge that makes one of their tokens, and are pushed after it. */
static void learn_merges(struct Tokenizer *out, struct Trainer *t, int merges,
                         int64_t min_frequency, int max_bytes)
{
    const double start = seconds();
    double shown = start;
    while (out->merges < merges && t->heap_size) {
        const struct Candidate c = heap_pop(t);
        const int64_t count = t->pairs[c.index].count;
        if (count != c.count) {
            if (count > 0) heap_push(t, (struct Candidate){count, c.pair, c.index});
            continue;
        }
        if (count < min_frequency || count < 1) break;
        const int a = (int)(c.pair >> 16), b = (int)(c.pair & 0xFFFF);
        const uint32_t *at = out->offset;
        if ((int)(at[a + 1] - at[a] + at[b + 1] - at[b]) > max_bytes) continue;
        const int made = add_merge(out, a, b), before = t->pair_total;
        for (uint32_t i = 0; i < t->pairs[c.index].places; i++)
            merge_word(t, t->pairs[c.index].words[i], a, b, made);
        free(t->pairs[c.index].words);
        t->pairs[c.index] = (struct Neighbours){.pair = c.pair};
        for (int i = before; i < t->pair_total; i++)
            if (t->pairs[i].count > 0)
                heap_push(t, (struct Candidate){t->pairs[i].count, t->pairs[i].pair, i});
        if (live() && seconds() - shown > 0.1) {
            shown = seconds();
            progress(false, "merging %d of %d  %s left", out->merges, merges,
                     duration((shown - start) / out->merges * (merges - out->merges)));
        }
    }
}

/* ============================================================================================= */
/* 7. Shards                                                                                     */
/* ============================================================================================= */

/* llm.c's format: 256 numbers of 32 bits, {20240520, 1, tokens, 0, ...}, then 16 bits a token.
 * Every document has <|endoftext|> before it. A shard is full at `limit` tokens, wherever in a
 * document that is; the next one goes on there. */
enum { SHARD_MAGIC = 20240520, SHARD_VERSION = 1, SHARD_HEADER = 1024 };

struct Shards {
    char *prefix;
    int64_t limit, in_shard, total;     /* tokens */
    int number;                         /* of the shard being written */
    bool open;
    struct Output out;
};

static char *shard_path(const struct Shards *s, int number)
{
    return text_of("%s_%06d.bin", s->prefix, number);
}

static void write_header(struct Shards *s)
{
    const int32_t header[SHARD_HEADER / 4] = {SHARD_MAGIC, SHARD_VERSION, (int32_t)s->in_shard};
    output_write(&s->out, header, sizeof header);
}

static void finish_shard(struct Shards *s)
{
    if (!s->open) return;
    if (fseek(s->out.file, 0, SEEK_SET)) die("%s: cannot seek (%s).", s->out.path, strerror(errno));
    write_header(s);
    output_commit(&s->out);
    s->in_shard = 0;
    s->open = false;
    s->number++;
}

static void write_tokens(struct Shards *s, const uint16_t *ids, size_t n)
{
    while (n) {
        if (!s->open) {
            char *path = shard_path(s, s->number);
            s->out = output_open(path);
            s->open = true;
            write_header(s);
            free(path);
        }
        const size_t room = (size_t)(s->limit - s->in_shard), now = n < room ? n : room;
        output_write(&s->out, ids, now * sizeof *ids);
        s->in_shard += now;
        s->total += now;
        ids += now;
        n -= now;
        if (s->in_shard == s->limit) finish_shard(s);
    }
}

/* An earlier run with this prefix may have left shards that this one did not replace. */
static void remove_old_shards(const struct Shards *s)
{
    for (int number = s->number; ; number++) {
        char *path = shard_path(s, number);
        const bool more = !unlink(path);
        free(path);
        if (!more) return;
    }
}

/* The tokens of a shard, after checks of all that its header says. */
static const uint16_t *read_shard(const char *path, struct Bytes file, size_t *count)
{
    int32_t header[3] = {0};
    if (file.size < SHARD_HEADER)
        die("%s: %zu bytes are less than a shard's header of %d. Encode it again.", path,
            file.size, SHARD_HEADER);
    memcpy(header, file.data, sizeof header);
    if (header[0] != SHARD_MAGIC)
        die("%s: byte 0: a shard begins with the number %d, this file with %d. Name a shard.",
            path, SHARD_MAGIC, header[0]);
    if (header[1] != SHARD_VERSION)
        die("%s: byte 4: version %d of the format is not known, only %d.", path, header[1],
            SHARD_VERSION);
    if (header[2] < 0)
        die("%s: byte 8: %d is no number of tokens. Encode it again.", path, header[2]);
    *count = (size_t)header[2];
    const int64_t off = (int64_t)(file.size - SHARD_HEADER) / 2 - header[2];
    if (off || file.size % 2)
        die("%s: %lld tokens %s than the %d that its header says (it ends at byte %zu). "
            "Encode it again.", path, (long long)llabs(off), off < 0 ? "fewer" : "more", header[2],
            file.size);
    return (const uint16_t *)(file.data + SHARD_HEADER);
}

/* ============================================================================================= */
/* 8. Commands                                                                                   */
/* ============================================================================================= */

#define THREADS_OPTION {"threads", "0: as many as the machine has", INTEGER, &threads, .max = 1024}
#define CHUNK_OPTION {"chunk-bytes", "text that a thread takes at a time; the result is the same", \
                      LONG, &chunk_bytes, .min = 1, .max = 1 << 24}
#define SPLIT_OPTION {"split", "where documents end", CHOICE, &split, .choices = "file|lines|eot"}
#define TOKENIZER_OPTION {"tokenizer", "directory with merges.txt, or such a file", TEXT, \
                          &tokenizer, .required = true}

#define SPECIAL_OPTION {"special", "<|endoftext|> in the text is the token", FLAG, &special}

enum { CHUNK_BYTES = 1 << 19 };

/* Special tokens must not be words that the merges could make: no text would tell them apart. */
static int check_specials(const char *specials)
{
    struct Buffer all = {0};
    int count = 1;
    append(&all, "%s", specials);
    prepare_classes();
    for (char *word = strtok(all.data, " "); word; word = strtok(NULL, " "), count++) {
        const uint8_t *p = (const uint8_t *)word, *end = p + strlen(word);
        for (const uint8_t *c = p; c < end; c++)
            if (*c <= ' ' || *c > '~')
                die_usage("--special %s: only visible ASCII characters can be used.", word);
        if (plain_piece_end(p, end) == end)
            die_usage("--special %s: could also be an ordinary token. Choose one like <|%s|>.",
                      word, word);
        if (!strcmp(word, END_OF_TEXT)) die_usage("--special %s: is always there.", word);
    }
    free(all.data);
    return count;
}

static int command_train(int argc, char **argv)
{
    int vocabulary = 8192, threads = 0, max_bytes = MAX_TOKEN_BYTES;
    int64_t min_frequency = 2, chunk_bytes = CHUNK_BYTES;
    const char *out = NULL, *split = "file", *specials = "";
    bool overwrite = false;
    struct Option options[] = {
        {"vocab", "tokens in all: 256 bytes, merges, special tokens", INTEGER, &vocabulary,
         .min = 257, .max = 65536},
        {"out", "directory for merges.txt and vocab.json", TEXT, &out, .required = true},
        SPLIT_OPTION,
        {"min-frequency", "a pair that occurs less often is not merged", LONG, &min_frequency,
         .min = 1, .max = 1e15},
        {"max-token-bytes", "no token is longer", INTEGER, &max_bytes, .min = 1,
         .max = MAX_TOKEN_BYTES},
        {"special", "more special tokens than <|endoftext|>, separated by spaces", TEXT, &specials},
        {"overwrite", "replace the tokenizer that --out holds", FLAG, &overwrite},
        CHUNK_OPTION, THREADS_OPTION};
    const int files = parse_options(argc, argv, options, COUNT(options),
                                    "tokenizer train --out DIR [OPTION...] FILE...\n"
                                    "Learns merges from texts (- is standard input).");
    const double start = seconds();
    char *path = text_of("%s/merges.txt", out);
    if (file_exists(path) && !overwrite)
        die("%s: exists. Choose another --out, or add --overwrite.", path);
    const int merges = vocabulary - BYTES - check_specials(specials);
    if (merges < 0)
        die_usage("--vocab %d: too few for 256 bytes and the special tokens.", vocabulary);
    set_threads(threads);
    struct Source source = source_open(argv, files, split, chunk_bytes);
    struct WordTable words = count_words(&source);
    if (!words.count) die("%s: no text to learn from. Name files that hold some.", argv[0]);
    struct Tokenizer *t = tokenizer_new(merges);
    struct Trainer trainer;
    trainer_start(&trainer, &words);
    learn_merges(t, &trainer, merges, min_frequency, max_bytes);
    if (t->merges < merges)
        warn("only %d merges occur often enough, so the vocabulary has %d tokens, not %d.",
             t->merges, vocabulary - merges + t->merges, vocabulary);
    add_specials(t, specials);
    tokenizer_save(t, out);
    progress(true, "%s: %d tokens from %.1f MB, %zu different words, in %.2f s", out,
             t->vocabulary, source.done / 1e6, words.count, seconds() - start);
    trainer_free(&trainer);
    word_table_free(&words);
    source_close(&source);
    tokenizer_free(t);
    free(path);
    return 0;
}

/* --- encode --- */

/* What a chunk became. Its first `head` ids continue the document before; each later document
 * went to one of two sides: 0 to train on, 1 set aside for validation. */
struct Encoded {
    bool ready;
    struct { uint16_t *ids; size_t count, room; } side[2];
    size_t head, documents;
    int last_side;              /* where the last document went; -1 if none began */
};

/* One encoder for each thread. */
static struct Encoder **encoders_new(const struct Tokenizer *t, int threads)
{
    struct Encoder **e = resize(NULL, threads * sizeof *e);
    for (int i = 0; i < threads; i++) e[i] = encoder_new(t);
    return e;
}

static void encoders_free(struct Encoder **e, int threads)
{
    for (int i = 0; i < threads; i++) encoder_free(e[i]);
    free(e);
}

/* Room for what `count` chunks become; it grows as needed. */
static struct Encoded *encoded_new(int count)
{
    struct Encoded *e = resize(NULL, count * sizeof *e);
    memset(e, 0, count * sizeof *e);
    return e;
}

static void encoded_free(struct Encoded *e, int count)
{
    for (int i = 0; i < count; i++) {
        free(e[i].side[0].ids);
        free(e[i].side[1].ids);
    }
    free(e);
}

/* Whether the document that begins at this byte of this file is set aside. Neither threads nor
 * chunks change it. */
static int side_of(const struct Chunk *c, const uint8_t *begin, double val_fraction, int64_t seed)
{
    struct Random r = random_stream((uint64_t)seed + ((uint64_t)c->file_number << 44),
                                    (uint64_t)(c->file_bytes - (c->readable - begin)));
    return random_uniform(&r) < val_fraction;
}

static void encode_chunk(struct Encoded *e, struct Encoder *encoder, struct Chunk c,
                         double val_fraction, int64_t seed)
{
    const uint8_t *begin, *end;
    bool starts;
    e->side[0].count = e->side[1].count = e->head = e->documents = 0;
    e->last_side = -1;
    while (next_part(&c, &begin, &end, &starts)) {
        const int side = starts ? side_of(&c, begin, val_fraction, seed) : 0;
        const size_t most = e->side[side].count + (end - begin) + 16;
        if (most > e->side[side].room)
            e->side[side].ids = resize(e->side[side].ids, 2 * (e->side[side].room = 2 * most));
        uint16_t *ids = e->side[side].ids + e->side[side].count, *at = ids;
        if (starts) *at++ = (uint16_t)encoder->tokenizer->eot;
        at += encode_text(encoder, begin, end, c.readable, at);
        e->side[side].count += at - ids;
        if (!starts) e->head = at - ids;
        else e->last_side = side;
        e->documents += starts;
    }
}

/* Writes it. Called in the order of the chunks; *side is where the document that is going on
 * belongs. */
static void write_encoded(struct Shards *shards, const struct Encoded *e, int *side)
{
    write_tokens(&shards[*side], e->side[0].ids, e->head);
    write_tokens(&shards[0], e->side[0].ids + e->head, e->side[0].count - e->head);
    write_tokens(&shards[1], e->side[1].ids, e->side[1].count);
    if (e->last_side >= 0) *side = e->last_side;
}

/* Threads encode chunks, one after the other; whoever completes the chunk that is to be written
 * next writes it, and those after it that are ready, so nobody waits for another's chunk. */
static size_t encode_files(struct Shards *shards, const struct Tokenizer *t, struct Source *source,
                           double val_fraction, int64_t seed)
{
    struct Chunk chunks[BATCH];
    struct Encoded *encoded = encoded_new(BATCH);
    struct Encoder **encoders = encoders_new(t, thread_count());
    size_t documents = 0;
    int side = 0;
    for (int n; (n = next_chunks(source, chunks)); show_progress(source, "encoding")) {
        int written = 0;
        for (int i = 0; i < n; i++) encoded[i].ready = false;
        #pragma omp parallel for schedule(dynamic, 1)
        for (int i = 0; i < n; i++) {
            encode_chunk(&encoded[i], encoders[thread_index()], chunks[i], val_fraction, seed);
            #pragma omp critical
            for (encoded[i].ready = true; written < n && encoded[written].ready; written++) {
                write_encoded(shards, &encoded[written], &side);
                documents += encoded[written].documents;
            }
        }
    }
    encoded_free(encoded, BATCH);
    encoders_free(encoders, thread_count());
    return documents;
}

static void check_shards(const struct Shards *s, bool overwrite)
{
    char *path = shard_path(s, 0);
    if (file_exists(path) && !overwrite)
        die("%s: exists. Choose another --out, or add --overwrite.", path);
    free(path);
}

static int command_encode(int argc, char **argv)
{
    int threads = 0;
    int64_t shard_tokens = 100000000, chunk_bytes = CHUNK_BYTES, seed = 1;
    double val_fraction = 0;
    const char *tokenizer = NULL, *out = NULL, *split = "file";
    bool overwrite = false;
    struct Option options[] = {
        TOKENIZER_OPTION,
        {"out", "shards are TEXT_000000.bin, TEXT_000001.bin, ...", TEXT, &out, .required = true},
        SPLIT_OPTION,
        {"shard-tokens", "tokens in a shard", LONG, &shard_tokens, .min = 1, .max = INT32_MAX},
        {"val-fraction", "this part of the documents goes to TEXT_val_000000.bin, ...",
         REAL_NUMBER, &val_fraction, .max = 1},
        {"seed", "which documents these are", LONG, &seed, .max = 1e15},
        {"overwrite", "replace the shards of an earlier run", FLAG, &overwrite},
        CHUNK_OPTION, THREADS_OPTION};
    const int files = parse_options(
        argc, argv, options, COUNT(options),
        "tokenizer encode --tokenizer DIR --out PREFIX [OPTION...] FILE...\n"
        "Writes the token ids of texts (- is standard input) to shards.");
    struct Shards shards[2] = {{.prefix = text_of("%s", out), .limit = shard_tokens},
                               {.prefix = text_of("%s_val", out), .limit = shard_tokens}};
    for (int i = 0; i < 2; i++) check_shards(&shards[i], overwrite);
    set_threads(threads);
    struct Tokenizer *t = tokenizer_load(tokenizer);
    struct Source source = source_open(argv, files, split, chunk_bytes);
    char *slash = strrchr(shards[0].prefix, '/');
    if (slash && slash > shards[0].prefix) {
        *slash = 0;
        make_directory(shards[0].prefix);
        *slash = '/';
    }
    const size_t documents = encode_files(shards, t, &source, val_fraction, seed);
    if (!documents) die("%s: no document in the input. Name files that hold text.", argv[0]);
    if (!shards[0].total || (val_fraction > 0 && !shards[1].total))
        die("--val-fraction %g: of %zu documents, %s. Change it, --seed or --split.", val_fraction,
            documents, shards[0].total ? "none is set aside" : "none is left to train on");
    for (int i = 0; i < 2; i++) {
        finish_shard(&shards[i]);
        if (overwrite) remove_old_shards(&shards[i]);
        if (shards[i].total)
            progress(true, "%s_%06d.bin%s: %lld tokens", shards[i].prefix, 0,
                     shards[i].number > 1 ? " ..." : "", (long long)shards[i].total);
        free(shards[i].prefix);
    }
    const double elapsed = seconds() - source.start;
    progress(true, "%zu documents, %.1f MB, %.2f bytes per token, %.2f s, %.1f MB/s", documents,
             source.done / 1e6, (double)source.done / (shards[0].total + shards[1].total), elapsed,
             source.done / 1e6 / elapsed);
    source_close(&source);
    tokenizer_free(t);
    return 0;
}

/* --- decode --- */

enum { DECODE_TOKENS = 1 << 16 };       /* decoded at a time */

/* The bytes of n tokens, with `mark` in the place of <|endoftext|>. Returns the first token that
 * is none, or n. Short tokens are copied as 16 bytes, of which the next token overwrites what is
 * too much. */
static size_t decode_tokens(struct Buffer *out, const struct Tokenizer *t, const uint16_t *ids,
                            size_t n, const char *mark)
{
    const size_t mark_bytes = strlen(mark);
    size_t size = 16;
    for (size_t i = 0; i < n; i++) {
        if (ids[i] >= t->vocabulary) { out->size = 0; return i; }
        size += ids[i] == t->eot ? mark_bytes : t->offset[ids[i] + 1] - t->offset[ids[i]];
    }
    if (size > out->capacity) out->data = resize(out->data, out->capacity = 2 * size);
    char *o = out->data;
    for (size_t i = 0; i < n; i++) {
        const bool eot = ids[i] == t->eot;
        const uint8_t *bytes = t->bytes + t->offset[ids[i]];
        const size_t length = eot ? mark_bytes : t->offset[ids[i] + 1] - t->offset[ids[i]];
        if (length <= 16 && !eot) memcpy(o, bytes, 16);
        else memcpy(o, eot ? (const uint8_t *)mark : bytes, length);
        o += length;
    }
    out->size = o - out->data;
    return n;
}

static void write_stdout(const char *bytes, size_t n)
{
    while (n) {
        const ssize_t written = write(1, bytes, n);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) die("standard output: writing failed (%s).", strerror(errno));
        bytes += written;
        n -= (size_t)written;
    }
}

static void decode_shard(const struct Tokenizer *t, const char *path, bool first, const char *mark)
{
    size_t count;
    struct Bytes file = map_file(path);
    const uint16_t *ids = read_shard(path, file, &count);
    if (first && count && *ids == t->eot) { ids++; count--; }       /* nothing stands before it */
    struct Buffer out = {0};
    for (size_t at = 0; at < count; at += DECODE_TOKENS) {
        const size_t n = count - at < DECODE_TOKENS ? count - at : DECODE_TOKENS;
        const size_t good = decode_tokens(&out, t, ids + at, n, mark);
        write_stdout(out.data, out.size);
        if (good < n)
            die("%s: byte %zu: token %d is not in the vocabulary of %d. "
                "Name the tokenizer that made the shard.", path,
                (size_t)((const char *)(ids + at + good) - file.data), ids[at + good],
                    t->vocabulary);
    }
    free(out.data);
    unmap_file(file);
}

static int command_decode(int argc, char **argv)
{
    const char *tokenizer = NULL, *split = "file";
    struct Option options[] = {
        TOKENIZER_OPTION,
        {"split", "what ends a document: nothing, a line end, <|endoftext|>", CHOICE, &split,
         .choices = "file|lines|eot"}};
    const int shards = parse_options(
        argc, argv, options, COUNT(options),
        "tokenizer decode --tokenizer DIR [OPTION...] SHARD...\n"
        "Writes the bytes that the shards' tokens stand for to standard output.");
    if (!shards) die_usage("no SHARD is named. Name the files that `tokenizer encode` wrote.");
    struct Tokenizer *t = tokenizer_load(tokenizer);
    const enum Split kind = split_of(split);
    const char *const marks[] = {"", "\n", END_OF_TEXT};
    for (int i = 0; i < shards; i++) decode_shard(t, argv[i], i == 0, marks[kind]);
    if (kind == SPLIT_LINES) write_stdout("\n", 1);
    tokenizer_free(t);
    return 0;
}

/* --- ids, show, stats --- */

static struct Buffer read_stdin(void)
{
    struct Buffer b = {0};
    char block[65536];
    append_bytes(&b, "", 0);
    for (size_t n; (n = fread(block, 1, sizeof block, stdin)); ) append_bytes(&b, block, n);
    if (ferror(stdin)) die("standard input: cannot be read (%s).", strerror(errno));
    return b;
}

/* The longest special token that stands at p, or -1. */
static int special_at(const struct Tokenizer *t, const char *p, const char *end)
{
    int best = -1, best_length = 0;
    for (int id = first_special(t); id < t->vocabulary; id++) {
        int n;
        const uint8_t *bytes = tokenizer_piece(t, id, &n);
        if (n > best_length && end - p >= n && !memcmp(p, bytes, n)) best = id, best_length = n;
    }
    return best;
}

/* Encodes a text; with `special`, special tokens in it are themselves, and texts end there.
 * `ids` has room for n. */
static int encode_special(struct Tokenizer *t, const char *text, size_t n, bool special, int *ids)
{
    if (!special) return tokenizer_encode(t, text, n, ids);
    const char *end = text + n, *start = text;
    int count = 0;
    for (const char *p = text; p < end; p++) {
        const int id = special_at(t, p, end);
        if (id < 0) continue;
        count += tokenizer_encode(t, start, p - start, ids + count);
        ids[count++] = id;
        p += t->offset[id + 1] - t->offset[id] - 1;
        start = p + 1;
    }
    return count + tokenizer_encode(t, start, end - start, ids + count);
}

static int command_ids(int argc, char **argv)
{
    const char *tokenizer = NULL;
    bool special = false;
    struct Option options[] = {TOKENIZER_OPTION, SPECIAL_OPTION};
    if (parse_options(argc, argv, options, COUNT(options),
                      "tokenizer ids --tokenizer DIR [--special] <TEXT\n"
                      "Prints the token ids of standard input on one line."))
        die_usage("%s: not expected; the text is read from standard input.", argv[0]);
    struct Tokenizer *t = tokenizer_load(tokenizer);
    struct Buffer text = read_stdin(), line = {0};
    int *ids = resize(NULL, (text.size + 1) * sizeof *ids);
    const int n = encode_special(t, text.data, text.size, special, ids);
    for (int i = 0; i < n; i++) {
        char digits[8];
        int k = sizeof digits;
        digits[--k] = ' ';
        for (int id = ids[i]; id || k == sizeof digits - 1; id /= 10)
            digits[--k] = (char)('0' + id % 10);
        append_bytes(&line, digits + k, sizeof digits - k - (i + 1 == n));
    }
    append_bytes(&line, "\n", 1);
    write_stdout(line.data, line.size);
    free(ids); free(text.data); free(line.data);
    tokenizer_free(t);
    return 0;
}

/* A token as one can read it: control characters and broken UTF-8 as \n, \t, \xE4. */
static void append_readable(struct Buffer *b, const uint8_t *p, int n)
{
    for (const uint8_t *end = p + n; p < end; ) {
        int length;
        utf8_class(p, end, &length);
        if (*p == '\n' || *p == '\t' || *p == '\r')
            append(b, "\\%c", *p == '\n' ? 'n' : *p == '\t' ? 't' : 'r');
        else if (length > 1 || (*p >= ' ' && *p < 127)) append_bytes(b, p, length);
        else append(b, "\\x%02X", *p);
        p += length;
    }
}

static int command_show(int argc, char **argv)
{
    const char *tokenizer = NULL;
    bool special = false;
    struct Option options[] = {TOKENIZER_OPTION, SPECIAL_OPTION};
    const int texts = parse_options(
        argc, argv, options, COUNT(options),
        "tokenizer show --tokenizer DIR [--special] [TEXT]\n"
        "Shows the tokens of TEXT, or of standard input, and their ids.");
    if (texts > 1) die_usage("%s: one TEXT is expected. Put it in quotes.", argv[1]);
    struct Tokenizer *t = tokenizer_load(tokenizer);
    struct Buffer text = {0}, line = {0}, table = {0};
    if (texts) append_bytes(&text, argv[0], strlen(argv[0]));
    else text = read_stdin();
    int *ids = resize(NULL, (text.size + 1) * sizeof *ids);
    const int n = encode_special(t, text.data, text.size, special, ids);
    for (int i = 0; i < n; i++) {
        int length;
        const uint8_t *bytes = tokenizer_piece(t, ids[i], &length);
        if (isatty(1)) append(&line, "\033[%sm", i % 2 ? "30;46" : "30;43");
        append_readable(&line, bytes, length);
        append(&line, "%s", isatty(1) ? "\033[0m" : i + 1 < n ? "|" : "");
        append(&table, "%6d  ", ids[i]);
        append_readable(&table, bytes, length);
        append(&table, "\n");
    }
    printf("%s\n%s%d tokens, %zu bytes, %.2f bytes per token\n", n ? line.data : "",
           n ? table.data : "", n, text.size, n ? (double)text.size / n : 0);
    free(ids); free(text.data); free(line.data); free(table.data);
    tokenizer_free(t);
    return 0;
}

/* How often every token occurs in the files. */
static int64_t *count_tokens(const struct Tokenizer *t, struct Source *source, int64_t *pieces,
                             int64_t *single)
{
    const int threads = thread_count();
    int64_t *uses = allocate_zeroed((size_t)threads * t->vocabulary * sizeof *uses);
    struct Encoded *encoded = encoded_new(threads);
    struct Encoder **encoders = encoders_new(t, threads);
    struct Chunk chunks[BATCH];
    for (int n; (n = next_chunks(source, chunks)); show_progress(source, "counting tokens")) {
        #pragma omp parallel for schedule(dynamic, 1)
        for (int i = 0; i < n; i++) {
            struct Encoded *mine = &encoded[thread_index()];
            int64_t *own = uses + (size_t)thread_index() * t->vocabulary;
            encode_chunk(mine, encoders[thread_index()], chunks[i], 0, 0);
            for (size_t k = 0; k < mine->side[0].count; k++) own[mine->side[0].ids[k]]++;
        }
    }
    for (int i = 0; i < threads; i++) {
        for (int id = 0; id < t->vocabulary && i; id++)
            uses[id] += uses[(size_t)i * t->vocabulary + id];
        *pieces += encoders[i]->pieces;
        *single += encoders[i]->single;
    }
    encoded_free(encoded, threads);
    encoders_free(encoders, threads);
    return uses;
}

/* The n longest tokens that are used, longest first. */
static void print_longest(const struct Tokenizer *t, const int64_t *uses, int n)
{
    struct Buffer b = {0};
    bool *shown = resize(NULL, t->vocabulary);
    memset(shown, 0, t->vocabulary);
    for (int k = 0; k < n; k++) {
        int best = -1, length, best_length = 0;
        for (int id = 0; id < first_special(t); id++) {
            tokenizer_piece(t, id, &length);
            if (uses[id] && !shown[id] && length > best_length) best = id, best_length = length;
        }
        if (best < 0) break;
        shown[best] = true;
        append(&b, "%8d %10lld  \"", best, (long long)uses[best]);
        const uint8_t *bytes = tokenizer_piece(t, best, &length);
        append_readable(&b, bytes, length);
        append(&b, "\"\n");
    }
    printf("longest tokens (id, uses, bytes)\n%s", b.size ? b.data : "");
    free(b.data);
    free(shown);
}

static int command_stats(int argc, char **argv)
{
    int threads = 0, longest = 10;
    int64_t chunk_bytes = CHUNK_BYTES, pieces = 0, single = 0, tokens = 0, unused = 0;
    const char *tokenizer = NULL, *split = "file";
    struct Option options[] = {
        TOKENIZER_OPTION, SPLIT_OPTION,
        {"longest", "how many of the longest tokens to print", INTEGER, &longest, .max = 65536},
        THREADS_OPTION};
    const int files = parse_options(argc, argv, options, COUNT(options),
                                    "tokenizer stats --tokenizer DIR [OPTION...] FILE...\n"
                                    "How well the vocabulary fits texts.");
    set_threads(threads);
    struct Tokenizer *t = tokenizer_load(tokenizer);
    struct Source source = source_open(argv, files, split, chunk_bytes);
    int64_t *uses = count_tokens(t, &source, &pieces, &single);
    for (int id = 0; id < first_special(t); id++) {
        tokens += uses[id];
        unused += !uses[id];
    }
    printf("bytes            %lld\ntokens           %lld\n", (long long)source.done,
           (long long)tokens);
    printf("bytes_per_token  %.4f\n", tokens ? (double)source.done / tokens : 0);
    printf("documents        %lld\nwords            %lld\n", (long long)uses[t->eot],
           (long long)pieces);
    printf("one_token_words  %.2f %%\n", pieces ? 100.0 * single / pieces : 0);
    printf("unused_tokens    %lld of %d\n", (long long)unused, first_special(t));
    print_longest(t, uses, longest);
    source_close(&source);
    tokenizer_free(t);
    return 0;
}

int main(int argc, char **argv)
{
    static const struct Command commands[] = {
        {"train", command_train, "learn a vocabulary from texts"},
        {"encode", command_encode, "texts to shards of token ids"},
        {"decode", command_decode, "shards back to bytes"},
        {"ids", command_ids, "the token ids of standard input"},
        {"show", command_show, "the tokens of a text, to look at"},
        {"stats", command_stats, "how well a vocabulary fits texts"}};
    return run_command("tokenizer", argc, argv, commands, COUNT(commands));
}

#endif
