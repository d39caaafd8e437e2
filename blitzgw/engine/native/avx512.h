// The unit of CPUs with AVX-512 BF16 but no tiles (unit.h): a lane is a pair of k.
//
// VDPBF16PS multiplies 16 pairs of two operands and adds each pair's products to a lane of sums. So
// rows of W and K meet rows of x and q as both lie in memory, four of each at a time, and each of
// their 16 sums is added up across its lanes at the end, always in the same order. P · V is the
// other way round: a lane is a dimension, and pairs of positions follow each other.
#pragma once

#include <type_traits>

#include "scratch.h"

inline int init_unit() { return 0; }
inline void begin_unit() {}
inline void end_unit() {}

// Where a row's 32 values of a step are: four rows together, so that what is used together lies
// together.
inline uint32_t* packed_row(uint32_t* group, int row, int step, int steps) {
    return group + (size_t(row / 4 * steps + step) * 4 + row % 4) * TILE;
}

// Rows stay rows.
inline void pack_tile(const bf16* const rows[16], uint32_t* group, int step, int steps) {
    for (int i = 0; i < TILE; i++)
        _mm512_store_si512(packed_row(group, i, step, steps),
                           rows[i] ? _mm512_loadu_si512(rows[i]) : _mm512_setzero_si512());
}

inline int query_row(int i, int first) { return i - first; }

inline void store_packed(const __m512 y[TILE], uint32_t* group, int step, int steps, int half) {
    __m512i r[TILE];
    for (int i = 0; i < TILE; i++) r[i] = _mm512_castps_si512(y[i]);
    transpose(r);
    for (int t = 0; t < TILE; t++)
        store_bf16(reinterpret_cast<bf16*>(packed_row(group, t, step, steps)) + half * TILE,
                   _mm512_castsi512_ps(r[t]));
}

inline __m512bh load_pairs(const void* p) { return (__m512bh)_mm512_loadu_si512(p); }

// Add 16 registers up across their lanes; the sum of r[4 i + j] gets lane 4 i + j.
inline __m512 sum_lanes(__m512 r[4][4]) {
    __m512 fours[4];  // four lanes of each sum in a row, its other parts in the next 128 bits
    for (int i = 0; i < 4; i++) {
        const __m512 low = _mm512_add_ps(_mm512_unpacklo_ps(r[i][0], r[i][1]),
                                         _mm512_unpackhi_ps(r[i][0], r[i][1]));
        const __m512 high = _mm512_add_ps(_mm512_unpacklo_ps(r[i][2], r[i][3]),
                                          _mm512_unpackhi_ps(r[i][2], r[i][3]));
        const __m512d a = _mm512_castps_pd(low), b = _mm512_castps_pd(high);
        fours[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                                 _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    __m512 halves[2];
    for (int i = 0; i < 2; i++)
        halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0x88),
                                  _mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88),
                         _mm512_shuffle_f32x4(halves[0], halves[1], 0xdd));
}

struct Lines {  // to ask for: so many at each step
    const char *next, *end;
    int each;
};

// Products of four rows at `a` with `count` of four packed rows: lane 4 i + j is row i times row j.
// Asks ahead along the way, in equal parts.
template <int count>
inline __m512 products(const bf16* a, size_t stride, const uint32_t* packed, int steps,
                       Lines ahead) {
    __m512 sums[4][4];
    for (auto& row : sums)
        for (__m512& sum : row) sum = _mm512_setzero_ps();
    for (int step = 0; step < steps; step++) {
        __m512bh rows[4];
        for (int i = 0; i < 4; i++) rows[i] = load_pairs(a + i * stride + step * TILE_K);
        for (int j = 0; j < count; j++) {
            const __m512bh other = load_pairs(packed + (step * 4 + j) * TILE);
            for (int i = 0; i < 4; i++) sums[i][j] = _mm512_dpbf16_ps(sums[i][j], rows[i], other);
        }
        // here, and in no function of its own: compilers drop a call that only prefetches
        for (int i = 0; i < ahead.each && ahead.next < ahead.end; i++, ahead.next += LINE)
            _mm_prefetch(ahead.next, _MM_HINT_T1);
    }
    return sum_lanes(sums);
}

// Call with a count of 1 to 4 that is known when this is compiled.
template <class Call>
inline void with_count(int count, Call call) {
    if (count >= 4) call(std::integral_constant<int, 4>());
    else if (count == 3) call(std::integral_constant<int, 3>());
    else if (count == 2) call(std::integral_constant<int, 2>());
    else call(std::integral_constant<int, 1>());
}

constexpr int DEPTH = 1 << 20;  // sums across lanes are for the end

