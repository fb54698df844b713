/* reviews.c: writes short film reviews from a probabilistic grammar, unlabelled ones in quantity
 * and labelled ones in few, and says how well any model can do on them.
 *
 *    1  Grammar      facets of a review, productions as data
 *    2  Compiling    the table becomes symbols, alternatives, items
 *    3  Writing      a review by chance
 *    4  Limits       expected bits and bytes, exactly, by a walk over the grammar
 *    5  Reading      the probability of a given text, exactly, by trying every derivation
 *    6  Program
 *
 * Counting words does not go far here: "not a dull moment" praises, "dull at first, but gripping
 * by the end" is decided by its end, and "fine, if you have nothing better to do" has no bad word.
 * What does help is that all sentences of a review take the same side, which a language model can
 * learn from unlabelled reviews alone.
 *
 * Because the grammar is known, so is the entropy H of a review, and no model's expected code
 * length is shorter: bits per byte >= H / E[bytes]. Bits count all that is predicted, the end of
 * the review too; bytes count its text without the newline. The best possible accuracy is
 * E[max_y P(y | text)]; it is below 1, since some reviews are of two minds. */

#include "../model.h"

#include <assert.h>

/* ============================================================================================= */
/* 1. Grammar                                                                                    */
/* ============================================================================================= */

/* Before its first word, a review has one value of each facet. Values have weights; productions may
 * ask for some of them. The sign is the side that a phrase takes: for, against, of two minds. A
 * plain review says what it means, a roundabout one mostly denies the contrary. */
enum { SIGN, STYLE, GENRE, TITLE, DIRECTOR, LEAD, FACETS, MAX_VALUES = 6 };
enum { FOR = 1, AGAINST = 2, MIXED = 4, SIGNS = 3 };     /* the sign's bits in a state */
typedef uint64_t State;

struct Value { const char *name; double weight; };

static const struct Value facets[FACETS][MAX_VALUES] = {
    [SIGN]     = {{"+", 47.5}, {"-", 47.5}, {"~", 5}},
    [STYLE]    = {{"plain", 8}, {"roundabout", 1}},
    [GENRE]    = {{"comedy", 2}, {"horror", 2}, {"thriller", 2},
                  {"romance", 2}, {"western", 1}, {"space", 1}},
    [TITLE]    = {{"untitled", 3}, {"titled", 1}},
    [DIRECTOR] = {{"unnamed", 6}, {"director-he", 1}, {"director-she", 1}},
    [LEAD]     = {{"no-lead", 6}, {"lead-he", 1}, {"lead-she", 1}},
};
static const double positive_given_sign[SIGNS] = {1, 0, 0.5};

/* A production: a symbol, the facet values for which it holds (none named: all), and alternatives.
 * An alternative may start with its weight (1) and a space, and must if it starts with a space.
 * <name> stands for a symbol on the same side, <name!> for one on the other side, <name+> and
 * <name-> for one on that side. A symbol with $ keeps its first choice for the whole review.
 *
 * Every derivation gives another text (test/test_reviews.c checks that), so the entropy of the text
 * is that of the derivation. Hence the first sentence, or the last one of a review of two minds, is
 * such as only one of the styles has. The words of both sides start with consonants, to go with
 * "a". */
struct Production { const char *symbol, *guard, *alternatives; };

