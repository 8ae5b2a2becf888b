/* A view of one image at a time, without leaving the cache:

       crop, resize and mirror -> colours -> blur -> solarise -> normalise

   The same as resample.py and ops.py, which are the reference; native.py compiles and calls this.
   Images have three channels, views are square. A sample's result depends on nothing but its own
   arguments.
*/

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "pairs of pixels are read as one number, the first in its lower half"
#endif

#define BLOCK 64  /* pixels of a row that a blur keeps in registers */
#define LANES 16

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

enum kind { NOTHING, AFFINE, HUE };
enum filter { BILINEAR, BICUBIC };

/* One change of colours: x becomes clamp(linear x + of_mean mean(x) + shift), or its hue turns. */
struct step {
    float kind;
    float needs_mean;
    float linear[9];
    float of_mean[9];
    float shift[3];
    float low[3];
    float high[3];
    float turns;
};

/* What happens to one sample. */
struct sample {
    float dense; /* resize in floats, as resample.py does small images; else as PyTorch */
    float filter;
    float box[4];  /* top, left, height, width of the crop, pixels */
    float mirror;
    struct step steps[5];
    float sigma;  /* of the blur, pixels */
    float radius; /* of its kernel, pixels; 0: no blur */
    float solarize;
    float threshold[3];
    float ends[3]; /* black plus white */
    float mean[3];
    float scale[3]; /* the result is (x - mean) * scale */
};

static double weight(double x, int filter)
{
    x = fabs(x);
    if (filter == BILINEAR)
        return x < 1.0 ? 1.0 - x : 0.0;
    if (x < 1.0) /* Keys' cubic convolution with a = -1/2 */
        return (1.5 * x - 2.5) * x * x + 1.0;
    return x < 2.0 ? ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0 : 0.0;
}

/* Weights of the pixels of one axis for each of ``size`` results; ``taps`` of them from ``first``
   on. A wider filter where the result is the smaller one is antialiasing. */
static void axis(float *weights, int *first, int taps, int length, int size, int filter)
{
    double scale = (double)length / size, stretch = scale > 1.0 ? scale : 1.0;
    double reach = filter == BILINEAR ? stretch : 2.0 * stretch;
    for (int i = 0; i < size; i++) {
        double centre = (i + 0.5) * scale, total = 0.0, each[taps];
        int begin = (int)floor(centre - reach + 0.5);
        begin = begin < 0 ? 0 : begin;
        begin = begin > length - taps ? (length > taps ? length - taps : 0) : begin;
        for (int k = 0; k < taps; k++) {
            each[k] = begin + k < length ? weight((begin + k + 0.5 - centre) / stretch, filter) : 0.0;
            total += each[k];
        }
        first[i] = begin;
        for (int k = 0; k < taps; k++)
            weights[i * taps + k] = (float)(each[k] / total);
    }
}

static int taps_for(int length, int size, int filter)
{
    double stretch = length > size ? (double)length / size : 1.0;
    int taps = 2 * (int)ceil((filter == BILINEAR ? 1.0 : 2.0) * stretch) + 1;
    return taps < length ? taps : length;
}

/* Crop, resize with antialiasing, mirror and round to 8 bits, in floats, as resample.py does small
   images. Returns 1 where memory lacks. */
