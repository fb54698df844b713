/* tokenizer.c: byte-level byte-pair encoding, GPT-2's tokenizer: train, encode, decode, show.
 *
 *    cc -O3 -march=native -fopenmp tokenizer.c -o tokenizer -lm        (-fopenmp is optional)
 *
 * A language model reads ids, not letters. A tokenizer cuts a text into tokens, short byte strings
 * that have an id each. Every byte is a token. A merge (a, b) adds a token: the bytes of token a
 * followed by the bytes of token b. The list of merges is learned from a text, and then encodes
 * any text (Gage 1994; Sennrich, Haddow, Birch 2016; Radford et al. 2019).
 *
 * Pieces: a text is first cut into pieces, roughly words with the space before them. A token never
 * crosses a cut. "low low lower" has the pieces "low", " low", " lower".
 *
 * Learning: count the pairs of neighbouring tokens in all pieces, merge the most frequent pair
 * everywhere, count again. Of equally frequent pairs, the one with the smaller ids is merged.
 * Files write a space as Ġ:
 *
 *    l o w | Ġ l o w | Ġ l o w e r    l o: 3   o w: 3   Ġ l: 2   w e: 1   e r: 1    256 = l o
 *    lo w | Ġ lo w | Ġ lo w e r       lo w: 3   Ġ lo: 2   w e: 1   e r: 1           257 = lo w
 *    low | Ġ low | Ġ low e r          Ġ low: 2   low e: 1   e r: 1                  258 = Ġ low
 *    low | Ġlow | Ġlow e r
 *
 * Encoding: in each piece, merge the pair that was learned first, until no pair can be merged.
 * "slow low" has the ids 82 257 258:
 *
 *    s l o w | Ġ l o w  ->  s lo w | Ġ lo w  ->  s low | Ġ low  ->  s low | Ġlow
 *
 * Any bytes can be encoded, and decoding returns the same bytes. The ids follow from the merges
 * alone: first the 256 bytes in GPT-2's order, then 256 + r for merge r = 0, 1, ..., and last
 * <|endoftext|>, which separates documents. GPT-2's own merges give GPT-2's ids.
 *
 *    Part I: what a tokenizer computes         Part II: speed, files, commands
 *      1  Characters                             6  Tables      pairs, the heap
 *      2  Pieces                                 7  Speed       16 bytes at a time, cache, sweep
 *      3  Vocabulary                             8  Files       merges.txt, tokenizer.json, ...
 *      4  Merging a piece                        9  Shards      what the training program reads
 *      5  Learning the merges                   10  Documents   texts, cut for the threads
 *                                               11  Commands    train, encode, decode, ...
 *
 * Other programs include this file after `#define TOKENIZER_NO_MAIN`, which leaves out sections 10
 * and 11. They use:
 *    tokenizer_load, tokenizer_of_model, tokenizer_describe, tokenizer_stage     directories (8)
 *    tokenizer_encode, tokenizer_free (7), tokenizer_piece (3)                   text <-> ids
 *    open_shard, count_set, missing_shard (9)                                    shards
 *    heap_sift_down, heap_pop (6)                                                sampling */

#include "model.h"
#include "data/unicode_classes.h"
#include <fnmatch.h>
#include <limits.h>

/* ============================================================================================= */
/* Part I: what a tokenizer computes                                                             */
/* ============================================================================================= */

/* --- Part II provides these tools --- */

/* A hash table that maps a pair of tokens (see pair_of) to a number. */
struct PairTable { uint64_t *slots; size_t count; int bits; };

static struct PairTable pair_table(size_t pairs);   /* empty; it grows beyond `pairs` if needed */
static void pair_table_free(struct PairTable *table);
static inline int pair_find(const struct PairTable *table, uint32_t pair);  /* -1: not there */
static void pair_add(struct PairTable *table, uint32_t pair, int number);   /* not there yet */

/* A binary heap: entries[0] has the largest key and, of equal keys, the smallest id. The caller
 * may store any number in index. */
struct Entry { double key; uint32_t id; int index; };
struct Heap { struct Entry *entries; size_t size, room; };

static void heap_push(struct Heap *h, struct Entry entry);
static struct Entry heap_pop(struct Heap *h);       /* takes out entries[0]; size must be > 0 */

/* Shows now and then how many of the wanted merges are done. start and *shown: seconds, when the
 * work began and when this line was last written. */
static void show_merging(int done, int wanted, double start, double *shown);

/* ============================================================================================= */
/* 1. Characters                                                                                 */
/* ============================================================================================= */

/* A character is a Unicode code point, which UTF-8 writes as 1 to 4 bytes. Where a text is cut
 * depends only on the class of each character: letter, number, white space or other. In regular
 * expressions the first three are \p{L}, \p{N} and \s (the property White_Space). */
enum { OTHER, LETTER, NUMBER, SPACE };

/* The class of each code point, in 2 bits. */
enum { CODE_POINTS = 0x110000 };
static uint8_t class_table[CODE_POINTS / 4];

static inline int code_point_class(uint32_t c) { return class_table[c / 4] >> 2 * (c % 4) & 3; }

/* Fills the table from CLASS_RUNS, in which a run of n code points of one class is the number
 * 4 n + class. The first run begins at U+0000; all that follows the last run is OTHER, 0. */
static void prepare_classes(void)
{
    uint32_t c = 0;
    if (code_point_class('a') == LETTER) return;        /* the table is filled already */
    for (int run = 0; run < COUNT(CLASS_RUNS); run++)
        for (uint32_t n = CLASS_RUNS[run] / 4; n > 0; n--, c++)
            class_table[c / 4] |= (CLASS_RUNS[run] & 3) << 2 * (c % 4);
}

/* The class of the character at p < end; *length: its number of bytes. A byte that is not part of
 * valid UTF-8 counts as one character of class OTHER. */
static int utf8_class(const uint8_t *p, const uint8_t *end, int *length)
{
    uint32_t code_point = 0;
    const int n = utf8_decode(p, end - p, &code_point);
    *length = n > 0 ? n : 1;
    return n > 0 ? code_point_class(code_point) : OTHER;
}

/* The same, faster for ASCII. */
static inline int class_at(const uint8_t *p, const uint8_t *end, int *length)
{
    *length = 1;
    return *p < 128 ? code_point_class(*p) : utf8_class(p, end, length);
}

/* ============================================================================================= */
/* 2. Pieces                                                                                     */
/* ============================================================================================= */

/* The length of the English contraction at p < end ('s 't 'm 'd 're 've 'll), or 0. */
static int contraction_length(const uint8_t *p, const uint8_t *end)
{
    if (*p != '\'' || end - p < 2) return 0;
    if (p[1] == 's' || p[1] == 't' || p[1] == 'm' || p[1] == 'd') return 2;
    if (end - p < 3) return 0;
    return !memcmp(p + 1, "re", 2) || !memcmp(p + 1, "ve", 2) || !memcmp(p + 1, "ll", 2) ? 3 : 0;
}

/* The end of the piece that begins at p < end, where `end` is the end of the text. A piece is the
 * first match of GPT-2's regular expression:
 *
 *    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *
 * In words: a contraction; or an optional space and then a run of letters, of numbers or of other
 * characters; or white space. \s+(?!\S) leaves the last character of white space to what follows,
 * so "a   b" has the pieces "a", "  ", " b". White space at the end of a text is one piece. */
static const uint8_t *plain_piece_end(const uint8_t *p, const uint8_t *end)
{
    int n, ahead;
    const int contraction = contraction_length(p, end);
    if (contraction) return p + contraction;
    const uint8_t *q = p;
    int class = class_at(q, end, &n);
    if (*p == ' ' && end - p > 1 && class_at(p + 1, end, &ahead) != SPACE)
        class = class_at(++q, end, &n);         /* the optional space */
    if (class != SPACE) {
        do q += n; while (q < end && class_at(q, end, &n) == class);
        return q;
    }
    const uint8_t *last;                        /* the last character of the white space */
    do { last = q; q += n; } while (q < end && class_at(q, end, &n) == SPACE);
    return q < end && last > p ? last : q;
}

/* ============================================================================================= */
/* 3. Vocabulary                                                                                 */
/* ============================================================================================= */

/* A shard stores an id in 16 bits, hence at most 65,536 tokens. */
enum { BYTES = 256, MAX_VOCABULARY = 65536, MAX_TOKEN_BYTES = 65535 };
#define END_OF_TEXT "<|endoftext|>"
enum { END_OF_TEXT_BYTES = sizeof END_OF_TEXT - 1 };

struct Tokenizer {
    int vocabulary;             /* V = 256 + merges + 1 */
    int merges;
    int eot;                    /* the id of <|endoftext|>: V - 1 */
    uint64_t hash;              /* of the list of merges */
    uint16_t (*parts)[2];       /* (merges, 2): token 256 + r is made of these two tokens */
    struct PairTable pairs;     /* (a, b) -> the token that is made of a and b */
    uint8_t *bytes;             /* the bytes of all tokens, back to back, in the order of the ids */
    uint32_t *offset;           /* (V + 1): token i begins at bytes[offset[i]], ends at the next */
    size_t room;                /* the allocated bytes; 16 beyond the last token may be read */
    struct Encoder *encoder;    /* (7) of tokenizer_encode, which creates it */
    /* What the directory's model does to a text (tokenizer_config.json). */
    bool begins;                /* each text begins with <|endoftext|> */
    bool keeps_tail;            /* of a text that is too long the tail is read, else the head */
    int max_length;             /* tokens that are read of a text; 0: not known */
    int *file_ids;              /* (V): how the directory numbers the tokens; NULL: as we do */
};

static inline int token_length(const struct Tokenizer *t, int id)
{
    return (int)(t->offset[id + 1] - t->offset[id]);
}

/* The bytes of a token; *length: how many. They are valid as long as no token is added. */
static inline const uint8_t *tokenizer_piece(const struct Tokenizer *t, int id, int *length)
{
    *length = token_length(t, id);
    return t->bytes + t->offset[id];
}

/* GPT-2 numbers the bytes by how its files write them. The ids 0 to 187 are the bytes that are
 * visible characters of Latin-1: "!" has the id 0, "a" 64. The other bytes follow in order: 0 to
 * 32, 127 to 160, 173. A space has the id 220. */
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

/* A tokenizer of the 256 bytes; `merges` is the expected number of merges. Also fills the tables of
 * sections 1 and 3, so one tokenizer must be made before anything is cut or encoded. */
static struct Tokenizer *tokenizer_new(size_t merges)
{
    struct Tokenizer *t = resize(NULL, sizeof *t);
    prepare_classes();
    prepare_bytes();
    *t = (struct Tokenizer){.vocabulary = BYTES, .pairs = pair_table(merges), .room = BYTES + 16};
    t->parts = resize(NULL, (size_t)MAX_VOCABULARY * sizeof *t->parts);
    t->offset = resize(NULL, ((size_t)MAX_VOCABULARY + 1) * sizeof *t->offset);
    t->bytes = resize(NULL, t->room);
    memcpy(t->bytes, byte_of_id, BYTES);
    for (int i = 0; i <= BYTES; i++) t->offset[i] = i;
    return t;
}

/* Adds a token of n bytes, whose id is the old t->vocabulary. Returns where its bytes belong. */
static uint8_t *add_token(struct Tokenizer *t, size_t n)
{
    const size_t size = t->offset[t->vocabulary];
    if (size + n + 16 > t->room) t->bytes = resize(t->bytes, t->room = 2 * (size + n + 16));
    t->offset[++t->vocabulary] = (uint32_t)(size + n);
    return t->bytes + size;
}

static inline uint32_t pair_of(int a, int b) { return (uint32_t)a << 16 | (uint32_t)b; }

/* The token that the merge of a and b makes, or -1 if there is no such merge. */
static inline int merged(const struct Tokenizer *t, int a, int b)
{
    return pair_find(&t->pairs, pair_of(a, b));
}

/* Adds the merge (a, b) to the end of the list; returns the id of its token. */
static int add_merge(struct Tokenizer *t, int a, int b)
{
    const int id = t->vocabulary, a_bytes = token_length(t, a), b_bytes = token_length(t, b);
    uint8_t *bytes = add_token(t, (size_t)a_bytes + b_bytes);
    memcpy(bytes, t->bytes + t->offset[a], a_bytes);
    memcpy(bytes + a_bytes, t->bytes + t->offset[b], b_bytes);
    t->parts[t->merges][0] = (uint16_t)a;
    t->parts[t->merges++][1] = (uint16_t)b;
    pair_add(&t->pairs, pair_of(a, b), id);
    return id;
}

/* Completes the vocabulary: adds <|endoftext|> and computes the hash. Models store the hash, so
 * that none is used with another tokenizer. FNV-1a (Fowler, Noll, Vo), a merge at a time. */
static void add_end_of_text(struct Tokenizer *t)
{
    const uint64_t prime = 0x100000001B3u;
    t->hash = 0xCBF29CE484222325u;
    for (int r = 0; r < t->merges; r++)
        t->hash = (t->hash ^ pair_of(t->parts[r][0], t->parts[r][1])) * prime;
    for (const char *s = END_OF_TEXT; *s; s++) t->hash = (t->hash ^ (uint8_t)*s) * prime;
    t->eot = t->vocabulary;
    memcpy(add_token(t, END_OF_TEXT_BYTES), END_OF_TEXT, END_OF_TEXT_BYTES);
}

/* ============================================================================================= */
/* 4. Merging a piece                                                                            */
/* ============================================================================================= */

enum { SHORT_PIECE = 48 };      /* bytes; merge_long (7) merges longer pieces, with equal results */

/* Merges a piece of n bytes, 0 < n <= SHORT_PIECE, by the definition: of all pairs of neighbours
 * that have a merge, merge the one that was learned first; repeat. out (n): the tokens. Returns
 * their number.
 *
 *    made[i]: the token that out[i] and out[i + 1] make, or NONE
 *
 * The pair that was learned first makes the smallest id, so the smallest made[i] is merged. If the
 * same pair occurs twice, the left one is merged first. A merge changes made[i] only beside it. */