static const struct Production productions[] = {

/* --- The review --- */
{"review", "+ -", "<opening><story><cast><points><end>"},
{"review", "~",   "<opening><story><cast> <doubts> <shrug>"},
{"story",  "",    "17 |3  <plot>"},
{"cast",   "no-lead", ""},
{"cast",   "lead-he lead-she", " <acting>"},
{"points", "",
    "1  <claim>|1  <contrast>|3  <claim> <reaction>|3  <reaction> <claim>|2  <claim> <contrast>|"
    "1  <contrast> <claim>|1  <contrast> <reaction>|1  <reaction> <contrast>|1  <claim> <wry>|"
    "1  <wry> <claim>|6  <claim> <reaction> <claim>|6  <claim> <claim> <reaction>|"
    "6  <reaction> <claim> <claim>|2  <claim> <claim> <contrast>|3  <claim> <contrast> <reaction>|"
    "1  <reaction> <claim> <wry>|12  <claim> <reaction> <claim> <claim>|"
    "3  <claim> <claim> <reaction> <contrast>|3  <contrast> <claim> <claim> <reaction>"},
{"end",    "", "2 |8  <verdict>"},

/* --- The first sentence names what there is to name --- */
{"opening", "untitled unnamed",
    "4 This is <what>.|2 I went to see this <film> <when>, and it is <first>.|"
    "2 A <film> again, and <what> at that.|2 The new <film> at our cinema is <first>.|"
    "Here comes <what>."},
{"opening", "titled unnamed",
    "4 <title> is <what>.|2 I saw <title> <when>: <what>.|"
    "2 <title> calls itself a <film>, and it is <first>.|The <film> <title> is <first>."},
{"opening", "untitled director-he director-she",
    "3 <director> has made <what>.|2 The new <film> by <director> is <first>.|"
    "2 <director> gives us <what>.|"
    "I saw the latest <film> by <director> <when>, and it is <first>."},
{"opening", "titled director-he director-she",
    "3 <title>, by <director>, is <what>.|2 With <title>, <director> has made <what>.|"
    "2 <director> is back with <title>, <what>.|In <title>, a <film>, <director> is <first>."},
{"what", "+ - plain",
    "20 a <adj> <film>|16 a <general> and <special> <film>|6 a <film> that is <first>"},
{"what", "+ - roundabout",
    "5 anything but a <adj!> <film>|4 nothing like a <adj!> <film>|6 a <film> that is <first>|"
    "3 a <film> without a <adj!> minute"},
{"what", "~",
    "3 a curious <film>|2 a <film> of two halves|2 a <film> that divides people|"
    "a strange kind of <film>"},
{"first", "+ - plain", "<plainly>"},
{"first", "+ - roundabout", "<denial>"},
{"first", "~", "hard to judge|2 neither one thing nor the other|a puzzle|a mixed bag"},
{"when", "",
    "last night|last week|on Friday|on Sunday|with my sister|with a friend|after work|"
    "on a rainy day|in a full house|at a festival"},

{"film", "comedy",   "3 comedy|2 farce|satire"},
{"film", "horror",   "3 horror film|2 ghost story|chiller|monster film"},
{"film", "thriller", "3 thriller|2 crime film|spy film|detective story"},
{"film", "romance",  "3 romance|2 love story|tale of young love"},
{"film", "western",  "4 western|cowboy film"},
{"film", "space",    "3 science fiction film|space film|2 space opera"},

{"title",  "", "The <$title.a> <$title.b>"},
{"$title.a", "",
    "Silent|Crooked|Painted|Second|Distant|Golden|Broken|Hidden|Burning|Frozen|Last|Long|"
    "Northern|Patient|Restless|Scarlet"},
{"$title.b", "",
    "Harbour|Garden|Mirror|Bridge|Letter|Orchard|Stranger|Passenger|Lighthouse|Island|Season|"
    "Promise|River|Window|Kingdom|Neighbour"},

{"director", "", "<$director.first> <$director.last>"},
{"$director.first", "director-he",
    "Alan|Bruno|Carlos|David|Erik|Felix|Gustav|Henry"},
{"$director.first", "director-she",
    "Agnes|Beatrice|Clara|Diana|Elena|Flora|Greta|Helen"},
{"$director.last", "",
    "Abbott|Bergstrom|Castellano|Duvall|Eriksen|Fontaine|Grimaldi|Hollander|Ishikawa|Jarvis|"
    "Kowalski|Lindqvist"},
{"director.he", "director-he", "he"}, {"director.he", "director-she", "she"},
{"director.his", "director-he", "his"}, {"director.his", "director-she", "her"},

{"lead", "", "<$lead.first> <$lead.last>"},
{"$lead.first", "lead-he",
    "Arthur|Ben|Colin|Daniel|Edgar|Frank|George|Hugo|Jack|Leo"},
{"$lead.first", "lead-she",
    "Alice|Barbara|Catherine|Dora|Emma|Frances|Grace|Hannah|Julia|Laura"},
{"$lead.last", "",
    "Archer|Bellamy|Carmichael|Delgado|Ellsworth|Farrell|Goodwin|Hartley|Kendrick|Lombard|"
    "Merriweather|Nightingale"},
{"lead.he",  "lead-he", "he"}, {"lead.he",  "lead-she", "she"},
{"lead.He",  "lead-he", "He"}, {"lead.He",  "lead-she", "She"},
{"lead.him", "lead-he", "him"}, {"lead.him", "lead-she", "her"},

/* --- What happens in it: genres have words of their own --- */
{"plot", "",
    "3 It follows a <role> who <deed> <place>.|2 The story: a <role> <deed> <place>.|"
    "2 A <role> <deed> <place>, and that is all you need to know.|"
    "We meet a <role> who <deed> <place>."},
{"role", "comedy",
    "landlord|best man|substitute teacher|nervous waiter|wedding planner|clumsy butler|"
    "retired clown|pastry cook"},
{"deed", "comedy",
    "marries the wrong twin|loses a bet|inherits a circus|mistakes a bishop for a burglar|"
    "wins the lottery twice|hides a goat"},
{"place","comedy",
    "in a seaside hotel|on a cruise ship|in a village bakery|at a family wedding|in a theatre|"
    "next door to the mayor"},
{"role", "horror",
    "night nurse|lighthouse keeper|grave digger|medium|young widow|caretaker|priest|babysitter"},
{"deed", "horror",
    "hears voices|opens the wrong coffin|wakes something old|finds a diary|reads a curse aloud|"
    "sees the dead"},
{"place","horror",
    "in an empty hospital|beneath a chapel|in a fog-bound village|at the bottom of a well|"
    "in an attic|behind the nursery wall"},
{"role", "thriller",
    "police inspector|bank clerk|double agent|journalist|safe-breaker|witness|prosecutor|"
    "bodyguard"},
{"deed", "thriller",
    "finds a body|is blackmailed|has one day to clear a name|steals a microfilm|"
    "trusts the wrong man|follows the money"},
{"place","thriller",
    "in Vienna|on the night train|in the harbour at dawn|behind the border|in a locked room|"
    "inside the ministry"},
{"role", "romance",
    "florist|piano teacher|young doctor|bookseller|ballet dancer|country vet|poet|dressmaker"},
{"deed", "romance",
    "falls for a rival|answers a love letter by mistake|meets a first love again|"
    "breaks off an engagement|waits for a soldier|dances with a stranger"},
{"place","romance",
    "in Paris|in a rose garden|one summer in Naples|on the last tram|at a spring ball|"
    "in a bookshop"},
{"role", "western",  "sheriff|bounty hunter|rancher|preacher|gunslinger|saloon singer"},
{"deed", "western",
    "rides after a gang|guards a stagecoach|digs for gold|drives the cattle north|"
    "buries a brother|waits for the noon train"},
{"place","western",
    "in a frontier town|across the desert|near the border|in the badlands|beyond the canyon|"
    "on the open prairie"},
{"role", "space",
    "navigator|robot mechanic|starship captain|young colonist|smuggler|stranded pilot"},
{"deed", "space",
    "picks up a distress call|wakes from cold sleep|meets a talking planet|"
    "repairs a time machine|carries a forbidden cargo|outruns a dying sun"},
{"place","space",
    "on the moons of Saturn|aboard a drifting freighter|at the edge of the galaxy|"
    "in orbit around Mars|on a colony of robots|beyond the last relay"},

/* --- Sentences that take a side --- */
{"acting", "+ -",
    "3 <lead> plays the <role>, and <lead.he> is <quality>.|"
    "2 In the lead, <lead> is <quality>.|2 <lead> plays the <role> with <amount>.|"
    "<lead> is the <role>: watching <lead.him> made me <react>.|"
    "<lead> is <quality> in it, as <lead.he> was last year."},
{"acting", "~",
    "2 <lead> plays the <role>.|The lead is <lead>, as so often.|"
    "2 <lead> is in nearly every scene."},

{"claim", "plain",
    "7 The <craft> is <quality>.|16 The <craft> is <quality>, and the <detail> is <adj>.|"
    "5 I found one <adj> <moment> after another.|4 Scene after scene is <quality>.|"
    "2 There is not a <adj!> <moment> in it.|I did not find a single <adj!> <moment>.|"
    "Hardly a scene is <adj!>.|3 It has <amount>.|What you get is <amount>."},
{"claim", "roundabout",
    "8 The <craft> is <quality>.|6 There is not a <adj!> <moment> in it.|"
    "4 I did not find a single <adj!> <moment>.|4 Hardly a scene is <adj!>.|"
    "2 Scene after scene is <quality>.|3 It has <amount>.|What you get is <amount>."},
{"claim", "director-he director-she",
    "3 Under <$director.last>, the <craft> is <quality>.|"
    "2 <$director.last> directs with <amount>, as <director.he> always does.|"
    "<$director.last> and <director.his> crew show <amount>."},
{"claim", "lead-he lead-she",
    "2 <$lead.last> has a <adj> scene with the <role>.|<lead.He> has never been less <adj!>."},

{"contrast", "",
    "5 It is <adj!> at first, but <adj> by the end.|"
    "3 The <detail> is <quality!>, but <whole> is <quality>.|"
    "2 Although the <detail> is <quality!>, <whole> is <quality>.|"
    "3 <Whole> is <quality>, even if the <detail> is <quality!>.|"
    "2 The critics call it <adj!>; they are wrong.|"
    "The critics call it <adj>, and they are right.|"
    "2 I expected a <adj!> evening and got a <adj> one.|"
    "My friend thought it <adj!>, but I thought it <adj>.|"
    "What starts as a <adj!> <film> turns into a <adj> one.|"
    "For all its <stuff!>, it is <quality>."},

{"reaction", "plain",
    "30 It made me <react>.|6 I could only <react>.|5 For two hours I did nothing but <react>.|"
    "3 There was every reason to <react>.|It never made me <react!>.|"
    "There was no reason to <react!>."},
{"reaction", "roundabout",
    "5 It never made me <react!>.|5 Not once did I <react!>.|4 There was no reason to <react!>.|"
    "3 I wanted to <react!>, but all I did was <react>.|3 It made me <react>."},
{"reaction", "titled",
    "2 While I watched The <$title.a> <$title.b>, I did not <react!> once.|"
    "2 The <$title.a> <$title.b> will make you <react>."},

{"wry", "-",
    "2 It is fine, if you have nothing better to do.|"
    "2 I have seen worse, though not this year.|The best thing about it is that it ends.|"
    "At least the popcorn was good.|It is good in parts, but the parts are short.|"
    "Good actors deserve a better <film>.|It would be good enough for a long flight.|"
    "A good nap would have been better.|I tried to love it, and failed."},
{"wry", "+",
    "2 If you have something better to do, do it later.|"
    "2 I have seen better, though not this year.|The worst thing about it is that it ends.|"
    "Only the popcorn was not good.|It is bad in parts, but the parts are short.|"
    "Better actors could not save a bad <film>; here there is no need.|"
    "It would be worth a long flight.|A nap would have been a bad idea.|"
    "I tried to hate it, and failed."},

{"verdict", "plain",
    "8 My advice: <act>.|6 You should <act>.|8 I am <glad> that I went.|"
    "2 I would tell anyone to <act>.|There is no need to <act!>."},
{"verdict", "roundabout",
    "5 Do not <act!>.|4 Nobody should <act!>.|3 There is no need to <act!>.|"
    "5 I cannot say that I am <glad!>.|2 You could <act!>, but you had better <act>.|"
    "3 My advice: <act>."},
{"verdict", "titled", "If you must choose tonight, do not choose to <act!>."},
{"verdict", "lead-he lead-she", "Even without <$lead.last>, I would <act>."},

{"doubts", "",
    "<claim+> <claim->|<claim-> <claim+>|<contrast+> <claim->|<contrast-> <claim+>|"
    "<reaction+> <claim->|<claim-> <reaction+>"},
{"shrug", "plain",
    "I am still in two minds.|See it and decide for yourself.|Half of the room clapped.|"
    "Call it a draw."},
{"shrug", "roundabout",
    "Do not ask me for a verdict.|I would call it neither good nor bad.|"
    "Nobody can decide that for you."},

/* --- Phrases: the word of one's own side, or a denial of one of the other side --- */
{"quality", "plain", "19 <plainly>|1 <denial>"},
{"quality", "roundabout", "1 <plainly>|3 <denial>"},
{"plainly", "", "40 <adj>|20 <very> <adj>|40 both <general> and <special>"},
{"denial", "",
    "6 never <adj!>|5 not <adj!> at all|4 far from <adj!>|4 anything but <adj!>|"
    "3 neither <general!> nor <special!>|3 not <adj!> but <adj>|2 less <adj!> than <adj>"},
{"very", "", "3 very|2 really|truly|deeply|utterly|quite|simply|remarkably|so"},
{"amount", "plain",
    "6 plenty of <stuff>|3 no lack of <stuff>|more <stuff> than <stuff!>|no <stuff!>"},
{"amount", "roundabout",
    "3 no <stuff!>|3 not a trace of <stuff!>|2 more <stuff> than <stuff!>|"
    "2 little <stuff!> and much <stuff>|no lack of <stuff>"},
{"moment", "", "3 moment|scene|2 minute|line|idea|shot"},
{"craft", "",
    "3 script|3 story|2 plot|2 dialogue|2 direction|pacing|ending|beginning|premise|tone"},
{"craft", "comedy",   "2 humour|comic timing|slapstick"},
{"craft", "horror",   "2 monster|build-up|final scare"},
{"craft", "thriller", "2 mystery|car chase|final twist"},
{"craft", "romance",  "2 courtship|first kiss|farewell scene"},
{"craft", "western",  "2 shootout|duel at noon|landscape"},
{"craft", "space",    "2 spaceship|alien language|battle in orbit"},
{"detail", "",
    "2 music|2 photography|editing|costume design|sound|lighting|set design|camera work|"
    "title song|supporting cast|make-up|narration"},
{"whole", "", "2 the rest|the film as a whole|all the rest|everything else|the result"},
{"Whole", "", "2 The rest|The film as a whole|All the rest|Everything else|The result"},
{"glad", "+", "5 glad|2 happy|thankful|pleased"},
{"glad", "-", "5 sorry|2 sad|ashamed|cross"},

{"adj", "", "4 <general>|1 <special>"},
{"general", "+",
    "8 wonderful|6 brilliant|5 gripping|4 clever|3 moving|3 charming|2 great|2 fresh|2 sharp|"
    "superb|beautiful|delightful|memorable|convincing|lively|vivid"},
{"general", "-",
    "8 dull|6 terrible|5 boring|4 clumsy|3 weak|3 tedious|2 bad|2 stale|2 bland|"
    "dreadful|flat|silly|predictable|pointless|lifeless|shallow"},
{"special", "comedy +", "4 funny|2 witty|hilarious|playful"},
{"special", "comedy -", "2 corny|2 humourless|laboured|juvenile"},
{"special", "horror +", "2 frightening|2 scary|terrifying|sinister"},
{"special", "horror -", "2 tame|2 laughable|bloodless|harmless"},
{"special", "thriller +", "3 tense|2 suspenseful|taut|breathless"},
{"special", "thriller -", "3 slack|2 far-fetched|sluggish|confused"},
{"special", "romance +", "2 tender|2 touching|passionate|heartfelt"},
{"special", "romance -", "2 cold|2 mawkish|sugary|passionless"},
{"special", "western +", "2 rugged|2 stirring|majestic|gritty"},
{"special", "western -", "2 dated|2 plodding|threadbare|stiff"},
{"special", "space +", "2 dazzling|2 visionary|breathtaking|spectacular"},
{"special", "space -", "2 clunky|2 cheap|garbled|derivative"},
{"stuff", "+", "5 style|4 imagination|3 warmth|2 wit|courage|feeling|taste|skill"},
{"stuff", "-", "5 nonsense|4 vanity|3 padding|2 noise|self-pity|pretence|waffle|kitsch"},
{"react", "+", "6 <delight>|<thrill>"},
{"react", "-",
    "9 yawn|5 look at my watch|2 think of the exit|count the minutes|check my phone|doze off|"
    "groan|lose interest|shake my head"},
{"delight", "",
    "9 smile|5 forget the time|2 cheer|wish for more|clap|sit up straight|nod with joy|marvel"},
{"thrill", "comedy", "2 laugh out loud|giggle"},
{"thrill", "horror", "hide behind my coat|sleep with the light on|scream"},
{"thrill", "thriller", "grip the armrest|hold my breath"},
{"thrill", "romance", "reach for a handkerchief|cry happy tears"},
{"thrill", "western", "reach for my hat|feel the heat"},
{"thrill", "space", "stare at the stars|feel weightless"},
{"act", "+",
    "6 see it|3 go|buy a ticket|take your friends|stay for the credits|recommend it|"
    "book two seats"},
{"act", "-",
    "6 skip it|3 stay at home|save your money|leave early|read a book|warn your friends|"
    "avoid it"},
};

