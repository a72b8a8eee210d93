// Scores of a block of queries and all keys of one head, with the queries side by side, in float32: by
// AMX where operands are bfloat16 and the processor has it, else by vectors.
//
// Shapes: T rows times heads, N queries, M keys, K head width, I image keys, c tasks of a head.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512F__) && defined(__linux__)
#define HAS_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#else
#define HAS_AMX 0
#endif

extern "C" {

// The fields of ditscope.attention.kernels.cpu.Request, in its order.
struct Request {
    const void *q, *k;  // the elements of a token are neighbours; strides count elements
    int64_t q_stride[3], k_stride[3];  // of row, head and token
    int64_t heads, tasks, chunk, queries, keys, width, threads, workspace_stride;
    float scale;  // positive
    int32_t bfloat16;  // else float32
    int64_t image_start, image_count, axes;  // image keys; axes: 3 of a video, else 2; 0: no grid
    const float* key_places;  // (3, I): frame, grid row, grid column
    const float* query_places;  // (3, N), NaN where a query is no image token
    int32_t wants_square, wants_centre, wants_distance, wants_received;
    float* workspace;  // (threads, workspace_stride)
    float* found;  // (QUANTITIES, T, N)
    float* received;  // (T, c, M)
};

}  // extern "C"

namespace {

constexpr int64_t BLOCK = 32;  // queries that meet the keys together
constexpr int64_t TILE = 32;  // keys that are multiplied together

#if defined(__AVX512F__)
constexpr int64_t LANES = 16, KEYS = 8;
#elif defined(__AVX__)
constexpr int64_t LANES = 8, KEYS = 2;
#else
constexpr int64_t LANES = 4, KEYS = 2;
#endif
constexpr int64_t VECTORS = BLOCK / LANES;
typedef float Vector __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

Vector all(float value) { return Vector{} + value; }

// Not by memcpy: tuned for some processors, gcc makes two halves of it that pass through memory.
Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }

void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }

// 32-bit words that a token takes once packed: two bfloat16, filled up to whole tiles, or a float32.
int64_t words_of(const Request& r) {
    return r.bfloat16 ? (r.width + 31) / 32 * 16 : r.width;
}

int64_t padded_keys(const Request& r) { return (r.keys + TILE - 1) / TILE * TILE; }

#if HAS_AMX
// 16 tokens of 16 words each, the words beyond `count` zero -> 16 words of 16 tokens each.
void transpose(const char* from, int64_t bytes, int64_t count, uint32_t* to) {
    const __mmask16 some = count < 16 ? (1u << count) - 1 : 0xffff;
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = _mm512_maskz_loadu_epi32(some, from + i * bytes);
    for (int i = 0; i < 8; i++) {
        b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        a[4 * i] = _mm512_unpacklo_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 1] = _mm512_unpackhi_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 2] = _mm512_unpacklo_epi64(b[4 * i + 1], b[4 * i + 3]);
        a[4 * i + 3] = _mm512_unpackhi_epi64(b[4 * i + 1], b[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
        b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
        b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
        b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        _mm512_storeu_si512(to + i * BLOCK, _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88));
        _mm512_storeu_si512(to + (4 + i) * BLOCK, _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88));
        _mm512_storeu_si512(to + (8 + i) * BLOCK, _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd));
        _mm512_storeu_si512(to + (12 + i) * BLOCK, _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xdd));
    }
}
#endif

// Queries (count, K) -> (words, BLOCK); missing queries are zeros, so are missing elements.
void pack_queries(const Request& r, const char* q, int64_t count, uint32_t* packed) {
    const int64_t element = r.bfloat16 ? 2 : 4, words = words_of(r);
    const int64_t stride = r.q_stride[2] * element, bytes = r.width * element;
#if HAS_AMX
    if (count == BLOCK && bytes % 4 == 0) {
        uint32_t rest[16 * BLOCK];
        for (int64_t word = 0; word < words; word += 16) {
            const bool whole = words - word >= 16;
            uint32_t* to = whole ? packed + word * BLOCK : rest;
            for (int64_t half = 0; half < BLOCK; half += 16)
                transpose(q + half * stride + word * 4, stride, bytes / 4 - word, to + half);
            if (!whole) std::memcpy(packed + word * BLOCK, rest, (words - word) * BLOCK * 4);
        }
        return;
    }
#endif
    std::memset(packed, 0, words * BLOCK * 4);
    for (int64_t query = 0; query < count; query++)
        for (int64_t at = 0; at < bytes; at += 4)
            std::memcpy(packed + at / 4 * BLOCK + query, q + query * stride + at,
                        bytes - at < 4 ? bytes - at : 4);
}

// Scores (M, BLOCK), not yet scaled, of keys and packed queries in float32.
void scores_float32(const Request& r, const float* k, const float* packed, float* scores) {
    for (int64_t first = 0; first < r.keys; first += KEYS) {
        const float* keys[KEYS];  // the last one again where there are no more
        for (int64_t i = 0; i < KEYS; i++)
            keys[i] = k + (first + i < r.keys ? first + i : r.keys - 1) * r.k_stride[2];
        Vector sums[KEYS][VECTORS] = {};
        for (int64_t i = 0; i < r.width; i++)
            for (int64_t key = 0; key < KEYS; key++)
                for (int64_t v = 0; v < VECTORS; v++)
                    sums[key][v] += keys[key][i] * load(packed + i * BLOCK + v * LANES);
        for (int64_t key = 0; key < KEYS; key++)
            for (int64_t v = 0; v < VECTORS; v++)
                store(scores + (first + key) * BLOCK + v * LANES, sums[key][v]);
    }
}

#if HAS_AMX
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Leaves the tiles as another library configured them, which may rely on that.
struct Tiles {
    TileConfig before;
    Tiles() {
        const TileConfig ours;
        _tile_storeconfig(&before);
        _tile_loadconfig(&ours);
    }
    ~Tiles() { _tile_loadconfig(&before); }
};

// Keys (M, K) of bfloat16 -> (padded, words), filled up with zeros.
void pack_keys(const Request& r, const uint16_t* k, uint32_t* packed) {
    const int64_t words = words_of(r);
    for (int64_t key = 0; key < padded_keys(r); key++) {
        char* to = reinterpret_cast<char*>(packed + key * words);
        const int64_t bytes = key < r.keys ? r.width * 2 : 0;
        std::memcpy(to, k + key * r.k_stride[2], bytes);
        std::memset(to + bytes, 0, words * 4 - bytes);
    }
}

void scores_bfloat16(const Request& r, const uint32_t* keys, const uint32_t* queries, float* scores) {
    const int64_t words = words_of(r);
    for (int64_t key = 0; key < r.keys; key += TILE) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t word = 0; word < words; word += 16) {
            _tile_loadd(4, keys + key * words + word, words * 4);
            _tile_loadd(5, keys + (key + 16) * words + word, words * 4);
            _tile_loadd(6, queries + word * BLOCK, BLOCK * 4);
            _tile_loadd(7, queries + word * BLOCK + 16, BLOCK * 4);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        float* to = scores + key * BLOCK;
        _tile_stored(0, to, BLOCK * 4);
        _tile_stored(1, to + 16, BLOCK * 4);
        _tile_stored(2, to + 16 * BLOCK, BLOCK * 4);
        _tile_stored(3, to + 16 * BLOCK + 16, BLOCK * 4);
    }
}
#endif

}  // namespace