inline void multiply(const bf16* w0, const bf16* w1, int k, int, int steps, const uint32_t* packed,
                     int tokens, const bf16* next0, const bf16* next1, Sums sums) {
    const int fours = (tokens + 3) / 4, lines = 4 * steps;  // as many lines come as are used
    for (int four = 0; four < fours; four++)
        for (int row = 0; row < 2 * TILE; row += 4) {
            const int within = row % TILE, at = four % 4 * 4;
            const size_t offset = size_t(within) * k;
            Lines ahead{};
            if (next0) {
                const bf16* next = (row < TILE ? next0 : next1) + offset;
                const char* base = reinterpret_cast<const char*>(next);
                ahead = {base + lines * four / fours * LINE, base + lines * (four + 1) / fours * LINE,
                         (4 + fours - 1) / fours};
            }
            with_count(tokens - 4 * four, [&](auto count) {
                const __m512 all = products<count>((row < TILE ? w0 : w1) + offset, k,
                                                   packed + size_t(four) * lines * TILE, steps, ahead);
                float(*out)[TILE] = sums[row / TILE][four / 4] + within;
                _mm_store_ps(out[0] + at, _mm512_extractf32x4_ps(all, 0));
                _mm_store_ps(out[1] + at, _mm512_extractf32x4_ps(all, 1));
                _mm_store_ps(out[2] + at, _mm512_extractf32x4_ps(all, 2));
                _mm_store_ps(out[3] + at, _mm512_extractf32x4_ps(all, 3));
            });
        }
}

inline void score(const Heads& heads, int first, int stop, int dim, Stream& ahead,
                  AttentionScratch& s) {
    const int steps = dim / TILE_K;
    for (int pos = first; pos < stop; pos += 4)
        for (int h = 0; h < heads.count; h++) {
            const bf16* rows = heads.k + h * heads.stride + size_t(pos) * dim;
            const uint32_t* four = s.queries[h * steps];
            for (int q = s.rows[h]; q < s.rows[h + 1]; q += 4, four += 4 * steps * TILE) {
                const int left = s.rows[h + 1] - q;
                const __mmask8 own = left >= 4 ? 15 : (1 << left) - 1;
                with_count(left, [&](auto count) {
                    const __m512 all = products<count>(rows, dim, four, steps, Lines{});
                    float(*out)[TILE] = s.scores + pos - first;
                    _mm_mask_storeu_ps(out[0] + q, own, _mm512_extractf32x4_ps(all, 0));
                    _mm_mask_storeu_ps(out[1] + q, own, _mm512_extractf32x4_ps(all, 1));
                    _mm_mask_storeu_ps(out[2] + q, own, _mm512_extractf32x4_ps(all, 2));
                    _mm_mask_storeu_ps(out[3] + q, own, _mm512_extractf32x4_ps(all, 3));
                });
            }
            ahead.pull(4 * dim / LINE);
        }
}

// Rows [q, q + count) of O, with 32 positions.
template <int count, int tiles>
inline void accumulate_rows(const bf16 (*probabilities)[TILE_K], const uint32_t (*values)[256], int q,
                            float (*out)[TILE][TILE]) {
    __m512 sums[count][tiles];
    for (int i = 0; i < count; i++)
        for (int t = 0; t < tiles; t++) sums[i][t] = _mm512_load_ps(out[t][q + i]);
    for (int pair = 0; pair < TILE; pair++)
        for (int i = 0; i < count; i++) {
            int32_t both;
            memcpy(&both, probabilities[q + i] + 2 * pair, sizeof(both));
            const __m512bh p = (__m512bh)_mm512_set1_epi32(both);
            for (int t = 0; t < tiles; t++)
                sums[i][t] = _mm512_dpbf16_ps(sums[i][t], p, load_pairs(values[t] + pair * TILE));
        }
    for (int i = 0; i < count; i++)
        for (int t = 0; t < tiles; t++) _mm512_store_ps(out[t][q + i], sums[i][t]);
}

template <int tiles>
inline void accumulate(const bf16* v, int first, int stop, int dim, int d, int from, int to,
                       float (*out)[TILE][TILE], Stream& ahead, AttentionScratch& s) {
    for (int pos = first; pos < stop; pos += TILE_K) {
        pack_value_tiles<tiles>(v, pos, stop, dim, d, ahead, s.values[0]);
        for (int q = from; q < to; q += 4)
            with_count(to - q, [&](auto count) {
                accumulate_rows<count, tiles>(s.probabilities[(pos - first) / TILE_K], s.values[0],
                                              q, out);
            });
    }
}