/* ============================================================================================= */
/* 2. Compiling                                                                                  */
/* ============================================================================================= */

/* A state has one bit for each facet: bit MAX_VALUES * facet + value. A guard has the bits that it
 * allows, so it holds when all of the state's bits are among them. */
struct Item { int symbol; char side; const char *text; size_t length; };   /* symbol -1: the text */

struct Alternative { double weight; State guard; struct Item *items; int count; };

struct Symbol {
    const char *name;
    size_t length;
    int kept, count;                        /* kept: number of the $-symbol, -1 of another */
    struct Alternative *alternatives;
};

enum { MAX_SYMBOLS = 100, MAX_KEPT = 8 };

struct Grammar { struct Symbol symbols[MAX_SYMBOLS]; int count, kept; };

static State facet_bits(int facet) { return (((State)1 << MAX_VALUES) - 1) << MAX_VALUES * facet; }

/* "comedy +" -> the bits of these two values and all bits of the facets that it does not name. */
static State parse_guard(const char *guard)
{
    State bits = 0;
    for (const char *s = guard; *s; s += strcspn(s, " "), s += *s == ' ') {
        State before = bits;
        for (int i = 0; i < FACETS * MAX_VALUES; i++) {
            const char *name = facets[i / MAX_VALUES][i % MAX_VALUES].name;
            size_t length = strcspn(s, " ");
            if (name && strlen(name) == length && !memcmp(s, name, length)) bits |= (State)1 << i;
        }
        if (bits == before) die("the grammar's guard \"%s\" names no value of a facet.", guard);
    }
    for (int f = 0; f < FACETS; f++) if (!(bits & facet_bits(f))) bits |= facet_bits(f);
    return bits;
}

