/* Convolutions of 3x3 with a border of zeros on a CPU, forward and both gradients, by Winograd's
 * minimal filtering F(2x2, 3x3): 16 products for four outputs in the place of 36 (Lavin and Gray,
 * arXiv 1509.09308, section 4.1). Maps are [B, H, W, C], C a multiple of 16, in float32 or, where
 * the processor multiplies it, in bfloat16; sums are float32.
 *
 * An image is cut into tiles of 2x2 outputs. A tile sees 4x4 inputs d, a kernel g:
 *
 *   forward              y = A' [ (G g G') * (B' d B) ] A
 *   gradient of inputs   the same with kernels turned by 180 degrees and transposed
 *   gradient of kernels  G' [ sum over tiles of (A y A') x (B' d B) ] G
 *
 * What is in brackets are 16 matrix products over channels or tiles, made a block at a time, so
 * that what is transformed stays in the caches. ``winograd.py`` calls it. */

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#define ROWS 4 /* a product sums so many rows in registers, */
#if defined(__AVX512F__)
#define LANES 16
#define VECS 4 /* and so many vectors of each */
#else
#define LANES 8
#define VECS 2
#endif
#define PANEL (LANES * VECS)

/* ``v`` in a register: gcc would read it from memory again for every row */
#if defined(__AVX2__)
#define KEEP(v) __asm__("" : "+v"(v))
#else
#define KEEP(v) (void)(v)
#endif

/* oneDNN's own products are faster than this where there are matrix units (AMX) */
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && !defined(__AMX_BF16__)
#define HAS_BF16 1
#include <immintrin.h>
#else
#define HAS_BF16 0
#endif

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t word; /* a float32, or two bfloat16 that follow each other in a sum */

enum kind { FLOAT32, BFLOAT16 };

/* libgomp's GOMP_parallel: calls a function on so many threads */
typedef void parallel(void (*)(void *), void *, unsigned, unsigned);

struct job {
    int64_t kind, batch, height, width, inputs, outputs, threads, turned;
    const char *x;       /* [batch, height, width, inputs] */
    const char *grad;    /* [batch, height, width, outputs] */
    const float *kernel; /* [outputs, 3, 3, inputs] */
    word *spread;        /* the kernels of ``spread_kernels`` */
    char *y;             /* [batch, height, width, outputs] */
    float *sums;         /* [threads, 16, outputs, inputs] */
    float *kernel_grad;  /* [outputs, 3, 3, inputs] */
    parallel *start;     /* null: no threads */
    /* of this file alone */
    int64_t tasks, block, splits, parts, zeros, scratch;
    char *memory;
    atomic_long next, workers;
};

INLINE int64_t ceil_to(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

INLINE int64_t bytes(int kind) { return kind == FLOAT32 ? 4 : 2; }
INLINE int64_t pair(int kind) { return kind == FLOAT32 ? 1 : 2; } /* numbers of a word */
INLINE int64_t down(const struct job *j) { return (j->height + 1) / 2; }
INLINE int64_t across(const struct job *j) { return (j->width + 1) / 2; }
INLINE int64_t tiles(const struct job *j) { return j->batch * down(j) * across(j); }

INLINE vec load(int kind, const char *from)
{
#if HAS_BF16
    if (kind == BFLOAT16) {
        __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
        return (vec)_mm512_slli_epi32(wide, 16);
    }
#endif
    (void)kind;
    return *(const vec *)from;
}

INLINE void store(int kind, char *to, vec v)
{
#if HAS_BF16
    if (kind == BFLOAT16) {
        _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh((__m512)v));
        return;
    }
#endif
    (void)kind;
    *(vec *)to = v;
}

/* Words of what is summed one after the other: one of two in float32, both in bfloat16. */
INLINE void store_words(int kind, word *to, vec first, vec second)
{
#if HAS_BF16
    if (kind == BFLOAT16) {
        __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)first));
        __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)second));
        _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        return;
    }
#endif
    (void)kind, (void)second;
    memcpy(to, &first, sizeof first);
}

INLINE vec multiply_add(int kind, word left, vec right, vec sum)
{
#if HAS_BF16
    if (kind == BFLOAT16)
        return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)right,
                                     (__m512bh)_mm512_set1_epi32((int)left));
#endif
    (void)kind;
    float number;
    memcpy(&number, &left, sizeof number);
    return sum + right * number;
}

