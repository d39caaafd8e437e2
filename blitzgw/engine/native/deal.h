// Who attends with which queries to what.
#pragma once

#include <atomic>
#include <utility>

#include "attention.h"
#include "linear.h"

struct Scratch {
    uint32_t *packed, *packed_mlp;
    bf16* qkv;

    // Lay the parts out from `base` (64-byte aligned); return the bytes that they take.
    size_t lay_out(char* base, const Shape& s, int tokens) {
        const size_t q = size_t(s.heads) * s.head_dim, kv = size_t(s.kv_heads) * s.head_dim;
        const size_t width = std::max(size_t(s.hidden), q);
        size_t used = 0;
        auto take = [&](size_t bytes) {
            char* at = base + used;
            used += (bytes + 63) / 64 * 64;
            return at;
        };
        packed = reinterpret_cast<uint32_t*>(take(packed_bytes(tokens, int(width))));
        packed_mlp = reinterpret_cast<uint32_t*>(take(packed_bytes(tokens, s.intermediate)));
        qkv = reinterpret_cast<bf16*>(take(tokens * (q + 2 * kv) * sizeof(bf16)));
        return used;
    }
};

// How an extent's queries are dealt into tiles of 16: a decode token's kv heads share tiles, as far
// as there are extents enough for all threads; a chunk's tokens do, one kv head a tile.
struct Tiling {
    int group, heads_per_tile, tokens_per_tile, tiles_of_heads, tiles_of_tokens;

    Tiling(const Shape& s, int count, int tiles_wanted) {
        group = s.heads / s.kv_heads;
        const int all = std::min(s.kv_heads, TILE / group);
        const int each = (s.kv_heads + tiles_wanted - 1) / tiles_wanted;
        heads_per_tile = count == 1 ? std::min(all, each) : 1;
        tokens_per_tile = count == 1 ? 1 : TILE / group;
        tiles_of_heads = (s.kv_heads + heads_per_tile - 1) / heads_per_tile;
        tiles_of_tokens = (count + tokens_per_tile - 1) / tokens_per_tile;
    }
    int tiles() const { return tiles_of_heads * tiles_of_tokens; }
};

struct QueryTile {
    int n;
    Query queries[TILE];
    Range range;  // what they attend to
    bool alone;   // no other tile reads it: it comes from memory
};

// How many tiles of a thread's share are taken.
struct alignas(LINE) Taken {
    std::atomic<int> count{1};  // the first is for who never asks
};

// Deals tiles of queries to the threads, one by one: every thread takes those of its own share, whose
// KV its cache may hold (next_kv.h), then of the others'. Later tiles of a chunk see more and take
// longer.
class Deal {
   public:
    Deal(const Shape& s, const Batch& batch, const Cache& cache, const Scratch& scratch, Work work,
         Taken* taken)
        : s_(s), batch_(batch), cache_(cache), scratch_(scratch), work_(work), taken_(taken) {}

    // Take a tile; false when all are dealt.
    bool take(QueryTile& out) {
        if (std::exchange(first_, false) && find(work_.thread, out)) return true;
        for (; others_ < work_.threads; others_++) {
            const int share = (work_.thread + others_) % work_.threads;
            if (find(share + work_.threads * taken_[share].count.fetch_add(1), out)) return true;
        }
        return false;
    }

   private:
    bool find(int tile, QueryTile& out) {
        if (tile < before_) extent_ = before_ = 0;
        for (; extent_ < batch_.extents; extent_++) {
            const Tiling tiling(s_, batch_.stops[extent_] - batch_.starts[extent_],
                                (work_.threads + batch_.extents - 1) / batch_.extents);
            if (tile < before_ + tiling.tiles()) {
                fill(tiling, tile - before_, out);
                return true;
            }
            before_ += tiling.tiles();
        }
        return false;
    }

    void fill(const Tiling& tiling, int tile, QueryTile& out) const {
        const int dim = s_.head_dim, start = batch_.starts[extent_];
        const int count = batch_.stops[extent_] - start;
        const size_t width = size_t(s_.heads + 2 * s_.kv_heads) * dim;
        const size_t steps = size_t(s_.heads) * dim / TILE_K;
        const int kv_first = tile % tiling.tiles_of_heads * tiling.heads_per_tile;
        const int kv_last = std::min(s_.kv_heads, kv_first + tiling.heads_per_tile);
        const int first = tile / tiling.tiles_of_heads * tiling.tokens_per_tile;
        const int last = std::min(count, first + tiling.tokens_per_tile);
        out.alone = count == 1;
        out.n = 0;
        for (int i = first; i < last; i++)
            for (int head = kv_first * tiling.group; head < kv_last * tiling.group; head++) {
                const size_t token = batch_.offsets[extent_] + i;
                out.queries[out.n++] = {scratch_.qkv + token * width + head * dim,
                                        scratch_.packed + token / TILE * steps * 256,
                                        int(token % TILE), head * dim / TILE_K, head / tiling.group - kv_first, start + i};
            }
        const size_t at = batch_.slots[extent_] * cache_.slot_stride + kv_first * cache_.head_stride;
        const int oldest = s_.window ? std::max(0, start + first - s_.window + 1) : 0;
        out.range = {{cache_.keys + at, cache_.values + at, size_t(cache_.head_stride),
                      size_t(cache_.block_gap), kv_last - kv_first},
                     oldest / BLOCK * BLOCK,
                     start + last};
    }

    const Shape& s_;
    const Batch& batch_;
    const Cache& cache_;
    const Scratch& scratch_;
    const Work work_;
    Taken* taken_;
    bool first_ = true;
    int others_ = 0;               // whose share this thread takes from: its own is 0
    int extent_ = 0, before_ = 0;  // where the last tile was, and how many lie in earlier extents
};