static int find_symbol(struct Grammar *g, const char *name, size_t length, bool make)
{
    for (int i = 0; i < g->count; i++)
        if (g->symbols[i].length == length && !memcmp(g->symbols[i].name, name, length)) return i;
    if (!make) die("the grammar has no symbol %.*s.", (int)length, name);
    assert(g->count < MAX_SYMBOLS && g->kept < MAX_KEPT);
    g->symbols[g->count] = (struct Symbol){name, length, *name == '$' ? g->kept++ : -1, 0, NULL};
    return g->count++;
}

/* "not <adj!> at all" -> text, symbol on the other side, text. */
static void compile_items(struct Grammar *g, struct Alternative *a, const char *text,
                          const char *end)
{
    while (text < end) {
        struct Item item = {-1, 0, text, 0};
        if (*text == '<') {
            const char *close = strchr(text, '>');
            item.side = strchr("!+-", close[-1]) ? close[-1] : 0;
            size_t length = (size_t)(close - text - 1) - (item.side != 0);
            item.symbol = find_symbol(g, text + 1, length, false);
            text = close + 1;
        } else {
            while (text < end && *text != '<') text++;
            item.length = (size_t)(text - item.text);
        }
        a->items = resize(a->items, (a->count + 1) * sizeof *a->items);
        a->items[a->count++] = item;
    }
}

