// Attention of up to 16 queries of one sequence that share a kv head, over contiguous positions.
//
// Flash attention (Dao et al. 2022) in blocks of 128 positions aligned to multiples of 128, so that
// a token's result is the same whether it comes alone or in a chunk. Per block:
//   Sᵀ [pos, query] = K · Qᵀ     K's rows are tile A as they lie, Q is packed once
//   online softmax down the columns: a lane is a query, nothing is summed across lanes
//   O [query, dim] += P · V      P transposed in registers; rows of V interleaved in pairs
// Positions that a query may not see have P exactly 0.
#pragma once

#include <algorithm>
#include <cmath>

#include "tiles.h"

constexpr int BLOCK = 128;     // positions between two rescalings of O
constexpr int MAX_DIM = 256;   // head dimension

struct Query {
    const bf16* q;    // [head_dim]
    bf16* out;        // [head_dim]
    int position;     // attends to (position − window, position]
};

struct alignas(64) AttentionScratch {
    uint32_t queries[MAX_DIM / TILE_K][256];
    float scores[BLOCK][TILE];
    bf16 probabilities[BLOCK / TILE_K][TILE][TILE_K];
    uint32_t values[MAX_DIM / TILE][256];
    float out[MAX_DIM / TILE][TILE][TILE];
};

// Interleave rows [first, first + 32) of V into B's order, 16 dimensions a tile; rows from `stop`
// on are zeros (memory there may hold anything).
inline void pack_values(const bf16* v, int first, int stop, int dim, uint32_t values[][256]) {
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40,
                                         8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (int pair = 0; pair < TILE; pair++) {
        const int pos = first + 2 * pair;
        for (int d = 0; d < dim; d += 32) {
            const __m512i a = pos < stop ? _mm512_loadu_si512(v + size_t(pos) * dim + d)
                                         : _mm512_setzero_si512();
            const __m512i b = pos + 1 < stop ? _mm512_loadu_si512(v + size_t(pos + 1) * dim + d)
                                             : _mm512_setzero_si512();
            _mm512_store_si512(values[d / TILE] + pair * TILE,
                               _mm512_permutex2var_epi16(a, low, b));
            _mm512_store_si512(values[d / TILE + 1] + pair * TILE,
                               _mm512_permutex2var_epi16(a, high, b));
        }
    }
}

// Scores of positions [first, stop) of a block, in whole tiles of 16.
inline void score(const bf16* k, int first, int stop, int dim, AttentionScratch& s) {
    for (int pos = first; pos < stop; pos += TILE) {
        _tile_zero(0);
        for (int step = 0; step < dim / TILE_K; step++) {
            _tile_loadd(1, k + size_t(pos) * dim + step * TILE_K, size_t(dim) * sizeof(bf16));
            _tile_loadd(2, s.queries[step], 64);
            _tile_dpbf16ps(0, 1, 2);
        }
        _tile_stored(0, s.scores[pos - first], 64);
    }
}

// Turn scores into probabilities against the running maximum; return the factor for what was
// summed before. Rows of P for positions past `stop` become 0 up to a multiple of 32.
inline __m512 softmax_block(int first, int stop, __m512i limit, __m512i oldest, float scale,
                            __m512& maximum, __m512& sum, AttentionScratch& s) {
    const __m512 nothing = _mm512_set1_ps(-INFINITY);
    __m512 best = maximum;
    for (int pos = first; pos < stop; pos++) {
        const __m512i at = _mm512_set1_epi32(pos);
        const __mmask16 seen = _mm512_cmple_epi32_mask(at, limit) &
                               _mm512_cmpge_epi32_mask(at, oldest);
        const __m512 x = _mm512_mask_mul_ps(nothing, seen, _mm512_load_ps(s.scores[pos - first]),
                                            _mm512_set1_ps(scale));
        _mm512_store_ps(s.scores[pos - first], x);
        best = _mm512_max_ps(best, x);
    }
    const __mmask16 any = _mm512_cmp_ps_mask(best, nothing, _CMP_GT_OQ);
    const __m512 base = _mm512_maskz_mov_ps(any, best);
    const __m512 factor = exp_negative(_mm512_sub_ps(maximum, base));
    sum = _mm512_mul_ps(sum, factor);
    for (int tile = 0; tile * TILE < (stop - first + TILE_K - 1) / TILE_K * TILE_K; tile++) {
        __m512i r[TILE];
        for (int i = 0; i < TILE; i++) {
            const int row = tile * TILE + i;
            __m512 p = _mm512_setzero_ps();
            if (first + row < stop)
                p = exp_negative(_mm512_sub_ps(_mm512_load_ps(s.scores[row]), base));
            sum = _mm512_add_ps(sum, p);
            r[i] = _mm512_castps_si512(p);
        }
        transpose(r);
        for (int q = 0; q < TILE; q++)
            store_bf16(s.probabilities[tile / 2][q] + tile % 2 * TILE, _mm512_castsi512_ps(r[q]));
    }
    maximum = best;
    return factor;
}