static int merge_short(const struct Tokenizer *t, const uint8_t *piece, int n, uint16_t *out)
{
    const uint32_t NONE = (uint32_t)-1;         /* -1 of `merged`: larger than every id */
    uint32_t made[SHORT_PIECE];
    for (int i = 0; i < n; i++) out[i] = id_of_byte[piece[i]];
    for (int i = 0; i + 1 < n; i++) made[i] = merged(t, out[i], out[i + 1]);
    for (made[n - 1] = NONE; ; ) {
        int best = 0;
        for (int i = 1; i + 1 < n; i++) if (made[i] < made[best]) best = i;
        if (made[best] == NONE) return n;
        out[best] = (uint16_t)made[best];
        n--;
        for (int i = best + 1; i < n; i++) { out[i] = out[i + 1]; made[i - 1] = made[i]; }
        made[n - 1] = NONE;                     /* the last token has no right neighbour */
        if (best > 0) made[best - 1] = merged(t, out[best - 1], out[best]);
        if (best + 1 < n) made[best] = merged(t, out[best], out[best + 1]);
    }
}

/* ============================================================================================= */
/* 5. Learning the merges                                                                        */
/* ============================================================================================= */

/* A text has many pieces, but far fewer different ones. Each different piece is a word here and
 * carries the number of times that it occurs. So the time of learning depends on the number of
 * words, not on the length of the text.
 *
 * A merge changes only the words that contain its pair, and in these words only the pairs beside
 * it. Therefore all counts are computed once and then updated. */

struct Word { size_t at; uint32_t length; int64_t count; };     /* ids[at .. at + length) */

/* A pair of neighbouring tokens. */
struct PairCount {
    int64_t count;              /* how often it occurs in the texts now */
    uint32_t pair;              /* pair_of(a, b) */
    uint32_t *words;            /* (places): the words that contain it, or did before a merge */
    uint32_t places, room;
};

struct Trainer {
    uint16_t *ids;              /* the tokens of all words, back to back */
    size_t size;                /* of ids */
    struct Word *words;
    uint32_t word_count;
    struct PairCount *pairs;    /* all pairs that occur or have occurred */
    int pair_count, pair_room;
    struct PairTable index;     /* pair -> its index in pairs */
    struct Heap heap;           /* key: count; id: pair; index: in pairs */
};

/* An empty trainer with room for `words` words of `bytes` bytes in all. */
static struct Trainer trainer_new(size_t words, size_t bytes)
{
    struct Trainer t = {.index = pair_table(1 << 15)};
    t.ids = resize(NULL, bytes * sizeof *t.ids);
    t.words = resize(NULL, words * sizeof *t.words);
    return t;
}

static void trainer_free(struct Trainer *t)
{
    for (int i = 0; i < t->pair_count; i++) free(t->pairs[i].words);
    pair_table_free(&t->index);
    free(t->ids); free(t->words); free(t->pairs); free(t->heap.entries);
}

/* The index of the pair in t->pairs; a new pair is added with the count 0. */
static int pair_index(struct Trainer *t, uint32_t pair)
{
    const int found = pair_find(&t->index, pair);
    if (found >= 0) return found;
    if (t->pair_count == t->pair_room)
        t->pairs = resize(t->pairs, (t->pair_room = 2 * t->pair_room + 1024) * sizeof *t->pairs);
    t->pairs[t->pair_count] = (struct PairCount){.pair = pair};
    pair_add(&t->index, pair, t->pair_count);
    return t->pair_count++;
}

/* Changes the count of the pair (a, b), which occurs in this word: more often if change > 0, less
 * often if change < 0. */
static void change_count(struct Trainer *t, int a, int b, int64_t change, uint32_t word)
{
    const int index = pair_index(t, pair_of(a, b));
    struct PairCount *p = &t->pairs[index];
    p->count += change;
    if (change < 0 || (p->places && p->words[p->places - 1] == word)) return;
    if (p->places == p->room)
        p->words = resize(p->words, (p->room = 2 * p->room + 2) * sizeof *p->words);
    p->words[p->places++] = word;
}

/* Adds a word of n bytes that occurs `count` times, and counts its pairs. */
static void add_word(struct Trainer *t, const uint8_t *bytes, size_t n, int64_t count)
{
    uint16_t *ids = t->ids + t->size;
    for (size_t i = 0; i < n; i++) ids[i] = id_of_byte[bytes[i]];
    for (size_t i = 0; i + 1 < n; i++)
        change_count(t, ids[i], ids[i + 1], count, t->word_count);
    t->words[t->word_count++] = (struct Word){t->size, (uint32_t)n, count};
    t->size += n;
}

/* Replaces every a b in a word by the token `made`. In x a b y, the pairs (x, a) and (b, y) go and
 * (x, made) and (made, y) come. The word becomes shorter in place. */
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
        if (kept) {                             /* x is ids[kept - 1], which may be `made` itself */
            change_count(t, ids[kept - 1], a, -count, word);
            change_count(t, ids[kept - 1], made, count, word);
        }
        if (i + 2 < length) {                   /* y is ids[i + 2] */
            change_count(t, b, ids[i + 2], -count, word);
            change_count(t, made, ids[i + 2], count, word);
        }
        ids[kept++] = (uint16_t)made;
        i++;
    }
    t->words[word].length = kept;
}

/* Puts the pairs from number `first` on into the heap, unless they occur no more. */
static void push_pairs(struct Trainer *t, int first)
{
    for (int i = first; i < t->pair_count; i++)
        if (t->pairs[i].count > 0)
            heap_push(&t->heap, (struct Entry){t->pairs[i].count, t->pairs[i].pair, i});
}

/* Merges a pair in all words that contain it. Pairs with the new token are new; they are pushed
 * when all words are done and their counts are complete. */
static void merge_pair(struct Trainer *t, int index, int made)
{
    const struct PairCount p = t->pairs[index];     /* a copy: merge_word may move t->pairs */
    const int first = t->pair_count;
    for (uint32_t i = 0; i < p.places; i++)
        merge_word(t, p.words[i], (int)(p.pair >> 16), (int)(p.pair & 0xFFFF), made);
    free(p.words);
    t->pairs[index] = (struct PairCount){.pair = p.pair};
    push_pairs(t, first);
}

/* Learns merges until the tokenizer has `wanted` of them: merges the most frequent pair, of equal
 * counts the one with the smallest ids, again and again. Stops early if no pair occurs min_count
 * times. Pairs that would make a token of more than max_bytes are passed over. A count is exact
 * as the key of an entry, a double, below 2^53.
 *
 * The heap holds each pair once, with its count at the time of the push. The true count may have
 * become smaller, but not larger: only pairs with a new token become more frequent, and they are
 * pushed after that. Hence an entry that is popped and still right is the maximum of all pairs;
 * one that is out of date is pushed again with its true count. */
static void learn_merges(struct Tokenizer *out, struct Trainer *t, int wanted, int64_t min_count,
                         int max_bytes)
{
    const double start = seconds();
    double shown = start;
    push_pairs(t, 0);
    while (out->merges < wanted && t->heap.size) {
        struct Entry top = heap_pop(&t->heap);
        const int64_t count = t->pairs[top.index].count;
        if (count != (int64_t)top.key) {
            top.key = count;
            if (count > 0) heap_push(&t->heap, top);
            continue;
        }
        if (count < min_count) break;
        const int a = (int)(top.id >> 16), b = (int)(top.id & 0xFFFF);
        if (token_length(out, a) + token_length(out, b) > max_bytes) continue;
        merge_pair(t, top.index, add_merge(out, a, b));
        show_merging(out->merges, wanted, start, &shown);
    }
}

/* ============================================================================================= */
/* Part II: speed, files, commands                                                               */
/* ============================================================================================= */

/* ============================================================================================= */
/* 6. Tables                                                                                     */
/* ============================================================================================= */

/* --- Pairs of tokens -> numbers. Open addressing: a slot is pair << 32 | number + 1, or 0 --- */

static struct PairTable pair_table(size_t pairs)
{
    int bits = 10;
    while ((size_t)1 << bits < 2 * pairs) bits++;
    return (struct PairTable){allocate_zeroed(sizeof(uint64_t) << bits), 0, bits};
}

static void pair_table_free(struct PairTable *table)
{
    release(table->slots, sizeof(uint64_t) << table->bits);
}

/* The slot at which the search for a pair begins: the top bits of a product (Fibonacci hashing). */
static inline size_t pair_slot(const struct PairTable *table, uint32_t pair)
{
    return (size_t)(pair * 0x9E3779B97F4A7C15u >> (64 - table->bits));
}

static inline int pair_find(const struct PairTable *table, uint32_t pair)
{
    const size_t mask = ((size_t)1 << table->bits) - 1;
    for (size_t i = pair_slot(table, pair); table->slots[i]; i = (i + 1) & mask)
        if (table->slots[i] >> 32 == pair) return (int)(uint32_t)table->slots[i] - 1;
    return -1;
}

/* At most half of the slots are used, so that a search ends after few steps. */
static void pair_add(struct PairTable *table, uint32_t pair, int number)
{
    const size_t slots = (size_t)1 << table->bits;
    if (2 * table->count >= slots) {
        struct PairTable larger = pair_table(slots);
        for (size_t i = 0; i < slots; i++)
            if (table->slots[i])
                pair_add(&larger, table->slots[i] >> 32, (int)(uint32_t)table->slots[i] - 1);
        pair_table_free(table);
        *table = larger;
    }
    const size_t mask = ((size_t)1 << table->bits) - 1;
    size_t i = pair_slot(table, pair);
    while (table->slots[i]) i = (i + 1) & mask;
    table->slots[i] = (uint64_t)pair << 32 | (uint32_t)(number + 1);
    table->count++;
}

/* --- The heap: the children of entry i are the entries 2 i + 1 and 2 i + 2 --- */

static inline bool heap_before(const struct Entry *a, const struct Entry *b)
{
    return a->key != b->key ? a->key > b->key : a->id < b->id;
}

/* Moves entry i down until it comes before its children, which must be heaps already. */
static void heap_sift_down(struct Heap *h, size_t i)
{
    struct Entry *e = h->entries;
    const struct Entry moved = e[i];
    for (size_t child; (child = 2 * i + 1) < h->size; i = child) {
        if (child + 1 < h->size && heap_before(&e[child + 1], &e[child])) child++;
        if (!heap_before(&e[child], &moved)) break;
        e[i] = e[child];
    }
    e[i] = moved;
}

static void heap_push(struct Heap *h, struct Entry entry)
{
    if (h->size == h->room)
        h->entries = resize(h->entries, (h->room = 2 * h->room + 1024) * sizeof *h->entries);
    size_t i = h->size++;
    for (; i > 0 && heap_before(&entry, &h->entries[(i - 1) / 2]); i = (i - 1) / 2)
        h->entries[i] = h->entries[(i - 1) / 2];
    h->entries[i] = entry;
}

/* The entry that is taken out stays in memory at entries[size], so that popping all entries of an
 * array sorts it, the first entry of the heap last. */
static struct Entry heap_pop(struct Heap *h)
{
    const struct Entry top = h->entries[0];
    h->entries[0] = h->entries[--h->size];
    h->entries[h->size] = top;
    heap_sift_down(h, 0);
    return top;
}

/* --- Progress --- */

static void show_merging(int done, int wanted, double start, double *shown)
{
    if (!line_is_due(shown)) return;
    progress(false, "merging %d of %d  %s left", done, wanted,
             duration((*shown - start) / done * (wanted - done)));
}

/* ============================================================================================= */
/* 7. Speed                                                                                      */
/* ============================================================================================= */

/* --- Finding pieces, 16 bytes at a time --- */

/* Bit i is set if the byte p[i], i < 16, is an ASCII letter. The comparison makes each byte -1 or
 * 0. Without SSE2, a product gathers the lowest bits of eight bytes. */
static inline unsigned letter_mask(const uint8_t *p)
{
    typedef uint8_t bytes16 __attribute__((vector_size(16)));
    typedef char chars16 __attribute__((vector_size(16)));
    bytes16 x;
    memcpy(&x, p, sizeof x);
    const chars16 letters = (chars16)((x | 32) - 'a' < 26);     /* | 32: lower case */
#ifdef __SSE2__
    return (unsigned)__builtin_ia32_pmovmskb128(letters);
#else
    typedef uint64_t words2 __attribute__((vector_size(16)));
    const words2 bits = (words2)letters & 0x0101010101010101u;
    return (unsigned)(bits[0] * 0x0102040810204080u >> 56)
         | (unsigned)(bits[1] * 0x0102040810204080u >> 56) << 8;
#endif
}

/* The same as plain_piece_end. An optional space and up to 15 ASCII letters, nine pieces in ten of
 * an English text, are found in one step without a branch on their length. Memory may be read up
 * to `readable` >= end; if readable > end, the byte at `end` must not be a letter. */
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

/* --- Words: up to 15 bytes are one number of 16 bytes, the bytes, zeros and the length --- */

enum { WORD_BYTES = 15 };
typedef unsigned __int128 Bytes16;          /* the first byte is the lowest */

static inline Bytes16 load16(const uint8_t *p)
{
    Bytes16 x;
    memcpy(&x, p, sizeof x);
    return x;
}

/* The key of n <= WORD_BYTES bytes at p. Memory may be read up to `readable`; if that is at least
 * 16 bytes, one load and one mask are enough. */
static inline Bytes16 word_key(const uint8_t *p, size_t n, const uint8_t *readable)
{
    static const uint8_t KEEP[32] = {255, 255, 255, 255, 255, 255, 255, 255,
                                     255, 255, 255, 255, 255, 255, 255, 255};
    Bytes16 key = 0;
    if (readable - p >= 16) key = load16(p) & load16(KEEP + 16 - n);
    else memcpy(&key, p, n);
    return key | (Bytes16)n << 120;
}

/* A 128-bit product, folded to 64 bits, so that each bit of the key changes all bits of the hash
 * (wyhash by Wang Yi). */