static int resize_small(float *x, const uint8_t *image, const int64_t strides[4], int size,
                  const struct sample *s)
{
    typedef float pixel __attribute__((vector_size(16), aligned(4), may_alias));
    int top = s->box[0], left = s->box[1], height = s->box[2], width = s->box[3];
    int filter = s->filter, tall = taps_for(height, size, filter), wide = taps_for(width, size, filter);
    size_t area = (size_t)size * size, floats = (size_t)4 * width * (height + 1);
    float *source = malloc((floats + (size_t)size * (tall + wide)) * sizeof(float) +
                           2 * size * sizeof(int));
    if (!source)
        return 1;
    float *line = source + (size_t)4 * width * height, *vertical = source + floats;
    float *horizontal = vertical + size * tall;
    int *rows = (int *)(horizontal + size * wide), *columns = rows + size;
    axis(vertical, rows, tall, height, size, filter);
    axis(horizontal, columns, wide, width, size, filter);
    for (int y = 0; y < height; y++) { /* pixels of four numbers, the last of which is not used */
        const uint8_t *row = image + (top + y) * strides[2] + left * strides[3];
        float *to = source + (size_t)4 * width * y;
        for (int i = 0; i < width; i++, row += strides[3]) {
            to[4 * i] = row[0], to[4 * i + 1] = row[strides[1]], to[4 * i + 2] = row[2 * strides[1]];
            to[4 * i + 3] = 0.0f;
        }
    }
    for (int y = 0; y < size; y++) {
        const float *from = source + (size_t)4 * width * rows[y], *w = vertical + y * tall;
        for (int i = 0; i < 4 * width; i++)
            line[i] = w[0] * from[i];
        for (int k = 1; k < tall; k++)
            for (int i = 0; i < 4 * width; i++)
                line[i] += w[k] * from[(size_t)4 * width * k + i];
        for (int i = 0; i < size; i++) {
            const pixel *near = (const pixel *)(line + 4 * columns[i]);
            const float *v = horizontal + i * wide;
            pixel sum = v[0] * near[0];
            for (int k = 1; k < wide; k++)
                sum += v[k] * near[k];
            float *to = x + (size_t)y * size + (s->mirror ? size - 1 - i : i);
            for (int c = 0; c < 3; c++) {
                float level = nearbyintf(sum[c]);
                level = level < 0.0f ? 0.0f : level > 255.0f ? 255.0f : level;
                to[c * area] = level * (1.0f / 255);
            }
        }
    }
    free(source);
    return 0;
}

/* Resizing as PyTorch does it for 8 bits: columns, then rows, each as sums of pixels times
   weights of 16 bits, rounded to 8 bits. Two neighbours and their two weights are one product, so
   what is summed lies as pairs; and sums for sixteen rows, or columns, go on at a time:

       strips of rows, turned: [pairs of columns, 3, ROWS] -> sums over columns -> turned back:
       [pairs of rows, 3, columns] -> sums over rows

   All in integers: the result does not depend on the machine. */

#define ROWS 16
#define GROUP 4 /* pixels of a row that are turned at once: 12 of 16 bytes */

typedef uint8_t u8x16 __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint8_t u8x32 __attribute__((vector_size(32), aligned(1), may_alias));
typedef uint16_t u16x16 __attribute__((vector_size(32), may_alias));
typedef uint32_t u32x8 __attribute__((vector_size(32), may_alias));
typedef uint64_t u64x4 __attribute__((vector_size(32), may_alias));
typedef uint16_t u16x32 __attribute__((vector_size(64), may_alias));
typedef int32_t i32x16 __attribute__((vector_size(64), may_alias));

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#define JOIN(a, b)                                                                             \
    __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, \
                            18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (__typeof__(a)){__VA_ARGS__})
#define JOIN(a, b) ((union { u8x16 half[2]; u8x32 all; }){{a, b}}).all
#endif
/* of four pixels, the pairs: red of the first and second, green, blue, red of the third ... */
#define PAIRS(x)                                                                               \
    SHUFFLE(x, x, 0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11, 0, 0, 0, 0, 16, 19, 17, 20, 18, 21, 22, \
            25, 23, 26, 24, 27, 16, 16, 16, 16)
#define LOW16(a, b) SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 8, 24, 9, 25, 10, 26, 11, 27)
#define HIGH16(a, b) SHUFFLE(a, b, 4, 20, 5, 21, 6, 22, 7, 23, 12, 28, 13, 29, 14, 30, 15, 31)
#define LOW32(a, b) (u64x4) SHUFFLE((u32x8)a, (u32x8)b, 0, 8, 1, 9, 4, 12, 5, 13)
#define HIGH32(a, b) (u64x4) SHUFFLE((u32x8)a, (u32x8)b, 2, 10, 3, 11, 6, 14, 7, 15)
#define LOW64(a, b) (u8x32) SHUFFLE(a, b, 0, 4, 2, 6)
#define HIGH64(a, b) (u8x32) SHUFFLE(a, b, 1, 5, 3, 7)