/* out[r, :] (+)= sum over k of left[r, k] right[k, :], ROWS rows, ``vecs`` vectors wide.
 * Of the left, rows are ``row`` words apart and what is summed ``step``; the right is dense. */
INLINE void product(int kind, int vecs, const word *left, int64_t row, int64_t step, int64_t depth,
                    const word *right, float *out, int64_t line, int add)
{
    vec sum[ROWS][VECS];
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < vecs; v++)
            sum[r][v] = add ? *(const vec *)(out + r * line + v * LANES) : (vec){0};
    for (int64_t k = 0; k < depth; k++) {
        vec of_right[VECS];
        for (int v = 0; v < vecs; v++) {
            of_right[v] = *(const vec *)(right + (k * vecs + v) * LANES);
            KEEP(of_right[v]);
        }
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < vecs; v++)
                sum[r][v] = multiply_add(kind, left[r * row + k * step], of_right[v], sum[r][v]);
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < vecs; v++)
            *(vec *)(out + r * line + v * LANES) = sum[r][v];
}

INLINE void multiply(int kind, int vecs, const word *left, int64_t row, int64_t step, int64_t depth,
                     const word *right, float *out, int64_t line, int add)
{
    switch (vecs) { /* so that each is unrolled */
    case 1: product(kind, 1, left, row, step, depth, right, out, line, add); break;
    case 2: product(kind, 2, left, row, step, depth, right, out, line, add); break;
#if VECS > 2
    case 3: product(kind, 3, left, row, step, depth, right, out, line, add); break;
    case 4: product(kind, 4, left, row, step, depth, right, out, line, add); break;
#endif
    }
}

/* Where the side x side pixels of a tile lie, from the output at its corner plus ``start`` on;
 * ``zeros`` outside of the map and of the batch. */
INLINE void find(const struct job *j, const char *map, int64_t channels, int64_t tile, int start,
                 int side, const char *zeros, const char **found)
{
    int64_t top = 2 * (tile / across(j) % down(j)) + start;
    int64_t left = 2 * (tile % across(j)) + start;
    int64_t image = tile / (across(j) * down(j));
    for (int i = 0; i < side; i++)
        for (int k = 0; k < side; k++) {
            int64_t y = top + i, x = left + k;
            int inside = image < j->batch && y >= 0 && y < j->height && x >= 0 && x < j->width;
            int64_t pixel = (image * j->height + y) * j->width + x;
            found[side * i + k] = inside ? map + pixel * channels * bytes((int)j->kind) : zeros;
        }
}

INLINE void inputs_row(vec a, vec b, vec c, vec d, vec *to, int step) /* B' d */
{
    to[0] = a - c, to[step] = b + c, to[2 * step] = c - b, to[3 * step] = b - d;
}

INLINE void outputs_row(vec a, vec b, vec *to, int step) /* A y */
{
    to[0] = a, to[step] = a + b, to[2 * step] = a - b, to[3 * step] = -b;
}

INLINE void kernel_row(vec a, vec b, vec c, vec *to, int step) /* G g */
{
    vec ends = .5f * (a + c), middle = .5f * b;
    to[0] = a, to[step] = ends + middle, to[2 * step] = ends - middle, to[3 * step] = c;
}

INLINE void spread_inputs(int kind, const char **from, int64_t offset, vec to[16])
{
    vec d[16], half[16];
    for (int i = 0; i < 16; i++)
        d[i] = load(kind, from[i] + offset);
    for (int i = 0; i < 4; i++)
        inputs_row(d[i], d[4 + i], d[8 + i], d[12 + i], half + i, 4);
    for (int i = 0; i < 4; i++)
        inputs_row(half[4 * i], half[4 * i + 1], half[4 * i + 2], half[4 * i + 3], to + 4 * i, 1);
}

INLINE void spread_outputs(int kind, const char **from, int64_t offset, vec to[16])
{
    vec d[4], half[8];
    for (int i = 0; i < 4; i++)
        d[i] = load(kind, from[i] + offset);
    for (int i = 0; i < 2; i++)
        outputs_row(d[i], d[2 + i], half + i, 2);
    for (int i = 0; i < 4; i++)
        outputs_row(half[2 * i], half[2 * i + 1], to + 4 * i, 1);
}

INLINE void spread_kernel(const float *from, int64_t inputs, int turned, vec to[16])
{
    vec g[9], half[12];
    for (int i = 0; i < 9; i++)
        g[i] = *(const vec *)(from + (turned ? 8 - i : i) * inputs);
    for (int i = 0; i < 3; i++)
        kernel_row(g[i], g[3 + i], g[6 + i], half + i, 3);
    for (int i = 0; i < 4; i++)
        kernel_row(half[3 * i], half[3 * i + 1], half[3 * i + 2], to + 4 * i, 1);
}

