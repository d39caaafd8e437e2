// Attention of up to 16 queries of one sequence, over contiguous positions.
//
// Flash attention (Dao et al. 2022) in blocks of 128 positions aligned to multiples of 128, so that
// a token's result is the same whether it comes alone or in a chunk. Per block:
//   Sᵀ [pos, query] = Σ over kv heads of K · Qᵀ   rows of K are tile A as they lie; a head's packed
//                     queries are zero in the columns of other heads, so one tile holds them all
//   online softmax down the columns: a lane is a query, nothing is summed across lanes
//   O [query, dim] += P · V     for each kv head; only the rows of its own queries are read
// Positions that a query may not see have P exactly 0.
#pragma once

#include <algorithm>
#include <cmath>

#include "tiles.h"

constexpr int BLOCK = 128;       // positions between two rescalings of O
constexpr int MAX_DIM = 256;     // head dimension
constexpr int OUT_TILES = 4;     // tiles of O that stay in registers

struct Query {
    const bf16* q;    // [head_dim]
    bf16* out;        // [head_dim]
    int kv_head;      // among those of the call
    int position;     // attends to (position − window, position]
};

struct Heads {  // K and V [positions, dim] of `count` kv heads
    const bf16 *k, *v;
    size_t stride;
    int count;
};

struct alignas(64) AttentionScratch {
    uint32_t queries[TILE * MAX_DIM / TILE_K][256];
    float scores[BLOCK][TILE];
    bf16 probabilities[BLOCK / TILE_K][TILE][TILE_K];
    uint32_t values[OUT_TILES][256];
    float out[TILE * MAX_DIM / TILE][TILE][TILE];
};

// Ask for `rows` rows of K or V ahead of their use: pages are small and scattered, and the
// hardware's prefetcher stops at the end of each.
inline void prefetch_rows(const bf16* from, int rows, int dim) {
    const char* at = reinterpret_cast<const char*>(from);
    for (size_t i = 0; i < size_t(rows) * dim * sizeof(bf16); i += 64)
        _mm_prefetch(at + i, _MM_HINT_T1);
}

// Interleave 32 rows of V in pairs, dimensions [d, d + 32), into two tiles in B's order. Rows from
// `stop` on are zeros (memory there may hold anything). Within each 32 the first tile gets
// dimensions 0–3, 8–11, 16–19, 24–27 and the second the others: `write_out` puts them right.
inline void pack_values(const bf16* v, int first, int stop, int dim, int d, uint32_t (*tiles)[256]) {
    for (int pair = 0; pair < TILE; pair++) {
        const int pos = first + 2 * pair;
        const bf16* row = v + size_t(pos) * dim + d;
        const __m512i a = pos < stop ? _mm512_loadu_si512(row) : _mm512_setzero_si512();
        const __m512i b = pos + 1 < stop ? _mm512_loadu_si512(row + dim) : _mm512_setzero_si512();
        _mm512_store_si512(tiles[0] + pair * TILE, _mm512_unpacklo_epi16(a, b));
        _mm512_store_si512(tiles[1] + pair * TILE, _mm512_unpackhi_epi16(a, b));
    }
}

// Scores of positions [first, stop) of a block, in whole tiles of 16.
inline void score(const Heads& heads, int first, int stop, int dim, AttentionScratch& s) {
    const int steps = dim / TILE_K;
    for (int pos = first; pos < stop; pos += TILE) {
        _tile_zero(0);
        for (int h = 0; h < heads.count; h++) {
            const bf16* rows = heads.k + h * heads.stride + size_t(pos) * dim;
            prefetch_rows(rows + size_t(BLOCK) * dim, TILE, dim);
            for (int step = 0; step < steps; step++) {
                _tile_loadd(1, rows + step * TILE_K, size_t(dim) * sizeof(bf16));
                _tile_loadd(2, s.queries[h * steps + step], 64);
                _tile_dpbf16ps(0, 1, 2);
            }
        }
        _tile_stored(0, s.scores[pos - first], 64);
    }
}

struct Softmax {  // a lane is a query
    __m512i limit, oldest;   // positions that it may see
    int all_from, all_until; // positions [from, until) that every query may see
    float scale;
    __m512 maximum, sum;
};

// Largest score of a block, with −∞ written where a query may not see.
inline __m512 block_maximum(int first, int stop, const Softmax& state, AttentionScratch& s) {
    const __m512 nothing = _mm512_set1_ps(-INFINITY);
    __m512 best = nothing;
    if (first >= state.all_from && stop <= state.all_until) {
        for (int i = 0; i < stop - first; i++)
            best = _mm512_max_ps(best, _mm512_load_ps(s.scores[i]));
        return best;
    }
    for (int i = 0; i < stop - first; i++) {
        const __m512i at = _mm512_set1_epi32(first + i);
        const __mmask16 seen = _mm512_cmple_epi32_mask(at, state.limit) &
                               _mm512_cmpge_epi32_mask(at, state.oldest);
        const __m512 x = _mm512_mask_mov_ps(nothing, seen, _mm512_load_ps(s.scores[i]));
        _mm512_store_ps(s.scores[i], x);
        best = _mm512_max_ps(best, x);
    }
    return best;
}

// Turn scores into probabilities against the running maximum; return the factor for what was
// summed before. Rows of P past `stop` become 0 up to a multiple of 32.
inline __m512 softmax_block(int first, int stop, Softmax& state, AttentionScratch& s) {
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
                p = exp_negative(_mm512_fmsub_ps(_mm512_load_ps(s.scores[row]), scale, base));
            sum = _mm512_add_ps(sum, p);
            r[i] = _mm512_castps_si512(p);
        }
        transpose(r);
        for (int q = 0; q < TILE; q++)
            store_bf16(s.probabilities[tile / 2][q] + tile % 2 * TILE, _mm512_castsi512_ps(r[q]));
    }
    state.maximum = best;
    state.sum = sum;
    return factor;
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

