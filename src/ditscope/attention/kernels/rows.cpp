// Sums over the keys of an attention call, for each query, in one pass over scores that never leave
// the cache.
//
// A block of queries of one head meets all keys. Its scores s have the queries side by side, so that
// every sum over keys is a sum of vectors. Of each query: the largest score m and, with
// w_j = exp(scale (s_j - m)), the sums of w, of w log2 w, of w^2, and of w times places and distances
// on the grid. When sum w is known, w / sum w is added to what each key receives. A task is a fixed
// number of queries of one head: the numbers do not depend on how many threads there are.
//
// Shapes: T rows times heads, N queries, M keys, K head width, I image keys, c tasks of a head.
//
// Compiled on the machine it runs on, by ditscope.attention.kernels.compiler; plain C at its edge.

#include "scores.h"

#include <limits>
#include <omp.h>
#include <optional>

namespace {

enum Quantity { LARGEST, W, W_LOG_W, W_SQUARE, IMAGE, SQUARE, DISTANCE, FRAME, ROW, COLUMN, QUANTITIES };

constexpr int64_t FEW = 64;  // keys that are summed before their sum is added: less is rounded away
constexpr float LEAST = -126;  // exponent of the smallest float that is not denormal

typedef int32_t Integers __attribute__((vector_size(LANES * 4)));

int64_t tasks_of_a_head(const Request& r) { return (r.queries + r.chunk - 1) / r.chunk; }

// How the memory of one thread is divided.
struct Spaces {
    int64_t size = 0;  // floats, a multiple of a cache line
    float *scores, *spare, *received;
    uint32_t *queries, *keys;
    Spaces(const Request& r, float* from) {
        const auto part = [&](int64_t count) {
            float* start = from + size;
            size += (count + 15) / 16 * 16;
            return start;
        };
        scores = part(padded_keys(r) * BLOCK);
        spare = part(r.axes && r.image_count < r.keys ? r.image_count * BLOCK : 0);
        received = part(r.wants_received ? r.keys * LANES : 0);
        queries = reinterpret_cast<uint32_t*>(part(words_of(r) * BLOCK));
        keys = reinterpret_cast<uint32_t*>(part(r.bfloat16 ? padded_keys(r) * words_of(r) : 0));
    }
};

Vector root(Vector of) {
    for (int64_t i = 0; i < LANES; i++) of[i] = __builtin_sqrtf(of[i]);
    return of;
}

// 2^u for u <= 0, to 1e-7 of itself, 0 where that is no normal number; NaN stays NaN.
inline Vector power_of_two(Vector u) {
#if defined(__AVX512F__)
    const __m512 whole = _mm512_roundscale_ps((__m512)u, 0);
    const Vector f = u - (Vector)whole;
#else
    const auto lost = u < LEAST;
    u = lost ? all(LEAST) : u;
    const Vector magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const Vector shifted = u + magic, f = u - (shifted - magic);
#endif
    Vector p = all(1.326472037e-3f);  // the polynomial of least relative error on [-0.5, 0.5], 9e-8
    p = p * f + 9.671513022e-3f;
    p = p * f + 5.550733778e-2f;
    p = p * f + 2.402224208e-1f;
    p = p * f + 6.931469776e-1f;
    p = p * f + 1.0f;
#if defined(__AVX512F__)
    return (Vector)_mm512_scalef_ps((__m512)p, whole);
#else
    Integers exponent;
    std::memcpy(&exponent, &shifted, sizeof exponent);
    exponent = (exponent << 23) + 0x3f800000;
    Vector power;
    std::memcpy(&power, &exponent, sizeof power);
    return lost ? all(0) : p * power;
#endif
}

inline Vector largest_of(const float* scores, int64_t keys) {
    Vector largest = all(-std::numeric_limits<float>::infinity());
    for (int64_t j = 0; j < keys; j++) {
        const Vector s = load(scores + j * BLOCK);
        largest = s > largest ? s : largest;
    }
    return largest;
}

struct Sums {
    Vector w = {}, w_log_w = {}, w_square = {};
};

// Puts w_j = exp(scale (s_j - largest)) in the place of the scores; their sums.
template <bool SQUARE>
Sums exponentiate(float* scores, int64_t keys, Vector largest, float scale) {
    // With one rounding for s_j * factor - shift. What is lost in the shift is the same for all keys,
    // and known: the largest weight is not 1 but 2^excess.
    const float factor = scale * 1.44269504f;
    const Vector shift = largest * factor, excess = largest * factor - shift;
    Sums sums;
    for (int64_t first = 0; first < keys; first += FEW) {
        Sums few;
        for (int64_t j = first; j < std::min(keys, first + FEW); j++) {
            const Vector u = load(scores + j * BLOCK) * factor - shift, w = power_of_two(u);
            store(scores + j * BLOCK, w);
            few.w += w;
            few.w_log_w += w * u;
            if (SQUARE) few.w_square += w * w;
        }
        sums.w += few.w;
        sums.w_log_w += few.w_log_w;
        sums.w_square += few.w_square;
    }
    const Vector one = power_of_two(excess);
    return {sums.w / one, (sums.w_log_w - excess * sums.w) / one, sums.w_square / (one * one)};
}

struct Places {
    Vector w = {}, square = {}, distance = {}, frame = {}, row = {}, column = {};
};

// Sums of the weights of image keys and of what lies between them and the queries at `places`.
template <bool FRAMES, bool CENTRE, bool ROOT>
Places between(const float* weights, const float* keys, int64_t count, const Vector* places) {
    Places sums;
    for (int64_t first = 0; first < count; first += FEW) {
        Places few;
        for (int64_t j = first; j < std::min(count, first + FEW); j++) {
            const Vector w = load(weights + j * BLOCK);
            const Vector down = keys[count + j] - places[1], right = keys[2 * count + j] - places[2];
            Vector square = down * down + right * right;
            if (FRAMES) {
                const Vector later = keys[j] - places[0];
                square += later * later;
                if (CENTRE) few.frame += w * later;
            }
            if (CENTRE) {
                few.row += w * down;
                few.column += w * right;
            }
            few.w += w;
            few.square += w * square;
            if (ROOT) few.distance += w * root(square);
        }
        sums.w += few.w;
        sums.square += few.square;
        if (ROOT) sums.distance += few.distance;
        if (CENTRE) {
            sums.frame += few.frame;
            sums.row += few.row;
            sums.column += few.column;
        }
    }
    return sums;
}

Places between(const Request& r, const float* weights, const Vector* places) {
    using Function = Places (*)(const float*, const float*, int64_t, const Vector*);
    static constexpr Function variants[2][2][2] = {
        {{between<false, false, false>, between<false, false, true>},
         {between<false, true, false>, between<false, true, true>}},
        {{between<true, false, false>, between<true, false, true>},
         {between<true, true, false>, between<true, true, true>}}};
    const Function function = variants[r.axes == 3][r.wants_centre != 0][r.wants_distance != 0];
    return function(weights, r.key_places, r.image_count, places);
}

// Whether the image keys of some query lie so far below its largest score that their weights are lost.
bool far_below(Vector image, Vector largest, float scale) {
    for (int64_t i = 0; i < LANES; i++)
        if ((largest[i] - image[i]) * scale > 40) return true;
    return false;
}

// Reduces the scores (M, BLOCK) of as many queries as a vector has lanes, `count` of them real.
// `spare` is as large as the scores.
void reduce(const Request& r, float* scores, float* spare, int64_t token, int64_t count, float* found,
            float* received) {
    const int64_t apart = r.tasks / tasks_of_a_head(r) * r.queries;
    const auto keep = [&](Quantity quantity, Vector value) {
        std::memcpy(found + quantity * apart, &value, count * 4);
    };
    const Vector largest = largest_of(scores, r.keys);
    float* image = scores + r.image_start * BLOCK;
    if (r.axes && r.image_count < r.keys) {
        const Vector there = largest_of(image, r.image_count);
        if (far_below(there, largest, r.scale)) {
            std::memcpy(spare, image, r.image_count * BLOCK * 4);
            exponentiate<false>(spare, r.image_count, there, r.scale);
            image = spare;
        }
    }
    const auto function = r.wants_square ? exponentiate<true> : exponentiate<false>;
    const Sums sums = function(scores, r.keys, largest, r.scale);
    keep(LARGEST, largest * r.scale);
    keep(W, sums.w);
    keep(W_LOG_W, sums.w_log_w);
    if (r.wants_square) keep(W_SQUARE, sums.w_square);
    if (received) {
        Vector share = 1 / sums.w;
        for (int64_t i = count; i < LANES; i++) share[i] = 0;
        for (int64_t j = 0; j < r.keys; j++)
            store(received + j * LANES, load(received + j * LANES) + load(scores + j * BLOCK) * share);
    }
    if (!r.axes) return;
    Vector places[3] = {};
    for (int64_t axis = 0; axis < 3; axis++)
        std::memcpy(&places[axis], r.query_places + axis * r.queries + token, count * 4);
    const Places seen = between(r, image, places);
    keep(IMAGE, seen.w);
    keep(SQUARE, seen.square);
    if (r.wants_distance) keep(DISTANCE, seen.distance);
    if (r.wants_centre) {
        keep(FRAME, seen.frame);
        keep(ROW, seen.row);
        keep(COLUMN, seen.column);
    }
}

// All queries of one task.
void run(const Request& r, int64_t task, float* workspace) {
    const int64_t t = task / tasks_of_a_head(r), part = task % tasks_of_a_head(r);
    const int64_t element = r.bfloat16 ? 2 : 4, row = t / r.heads, head = t % r.heads;
    const char* q = static_cast<const char*>(r.q) + (row * r.q_stride[0] + head * r.q_stride[1]) * element;
    const char* k = static_cast<const char*>(r.k) + (row * r.k_stride[0] + head * r.k_stride[1]) * element;
    const Spaces spaces(r, workspace);
    float* received = r.wants_received ? spaces.received : nullptr;
    if (received) std::memset(received, 0, r.keys * LANES * 4);
#if HAS_AMX
    std::optional<Tiles> tiles;
    if (r.bfloat16) {
        tiles.emplace();
        pack_keys(r, reinterpret_cast<const uint16_t*>(k), spaces.keys);
    }
#endif
    const int64_t end = std::min((part + 1) * r.chunk, r.queries);
    for (int64_t first = part * r.chunk; first < end; first += BLOCK) {
        pack_queries(r, q + first * r.q_stride[2] * element, std::min(end - first, BLOCK), spaces.queries);
        if (!r.bfloat16)
            scores_float32(r, reinterpret_cast<const float*>(k),
                           reinterpret_cast<const float*>(spaces.queries), spaces.scores);
#if HAS_AMX
        else
            scores_bfloat16(r, spaces.keys, spaces.queries, spaces.scores);
#endif
        for (int64_t token = first; token < std::min(end, first + BLOCK); token += LANES)
            reduce(r, spaces.scores + token - first, spaces.spare, token, std::min(end - token, LANES),
                   r.found + t * r.queries + token, received);
    }
    for (int64_t j = 0; received && j < r.keys; j++) {
        float sum = 0;
        for (int64_t i = 0; i < LANES; i++) sum += received[j * LANES + i];
        r.received[task * r.keys + j] = sum;
    }
}

}  // namespace

extern "C" {

// Whether operands in bfloat16 are understood: asks Linux for the use of AMX tiles.
int32_t ditscope_reads_bfloat16() {
#if HAS_AMX
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
    return 0;
#endif
}

// How many floats each thread needs.
int64_t ditscope_workspace(const Request* r) { return Spaces(*r, nullptr).size; }

void ditscope_rows(const Request* r) {
#pragma omp parallel for schedule(dynamic) num_threads(r->threads)
    for (int64_t task = 0; task < r->tasks; task++)
        run(*r, task, r->workspace + omp_get_thread_num() * r->workspace_stride);
}

}  // extern "C"
