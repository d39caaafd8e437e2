// Attention by lanes of AVX-512 BF16 (unit.h).
//
// Scores are [query][position]. A register has 16 values of two positions' K, so that of 32 products
// only 8 have to be added up across lanes, and a lane of softmax is a position. P · V is the other
// way round: a lane is a dimension, and pairs of positions follow each other.
#pragma once

#include <algorithm>
#include <cmath>

#include "avx512.h"

// In fours of a kv head, 16 values of each after the other's, twice in a register.
inline void pack_queries(const Query* queries, const Heads& heads, int dim, AttentionScratch& s) {
    uint32_t* at = s.queries[0];
    for (int h = 0; h < heads.count; h++)
        for (int four = s.rows[h]; four < s.rows[h + 1]; four += 4)
            for (int d = 0; d < dim; d += TILE)
                for (int q = four; q < four + 4; q++, at += TILE)
                    if (q < s.rows[h + 1])
                        _mm512_store_si512(at, _mm512_broadcast_i64x4(load_16(queries[q].q + d)));
}

// Scores of 8 positions, [query][position], of `count` packed queries of their head.
template <int count>
inline void score_eight(const bf16* rows, int dim, const uint32_t* packed, float* scores) {
    __m512 sums[4][4];  // [query][positions i and i + 4]
    for (auto& query : sums)
        for (__m512& sum : query) sum = _mm512_setzero_ps();
    for (int d = 0; d < dim; d += TILE, packed += 4 * TILE) {
        __m512bh queries[count];
        for (int j = 0; j < count; j++) queries[j] = load_pairs(packed + j * TILE);
        for (int i = 0; i < 4; i++) {
            const bf16* row = rows + i * dim + d;
            const __m512i first = _mm512_castsi256_si512(load_16(row));
            const __m512i both = _mm512_inserti64x4(first, load_16(row + 4 * dim), 1);
            for (int j = 0; j < count; j++)
                sums[j][i] = _mm512_dpbf16_ps(sums[j][i], (__m512bh)both, queries[j]);
        }
    }
    const __m512 a = fold_pair(fold_fours(sums[0], add), fold_fours(sums[1], add), add);
    const __m512 b = fold_pair(fold_fours(sums[2], add), fold_fours(sums[3], add), add);
    _mm256_store_ps(scores, _mm512_castps512_ps256(a));
    if (count > 1) _mm256_store_ps(scores + BLOCK, _mm512_extractf32x8_ps(a, 1));
    if (count > 2) _mm256_store_ps(scores + 2 * BLOCK, _mm512_castps512_ps256(b));
    if (count > 3) _mm256_store_ps(scores + 3 * BLOCK, _mm512_extractf32x8_ps(b, 1));
}

// Eight positions at once, asking for as many lines as are used.
inline void score(const Heads& heads, int first, int stop, int dim, Stream& ahead,
                  AttentionScratch& s) {
    const uint32_t* packed = s.queries[0];
    for (int h = 0; h < heads.count; h++) {
        const int from = s.rows[h], to = s.rows[h + 1];
        const bf16* rows = heads.k + h * heads.stride + size_t(first) * dim;
        for (int at = 0; at < stop - first; at += 8) {
            for (int q = from; q < to; q += 4)
                with_count(to - q, [&](auto count) {
                    score_eight<count>(rows + at * dim, dim, packed + (q - from) * dim,
                                       s.scores + q * BLOCK + at);
                });
            ahead.pull(8 * dim * int(sizeof(bf16)) / LINE);
        }
        packed += (to - from + 3) / 4 * 4 * dim;
    }
}

// Write −∞ where a query may not see, at 16 positions from `at` on.
inline void hide(float* scores, int at, int limit, int oldest) {
    const __m512i steps = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i position = _mm512_add_epi32(_mm512_set1_epi32(at), steps);
    const __mmask16 hidden = _mm512_cmpgt_epi32_mask(position, _mm512_set1_epi32(limit)) |
                             _mm512_cmplt_epi32_mask(position, _mm512_set1_epi32(oldest));
    _mm512_mask_storeu_ps(scores, hidden, _mm512_set1_ps(-INFINITY));
}

// Largest score of each query, a lane a query; idle lanes are 0.
inline __m512 block_maximum(int n, int first, int stop, const Softmax& state, AttentionScratch& s) {
    alignas(64) int limits[TILE], oldest[TILE];
    _mm512_store_si512(limits, state.limit);
    _mm512_store_si512(oldest, state.oldest);
    __m512 best[TILE];
    for (__m512& one : best) one = _mm512_setzero_ps();
    for (int q = 0; q < n; q++) {
        float* scores = s.scores + q * BLOCK;
        for (int at = first; at < stop; at += TILE) {
            float* here = scores + at - first;
            if (at < state.all_from || at + TILE > state.all_until)
                hide(here, at, limits[q], oldest[q]);
            const __m512 x = _mm512_load_ps(here);
            best[q] = at == first ? x : _mm512_max_ps(best[q], x);
        }
    }
    return fold_lanes(best, larger);
}