static void compile_production(struct Grammar *g, const struct Production *p)
{
    struct Symbol *s = &g->symbols[find_symbol(g, p->symbol, strlen(p->symbol), false)];
    const char *at = p->alternatives;
    for (bool more = true; more; at++) {
        const char *end = at + strcspn(at, "|");
        struct Alternative a = {1, parse_guard(p->guard), NULL, 0};
        if (isdigit((unsigned char)*at)) { a.weight = strtod(at, (char **)&at); at++; }
        compile_items(g, &a, at, end);
        s->alternatives = resize(s->alternatives, (s->count + 1) * sizeof a);
        s->alternatives[s->count++] = a;
        more = *end;
        at = end;
    }
}

/* The first production's symbol is number 0, where every review starts. */
static struct Grammar *grammar_create(const struct Production *productions, int n)
{
    struct Grammar *g = resize(NULL, sizeof *g);
    g->count = g->kept = 0;
    const struct Production *end = productions + n;
    for (const struct Production *p = productions; p < end; p++)
        find_symbol(g, p->symbol, strlen(p->symbol), true);
    for (const struct Production *p = productions; p < end; p++) compile_production(g, p);
    return g;
}

static void grammar_free(struct Grammar *g)
{
    for (int s = 0; s < g->count; s++) {
        for (int i = 0; i < g->symbols[s].count; i++) free(g->symbols[s].alternatives[i].items);
        free(g->symbols[s].alternatives);
    }
    free(g);
}

