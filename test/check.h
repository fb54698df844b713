/* check.h: what every test program uses. A check prints one line, "ok ..." or "FAIL ..."; main ends
 * with `return report();`, whose value is the number of failures. */

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static int checks_passed, checks_failed;

__attribute__((format(printf, 2, 3))) static void check(int good, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs(good ? "ok   " : "FAIL ", stdout);
    vprintf(format, arguments);
    putchar('\n');
    fflush(stdout);
    va_end(arguments);
    if (good) checks_passed++; else checks_failed++;
}

/* Relative error of a tensor: ||got - want|| / ||want||, NaN when either holds one. */
static double relative_error(const double *got, const double *want, size_t n)
{
    double difference = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        difference += (got[i] - want[i]) * (got[i] - want[i]);
        norm += want[i] * want[i];
    }
    return sqrt(difference) / (sqrt(norm) + 1e-30);
}

static int report(void) { return checks_failed > 255 ? 255 : checks_failed; }