// Turn scores into probabilities against the running maximum; return the factor for what was
// summed before. P past `stop` becomes 0 up to a multiple of 32.
inline __m512 softmax_block(int n, int first, int stop, Softmax& state, int, Stream&,
                            AttentionScratch& s) {
    const __m512 scale = _mm512_set1_ps(state.scale);
    const __m512 best = _mm512_max_ps(
        state.maximum, _mm512_mul_ps(block_maximum(n, first, stop, state, s), scale));
    const __mmask16 any = _mm512_cmp_ps_mask(best, _mm512_set1_ps(-INFINITY), _CMP_GT_OQ);
    const __m512 base = _mm512_maskz_mov_ps(any, best);
    const __m512 factor = exp_negative(_mm512_sub_ps(state.maximum, base));
    alignas(64) float bases[TILE];
    _mm512_store_ps(bases, base);
    __m512 sums[TILE];
    for (__m512& sum : sums) sum = _mm512_setzero_ps();
    for (int q = 0; q < n; q++) {
        const float* scores = s.scores + q * BLOCK;
        const __m512 own = _mm512_set1_ps(bases[q]);
        auto probability = [&](int at) {
            if (first + at >= stop) return _mm512_setzero_ps();
            return exp_negative(_mm512_fmsub_ps(_mm512_load_ps(scores + at), scale, own));
        };
        for (int at = 0; at < stop - first; at += TILE_K) {
            const __m512 low = probability(at), high = probability(at + TILE);
            sums[q] = _mm512_add_ps(_mm512_add_ps(sums[q], low), high);
            _mm512_store_si512(s.probabilities[at / TILE_K][q],
                               (__m512i)_mm512_cvtne2ps_pbh(high, low));
        }
    }
    state.maximum = best;
    state.sum = _mm512_fmadd_ps(state.sum, factor, fold_lanes(sums, add));
    return factor;
}

// A pair of probabilities in all lanes.
inline __m512bh both(const bf16* p) {
    int32_t pair;
    memcpy(&pair, p, sizeof(pair));
    return (__m512bh)_mm512_set1_epi32(pair);
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
            const __m512bh p = both(probabilities[q + i] + 2 * pair);
            for (int t = 0; t < tiles; t++)
                sums[i][t] = _mm512_dpbf16_ps(sums[i][t], p, load_pairs(values[t] + pair * TILE));
        }
    for (int i = 0; i < count; i++)
        for (int t = 0; t < tiles; t++) _mm512_store_ps(out[t][q + i], sums[i][t]);
}

// Rows [q, q + count) of O, with V straight from memory, asking for as many lines as are used.
template <int count, int tiles>
inline void accumulate_straight(const bf16* v, int first, int stop, int dim, int d, int q,
                                float (*out)[TILE][TILE], Stream& ahead, const AttentionScratch& s) {
    __m512 sums[count][tiles];
    for (int i = 0; i < count; i++)
        for (int t = 0; t < tiles; t++) sums[i][t] = _mm512_load_ps(out[t][q + i]);
    for (int pos = first; pos < stop; pos += 2) {
        const bf16* row = v + size_t(pos) * dim + d;
        const bf16* p = s.probabilities[(pos - first) / TILE_K][q] + (pos - first) % TILE_K;
        __m512i values[tiles];
        for (int t = 0; t < tiles; t += 2, row += TILE_K)
            interleave(row, dim, stop - pos, values[t], values[t + 1]);
        for (int i = 0; i < count; i++) {
            const __m512bh pair = both(p + i * TILE_K);
            for (int t = 0; t < tiles; t++)
                sums[i][t] = _mm512_dpbf16_ps(sums[i][t], pair, (__m512bh)values[t]);
        }
        ahead.pull(tiles);
    }
    for (int i = 0; i < count; i++)
        for (int t = 0; t < tiles; t++) _mm512_store_ps(out[t][q + i], sums[i][t]);
}

// Up to four queries take V from memory; more of them share what is interleaved once. Both add up
// the same pairs in the same order.
template <int tiles>
inline void accumulate(const bf16* v, int first, int stop, int dim, int d, int from, int to,
                       float (*out)[TILE][TILE], Stream& ahead, AttentionScratch& s) {
    if (to - from <= 4) {
        with_count(to - from, [&](auto count) {
            accumulate_straight<count, tiles>(v, first, stop, dim, d, from, out, ahead, s);
        });
        return;
    }
    for (int pos = first; pos < stop; pos += TILE_K) {
        pack_value_tiles<tiles>(v, pos, stop, dim, d, ahead, s.values[0]);
        for (int q = from; q < to; q += 4)
            with_count(to - q, [&](auto count) {
                accumulate_rows<count, tiles>(s.probabilities[(pos - first) / TILE_K], s.values[0],
                                              q, out);
            });
    }
}