/* Turn 8x8 pairs of bytes in each half of the vectors. */
static inline void turn(const u16x16 r[8], u8x32 out[8])
{
    u16x16 a[8];
    u64x4 b[8];
    for (int k = 0; k < 4; k++)
        a[2 * k] = LOW16(r[2 * k], r[2 * k + 1]), a[2 * k + 1] = HIGH16(r[2 * k], r[2 * k + 1]);
    for (int k = 0; k < 2; k++) {
        const u16x16 *from = a + 4 * k;
        b[4 * k] = LOW32(from[0], from[2]), b[4 * k + 1] = HIGH32(from[0], from[2]);
        b[4 * k + 2] = LOW32(from[1], from[3]), b[4 * k + 3] = HIGH32(from[1], from[3]);
    }
    for (int k = 0; k < 4; k++)
        out[2 * k] = LOW64(b[k], b[k + 4]), out[2 * k + 1] = HIGH64(b[k], b[k + 4]);
}

/* Sixteen sums, each and two products more: of a pair of bytes and the two weights in ``pair``. */
static inline i32x16 add_products(i32x16 sum, const uint8_t *pairs, int32_t pair)
{
#if defined(__AVX512BW__)
    __m512i pixels = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)pairs));
    return sum + (i32x16)_mm512_madd_epi16(pixels, _mm512_set1_epi32(pair));
#elif defined(__AVX2__)
    union { i32x16 all; __m256i half[2]; } x;
    for (int k = 0; k < 2; k++) {
        __m256i pixels = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)pairs + k));
        x.half[k] = _mm256_madd_epi16(pixels, _mm256_set1_epi32(pair));
    }
    return sum + x.all;
#else
    i32x16 two = (i32x16)__builtin_convertvector(*(const u8x32 *)pairs, u16x32);
    return sum + (two & 0xffff) * (int32_t)(int16_t)pair + (two >> 16) * (pair >> 16);
#endif
}

/* What such sums are in 8 bits. */
static inline i32x16 rounded(i32x16 sum, int precision)
{
    sum = (sum >> precision) & (sum > 0); /* comparisons are 0 or -1, that is all bits */
    i32x16 over = sum > 255;
    return (sum & ~over) | (over & 255);
}

/* The weights along one axis: of each result, the first pair of pixels and ``pairs`` of weights. */
struct axis {
    int pairs;
    int precision; /* bits of a weight after the point */
    int *first;
    int32_t *weights;
};

static int pairs_for(int length, int size, int filter)
{
    return taps_for(length, size, filter) / 2 + 1; /* the first pixel may be the second of a pair */
}

/* Source: ``_compute_index_ranges_int16_weights`` of PyTorch, with its order of operations: in
   doubles, then rounded with as many bits as the largest weight leaves room for.
   ``spare``: size * (taps + 2) numbers. */
static void set_axis(struct axis *a, double *spare, int length, int size, int filter, int mirror)
{
    double scale = (double)length / size, stretch = scale > 1.0 ? scale : 1.0;
    double reach = filter == BILINEAR ? stretch : 2.0 * stretch, inverse = 1.0 / stretch;
    double *total = spare, *centre = spare + size, *each = spare + 2 * size, most = 0.0;
    int taps = taps_for(length, size, filter);
    a->pairs = pairs_for(length, size, filter);
    for (int i = 0; i < size; i++) {
        centre[i] = scale * ((mirror ? size - 1 - i : i) + 0.5);
        double begin = centre[i] - reach + 0.5;
        a->first[i] = begin > 0.0 ? (int)begin : 0; /* a pixel, for now */
        total[i] = 0.0;
    }
    for (int k = 0; k < taps; k++)
        for (int i = 0; i < size; i++) {
            int pixel = a->first[i] + k, end = (int)(centre[i] + reach + 0.5);
            double w = weight((pixel - centre[i] + 0.5) * inverse, filter);
            w = pixel < (end < length ? end : length) ? w : 0.0;
            each[k * size + i] = w;
            total[i] += w;
        }
    for (int k = 0; k < taps; k++)
        for (int i = 0; i < size; i++) {
            double w = each[k * size + i] /= total[i];
            most = w > most ? w : most;
        }
    for (a->precision = 0; a->precision < 22; a->precision++)
        if ((int)(0.5 + most * (1 << (a->precision + 1))) >= 1 << 15)
            break;
    memset(a->weights, 0, (size_t)size * a->pairs * sizeof(int32_t));
    for (int i = 0; i < size; i++) {
        int odd = a->first[i] & 1;
        a->first[i] /= 2;
        for (int k = 0; k < taps; k++) {
            double w = each[k * size + i] * (1 << a->precision);
            uint32_t bits = (uint16_t)(int)(w < 0.0 ? w - 0.5 : w + 0.5);
            int32_t *pair = a->weights + (size_t)i * a->pairs + (k + odd) / 2;
            *pair |= (int32_t)(bits << (k + odd) % 2 * 16);
        }
    }
}