static inline uint64_t key_hash(Bytes16 key)
{
    const Bytes16 product = (Bytes16)((uint64_t)key ^ 0xA0761D6478BD642Fu)
                          * ((uint64_t)(key >> 64) ^ 0xE7037ED1A0B428DBu);
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* --- The cache of words: most pieces have been merged before --- */

/* A slot is half a cache line. A word can be in either of the two slots of one line, the newer one
 * first; a third word replaces the older. Longer words, and those of more tokens, are not kept. */
enum { CACHE_BITS = 18, CACHE_IDS = 7 };
struct Slot { Bytes16 key; uint16_t ids[CACHE_IDS], count; };
static const size_t CACHE_BYTES = sizeof(struct Slot) << CACHE_BITS;

/* What one thread needs to encode. */
struct Encoder {
    const struct Tokenizer *tokenizer;
    struct Slot *cache;
    uint16_t *ids;              /* (room): of tokenizer_encode */
    size_t room;
    int64_t pieces, single;     /* counted for `stats`: pieces, and pieces of one token */
};

/* n encoders, one for each thread. */
static struct Encoder *encoders_new(const struct Tokenizer *t, int n)
{
    struct Encoder *e = resize(NULL, n * sizeof *e);
    for (int i = 0; i < n; i++)
        e[i] = (struct Encoder){.tokenizer = t, .cache = allocate_zeroed(CACHE_BYTES)};
    return e;
}

static void encoders_free(struct Encoder *e, int n)
{
    for (int i = 0; e && i < n; i++) {
        release(e[i].cache, CACHE_BYTES);
        free(e[i].ids);
    }
    free(e);
}

static void tokenizer_free(struct Tokenizer *t)
{
    encoders_free(t->encoder, 1);
    pair_table_free(&t->pairs);
    free(t->parts); free(t->bytes); free(t->offset); free(t->file_ids);
    free(t);
}

/* --- Long pieces: one sweep over the list of merges --- */

/* The time of merge_short grows with the square of the length. Here a piece is a doubly linked
 * list of tokens, and each merge has a list of the places where it may apply. A merge makes new
 * pairs only with its own token, and their merges are later in the list of merges. So one sweep
 * over the merges, in order, does all of them, in a time that grows linearly. The memory is about
 * 36 bytes for each byte of the piece. */
struct Sweep {
    const struct Tokenizer *tokenizer;
    uint32_t n;                 /* the length of the piece, in bytes */
    struct { uint32_t next, before; uint16_t id; } *tokens;     /* (n) by their first byte */
    struct { uint32_t at, next; } *places;      /* (3 n) linked by index; 0 ends a list */
    uint32_t place_count;
    uint32_t first[MAX_VOCABULARY];             /* of the list of the merge that makes this id */
    uint64_t waiting[MAX_VOCABULARY / 64];      /* one bit for each id: the list is not empty */
};

/* If the token at `at` and the next one have a merge, adds the place to the list of that merge. */
static void add_place(struct Sweep *s, uint32_t at)
{
    const uint32_t right = s->tokens[at].next;
    if (right >= s->n) return;
    const int made = merged(s->tokenizer, s->tokens[at].id, s->tokens[right].id);
    if (made < 0) return;
    const uint64_t bit = 1ull << (made & 63);
    const uint32_t first = s->waiting[made >> 6] & bit ? s->first[made] : 0;
    s->first[made] = ++s->place_count;
    s->places[s->place_count].at = at;
    s->places[s->place_count].next = first;
    s->waiting[made >> 6] |= bit;
}

/* Applies the merge that makes `made` at those of its places where both parts still are. In a run
 * of equal tokens, as in "aaa", the first two are merged first; so a run is merged from its start
 * when the first of its places is met. */
static void sweep_merge(struct Sweep *s, int made)
{
    const int a = s->tokenizer->parts[made - BYTES][0], b = s->tokenizer->parts[made - BYTES][1];
    for (uint32_t place = s->first[made]; place; place = s->places[place].next) {
        uint32_t at = s->places[place].at, right;
        if (s->tokens[at].id != a) continue;
        while (a == b && at && s->tokens[s->tokens[at].before].id == a) at = s->tokens[at].before;
        for (; at < s->n && s->tokens[at].id == a; at = s->tokens[at].next) {
            right = s->tokens[at].next;
            if (right >= s->n || s->tokens[right].id != b) break;
            const uint32_t next = s->tokens[at].next = s->tokens[right].next;
            s->tokens[at].id = (uint16_t)made;
            s->tokens[right].id = UINT16_MAX;       /* an id that no merge contains */
            if (next < s->n) s->tokens[next].before = at;
            if (at) add_place(s, s->tokens[at].before);
            add_place(s, at);
        }
    }
}

/* Merges a piece of any length, with the same result as merge_short. */
static size_t merge_long(const struct Tokenizer *t, const uint8_t *piece, size_t n, uint16_t *out)
{
    if (n >= 1u << 30)
        die("a run of %.1f GB without a word boundary is too long. Split the text.", n / 1e9);
    struct Sweep *s = resize(NULL, sizeof *s);
    memset(s->waiting, 0, sizeof s->waiting);
    s->tokenizer = t;
    s->n = (uint32_t)n;
    s->place_count = 0;
    s->tokens = resize(NULL, n * sizeof *s->tokens);
    s->places = resize(NULL, 3 * n * sizeof *s->places);        /* two new ones for each merge */
    for (uint32_t i = 0; i < n; i++) {
        s->tokens[i].id = id_of_byte[piece[i]];
        s->tokens[i].next = i + 1;
        s->tokens[i].before = i - 1;
    }
    for (uint32_t i = s->n; i-- > 0; ) add_place(s, i);
    for (int word = 0; word < MAX_VOCABULARY / 64; word++)
        while (s->waiting[word]) {
            const int bit = __builtin_ctzll(s->waiting[word]);
            s->waiting[word] &= s->waiting[word] - 1;
            sweep_merge(s, word * 64 + bit);
        }
    size_t count = 0;
    for (uint32_t i = 0; i < n; i = s->tokens[i].next) out[count++] = s->tokens[i].id;
    free(s->tokens); free(s->places); free(s);
    return count;
}

/* --- Texts --- */

/* A piece that was found, and the cache line where its tokens may be. A piece of more than
 * WORD_BYTES bytes has the key 0 and is never there. */
struct Piece { const uint8_t *text; size_t n; Bytes16 key; struct Slot *line; };

/* Merges a piece that is not in the cache and stores it there. Returns the number of ids. */
__attribute__((noinline))
static size_t encode_piece(const struct Encoder *e, const struct Piece *piece, uint16_t *out)
{
    const struct Tokenizer *t = e->tokenizer;
    const size_t n = piece->n;
    const size_t count = n <= SHORT_PIECE ? (size_t)merge_short(t, piece->text, (int)n, out)
                                          : merge_long(t, piece->text, n, out);
    if (n <= WORD_BYTES && count <= CACHE_IDS) {
        struct Slot *line = piece->line;
        line[1] = line[0];
        line[0] = (struct Slot){.key = piece->key, .count = (uint16_t)count};
        memcpy(line[0].ids, out, count * sizeof *out);
    }
    return count;
}

/* Encodes p .. end and returns the number of ids; out needs room for one id a byte and 8 more. For
 * `readable` see piece_end.
 *
 * Up to 32 pieces are found first and their cache lines prefetched, and only then they are looked
 * up. Waiting for each line instead would take more time than all other work. */
static size_t encode_text(struct Encoder *e, const uint8_t *p, const uint8_t *end,
                          const uint8_t *readable, uint16_t *out)
{
    enum { AHEAD = 32 };
    struct Piece pieces[AHEAD];
    uint16_t *o = out;
    int64_t single = 0;
    while (p < end) {
        int found = 0;
        for (const uint8_t *next; found < AHEAD && p < end; p = next) {
            next = piece_end(p, end, readable);
            const size_t n = next - p;
            const Bytes16 key = n <= WORD_BYTES ? word_key(p, n, readable) : 0;
            struct Slot *line = e->cache + (key_hash(key) >> (65 - CACHE_BITS)) * 2;
            __builtin_prefetch(line);
            pieces[found++] = (struct Piece){p, n, key, line};
        }
        e->pieces += found;
        for (int i = 0; i < found; i++) {
            const Bytes16 key = pieces[i].key;
            const struct Slot *slot = pieces[i].line;
            slot += slot->key != key;               /* the first or the second, without a branch */
            size_t count = slot->count;
            if (slot->key == key && pieces[i].n <= WORD_BYTES)
                memcpy(o, slot->ids, sizeof slot->ids + sizeof slot->count);
            else count = encode_piece(e, &pieces[i], o);
            single += count == 1;
            o += count;
        }
    }
    e->single += single;
    return o - out;
}

/* Dies on a text of so many bytes that int may not count its tokens and those of a second one. */
static void refuse_huge(size_t n)
{
    if (n >= INT_MAX / 2) die("a text of %.1f GB is too long. Split it.", n / 1e9);
}

/* Encodes a text of n bytes; ids needs room for n. Returns their number. <|endoftext|> in the text
 * is ordinary text. One tokenizer must not be used by two threads at once. */
static int tokenizer_encode(struct Tokenizer *t, const char *text, size_t n, int *ids)
{
    if (!t->encoder) t->encoder = encoders_new(t, 1);
    struct Encoder *e = t->encoder;
    refuse_huge(n);
    if (e->room < n + 8) e->ids = resize(e->ids, (e->room = 2 * n + 8) * sizeof *e->ids);
    const uint8_t *p = (const uint8_t *)text;
    const size_t count = encode_text(e, p, p + n, p + n, e->ids);
    for (size_t i = 0; i < count; i++) ids[i] = e->ids[i];
    return (int)count;
}

/* ============================================================================================= */
/* 8. Files                                                                                      */
/* ============================================================================================= */

/* Files write each byte as a character: a visible one as itself, the others as U+0100, U+0101, ...
 * in the order of their ids. A space is U+0120, Ġ. */
enum { VISIBLE = 188 };         /* the number of visible bytes */

static uint32_t symbol_of_byte(uint8_t byte)
{
    return visible(byte) ? byte : 0x100 + (uint32_t)id_of_byte[byte] - VISIBLE;
}

/* The byte that a character is written for, or -1. */
static int byte_of_symbol(uint32_t c)
{
    if (c < BYTES) return visible((int)c) ? (int)c : -1;
    return c < 0x100 + BYTES - VISIBLE ? byte_of_id[c - 0x100 + VISIBLE] : -1;
}

/* --- Reading merges.txt: the line "#version: 0.2", then a merge a line, "Ġ lo" --- */

enum { READER_SLOTS = 2 * MAX_VOCABULARY };

struct MergesReader {
    struct Tokenizer *tokenizer;
    uint32_t *slots;            /* (READER_SLOTS): id + 1, or 0; a hash table by a token's bytes */
    const char *path;
    int line;                   /* its number in the file, from 1 */
};

static uint64_t hash_bytes(const uint8_t *bytes, size_t n)
{
    uint64_t h = n;
    for (size_t i = 0; i < n; i++) h = (h ^ bytes[i]) * 0x9E3779B97F4A7C15u, h ^= h >> 29;
    return h;
}

/* The slot of the token with these bytes, or the empty slot where it belongs. */
static uint32_t *find_token(const struct MergesReader *r, const uint8_t *bytes, size_t n)
{
    for (size_t i = hash_bytes(bytes, n); ; i++) {
        uint32_t *slot = &r->slots[i % READER_SLOTS];
        int length;
        if (!*slot) return slot;
        const uint8_t *token = tokenizer_piece(r->tokenizer, (int)*slot - 1, &length);
        if ((size_t)length == n && !memcmp(token, bytes, n)) return slot;
    }
}

/* What is shown of a long line in a message: its first 80 bytes. */
static int shown_length(const char *text, const char *stop)
{
    return stop - text > 80 ? 80 : (int)(stop - text);
}

/* The bytes (MAX_TOKEN_BYTES at most) that the symbols text .. stop stand for. Returns how many, or
 * 0 if something is not a symbol. */
static size_t bytes_of_symbols(uint8_t *bytes, const char *text, const char *stop)
{
    size_t n = 0;
    for (int length; text < stop; text += length) {
        uint32_t c = 0;
        length = utf8_decode((const uint8_t *)text, stop - text, &c);
        const int byte = length > 0 ? byte_of_symbol(c) : -1;
        if (byte < 0 || n == MAX_TOKEN_BYTES) return 0;
        bytes[n++] = (uint8_t)byte;
    }
    return n;
}

/* The id of the token that text .. stop writes. Dies if there is none. */
static int read_token(const struct MergesReader *r, const char *text, const char *stop)
{
    uint8_t bytes[MAX_TOKEN_BYTES];
    const size_t n = bytes_of_symbols(bytes, text, stop);
    if (!n)
        die("%s: line %d: \"%.*s\" is not written in GPT-2's 256 byte symbols. Replace the file.",
            r->path, r->line, shown_length(text, stop), text);
    const int id = (int)*find_token(r, bytes, n) - 1;
    if (id < 0)
        die("%s: line %d: \"%.*s\" is no token yet: a merge that makes it must come first. "
            "Replace the file.", r->path, r->line, shown_length(text, stop), text);
    return id;
}

/* Adds the merge of the line text .. stop. Dies if the line is not two tokens, or if they do not
 * make a new one. */
static void read_merge(struct MergesReader *r, const char *text, const char *stop)
{
    struct Tokenizer *t = r->tokenizer;
    const char *middle = memchr(text, ' ', stop - text);
    const int shown = shown_length(text, stop);
    if (!middle || middle == text || middle + 1 == stop
        || memchr(middle + 1, ' ', stop - middle - 1))
        die("%s: line %d: \"%.*s\" is not two symbols with one space between. Replace the file.",
            r->path, r->line, shown, text);
    const int a = read_token(r, text, middle), b = read_token(r, middle + 1, stop);
    if (t->vocabulary == MAX_VOCABULARY - 1)
        die("%s: line %d: more than %d tokens do not fit the 16 bits of a shard. Use fewer merges.",
            r->path, r->line, MAX_VOCABULARY);
    if (token_length(t, a) + token_length(t, b) > MAX_TOKEN_BYTES)
        die("%s: line %d: a token of more than %d bytes is not supported. Remove the line.",
            r->path, r->line, MAX_TOKEN_BYTES);
    const int made = add_merge(t, a, b);
    uint32_t *slot = find_token(r, t->bytes + t->offset[made], token_length(t, made));
    if (*slot)
        die("%s: line %d: \"%.*s\" makes a token that line %d makes. Remove one of them.", r->path,
            r->line, shown, text, r->line - (made + 1 - (int)*slot));
    *slot = (uint32_t)made + 1;
}

/* Dies if the first line, text .. stop, names special tokens, as older tokenizers could have. */
static void check_first_line(const char *path, const char *text, const char *stop)
{
    static const char names[] = " special: ";
    for (; (text = memchr(text, ' ', stop - text)); text++)
        if (stop - text >= 10 && !memcmp(text, names, 10))
            die("%s: line 1 names special tokens, but only %s is supported. Train a tokenizer "
                "without them.", path, END_OF_TEXT);
}

/* Makes a tokenizer of the text of a merges.txt. Dies on a line that is not a merge of earlier
 * tokens. The caller releases r->slots. */
static void read_merges(struct MergesReader *r, struct Bytes text)
{
    const char *at = text.data, *end = text.data + text.size;
    r->tokenizer = tokenizer_new(text.size / 9);
    r->slots = allocate_zeroed(READER_SLOTS * sizeof *r->slots);
    for (int i = 0; i < BYTES; i++) *find_token(r, &byte_of_id[i], 1) = (uint32_t)i + 1;
    for (r->line = 1; at < end; r->line++) {
        const char *newline = memchr(at, '\n', end - at), *stop = newline ? newline : end;
        const char *next = newline ? newline + 1 : end;
        if (stop > at && stop[-1] == '\r') stop--;
        if (r->line == 1 && end - at >= 8 && !memcmp(at, "#version", 8))
            check_first_line(r->path, at, stop);
        else if (stop > at || next < end) read_merge(r, at, stop);
        at = next;
    }
    if (!r->tokenizer->merges) warn("%s: holds no merge, so every byte is a token.", r->path);
    add_end_of_text(r->tokenizer);
}

/* --- Reading vocab.json and tokenizer.json --- */

enum { MAX_IDS = 1 << 24 };     /* as check_config allows a model */

/* Takes over the ids of a directory whose tokens are numbered otherwise than by merges.txt, as by
 * trainers that put special tokens first. names: {"token": id, ...}. eot: its id there. Dies if a
 * token of ours has no id. */
static void read_ids(struct MergesReader *r, const struct Json *names, int eot)
{
    struct Tokenizer *t = r->tokenizer;
    t->file_ids = resize(NULL, t->vocabulary * sizeof *t->file_ids);
    for (int i = 0; i < t->vocabulary; i++) t->file_ids[i] = i == t->eot ? eot : -1;
    for (const struct Json *j = names->child; j; j = j->next) {
        uint8_t bytes[MAX_TOKEN_BYTES];
        const size_t n = bytes_of_symbols(bytes, j->key, j->key + strlen(j->key));
        const uint32_t token = n ? *find_token(r, bytes, n) : 0;
        if (token && j->kind == JSON_NUMBER && j->number >= 0 && j->number < MAX_IDS)
            t->file_ids[token - 1] = (int)j->number;
    }
    struct PairTable ids = pair_table(t->vocabulary);       /* to find one that is there twice */
    bool same = true;
    for (int i = 0; i < t->vocabulary; i++) {
        int n;
        const uint8_t *bytes = tokenizer_piece(t, i, &n);
        if (t->file_ids[i] < 0)
            die("%s: has no id for token %d, \"%.*s\", which a merge makes, so another "
                "tokenizer wrote it. Put the right one there.", r->path, i, n < 80 ? n : 80,
                (const char *)bytes);
        if (pair_find(&ids, t->file_ids[i]) >= 0)
            die("%s: two tokens have the id %d. Replace the file.", r->path, t->file_ids[i]);
        pair_add(&ids, t->file_ids[i], i);
        same &= t->file_ids[i] == i;
    }
    pair_table_free(&ids);
    if (same) { free(t->file_ids); t->file_ids = NULL; }
}

/* Ids follow from merges.txt, unless the vocab.json beside it has an order of its own. */
static void read_vocabulary(struct MergesReader *r, const char *path)
{
    const struct Bytes file = read_file(path, MAX_TOKENIZER, false);
    struct Json *names = json_parse(file.data, file.size, path);
    const double eot = json_number(names, END_OF_TEXT, -1);
    if (!(eot >= 0 && eot < MAX_IDS))
        die("%s: has no id for %s. Name merges.txt itself if the file is not needed.", path,
            END_OF_TEXT);
    r->path = path;
    read_ids(r, names, (int)eot);
    json_free(names);
    free((char *)file.data);
}

/* Dies unless the tokenizer.json is of a byte-level BPE that cuts texts as GPT-2 does. */
static void check_tokenizer_json(const struct Json *j, const char *path)
{
    const struct Json *model = json_get(j, "model"), *cut = json_get(j, "pre_tokenizer");
    const char *type = json_text(model, "type", "BPE"), *cut_type = json_text(cut, "type", "none");
    if (strcmp(type, "BPE") || !json_get(model, "merges") || !json_get(model, "vocab"))
        die("%s: is a tokenizer of type %s; only byte-level BPE is supported.", path, type);
    if (strcmp(cut_type, "ByteLevel") || json_number(cut, "add_prefix_space", 1)
        || !json_number(cut, "use_regex", 1))
        die("%s: cuts texts into pieces by %s; only GPT-2's ByteLevel without add_prefix_space is "
            "supported.", path, cut_type);
    const struct Json *normalizer = json_get(j, "normalizer");
    if (normalizer && normalizer->kind != JSON_NULL)
        die("%s: changes texts by a normalizer (%s), which is not supported.", path,
            json_text(normalizer, "type", "?"));
    if (json_number(model, "ignore_merges", 0))
        die("%s: ignore_merges is true, which is not supported.", path);
}

/* The lines of a merges.txt, from a tokenizer.json's list: ["a b", ...] or [["a", "b"], ...] */
static struct Buffer merges_of_json(const struct Json *list, const char *path)
{
    struct Buffer text = {0};
    append(&text, "#version: 0.2\n");
    for (const struct Json *j = list->child; j; j = j->next) {
        const struct Json *a = j->kind == JSON_ARRAY ? j->child : j, *b = a ? a->next : NULL;
        const bool pair = j->kind == JSON_ARRAY && b && !b->next && b->kind == JSON_STRING;
        if (!a || a->kind != JSON_STRING || (j->kind == JSON_ARRAY && !pair))
            die("%s: a merge is neither \"a b\" nor [\"a\", \"b\"]. Replace the file.", path);
        append(&text, pair ? "%s %s\n" : "%s\n", a->string, pair ? b->string : "");
    }
    return text;
}

/* The id of <|endoftext|> in a tokenizer.json, or -1. */
static double end_of_text_in(const struct Json *j)
{
    const struct Json *added = json_get(j, "added_tokens");
    double eot = json_number(json_get(json_get(j, "model"), "vocab"), END_OF_TEXT, -1);
    for (const struct Json *a = added ? added->child : NULL; a; a = a->next)
        if (!strcmp(json_text(a, "content", ""), END_OF_TEXT)) eot = json_number(a, "id", -1);
    return eot;
}

static void append_merges(struct Buffer *b, const struct Tokenizer *t);

/* Dies if the tokenizer.json beside merges.txt is of another tokenizer. */
static void check_tokenizer_beside(const struct Tokenizer *t, const char *path)
{
    if (!file_exists(path)) return;
    const struct Bytes file = read_file(path, MAX_TOKENIZER, false);
    struct Json *j = json_parse(file.data, file.size, path);
    const struct Json *list = json_get(json_get(j, "model"), "merges");
    struct Buffer ours = {0}, theirs = {0};
    append_merges(&ours, t);
    if (list) theirs = merges_of_json(list, path);
    if (list && (strcmp(ours.data, theirs.data)
                 || end_of_text_in(j) != (t->file_ids ? t->file_ids[t->eot] : t->eot)))
        die("%s: is of another tokenizer than merges.txt and vocab.json beside it. Put the right "
            "one there, or remove it.", path);
    free(ours.data);
    free(theirs.data);
    json_free(j);
    free((char *)file.data);
}

/* A tokenizer.json, when there is no merges.txt: merges, ids, and whether its template puts
 * <|endoftext|> before a text. */
static void read_tokenizer_json(struct MergesReader *r)
{
    const struct Bytes file = read_file(r->path, MAX_TOKENIZER, false);
    struct Json *j = json_parse(file.data, file.size, r->path);
    check_tokenizer_json(j, r->path);
    const struct Json *model = json_get(j, "model"), *names = json_get(model, "vocab"),
                      *template = json_get(json_get(j, "post_processor"), "single");
    struct Buffer merges = merges_of_json(json_get(model, "merges"), r->path);
    read_merges(r, (struct Bytes){merges.data, merges.size});
    const double eot = end_of_text_in(j);
    if (!(eot >= 0 && eot < MAX_IDS))
        die("%s: has no %s, which texts are separated by. Add it.", r->path, END_OF_TEXT);
    read_ids(r, names, (int)eot);
    const struct Json *first = template ? json_get(template->child, "SpecialToken") : NULL;
    r->tokenizer->begins = !strcmp(json_text(first, "id", ""), END_OF_TEXT);
    free(merges.data);
    json_free(j);
    free((char *)file.data);
}

/* Reads from tokenizer_config.json, if it is there, what the directory's model does to a text. It
 * need not say anything: then texts do not begin with <|endoftext|>, and their head is read. */
static void read_tokenizer_config(struct Tokenizer *t, const char *path)
{
    if (!file_exists(path)) return;
    const struct Bytes file = read_file(path, MAX_CONFIG, false);
    struct Json *j = json_parse(file.data, file.size, path);
    t->begins = json_number(j, "add_bos_token", t->begins) != 0;
    const struct Json *bos = json_get(j, "bos_token");
    const char *name = bos && bos->kind == JSON_OBJECT ? json_text(bos, "content", "")
                                                       : json_text(j, "bos_token", END_OF_TEXT);
    if (t->begins && strcmp(name, END_OF_TEXT))
        die("%s: texts begin with bos_token \"%s\"; only %s is supported.", path, name,
            END_OF_TEXT);
    const double longest = json_number(j, "model_max_length", 0);
    t->max_length = longest >= 1 && longest < 1e9 ? (int)longest : 0;
    t->keeps_tail = !strcmp(json_text(j, "truncation_side", "right"), "left");
    json_free(j);
    free((char *)file.data);
}

/* The file that a tokenizer is read from: `name` itself, or in a directory of that name merges.txt,
 * or vocab.bpe, as the authors of GPT-2 named it, or tokenizer.json. NULL: there is none. */
static char *tokenizer_file(const char *name)
{
    static const char *const names[] = {"merges.txt", "vocab.bpe", "tokenizer.json"};
    struct stat status;
    if (!file_exists(name)) return NULL;
    if (stat(name, &status) || !S_ISDIR(status.st_mode)) return text_of("%s", name);
    for (int i = 0; i < COUNT(names); i++) {
        char *path = text_of("%s/%s", name, names[i]);
        if (file_exists(path)) return path;
        free(path);
    }
    return NULL;
}

static bool ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

/* Reads a tokenizer_file. Ids come from the vocab.json beside merges.txt, or encoder.json beside
 * vocab.bpe, if it is there. Dies on files that do not fit. */
static struct Tokenizer *tokenizer_load(const char *name)
{
    char *path = tokenizer_file(name);
    if (!path)
        die("%s: no such file, or no merges.txt or tokenizer.json in it. Train a tokenizer, or "
            "name a merges.txt.", name);
    const bool directory = strcmp(path, name) != 0;
    char *config = text_of("%s/tokenizer_config.json", name);
    char *json = text_of("%s/tokenizer.json", name);
    char *ids = text_of("%s/%s", name, ends_with(path, ".bpe") ? "encoder.json" : "vocab.json");
    struct MergesReader r = {.path = path};
    if (ends_with(path, ".json")) read_tokenizer_json(&r);
    else {
        const struct Bytes file = read_file(path, MAX_TOKENIZER, false);
        read_merges(&r, file);
        free((char *)file.data);
        if (directory && file_exists(ids)) read_vocabulary(&r, ids);
        if (directory) check_tokenizer_beside(r.tokenizer, json);
    }
    if (directory) read_tokenizer_config(r.tokenizer, config);
    release(r.slots, READER_SLOTS * sizeof *r.slots);
    free(path); free(ids); free(config); free(json);
    return r.tokenizer;
}

/* Moves the rows of wte (V, C) to where our ids expect them. Rows of tokens that we do not know,
 * special ones and padding, come last, in their order. */
static void renumber_tokens(struct Model *model, const int *file_ids, int known)
{
    const int V = model->config.vocabulary, C = model->config.channels;
    const size_t bytes = (size_t)V * C * sizeof(real), row = C * sizeof(real);
    real *old = resize(NULL, bytes);
    bool *taken = resize(NULL, V * sizeof *taken);
    memcpy(old, model->w.wte, bytes);
    memset(taken, 0, V * sizeof *taken);
    for (int i = 0; i < known; i++) {
        memcpy(model->w.wte + (size_t)i * C, old + (size_t)file_ids[i] * C, row);
        taken[file_ids[i]] = true;
    }
    for (int i = 0; i < V; i++)
        if (!taken[i]) memcpy(model->w.wte + (size_t)known++ * C, old + (size_t)i * C, row);
    free(taken);
    free(old);
}

/* What is done to every text, as a model's metadata keep it. */
static char *usage_text(const struct Tokenizer *t)
{
    return text_of("begin %d, keep tail %d, at most %d tokens", t->begins, t->keeps_tail,
                   t->max_length);
}

/* Notes in a model's metadata which tokenizer its directory must hold. */
static void tokenizer_describe(struct Metadata *meta, const struct Tokenizer *t)
{
    char *usage = usage_text(t);
    metadata_set(meta, "tokenizer_hash", "%s", hash_text(t->hash));
    metadata_set(meta, "tokenizer_usage", "%s", usage);
    free(usage);
}

/* Reads the tokenizer in a model's directory. Dies unless it is the one in the metadata, if
 * there is one there, and the model's vocabulary is large enough; it may be larger than needed. A
 * model whose directory numbers its tokens in another order is renumbered. */
static struct Tokenizer *tokenizer_of_model(const char *dir, struct Model *model,
                                            const struct Metadata *meta)
{
    struct Tokenizer *t = tokenizer_load(dir);
    const char *hash = metadata_get(meta, "tokenizer_hash"),
               *usage = metadata_get(meta, "tokenizer_usage");
    char *config = text_of("%s/tokenizer_config.json", dir), *is = usage_text(t);
    int last = t->eot;
    if (hash && strcmp(hash, hash_text(t->hash)))
        die("%s: merges.txt (hash %s) is not the tokenizer that the model was trained with (%s). "
            "Put that one there.", dir, hash_text(t->hash), hash);
    if (usage && strcmp(usage, is))
        die("%s: does not belong to model.safetensors beside it: \"%s\" instead of \"%s\". Put "
            "the right one there, or train again.", config, is, usage);
    for (int i = 0; t->file_ids && i < t->vocabulary; i++) last = max_int(last, t->file_ids[i]);
    if (last >= model->config.vocabulary)
        die("%s: the tokenizer has %d tokens, the model only %d. Put the tokenizer there that the "
            "model was trained with.", dir, last + 1, model->config.vocabulary);
    if (t->file_ids) renumber_tokens(model, t->file_ids, t->vocabulary);
    if (hash && !file_exists(config)) t->begins = t->keeps_tail = true;     /* our older files */
    free(config);
    free(is);
    return t;
}

/* Appends bytes so that they can be read: control characters and bytes that are not UTF-8 become
 * \n, \t, \r or, for example, \xE4. */
static void append_readable(struct Buffer *b, const uint8_t *p, int n)
{
    for (const uint8_t *end = p + n; p < end; ) {
        int length;
        utf8_class(p, end, &length);
        if (*p == '\n' || *p == '\t' || *p == '\r')
            append(b, "\\%c", *p == '\n' ? 'n' : *p == '\t' ? 't' : 'r');
        else if (length > 2 || (length == 2 && *p > 0xC2) || (length == 2 && p[1] >= 0xA0)
                 || (length == 1 && *p >= ' ' && *p < 127)) append_bytes(b, p, length);
        else for (int i = 0; i < length; i++) append(b, "\\x%02X", p[i]);
        p += length;
    }
}

/* Appends the bytes of n tokens. */
static void append_decoded(struct Buffer *b, const struct Tokenizer *t, const int *ids, int n)
{
    for (int i = 0, length; i < n; i++) {
        const uint8_t *bytes = tokenizer_piece(t, ids[i], &length);
        append_bytes(b, bytes, length);
    }
}

/* --- Writing --- */

static void append_token(struct Buffer *b, const struct Tokenizer *t, int id)
{
    int n;
    const uint8_t *bytes = tokenizer_piece(t, id, &n);
    for (int i = 0; i < n; i++) append_utf8(b, symbol_of_byte(bytes[i]));
}

static void append_merges(struct Buffer *b, const struct Tokenizer *t)
{
    append(b, "#version: 0.2\n");
    for (int r = 0; r < t->merges; r++) {
        append_token(b, t, t->parts[r][0]);
        append(b, " ");
        append_token(b, t, t->parts[r][1]);
        append(b, "\n");
    }
}

/* As a JSON string's inside, all in ASCII: \u0120the */
static void append_token_json(struct Buffer *b, const struct Tokenizer *t, int id)
{
    int n;
    const uint8_t *bytes = tokenizer_piece(t, id, &n);
    for (int i = 0; i < n; i++) {
        const uint32_t c = symbol_of_byte(bytes[i]);
        if (c == '"' || c == '\\') append(b, "\\");
        append(b, c < 128 ? "%c" : "\\u%04x", c);
    }
}

/* {"!": 0, ..., "\u0120the": 262, ...}, as in GPT-2's own file. */
static void append_vocabulary(struct Buffer *b, const struct Tokenizer *t)
{
    for (int id = 0; id < t->vocabulary; id++) {
        append(b, "%s\"", id ? ", " : "{");
        append_token_json(b, t, id);
        append(b, "\": %d", id);
    }
    append(b, "}");
}

/* A token that loaders do not look for in pieces of a text. single_word: only where it stands
 * alone. The members are the same in both files. */
static void append_special(struct Buffer *b, const struct Tokenizer *t, int id)
{
    append(b, "\"content\": \"");
    append_token_json(b, t, id);
    append(b, "\", \"single_word\": %s, \"lstrip\": false, \"rstrip\": false, "
           "\"normalized\": false, \"special\": true}", id == PAD_TOKEN ? "true" : "false");
}

/* tokenizer.json, the same tokenizer for Hugging Face's tokenizers: merges, vocabulary, GPT-2's
 * cutting into pieces, and a template that puts <|endoftext|> before each text of a pair. */
static void append_tokenizer_json(struct Buffer *b, const struct Tokenizer *t)
{
    static const char begin[] = "{\"SpecialToken\": {\"id\": \"" END_OF_TEXT
                                "\", \"type_id\": 0}}, ";
    const char *first = t->begins ? begin : "";
    append(b, "{\"version\": \"1.0\", \"truncation\": null, \"padding\": null,\n"
           "\"added_tokens\": [{\"id\": %d, ", PAD_TOKEN);
    append_special(b, t, PAD_TOKEN);
    append(b, ", {\"id\": %d, ", t->eot);
    append_special(b, t, t->eot);
    append(b, "],\n\"normalizer\": null,\n\"pre_tokenizer\": {\"type\": \"ByteLevel\", "
           "\"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": true},\n"
           "\"post_processor\": {\"type\": \"TemplateProcessing\",\n"
           "\"single\": [%s{\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}],\n"
           "\"pair\": [%s{\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}, "
           "%s{\"Sequence\": {\"id\": \"B\", \"type_id\": 0}}],\n"
           "\"special_tokens\": {\"" END_OF_TEXT "\": {\"id\": \"" END_OF_TEXT "\", \"ids\": [%d], "
           "\"tokens\": [\"" END_OF_TEXT "\"]}}},\n", first, first, begin, t->eot);
    append(b, "\"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, "
           "\"trim_offsets\": true, \"use_regex\": true},\n\"model\": {\"type\": \"BPE\", "
           "\"dropout\": null, \"unk_token\": null, \"continuing_subword_prefix\": \"\", "
           "\"end_of_word_suffix\": \"\", \"fuse_unk\": false, \"byte_fallback\": false, "
           "\"ignore_merges\": false,\n\"vocab\": ");
    append_vocabulary(b, t);
    append(b, ",\n\"merges\": [");
    for (int r = 0; r < t->merges; r++) {
        append(b, r ? ",\n\"" : "\n\"");
        append_token_json(b, t, t->parts[r][0]);
        append(b, " ");
        append_token_json(b, t, t->parts[r][1]);
        append(b, "\"");
    }
    append(b, "]}}\n");
}

