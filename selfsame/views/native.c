/* A view of one image at a time, without leaving the cache:

       crop, resize and mirror (of small images) -> colours -> blur -> solarise -> normalise

   The same as resample.py and ops.py, which are the reference; native.py compiles and calls this.
   Images have three channels, views are square. A sample's result depends on nothing but its own
   arguments.
*/

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 64  /* pixels of a row that a blur keeps in registers */
#define LANES 16

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

enum kind { NOTHING, AFFINE, HUE };
enum filter { DONE, BILINEAR, BICUBIC };

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
    float filter;  /* DONE: the pixels are those of the view already */
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

static void load(float *x, const uint8_t *image, const int64_t strides[4], int size)
{
    size_t area = (size_t)size * size;
    for (int y = 0; y < size; y++) {
        const uint8_t *row = image + y * strides[2];
        float *r = x + (size_t)y * size, *g = r + area, *b = g + area;
        if (strides[1] == 1 && strides[3] == 3) { /* interleaved, the usual case */
            for (int i = 0; i < size; i++)
                r[i] = row[3 * i] * (1.0f / 255), g[i] = row[3 * i + 1] * (1.0f / 255),
                b[i] = row[3 * i + 2] * (1.0f / 255);
        } else {
            for (int c = 0; c < 3; c++)
                for (int i = 0; i < size; i++)
                    r[c * area + i] = row[c * strides[1] + i * strides[3]] * (1.0f / 255);
        }
    }
}

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

/* Crop, resize with antialiasing, mirror and round to 8 bits. Returns 1 where memory lacks. */
static int resize(float *x, const uint8_t *image, const int64_t strides[4], int size,
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
    size_t area = (size_t)size * size;
    float *x = malloc((4 * area + 3 * size) * sizeof(float));
    if (!x)
        return 1;
    float *spare = x + 3 * area, *line = x + 4 * area;
    for (int n = 0; n < count; n++) {
        const struct sample *s = samples + n;
        const uint8_t *image = pixels + n * strides[0];
        if (s->filter == DONE)
            load(x, image, strides, size);
        else if (resize(x, image, strides, size, s)) {
            free(x);
            return 1;
        }
        for (int k = 0; k < 5; k++) {
            if (s->steps[k].kind == AFFINE)
                affine(x, area, &s->steps[k]);
            else if (s->steps[k].kind == HUE)
                hue(x, area, s->steps[k].turns);
        }
        if (s->radius > 0.0f)
            blur(x, spare, line, size, s->sigma, s->radius < size ? (int)s->radius : size);
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
    free(x);
    return 0;
}