/* Where views are made, allocated once for all of a call. */
struct room {
    float *x;         /* [4, S, S]: the view in floats, and a plane to spare */
    float *line;      /* [3 S] */
    struct axis rows, columns;
    double *spare;
    uint8_t *strip;   /* [ROWS, W, 3], of images that are not interleaved */
    uint8_t *turned;  /* [pairs of columns, 3, ROWS, 2] */
    uint8_t *narrow;  /* [3, tiles of 16 results, 8, 2, ROWS] */
    uint8_t *mixed;   /* [pairs of rows, 3, padded S, 2] */
};

static size_t padded(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

/* The next ``bytes`` of memory, of which ``used`` are; nothing where there is none yet. */
static void *next(char *memory, size_t *used, size_t bytes)
{
    void *found = memory ? memory + *used : NULL;
    *used += padded(bytes, 64);
    return found;
}

/* Divide memory for crops of at most ``height`` x ``width``; how many bytes that takes. */
static size_t furnish(struct room *room, char *memory, int height, int width, int size)
{
    size_t used = 0, s = size, tiles = padded(size, 16);
    int tall = taps_for(height, size, BICUBIC), broad = taps_for(width, size, BICUBIC);
    int taps = tall > broad ? tall : broad, pairs = taps / 2 + 1;
    room->x = next(memory, &used, 4 * s * s * sizeof(float));
    room->line = next(memory, &used, 3 * s * sizeof(float));
    room->rows.first = next(memory, &used, s * sizeof(int));
    room->rows.weights = next(memory, &used, s * pairs * sizeof(int32_t));
    room->columns.first = next(memory, &used, s * sizeof(int));
    room->columns.weights = next(memory, &used, s * pairs * sizeof(int32_t));
    room->spare = next(memory, &used, s * (taps + 2) * sizeof(double));
    room->strip = next(memory, &used, (size_t)ROWS * 3 * width);
    room->turned = next(memory, &used, (padded(width, GROUP) / 2 + pairs) * 3 * 2 * ROWS);
    room->narrow = next(memory, &used, 3 * tiles * ROWS);
    room->mixed = next(memory, &used, (padded(height, ROWS) / 2 + pairs) * 3 * 2 * tiles);
    return used;
}

/* ROWS rows of a crop, interleaved, to ``turned``. */
static void turn_strip(uint8_t *turned, const uint8_t *const rows[ROWS], int width)
{
    int bytes = 3 * width;
    for (int at = 0; at < bytes; at += 3 * GROUP, turned += 3 * GROUP * ROWS) {
        u16x16 near[8];
        u8x32 out[8];
        for (int k = 0; k < 8; k++) {
            const uint8_t *upper = rows[k] + at, *lower = rows[k + 8] + at;
            uint8_t last[2][16] = {{0}};
            if (at + 16 > bytes) { /* read nothing beyond the row */
                memcpy(last[0], upper, bytes - at), memcpy(last[1], lower, bytes - at);
                upper = last[0], lower = last[1];
            }
            u8x32 both = JOIN(*(const u8x16 *)upper, *(const u8x16 *)lower);
            near[k] = (u16x16)PAIRS(both);
        }
        turn(near, out);
        memcpy(turned, out, 3 * GROUP * ROWS); /* six of the eight */
    }
}

/* One strip: sums over columns, then ROWS / 2 pairs of rows [3, padded size, 2] to ``mixed``. */
static void mix_columns(const struct room *room, uint8_t *mixed, int size)
{
    const struct axis *a = &room->columns;
    size_t tiles = padded(size, 16), plane = tiles * ROWS;
    for (int i = 0; i < size; i++) {
        const uint8_t *pairs = room->turned + (size_t)a->first[i] * 3 * 2 * ROWS;
        const int32_t *w = a->weights + (size_t)i * a->pairs;
        i32x16 r = {0}, g, b;
        r += 1 << (a->precision - 1);
        g = b = r;
        for (int k = 0; k < a->pairs; k++, pairs += 3 * 2 * ROWS) {
            r = add_products(r, pairs, w[k]);
            g = add_products(g, pairs + 2 * ROWS, w[k]);
            b = add_products(b, pairs + 4 * ROWS, w[k]);
        }
        /* columns i and i + 8 of a tile are neighbours: they turn together */
        uint8_t *to = room->narrow + i / 16 * 256 + i % 8 * 32 + i / 8 % 2 * 16;
        *(u8x16 *)to = __builtin_convertvector(rounded(r, a->precision), u8x16);
        *(u8x16 *)(to + plane) = __builtin_convertvector(rounded(g, a->precision), u8x16);
        *(u8x16 *)(to + 2 * plane) = __builtin_convertvector(rounded(b, a->precision), u8x16);
    }
    for (size_t at = 0; at < 3 * plane; at += 256, mixed += 32) {
        u16x16 near[8];
        u8x32 out[8];
        memcpy(near, room->narrow + at, sizeof near);
        turn(near, out);
        for (int k = 0; k < 8; k++)
            *(u8x32 *)(mixed + k * 3 * 2 * tiles) = out[k];
    }
}

/* Sums over rows: floats of 0 to 1, [3, size, size]. */
static void mix_rows(const struct room *room, int size)
{
    const struct axis *a = &room->rows;
    size_t line = 2 * padded(size, 16);
    for (int y = 0; y < size; y++)
        for (int c = 0; c < 3; c++) {
            const uint8_t *pairs = room->mixed + ((size_t)a->first[y] * 3 + c) * line;
            const int32_t *w = a->weights + (size_t)y * a->pairs;
            float *to = room->x + ((size_t)c * size + y) * size;
            for (int i = 0; i < size; i += 16) {
                i32x16 sum = {0};
                sum += 1 << (a->precision - 1);
                for (int k = 0; k < a->pairs; k++)
                    sum = add_products(sum, pairs + 2 * i + k * 3 * line, w[k]);
                lanes level = __builtin_convertvector(rounded(sum, a->precision), lanes);
                level *= 1.0f / 255;
                if (i + 16 <= size)
                    *(lanes *)(to + i) = level;
                else
                    memcpy(to + i, &level, (size - i) * sizeof(float));
            }
        }
}

/* Crop, resize with antialiasing and mirror, in integers. */
static void resize(struct room *room, const uint8_t *image, const int64_t strides[4], int size,
                   const struct sample *s)
{
    int top = s->box[0], left = s->box[1], height = s->box[2], width = s->box[3];
    int filter = s->filter, interleaved = strides[1] == 1 && strides[3] == 3;
    set_axis(&room->rows, room->spare, height, size, filter, 0);
    set_axis(&room->columns, room->spare, width, size, filter, s->mirror != 0.0f);
    const uint8_t *crop = image + top * strides[2] + left * strides[3];
    for (int y = 0; y < height; y += ROWS) {
        const uint8_t *rows[ROWS];
        for (int k = 0; k < ROWS; k++) {
            const uint8_t *row = crop + (y + k < height ? y + k : height - 1) * strides[2];
            uint8_t *copy = room->strip + (size_t)k * 3 * width;
            rows[k] = interleaved ? row : copy;
            for (int i = 0; i < width && !interleaved; i++, row += strides[3])
                for (int c = 0; c < 3; c++)
                    copy[3 * i + c] = row[c * strides[1]];
        }
        turn_strip(room->turned, rows, width);
        mix_columns(room, room->mixed + y / 2 * 3 * 2 * padded(size, 16), size);
    }
    mix_rows(room, size);
}

static void mean_color(const float *x, size_t area, float mean[3])
{
    for (int c = 0; c < 3; c++) {
        const float *plane = x + c * area;
        double total = 0.0;
        for (size_t start = 0; start < area; start += 4096) { /* short sums keep their digits */
            size_t stop = start + 4096 < area ? start + 4096 : area, i = start;
            lanes sums[4] = {{0}};
            for (; i + 4 * LANES <= stop; i += 4 * LANES)
                for (int k = 0; k < 4; k++)
                    sums[k] += *(const lanes *)(plane + i + k * LANES);
            lanes sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
            for (int k = 0; k < LANES; k++)
                total += sum[k];
            for (; i < stop; i++)
                total += plane[i];
        }
        mean[c] = (float)(total / area);
    }
}

static void affine(float *restrict x, size_t area, const struct step *s)
{
    float mean[3] = {0}, shift[3];
    if (s->needs_mean)
        mean_color(x, area, mean);
    for (int c = 0; c < 3; c++) {
        const float *m = s->of_mean + 3 * c;
        shift[c] = s->shift[c] + m[0] * mean[0] + m[1] * mean[1] + m[2] * mean[2];
    }
    const float *l = s->linear;
    for (size_t i = 0; i < area; i++) {
        float r = x[i], g = x[i + area], b = x[i + 2 * area], y[3];
        for (int c = 0; c < 3; c++) {
            y[c] = l[3 * c] * r + l[3 * c + 1] * g + l[3 * c + 2] * b + shift[c];
            y[c] = y[c] < s->low[c] ? s->low[c] : y[c];
            y[c] = y[c] > s->high[c] ? s->high[c] : y[c];
        }
        x[i] = y[0], x[i + area] = y[1], x[i + 2 * area] = y[2];
    }
}

static float clamp01(float x)
{
    x = x < 0.0f ? 0.0f : x;
    return x > 1.0f ? 1.0f : x;
}

/* ops.hue: between the hexcone and back, each channel is a piecewise linear wave of the hue. */
static void hue(float *restrict x, size_t area, float turns)
{
    for (size_t i = 0; i < area; i++) {
        float r = x[i], g = x[i + area], b = x[i + 2 * area];
        float high = r > g ? r : g, low = r < g ? r : g;
        high = high > b ? high : b;
        low = low < b ? low : b;
        float chroma = high - low;
        float sector = high > g ? r - g + 4.0f * chroma : b - r + 2.0f * chroma;
        sector = high > r ? sector : g - b;
        sector = sector / (chroma < 1e-12f ? 1e-12f : chroma) + 6.0f * turns;
        sector -= 6.0f * floorf(sector * (1.0f / 6.0f));
        x[i] = low + chroma * clamp01(fabsf(sector - 3.0f) - 1.0f);
        x[i + area] = low + chroma * clamp01(2.0f - fabsf(sector - 2.0f));
        x[i + 2 * area] = low + chroma * clamp01(2.0f - fabsf(sector - 4.0f));
    }
}

static int reflected(int i, int size)
{
    if (size == 1)
        return 0;
    while (i < 0 || i >= size)
        i = i < 0 ? -i : 2 * (size - 1) - i;
    return i;
}

/* One line of a blur: the weighted sum of 2 * radius + 1 lines, of which pairs weigh the same. */
static void mix(float *out, const float *const *lines, const float *taps, int radius, int size)
{
    int start = 0;
    while (size - start >= BLOCK) {
        lanes sum[BLOCK / LANES]; /* in registers */
        const lanes *middle = (const lanes *)(lines[radius] + start);
        for (int i = 0; i < BLOCK / LANES; i++)
            sum[i] = taps[0] * middle[i];
        for (int k = 1; k <= radius; k++) {
            const lanes *a = (const lanes *)(lines[radius - k] + start);
            const lanes *b = (const lanes *)(lines[radius + k] + start);
            for (int i = 0; i < BLOCK / LANES; i++)
                sum[i] += taps[k] * (a[i] + b[i]);
        }
        memcpy(out + start, sum, sizeof sum);
        start += BLOCK;
        if (start < size && size - start < BLOCK && size >= BLOCK)
            start = size - BLOCK; /* the last block overlaps the one before it */
    }
    for (; start < size; start++) {
        float sum = taps[0] * lines[radius][start];
        for (int k = 1; k <= radius; k++)
            sum += taps[k] * (lines[radius - k][start] + lines[radius + k][start]);
        out[start] = sum;
    }
}

/* Gaussian blur with 2 * radius + 1 taps and reflected borders, columns first. spare: [S, S]. */
static void blur(float *x, float *spare, float *line, int size, float sigma, int radius)
{
    float taps[radius + 1];
    const float *lines[2 * radius + 1];
    double weights[radius + 1], total = 0.0;
    for (int k = 0; k <= radius; k++) {
        weights[k] = exp(-0.5 * (k / (double)sigma) * (k / (double)sigma));
        total += k ? 2.0 * weights[k] : weights[k];
    }
    for (int k = 0; k <= radius; k++)
        taps[k] = (float)(weights[k] / total);
    for (int c = 0; c < 3; c++) {
        const float *plane = x + (size_t)c * size * size;
        for (int y = 0; y < size; y++) {
            for (int k = -radius; k <= radius; k++)
                lines[radius + k] = plane + (size_t)reflected(y + k, size) * size;
            mix(spare + (size_t)y * size, lines, taps, radius, size);
        }
        for (int k = 0; k <= 2 * radius; k++)
            lines[k] = line + k;
        for (int y = 0; y < size; y++) {
            const float *row = spare + (size_t)y * size;
            memcpy(line + radius, row, size * sizeof(float));
            for (int k = 1; k <= radius; k++) {
                line[radius - k] = row[reflected(-k, size)];
                line[radius + size - 1 + k] = row[reflected(size - 1 + k, size)];
            }
            mix(x + ((size_t)c * size + y) * size, lines, taps, radius, size);
        }
    }
}

/* Make ``count`` views. ``pixels`` have strides in bytes of a sample, channel, row and column;
   ``out`` is float32 [count, 3, size, size]. Returns 0, or 1 where there is no memory. */
int make_views(int count, int size, const uint8_t *pixels, const int64_t strides[4],
               const struct sample *samples, float *out)
{
    struct room room;
    int height = 1, width = 1;
    for (int n = 0; n < count; n++) {
        const float *box = samples[n].box;
        height = box[2] > height ? (int)box[2] : height;
        width = box[3] > width ? (int)box[3] : width;
    }
    char *memory = calloc(furnish(&room, NULL, height, width, size), 1);
    if (!memory)
        return 1;
    furnish(&room, memory, height, width, size);
    int failed = 0;
    size_t area = (size_t)size * size;
    float *x = room.x, *spare = x + 3 * area;
    for (int n = 0; n < count && !failed; n++) {
        const struct sample *s = samples + n;
        const uint8_t *image = pixels + n * strides[0];
        if (s->dense)
            failed = resize_small(x, image, strides, size, s);
        else
            resize(&room, image, strides, size, s);
        for (int k = 0; k < 5; k++) {
            if (s->steps[k].kind == AFFINE)
                affine(x, area, &s->steps[k]);
            else if (s->steps[k].kind == HUE)
                hue(x, area, s->steps[k].turns);
        }
        if (s->radius > 0.0f)
            blur(x, spare, room.line, size, s->sigma, s->radius < size ? (int)s->radius : size);
        for (int c = 0; c < 3; c++) {
            float mean = s->mean[c], scale = s->scale[c];
            float threshold = s->solarize ? s->threshold[c] : INFINITY, ends = s->ends[c];
            const float *plane = x + c * area;
            float *result = out + (n * (size_t)3 + c) * area;
            for (size_t i = 0; i < area; i++) {
                float v = plane[i];
                v = v >= threshold ? ends - v : v;
                result[i] = (v - mean) * scale;
            }
        }
    }
    free(memory);
    return failed;
}
