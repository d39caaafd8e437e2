// Attention of up to 16 queries of one sequence, over contiguous positions.
//
// Flash attention (Dao et al. 2022) in blocks of 128 positions aligned to multiples of 128, so that
// a token's result is the same whether it comes alone or in a chunk. Per block:
//   S = Q · Kᵀ                  of each query's own kv head
//   P = e^(S − running maximum) online softmax; what is kept of each query is a lane
//   O [query, dim] += P · V     for each kv head; only the rows of its own queries are read
// Positions that a query may not see have P exactly 0.
#pragma once

#include <algorithm>
#include <cmath>

#include "unit.h"

// Find the queries of each kv head, which come head by head.
inline void find_rows(const Query* queries, int n, const Heads& heads, AttentionScratch& s) {
    s.rows[0] = 0;
    for (int h = 0; h < heads.count; h++) {
        s.rows[h + 1] = s.rows[h];
        while (s.rows[h + 1] < n && queries[s.rows[h + 1]].kv_head == h) s.rows[h + 1]++;
    }
}

// O *= factor, a row a query. A factor of 1 in every lane changes nothing and costs nothing.
inline void rescale(AttentionScratch& s, int tiles, __m512 factor) {
    if (_mm512_cmp_ps_mask(factor, _mm512_set1_ps(1.0f), _CMP_NEQ_OQ) == 0) return;
    alignas(64) float f[TILE];
    _mm512_store_ps(f, factor);
    for (int t = 0; t < tiles; t++)
        for (int q = 0; q < TILE; q++)
            _mm512_store_ps(s.out[t][q],
                            _mm512_mul_ps(_mm512_load_ps(s.out[t][q]), _mm512_set1_ps(f[q])));
}

inline void accumulate_all(const Heads& heads, int first, int stop, int dim, Stream& ahead,
                           AttentionScratch& s) {
    for (int h = 0; h < heads.count; h++) {
        const bf16* v = heads.v + h * heads.stride;
        float(*out)[TILE][TILE] = s.out + h * (dim / TILE);
        int d = 0;
        const int from = s.rows[h], to = s.rows[h + 1];
        for (; d + 64 <= dim; d += 64)
            accumulate<4>(v, first, stop, dim, d, from, to, out + d / TILE, ahead, s);
        if (d < dim) accumulate<2>(v, first, stop, dim, d, from, to, out + d / TILE, ahead, s);
    }
}

// O / sum of one query, with dimensions back in order, packed for a product of `steps` steps.
inline void write_out(const Query& query, int row, float sum, int dim, int steps,
                      const AttentionScratch& s) {
    const __m512i low = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    const __m512 divisor = _mm512_set1_ps(sum);
    for (int t = 0; t < dim / TILE; t += 2) {
        const float(*out)[TILE][TILE] = s.out + query.kv_head * (dim / TILE) + t;
        const __m512 a = _mm512_div_ps(_mm512_load_ps(out[0][row]), divisor);
        const __m512 b = _mm512_div_ps(_mm512_load_ps(out[1][row]), divisor);
        const __m512i values = (__m512i)_mm512_cvtne2ps_pbh(_mm512_permutex2var_ps(a, high, b),
                                                            _mm512_permutex2var_ps(a, low, b));
        store_row(values, query.out, query.row, query.step + t / 2, steps);
    }
}

// Attend with `n` ≤ 16 queries to what is in `range` and what their window covers (0: no window),
// asking ahead for what comes after: half of a block's lines by the time that its values come, half
// with these.
inline void attend(const Query* queries, int n, const Range& range, int dim, int window, int steps,
                   Stream& ahead, AttentionScratch& s) {
    alignas(64) int limits[TILE], oldest[TILE];
    Softmax state{{}, {}, 0, queries[0].position + 1, 1.0f / std::sqrt(float(dim)),
                  _mm512_set1_ps(-INFINITY), _mm512_setzero_ps()};
    for (int i = 0; i < TILE; i++) {
        const Query& query = queries[std::min(i, n - 1)];  // idle columns see what the last one does
        limits[i] = query.position;
        oldest[i] = window ? std::max(0, query.position - window + 1) : 0;
        state.all_from = std::max(state.all_from, oldest[i]);
        state.all_until = std::min(state.all_until, limits[i] + 1);
    }
    state.limit = _mm512_load_si512(limits);
    state.oldest = _mm512_load_si512(oldest);
    const Heads& heads = range.heads;
    find_rows(queries, n, heads, s);
    pack_queries(queries, heads, dim, s);
    const int tiles = heads.count * (dim / TILE);
    memset(s.out, 0, sizeof(s.out[0]) * tiles);
    for (int first = range.first; first < range.stop; first += BLOCK) {
        const int stop = std::min(first + BLOCK, range.stop);
        const Heads here = heads.within(first);
        score(here, first, stop, dim, ahead, s);
        const int lines_a_row = heads.count * dim / LINE;
        rescale(s, tiles, softmax_block(n, first, stop, state, lines_a_row, ahead, s));
        accumulate_all(here, first, stop, dim, ahead, s);
    }
    alignas(64) float sums[TILE];
    _mm512_store_ps(sums, state.sum);
    for (int i = 0; i < n; i++) write_out(queries[i], i, sums[i], dim, steps, s);
}