/* The kernels of a panel of outputs as [16, inputs / pair, panel] words; turned by 180 degrees,
 * and inputs and outputs in each other's place, where they are for the gradient of the inputs. */
INLINE void kernels_task(int kind, const struct job *j, int64_t task)
{
    int64_t columns = j->turned ? j->inputs : j->outputs, rows = j->turned ? j->outputs : j->inputs;
    int64_t first = task * PANEL, wide = least(PANEL, columns - first), depth = rows / pair(kind);
    word *to = j->spread + first * depth * 16;
    if (j->turned)
        for (int64_t k = 0; k < rows; k += pair(kind))
            for (int64_t c = 0; c < wide; c += LANES) {
                vec u[2][16];
                for (int64_t q = 0; q < pair(kind); q++)
                    spread_kernel(j->kernel + (k + q) * 9 * j->inputs + first + c, j->inputs, 1,
                                  u[q]);
                for (int p = 0; p < 16; p++)
                    store_words(kind, to + (p * depth + k / pair(kind)) * wide + c, u[0][p],
                                u[pair(kind) - 1][p]);
            }
    else
        for (int64_t k = 0; k < wide; k += LANES)
            for (int64_t c = 0; c < rows; c += LANES) {
                word part[16][LANES][LANES]; /* to write whole vectors */
                for (int64_t q = 0; q < LANES; q++) {
                    vec u[16];
                    word words[LANES];
                    spread_kernel(j->kernel + (first + k + q) * 9 * j->inputs + c, j->inputs, 0, u);
                    for (int p = 0; p < 16; p++) {
                        store(kind, (char *)words, u[p]);
                        for (int64_t i = 0; i < LANES / pair(kind); i++)
                            part[p][i][q] = words[i];
                    }
                }
                for (int p = 0; p < 16; p++)
                    for (int64_t i = 0; i < LANES / pair(kind); i++)
                        memcpy(to + (p * depth + c / pair(kind) + i) * wide + k, part[p][i],
                               sizeof part[p][i]);
            }
}

/* A block of tiles. */
INLINE void convolve_task(int kind, const struct job *j, int64_t task, char *memory)
{
    int64_t first = task * j->block, count = least(j->block, tiles(j) - first);
    int64_t size = bytes(kind), depth = j->inputs / pair(kind), plane = j->block * j->inputs * size;
    char *zeros = memory, *v = zeros + j->zeros; /* [16, block, inputs] */
    float *m = (float *)(v + 16 * plane);        /* [16, block, PANEL] */
    for (int64_t t = 0; t < count; t++) {
        const char *from[16];
        find(j, j->x, j->inputs, first + t, -1, 4, zeros, from);
        for (int64_t c = 0; c < j->inputs; c += LANES) {
            vec d[16];
            spread_inputs(kind, from, c * size, d);
            for (int p = 0; p < 16; p++)
                store(kind, v + p * plane + (t * j->inputs + c) * size, d[p]);
        }
    }
    for (int64_t panel = 0; panel < j->outputs; panel += PANEL) {
        int64_t wide = least(PANEL, j->outputs - panel);
        for (int p = 0; p < 16; p++) {
            const word *u = j->spread + (panel * 16 + p * wide) * depth;
            for (int64_t t = 0; t < count; t += ROWS) /* what is left of the last ROWS is unused */
                multiply(kind, (int)(wide / LANES),
                         (const word *)(v + p * plane) + t * depth, depth, 1, depth, u,
                         m + (p * j->block + t) * PANEL, PANEL, 0);
        }
        for (int64_t t = 0; t < count; t++) {
            const char *to[4];
            find(j, j->y, j->outputs, first + t, 0, 2, NULL, to);
            for (int64_t c = 0; c < wide; c += LANES) {
                vec half[8];
                for (int q = 0; q < 4; q++) { /* A' m, then (A' m) A */
                    vec a[4];
                    for (int i = 0; i < 4; i++)
                        a[i] = *(const vec *)(m + ((4 * i + q) * j->block + t) * PANEL + c);
                    half[q] = a[0] + a[1] + a[2], half[4 + q] = a[1] - a[2] - a[3];
                }
                for (int i = 0; i < 2; i++) {
                    const vec *a = half + 4 * i;
                    vec y[2] = {a[0] + a[1] + a[2], a[1] - a[2] - a[3]};
                    for (int k = 0; k < 2; k++)
                        if (to[2 * i + k] != NULL)
                            store(kind, (char *)to[2 * i + k] + (panel + c) * size, y[k]);
                }
            }
        }
    }
}

