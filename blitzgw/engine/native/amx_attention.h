// Attention by AMX tiles (unit.h). Scores are [position][query]: softmax goes down the columns, a lane
// is a query, and nothing is summed across lanes.
#pragma once

#include "amx.h"

// A kv head's queries are zero in the columns of other heads, so one tile of scores holds them all.
inline void pack_queries(const Query* queries, const Heads& heads, int dim, AttentionScratch& s) {
    const int steps = dim / TILE_K;
    for (int h = 0; h < heads.count; h++)
        for (int step = 0; step < steps; step++) {
            const bf16* rows[TILE] = {};
            for (int i = s.rows[h]; i < s.rows[h + 1]; i++) rows[i] = queries[i].q + step * TILE_K;
            pack_tile(rows, s.queries[h * steps], step, steps);
        }
}

// Scores of `tiles` × 16 positions from `pos` on: as many sums under way, none waits for another.
template <int tiles>
inline void score_tiles(const Heads& heads, int pos, int dim, Stream& ahead, float* scores,
                        const AttentionScratch& s) {
    const int steps = dim / TILE_K;
    const size_t row_bytes = size_t(dim) * sizeof(bf16);
    _tile_zero(0);
    if (tiles > 1) _tile_zero(1);
    if (tiles > 2) _tile_zero(2);
    if (tiles > 3) _tile_zero(3);
    for (int h = 0; h < heads.count; h++)
        for (int step = 0; step < steps; step++) {
            const bf16* rows = heads.k + h * heads.stride + size_t(pos) * dim + step * TILE_K;
            _tile_loadd(7, s.queries[h * steps + step], 64);
            _tile_loadd(4, rows, row_bytes);
            _tile_dpbf16ps(0, 4, 7);
            if (tiles > 1) _tile_loadd(5, rows + TILE * dim, row_bytes);
            if (tiles > 1) _tile_dpbf16ps(1, 5, 7);
            if (tiles > 2) _tile_loadd(6, rows + 2 * TILE * dim, row_bytes);
            if (tiles > 2) _tile_dpbf16ps(2, 6, 7);
            if (tiles > 3) _tile_loadd(4, rows + 3 * TILE * dim, row_bytes);
            if (tiles > 3) _tile_dpbf16ps(3, 4, 7);
            ahead.pull(tiles * TILE * TILE_K / LINE);
        }
    _tile_stored(0, scores, 64);
    if (tiles > 1) _tile_stored(1, scores + TILE * TILE, 64);
    if (tiles > 2) _tile_stored(2, scores + 2 * TILE * TILE, 64);
    if (tiles > 3) _tile_stored(3, scores + 3 * TILE * TILE, 64);
}

// In whole tiles of 16 positions.
inline void score(const Heads& heads, int first, int stop, int dim, Stream& ahead,
                  AttentionScratch& s) {
    int pos = first;
    for (; pos + 3 * TILE < stop; pos += 4 * TILE)
        score_tiles<4>(heads, pos, dim, ahead, s.scores + (pos - first) * TILE, s);
    for (; pos < stop; pos += TILE)
        score_tiles<1>(heads, pos, dim, ahead, s.scores + (pos - first) * TILE, s);
}

// Largest score of a block, with −∞ written where a query may not see.
inline __m512 block_maximum(int first, int stop, const Softmax& state, AttentionScratch& s) {
    const __m512 nothing = _mm512_set1_ps(-INFINITY);
    __m512 best = nothing;
    if (first >= state.all_from && stop <= state.all_until) {
        __m512 part[4] = {nothing, nothing, nothing, nothing};  // a maximum waits for the one before
        int i = 0;
        for (; i + 4 <= stop - first; i += 4)
            for (int j = 0; j < 4; j++)
                part[j] = _mm512_max_ps(part[j], _mm512_load_ps(s.scores + (i + j) * TILE));
        for (; i < stop - first; i++) best = _mm512_max_ps(best, _mm512_load_ps(s.scores + i * TILE));
        for (__m512 one : part) best = _mm512_max_ps(best, one);
        return best;
    }
    for (int i = 0; i < stop - first; i++) {
        const __m512i at = _mm512_set1_epi32(first + i);
        const __mmask16 seen = _mm512_cmple_epi32_mask(at, state.limit) &
                               _mm512_cmpge_epi32_mask(at, state.oldest);
        const __m512 x = _mm512_mask_mov_ps(nothing, seen, _mm512_load_ps(s.scores + i * TILE));
        _mm512_store_ps(s.scores + i * TILE, x);
        best = _mm512_max_ps(best, x);
    }
    return best;
}

