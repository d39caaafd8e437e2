// What attention is about, and what one thread keeps while it attends.
#pragma once

#include "next_kv.h"

constexpr int MAX_DIM = 256;   // head dimension
constexpr int OUT_TILES = 4;   // tiles of O that stay in registers

struct Query {
    const bf16* q;    // [head_dim]
    uint32_t* out;    // packed group of its token
    int row, step;    // the token in the group, and the head's first step
    int kv_head;      // among those of the call
    int position;     // attends to (position − window, position]
};

struct Softmax {  // a lane is a query
    __m512i limit, oldest;    // positions that it may see
    int all_from, all_until;  // positions [from, until) that every query may see
    float scale;
    __m512 maximum, sum;
};

struct alignas(64) AttentionScratch {
    uint32_t queries[TILE * MAX_DIM / TILE_K][256];  // in the unit's order
    float scores[BLOCK * TILE] = {};                 // likewise
    bf16 probabilities[BLOCK / TILE_K][TILE][TILE_K];
    uint32_t values[2][OUT_TILES][256];  // one is packed while the other is used
    float out[TILE * MAX_DIM / TILE][TILE][TILE];
    int rows[TILE + 1];  // of kv head h: queries [rows[h], rows[h + 1])
};

// Interleave 32 dimensions of two rows of V, of which `there` are there; the others are zeros (memory
// may hold anything). `low` gets dimensions 0–3, 8–11, 16–19, 24–27, `high` the others: `write_out`
// puts them right.
inline void interleave(const bf16* row, int dim, int there, __m512i& low, __m512i& high) {
    const __m512i a = _mm512_maskz_loadu_epi32(there > 0 ? 0xffff : 0, row);
    const __m512i b = _mm512_maskz_loadu_epi32(there > 1 ? 0xffff : 0, row + dim);
    low = _mm512_unpacklo_epi16(a, b);
    high = _mm512_unpackhi_epi16(a, b);
}

// Interleave 32 rows of V in pairs, dimensions [d, d + 32), into two tiles in B's order. Rows from
// `stop` on are zeros.
inline void pack_values(const bf16* v, int first, int stop, int dim, int d, uint32_t (*tiles)[256]) {
    for (int pair = 0; pair < TILE; pair++) {
        const int pos = first + 2 * pair;
        const bf16* row = v + size_t(pos) * dim + d;
        __m512i low, high;
        interleave(row, dim, stop - pos, low, high);
        _mm512_store_si512(tiles[0] + pair * TILE, low);
        _mm512_store_si512(tiles[1] + pair * TILE, high);
    }
}

template <int tiles>
inline void pack_value_tiles(const bf16* v, int pos, int stop, int dim, int d, Stream& ahead,
                             uint32_t (*values)[256]) {
    for (int t = 0; t < tiles; t += 2) {
        pack_values(v, pos, stop, dim, d + t * TILE, values + t);
        ahead.pull(2 * TILE_K * TILE_K / LINE);
    }
}