/* tokenizer_config.json: what our programs do to every text, so that nothing has to be added by
 * hand. split_special_tokens: "<|endoftext|>" inside a text is text. */
static void append_tokenizer_config(struct Buffer *b, const struct Tokenizer *t)
{
    static const char *const roles[] = {"bos_token", "eos_token", "unk_token", "pad_token"};
    append(b, "{\n  \"tokenizer_class\": \"GPT2Tokenizer\",\n  \"add_bos_token\": %s,\n"
           "  \"add_prefix_space\": false,\n", t->begins ? "true" : "false");
    for (int i = 0; i < COUNT(roles); i++) {
        append(b, "  \"%s\": \"", roles[i]);
        append_token_json(b, t, i < 3 ? t->eot : PAD_TOKEN);
        append(b, "\",\n");
    }
    append(b, "  \"padding_side\": \"right\",\n  \"truncation_side\": \"%s\",\n",
           t->keeps_tail ? "left" : "right");
    if (t->max_length) append(b, "  \"model_max_length\": %d,\n", t->max_length);
    append(b, "  \"clean_up_tokenization_spaces\": false,\n  \"split_special_tokens\": true,\n"
           "  \"added_tokens_decoder\": {\"%d\": {", PAD_TOKEN);
    append_special(b, t, PAD_TOKEN);
    append(b, ", \"%d\": {", t->eot);
    append_special(b, t, t->eot);
    append(b, "}\n}\n");
}