// O += P · V for dimensions [d, d + 32 or 64) of one kv head.
template <int tiles>
inline void accumulate(const bf16* v, int first, int stop, int dim, int d, float (*out)[TILE][TILE],
                       AttentionScratch& s) {
    _tile_loadd(0, out[0], 64);
    _tile_loadd(1, out[1], 64);
    if (tiles == 4) _tile_loadd(2, out[2], 64);
    if (tiles == 4) _tile_loadd(3, out[3], 64);
    for (int pos = first; pos < stop; pos += TILE_K) {
        if (d == 0) prefetch_rows(v + size_t(pos + BLOCK) * dim, TILE_K, dim);
        for (int t = 0; t < tiles; t += 2)
            pack_values(v, pos, stop, dim, d + t * TILE, s.values + t);
        _tile_loadd(4, s.probabilities[(pos - first) / TILE_K], 64);
        _tile_loadd(5, s.values[0], 64);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, s.values[1], 64);
        _tile_dpbf16ps(1, 4, 6);
        if (tiles == 4) _tile_loadd(5, s.values[2], 64);
        if (tiles == 4) _tile_dpbf16ps(2, 4, 5);
        if (tiles == 4) _tile_loadd(6, s.values[3], 64);
        if (tiles == 4) _tile_dpbf16ps(3, 4, 6);
    }
    _tile_stored(0, out[0], 64);
    _tile_stored(1, out[1], 64);
    if (tiles == 4) _tile_stored(2, out[2], 64);
    if (tiles == 4) _tile_stored(3, out[3], 64);
}

inline void accumulate_all(const Heads& heads, int first, int stop, int dim, AttentionScratch& s) {
    for (int h = 0; h < heads.count; h++) {
        const bf16* v = heads.v + h * heads.stride;
        float(*out)[TILE][TILE] = s.out + h * (dim / TILE);
        int d = 0;
        for (; d + 64 <= dim; d += 64) accumulate<4>(v, first, stop, dim, d, out + d / TILE, s);
        if (d < dim) accumulate<2>(v, first, stop, dim, d, out + d / TILE, s);
    }
}

// Pack the queries of each kv head, with zeros in the columns of the others.
inline void pack_queries(const Query* queries, int n, const Heads& heads, int dim,
                         AttentionScratch& s) {
    const int steps = dim / TILE_K;
    for (int h = 0; h < heads.count; h++)
        for (int step = 0; step < steps; step++) {
            const bf16* rows[TILE] = {};
            for (int i = 0; i < n; i++)
                if (queries[i].kv_head == h) rows[i] = queries[i].q + step * TILE_K;
            pack_b(rows, s.queries[h * steps + step]);
        }
}

// O / sum of one query, with dimensions back in order.
inline void write_out(const Query& query, int row, float sum, int dim, const AttentionScratch& s) {
    const __m512i low = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    const __m512 divisor = _mm512_set1_ps(sum);
    for (int t = 0; t < dim / TILE; t += 2) {
        const float(*out)[TILE][TILE] = s.out + query.kv_head * (dim / TILE) + t;
        const __m512 a = _mm512_div_ps(_mm512_load_ps(out[0][row]), divisor);
        const __m512 b = _mm512_div_ps(_mm512_load_ps(out[1][row]), divisor);
        store_bf16(query.out + t * TILE, _mm512_permutex2var_ps(a, low, b));
        store_bf16(query.out + t * TILE + TILE, _mm512_permutex2var_ps(a, high, b));
    }
}

// Attend with `n` ≤ 16 queries. window 0: no window.
inline void attend(const Query* queries, int n, const Heads& heads, int dim, int window, float scale,
                   AttentionScratch& s) {
    alignas(64) int limits[TILE], oldest[TILE];
    Softmax state{{}, {}, 0, queries[0].position + 1, scale, _mm512_set1_ps(-INFINITY), {}};
    state.sum = _mm512_setzero_ps();
    int from = queries[0].position, stop = 0;
    for (int i = 0; i < TILE; i++) {
        const Query& query = queries[std::min(i, n - 1)];  // idle columns see what the last one does
        limits[i] = query.position;
        oldest[i] = window ? std::max(0, query.position - window + 1) : 0;
        from = std::min(from, oldest[i]);
        stop = std::max(stop, limits[i] + 1);
        state.all_from = std::max(state.all_from, oldest[i]);
        state.all_until = std::min(state.all_until, limits[i] + 1);
    }
    state.limit = _mm512_load_si512(limits);
    state.oldest = _mm512_load_si512(oldest);
    pack_queries(queries, n, heads, dim, s);
    const int tiles = heads.count * (dim / TILE);
    memset(s.out, 0, sizeof(s.out[0]) * tiles);
    for (int first = from / BLOCK * BLOCK; first < stop; first += BLOCK) {
        const int end = std::min(first + BLOCK, stop);
        score(heads, first, end, dim, s);
        rescale(s, tiles, softmax_block(first, end, state, s));
        accumulate_all(heads, first, end, dim, s);
    }
    alignas(64) float sums[TILE];
    _mm512_store_ps(sums, state.sum);
    for (int i = 0; i < n; i++) write_out(queries[i], i, sums[i], dim, s);
}