/* The sums over a part of the tiles, for a part of the inputs. */
INLINE void sums_task(int kind, const struct job *j, int64_t task, char *memory)
{
    int64_t part = task % j->parts, split = task / j->parts, panels = ceil_to(j->inputs, PANEL) / PANEL;
    int64_t from_c = panels * split / j->splits * PANEL;
    int64_t to_c = least(panels * (split + 1) / j->splits * PANEL, j->inputs);
    int64_t share = ceil_to((tiles(j) + j->parts - 1) / j->parts, 2);
    int64_t first = part * share, end = least(first + share, tiles(j));
    int64_t rows = j->outputs, size = bytes(kind), words = j->block / pair(kind);
    float *sums = j->sums + part * 16 * rows * j->inputs;
    char *zeros = memory;
    word *d = (word *)(zeros + j->zeros); /* [16, words, rows] */
    word *v = d + 16 * words * rows;      /* for each panel [16, words, its inputs] */
    if (first >= end)
        for (int64_t line = 0; line < 16 * rows; line++)
            memset(sums + line * j->inputs + from_c, 0, 4 * (to_c - from_c));
    for (int64_t begin = first; begin < end; begin += j->block) {
        int64_t count = ceil_to(least(j->block, end - begin), pair(kind)), depth = count / pair(kind);
        for (int64_t t = 0; t < count; t += pair(kind)) {
            const char *x[2][16], *grad[2][4];
            for (int64_t q = 0; q < pair(kind); q++) {
                int64_t tile = begin + t + q < end ? begin + t + q : tiles(j);
                find(j, j->x, j->inputs, tile, -1, 4, zeros, x[q]);
                find(j, j->grad, j->outputs, tile, 0, 2, zeros, grad[q]);
            }
            for (int64_t k = 0; k < j->outputs; k += LANES) {
                vec a[2][16];
                for (int64_t q = 0; q < pair(kind); q++)
                    spread_outputs(kind, grad[q], k * size, a[q]);
                for (int p = 0; p < 16; p++)
                    store_words(kind, d + (p * words + t / pair(kind)) * rows + k, a[0][p],
                                a[pair(kind) - 1][p]);
            }
            for (int64_t panel = from_c; panel < to_c; panel += PANEL) {
                int64_t wide = least(PANEL, to_c - panel);
                word *to = v + 16 * words * (panel - from_c);
                for (int64_t c = 0; c < wide; c += LANES) {
                    vec a[2][16];
                    for (int64_t q = 0; q < pair(kind); q++)
                        spread_inputs(kind, x[q], (panel + c) * size, a[q]);
                    for (int p = 0; p < 16; p++)
                        store_words(kind, to + (p * words + t / pair(kind)) * wide + c, a[0][p],
                                    a[pair(kind) - 1][p]);
                }
            }
        }
        for (int p = 0; p < 16; p++)
            for (int64_t panel = from_c; panel < to_c; panel += PANEL) {
                int64_t wide = least(PANEL, to_c - panel);
                const word *right = v + 16 * words * (panel - from_c) + p * words * wide;
                for (int64_t k = 0; k < rows; k += ROWS)
                    multiply(kind, (int)(wide / LANES), d + p * words * rows + k, 1, rows, depth,
                             right, sums + (p * rows + k) * j->inputs + panel, j->inputs,
                             begin > first);
            }
    }
}

/* G' sums G of an output. */
INLINE void kernel_grad_task(const struct job *j, int64_t k)
{
    int64_t rows = j->outputs;
    for (int64_t c = 0; c < j->inputs; c += LANES) {
        vec half[12];
        for (int q = 0; q < 4; q++) {
            vec s[4];
            for (int i = 0; i < 4; i++) {
                const float *sums = j->sums + ((4 * i + q) * rows + k) * j->inputs + c;
                s[i] = *(const vec *)sums;
                for (int64_t part = 1; part < j->parts; part++)
                    s[i] += *(const vec *)(sums + part * 16 * rows * j->inputs);
            }
            vec both = .5f * (s[1] + s[2]);
            half[q] = s[0] + both, half[4 + q] = .5f * (s[1] - s[2]), half[8 + q] = both + s[3];
        }
        for (int i = 0; i < 3; i++) {
            const vec *s = half + 4 * i;
            vec both = .5f * (s[1] + s[2]), g[3] = {s[0] + both, .5f * (s[1] - s[2]), both + s[3]};
            for (int q = 0; q < 3; q++)
                *(vec *)(j->kernel_grad + (k * 9 + 3 * i + q) * j->inputs + c) = g[q];
        }
    }
}