static void stage_text(const char *dir, const char *name, struct Buffer text)
{
    char *path = text_of("%s/%s", dir, name);
    stage_file(path, text.data, text.size);
    free(path);
    free(text.data);
}

/* The files of a tokenizer. merges.txt comes last: a directory that has it is complete. */
static const char *const tokenizer_files[] = {"vocab.json", "tokenizer.json",
                                              "tokenizer_config.json", "merges.txt"};

/* Writes the four files for commit_outputs. */
static void tokenizer_stage(const struct Tokenizer *t, const char *dir)
{
    struct Buffer texts[COUNT(tokenizer_files)] = {{0}};
    make_directory(dir);
    append_vocabulary(&texts[0], t);
    append_tokenizer_json(&texts[1], t);
    append_tokenizer_config(&texts[2], t);
    append_merges(&texts[3], t);
    for (int i = 0; i < COUNT(texts); i++) stage_text(dir, tokenizer_files[i], texts[i]);
}

/* The same, with the names at once. */
static void tokenizer_save(const struct Tokenizer *t, const char *dir)
{
    tokenizer_stage(t, dir);
    commit_outputs();
}

/* Dies if the --out of a model holds another tokenizer, which tokenizer_stage would replace. */
static void refuse_other_tokenizer(const char *out, const struct Tokenizer *t)
{
    char *file = tokenizer_file(out);
    struct Tokenizer *other = file ? tokenizer_load(out) : NULL;
    if (other && other->hash != t->hash)
        die_usage("--out %s: holds another tokenizer. Give --overwrite or another --out.", out);
    if (other) tokenizer_free(other);
    free(file);
}

/* ============================================================================================= */
/* 9. Shards                                                                                     */
/* ============================================================================================= */

/* A shard is a file of tokens in llm.c's format: this header and then count ids of 16 bits.
 * <|endoftext|> precedes each document. A new shard begins when one is full, even inside a
 * document. The hash is the tokenizer's. All shards of one encode run are a set: they have its
 * hash, which is made of all their tokens, and their number. In shards from elsewhere, these are
 * 0: not known. */
struct ShardHeader {
    int32_t magic, version, count, zero;
    uint64_t hash, set;
    int32_t shards, zeros[247];
};
enum { SHARD_HEADER = sizeof(struct ShardHeader), SHARD_MAGIC = 20240520, SHARD_VERSION = 1,
       MAX_SHARDS = 1000000 };

struct Shard {
    const char *path;           /* the caller's, not a copy */
    struct Bytes file;          /* mapped; unmap_file ends its use */
    const uint16_t *tokens;     /* (count), in the file */
    int64_t count;
    uint64_t set, sum;          /* see ShardHeader; of these tokens, once open_data computed it */
    int shards;
};

/* Maps a shard. Dies if the header or the size of the file is wrong, or if another tokenizer than
 * the one with this hash made it; a hash of 0 fits all. The ids are not checked. */
static struct Shard open_shard(const char *path, uint64_t hash)
{
    const struct Bytes file = map_file(path);
    struct ShardHeader header;
    if (file.size < SHARD_HEADER)
        die("%s: not a token shard: %s, less than its header of %d. Make one with "
            "`tokenizer encode`.", path, counted(file.size, "byte"), SHARD_HEADER);
    memcpy(&header, file.data, sizeof header);
    if (header.magic != SHARD_MAGIC)
        die("%s: not a token shard: byte 0: the number %d instead of %d. Make one with "
            "`tokenizer encode`.", path, header.magic, SHARD_MAGIC);
    if (header.version != SHARD_VERSION)
        die("%s: byte 4: a shard of version %d; only version %d is read. Encode it again.", path,
            header.version, SHARD_VERSION);
    if (header.shards < 0 || header.shards > MAX_SHARDS)
        die("%s: byte 32: the header says %d shards. Encode it again.", path, header.shards);
    if (header.count < 0)
        die("%s: byte 8: the header says %d tokens. Encode it again.", path, header.count);
    const long long surplus = (long long)file.size - SHARD_HEADER - 2ll * header.count;
    if (surplus)
        die("%s: %s %s than the %d tokens that its header says. Encode it again.", path,
            counted(llabs(surplus), "byte"), surplus < 0 ? "fewer" : "more",
            header.count);
    if (hash && header.hash && header.hash != hash)
        die("%s: made by another tokenizer (hash %s) than the one in use (%s). Use that one, or "
            "encode the text again.", path, hash_text(header.hash), hash_text(hash));
    return (struct Shard){path, file, (const uint16_t *)(file.data + SHARD_HEADER), header.count,
                          header.set, 0, header.shards};
}

/* The length of what comes before _000000.bin in a shard's path; 0: it is called otherwise. */
static size_t prefix_length(const char *path)
{
    const size_t n = strlen(path);
    return n > 11 && path[n - 11] == '_' && strspn(path + n - 10, "0123456789") == 6
           && !strcmp(path + n - 4, ".bin") ? n - 11 : 0;
}

/* How many of the shards, which are sorted by name, have the first one's prefix. Dies if they are
 * of two sets. */
static int count_set(const struct Shard *s, int count)
{
    const size_t n = prefix_length(s->path);
    int k = 1;
    for (; k < count && n && prefix_length(s[k].path) == n && !strncmp(s[k].path, s->path, n); k++)
        if (s[k].set != s->set)
            die("%s: is not of the same run of `tokenizer encode` as %s. Encode both again, or "
                "remove the older one.", s[k].path, s->path);
    return k;
}

/* The path of the first shard in the set of s that is not there, which the caller owns, or NULL.
 * Shards that the pattern does not name need not be there; a pattern of NULL names all. */
static char *missing_shard(const struct Shard *s, const char *pattern)
{
    const int n = (int)prefix_length(s->path);
    for (int k = 0; n && k < s->shards; k++) {
        char *path = text_of("%.*s_%06d.bin", n, s->path, k);
        if ((!pattern || !fnmatch(pattern, path, FNM_PATHNAME | FNM_PERIOD)) && !file_exists(path))
            return path;
        free(path);
    }
    return NULL;
}

/* --- Writing --- */

/* Writes tokens to PREFIX_000000.bin, PREFIX_000001.bin, ..., of `limit` tokens each. They get
 * their names together, when all are complete. */
struct ShardWriter {
    char *prefix;
    uint64_t hash, set;                 /* of the tokenizer; of the tokens so far */
    int64_t limit, in_shard, total;     /* tokens: in a full shard, in the open one, in all */
    struct Output **shards;             /* (number) */
    int number;                         /* of shards so far */
    int *old, old_count;                /* numbers of the shards to be replaced */
};

static char *shard_path(const struct ShardWriter *w, int number)
{
    return text_of("%s_%06d.bin", w->prefix, number);
}

static void write_shard_header(struct Output *o, const struct ShardWriter *w, int64_t count)
{
    const struct ShardHeader header = {SHARD_MAGIC, SHARD_VERSION, (int32_t)count, 0, w->hash,
                                       w->set, w->number};
    output_write(o, &header, sizeof header);
}

static void start_shard(struct ShardWriter *w)
{
    char *path = shard_path(w, w->number);
    if (w->number == MAX_SHARDS) die("%s: too many shards. Give a larger --shard-tokens.", path);
    w->shards = resize(w->shards, (w->number + 1) * sizeof *w->shards);
    w->shards[w->number] = output_open(path);
    write_shard_header(w->shards[w->number++], w, 0);
    w->in_shard = 0;
    free(path);
}