// Turn scores into probabilities against the running maximum; return the factor for what was
// summed before. Rows of P past `stop` become 0 up to a multiple of 32.
inline __m512 softmax_block(int, int first, int stop, Softmax& state, int lines_a_row,
                            Stream& ahead, AttentionScratch& s) {
    const __m512 scale = _mm512_set1_ps(state.scale);
    const __m512 best = _mm512_max_ps(
        state.maximum, _mm512_mul_ps(block_maximum(first, stop, state, s), scale));
    const __mmask16 any = _mm512_cmp_ps_mask(best, _mm512_set1_ps(-INFINITY), _CMP_GT_OQ);
    const __m512 base = _mm512_maskz_mov_ps(any, best);
    const __m512 factor = exp_negative(_mm512_sub_ps(state.maximum, base));
    __m512 sum = _mm512_mul_ps(state.sum, factor);
    const int tiles = (stop - first + TILE_K - 1) / TILE_K * 2;
    for (int tile = 0; tile < tiles; tile++) {
        __m512i r[TILE];
        for (int i = 0; i < TILE; i++) {
            const int row = tile * TILE + i;
            __m512 p = _mm512_setzero_ps();
            if (first + row < stop)
                p = exp_negative(_mm512_fmsub_ps(_mm512_load_ps(s.scores + row * TILE), scale, base));
            sum = _mm512_add_ps(sum, p);
            r[i] = _mm512_castps_si512(p);
            ahead.pull(lines_a_row);
        }
        transpose(r);
        for (int q = 0; q < TILE; q++)
            store_bf16(s.probabilities[tile / 2][q] + tile % 2 * TILE, _mm512_castsi512_ps(r[q]));
    }
    state.maximum = best;
    state.sum = sum;
    return factor;
}

template <int tiles>
inline void accumulate(const bf16* v, int first, int stop, int dim, int d, int, int, float (*out)[TILE][TILE],
                       Stream& ahead, AttentionScratch& s) {
    _tile_loadd(0, out[0], 64);
    _tile_loadd(1, out[1], 64);
    if (tiles == 4) _tile_loadd(2, out[2], 64);
    if (tiles == 4) _tile_loadd(3, out[3], 64);
    pack_value_tiles<tiles>(v, first, stop, dim, d, ahead, s.values[0]);
    for (int pos = first, turn = 0; pos < stop; pos += TILE_K, turn ^= 1) {
        if (pos + TILE_K < stop)
            pack_value_tiles<tiles>(v, pos + TILE_K, stop, dim, d, ahead, s.values[turn ^ 1]);
        const uint32_t(*values)[256] = s.values[turn];
        _tile_loadd(4, s.probabilities[(pos - first) / TILE_K], 64);
        _tile_loadd(5, values[0], 64);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, values[1], 64);
        _tile_dpbf16ps(1, 4, 6);
        if (tiles == 4) _tile_loadd(5, values[2], 64);
        if (tiles == 4) _tile_dpbf16ps(2, 4, 5);
        if (tiles == 4) _tile_loadd(6, values[3], 64);
        if (tiles == 4) _tile_dpbf16ps(3, 4, 6);
    }
    _tile_stored(0, out[0], 64);
    _tile_stored(1, out[1], 64);
    if (tiles == 4) _tile_stored(2, out[2], 64);
    if (tiles == 4) _tile_stored(3, out[3], 64);
}