#define EACH_TASK(j, call)                                                                        \
    for (int64_t task; (task = atomic_fetch_add(&(j)->next, 1)) < (j)->tasks;)                    \
        call

#define WORKER(name, task_of_kind)                                                                \
    static void name(void *argument)                                                              \
    {                                                                                             \
        struct job *j = argument;                                                                 \
        char *memory = j->memory + j->scratch * atomic_fetch_add(&j->workers, 1);                 \
        (void)memory;                                                                             \
        if (HAS_BF16 && j->kind == BFLOAT16)                                                      \
            EACH_TASK(j, task_of_kind(BFLOAT16));                                                 \
        else                                                                                      \
            EACH_TASK(j, task_of_kind(FLOAT32));                                                  \
    }

#define KERNELS(kind) kernels_task(kind, j, task)
#define CONVOLVE(kind) convolve_task(kind, j, task, memory)
#define SUMS(kind) sums_task(kind, j, task, memory)
#define KERNEL_GRAD(kind) kernel_grad_task(j, task)

WORKER(kernels_worker, KERNELS)
WORKER(convolve_worker, CONVOLVE)
WORKER(sums_worker, SUMS)
WORKER(kernel_grad_worker, KERNEL_GRAD)

/* Run the tasks of a job on its threads, each with zeros and scratch; 1 where memory ends. */
static int run(struct job *j, void (*worker)(void *), int64_t tasks, int64_t scratch)
{
    int64_t threads = j->start == NULL ? 1 : most(1, least(j->threads, tasks));
    j->zeros = ceil_to(4 * most(j->inputs, j->outputs), 64);
    j->scratch = scratch ? ceil_to(j->zeros + scratch, 64) : 0;
    j->memory = NULL;
    if (scratch) {
        j->memory = aligned_alloc(64, threads * j->scratch);
        if (j->memory == NULL)
            return 1;
        for (int64_t i = 0; i < threads; i++)
            memset(j->memory + i * j->scratch, 0, j->zeros);
    }
    j->tasks = tasks;
    atomic_init(&j->next, 0);
    atomic_init(&j->workers, 0);
    if (threads > 1)
        j->start(worker, j, (unsigned)threads, 0);
    else
        worker(j);
    free(j->memory);
    return 0;
}

/* Whether this is faster than oneDNN: measured with AVX2, AVX512 and its bfloat16. */
int supports(int64_t kind)
{
#if defined(__AVX2__)
    return kind == FLOAT32 || (HAS_BF16 && kind == BFLOAT16);
#else
    return (void)kind, 0;
#endif
}

/* kernel -> spread, as many words as 16 inputs * outputs / pair */
int spread_kernels(struct job *j)
{
    int64_t columns = j->turned ? j->inputs : j->outputs;
    return run(j, kernels_worker, (columns + PANEL - 1) / PANEL, 0);
}

/* x, spread -> y */
int convolve(struct job *j)
{
    int64_t blocks = ceil_to((tiles(j) + 63) / 64, j->threads);
    j->block = ceil_to((tiles(j) + blocks - 1) / blocks, ROWS);
    int64_t numbers = 16 * j->block * (j->inputs * bytes((int)j->kind) + PANEL * 4);
    return run(j, convolve_worker, (tiles(j) + j->block - 1) / j->block, numbers);
}

/* x, grad -> kernel_grad; how tiles are summed up depends on the number of threads */
int convolve_grad(struct job *j)
{
    int64_t both = j->inputs + j->outputs, panels = (j->inputs + PANEL - 1) / PANEL;
    int64_t fits = (2 << 20) / (16 * both * bytes((int)j->kind));
    j->splits = least(j->threads, panels);
    j->parts = (j->threads + j->splits - 1) / j->splits;
    j->block = ceil_to(least(most(fits, 256), 512), 2);
    int64_t words = 16 * j->block / pair((int)j->kind) * both;
    return run(j, sums_worker, j->splits * j->parts, 4 * words)
        || run(j, kernel_grad_worker, j->outputs, 0);
}