/* Closes the open shard and adds its tokens to the hash of the set. */
static void close_shard(struct ShardWriter *w)
{
    struct Output *o = w->shards[w->number - 1];
    output_finish(o);
    const struct Bytes file = map_file(o->temporary);
    w->set = mix64(w->set ^ checksum(file.data + SHARD_HEADER, file.size - SHARD_HEADER));
    unmap_file(file);
}

/* Appends n ids, and begins a new shard whenever one is full. */
static void write_tokens(struct ShardWriter *w, const uint16_t *ids, size_t n)
{
    while (n) {
        if (w->in_shard == w->limit) {
            close_shard(w);
            start_shard(w);
        }
        const size_t room = (size_t)(w->limit - w->in_shard), now = n < room ? n : room;
        output_write(w->shards[w->number - 1], ids, now * sizeof *ids);
        w->in_shard += now;
        w->total += now;
        ids += now;
        n -= now;
    }
}

/* Completes all shards for commit_outputs: their headers now say how many tokens each has, and to
 * which set it belongs. */
static void complete_shards(struct ShardWriter *w)
{
    if (!w->number) return;
    close_shard(w);
    for (int i = 0; i < w->number; i++) {
        struct Output *o = w->shards[i];
        o->file = fopen(o->temporary, "r+b");
        if (!o->file) die_unwritten(o->path);
        write_shard_header(o, w, i < w->number - 1 ? w->limit : w->in_shard);
        output_finish(o);
    }
}

/* Whether a file is PREFIX_<number>.bin, or the temporary file of one that the process `writer`
 * writes; else that is 0. name: the last part of PREFIX. */
static bool has_prefix(const char *found, const char *name, int *number, long *writer)
{
    const size_t n = strlen(name);
    const bool begins = !strncmp(found, name, n) && found[n] == '_';
    *number = begins ? (int)strtol(found + n + 1, NULL, 10) : -1;
    char *exactly = text_of("%s_%06d.bin", name, *number);
    *writer = writer_of(found, exactly);
    const bool is = *number >= 0 && (*writer || !strcmp(found, exactly));
    free(exactly);
    return is;
}

/* Notes a shard that is to be replaced. Dies if the file is none: then another program wrote it. */
static void note_old_shard(struct ShardWriter *w, const char *path, int number)
{
    const struct Bytes file = map_file(path);
    int32_t magic = 0;
    if (file.size >= sizeof magic) memcpy(&magic, file.data, sizeof magic);
    if (magic != SHARD_MAGIC)
        die("%s: is not a token shard, so it is not replaced. Choose another --out.", path);
    unmap_file(file);
    w->old = resize(w->old, (w->old_count + 1) * sizeof *w->old);
    w->old[w->old_count++] = number;
}

/* Begins the first shard, and then looks at the other files with the prefix: of two processes with
 * one prefix, the later one sees the first shard of the other. Dies if a shard of another process
 * is being written, or if one is there and may not be replaced. */
static void start_set(struct ShardWriter *w, bool overwrite)
{
    const char *name;
    char *directory = directory_of(w->prefix, &name);
    make_directory(directory);
    start_shard(w);
    DIR *files = NULL;
    for (struct dirent *f; (f = next_file(&files, directory)); ) {
        int number;
        long writer;
        if (!has_prefix(f->d_name, name, &number, &writer) || writer == (long)getpid()) continue;
        char *path = text_of("%s%s", w->prefix, f->d_name + strlen(name));
        if (writer && is_alive(writer))
            die("%s: process %ld is writing it. Wait for its end, or choose another --out.", path,
                writer);
        if (writer) unlink(path);
        else if (overwrite) note_old_shard(w, path, number);
        else die("%s: exists. Choose another --out, or add --overwrite.", path);
        free(path);
    }
    free(directory);
}

/* Removes what the set before had more, once the new one has its names. */
static void remove_old_shards(struct ShardWriter *w)
{
    for (int i = 0; i < w->old_count; i++) {
        char *path = shard_path(w, w->old[i]);
        if (w->old[i] >= w->number) remove_file(path);
        free(path);
    }
    free(w->old);
    free(w->shards);
}

/* Whether the n bytes at p are UTF-16 of Latin letters: every byte at an even place (high = 0) or
 * at an odd place (high = 1) is 0, and no other. */
static bool is_utf16(const uint8_t *p, size_t n, size_t high)
{
    size_t zeros = 0;
    for (size_t i = 0; i < n; i++) zeros += (p[i] == 0) == (i % 2 == high);
    return n >= 4 && zeros == n;
}

/* Dies if a file that begins with these n bytes is known not to be plain text. A dot in `bytes`
 * stands for any byte. */
static void refuse_other_kinds(const char *path, const uint8_t *p, size_t n)
{
    static const struct { const char *bytes; size_t n; const char *what, *remedy; } kinds[] = {
        {"\xFF\xFE\0\0", 4, "in UTF-32", "Convert it with `iconv -f UTF-32 -t UTF-8`."},
        {"\0\0\xFE\xFF", 4, "in UTF-32", "Convert it with `iconv -f UTF-32 -t UTF-8`."},
        {"\xFF\xFE", 2, "in UTF-16", "Convert it with `iconv -f UTF-16 -t UTF-8`."},
        {"\xFE\xFF", 2, "in UTF-16", "Convert it with `iconv -f UTF-16 -t UTF-8`."},
        {"\x1F\x8B", 2, "compressed", "Unpack it with `gzip -d`."},
        {"\x28\xB5\x2F\xFD", 4, "compressed", "Unpack it with `zstd -d`."},
        {"BZh.1AY&SY", 10, "compressed", "Unpack it with `bzip2 -d`."},
        {"\xFD" "7zXZ", 5, "compressed", "Unpack it with `xz -d`."},
        {"PK\3\4", 4, "a zip file, as .docx and .xlsx are",
         "Unpack it, or save the document as plain text."},
        {"%PDF-", 5, "a PDF document", "Convert it with `pdftotext`."},
        {"\x88\xD8\x34\x01\1\0\0\0", 8, "a token shard", "`tokenizer decode` writes its text."}};
    for (int i = 0; i < COUNT(kinds); i++) {
        size_t same = 0;
        while (same < n && same < kinds[i].n
               && (p[same] == (uint8_t)kinds[i].bytes[same] || kinds[i].bytes[same] == '.')) same++;
        if (same == kinds[i].n)
            die("%s: is %s, not plain text. %s", path, kinds[i].what, kinds[i].remedy);
    }
    const size_t first = n < 64 ? n & ~(size_t)1 : 64;
    for (int high = 0; high < 2; high++)
        if (is_utf16(p, first, high))
            die("%s: is in UTF-16, not UTF-8. Convert it with `iconv -f UTF-16%s -t UTF-8`.", path,
                high ? "LE" : "BE");
}

#ifndef TOKENIZER_NO_MAIN

/* ============================================================================================= */
/* 10. Documents                                                                                 */
/* ============================================================================================= */

/* A document is a file; or a line, without its \n or \r\n; or the text between two <|endoftext|>,
 * without a line end that directly follows the first; or a string in a line's JSON object. Empty
 * lines and strings, and marks with nothing between them, make no document. */
enum Split { SPLIT_FILE, SPLIT_LINES, SPLIT_EOT, SPLIT_JSONL };

static enum Split split_of(const char *name)
{
    return !strcmp(name, "lines") ? SPLIT_LINES : !strcmp(name, "eot") ? SPLIT_EOT
         : !strcmp(name, "jsonl") ? SPLIT_JSONL : SPLIT_FILE;
}

/* A part of a file that one thread works on. No piece crosses the end of a chunk, and no line of
 * JSON. */
struct Chunk {
    const uint8_t *at, *end;
    const uint8_t *readable;                /* the end of what is in memory, see piece_end */
    const char *path;
    int file_number;
    int64_t file_bytes;                     /* the position of `readable` in the file */
    int64_t cut;                            /* see Source */
    bool fresh;                             /* a document begins at `at` */
    enum Split split;
    const char *field;                      /* for JSON: the name of the string, */
    int64_t line;                           /* the number of the line at `at`, */
    struct Json *json;                      /* and the line of the last part, or NULL */
};

/* A document, or what a chunk holds of it. */
struct Part {
    const uint8_t *begin, *end, *readable;
    int64_t position;                       /* where it begins in the file */
    bool starts;                            /* the document begins here, not in an earlier chunk */
};

/* The class of the character that ends at p, text < p. */
static int class_before(const uint8_t *text, const uint8_t *p)
{
    for (int n = 1; n <= 4 && n <= p - text; n++) {
        int length, class = class_at(p - n, p, &length);
        if (length == n && (n > 1 || p[-1] < 128)) return class;
    }
    return OTHER;
}

/* Whether a text can be cut at p, text < p < end, without changing its pieces. That is so between
 * two characters of different classes if the left one is not white space and the right one is not
 * a letter: no piece has such a place inside, and the pieces on the left do not depend on what
 * follows. A | on the right may be inside <|endoftext|>, which must not be cut. */
static bool can_cut(const uint8_t *text, const uint8_t *p, const uint8_t *end)
{
    int length;
    const int class = class_at(p, end, &length), before = class_before(text, p);
    const bool whole = length > 1 || *p < 128;      /* else p may be inside a character */
    return whole && class != LETTER && before != SPACE && before != class && *p != '|';
}

static bool mark_at(const uint8_t *p, const uint8_t *end)
{
    return end - p >= END_OF_TEXT_BYTES && !memcmp(p, END_OF_TEXT, END_OF_TEXT_BYTES);
}

/* The next <|endoftext|> in p .. end, or NULL. */
static const uint8_t *find_mark(const uint8_t *p, const uint8_t *end)
{
    for (; (p = memchr(p, '<', end - p)); p++) if (mark_at(p, end)) return p;
    return NULL;
}

static const uint8_t *skip_line_end(const uint8_t *p, const uint8_t *end)
{
    if (p < end && *p == '\n') return p + 1;
    return end - p >= 2 && p[0] == '\r' && p[1] == '\n' ? p + 2 : p;
}

/* Says once that the text holds the mark as ordinary characters. */
static void hint_at_marks(const struct Chunk *c)
{
    static bool said;
    #pragma omp critical (hint)
    {
        if (!said) warn("%s: holds %s as ordinary text. %s", c->path, END_OF_TEXT,
                        c->split == SPLIT_JSONL ? "Remove it if it is meant to end documents."
                                                : "With --split eot, documents end there.");
        said = true;
    }
}

/* Replaces a line of JSON by the string that it holds. A blank line becomes an empty string. Dies
 * on a line without that string. */
static void read_json_line(struct Chunk *c, struct Part *p)
{
    char *where = text_of("%s:%lld", c->path, (long long)c->line++);
    if (!p->position && p->end - p->begin >= 3 && !memcmp(p->begin, "\xEF\xBB\xBF", 3))
        p->begin += 3;                              /* a byte order mark */
    while (p->begin < p->end && isspace(*p->begin)) p->begin++;
    if (p->begin < p->end) {
        c->json = json_parse((const char *)p->begin, p->end - p->begin, where);
        const struct Json *text = json_get(c->json, c->field);
        if (c->json->kind != JSON_OBJECT)
            die("%s: not a JSON object. Each line must be one: {\"%s\": ...}.", where, c->field);
        if (!text)
            die("%s: has no \"%s\". Name the one member that holds the text with --text-field.",
                where, c->field);
        if (text->kind != JSON_STRING)
            die("%s: \"%s\" is not a string. Texts must be.", where, c->field);
        p->begin = (const uint8_t *)text->string;
        p->end = p->readable = p->begin + text->length;
    }
    free(where);
}

/* Takes the next document, or the part of it that is in this chunk, off the chunk. Returns false if
 * nothing is left. The part of JSON is valid until the next call. */
static bool next_part(struct Chunk *c, struct Part *p)
{
    const bool lines = c->split == SPLIT_LINES || c->split == SPLIT_JSONL;
    json_free(c->json);
    c->json = NULL;
    while (c->at < c->end || (c->fresh && c->split == SPLIT_FILE)) {
        const uint8_t *stop = lines ? memchr(c->at, '\n', c->end - c->at)
                            : c->split == SPLIT_EOT ? find_mark(c->at, c->end) : NULL;
        const bool ends = stop;                     /* the document ends in this chunk */
        const uint8_t *next = !ends ? c->end : lines ? stop + 1
                            : skip_line_end(stop + END_OF_TEXT_BYTES, c->end);
        if (!ends) stop = c->end;
        else if (lines && stop > c->at && stop[-1] == '\r') stop--;
        *p = (struct Part){c->at, stop, c->readable, c->file_bytes - (c->readable - c->at),
                           c->fresh};
        c->at = next;
        c->fresh = ends;
        if (c->split == SPLIT_JSONL) read_json_line(c, p);
        if (c->split != SPLIT_EOT && find_mark(p->begin, p->end)) hint_at_marks(c);
        if (p->end > p->begin || c->split == SPLIT_FILE) return true;
    }
    return false;
}

/* The input files. They are read one after the other into a window of memory and cut into chunks
 * there. Files and pipes of any size pass through it; it grows only if it holds no place to cut. */
struct Source {
    char **paths;
    int count, number;          /* files: all, and those that were opened */
    enum Split split;
    const char *field;          /* with SPLIT_JSONL: the name of the string that is the text */
    int64_t chunk_bytes;
    int64_t cut;                /* another document begins at this position of the file; 0: none */
    int64_t done, total;        /* bytes: cut into chunks, and in all; total 0 if not known */
    int file;                   /* the descriptor of the open file, or -1 */
    bool ended;                 /* the open file has been read to its end */
    bool fresh;                 /* a document begins at window[at] */
    int64_t file_bytes;         /* bytes read of the open file */
    int64_t line;               /* with SPLIT_JSONL: the number of the line at window[at] */
    uint8_t *window;            /* (room), filled up to `size` */
    size_t room, size, at;      /* chunks have been cut up to `at` */
    double start, shown;        /* seconds: for show_progress */
};

enum { BATCH = 64 };            /* the maximum number of chunks in one call of next_chunks */

