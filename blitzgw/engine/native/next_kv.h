// Asking for KV of the layer that comes next while this one multiplies.
//
// A step of many sequences is bound by arithmetic in its products and by memory in its attention. So
// half of the KV that decode rows will read is asked for while products leave memory idle, and waits in
// the last cache. It is every other page of K and V: attention finds both halves mixed, so that its
// arithmetic goes on while the other one comes, and no page is looked up for a part of it.
#pragma once

#include <unistd.h>

#include "shapes.h"
#include "stream.h"

class NextKv {
   public:
    NextKv() = default;  // there is no next layer

    // For this thread's share of extents, as they are dealt (deal.h).
    NextKv(const Shape& s, const Batch& batch, const Cache& cache, Work work)
        : s_(&s), batch_(&batch), cache_(&cache), threads_(work.threads), extent_(work.thread),
          left_(cache_bytes() / CACHE_SHARE / work.threads) {}

    // Up to so many lines that follow each other, for the caller to ask for.
    Lines take(int lines) {
        if (lines == 0 || (at_ == end_ && !next_run())) return {};
        const char* from = at_;
        at_ = std::min(end_, at_ + lines * LINE);
        return {from, at_, 1};
    }

   private:
    static constexpr int PAGE = 4096;  // bytes
    static constexpr int CACHE_SHARE = 4;  // of the last cache: all else goes through it too

    static int64_t cache_bytes() {
        static const int64_t bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
        return std::max<int64_t>(0, bytes);
    }

    // Move on by a piece, or to K or V of another head; false where nothing is left.
    bool next_run() {
        if (stop_ - end_ > PAGE) {
            at_ = end_ + PAGE;
            end_ = std::min(at_ + PAGE, stop_);
            return true;
        }
        if (extent_ >= (batch_ ? batch_->extents : 0) || left_ <= 0) return false;
        const int start = batch_->starts[extent_];
        const int oldest = s_->window ? std::max(0, start - s_->window) / BLOCK * BLOCK : 0;
        const int first = oldest + block_ * BLOCK;
        if (batch_->stops[extent_] - start == 1 && first < start) {
            const bf16* base = run_ < s_->kv_heads ? cache_->keys : cache_->values;
            base += batch_->slots[extent_] * cache_->slot_stride +
                    run_ % s_->kv_heads * cache_->head_stride + first / BLOCK * cache_->block_gap;
            const size_t row_bytes = s_->head_dim * sizeof(bf16);
            const size_t bytes = std::min(BLOCK, start - first) * row_bytes;
            at_ = reinterpret_cast<const char*>(base) + first * row_bytes;
            stop_ = at_ + bytes;
            end_ = std::min(at_ + PAGE, stop_);
            left_ -= bytes / 2;
            block_++;
            return true;
        }
        block_ = 0;
        if (++run_ == 2 * s_->kv_heads) {
            run_ = 0;
            extent_ += threads_;
        }
        return true;
    }

    const Shape* s_ = nullptr;
    const Batch* batch_ = nullptr;
    const Cache* cache_ = nullptr;
    int threads_ = 1, extent_ = 0, run_ = 0, block_ = 0;
    int64_t left_ = 0;  // bytes that may be asked for
    const char *at_ = nullptr, *end_ = nullptr, *stop_ = nullptr;
};