static bool holds(const struct Alternative *a, State state)
{
    return (state & a->guard) == state;
}

/* The weight of all alternatives that hold; each has the probability weight / total. */
static double total_weight(const struct Symbol *s, State state)
{
    double total = 0;
    for (int i = 0; i < s->count; i++)
        if (holds(&s->alternatives[i], state)) total += s->alternatives[i].weight;
    if (total == 0)
        die("the grammar has no <%s> for the state %09llx.", s->name, (unsigned long long)state);
    return total;
}

/* The state in which an item's symbol is expanded. */
static State item_state(const struct Item *item, State state)
{
    State sign = state & facet_bits(SIGN), rest = state & ~facet_bits(SIGN);
    switch (item->side) {
        case '+': return rest | FOR;
        case '-': return rest | AGAINST;
        case '!': return rest | (sign == FOR ? AGAINST : FOR);
        default:  return state;
    }
}

/* Number `index` < COMBINATIONS of the ways to give each facet a value: its state, and its
 * probability as the result, which is 0 where a facet has fewer values. */
enum { COMBINATIONS = MAX_VALUES * MAX_VALUES * MAX_VALUES * MAX_VALUES * MAX_VALUES * MAX_VALUES };

static double combination(int index, State *state)
{
    double probability = 1;
    *state = 0;
    for (int f = 0; f < FACETS; f++, index /= MAX_VALUES) {
        double total = 0;
        for (int v = 0; v < MAX_VALUES; v++) total += facets[f][v].weight;
        *state |= (State)1 << (MAX_VALUES * f + index % MAX_VALUES);
        probability *= facets[f][index % MAX_VALUES].weight / total;
    }
    return probability;
}

static int sign_of(State state) { return state & FOR ? 0 : state & AGAINST ? 1 : 2; }

/* ============================================================================================= */
/* 3. Writing                                                                                    */
/* ============================================================================================= */

/* A review while it is written or read. kept[k] is the alternative chosen for $-symbol k, or -1. */
struct Review { struct Buffer text; int kept[MAX_KEPT]; State state; double bits; };

static void forget(struct Review *r) { for (int k = 0; k < MAX_KEPT; k++) r->kept[k] = -1; }

static void write_symbol(const struct Grammar *g, struct Review *r, struct Random *random,
                         int symbol, State state)
{
    const struct Symbol *s = &g->symbols[symbol];
    int chosen = s->kept < 0 ? -1 : r->kept[s->kept];
    if (chosen < 0) {
        double total = total_weight(s, state), left = random_uniform(random) * total;
        for (int i = 0; i < s->count; i++) {
            if (!holds(&s->alternatives[i], state)) continue;
            chosen = i;
            if ((left -= s->alternatives[i].weight) < 0) break;
        }
        r->bits -= log2(s->alternatives[chosen].weight / total);
        if (s->kept >= 0) r->kept[s->kept] = chosen;
    }
    const struct Alternative *a = &s->alternatives[chosen];
    for (int i = 0; i < a->count; i++) {
        const struct Item *item = &a->items[i];
        if (item->symbol < 0) append_bytes(&r->text, item->text, item->length);
        else write_symbol(g, r, random, item->symbol, item_state(item, state));
    }
}

/* Replaces what r held. r->bits becomes -log2 of the probability of all choices that were made. */
static void write_review(const struct Grammar *g, struct Review *r, struct Random *random)
{
    double left = random_uniform(random);
    for (int i = 0; i < COMBINATIONS; i++) {
        State state;
        double p = combination(i, &state);
        if (p == 0) continue;
        r->state = state;
        r->bits = -log2(p);
        if ((left -= p) < 0) break;
    }
    r->text.size = 0;
    forget(r);
    write_symbol(g, r, random, 0, r->state);
}

/* ============================================================================================= */
/* 4. Limits                                                                                     */
/* ============================================================================================= */

/* What to expect of a symbol in a state. The bits of a $-symbol's choice come once for all its
 * mentions; so they are left out here, and absent[k] is the probability that k is not mentioned. */
struct Expectation { double bits, bytes, absent[MAX_KEPT]; bool known; };

typedef struct Expectation Memo[MAX_SYMBOLS][SIGNS];

/* For alternatives a of probability p(a):
 *   bits = sum_a p(a) (-log2 p(a) + sum of its symbols' bits)      bytes likewise
 *   absent[k] = sum_a p(a) product of its symbols' absent[k]
 * A $-symbol has the bytes of its average choice. The memo, zero at first, is for states that
 * differ in nothing but the sign. */