/* Checks that all files can be read; "-" is standard input. Dies if one cannot. */
static struct Source source_open(char **paths, int count, const char *split, const char *field,
                                 int64_t chunk_bytes)
{
    struct Source s = {paths, count, .split = split_of(split), .field = field,
                       .chunk_bytes = chunk_bytes, .file = -1,
                       .room = (size_t)(BATCH * chunk_bytes), .start = seconds()};
    bool sized = true;
    if (strcmp(field, "text") && s.split != SPLIT_JSONL)
        warn("--text-field %s: has no effect without --split jsonl.", field);
    if (!count) die_usage("no FILE is named. Name the texts to read, or - for standard input.");
    for (int i = 0; i < count; i++) {
        struct stat status;
        const bool standard = !strcmp(paths[i], "-");
        if (standard ? fstat(0, &status) : stat(paths[i], &status) || access(paths[i], R_OK))
            die("%s: cannot be read (%s). Check the name.", shown_path(paths[i]), strerror(errno));
        if (S_ISDIR(status.st_mode)) die("%s: is a directory. Name files.", paths[i]);
        sized = sized && S_ISREG(status.st_mode);
        s.total += status.st_size;
    }
    if (!sized) s.total = 0;
    s.window = allocate_zeroed(s.room);
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

/* Opens the next file if none is open, and reads until the window is full or the file ends. */
static void fill_window(struct Source *s)
{
    if (s->file < 0) {
        const char *path = s->paths[s->number++];
        s->file = strcmp(path, "-") ? open(path, O_RDONLY) : dup(0);
        s->file_bytes = 0;
        s->line = 1;
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

/* Cuts the next chunk off the window. Returns false if the window holds no place to cut and more
 * of the file must be read first. */
static bool take_chunk(struct Source *s, struct Chunk *c)
{
    const uint8_t *at = s->window + s->at, *end = s->window + s->size;
    const int64_t position = s->file_bytes - (end - at), before_cut = s->cut - position;
    const uint8_t *limit = before_cut > 0 && before_cut < end - at ? at + before_cut : end;
    const uint8_t *stop = limit;
    if (limit - at > s->chunk_bytes) {
        stop = at + s->chunk_bytes;
        while (stop < limit && !(s->split == SPLIT_JSONL ? stop[-1] == '\n'
                                                         : can_cut(at, stop, end))) stop++;
    }
    if (stop == end && !s->ended) return false;
    const char *path = s->paths[s->number - 1];
    if (!position) refuse_other_kinds(path, at, end - at);
    const bool after_mark = s->split == SPLIT_EOT && s->fresh && position > 0;
    *c = (struct Chunk){after_mark ? skip_line_end(at, stop) : at, stop, end, path, s->number - 1,
                        s->file_bytes, s->cut, s->fresh, s->split, s->field, s->line};
    s->fresh = s->split == SPLIT_JSONL || stop - at == before_cut
            || (s->split == SPLIT_EOT && stop - at >= END_OF_TEXT_BYTES
                && mark_at(stop - END_OF_TEXT_BYTES, stop));
    for (const uint8_t *p = at; s->split == SPLIT_JSONL && (p = memchr(p, '\n', stop - p)); p++)
        s->line++;
    s->at += (size_t)(stop - at);
    s->done += stop - at;
    if (stop == end) {                              /* all of the file is cut */
        close(s->file);
        s->file = -1;
    }
    return true;
}

/* Cuts up to BATCH chunks and returns their number, 0 at the end. They point into the window, so
 * the chunks of the call before are no longer valid. */
static int next_chunks(struct Source *s, struct Chunk *chunks)
{
    int n = 0;
    s->size -= s->at;
    memmove(s->window, s->window + s->at, s->size);
    s->at = 0;
    while (n < BATCH && (s->file >= 0 || s->number < s->count)) {
        fill_window(s);
        if (take_chunk(s, &chunks[n])) n++;
        else if (n) break;                          /* the window must not move under the chunks */
        else grow_window(s);
    }
    return n;
}

/* Writes a line of progress: ten a second on a terminal, else one in ten seconds. */
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
/* 11. Commands                                                                                  */
/* ============================================================================================= */

enum { CHUNK_BYTES = 1 << 19 };

#define CHUNK_OPTION {"chunk-bytes", "text that a thread takes at a time; the result is the same", \
                      LONG, &chunk_bytes, .min = 1, .max = 1 << 24}
#define SPLIT_OPTIONS {"split", "where documents end", CHOICE, &split, \
                       .choices = "file|lines|eot|jsonl"}, \
    {"text-field", "with jsonl: the string in each line's JSON object", TEXT, &text_field}
#define TOKENIZER_OPTION {"tokenizer", "directory with merges.txt, or such a file", TEXT, \
                          &tokenizer, .required = true}
#define SPECIAL_OPTION {"special", "<|endoftext|> in the text is the token", FLAG, &special}

/* Keeps other programs out of --out. Dies if it holds a tokenizer that may not be replaced. */
static void begin_tokenizer(const char *out, bool overwrite)
{
    lock_directory(out);
    for (int i = 0; i < COUNT(tokenizer_files) && !overwrite; i++) {
        char *path = text_of("%s/%s", out, tokenizer_files[i]);
        if (file_exists(path))
            die("%s: exists. Choose another --out, or add --overwrite.", path);
        free(path);
    }
}

/* --- train --- */

/* The key of a word of more than WORD_BYTES bytes is a hash, its length and, in the last byte, 255;
 * `bytes` is a copy of the word. */
struct WordCount { Bytes16 key; int64_t count; uint8_t *bytes; };
static const Bytes16 LONG_WORD = (Bytes16)0xFF << 120;

/* Open addressing: the count of an empty slot is 0, and at most half of the slots are used. */
struct WordTable { struct WordCount *slots; size_t count; int bits; };

static struct WordTable word_table(int bits)
{
    return (struct WordTable){allocate_zeroed(sizeof(struct WordCount) << bits), 0, bits};
}

static void word_table_free(struct WordTable *table)
{
    for (size_t i = 0; i < (size_t)1 << table->bits; i++) free(table->slots[i].bytes);
    release(table->slots, sizeof(struct WordCount) << table->bits);
}

static inline size_t word_length(Bytes16 key)
{
    return (size_t)(key >= LONG_WORD ? (key & ~LONG_WORD) >> 64 : key >> 120);
}

/* The key of a word of any length. */
static inline Bytes16 table_key(const uint8_t *p, size_t n, const uint8_t *readable)
{
    return n <= WORD_BYTES ? word_key(p, n, readable)
                           : LONG_WORD | (Bytes16)n << 64 | hash_bytes(p, n);
}

/* The slot of a word, or the empty slot where it belongs. */
static inline struct WordCount *word_find(const struct WordTable *table, Bytes16 key,
                                          const uint8_t *bytes)
{
    const size_t mask = ((size_t)1 << table->bits) - 1;
    for (size_t i = key_hash(key) >> (64 - table->bits); ; i = (i + 1) & mask) {
        struct WordCount *w = &table->slots[i];
        if (!w->count) return w;
        if (w->key == key && (key < LONG_WORD || !memcmp(w->bytes, bytes, word_length(key))))
            return w;
    }
}

static void word_table_grow(struct WordTable *table)
{
    struct WordTable larger = word_table(table->bits + 1);
    for (size_t i = 0; i < (size_t)1 << table->bits; i++) {
        const struct WordCount *w = &table->slots[i];
        if (w->count) *word_find(&larger, w->key, w->bytes) = *w;
    }
    larger.count = table->count;
    release(table->slots, sizeof(struct WordCount) << table->bits);
    *table = larger;
}

/* Adds n > 0 to the count of a word. */
static inline void count_word(struct WordTable *table, Bytes16 key, const uint8_t *bytes, int64_t n)
{
    struct WordCount *w = word_find(table, key, bytes);
    if (!w->count) {
        const size_t length = word_length(key);
        *w = (struct WordCount){.key = key};
        if (key >= LONG_WORD) w->bytes = memcpy(resize(NULL, length), bytes, length);
        table->count++;
    }
    w->count += n;
    if (2 * table->count > (size_t)1 << table->bits) word_table_grow(table);
}

static void count_text(struct WordTable *table, const uint8_t *p, const uint8_t *end,
                       const uint8_t *readable)
{
    for (const uint8_t *next; p < end; p = next) {
        next = piece_end(p, end, readable);
        count_word(table, table_key(p, next - p, readable), p, 1);
    }
}

/* The words of all documents and how often each occurs. Each thread has its own table; at the end
 * their counts are added. The memory is 64 to 128 bytes for each word of each thread and does not
 * depend on the length of the texts. */
static struct WordTable count_words(struct Source *source)
{
    const int threads = thread_count();
    struct WordTable *tables = resize(NULL, threads * sizeof *tables);
    struct Chunk chunks[BATCH];
    for (int i = 0; i < threads; i++) tables[i] = word_table(16);
    for (int n; (n = next_chunks(source, chunks)); show_progress(source, "counting words")) {
        #pragma omp parallel for schedule(dynamic, 1)
        for (int i = 0; i < n; i++) {
            struct Part p;
            while (next_part(&chunks[i], &p))
                count_text(&tables[thread_index()], p.begin, p.end, p.readable);
        }
    }
    for (int i = 1; i < threads; i++) {
        for (size_t k = 0; k < (size_t)1 << tables[i].bits; k++) {
            const struct WordCount *w = &tables[i].slots[k];
            if (w->count) count_word(&tables[0], w->key, w->bytes, w->count);
        }
        word_table_free(&tables[i]);
    }
    struct WordTable all = tables[0];
    free(tables);
    return all;
}

/* A trainer with all words that have a pair. */
static struct Trainer trainer_of_words(const struct WordTable *table)
{
    const size_t slots = (size_t)1 << table->bits;
    size_t bytes = 0;
    for (size_t i = 0; i < slots; i++)
        if (table->slots[i].count) bytes += word_length(table->slots[i].key);
    if (table->count >= UINT32_MAX)
        die("more than 4 billion different words are too many. Train on less text.");
    struct Trainer t = trainer_new(table->count, bytes);
    for (size_t i = 0; i < slots; i++) {
        const struct WordCount *w = &table->slots[i];
        const size_t n = word_length(w->key);
        if (!w->count || n < 2) continue;
        if (n >= UINT32_MAX)
            die("a run of %.1f GB without a word boundary is too long. Split the text.", n / 1e9);
        add_word(&t, w->bytes ? w->bytes : (const uint8_t *)&w->key, n, w->count);
    }
    return t;
}

/* Texts -> merges.txt and vocab.json. */
static int command_train(int argc, char **argv)
{
    int vocabulary = 8192, threads = 0, max_bytes = MAX_TOKEN_BYTES;
    int64_t min_frequency = 2, chunk_bytes = CHUNK_BYTES;
    const char *out = NULL, *split = "file", *text_field = "text";
    bool overwrite = false;
    struct Option options[] = {
        {"vocab", "tokens in all: 256 bytes, merges, <|endoftext|>", INTEGER, &vocabulary,
         .min = 257, .max = 65536},
        {"out", "directory for merges.txt, vocab.json and tokenizer.json", TEXT, &out,
         .required = true},
        SPLIT_OPTIONS,
        {"min-frequency", "a pair that occurs less often is not merged", LONG, &min_frequency,
         .min = 1, .max = 1e15},
        {"max-token-bytes", "no token is longer", INTEGER, &max_bytes, .min = 1,
         .max = MAX_TOKEN_BYTES},
        {"overwrite", "replace the tokenizer that --out holds", FLAG, &overwrite},
        CHUNK_OPTION, THREADS_OPTION(&threads)};
    const int files = parse_options(argc, argv, options, COUNT(options),
                                    "tokenizer train --out DIR [OPTION...] FILE...\n"
                                    "Learns merges from texts (- is standard input).");
    const double start = seconds();
    const int merges = vocabulary - BYTES - 1;
    begin_tokenizer(out, overwrite);
    set_threads(threads);
    struct Source source = source_open(argv, files, split, text_field, chunk_bytes);
    struct Tokenizer *t = tokenizer_new(merges);
    struct WordTable words = count_words(&source);
    if (!words.count) die("%s: no text to learn from. Name files that hold some.", argv[0]);
    struct Trainer trainer = trainer_of_words(&words);
    learn_merges(t, &trainer, merges, min_frequency, max_bytes);
    if (t->merges < merges)
        warn("the text gives only %s, so the vocabulary has %d tokens, not %d.",
             counted(t->merges, "merge"), t->merges + BYTES + 1, vocabulary);
    add_end_of_text(t);
    t->begins = t->keeps_tail = true;
    tokenizer_save(t, out);
    progress(true, "%s: %d tokens from %.1f MB, %s, in %.2f s", out, t->vocabulary,
             source.done / 1e6, counted(words.count, "different word"), seconds() - start);
    trainer_free(&trainer);
    word_table_free(&words);
    source_close(&source);
    tokenizer_free(t);
    return 0;
}

/* --- encode --- */

/* The ids of a chunk. The first `head` ids continue the document of the chunk before. Each later
 * document is on one of two sides: 0 for training, 1 set aside for validation. */
struct Encoded {
    bool ready;
    struct { uint16_t *ids; size_t count, room; } side[2];
    size_t head, documents;     /* head: on side 0; documents: that begin in the chunk */
    int64_t bytes;              /* of text */
    int last_side;              /* of the last document that begins here, or -1 */
};

/* Draws the side of the document that begins with this part. The draw depends on the seed, the
 * number of the file and the position in it, not on threads or chunks. A document that was cut in
 * two is not drawn. */
static int side_of(const struct Chunk *c, const struct Part *p, double val_fraction, int64_t seed)
{
    struct Random r = random_stream((uint64_t)seed + ((uint64_t)c->file_number << 44),
                                    (uint64_t)p->position);
    return c->cut ? p->position >= c->cut : random_uniform(&r) < val_fraction;
}

/* Encodes the documents of one chunk into e. */
static void encode_chunk(struct Encoded *e, struct Encoder *encoder, struct Chunk c,
                         double val_fraction, int64_t seed)
{
    struct Part p;
    e->side[0].count = e->side[1].count = e->head = e->documents = 0;
    e->bytes = 0;
    e->last_side = -1;
    while (next_part(&c, &p)) {
        const int side = p.starts ? side_of(&c, &p, val_fraction, seed) : 0;
        const size_t max_count = e->side[side].count + (p.end - p.begin) + 16;
        if (max_count > e->side[side].room) {
            e->side[side].room = 2 * max_count;
            e->side[side].ids = resize(e->side[side].ids, 2 * max_count * sizeof(uint16_t));
        }
        uint16_t *ids = e->side[side].ids + e->side[side].count, *at = ids;
        if (p.starts) *at++ = (uint16_t)encoder->tokenizer->eot;
        at += encode_text(encoder, p.begin, p.end, p.readable, at);
        e->side[side].count += at - ids;
        if (!p.starts) e->head = at - ids;
        else e->last_side = side;
        e->documents += p.starts;
        e->bytes += p.end - p.begin;
    }
}

