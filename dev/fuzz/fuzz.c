/* fuzz.c: libFuzzer's entry to one reader of files, READER: "model", "state", ... (test/hostile.h).
 * dev/fuzz/run.sh builds and runs all of them. */

#include "../../test/hostile.h"

static const struct HostileReader *reader;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    struct Buffer seeds[SEEDS] = {{0}};
    (void)argc, (void)argv;
    begin_hostile();
    atexit(end_hostile);
    for (reader = readers; strcmp(reader->name, READER); ) reader++;
    seeds_of(READER, seeds);            /* also prepares what the readers need */
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    run_reader(reader, (struct Bytes){(const char *)bytes, n});
    return 0;
}
