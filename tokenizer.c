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
 *      1  Characters                             7  Speed       16 bytes at a time, cache, heap
 *      2  Pieces                                 8  Files       merges.txt, tokenizer.json, ...
 *      3  Vocabulary                             9  Shards      what the training program reads
 *      4  Merging a piece                       10  Documents   texts, cut for the threads
 *      5  The heap                              11  Commands    train, encode, decode, ...
 *      6  Learning the merges
 *
 * Other programs include this file after `#define TOKENIZER_NO_MAIN`, which leaves out sections 10
 * and 11. They load a tokenizer (8), encode texts (7) and open shards (9). */

#include "model.h"
#include "data/unicode_classes.h"
#include <fnmatch.h>
#include <limits.h>

/* ============================================================================================= */
/* Part I: what a tokenizer computes                                                             */
/* ============================================================================================= */

/* ============================================================================================= */
/* 1. Characters                                                                                 */
/* ============================================================================================= */

/* A character is a Unicode code point, which UTF-8 writes as 1 to 4 bytes. Where a text is cut
 * depends only on the class of each character: letter, number, white space or other. In regular
 * expressions the first three are \p{L}, \p{N} and \s (the property White_Space). */
enum { OTHER, LETTER, NUMBER, SPACE };

enum { CODE_POINTS = 0x110000 };
static uint8_t class_of[CODE_POINTS];

/* Fills the table from CLASS_RUNS, in which a run of n code points of one class is the number
 * 4 n + class. The first run begins at U+0000; all that follows the last run is OTHER, 0. */
static void prepare_classes(void)
{
    uint8_t *c = class_of;
    for (int run = 0; run < COUNT(CLASS_RUNS); c += CLASS_RUNS[run++] / 4)
        memset(c, CLASS_RUNS[run] % 4, CLASS_RUNS[run] / 4);
}

/* The class of the character at p < end; *length: its number of bytes. A byte that is not part of
 * valid UTF-8 counts as one character of class OTHER. */
static inline int class_at(const uint8_t *p, const uint8_t *end, int *length)
{
    uint32_t code_point = *p;
    const int n = *p < 128 ? 1 : utf8_decode(p, end - p, &code_point);
    *length = n > 0 ? n : 1;
    return n > 0 ? class_of[code_point] : OTHER;
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
    const int contraction = contraction_length(p, end);
    if (contraction) return p + contraction;
    const uint8_t *q = p + (*p == ' ' && end - p > 1), *last = p;   /* after the optional space */
    int n, class = class_at(q, end, &n);
    if (class != SPACE) {
        do q += n; while (q < end && class_at(q, end, &n) == class);
        return q;
    }
    for (q = p; q < end && class_at(q, end, &n) == SPACE; q += n) last = q;
    return q < end && last > p ? last : q;
}

/* ============================================================================================= */
/* 3. Vocabulary                                                                                 */
/* ============================================================================================= */

/* A shard stores an id in 16 bits, hence at most 65,536 tokens. */
enum { BYTES = 256, MAX_VOCABULARY = 65536, MAX_TOKEN_BYTES = 65535 };
#define END_OF_TEXT "<|endoftext|>"
enum { END_OF_TEXT_BYTES = sizeof END_OF_TEXT - 1 };

/* How a model reads a text. Its directory says so (tokenizer_config.json). */
struct Usage {
    bool begins;                /* each text begins with <|endoftext|> */
    bool keeps_tail;            /* of a text that is too long the tail is read, else the head */
    int max_length;             /* tokens that are read of a text; 0: not known */
    int *suffix, suffix_count;  /* (suffix_count): the tokens after each text, whatever is cut */
};

struct Tokenizer {
    int vocabulary;             /* V = 256 + merges + 1 */
    int merges;
    int eot;                    /* the id of <|endoftext|>: V - 1 */
    uint64_t hash;              /* of the list of merges */
    uint16_t (*parts)[2];       /* (merges, 2): token 256 + r is made of these two tokens */
    struct HashTable pairs;     /* (a, b) -> the token that is made of a and b */
    struct Buffer bytes;        /* of all tokens, back to back, in the order of the ids */
    uint32_t *offset;           /* (V + 1): token i begins at byte offset[i], ends at the next */
    struct Slot *cache;         /* (7) of tokenizer_encode, which creates it */
    struct HashTable found;     /* in files (8): the checksum of a token's bytes -> its id. That two
                                 * of 65,536 tokens have the same has a chance of 1e-10 */
    int *file_ids;              /* (V): the ids in the file that was read; NULL: the same */
    struct Buffer added;        /* to the merges by that file, a NUL after each: see refuse_added */
    struct Usage usage;
};

static inline int token_length(const struct Tokenizer *t, int id)
{
    return (int)(t->offset[id + 1] - t->offset[id]);
}

/* The bytes of a token. They are valid as long as no token is added. */
static inline struct Bytes bytes_of_token(const struct Tokenizer *t, int id)
{
    return (struct Bytes){t->bytes.data + t->offset[id], token_length(t, id)};
}

/* GPT-2 numbers the bytes by how its files write them. The ids 0 to 187 are the bytes that are
 * visible characters of Latin-1: "!" has the id 0, "a" 64. The other bytes follow in order: 0 to
 * 32, 127 to 160, 173. A space has the id 220. */
enum { VISIBLE = 188 };         /* the number of visible bytes */
static uint8_t byte_of_id[BYTES], id_of_byte[BYTES];

static bool visible(int byte)
{
    return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
}

static void prepare_bytes(void)
{
    int visible_id = 0, other_id = VISIBLE;
    for (int byte = 0; byte < BYTES; byte++) {
        const int id = visible(byte) ? visible_id++ : other_id++;
        byte_of_id[id] = (uint8_t)byte;
        id_of_byte[byte] = (uint8_t)id;
    }
}

/* A tokenizer of the 256 bytes. Fills the tables of sections 1 and 3: make one before all else. */
static struct Tokenizer *tokenizer_new(void)
{
    struct Tokenizer *t = resize(NULL, sizeof *t);
    prepare_classes();
    prepare_bytes();
    *t = (struct Tokenizer){.vocabulary = BYTES, .pairs = hash_table(0)};
    t->parts = resize(NULL, (size_t)MAX_VOCABULARY * sizeof *t->parts);
    t->offset = resize(NULL, ((size_t)MAX_VOCABULARY + 1) * sizeof *t->offset);
    append_bytes(&t->bytes, byte_of_id, BYTES);
    for (int i = 0; i <= BYTES; i++) t->offset[i] = i;
    return t;
}

static inline uint32_t pair_of(int a, int b) { return (uint32_t)a << 16 | (uint32_t)b; }

/* The token that the merge of a and b makes, or -1 if there is no such merge. */
static inline int merged(const struct Tokenizer *t, int a, int b)
{
    return hash_get(&t->pairs, pair_of(a, b));
}