/* Where the ids of all chunks go, in order: into shards, or only into counts. */
struct Sink {
    struct ShardWriter *writers;    /* (2): one for each side; NULL: none */
    int side;                       /* of the document that the next chunk continues */
    int64_t *uses;                  /* (V): how often each id occurs; NULL: not counted */
    int64_t documents, bytes, pieces, single;
};

static void take_encoded(struct Sink *s, const struct Encoded *e)
{
    const uint16_t *ids = e->side[0].ids;
    s->documents += e->documents;
    s->bytes += e->bytes;
    for (size_t i = 0; s->uses && i < e->side[0].count; i++) s->uses[ids[i]]++;
    if (!s->writers) return;
    write_tokens(&s->writers[s->side], ids, e->head);
    write_tokens(&s->writers[0], ids + e->head, e->side[0].count - e->head);
    write_tokens(&s->writers[1], e->side[1].ids, e->side[1].count);
    if (e->last_side >= 0) s->side = e->last_side;
}

/* Encodes all files. Each thread encodes one chunk after the other. The thread that completes the
 * next chunk in order hands it to the sink, and those behind it that are ready, so that no thread
 * waits for another's chunk. */
static void encode_files(struct Sink *s, const struct Tokenizer *t, struct Source *source,
                         double val_fraction, int64_t seed)
{
    const int threads = thread_count();
    struct Encoder *encoders = encoders_new(t, threads);
    struct Encoded encoded[BATCH] = {0};
    struct Chunk chunks[BATCH];
    const char *doing = s->writers ? "encoding" : "counting tokens";
    for (int n; (n = next_chunks(source, chunks)); show_progress(source, doing)) {
        int taken = 0;
        for (int i = 0; i < n; i++) encoded[i].ready = false;
        #pragma omp parallel for schedule(dynamic, 1)
        for (int i = 0; i < n; i++) {
            encode_chunk(&encoded[i], &encoders[thread_index()], chunks[i], val_fraction, seed);
            #pragma omp critical
            for (encoded[i].ready = true; taken < n && encoded[taken].ready; taken++)
                take_encoded(s, &encoded[taken]);
        }
    }
    for (int i = 0; i < threads; i++) {
        s->pieces += encoders[i].pieces;
        s->single += encoders[i].single;
    }
    for (int i = 0; i < 2 * BATCH; i++) free(encoded[i / 2].side[i % 2].ids);
    encoders_free(encoders, threads);
}

/* Gives the shards their names, removes older ones, and says what was written. */
static void finish_shards(struct ShardWriter *writers, int count)
{
    for (int i = 0; i < count; i++) complete_shards(&writers[i]);
    commit_outputs();
    for (struct ShardWriter *w = writers; w < writers + count; w++) {
        remove_old_shards(w);
        progress(true, "%s_%06d.bin%s: %s", w->prefix, 0, w->number > 1 ? " ..." : "",
                 counted(w->total, "token"));
        free(w->prefix);
    }
}

/* Where the end of a document of one file is set aside: after a line end, so that at least this
 * part of the file follows. 0 if there is no such line end. */
static int64_t find_cut(const char *path, double val_fraction)
{
    const struct Bytes file = map_file(path);
    int64_t cut = (int64_t)(file.size * (1 - val_fraction));
    while (cut > 0 && file.data[cut - 1] != '\n') cut--;
    unmap_file(file);
    return cut;
}

/* Texts -> shards. */
static int command_encode(int argc, char **argv)
{
    int threads = 0;
    int64_t shard_tokens = 100000000, chunk_bytes = CHUNK_BYTES, seed = 1;
    double val_fraction = 0;
    const char *tokenizer = NULL, *out = NULL, *split = "file", *text_field = "text";
    bool overwrite = false;
    struct Option options[] = {
        TOKENIZER_OPTION,
        {"out", "shards are TEXT_000000.bin, TEXT_000001.bin, ...", TEXT, &out, .required = true},
        SPLIT_OPTIONS,
        {"shard-tokens", "tokens in a shard", LONG, &shard_tokens, .min = 1, .max = INT32_MAX},
        {"val-fraction", "of the documents (of one file: its end), to TEXT_val_000000.bin, ...",
         REAL_NUMBER, &val_fraction, .max = 1},
        {"seed", "which documents these are", LONG, &seed, .max = 1e15},
        {"overwrite", "replace the shards of an earlier run", FLAG, &overwrite},
        CHUNK_OPTION, THREADS_OPTION(&threads)};
    const int files = parse_options(
        argc, argv, options, COUNT(options),
        "tokenizer encode --tokenizer DIR --out PREFIX [OPTION...] FILE...\n"
        "Writes the token ids of texts (- is standard input) to shards.");
    struct ShardWriter writers[2] = {{.prefix = text_of("%s", out), .limit = shard_tokens},
                                     {.prefix = text_of("%s_val", out), .limit = shard_tokens}};
    const int sets = val_fraction > 0 ? 2 : 1;
    for (int i = 0; i < sets; i++) start_set(&writers[i], overwrite);
    char *val = shard_path(&writers[1], 0);
    if (sets == 1 && writers[0].old_count && file_exists(val))
        warn("%s: stays, and its texts may be in the new %s, too. Remove it, or give "
             "--val-fraction.", val, out);
    free(val);
    set_threads(threads);
    struct Tokenizer *t = tokenizer_load(tokenizer);
    struct Source source = source_open(argv, files, split, text_field, chunk_bytes);
    writers[0].hash = writers[1].hash = t->hash;
    if (val_fraction > 0 && files == 1 && source.split == SPLIT_FILE && source.total
        && strcmp(argv[0], "-")) source.cut = find_cut(argv[0], val_fraction);
    if (seed != 1 && (source.cut || val_fraction == 0))
        warn("--seed %lld: has no effect, since no documents are drawn.", (long long)seed);
    struct Sink sink = {.writers = writers};
    encode_files(&sink, t, &source, val_fraction, seed);
    const int64_t tokens = writers[0].total + writers[1].total;
    if (!sink.documents) die("%s: no document in the input. Name files that hold text.", argv[0]);
    if (!writers[0].total || (val_fraction > 0 && !writers[1].total))
        die("--val-fraction %g: of %s, %s. Change it, --seed or --split.", val_fraction,
            counted(sink.documents, "document"),
            writers[0].total ? "none is set aside" : "none is left to train on");
    finish_shards(writers, sets);
    const double elapsed = seconds() - source.start;
    progress(true, "%s, %.1f MB, %.2f bytes per token, %.2f s, %.1f MB/s",
             counted(sink.documents, "document"), source.done / 1e6,
             (double)sink.bytes / tokens, elapsed,
             source.done / 1e6 / elapsed);
    source_close(&source);
    tokenizer_free(t);
    return 0;
}

/* --- decode --- */

enum { DECODE_TOKENS = 1 << 16 };       /* decoded at a time */

/* The bytes of n tokens, with the mark (16 bytes of memory) for <|endoftext|>. Returns n, or the
 * index of the first id that is not in the vocabulary; then out is empty. A short token is copied
 * as 16 bytes; the next token overwrites the surplus. */
static size_t decode_tokens(struct Buffer *out, const struct Tokenizer *t, const uint16_t *ids,
                            size_t n, const char *mark)
{
    const size_t mark_bytes = strlen(mark);
    out->size = 0;
    for (size_t i = 0; i < n; i++) {
        if (ids[i] >= t->vocabulary) { out->size = 0; return i; }
        const bool eot = ids[i] == t->eot;
        const void *bytes = eot ? (const void *)mark : t->bytes + t->offset[ids[i]];
        const size_t length = eot ? mark_bytes : (size_t)token_length(t, ids[i]);
        reserve(out, length + 16);
        if (length <= 16) memcpy(out->data + out->size, bytes, 16);
        else memcpy(out->data + out->size, bytes, length);
        out->size += length;
    }
    return n;
}

static void write_stdout(const char *bytes, size_t n)
{
    while (n) {
        const ssize_t written = write(1, bytes, n);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) die_unprinted();
        bytes += written;
        n -= (size_t)written;
    }
}

/* Writes the text of a shard. In the first shard, no mark is written for the first document. */
static void decode_shard(const struct Tokenizer *t, struct Shard s, bool first, const char *mark)
{
    struct Buffer out = {0};
    for (int64_t at = first && s.count && *s.tokens == t->eot; at < s.count; at += DECODE_TOKENS) {
        const size_t n = (size_t)(s.count - at < DECODE_TOKENS ? s.count - at : DECODE_TOKENS);
        const size_t good = decode_tokens(&out, t, s.tokens + at, n, mark);
        const uint16_t *bad = s.tokens + at + good;
        write_stdout(out.data, out.size);
        if (good < n)
            die("%s: byte %zu: token %d is not in the vocabulary of %d. Name the tokenizer that "
                "made the shard.", s.path, (size_t)((const char *)bad - s.file.data), *bad,
                t->vocabulary);
    }
    free(out.data);
    unmap_file(s.file);
}

/* Shards -> the bytes of their tokens, on standard output. */
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
    static const char marks[][16] = {"", "\n", END_OF_TEXT};
    struct Shard *s = resize(NULL, shards * sizeof *s);
    for (int i = 0; i < shards; i++) s[i] = open_shard(argv[i], t->hash);
    for (int i = 0; i < shards; i += count_set(s + i, shards - i)) {
        char *path = missing_shard(&s[i], NULL);
        if (path)
            warn("%s: is missing; %s were encoded together, so this is not the whole text.", path,
                 counted(s[i].shards, "shard"));
        free(path);
    }
    for (int i = 0; i < shards; i++) decode_shard(t, s[i], i == 0, marks[kind]);
    free(s);
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

/* The ids of a text, which the caller frees, and their number. With `special`, <|endoftext|> in
 * the text is the token, and the text on each side of it is encoded alone. */
static int *ids_of_text(struct Tokenizer *t, struct Buffer text, bool special, int *count)
{
    refuse_huge(text.size);
    int *ids = resize(NULL, (text.size + 1) * sizeof *ids);
    const uint8_t *p = (const uint8_t *)text.data, *end = p + text.size, *mark;
    *count = 0;
    for (; special && (mark = find_mark(p, end)); p = mark + END_OF_TEXT_BYTES) {
        *count += tokenizer_encode(t, (const char *)p, mark - p, ids + *count);
        ids[(*count)++] = t->eot;
    }
    *count += tokenizer_encode(t, (const char *)p, end - p, ids + *count);
    return ids;
}

static void append_id(struct Buffer *b, int id)
{
    char digits[8];
    int k = sizeof digits;
    do digits[--k] = (char)('0' + id % 10); while (id /= 10);
    append_bytes(b, digits + k, sizeof digits - k);
}

/* Standard input -> its ids, on one line. */
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
    int n, *ids = ids_of_text(t, text, special, &n);
    for (int i = 0; i < n; i++) {
        if (i) append_bytes(&line, " ", 1);
        append_id(&line, ids[i]);
    }
    append_bytes(&line, "\n", 1);
    write_stdout(line.data, line.size);
    free(ids); free(text.data); free(line.data);
    tokenizer_free(t);
    return 0;
}

/* A text -> its tokens, coloured on a terminal, and a table of their ids. */
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
    int n, *ids = ids_of_text(t, text, special, &n);
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
    printf("%s\n%s%s, %s, %.2f bytes per token\n", n ? line.data : "", n ? table.data : "",
           counted(n, "token"), counted(text.size, "byte"), n ? (double)text.size / n : 0);
    free(ids); free(text.data); free(line.data); free(table.data);
    tokenizer_free(t);
    return 0;
}

/* Prints the n longest tokens that are used, longest first. */
static void print_longest(const struct Tokenizer *t, const int64_t *uses, int n)
{
    struct Heap longest = {0};
    struct Buffer b = {0};
    for (int id = 0; id < t->eot; id++)
        if (uses[id]) heap_push(&longest, (struct Entry){token_length(t, id), id, id});
    for (; n > 0 && longest.size; n--) {
        int length, id = heap_pop(&longest).index;
        const uint8_t *bytes = tokenizer_piece(t, id, &length);
        append(&b, "%8d %10lld  \"", id, (long long)uses[id]);
        append_readable(&b, bytes, length);
        append(&b, "\"\n");
    }
    printf("longest tokens (id, uses, bytes)\n%s", b.size ? b.data : "");
    free(b.data);
    free(longest.entries);
}

/* Texts -> how many tokens and bytes, and the longest tokens. */
static int command_stats(int argc, char **argv)
{
    int threads = 0, longest = 10;
    int64_t tokens = 0, unused = 0;
    const char *tokenizer = NULL, *split = "file", *text_field = "text";
    struct Option options[] = {
        TOKENIZER_OPTION, SPLIT_OPTIONS,
        {"longest", "how many of the longest tokens to print", INTEGER, &longest, .max = 65536},
        THREADS_OPTION(&threads)};
    const int files = parse_options(argc, argv, options, COUNT(options),
                                    "tokenizer stats --tokenizer DIR [OPTION...] FILE...\n"
                                    "How well the vocabulary fits texts.");
    set_threads(threads);
    struct Tokenizer *t = tokenizer_load(tokenizer);
    struct Source source = source_open(argv, files, split, text_field, CHUNK_BYTES);
    struct Sink sink = {.uses = allocate_zeroed(t->vocabulary * sizeof *sink.uses)};
    encode_files(&sink, t, &source, 0, 0);
    for (int id = 0; id < t->eot; id++) {
        tokens += sink.uses[id];
        unused += !sink.uses[id];
    }
    printf("bytes            %lld\ntokens           %lld\n", (long long)sink.bytes,
           (long long)tokens);
    printf("bytes_per_token  %.4f\n", tokens ? (double)sink.bytes / tokens : 0);
    printf("documents        %lld\nwords            %lld\n", (long long)sink.documents,
           (long long)sink.pieces);
    printf("one_token_words  %.2f %%\n", sink.pieces ? 100.0 * sink.single / sink.pieces : 0);
    printf("unused_tokens    %lld of %d\n", (long long)unused, t->eot);
    print_longest(t, sink.uses, longest);
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