inline void rescale(AttentionScratch& s, int dim, __m512 factor) {
    if (_mm512_cmp_ps_mask(factor, _mm512_set1_ps(1.0f), _CMP_NEQ_OQ) == 0) return;
    alignas(64) float f[TILE];
    _mm512_store_ps(f, factor);
    for (int t = 0; t < dim / TILE; t++)
        for (int q = 0; q < TILE; q++)
            _mm512_store_ps(s.out[t][q],
                            _mm512_mul_ps(_mm512_load_ps(s.out[t][q]), _mm512_set1_ps(f[q])));
}

inline void accumulate(const bf16* v, int first, int stop, int dim, AttentionScratch& s) {
    for (int step = 0; first + step * TILE_K < stop; step++) {
        pack_values(v, first + step * TILE_K, stop, dim, s.values);
        _tile_loadd(1, s.probabilities[step], 64);
        for (int t = 0; t < dim / TILE; t++) {
            _tile_loadd(0, s.out[t], 64);
            _tile_loadd(2, s.values[t], 64);
            _tile_dpbf16ps(0, 1, 2);
            _tile_stored(0, s.out[t], 64);
        }
    }
}

// Attend with `n` ≤ 16 queries. k and v are [positions, dim] of one kv head; window 0: no window.
inline void attend(const Query* queries, int n, const bf16* k, const bf16* v, int dim, int window,
                   float scale, AttentionScratch& s) {
    alignas(64) int limits[TILE], oldest[TILE];
    int from = queries[0].position, stop = 0;
    for (int i = 0; i < TILE; i++) {
        limits[i] = i < n ? queries[i].position : -1;
        oldest[i] = window && i < n ? std::max(0, queries[i].position - window + 1) : 0;
        if (i < n) {
            from = std::min(from, oldest[i]);
            stop = std::max(stop, limits[i] + 1);
        }
    }
    for (int step = 0; step < dim / TILE_K; step++) {
        const bf16* rows[TILE];
        for (int i = 0; i < TILE; i++)
            rows[i] = i < n ? queries[i].q + step * TILE_K : nullptr;
        pack_b(rows, s.queries[step]);
    }
    memset(s.out, 0, sizeof(s.out[0]) * (dim / TILE));
    __m512 maximum = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (int first = from / BLOCK * BLOCK; first < stop; first += BLOCK) {
        const int end = std::min(first + BLOCK, stop);
        score(k, first, end, dim, s);
        const __m512 factor = softmax_block(first, end, _mm512_load_si512(limits),
                                            _mm512_load_si512(oldest), scale, maximum, sum, s);
        rescale(s, dim, factor);
        accumulate(v, first, end, dim, s);
    }
    alignas(64) float sums[TILE];
    _mm512_store_ps(sums, sum);
    for (int i = 0; i < n; i++)
        for (int t = 0; t < dim / TILE; t++)
            store_bf16(queries[i].out + t * TILE,
                       _mm512_div_ps(_mm512_load_ps(s.out[t][i]), _mm512_set1_ps(sums[i])));
}