static const struct Expectation *expect(const struct Grammar *g, Memo memo, int symbol,
                                        State state)
{
    const struct Symbol *s = &g->symbols[symbol];
    struct Expectation *e = &memo[symbol][sign_of(state)];
    if (e->known) return e;
    *e = (struct Expectation){.known = true};
    double total = total_weight(s, state);
    for (int i = 0; i < s->count; i++) {
        const struct Alternative *a = &s->alternatives[i];
        if (!holds(a, state)) continue;
        double p = a->weight / total, absent[MAX_KEPT];
        for (int k = 0; k < MAX_KEPT; k++) absent[k] = k == s->kept ? 0 : p;
        if (s->kept < 0) e->bits -= p * log2(p);
        for (int j = 0; j < a->count; j++) {
            const struct Item *item = &a->items[j];
            if (item->symbol < 0) { e->bytes += p * item->length; continue; }
            State inner = item_state(item, state);
            const struct Expectation *part = expect(g, memo, item->symbol, inner);
            e->bits += p * part->bits;
            e->bytes += p * part->bytes;
            for (int k = 0; k < MAX_KEPT; k++) absent[k] *= part->absent[k];
        }
        for (int k = 0; k < MAX_KEPT; k++) e->absent[k] += absent[k];
    }
    return e;
}

/* The entropy of the choice of an alternative. */
static double choice_bits(const struct Symbol *s, State state)
{
    double bits = 0, total = total_weight(s, state);
    for (int i = 0; i < s->count; i++) {
        double p = s->alternatives[i].weight / total;
        if (holds(&s->alternatives[i], state)) bits -= p * log2(p);
    }
    return bits;
}

struct Limits { double bits, bytes, accuracy; };

/* For reviews of these facets. The bits of a $-symbol count when it is mentioned. */
static struct Limits state_limits(const struct Grammar *g, State state)
{
    static Memo memo;
    memset(memo, 0, sizeof memo);
    const struct Expectation *e = expect(g, memo, 0, state);
    double positive = positive_given_sign[sign_of(state)];
    struct Limits limits = {e->bits, e->bytes, fmax(positive, 1 - positive)};
    for (const struct Symbol *s = g->symbols; s < g->symbols + g->count; s++)
        if (s->kept >= 0 && e->absent[s->kept] < 1 - 1e-12)
            limits.bits += (1 - e->absent[s->kept]) * choice_bits(s, state);
    return limits;
}

/* Averages over all reviews: bits = H(facets) + E[bits of the rest], bytes, and the accuracy of the
 * best guess, which is the likelier label of the review's sign. */
static struct Limits find_limits(const struct Grammar *g)
{
    struct Limits sum = {0};
    for (int i = 0; i < COMBINATIONS; i++) {
        State state;
        double p = combination(i, &state);
        if (p == 0) continue;
        struct Limits limits = state_limits(g, state);
        sum.bits += p * (limits.bits - log2(p));
        sum.bytes += p * limits.bytes;
        sum.accuracy += p * limits.accuracy;
    }
    return sum;
}

/* ============================================================================================= */
/* 5. Reading                                                                                    */
/* ============================================================================================= */

/* What is still to be read: items of `a` from `next` on, in a state, and then what comes after. */
struct Todo { const struct Alternative *a; int next; State state; const struct Todo *after; };

static double read_rest(const struct Grammar *g, struct Review *r, const char *text,
                        const struct Todo *todo);

/* The probability that the symbol and then `after` give exactly this text. Only here are $-symbols
 * bound: to the one that was chosen, or to each in turn, of which all but a few fail at once. */
static double read_symbol(const struct Grammar *g, struct Review *r, const char *text, int symbol,
                          State state, const struct Todo *after)
{
    const struct Symbol *s = &g->symbols[symbol];
    int *kept = s->kept < 0 ? NULL : &r->kept[s->kept];
    if (kept && *kept >= 0)
        return read_rest(g, r, text, &(struct Todo){&s->alternatives[*kept], 0, state, after});
    double total = total_weight(s, state), sum = 0;
    for (int i = 0; i < s->count; i++) {
        const struct Alternative *a = &s->alternatives[i];
        if (!holds(a, state)) continue;
        if (kept) *kept = i;
        struct Todo todo = {a, 0, state, after};
        sum += a->weight / total * read_rest(g, r, text, &todo);
        if (kept) *kept = -1;
    }
    return sum;
}

static double read_rest(const struct Grammar *g, struct Review *r, const char *text,
                        const struct Todo *todo)
{
    while (todo && todo->next == todo->a->count) todo = todo->after;
    if (!todo) return *text == 0;
    const struct Item *item = &todo->a->items[todo->next];
    struct Todo rest = {todo->a, todo->next + 1, todo->state, todo->after};
    if (item->symbol >= 0)
        return read_symbol(g, r, text, item->symbol, item_state(item, todo->state), &rest);
    if (strncmp(text, item->text, item->length)) return 0;
    return read_rest(g, r, text + item->length, &rest);
}

/* p[sign] = P(text, sign), summed over all derivations. The result is P(text). */
static double read_review(const struct Grammar *g, const char *text, double p[SIGNS])
{
    struct Review r;
    forget(&r);
    memset(p, 0, SIGNS * sizeof *p);
    for (int i = 0; i < COMBINATIONS; i++) {
        State state;
        double prior = combination(i, &state);
        if (prior > 0) p[sign_of(state)] += prior * read_symbol(g, &r, text, 0, state, NULL);
    }
    return p[0] + p[1] + p[2];
}

/* ============================================================================================= */
/* 6. Program                                                                                    */
/* ============================================================================================= */