/* Adds the merge (a, b) to the end of the list; returns the id of its token. */
static int add_merge(struct Tokenizer *t, int a, int b)
{
    const int id = t->vocabulary, a_bytes = token_length(t, a), b_bytes = token_length(t, b);
    reserve(&t->bytes, (size_t)a_bytes + b_bytes);  /* what is appended must not move meanwhile */
    append_bytes(&t->bytes, t->bytes.data + t->offset[a], a_bytes);
    append_bytes(&t->bytes, t->bytes.data + t->offset[b], b_bytes);
    t->offset[++t->vocabulary] = (uint32_t)t->bytes.size;
    t->parts[t->merges][0] = (uint16_t)a;
    t->parts[t->merges++][1] = (uint16_t)b;
    hash_add(&t->pairs, pair_of(a, b), id);
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
    append(&t->bytes, END_OF_TEXT);
    t->eot = t->vocabulary;
    t->offset[++t->vocabulary] = (uint32_t)t->bytes.size;
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
/* 5. The heap                                                                                   */
/* ============================================================================================= */

/* A binary heap: entries[0] has the largest key and, of equal keys, the smallest id. The caller
 * may store any number in index. The children of entry i are the entries 2 i + 1 and 2 i + 2. */
struct Entry { double key; uint32_t id; int index; };
struct Heap { struct Entry *entries; size_t size, room; };

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

/* Takes out entries[0]; size must be > 0. The entry stays in memory at entries[size], so that
 * popping all entries of an array sorts it, the first entry of the heap last. */
static struct Entry heap_pop(struct Heap *h)
{
    const struct Entry top = h->entries[0];
    h->entries[0] = h->entries[--h->size];
    h->entries[h->size] = top;
    heap_sift_down(h, 0);
    return top;
}

/* ============================================================================================= */
/* 6. Learning the merges                                                                        */
/* ============================================================================================= */

/* A text has many pieces, but far fewer different ones. Each different piece is a word here and
 * carries the number of times that it occurs. So the time of learning depends on the number of
 * words, not on the length of the text.
 *
 * A merge changes only the words that contain its pair, and in these words only the pairs beside
 * it. Therefore all counts are computed once and then updated. */

/* In an array of bytes or tokens: [at .. at + length). */
struct Word { size_t at, length; int64_t count; };

/* A pair of neighbouring tokens. */
struct PairCount {
    int64_t count;              /* how often it occurs in the texts now */
    uint32_t pair;              /* pair_of(a, b) */
    uint32_t *words;            /* (places): the words that contain it, or did before a merge */
    uint32_t places, room;
};

struct Trainer {
    uint16_t *ids;              /* the tokens of all words, back to back */
    struct Word *words;
    struct PairCount *pairs;    /* all pairs that occur or have occurred */
    int pair_count, pair_room;
    struct HashTable index;     /* pair -> its index in pairs */
    struct Heap heap;           /* key: count; id: pair; index: in pairs */
};

/* Changes the count of the pair (a, b), which now occurs in this word more often, or less if change
 * < 0. The pairs of a word are counted one after the other: if it holds the pair twice, it is the
 * last of the list the second time. A word that a later merge adds again is visited in vain. */
static void change_count(struct Trainer *t, int a, int b, int64_t change, uint32_t word)
{
    const uint32_t pair = pair_of(a, b);
    const int index = hash_add(&t->index, pair, t->pair_count);
    if (index == t->pair_count) {                               /* a new pair */
        if (t->pair_count++ == t->pair_room)
            t->pairs = resize(t->pairs, (t->pair_room = 2 * index + 1024) * sizeof *t->pairs);
        t->pairs[index] = (struct PairCount){.pair = pair};
    }
    struct PairCount *p = &t->pairs[index];
    p->count += change;
    if (change < 0) return;                                     /* the list keeps the word */
    if (p->places && p->words[p->places - 1] == word) return;   /* it was added just before */
    if (p->places == p->room)
        p->words = resize(p->words, (p->room = 2 * p->room + 2) * sizeof *p->words);
    p->words[p->places++] = word;
}

/* A trainer of words whose bytes stand back to back in `text`, with the counts of all pairs. */
static struct Trainer trainer_of_words(struct Word *words, int count, struct Buffer text)
{
    struct Trainer t = {.ids = resize(NULL, text.size * sizeof *t.ids), .words = words,
                        .index = hash_table(0)};
    for (size_t i = 0; i < text.size; i++) t.ids[i] = id_of_byte[(uint8_t)text.data[i]];
    for (int word = 0; word < count; word++) {
        const uint16_t *ids = t.ids + words[word].at;
        for (size_t i = 0; i + 1 < words[word].length; i++)
            change_count(&t, ids[i], ids[i + 1], words[word].count, word);
    }
    return t;
}

/* Replaces every a b in a word by the token `made`. In x a b y, the pairs (x, a) and (b, y) go and
 * (x, made) and (made, y) come. The word becomes shorter in place. */
static void merge_word(struct Trainer *t, uint32_t word, int a, int b, int made)
{
    struct Word *w = &t->words[word];
    uint16_t *ids = t->ids + w->at;
    size_t kept = 0;
    for (size_t i = 0; i < w->length; i++) {
        if (ids[i] != a || i + 1 == w->length || ids[i + 1] != b) {
            ids[kept++] = ids[i];
            continue;
        }
        if (kept) {                             /* x is ids[kept - 1], which may be `made` itself */
            change_count(t, ids[kept - 1], a, -w->count, word);
            change_count(t, ids[kept - 1], made, w->count, word);
        }
        if (i + 2 < w->length) {                /* y is ids[i + 2] */
            change_count(t, b, ids[i + 2], -w->count, word);
            change_count(t, made, ids[i + 2], w->count, word);
        }
        ids[kept++] = (uint16_t)made;
        i++;
    }
    w->length = kept;
}

/* Merges the pair (a, b), which has this index, in all its words. */
static void merge_pair(struct Trainer *t, int index, int a, int b, int made)
{
    const struct PairCount p = t->pairs[index];     /* a copy: merge_word may move t->pairs */
    for (uint32_t i = 0; i < p.places; i++) merge_word(t, p.words[i], a, b, made);
    free(p.words);
    t->pairs[index] = (struct PairCount){.pair = p.pair};
}

/* Learns merges until the tokenizer has `wanted` of them: merges the most frequent pair, of equal
 * counts the one with the smallest ids, again and again. Stops early if no pair occurs min_count
 * > 0 times. Pairs that would make a token of more than max_bytes are passed over. A count is
 * exact as the key of an entry, a double, below 2^53.
 *
 * The heap holds each pair once, with its count at the time of the push. The true count may have
 * become smaller, but not larger: only pairs with a new token become more frequent, and they are
 * pushed after that. Hence an entry that is popped and still right is the maximum of all pairs;
 * one that is out of date is pushed again with its true count. */
static void learn_merges(struct Tokenizer *out, struct Trainer *t, int wanted, int64_t min_count,
                         int max_bytes)
{
    struct Timer timer = start_timer();
    int pushed = 0;                             /* so many pairs have been pushed */
    while (out->merges < wanted) {
        for (; pushed < t->pair_count; pushed++) {
            const struct PairCount *p = &t->pairs[pushed];
            heap_push(&t->heap, (struct Entry){p->count, p->pair, pushed});
        }
        if (!t->heap.size) break;
        struct Entry top = heap_pop(&t->heap);
        const int64_t count = t->pairs[top.index].count;
        if (count != (int64_t)top.key) {
            top.key = count;
            heap_push(&t->heap, top);
            continue;
        }
        if (count < min_count) break;
        const int a = (int)(top.id >> 16), b = (int)(top.id & 0xFFFF);
        if (token_length(out, a) + token_length(out, b) > max_bytes) continue;
        merge_pair(t, top.index, a, b, add_merge(out, a, b));
        show_work(&timer, "merging", out->merges, wanted, "merges");
    }
}

/* ============================================================================================= */
/* Part II: speed, files, commands                                                               */
/* ============================================================================================= */

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

/* The key of n <= WORD_BYTES bytes at p. Memory may be read up to `readable`; if that is at least
 * 16 bytes, one load and one mask are enough. */
static inline Bytes16 word_key(const uint8_t *p, size_t n, const uint8_t *readable)
{
    Bytes16 key = 0;
    if (readable - p < 16) memcpy(&key, p, n);
    else memcpy(&key, p, sizeof key);
    return (key & (((Bytes16)1 << 8 * n) - 1)) | (Bytes16)n << 120;
}

/* A 128-bit product, folded: each bit of the key changes all bits of the hash (wyhash, Wang Yi). */
static inline uint64_t key_hash(Bytes16 key)
{
    const Bytes16 product = (Bytes16)((uint64_t)key ^ 0xA0761D6478BD642Fu)
                          * ((uint64_t)(key >> 64) ^ 0xE7037ED1A0B428DBu);
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* --- The cache of words: most pieces have been merged before --- */

/* A slot is half a cache line. A word can be in either of the two slots of one line, the newer one
 * first; a third word replaces the older. Longer words, and those of more tokens, are not kept.
 * Each thread has a cache of its own, which is 0 in the beginning. */
enum { CACHE_BITS = 18, CACHE_IDS = 7 };
struct Slot { Bytes16 key; uint16_t ids[CACHE_IDS], count; };
static const size_t CACHE_BYTES = sizeof(struct Slot) << CACHE_BITS;

/* --- Long pieces: a heap of the pairs that can be merged --- */

/* The time of merge_short grows with n^2, that of this with n log n. A piece is a doubly linked
 * list of tokens. The heap has the pairs that have a merge: the one that was learned first comes
 * first, of equal ones the leftmost. A byte of the piece takes about 60 bytes of memory. */
struct Link { uint32_t next, before; uint16_t id; };    /* of a token, by its first byte */

/* Pushes the pair of the token at `at` and the next one, if it has a merge. */
static void push_link(struct Heap *h, const struct Tokenizer *t, const struct Link *list,
                      uint32_t at, size_t n)
{
    const uint32_t right = list[at].next;
    const int made = right < n ? merged(t, list[at].id, list[right].id) : -1;
    if (made >= 0) heap_push(h, (struct Entry){-made, at, made});
}

/* Dies on a text of so many bytes that int may not count its tokens and those of a second one. */
static void refuse_huge(size_t n)
{
    if (n >= INT_MAX / 2) die("a text of %.1f GB is too long. Split it.", n / 1e9);
}

/* Merges a piece of any length, with the same result as merge_short. A pair that is popped may be
 * gone, because one of its tokens was merged with another. */
static size_t merge_long(const struct Tokenizer *t, const uint8_t *piece, size_t n, uint16_t *out)
{
    refuse_huge(n);
    struct Link *list = resize(NULL, n * sizeof *list);
    struct Heap heap = {0};
    for (uint32_t i = 0; i < n; i++)
        list[i] = (struct Link){i + 1, i - 1, id_of_byte[piece[i]]};
    for (uint32_t i = 0; i < n; i++) push_link(&heap, t, list, i, n);
    while (heap.size) {
        const struct Entry top = heap_pop(&heap);
        const uint32_t at = top.id, right = list[at].next;
        if (right >= n || merged(t, list[at].id, list[right].id) != top.index) continue;
        list[at] = (struct Link){list[right].next, list[at].before, (uint16_t)top.index};
        list[right].id = UINT16_MAX;            /* an id that no merge contains */
        if (list[at].next < n) list[list[at].next].before = at;
        if (at) push_link(&heap, t, list, list[at].before, n);
        push_link(&heap, t, list, at, n);
    }
    size_t count = 0;
    for (uint32_t i = 0; i < n; i = list[i].next) out[count++] = list[i].id;
    free(list);
    free(heap.entries);
    return count;
}

/* --- Texts --- */

/* A piece that was found, and the cache line where its tokens may be. A piece of more than
 * WORD_BYTES bytes has the key 0 and is never there. */
struct Piece { const uint8_t *text; size_t n; Bytes16 key; struct Slot *line; };

/* Merges a piece that is not in the cache and stores it there. Returns the number of ids. */
__attribute__((noinline))
static size_t encode_piece(const struct Tokenizer *t, const struct Piece *piece, uint16_t *out)
{
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

/* The next place of `text`, which is not empty, in p .. end, or NULL. */
static const uint8_t *find_text(const uint8_t *p, const uint8_t *end, const char *text)
{
    const size_t n = strlen(text);
    for (; (p = memchr(p, text[0], end - p)); p++)
        if ((size_t)(end - p) >= n && !memcmp(p, text, n)) return p;
    return NULL;
}

/* Dies on a token that a directory from elsewhere adds to its merges: here it would be text. */
static void refuse_added(const struct Tokenizer *t, const uint8_t *p, const uint8_t *end)
{
    for (size_t at = 0; at < t->added.size; at += strlen(t->added.data + at) + 1)
        if (find_text(p, end, t->added.data + at))
            die("%s: is a token that was added to the tokenizer, which is not supported. Take it "
                "out of the text.", t->added.data + at);
}

/* Encodes p .. end; returns the number of ids. out: an id a byte and 8 more; readable: piece_end's.
 *
 * Up to 32 pieces are found first and their cache lines prefetched, and only then they are looked
 * up. Waiting for each line instead would take more time than all other work. */
static size_t encode_text(const struct Tokenizer *t, struct Slot *cache, const uint8_t *p,
                          const uint8_t *end, const uint8_t *readable, uint16_t *out)
{
    enum { AHEAD = 32 };
    struct Piece pieces[AHEAD];
    uint16_t *o = out;
    refuse_added(t, p, end);
    while (p < end) {
        int found = 0;
        for (const uint8_t *next; found < AHEAD && p < end; p = next) {
            next = piece_end(p, end, readable);
            const size_t n = next - p;
            const Bytes16 key = n <= WORD_BYTES ? word_key(p, n, readable) : 0;
            struct Slot *line = cache + (key_hash(key) >> (65 - CACHE_BITS)) * 2;
            __builtin_prefetch(line);
            pieces[found++] = (struct Piece){p, n, key, line};
        }
        for (int i = 0; i < found; i++) {
            const Bytes16 key = pieces[i].key;
            const struct Slot *slot = pieces[i].line;
            slot += slot->key != key;               /* the first or the second, without a branch */
            size_t count = slot->count;
            if (slot->key == key && pieces[i].n <= WORD_BYTES)
                memcpy(o, slot->ids, sizeof slot->ids + sizeof slot->count);
            else count = encode_piece(t, &pieces[i], o);
            o += count;
        }
    }
    return o - out;
}

/* Encodes a text of n bytes; ids needs room for n. Returns their number. <|endoftext|> in the text
 * is ordinary text. One tokenizer must not be used by two threads at once. */
static int tokenizer_encode(struct Tokenizer *t, const char *text, size_t n, int *ids)
{
    const uint8_t *p = (const uint8_t *)text;
    if (!t->cache) t->cache = allocate_zeroed(CACHE_BYTES);
    refuse_huge(n);
    uint16_t *out = resize(NULL, (n + 8) * sizeof *out);
    const size_t count = encode_text(t, t->cache, p, p + n, p + n, out);
    for (size_t i = 0; i < count; i++) ids[i] = out[i];
    free(out);
    return (int)count;
}

/* ============================================================================================= */
/* 8. Files                                                                                      */
/* ============================================================================================= */

/* Files write each byte as a character: a visible one as itself, the others as U+0100, U+0101, ...
 * in the order of their ids. A space is U+0120, Ġ. */
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

/* Lets find_token find a token. Returns false if there is one with the same bytes. */
static bool note_token(struct Tokenizer *t, int id)
{
    const struct Bytes bytes = bytes_of_token(t, id);
    return hash_add(&t->found, checksum(bytes.data, bytes.size), id) == id;
}

/* The id of the token that the symbols text .. stop write, or -1. */
static int find_token(const struct Tokenizer *t, const char *text, const char *stop)
{
    uint8_t bytes[MAX_TOKEN_BYTES];
    size_t n = 0;
    for (int length; text < stop; text += length) {
        uint32_t c = 0;
        length = utf8_decode((const uint8_t *)text, stop - text, &c);
        const int byte = length > 0 ? byte_of_symbol(c) : -1;
        if (byte < 0 || n == MAX_TOKEN_BYTES) return -1;
        bytes[n++] = (uint8_t)byte;
    }
    return hash_get(&t->found, checksum(bytes, n));
}

/* The line at *at, without its end. Moves *at to the next line. */
static struct Bytes take_line(const char **at, const char *end)
{
    const char *line = *at, *stop = memchr(line, '\n', end - line);
    size_t n = (stop ? stop : end) - line;
    *at = line + n + (stop != NULL);
    if (n && line[n - 1] == '\r') n--;
    return (struct Bytes){line, n};
}

/* Adds the merge of a line. Dies unless it is two tokens that make a new one. */
static void read_merge(struct Tokenizer *t, struct Bytes text, const char *path, int line)
{
    const char *space = memchr(text.data, ' ', text.size);
    const int a = space ? find_token(t, text.data, space) : -1,
              b = space ? find_token(t, space + 1, text.data + text.size) : -1;
    const char *wrong =
        a < 0 || b < 0 ? "is not two tokens that lines before it made, with a space between"
        : t->vocabulary == MAX_VOCABULARY - 1 ? "is one too many: a shard has at most 65536 tokens"
        : token_length(t, a) + token_length(t, b) > MAX_TOKEN_BYTES
        ? "makes a token of more than 65535 bytes"
        : !note_token(t, add_merge(t, a, b)) ? "makes a token that a line before makes" : NULL;
    if (wrong)
        die("%s: line %d: \"%.*s\" %s. Replace the file.", path, line, (int)fmin(text.size, 80),
            text.data, wrong);
}

/* Makes a tokenizer of the text of a merges.txt, of which each line is for read_merge. */
static struct Tokenizer *read_merges(struct Bytes text, const char *path)
{
    const char *at = text.data, *end = text.data + text.size;
    struct Tokenizer *t = tokenizer_new();
    t->found = hash_table(BYTES);
    for (int i = 0; i < BYTES; i++) note_token(t, i);
    for (int number = 1; at < end; number++) {
        const struct Bytes line = take_line(&at, end);
        if (number > 1 || strncmp(line.data, "#version", 8)) read_merge(t, line, path, number);
    }
    if (!t->merges) warn("%s: no merge, so every byte is a token.", path);
    add_end_of_text(t);
    note_token(t, t->eot);
    return t;
}

/* --- Reading vocab.json and tokenizer.json --- */

/* A file as a tree of nodes. Its text stays in memory, since the tree points into it. */
static struct Json *read_json_file(const char *path, size_t max)
{
    const struct Bytes file = read_file(path, max, false);
    return json_parse(file.data, file.size, path);
}

/* Notes the id that the file gives to a token, unless we do not have the token. */
static void read_file_id(struct Tokenizer *t, const char *name, const struct Json *id)
{
    const int token = find_token(t, name, name + strlen(name));
    if (token >= 0 && id && id->kind == JSON_NUMBER && id->number >= 0 && id->number < INT_MAX)
        t->file_ids[token] = (int)id->number;
}

/* Notes the tokens that are found in a text before anything is merged: see refuse_added. */
static void read_added(struct Tokenizer *t, const struct Json *list)
{
    for (const struct Json *a = list ? list->child : NULL; a; a = a->next) {
        const char *name = json_text(a, "content", END_OF_TEXT);
        if (find_token(t, name, name + strlen(name)) != t->eot)
            append_bytes(&t->added, name, strlen(name) + 1);
    }
}

/* Sets file_ids: trainers that put special tokens first have another order than ours. names:
 * {"token": id, ...}. added: of tokenizer.json, or NULL. Dies unless each token has its own id. */
static void read_file_ids(struct Tokenizer *t, const struct Json *names, const struct Json *added,
                          const char *path)
{
    struct HashTable taken = hash_table(t->vocabulary);
    bool ours = true;
    t->file_ids = resize(NULL, t->vocabulary * sizeof *t->file_ids);
    for (int i = 0; i < t->vocabulary; i++) t->file_ids[i] = -1;
    for (const struct Json *j = names->child; j && j->key; j = j->next)
        read_file_id(t, j->key, j);
    for (const struct Json *a = added ? added->child : NULL; a; a = a->next)
        read_file_id(t, json_text(a, "content", ""), json_get(a, "id"));
    for (int i = 0; i < t->vocabulary; i++) {
        if (t->file_ids[i] < 0 || hash_add(&taken, t->file_ids[i], i) != i)
            die("%s: gives no id of its own to token %d, \"%.*s\", so another tokenizer wrote "
                "it. Put the right file there.", path, i, min_int(80, token_length(t, i)),
                bytes_of_token(t, i).data);
        ours &= t->file_ids[i] == i;
    }
    hash_free(&taken);
    if (ours) { free(t->file_ids); t->file_ids = NULL; }
}

/* Dies unless a tokenizer.json is of a byte-level BPE that cuts texts as GPT-2 does. */
static void check_tokenizer_json(const struct Json *j, const char *path)
{
    const struct Json *model = json_get(j, "model"), *cut = json_get(j, "pre_tokenizer"),
                      *norm = json_get(j, "normalizer"), *post = json_get(j, "post_processor");
    const char *wrong =
        strcmp(json_text(model, "type", "BPE"), "BPE") || !json_get(model, "merges")
        || !json_get(model, "vocab") ? "its model is not BPE with merges"
        : strcmp(json_text(cut, "type", ""), "ByteLevel") || json_number(cut, "add_prefix_space", 1)
          || !json_number(cut, "use_regex", 1)
        ? "its pre_tokenizer is not GPT-2's ByteLevel without add_prefix_space"
        : norm && norm->kind != JSON_NULL ? "its normalizer changes texts"
        : json_number(model, "ignore_merges", 0) ? "its ignore_merges is true"
        : strcmp(json_text(post, "type", "ByteLevel"), "ByteLevel") && !json_get(post, "single")
        ? "its post_processor is no template" : NULL;
    if (wrong)
        die("%s: %s, which is not supported. Use a model with a tokenizer like GPT-2's.", path,
            wrong);
}

/* The lines of a merges.txt, from a tokenizer.json's list: ["a b", ...] or [["a", "b"], ...] */
static struct Buffer merges_of_json(const struct Json *list, const char *path)
{
    struct Buffer text = {0};
    append(&text, "#version: 0.2\n");
    for (const struct Json *j = list->child; j; j = j->next) {
        const struct Json *a = j->child, *b = a ? a->next : NULL;
        if (j->kind == JSON_STRING) append(&text, "%s\n", j->string);
        else if (b && !b->next && a->kind == JSON_STRING && b->kind == JSON_STRING)
            append(&text, "%s %s\n", a->string, b->string);
        else die("%s: a merge is neither \"a b\" nor [\"a\", \"b\"]. Replace the file.", path);
    }
    return text;
}

/* Appends a special piece of a template, such as {"ids": [13, 340], "tokens": [".", "\u0120it"]},
 * to the suffix, by the names of its tokens. Dies on tokens that we do not have. */
static void read_suffix(struct Tokenizer *t, const struct Json *special, const char *path)
{
    struct Usage *u = &t->usage;
    const struct Json *names = json_get(special, "tokens"), *name = names ? names->child : NULL;
    for (; name; name = name->next) {
        const char *text = name->kind == JSON_STRING ? name->string : "";
        const int token = find_token(t, text, text + strlen(text));
        if (token < 0)
            die("%s: its template puts \"%s\" after a text, which the model does not have as a "
                "token. Take it out of the template.", path, text);
        u->suffix = resize(u->suffix, (u->suffix_count + 1) * sizeof *u->suffix);
        u->suffix[u->suffix_count++] = token;
    }
}

/* Dies if a special token other than <|endoftext|> stands before each text. */
static void begin_with(struct Tokenizer *t, const char *name, const char *path)
{
    if (strcmp(name, END_OF_TEXT))
        die("%s: texts begin with \"%s\"; only %s is supported.", path, name, END_OF_TEXT);
    t->usage.begins = true;
}

/* What a template does to a text: whether <|endoftext|> stands before it, and what stands after. */
static void read_template(struct Tokenizer *t, const struct Json *processor, const char *path)
{
    const struct Json *single = json_get(processor, "single");
    bool after = false;
    for (const struct Json *piece = single ? single->child : NULL; piece; piece = piece->next) {
        const char *id = json_text(json_get(piece, "SpecialToken"), "id", "");
        if (after) read_suffix(t, json_get(json_get(processor, "special_tokens"), id), path);
        else if (*id) begin_with(t, id, path);
        after |= json_get(piece, "Sequence") != NULL;
    }
}

/* A tokenizer.json: merges, ids, and what is added to each text. */
static struct Tokenizer *read_tokenizer_json(const char *path)
{
    struct Json *j = read_json_file(path, MAX_TOKENIZER);
    check_tokenizer_json(j, path);
    const struct Json *model = json_get(j, "model");
    const struct Buffer merges = merges_of_json(json_get(model, "merges"), path);
    struct Tokenizer *t = read_merges((struct Bytes){merges.data, merges.size},
                                      brief("%s, as merges.txt", path));
    read_file_ids(t, json_get(model, "vocab"), json_get(j, "added_tokens"), path);
    read_added(t, json_get(j, "added_tokens"));
    read_template(t, json_get(j, "post_processor"), path);
    free(merges.data);
    json_free(j);
    return t;
}

/* Reads the usage from tokenizer_config.json. What it does not say stays as it is: texts do not
 * begin with <|endoftext|>, their head is read, and added tokens are no text. */
static void read_usage(struct Tokenizer *t, const char *path)
{
    struct Usage *u = &t->usage;
    struct Json *j = read_json_file(path, MAX_CONFIG);
    const char *content = json_text(json_get(j, "bos_token"), "content", END_OF_TEXT),
               *name = json_text(j, "bos_token", content);     /* a string, or an object with it */
    const double longest = json_number(j, "model_max_length", 0);
    if (json_number(j, "add_bos_token", u->begins) != 0) begin_with(t, name, path);
    else u->begins = false;
    if (json_number(j, "add_prefix_space", 0))
        die("%s: add_prefix_space is true, which is not supported. Use another model.", path);
    u->keeps_tail = !strcmp(json_text(j, "truncation_side", "right"), "left");
    read_added(t, json_get(j, "added_tokens_decoder"));
    if (json_number(j, "split_special_tokens", 0)) t->added.size = 0;
    u->max_length = longest >= 1 && longest < 1e9 ? (int)longest : 0;
    json_free(j);
}

/* The path of a file in a directory, or NULL: there is none. */
static const char *existing_file(const char *directory, const char *name)
{
    const char *path = brief("%s/%s", directory, name);
    return file_exists(path) ? text_of("%s", path) : NULL;
}

/* The file that a tokenizer is read from: `name`, or of a directory the first of these; NULL: there
 * is none. tokenizer.json says all; vocab.bpe is the merges.txt of GPT-2's authors. */
static const char *tokenizer_file(const char *name)
{
    static const char *const files[] = {"tokenizer.json", "merges.txt", "vocab.bpe"};
    struct stat status;
    const char *path = NULL;
    if (stat(name, &status) || !S_ISDIR(status.st_mode)) return file_exists(name) ? name : NULL;
    for (int i = 0; i < COUNT(files) && !path; i++) path = existing_file(name, files[i]);
    return path;
}

/* Reads a tokenizer_file and what stands beside it. Dies on files that do not fit. */
static struct Tokenizer *tokenizer_load(const char *name)
{
    struct Tokenizer *t;
    const char *path = tokenizer_file(name);
    if (!path)
        die("%s: no such file, or no tokenizer.json or merges.txt in it. Train a tokenizer, or "
            "name a merges.txt.", name);
    const char *config = existing_file(name, "tokenizer_config.json");
    if (!fnmatch("*.json", path, 0)) t = read_tokenizer_json(path);
    else {
        t = read_merges(read_file(path, MAX_TOKENIZER, false), path);
        path = existing_file(name, "vocab.json");
        if (path) read_file_ids(t, read_json_file(path, MAX_TOKENIZER), NULL, path);
    }
    if (config) read_usage(t, config);
    return t;
}

/* --- The tokenizer of a model --- */

/* Moves the rows of wte (V, C) to where our ids expect them. Rows of tokens that we do not know,
 * special ones and padding, come last, in their order. */
static void renumber_tokens(struct Model *model, const struct Tokenizer *t)
{
    const int V = model->config.vocabulary, C = model->config.channels;
    const size_t bytes = (size_t)V * C * sizeof(real), row = C * sizeof(real);
    real *old = resize(NULL, bytes), *to = model->w.wte;
    bool *taken = allocate_zeroed(V * sizeof *taken);
    memcpy(old, to, bytes);
    for (int i = 0; i < t->vocabulary; i++, to += C) {
        memcpy(to, old + (size_t)t->file_ids[i] * C, row);
        taken[t->file_ids[i]] = true;
    }
    for (int i = 0; i < V; i++)
        if (!taken[i]) { memcpy(to, old + (size_t)i * C, row); to += C; }
    release(taken, V * sizeof *taken);
    free(old);
}

/* The usage, as a model's metadata keep it. The caller frees it. */
static char *usage_text(const struct Usage *u)
{
    struct Buffer b = {0};
    append(&b, "begin %d, keep tail %d, at most %d tokens", u->begins, u->keeps_tail,
           u->max_length);
    if (u->suffix_count) append(&b, ", the last of them");
    for (int i = 0; i < u->suffix_count; i++) append(&b, " %d", u->suffix[i]);
    return b.data;
}

/* Notes in a model's metadata which tokenizer its directory must hold. */
static void tokenizer_describe(struct Json *meta, const struct Tokenizer *t)
{
    metadata_set(meta, "tokenizer_hash", "%s", hash_text(t->hash));
    metadata_put(meta, "tokenizer_usage", usage_text(&t->usage));
}

/* Reads the tokenizer in a model's directory. Dies if it is not that of the metadata, or has more
 * tokens than the model. A model whose directory numbers them in another order is renumbered. */
static struct Tokenizer *tokenizer_of_model(const char *dir, struct Model *model,
                                            const struct Json *meta)
{
    struct Tokenizer *t = tokenizer_load(dir);
    const char *hash = json_text(meta, "tokenizer_hash", NULL),
               *usage = json_text(meta, "tokenizer_usage", NULL);
    char *is = usage_text(&t->usage);
    int last = t->eot;
    if (hash && strcmp(hash, hash_text(t->hash)))
        die("%s: its tokenizer (hash %s) is not the tokenizer that the model was trained with "
            "(%s). Put that one there.", dir, hash_text(t->hash), hash);
    if (usage && strcmp(usage, is))
        die("%s: tokenizer.json, tokenizer_config.json: do not belong to model.safetensors beside "
            "them: \"%s\" instead of \"%s\". Put the right ones there, or train again.", dir, is,
            usage);
    free(is);
    for (int i = 0; t->file_ids && i < t->vocabulary; i++) last = max_int(last, t->file_ids[i]);
    if (last >= model->config.vocabulary)
        die("%s: the tokenizer has %d tokens, the model only %d. Put the tokenizer there that the "
            "model was trained with.", dir, last + 1, model->config.vocabulary);
    if (t->file_ids) renumber_tokens(model, t);
    return t;
}

/* How a command with a model begins: the threads, the precision, the model and its tokenizer. */
static struct Tokenizer *open_model(struct Model *model, struct Json *meta, const char *dir,
                                    int threads, const char *precision)
{
    set_threads(threads);
    set_precision(precision);
    load_model(model, dir, meta);
    return tokenizer_of_model(dir, model, meta);
}

/* --- Texts --- */

static void refuse_kind(const char *path, const char *what, const char *remedy)
{
    die("%s: is %s, not plain text in UTF-8. Give text instead; `%s` may help.", path, what,
        remedy);
}

/* Dies if the first of n bytes of a file show that it is no plain text in UTF-8. */
static void refuse_other_kinds(const char *path, const void *bytes, size_t n)
{
    static const struct { int at; const char *bytes; size_t n; const char *what, *remedy; }
    kinds[] = {
        {0, "\xFF\xFE\0\0", 4, "UTF-32", "iconv -f UTF-32 -t UTF-8"},
        {0, "\0\0\xFE\xFF", 4, "UTF-32", "iconv -f UTF-32 -t UTF-8"},
        {0, "\xFF\xFE", 2, "UTF-16", "iconv -f UTF-16 -t UTF-8"},
        {0, "\xFE\xFF", 2, "UTF-16", "iconv -f UTF-16 -t UTF-8"},
        {0, "\x1F\x8B", 2, "compressed", "gzip -d"},
        {0, "\x28\xB5\x2F\xFD", 4, "compressed", "zstd -d"},
        {4, "1AY&SY", 6, "compressed", "bzip2 -d"},
        {0, "\xFD" "7zXZ", 5, "compressed", "xz -d"},
        {0, "PK\3\4", 4, "a zip file, as .docx and .xlsx are", "unzip"},
        {257, "ustar", 5, "a tar archive", "tar -xf"},
        {0, "\xD0\xCF\x11\xE0", 4, "an old Excel or Word file", "soffice --convert-to csv"},
        {0, "%PDF-", 5, "a PDF document", "pdftotext"},
        {0, "PAR1", 4, "a parquet file", "pandas.read_parquet(FILE).to_csv(NEW)"},
        {0, "ARROW1", 6, "an Arrow file", "pandas.read_feather(FILE).to_csv(NEW)"},
        {0, "\x80\4", 2, "a pickle", "pandas.read_pickle(FILE).to_csv(NEW)"},
        {0, "\x80\5", 2, "a pickle", "pandas.read_pickle(FILE).to_csv(NEW)"},
        {0, "version https://git-lfs", 23, "a Git LFS pointer", "git lfs pull"},
        {5, "\0\0\0{", 4, "a safetensors file, as models are", "train_gpt info"},
        {0, "\x88\xD8\x34\x01\1\0\0\0", 8, "a token shard", "tokenizer decode"}};
    const uint8_t *p = bytes;
    for (int i = 0; i < COUNT(kinds); i++)
        if (n >= kinds[i].at + kinds[i].n && !memcmp(p + kinds[i].at, kinds[i].bytes, kinds[i].n))
            refuse_kind(path, kinds[i].what, kinds[i].remedy);
    /* UTF-16 of Latin letters without a mark: zeros and other bytes take turns. */
    const size_t pairs = n < 64 ? n / 2 : 32;
    size_t same = 0;
    while (same < pairs && !p[2 * same] == !p[0] && !p[2 * same + 1] == !p[1]) same++;
    if (pairs > 1 && same == pairs && !p[0] != !p[1])
        refuse_kind(path, "UTF-16", brief("iconv -f UTF-16%s -t UTF-8", p[0] ? "LE" : "BE"));
}

/* How many of n bytes are no UTF-8. */
static int64_t count_invalid(const void *bytes, size_t n)
{
    const uint8_t *p = bytes, *end = p + n;
    int64_t invalid = 0;
    uint32_t c;
    for (int length; p < end; p += length > 0 ? length : 1) {
        length = *p < 0x80 ? 1 : utf8_decode(p, end - p, &c);
        invalid += length <= 0;
    }
    return invalid;
}

/* --- Writing tokens --- */

/* Appends the bytes of a token. */
static void append_decoded(struct Buffer *b, const struct Tokenizer *t, int id)
{
    append_bytes(b, t->bytes.data + t->offset[id], token_length(t, id));
}

/* Appends a text in which control characters and bytes that are not UTF-8 become \n, \t, \xE4. */
static void append_readable(struct Buffer *b, struct Bytes text)
{
    const uint8_t *p = (const uint8_t *)text.data, *end = p + text.size;
    for (int n; p < end; p += n) {
        uint32_t c = 0;
        n = utf8_decode(p, end - p, &c);
        const bool readable = n > 0 && c >= ' ' && (c < 0x7F || c >= 0xA0);
        if (!readable) n = 1;
        if (readable) append_bytes(b, p, n);
        else if (*p == '\n' || *p == '\t' || *p == '\r')
            append(b, "\\%c", *p == '\n' ? 'n' : *p == '\t' ? 't' : 'r');
        else append(b, "\\x%02X", *p);
    }
}

/* Appends a token's symbols; with `json` as a string's inside, all in ASCII: \u0120the */
static void append_token(struct Buffer *b, const struct Tokenizer *t, int id, bool json)
{
    const struct Bytes bytes = bytes_of_token(t, id);
    for (size_t i = 0; i < bytes.size; i++) {
        const uint32_t c = symbol_of_byte((uint8_t)bytes.data[i]);
        if (json && (c == '"' || c == '\\')) append(b, "\\");
        if (json && c >= 128) append(b, "\\u%04x", c);
        else append_utf8(b, c);
    }
}

/* The merges as lines, "Ġ lo", or as the members of a JSON list, "\u0120 lo". */
static void append_merges(struct Buffer *b, const struct Tokenizer *t, bool json)
{
    for (int r = 0; r < t->merges; r++) {
        append(b, "%s", !json ? "" : r ? ",\n\"" : "\n\"");
        append_token(b, t, t->parts[r][0], json);
        append(b, " ");
        append_token(b, t, t->parts[r][1], json);
        append(b, json ? "\"" : "\n");
    }
}

/* {"!": 0, ..., "\u0120the": 262, ...}, as in GPT-2's own file. */
static void append_vocabulary(struct Buffer *b, const struct Tokenizer *t)
{
    for (int id = 0; id < t->vocabulary; id++) {
        append(b, "%s\"", id ? ", " : "{");
        append_token(b, t, id, true);
        append(b, "\": %d", id);
    }
    append(b, "}");
}

/* The two special tokens, which loaders do not look for in pieces of a text. PAD is the symbol of
 * PAD_TOKEN. single_word: only where the token stands alone. */
#define PAD "\\u0114"
#define SPECIAL(content, single_word) "'content': '" content "', 'single_word': " single_word \
    ", 'lstrip': false, 'rstrip': false, 'normalized': false, 'special': true}"
#define PAD_SPECIAL SPECIAL(PAD, "true")
#define END_SPECIAL SPECIAL(END_OF_TEXT, "false")

/* Appends the suffix, as a special piece of a template: one name for several tokens. */
static void append_suffix(struct Buffer *b, const struct Tokenizer *t)
{
    const int *ids = t->usage.suffix, n = t->usage.suffix_count;
    append_json(b, "'suffix': {'id': 'suffix', 'ids': [");
    for (int i = 0; i < n; i++) append(b, i ? ", %d" : "%d", ids[i]);
    append_json(b, "], 'tokens': [");
    for (int i = 0; i < n; i++) {
        append(b, i ? ", \"" : "\"");
        append_token(b, t, ids[i], true);
        append(b, "\"");
    }
    append(b, "]}");
}

/* tokenizer.json: merges, vocabulary, GPT-2's cutting into pieces, and a template that puts
 * <|endoftext|> before each text of a pair, and the suffix at the end. */
static void append_tokenizer_json(struct Buffer *b, const struct Tokenizer *t)
{
    static const char begin[] = "{'SpecialToken': {'id': '" END_OF_TEXT "', 'type_id': 0}}, ",
                      end[] = ", {'SpecialToken': {'id': 'suffix', 'type_id': 0}}";
    const char *first = t->usage.begins ? begin : "", *last = t->usage.suffix_count ? end : "";
    append_json(b, "{'version': '1.0', 'truncation': null, 'padding': null,\n"
        "'added_tokens': [{'id': %d, " PAD_SPECIAL ", {'id': %d, " END_SPECIAL "],\n"
        "'normalizer': null,\n"
        "'pre_tokenizer': {'type': 'ByteLevel', 'add_prefix_space': false, "
        "'trim_offsets': true, 'use_regex': true},\n"
        "'post_processor': {'type': 'TemplateProcessing',\n"
        "'single': [%s{'Sequence': {'id': 'A', 'type_id': 0}}%s],\n"
        "'pair': [%s{'Sequence': {'id': 'A', 'type_id': 0}}, "
        "%s{'Sequence': {'id': 'B', 'type_id': 0}}%s],\n"
        "'special_tokens': {'" END_OF_TEXT "': {'id': '" END_OF_TEXT "', 'ids': [%d], "
        "'tokens': ['" END_OF_TEXT "']}%s",
        PAD_TOKEN, t->eot, first, last, first, begin, last, t->eot, *last ? ", " : "");
    if (*last) append_suffix(b, t);
    append_json(b, "}},\n"
        "'decoder': {'type': 'ByteLevel', 'add_prefix_space': true, "
        "'trim_offsets': true, 'use_regex': true},\n"
        "'model': {'type': 'BPE', 'dropout': null, 'unk_token': null, "
        "'continuing_subword_prefix': '', 'end_of_word_suffix': '', 'fuse_unk': false, "
        "'byte_fallback': false, 'ignore_merges': false,\n'vocab': ");
    append_vocabulary(b, t);
    append_json(b, ",\n'merges': [");
    append_merges(b, t, true);
    append_json(b, "]}}\n");
}

/* tokenizer_config.json: what our programs do to every text, so that nothing has to be added by
 * hand. split_special_tokens: "<|endoftext|>" inside a text is text. */
static void append_tokenizer_config(struct Buffer *b, const struct Tokenizer *t)
{
    const int longest = t->usage.max_length;
    append_json(b, "{\n  'tokenizer_class': 'GPT2Tokenizer',\n  'add_bos_token': %s,\n"
        "  'add_prefix_space': false,\n  'bos_token': '" END_OF_TEXT "',\n"
        "  'eos_token': '" END_OF_TEXT "',\n  'unk_token': '" END_OF_TEXT "',\n"
        "  'pad_token': '" PAD "',\n  'padding_side': 'right',\n  'truncation_side': '%s',\n%s"
        "  'clean_up_tokenization_spaces': false,\n  'split_special_tokens': true,\n"
        "  'added_tokens_decoder': {'%d': {" PAD_SPECIAL ", '%d': {" END_SPECIAL "}\n}\n",
        t->usage.begins ? "true" : "false", t->usage.keeps_tail ? "left" : "right",
        longest ? brief("  'model_max_length': %d,\n", longest) : "", PAD_TOKEN, t->eot);
}

/* The files of a tokenizer. tokenizer.json comes last: it is the one that is read. */
static const char *const tokenizer_files[] = {"vocab.json", "merges.txt", "tokenizer_config.json",
                                              "tokenizer.json", NULL};

/* Writes the files for commit_outputs. */
static void tokenizer_stage(const struct Tokenizer *t, const char *dir)
{
    struct Buffer texts[4] = {0};
    append_vocabulary(&texts[0], t);
    append(&texts[1], "#version: 0.2\n");
    append_merges(&texts[1], t, false);
    append_tokenizer_config(&texts[2], t);
    append_tokenizer_json(&texts[3], t);
    make_directory(dir);
    for (int i = 0; tokenizer_files[i]; i++) {
        stage_file(brief("%s/%s", dir, tokenizer_files[i]), texts[i].data, texts[i].size);
        free(texts[i].data);
    }
}

/* Dies if the --out of a model holds another tokenizer, which tokenizer_stage would replace. */
static void refuse_other_tokenizer(const char *out, const struct Tokenizer *t)
{
    if (tokenizer_file(out) && tokenizer_load(out)->hash != t->hash)
        die_usage("--out %s: holds another tokenizer. Give --overwrite or another --out.", out);
}

/* ============================================================================================= */
/* 9. Shards                                                                                     */
/* ============================================================================================= */

/* A shard is a file of tokens in llm.c's format: this header and then count ids of 16 bits.
 * <|endoftext|> precedes each document. A new shard begins when one is full, even inside a
 * document. The hash is the tokenizer's. All shards of one encode run are a set: they have its
 * hash, made of all their tokens, and their number. In shards from elsewhere these are 0. */
struct ShardHeader {
    int32_t magic, version, count, zero;
    uint64_t hash, set;
    int32_t shards, zeros[247];
};
enum { SHARD_HEADER = sizeof(struct ShardHeader), SHARD_MAGIC = 20240520, SHARD_VERSION = 1,
       MAX_SHARDS = 1000 };     /* of a set: they are all open until it is complete */

struct Shard {
    const char *path;           /* the caller's, not a copy */
    struct File file;
    int64_t count;
    uint64_t set, sum;          /* see ShardHeader; the checksum of these tokens */
    int shards;
    int vocabulary;             /* no id reaches it */
};

/* Reads up to `max` ids from number `at` on; returns how many. Dies if the vocabulary lacks one. */
static size_t read_block(uint16_t *out, size_t max, const struct Shard *s, int64_t at)
{
    const size_t left = (size_t)(s->count - at), n = left < max ? left : max;
    int largest = 0;
    read_at(&s->file, out, n * sizeof *out, SHARD_HEADER + (size_t)at * sizeof *out);
    #pragma omp simd reduction(max: largest)
    for (size_t i = 0; i < n; i++) largest = out[i] > largest ? out[i] : largest;
    if (largest >= s->vocabulary)
        die("%s: holds token %d, but the tokenizer has only %d. Use the tokenizer that it was "
            "encoded with, or encode the text again.", s->path, largest, s->vocabulary);
    return n;
}

/* The header of a file; all 0 if it is shorter. */
static struct ShardHeader read_shard_header(const struct File *f)
{
    struct ShardHeader header = {0};
    if (f->size >= sizeof header) read_at(f, &header, sizeof header, 0);
    return header;
}

/* The checksum of all tokens of a shard. */
static uint64_t sum_tokens(const struct Shard *s)
{
    static uint16_t ids[4 * MEGABYTE];
    uint64_t sum = (uint64_t)s->count * sizeof *ids;
    for (int64_t at = 0, n; (n = read_block(ids, COUNT(ids), s, at)); at += n)
        sum = checksum_add(sum, ids, n * sizeof *ids);
    return sum;
}

/* Opens a shard, and reads it once for its checksum. Dies if something is wrong with the header,
 * the size or an id, or if another tokenizer than t made it; if t is NULL, any may have. */
static struct Shard open_shard(const char *path, const struct Tokenizer *t)
{
    const struct File file = open_file(path, false);
    const struct ShardHeader header = read_shard_header(&file);
    if (header.magic != SHARD_MAGIC || header.version != SHARD_VERSION || header.shards < 0
        || header.shards > MAX_SHARDS)
        die("%s: not a token shard of version %d. Make one with `tokenizer encode`.", path,
            SHARD_VERSION);
    const int64_t surplus = (int64_t)file.size - SHARD_HEADER - 2 * (int64_t)header.count;
    if (surplus)
        die("%s: %s %s than the %d tokens that its header says. Encode it again.", path,
            counted(llabs(surplus), "byte"), surplus < 0 ? "fewer" : "more", header.count);
    if (t && header.hash && header.hash != t->hash)
        die("%s: made by another tokenizer (hash %s) than the one in use (%s). Use that one, or "
            "encode the text again.", path, hash_text(header.hash), hash_text(t->hash));
    struct Shard s = {path, file, header.count, header.set, 0, header.shards,
                      t ? t->vocabulary : INT_MAX};
    s.sum = sum_tokens(&s);
    return s;
}

/* The path of a shard of a set, as `brief` keeps it. */
static const char *shard_path(const char *prefix, int number)
{
    return brief("%s_%06d.bin", prefix, number);
}

/* The length of what comes before _000000.bin in a shard's path; 0: it is called otherwise. */
static int prefix_length(const char *path)
{
    const bool numbered = !fnmatch("?*_[0-9][0-9][0-9][0-9][0-9][0-9].bin", path, 0);
    return numbered ? (int)strlen(path) - 11 : 0;
}

/* Dies if shards with one prefix, which stand side by side, are not of one set, not all those that
 * the pattern names (NULL: one missing is worth a warning), or, in order, not as once encoded. */
static void check_sets(const struct Shard *s, int count, const char *pattern)
{
    for (const struct Shard *first = s, *end = s + count; first < end; first = s) {
        const int n = prefix_length(first->path);
        uint64_t hash = 0;
        bool ordered = true;
        do {
            if (s->set != first->set)
                die("%s: is not of the same run of `tokenizer encode` as %s. Encode both again, or "
                    "remove the older one.", s->path, first->path);
            hash = mix64(hash ^ s->sum);
            ordered &= !n || atoi(s->path + n + 1) == s - first;
        } while (++s < end && n && prefix_length(s->path) == n
                 && !strncmp(s->path, first->path, n));
        for (int k = 0; n && k < first->shards; k++) {
            const char *path = brief("%.*s_%06d.bin", n, first->path, k),
                       *together = counted(first->shards, "shard");
            if (file_exists(path)) continue;
            if (!pattern) {
                warn("%s: is missing; %s were encoded together, so this is not the whole text.",
                     path, together);
                break;                                      /* one is named */
            }
            if (!fnmatch(pattern, path, FNM_PATHNAME | FNM_PERIOD))
                die("%s: is missing; %s were encoded together. Encode again, or name only "
                    "those that are there.", path, together);
        }
        if (ordered && s - first == first->shards && hash != first->set)
            die("%s: the tokens are not those that were encoded: the file, or another of its set, "
                "is damaged. Encode again.", first->path);
    }
}

/* --- Writing --- */

/* Writes tokens to PREFIX_000000.bin, PREFIX_000001.bin, ..., of `limit` tokens each. They get
 * their names together, when all are complete. */
struct ShardWriter {
    const char *prefix;
    uint64_t hash;                      /* of the tokenizer */
    int64_t limit, total;               /* tokens: in a full shard, and in all so far */
    struct Output *shards[MAX_SHARDS];
    int number;                         /* of shards so far */
};

/* Begins a shard. Its header is written last, when its number of tokens is known. */
static void start_shard(struct ShardWriter *w)
{
    static const struct ShardHeader header;
    const char *path = shard_path(w->prefix, w->number);
    if (w->number == MAX_SHARDS) die("%s: too many shards. Give a larger --shard-tokens.", path);
    w->shards[w->number] = output_open(path);
    output_write(w->shards[w->number++], &header, sizeof header);
}

/* Appends n ids, and begins a new shard whenever one is full. */
static void write_tokens(struct ShardWriter *w, const uint16_t *ids, size_t n)
{
    for (size_t now; n; ids += now, n -= now, w->total += now) {
        if (w->total == w->number * w->limit) start_shard(w);
        const size_t room = (size_t)(w->number * w->limit - w->total);
        now = n < room ? n : room;
        output_write(w->shards[w->number - 1], ids, now * sizeof *ids);
    }
}

/* Completes all shards for commit_outputs. Their tokens are read again for the hash of the set. */
static void complete_set(struct ShardWriter *w)
{
    struct ShardHeader header = {SHARD_MAGIC, SHARD_VERSION, .hash = w->hash, .shards = w->number};
    int64_t counts[MAX_SHARDS];
    for (int i = 0; i < w->number; i++) {
        const struct Output *o = w->shards[i];
        counts[i] = i < w->number - 1 ? w->limit : w->total - i * w->limit;
        const struct Shard s = {o->path, {o->path, o->fd}, counts[i], .vocabulary = INT_MAX};
        header.set = mix64(header.set ^ sum_tokens(&s));
    }
    for (int i = 0; i < w->number; i++) {
        header.count = (int32_t)counts[i];
        if (lseek(w->shards[i]->fd, 0, SEEK_SET)) die_unwritten(w->shards[i]->path);
        output_write(w->shards[i], &header, sizeof header);
    }
}

/* Begins the first shard, which only one process can have open. Then removes what a killed process
 * left of others with this prefix, and dies if one of them may not be replaced. */
static void start_set(struct ShardWriter *w, bool overwrite)
{
    make_parents(w->prefix);
    start_shard(w);
    for (int i = 0; i < MAX_SHARDS; i++) {
        const char *path = shard_path(w->prefix, i);
        if (i > 0) remove_file(brief("%s" UNFINISHED, path));
        if (!file_exists(path)) continue;
        struct File file = open_file(path, false);
        if (!overwrite) die("%s: exists. Choose another --out, or add --overwrite.", path);
        if (read_shard_header(&file).magic != SHARD_MAGIC)
            die("%s: is not a token shard, so it is not replaced. Choose another --out.", path);
        close(file.fd);
    }
}

#ifndef TOKENIZER_NO_MAIN

/* ============================================================================================= */
/* 10. Documents                                                                                 */
/* ============================================================================================= */

/* A document is a file; or a line, without its \n or \r\n; or the text between two <|endoftext|>,
 * without a line end right after the first; or a string in a line's JSON object. An empty one is no
 * document. The number of a --split is its first letter. */
enum Split { SPLIT_FILE = 'f', SPLIT_LINES = 'l', SPLIT_EOT = 'e', SPLIT_JSONL = 'j' };

/* The text that a thread takes at a time. The results do not depend on it; tests change it. */
static int64_t chunk_bytes = 1 << 19;

/* The input files. They are read one after the other into a window of memory and cut into chunks
 * there. Files and pipes of any size pass through it; it grows only if it holds no place to cut. */
struct Source {
    char **paths;
    int count, number;          /* files: all, and those that were opened */
    enum Split split;
    const char *field;          /* with SPLIT_JSONL: the name of the string that is the text */
    int64_t cut;                /* another document begins at this position of the file; 0: none */
    int64_t done, total;        /* bytes: cut into chunks, and in all files, but a pipe has 0 */
    int64_t encoded;            /* bytes of documents */
    int64_t *invalid;           /* (count): bytes of each file that are no UTF-8 */
    const char *marked;         /* a file that holds the mark as ordinary text, or NULL */
    struct File file;           /* the open file, or the descriptor -1 */
    bool ended;                 /* the open file has been read to its end */
    struct Buffer window;
    size_t at;                  /* chunks have been cut up to this byte of the window */
    int64_t position, line;     /* of that byte in the open file; line: with SPLIT_JSONL */
    struct Timer timer;
};

/* A part of a file, for one thread. No piece crosses its end, and no document but of SPLIT_FILE. */
struct Chunk {
    struct Source *source;
    int number;                 /* of the file, from 0 */
    const uint8_t *at, *end;    /* at: where the next part begins; NULL: none is left */
    const uint8_t *readable;    /* the end of what is in memory, see piece_end */
    int64_t position, line;     /* of `at` in the file; line: with SPLIT_JSONL */
    struct Json *json;          /* the line of the last part, or NULL */
};

/* A document, or with SPLIT_FILE what a chunk holds of it. */
struct Part {
    const uint8_t *begin, *end, *readable;
    int64_t position;           /* where it begins in the file */
    bool starts;                /* the document begins here, not in an earlier chunk */
};

/* --- From chunks to documents --- */

static const uint8_t *skip_line_end(const uint8_t *p, const uint8_t *end)
{
    if (p < end && *p == '\n') return p + 1;
    return end - p >= 2 && p[0] == '\r' && p[1] == '\n' ? p + 2 : p;
}

/* Says if a text that begins here is probably meant to be read by columns. */
static void hint_at_format(const char *path, const uint8_t *p, size_t n)
{
    const bool json = n > 2 && p[0] == '{' && strchr("\" \r\n", p[1]);
    if (json || !fnmatch("*.[ct]sv", path, 0))
        warn("%s: looks like %s are text here. Give texts alone, or JSON with --split jsonl.", path,
             json ? "JSON, whose names and braces" : "a table, whose labels and quotes");
}

/* Replaces a line of JSON by its string, and a blank line by an empty one. Dies if it has none. */
static void read_json_line(struct Chunk *c, struct Part *p)
{
    const char *field = c->source->field;
    const char *where = brief("%s:%lld", c->source->paths[c->number], (long long)c->line++);
    while (p->begin < p->end && isspace(*p->begin)) p->begin++;
    if (p->begin < p->end) {
        c->json = json_parse((const char *)p->begin, p->end - p->begin, where);
        const struct Json *text = json_get(c->json, field);
        if (!text || text->kind != JSON_STRING)
            die("%s: not a JSON object with a string \"%s\". Name the member that holds the text "
                "with --text-field.", where, field);
        p->begin = (const uint8_t *)text->string;
        p->end = p->readable = p->begin + text->length;
    }
}

/* What ends the document at p: the place of \n or <|endoftext|>, or NULL. */
static const uint8_t *find_mark(enum Split split, const uint8_t *p, const uint8_t *end)
{
    return split == SPLIT_FILE ? NULL
         : split == SPLIT_EOT ? find_text(p, end, END_OF_TEXT) : memchr(p, '\n', end - p);
}

/* Takes the next document, or its part in this chunk, off the chunk, and notes what source_close
 * says of it. Returns false if nothing is left. The part of JSON is valid until the next call. */
static bool next_part(struct Chunk *c, struct Part *p)
{
    struct Source *s = c->source;
    const enum Split split = s->split;
    json_free(c->json);
    c->json = NULL;
    while (c->at) {
        const uint8_t *mark = find_mark(split, c->at, c->end), *stop = mark ? mark : c->end;
        const uint8_t *next = !mark ? c->end : split != SPLIT_EOT ? mark + 1
                            : skip_line_end(mark + END_OF_TEXT_BYTES, c->end);
        const bool starts = split != SPLIT_FILE || !c->position || c->position == s->cut;
        if (mark && split != SPLIT_EOT && mark > c->at && mark[-1] == '\r') stop--;
        *p = (struct Part){c->at, stop, c->readable, c->position, starts};
        c->position += next - c->at;
        c->at = mark ? next : NULL;
        if (!p->position && p->end - p->begin >= 3 && !memcmp(p->begin, "\xEF\xBB\xBF", 3))
            p->begin += 3;                          /* a byte order mark is not text */
        const int64_t invalid = count_invalid(p->begin, p->end - p->begin);
        if (invalid) {
            #pragma omp atomic
            s->invalid[c->number] += invalid;
        }
        if (split == SPLIT_JSONL) read_json_line(c, p);
        if (split != SPLIT_EOT && find_text(p->begin, p->end, END_OF_TEXT)) {
            #pragma omp atomic write
            s->marked = s->paths[c->number];
        }
        if (p->end > p->begin) return true;
    }
    return false;
}

/* --- From files to chunks --- */

enum { BATCH = 64 };            /* the maximum number of chunks in one call of next_chunks */

/* Checks that all files can be read; "-" is standard input. Dies if one cannot. */
static struct Source source_open(char **paths, int count, const char *split, const char *field)
{
    struct Source s = {paths, count, .split = *split, .field = field, .file.fd = -1,
                       .timer = start_timer()};
    if (!count) die_usage("no FILE is named. Name the texts to read, or - for standard input.");
    for (int i = 0; i < count; i++) {
        struct stat status = {0};
        if (!strcmp(paths[i], "-")) fstat(0, &status);
        else if (stat(paths[i], &status) || !S_ISFIFO(status.st_mode)) {
            struct File file = open_file(paths[i], true);
            close(file.fd);
        }
        s.total += status.st_size;
    }
    reserve(&s.window, (size_t)(BATCH * chunk_bytes));
    s.invalid = allocate_zeroed(count * sizeof *s.invalid);
    return s;
}

/* Frees the window, and names the files with bytes that are no UTF-8 and one with marks in it. */
static void source_close(struct Source *s)
{
    if (s->marked)
        warn("%s: holds " END_OF_TEXT " as ordinary text. Only --split eot cuts there.", s->marked);
    for (int i = 0; i < s->count; i++)
        if (s->invalid[i])
            warn("%s: not UTF-8: %s, read as they are. If the text has another encoding, as "
                 "CP1252, convert it: iconv -f CP1252 -t UTF-8", s->paths[i],
                 counted(s->invalid[i], "byte"));
    release(s->invalid, s->count * sizeof *s->invalid);
    free(s->window.data);
}

/* Opens the next file if none is open, and reads until the window is full or the file ends. */
static void fill_window(struct Source *s)
{
    struct Buffer *w = &s->window;
    if (s->file.fd < 0) {
        const char *path = s->paths[s->number++];
        s->file = strcmp(path, "-") ? open_file(path, true) : (struct File){path, dup(0)};
        s->position = 0;
        s->line = 1;
        s->ended = false;
    }
    while (!s->ended && w->size < w->capacity) {
        const size_t n = bytes_read(
            &s->file, read(s->file.fd, w->data + w->size, w->capacity - w->size));
        s->ended = n == 0;
        w->size += n;
    }
}

/* The end of a chunk that begins at `at`: the first place after chunk_bytes where the text can be
 * cut, or `limit`. That is after a line, or before <|endoftext|>. A document that is a file is cut
 * before white space that follows another character: no piece has such a place inside, and the
 * pieces on the left do not depend on what follows. */
static const uint8_t *chunk_end(const struct Source *s, const uint8_t *at, const uint8_t *limit)
{
    int before = SPACE, class, length;              /* before: on the left; SPACE: not known */
    if (limit - at <= chunk_bytes) return limit;
    const uint8_t *p = at + chunk_bytes, *mark = find_mark(s->split, p, limit);
    if (mark) return s->split == SPLIT_EOT ? mark : mark + 1;
    for (; s->split == SPLIT_FILE && p < limit; p += length) {
        class = class_at(p, limit, &length);
        if (class == SPACE && before != SPACE) return p;
        before = length > 1 || *p < 128 ? class : SPACE;    /* p may be inside a character */
    }
    return limit;
}

/* Cuts the next chunk off the window. Returns false if it has no place to cut: read more first.
 * Dies if the file was cut or rewritten while it was read. */
static bool take_chunk(struct Source *s, struct Chunk *c)
{
    const uint8_t *at = (uint8_t *)s->window.data + s->at, *end = at + s->window.size - s->at;
    const int64_t before_cut = s->cut - s->position;
    const bool meets_cut = before_cut > 0 && before_cut < end - at;
    const uint8_t *stop = chunk_end(s, at, meets_cut ? at + before_cut : end);
    if (stop == end && !s->ended) return false;
    *c = (struct Chunk){s, s->number - 1, at, stop, end, s->position, s->line, NULL};
    if (!s->position) refuse_other_kinds(s->file.path, at, end - at);
    if (!s->position && s->split != SPLIT_JSONL) hint_at_format(s->file.path, at, end - at);
    for (const uint8_t *p = at; s->split == SPLIT_JSONL && (p = memchr(p, '\n', stop - p)); p++)
        s->line++;
    s->at += (size_t)(stop - at);
    s->position += stop - at;
    s->done += stop - at;
    if (stop == end) {                              /* all of the file is cut */
        refuse_changed(&s->file);
        close(s->file.fd);
        s->file.fd = -1;
    }
    return true;
}

/* Cuts up to BATCH chunks and returns their number, 0 at the end. They point into the window, so
 * the chunks of the call before are no longer valid. Shows how much has been done, and what. */
static int next_chunks(struct Source *s, struct Chunk *chunks, const char *doing)
{
    struct Buffer *w = &s->window;
    int n = 0;
    show_work(&s->timer, doing, s->done / 1e6, s->total / 1e6, "MB");
    w->size -= s->at;
    memmove(w->data, w->data + s->at, w->size);
    s->at = 0;
    while (n < BATCH && (s->file.fd >= 0 || s->number < s->count)) {
        fill_window(s);
        if (take_chunk(s, &chunks[n])) n++;
        else if (n) break;                          /* the window must not move under the chunks */
        else reserve(w, w->size);                   /* it was full */
    }
    return n;
}

/* ============================================================================================= */
/* 11. Commands                                                                                  */
/* ============================================================================================= */

/* What the command line says. Each command has a table of the options that it knows. */
static struct {
    const char *tokenizer, *out, *split, *text_field, *vocabulary;
    int max_bytes, threads;
    int64_t min_frequency, shard_tokens, seed;
    double val_fraction;
    bool special, overwrite;
} set = {.split = "file", .text_field = "text", .vocabulary = "auto", .max_bytes = MAX_TOKEN_BYTES,
         .min_frequency = 2, .shard_tokens = 100000000, .seed = 1};

#define SPLIT_OPTIONS {"split", "where documents end", CHOICE, &set.split, \
                       .choices = "file|lines|eot|jsonl"}, \
    {"text-field", "with jsonl: the string in each line's JSON object", TEXT, &set.text_field, \
     .idle = "with split file|with split lines|with split eot"}
#define TOKENIZER_OPTION {"tokenizer", "directory with merges.txt, or such a file", TEXT, \
                          &set.tokenizer, .required = true}

/* --- train --- */

/* The different words of the texts, and how often each occurs. */
struct WordCounts {
    struct HashTable index;     /* the hash of a word -> its number */
    struct Word *words;         /* word i: text.data[words[i].at ..] */
    int count, room;
    struct Buffer text;
};

/* Adds `count` to the count of the word of n bytes at p. A hash of 64 bits stands for the word:
 * that two of a million have the same has a chance of 3e-8. */
static inline void count_word(struct WordCounts *w, const uint8_t *p, size_t n,
                              const uint8_t *readable, int64_t count)
{
    const uint64_t hash = n <= WORD_BYTES ? key_hash(word_key(p, n, readable)) : checksum(p, n);
    const int word = hash_add(&w->index, hash, w->count);
    if (word < w->count) { w->words[word].count += count; return; }
    if (w->count == INT_MAX) die("more than 2 billion different words. Train on less text.");
    if (w->count == w->room)
        w->words = resize(w->words, (w->room += w->room / 2 + 1024) * sizeof *w->words);
    w->words[w->count++] = (struct Word){w->text.size, n, count};
    append_bytes(&w->text, p, n);
}

static void count_part(struct WordCounts *w, const struct Part *part)
{
    for (const uint8_t *p = part->begin, *next; p < part->end; p = next) {
        next = piece_end(p, part->end, part->readable);
        count_word(w, p, next - p, part->readable, 1);
    }
}

/* The words of all documents. Each thread has its own counts; at the end they are added. The memory
 * does not depend on the length of the texts. */
static struct WordCounts count_words(struct Source *source)
{
    const int threads = thread_count();
    struct WordCounts *counts = resize(NULL, threads * sizeof *counts);
    struct Chunk chunks[BATCH];
    for (int i = 0; i < threads; i++) counts[i] = (struct WordCounts){.index = hash_table(1 << 15)};
    for (int n; (n = next_chunks(source, chunks, "counting words")); ) {
        #pragma omp parallel for schedule(dynamic, 1)
        for (int i = 0; i < n; i++) {
            struct Part p;
            while (next_part(&chunks[i], &p)) count_part(&counts[thread_index()], &p);
        }
    }
    for (int i = 1; i < threads; i++)
        for (int k = 0; k < counts[i].count; k++) {
            const struct Word *w = &counts[i].words[k];
            const uint8_t *p = (const uint8_t *)counts[i].text.data + w->at;
            count_word(counts, p, w->length, p + w->length, w->count);
        }
    return counts[0];
}

/* The tokens of --vocab. auto: a power of 2, one for some 2,000 bytes, so that nearly all recur. */
static int wanted_vocabulary(int64_t bytes)
{
    double tokens = 512;
    if (!strcmp(set.vocabulary, "auto"))
        while (tokens < 8192 && tokens * 3000 < bytes) tokens *= 2;
    else if (!parse_number(set.vocabulary, "k", (double[]){1e3}, &tokens)
             || tokens != floor(tokens) || tokens < BYTES + 1 || tokens > MAX_VOCABULARY)
        die_usage("--vocab %s: neither auto nor a number from %d to %d.", set.vocabulary,
                  BYTES + 1, MAX_VOCABULARY);
    return (int)tokens;
}

/* Texts -> the files of a tokenizer. */
static int command_train(int argc, char **argv)
{
    struct Option options[] = {
        {"vocab", "tokens in all, 257 to 65536: 256 bytes, merges, <|endoftext|>; auto: by the size"
         " of the text", TEXT, &set.vocabulary},
        {"out", "directory for merges.txt, vocab.json and tokenizer.json", TEXT, &set.out,
         .required = true},
        SPLIT_OPTIONS,
        {"min-frequency", "a pair that occurs less often is not merged", LONG, &set.min_frequency,
         .min = 1, .max = 1e15},
        {"max-token-bytes", "no token is longer", INTEGER, &set.max_bytes, .min = 1,
         .max = MAX_TOKEN_BYTES},
        {"overwrite", "replace the tokenizer that --out holds", FLAG, &set.overwrite},
        THREADS_OPTION(&set.threads), {0}};
    const int files = read_arguments(argc, argv, options,
        "tokenizer train --out DIR [OPTION...] FILE...\n"
        "Learns merges from texts (- is standard input).");
    wanted_vocabulary(0);           /* refuses a wrong --vocab before anything is read */
    warn_idle(options);
    set_threads(set.threads);
    struct Source source = source_open(argv, files, set.split, set.text_field);
    lock_directory(set.out);
    if (!set.overwrite)
        refuse_existing(set.out, tokenizer_files, "Choose another --out, or add --overwrite.");
    struct Tokenizer *t = tokenizer_new();
    struct WordCounts words = count_words(&source);
    source_close(&source);
    if (!words.count) die("%s: no text to learn from. Name files that hold some.", argv[0]);
    struct Trainer trainer = trainer_of_words(words.words, words.count, words.text);
    const int merges = wanted_vocabulary(source.done) - BYTES - 1;
    learn_merges(t, &trainer, merges, set.min_frequency, set.max_bytes);
    if (t->merges < merges && strcmp(set.vocabulary, "auto"))
        warn("the text gives only %s, so the vocabulary has %d tokens, not %s.",
             counted(t->merges, "merge"), t->merges + BYTES + 1, set.vocabulary);
    add_end_of_text(t);
    t->usage.begins = t->usage.keeps_tail = true;
    tokenizer_stage(t, set.out);
    commit_outputs();
    progress(true, "%s: %d tokens from %.1f MB, %s, in %.2f s", set.out, t->vocabulary,
             source.done / 1e6, counted(words.count, "different word"),
             seconds() - source.timer.start);
    return 0;
}

/* --- encode --- */

/* The side of a document: 0 for training, 1 set aside for validation. Without `cut` it is drawn by
 * the seed, the file's number and the place in the file, not by threads or chunks. */
static int side_of(const struct Chunk *c, const struct Part *p)
{
    const struct Source *s = c->source;
    struct Random r = random_stream((uint64_t)set.seed + ((uint64_t)c->number << 44),
                                    s->split == SPLIT_FILE ? 0 : (uint64_t)p->position);
    return s->cut ? p->position >= s->cut : random_uniform(&r) < set.val_fraction;
}

/* Encodes the documents of a chunk; returns how many begin there. ids: uint16_t, of each side. */
static int64_t encode_chunk(struct Buffer ids[2], const struct Tokenizer *t, struct Slot *cache,
                            struct Chunk c)
{
    struct Part p;
    int64_t documents = 0, bytes = 0;
    ids[0].size = ids[1].size = 0;
    while (next_part(&c, &p)) {
        struct Buffer *b = &ids[side_of(&c, &p)];
        reserve(b, (p.end - p.begin + 16) * sizeof(uint16_t));
        uint16_t *begin = (uint16_t *)(b->data + b->size), *at = begin;
        if (p.starts) *at++ = (uint16_t)t->eot;
        at += encode_text(t, cache, p.begin, p.end, p.readable, at);
        b->size += (at - begin) * sizeof *at;
        documents += p.starts;
        bytes += p.end - p.begin;
    }
    #pragma omp atomic
    c.source->encoded += bytes;
    return documents;
}

/* Encodes all files and returns the number of documents. The thread that completes the next chunk
 * in order writes its ids, and those behind it that are ready, so that no thread has to wait. */
static int64_t encode_files(struct ShardWriter writers[2], const struct Tokenizer *t,
                            struct Source *source)
{
    struct Slot *caches = allocate_zeroed(thread_count() * CACHE_BYTES);
    struct Buffer ids[BATCH][2] = {0};
    struct Chunk chunks[BATCH];
    int64_t documents = 0;
    for (int n; (n = next_chunks(source, chunks, "encoding")); ) {
        bool ready[BATCH] = {false};
        int next = 0;
        #pragma omp parallel for schedule(dynamic, 1) reduction(+: documents)
        for (int i = 0; i < n; i++) {
            struct Slot *cache = caches + ((size_t)thread_index() << CACHE_BITS);
            documents += encode_chunk(ids[i], t, cache, chunks[i]);
            #pragma omp critical
            for (ready[i] = true; next < n && ready[next]; next++)
                for (int side = 0; side < 2; side++)
                    write_tokens(&writers[side], (uint16_t *)ids[next][side].data,
                                 ids[next][side].size / sizeof(uint16_t));
        }
    }
    return documents;
}

/* Names the shards of the sets, removes those that older sets have behind them, and reports. */
static void finish_sets(struct ShardWriter *writers, int count)
{
    for (int i = 0; i < count; i++) complete_set(&writers[i]);
    commit_outputs();
    for (struct ShardWriter *w = writers; w < writers + count; w++) {
        for (int i = w->number; i < MAX_SHARDS; i++) remove_file(shard_path(w->prefix, i));
        progress(true, "%s%s: %s", shard_path(w->prefix, 0), w->number > 1 ? " ..." : "",
                 counted(w->total, "token"));
    }
}

/* Where the end of a document of one file is set aside, so that at least this part of it follows:
 * after the last line end of the eighth before, of 4 KB at most; without one before a blank there;
 * without both further on towards the beginning. 0 if there is neither. */
static int64_t find_cut(const char *path)
{
    char block[4096];
    struct File file = open_file(path, false);
    int64_t cut = (int64_t)(file.size * (1 - set.val_fraction));
    for (int n, k = 0; cut > 0 && !k; cut -= n - k) {
        k = n = (int)fmin(sizeof block, (cut + 7) / 8);
        read_at(&file, block, n, (size_t)(cut - n));
        while (k > 0 && block[k - 1] != '\n') k--;
        if (k == 0) for (k = n - 1; k > 0 && block[k] != ' '; ) k--;
    }
    close(file.fd);
    return cut;
}

/* The prefix of what is set aside, which no pattern for the other shards matches: DIR/val beside
 * DIR/train, DIR/val_NAME beside DIR/NAME. */
static char *val_prefix(const char *prefix)
{
    const char *slash = strrchr(prefix, '/'), *name = slash ? slash + 1 : prefix;
    return text_of("%.*sval%s%s", (int)(name - prefix), prefix, strcmp(name, "train") ? "_" : "",
                   strcmp(name, "train") ? name : "");
}

/* Texts -> shards. */
static int command_encode(int argc, char **argv)
{
    struct Option options[] = {
        TOKENIZER_OPTION,
        {"out", "shards are TEXT_000000.bin, TEXT_000001.bin, ...", TEXT, &set.out,
         .required = true},
        SPLIT_OPTIONS,
        {"shard-tokens", "tokens in a shard", LONG, &set.shard_tokens, .min = 1, .max = INT32_MAX},
        {"val-fraction", "of the documents (if there is but one: its end), to val_000000.bin, ...; "
         "with another TEXT than DIR/train: val_TEXT_000000.bin, ...",
         REAL_NUMBER, &set.val_fraction, .max = 1},
        {"seed", "which documents these are", LONG, &set.seed, .max = 1e15,
         .idle = "without val-fraction"},
        {"overwrite", "replace the shards of an earlier run", FLAG, &set.overwrite},
        THREADS_OPTION(&set.threads), {0}};
    const int files = read_arguments(argc, argv, options,
        "tokenizer encode --tokenizer DIR --out PREFIX [OPTION...] FILE...\n"
        "Writes the token ids of texts (- is standard input) to shards.");
    const int sets = set.val_fraction > 0 ? 2 : 1;
    warn_idle(options);
    set_threads(set.threads);
    struct Tokenizer *t = tokenizer_load(set.tokenizer);
    struct Source source = source_open(argv, files, set.split, set.text_field);
    static struct ShardWriter writers[2];
    for (int i = 0; i < sets; i++) {
        writers[i] = (struct ShardWriter){i ? val_prefix(set.out) : set.out, t->hash,
                                          set.shard_tokens};
        start_set(&writers[i], set.overwrite);
    }
    const char *val = shard_path(val_prefix(set.out), 0);
    if (sets == 1 && set.overwrite && file_exists(val))
        warn("%s: stays, and its texts may be in the new %s, too. Remove it, or give "
             "--val-fraction.", val, set.out);
    if (sets == 2 && files == 1 && source.split == SPLIT_FILE && source.total
        && strcmp(argv[0], "-")) source.cut = find_cut(argv[0]);
    if (source.cut && is_given(options, "seed"))
        warn("--seed: has no effect with one document.");
    const int64_t documents = encode_files(writers, t, &source);
    source_close(&source);
    const int64_t train = writers[0].total, aside = writers[1].total;
    if (!documents) die("%s: no document in the input. Name files that hold text.", argv[0]);
    if (!train || (sets == 2 && !aside))
        die("--val-fraction %g: of %s, %s. Change it, --seed or --split, or name one file of "
            "lines.", set.val_fraction, counted(documents, "document"),
            train ? "none is set aside" : "none is left to train on");
    finish_sets(writers, sets);
    const double elapsed = seconds() - source.timer.start;
    progress(true, "%s, %.1f MB, %.2f bytes per token, %.2f s, %.1f MB/s",
             counted(documents, "document"), source.done / 1e6,
             (double)source.encoded / (train + aside), elapsed, source.done / 1e6 / elapsed);
    return 0;
}

/* --- decode --- */

/* Shards -> the bytes of their tokens, on standard output, with a mark for <|endoftext|>, but not
 * where all begin. */
static int command_decode(int argc, char **argv)
{
    static uint16_t ids[1 << 16];
    struct Buffer out = {0};
    struct Option options[] = {
        TOKENIZER_OPTION,
        {"split", "what ends a document: nothing, a line end, <|endoftext|>", CHOICE, &set.split,
         .choices = "file|lines|eot"}, {0}};
    const int shards = read_arguments(argc, argv, options,
        "tokenizer decode --tokenizer DIR [OPTION...] SHARD...\n"
        "Writes the bytes that the shards' tokens stand for to standard output.");
    if (!shards) die_usage("no SHARD is named. Name the files that `tokenizer encode` wrote.");
    struct Tokenizer *t = tokenizer_load(set.tokenizer);
    const bool lines = *set.split == SPLIT_LINES;
    const char *mark = lines ? "\n" : *set.split == SPLIT_EOT ? END_OF_TEXT : "";
    struct Shard *s = resize(NULL, shards * sizeof *s);
    for (int i = 0; i < shards; i++) s[i] = open_shard(argv[i], t);
    check_sets(s, shards, NULL);
    for (const struct Shard *each = s; each < s + shards; each++)
        for (int64_t at = 0, n; (n = read_block(ids, COUNT(ids), each, at)); at += n) {
            for (int64_t i = 0; i < n; i++)
                if (ids[i] != t->eot) append_decoded(&out, t, ids[i]);
                else if (each > s || at + i) append_bytes(&out, mark, strlen(mark));
            show_result(&out);
        }
    if (lines) puts("");
    return 0;
}

/* --- ids, show --- */

/* The ids of a text, which the caller frees, and their number. With `special`, <|endoftext|> in
 * the text is the token, and the text on each side of it is encoded alone. */
static int *ids_of_text(struct Tokenizer *t, struct Buffer text, bool special, int *count)
{
    refuse_huge(text.size);
    int *ids = resize(NULL, (text.size + 1) * sizeof *ids);
    const uint8_t *p = (const uint8_t *)text.data, *end = p + text.size, *mark;
    *count = 0;
    for (; special && (mark = find_text(p, end, END_OF_TEXT)); p = mark + END_OF_TEXT_BYTES) {
        *count += tokenizer_encode(t, (const char *)p, mark - p, ids + *count);
        ids[(*count)++] = t->eot;
    }
    *count += tokenizer_encode(t, (const char *)p, end - p, ids + *count);
    return ids;
}

/* The text of a command, its argument or else the standard input, and its tokens. */
struct Tokens { struct Tokenizer *tokenizer; struct Buffer text; int *ids, count; };

static struct Tokens read_tokens_of_text(int argc, char **argv, const char *usage)
{
    struct Tokens r = {0};
    char block[65536];
    struct Option options[] = {
        TOKENIZER_OPTION,
        {"special", "<|endoftext|> in the text is the token", FLAG, &set.special}, {0}};
    const int texts = read_arguments(argc, argv, options, usage);
    if (texts > 1) die_usage("%s: one TEXT is expected. Put it in quotes.", argv[1]);
    r.tokenizer = tokenizer_load(set.tokenizer);
    append(&r.text, "%s", texts ? argv[0] : "");
    for (size_t n; !texts && (n = fread(block, 1, sizeof block, stdin)); )
        append_bytes(&r.text, block, n);
    if (ferror(stdin)) die("standard input: cannot be read (%s).", strerror(errno));
    if (!texts) refuse_other_kinds("standard input", r.text.data, r.text.size);
    r.ids = ids_of_text(r.tokenizer, r.text, set.special, &r.count);
    return r;
}

/* A text -> its ids, on one line. */
static int command_ids(int argc, char **argv)
{
    const struct Tokens r = read_tokens_of_text(
        argc, argv, "tokenizer ids --tokenizer DIR [--special] [TEXT]\n"
        "Prints the token ids of TEXT, or of standard input, on one line.");
    struct Buffer line = {0};
    for (int i = 0; i < r.count; i++) append(&line, i ? " %d" : "%d", r.ids[i]);
    append(&line, "\n");
    show_result(&line);
    return 0;
}

/* A text -> its tokens, coloured on a terminal, and a table of their ids. */
static int command_show(int argc, char **argv)
{
    const struct Tokens r = read_tokens_of_text(
        argc, argv, "tokenizer show --tokenizer DIR [--special] [TEXT]\n"
        "Shows the tokens of TEXT, or of standard input, and their ids.");
    const int n = r.count;
    struct Buffer line = {0}, table = {0};
    for (int i = 0; i < n; i++) {
        const struct Bytes bytes = bytes_of_token(r.tokenizer, r.ids[i]);
        if (isatty(1)) append(&line, "\033[%sm", i % 2 ? "30;46" : "30;43");
        append_readable(&line, bytes);
        append(&line, "%s", isatty(1) ? "\033[0m" : i + 1 < n ? "|" : "");
        append(&table, "%6d  ", r.ids[i]);
        append_readable(&table, bytes);
        append(&table, "\n");
    }
    printf("%s\n%s%s, %s, %.2f bytes per token\n", n ? line.data : "", n ? table.data : "",
           counted(n, "token"), counted(r.text.size, "byte"), n ? (double)r.text.size / n : 0);
    return 0;
}

int main(int argc, char **argv)
{
    static const struct Command commands[] = {
        {"train", command_train, "learn a vocabulary from texts"},
        {"encode", command_encode, "texts to shards of token ids"},
        {"decode", command_decode, "shards back to bytes"},
        {"ids", command_ids, "the token ids of a text"},
        {"show", command_show, "the tokens of a text, to look at"}};
    return run_command("tokenizer", argc, argv, commands, COUNT(commands));
}

#endif
