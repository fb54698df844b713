/* fence.h: an array of resize ends where memory ends, so a test that reads or writes beyond it ends
 * by a signal. What is written shortly before it is found when it is freed. To be included before the
 * sources under test. A sanitizer does the same, so it gets plain memory. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef __SANITIZE_ADDRESS__

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

/* An address is used once: sizes[k] is that of the array that begins in page k. */
static struct { char *at; size_t page, pages, used, *sizes; } fence;

static void *fence_reserve(size_t bytes, int access)
{
    void *p = mmap(NULL, bytes, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) { printf("FAIL no addresses for arrays\n"); _exit(1); }
    return p;
}

static void fence_free(void *p)
{
    char *const end = fence.at + fence.pages * fence.page;
    if (!fence.at || (char *)p < fence.at || (char *)p >= end) { free(p); return; }
    const size_t k = ((char *)p - fence.at) / fence.page;
    char *const first = fence.at + k * fence.page;
    for (char *before = first; before < (char *)p; before++)
        if (*before) { printf("FAIL bytes before an array were written\n"); _exit(1); }
    mmap(first, (char *)p + fence.sizes[k] - first, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

static void *fence_realloc(void *old, size_t bytes)
{
    char *p = NULL;
#ifdef _OPENMP
    #pragma omp critical (fence)
#endif
    {
        if (!fence.at) {
            fence.page = (size_t)sysconf(_SC_PAGESIZE);
            fence.pages = ((size_t)64 << 30) / fence.page;
            fence.at = fence_reserve(fence.pages * fence.page, PROT_NONE);
            fence.sizes = fence_reserve(fence.pages * sizeof *fence.sizes, PROT_READ | PROT_WRITE);
        }
        const size_t n = (bytes + fence.page - 1) / fence.page;
        char *first = fence.at + fence.used * fence.page;
        if (n < fence.pages - fence.used
            && !mprotect(first, n * fence.page, PROT_READ | PROT_WRITE)) {
            p = first + n * fence.page - bytes;
            fence.sizes[fence.used] = bytes;
            fence.used += n + 1;
        }
    }
    if (!p || !old) return p;
    const size_t before = fence.sizes[((char *)old - fence.at) / fence.page];
    memcpy(p, old, before < bytes ? before : bytes);
    fence_free(old);
    return p;
}

#define realloc fence_realloc
#define free fence_free

#endif