/* What the grammar says about the reviews of one file. */
struct Score { double bits, bytes, right; int count; };

/* Adds a review whose label was drawn as `positive`: its code length, and whether the best guess is
 * right; a half where nothing speaks for either label. */
static void score(struct Score *s, const struct Grammar *g, const struct Review *r, bool positive)
{
    double p[SIGNS], total = read_review(g, r->text.data, p), good = 0;
    for (int i = 0; i < SIGNS; i++) good += p[i] / total * positive_given_sign[i];
    s->bits -= log2(total);
    s->bytes += r->text.size;
    s->right += fabs(good - 0.5) < 1e-9 ? 0.5 : (good > 0.5) == positive;
    s->count++;
}

/* A file of reviews: lines of text, or text TAB label under a header. Each has a random stream of
 * its own, so that one file's size does not change another's reviews. */
struct TextFile { const char *name; int *count; bool labelled, scored; struct Score score; };

static void write_reviews(const struct Grammar *g, const char *out, struct TextFile *f,
                          struct Random random)
{
    struct Buffer file = {0};
    struct Review r = {0};
    append(&file, "%s", f->labelled ? "text\tlabel\n" : "");
    for (int i = 0; i < *f->count; i++) {
        write_review(g, &r, &random);
        bool positive = random_uniform(&random) < positive_given_sign[sign_of(r.state)];
        if (f->scored) score(&f->score, g, &r, positive);
        append_bytes(&file, r.text.data, r.text.size);
        append(&file, "%s\n", !f->labelled ? "" : positive ? "\tpositive" : "\tnegative");
    }
    char *path = text_of("%s/%s", out, f->name);
    stage_file(path, file.data, file.size);
    free(path);
    free(file.data);
    free(r.text.data);
}

/* The limits of any model: of all reviews, and of the very ones in a file. */
static void report_limits(struct Buffer *b, const struct Limits *limits, const struct TextFile *files,
                          int n)
{
    append(b, "review_bits %.3f\nreview_bytes %.3f\n", limits->bits, limits->bytes);
    append(b, "lowest_bits_per_byte %.4f\n", limits->bits / limits->bytes);
    append(b, "best_accuracy %.4f\n", limits->accuracy);
    for (const struct TextFile *f = files; f < files + n; f++) {
        const struct Score *s = &f->score;
        if (!s->count) continue;
        append(b, "%s: lowest_bits_per_byte %.4f\n", f->name, s->bits / s->bytes);
        if (f->labelled) append(b, "%s: best_accuracy %.4f\n", f->name, s->right / s->count);
    }
}

#ifndef REVIEWS_NO_MAIN
static const char usage[] =
    "reviews --out DIR: film reviews from a grammar in unlabelled.txt, unlabelled_val.txt,\n"
    "train.tsv, val.tsv and test.tsv, and the limits of any model of them in limits.txt\n";

int main(int argc, char **argv)
{
    begin_program("reviews", argv);
    const char *out = NULL;
    int64_t seed = 1;
    int unlabelled = 20000, unlabelled_val = 1000, labelled = 100, validation = 100, test = 2000;
    bool overwrite = false;
    struct Option options[] = {
        {"out", "directory for the files", TEXT, &out, .required = true},
        {"seed", "another seed, other reviews", LONG, &seed, .min = 0, .max = 1e18},
        {"unlabelled", "reviews in unlabelled.txt", INTEGER, &unlabelled, .max = 1e6},
        {"unlabelled-val", "in unlabelled_val.txt", INTEGER, &unlabelled_val, .max = 1e6},
        {"labelled", "in train.tsv", INTEGER, &labelled, .max = 1e6},
        {"validation", "in val.tsv", INTEGER, &validation, .max = 1e6},
        {"test", "in test.tsv", INTEGER, &test, .max = 1e6},
        {"overwrite", "replace the reviews in --out", FLAG, &overwrite},
        {0}
    };
    struct TextFile files[] = {
        {"unlabelled.txt", &unlabelled},
        {"unlabelled_val.txt", &unlabelled_val, .scored = true},
        {"train.tsv", &labelled, .labelled = true},
        {"val.tsv", &validation, .labelled = true},
        {"test.tsv", &test, .labelled = true, .scored = true},
    };
    const int file_count = sizeof files / sizeof *files;
    read_options(argc - 1, argv + 1, options, usage);
    char *limits_path = text_of("%s/limits.txt", out);
    lock_directory(out);
    if (file_exists(limits_path) && !overwrite)
        die_usage("--out %s: holds reviews already. Choose another or add --overwrite.", out);

    struct Grammar *g = grammar_create(productions, sizeof productions / sizeof *productions);
    const struct Limits limits = find_limits(g);
    struct Buffer report = {0};
    for (int i = 0; i < file_count; i++)
        write_reviews(g, out, &files[i], random_stream((uint64_t)seed, (uint64_t)i + 1));
    report_limits(&report, &limits, files, file_count);
    stage_file(limits_path, report.data, report.size);
    commit_outputs();
    fputs(report.data, stdout);
    free(report.data);
    free(limits_path);
    grammar_free(g);
    return 0;
}
#endif
