// Where K and V of a call of attention lie, and asking for them ahead of their use.
#pragma once

#include <algorithm>

#include "shapes.h"

constexpr int LINE = 64;    // bytes that memory gives at a time

struct Lines {  // to ask for, so many at a time
    const char *next, *end;
    int each;
};

struct Heads {  // K and V [positions, dim] of `count` kv heads
    const bf16 *k, *v;
    size_t stride, block_gap;
    int count;

    // The same, to be read in the block that position `first` lies in.
    Heads within(int first) const {
        const size_t skipped = first / BLOCK * block_gap;
        return {k + skipped, v + skipped, stride, block_gap, count};
    }
};

struct Range {  // positions [first, stop) of some heads; first begins a block
    Heads heads;
    int first, stop;
};

// Asks for the lines of ranges in the order of their use: block by block, K of each head, then V.
// A core reads at its full rate only while many lines are under way. So the cursor stays a block
// ahead of the arithmetic, across the end of a range, and moves on by a few lines at a time all
// through it. (The hardware does not see that far: it stops at the end of each small page.)
class Stream {
   public:
    explicit Stream(int dim) : row_bytes_(size_t(dim) * sizeof(bf16)) {}

    // Begin with a range, and ask for its first block.
    void start(const Range& range) {
        append(range);
        const int rows = std::min(BLOCK, range.stop - range.first);
        pull(2 * range.heads.count * rows * int(row_bytes_ / LINE));
    }

    // Go on to a range where the one before ends; at most one may be waiting.
    void append(const Range& range) {
        if (waiting_) begin();
        next_ = range;
        waiting_ = true;
    }

    // Ask for the next lines.
    void pull(int lines) {
        const char *at = at_, *end = end_;
        for (; lines > 0; lines--, at += LINE) {
            if (at == end) {
                if (!next_run()) break;
                at = at_, end = end_;
            }
            _mm_prefetch(at, _MM_HINT_T1);
        }
        at_ = at;
    }

   private:
    void begin() {
        now_ = next_;
        waiting_ = false;
        run_ = 0;
    }

    // Move the cursor to the next run of rows; false where nothing is left. No call: it would cost the
    // loops around it their vector registers.
    [[gnu::always_inline]] bool next_run() {
        if (now_.first < now_.stop && run_ == 2 * now_.heads.count) {
            now_.first += BLOCK;
            run_ = 0;
        }
        if (now_.first >= now_.stop) {
            if (!waiting_) return false;
            begin();
        }
        const Heads heads = now_.heads.within(now_.first);
        const bool keys = run_ < heads.count;
        const bf16* base = keys ? heads.k + run_ * heads.stride
                                : heads.v + (run_ - heads.count) * heads.stride;
        const char* rows = reinterpret_cast<const char*>(base);
        at_ = rows + now_.first * row_bytes_;
        end_ = rows + std::min(now_.first + BLOCK, now_.stop) * row_bytes_;
        run_++;
        return true;
    }

    const size_t row_bytes_;
    Range now_{}, next_{};
    bool waiting_ = false;
    int run_ = 0;  // of the block: `count` runs of K, as many of V
    const char *at_ = nullptr, *end_ = nullptr;
};
