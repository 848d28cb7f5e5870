// One token, or a few, against the landmark memory: everything between the projections of a layer, in one launch.
//
// For each head: turn q to its position, score the landmarks of all kept blocks, choose the best k, attend to them, to
// the unfinished block and to the new keys, and store the new keys and values (spec section 4; ops Rope, Rope,
// LandmarkScores, SelectBlocks, RetrievalAttention, AppendKv in one). A head is a cluster of RANKS blocks, 8 for a memory
// of some size. They score a share of the landmarks each, exchange their best ones by distributed shared memory, and then
// take one block of keys each; the results go to one of them, which weighs them by the outer softmax. So a token costs two
// cluster barriers, one trip to memory for the landmarks, and one for the blocks. Before sm_90 there are no clusters, and
// one block does all of a head.
//
// Positions are turned on the query's side only: R(p) q · R(s + o) k = R(o)ᵀ R(p - s) q · k. The queries turned to the
// few starts s that a slot can have, and the angles of all offsets o inside a block, are made ready before the kernel
// before this one has finished.
//
// An earlier block gives its inner softmax's output and the score of its landmark; the query's own block gives its
// output and the log of its sum. Then both are weighed alike: exp(score - M) / sum.
//
// Stores nothing that anybody could still read: the slot of the unfinished block belongs to this head's cluster. Several tokens
// may begin another block, in the slot of one that is still read until the last barrier; a single one is stored as soon as a
// block of threads has nothing else to do. With grouped queries, several clusters read one key head, and -DAPPEND=0.
//
// -HEAD_DIM: X_T (q, k, v, rings, landmarks, out), HEAD_DIM, BLOCK, TOPK, TOKENS (queries, <= 4), STYLE (0 pairs, 1 halves),
//     ORIGIN (0 blocks seen, 1 blocks retrieved), APPEND, SHARES, CACHED, RANKS (1, 2, 4 or 8).
#include "cluster.cuh"
#include "element.cuh"
#include "rotary.cuh"

#define WARPS 8
#define THREADS (WARPS * 32)
// Elements in 16 bytes; lanes that share a key; those and idle ones up to a power of 2; keys that a warp, and the block,
// take at once; keys for each thread.
#define EPL (X_T == 0 ? 4 : 8)
#define LANES (HEAD_DIM / EPL)
#define SPAN (LANES <= 4 ? 4 : LANES <= 8 ? 8 : LANES <= 16 ? 16 : 32)
#define WARP_KEYS (32 / SPAN)
#define ROUND_KEYS (WARPS * WARP_KEYS)
#define ROUNDS ((BLOCK + ROUND_KEYS - 1) / ROUND_KEYS)
// Turned queries: for old landmarks; for landmarks of the last k blocks; for slots 0 .. k + 2.
#define SLOTS_FROM (1 + TOPK)
#define TURNED (SLOTS_FROM + TOPK + 3)
#define ITEMS (TOPK + 2)
// Queries whose results one block gathers: t belongs to rank t % RANKS.
#define OWNED ((TOKENS + RANKS - 1) / RANKS)
// Landmarks of a block of threads among which the best are found by comparing all with all.
#define COUNTED 128

typedef Element<X_T> X;
typedef X::Bits Bits;

// x modulo n, for x < 2 n.
__device__ __forceinline__ int wrapped(int x, int n) { return x < n ? x : x - n; }

// By one warp: the best TOPK of `count` entries, best first; of equal scores the lower number counts as the better one.
// `entry` gives the score of an entry, as an ordered integer, and its number; `take` gets what is found, round by round.
// Rolled up: the code runs once in a launch, and would be fetched as slowly as it runs.
template <class Entry, class Take>
__device__ __forceinline__ void best_entries(int count, int lane, const Entry &entry, const Take &take) {
    u32 limit_score = 0xffffffffu, limit = 0;
    bool is_first = true;
#pragma unroll 1
    for (int i = 0; i < TOPK; i++) {
        u32 score = 0, number = NO_BLOCK;
#pragma unroll 1
        for (int c = lane; c < count; c += 32) {
            uint2 e = entry(c);
            bool below = is_first || e.x < limit_score || (e.x == limit_score && e.y > limit);
            bool better = number == NO_BLOCK || e.x > score || (e.x == score && e.y < number);
            if (e.y != NO_BLOCK && below && better) score = e.x, number = e.y;
        }
        u32 top, which;
        best_of_warp(score, number, top, which);
        limit_score = top, limit = which, is_first = false;
        take(i, make_uint2(top, which));
    }
}

// By all threads: those of `count` entries than which fewer than TOPK are better, in one pass in which every entry meets every
// other one. `take` gets how many are better, and the entry, in one thread.
template <class Entry, class Take>
__device__ __forceinline__ void count_better(int count, const Entry &entry, const Take &take) {
    const int part = threadIdx.x % 4;
#pragma unroll 1
    for (int from = 0; from < count; from += THREADS / 4) {
        const int c = from + threadIdx.x / 4;
        const uint2 mine = c < count ? entry(c) : make_uint2(0u, NO_BLOCK);
        int better = 0;
#pragma unroll 4
        for (int o = part; o < count; o += 4) {
            const uint2 other = entry(o);
            better += other.x > mine.x || (other.x == mine.x && other.y < mine.y);
        }
        better += __shfl_xor_sync(0xffffffffu, better, 1);
        better += __shfl_xor_sync(0xffffffffu, better, 2);
        if (part == 0 && mine.y != NO_BLOCK && better < TOPK) take(better, mine);
    }
}

// Two blocks fit a multiprocessor's registers, this one and one of the product behind it, which fills its rings meanwhile.
extern "C" __global__ void __launch_bounds__(THREADS, TOKENS == 1 && HEAD_DIM <= 128 ? 2 : 1)
retrieval_decode(const Bits *q, int q_stride, const Bits *k, int k_stride, const Bits *v, int v_stride,
                 const int *positions, const unsigned *lengths, const unsigned *counts, const float *frequencies,
                 Bits *keys, Bits *values, Bits *landmarks, Bits *out, unsigned *chosen_out, float *shares, int blocks,
                 int heads, int kv_heads, u32 *tags, u32 *hands, Bits *cached_keys, Bits *cached_values, int ways) {
    extern __shared__ __align__(16) unsigned char shared[];
    float2 *table = reinterpret_cast<float2 *>(shared);                    // (BLOCK, HEAD_DIM / 2): angles of offsets
    float *turned = reinterpret_cast<float *>(table + BLOCK * (HEAD_DIM / 2));    // (TOKENS, TURNED, HEAD_DIM)
    float *raw = turned + TOKENS * TURNED * HEAD_DIM;                                  // (TOKENS, HEAD_DIM)
    float *sums = raw + TOKENS * HEAD_DIM;                                             // (WARPS, HEAD_DIM)
    float *result = sums + WARPS * HEAD_DIM;                                      // (OWNED, ITEMS, HEAD_DIM)
    float *weight = result + OWNED * ITEMS * HEAD_DIM;                            // (OWNED, ITEMS): outer scores
    float *inner = weight + (OWNED * ITEMS + 3) / 4 * 4;                           // (BLOCK)
    uint2 *candidates = reinterpret_cast<uint2 *>(inner + (BLOCK + 3) / 4 * 4); // (TOKENS, RANKS, TOPK)
    uint2 *of_warps = candidates + TOKENS * RANKS * TOPK;                       // (TOKENS, WARPS, TOPK)
    unsigned *chosen = reinterpret_cast<unsigned *>(of_warps + TOKENS * WARPS * TOPK); // (TOKENS, TOPK)
    u32 *scores = chosen + (TOKENS * TOPK + 3) / 4 * 4; // (TOKENS, share of the blocks): as ordered integers

#if CACHED
    // Of each chosen block: its way in the cache, and whether it has to be fetched into it (-1: it is not to be kept).
    __shared__ int way_of[TOKENS * TOPK], fetch[TOKENS * TOPK];
    __shared__ u32 next_hand;
#endif
    const int rank = blockIdx.x, h = blockIdx.y, b = blockIdx.z, hk = h / (heads / kv_heads);
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const int slots = blocks + 1;
    cluster_arrive();
    let_launch_behind_begin();

    // ---- what does not depend on the kernel before: lengths and positions are inputs of the step
    const int length = lengths[b];
    const State now = state_of(length, BLOCK, blocks, TOPK, ORIGIN);
    const int unfinished = now.unfinished, cached = now.cached, retrieved = now.retrieved, old = now.old;
    const int share = (cached + RANKS - 1) / RANKS, first = min(rank * share, cached), last = min(first + share, cached);
    const Bits *marks = landmarks + (long long)(b * kv_heads + hk) * slots * HEAD_DIM;
    // Slots of the oldest block and of the unfinished one, and the slot of block j < cached: divisions are long.
    const int oldest_slot = now.oldest % slots, own_slot = wrapped(oldest_slot + cached, slots);
    auto slot_of = [&](int j) { return wrapped(oldest_slot + j, slots); };
#pragma unroll 1
    for (int i = thread; i < (last - first) * int(HEAD_DIM * sizeof(Bits) / 128 + 1); i += THREADS) {
        int lines = HEAD_DIM * sizeof(Bits) / 128 + 1, j = first + i / lines;
        const char *line = reinterpret_cast<const char *>(marks + (long long)slot_of(j) * HEAD_DIM) + min(i % lines * 128, int(HEAD_DIM * sizeof(Bits)) - 1);
        asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
    }
#pragma unroll 1
    for (int i = thread; i < BLOCK * (HEAD_DIM / 2); i += THREADS) {
        Angle a = angle_of(float(i / (HEAD_DIM / 2)) * frequencies[i % (HEAD_DIM / 2)]);
        table[i] = make_float2(a.cos, a.sin);
    }

    // Wide loads may reach behind the last choice.
#pragma unroll 1
    for (int i = TOKENS * TOPK + thread; i < (TOKENS * TOPK + 3) / 4 * 4; i += THREADS) chosen[i] = NO_BLOCK;

    // Angles to the few places that a query is turned to: cosines and sines stand where what they turn is going to.
    auto turns = [&](auto &&turn) {
#pragma unroll 1
        for (int i = thread; i < TOKENS * TURNED * (HEAD_DIM / 2); i += THREADS) {
            int pair = i % (HEAD_DIM / 2), what = i / (HEAD_DIM / 2) % TURNED, t = i / (HEAD_DIM / 2) / TURNED;
            int e = STYLE == 0 ? 2 * pair : pair, f = STYLE == 0 ? e + 1 : e + HEAD_DIM / 2;
            float *to = turned + (t * TURNED + what) * HEAD_DIM;
            turn(t, what, pair, e, f, to[e], to[f]);
        }
    };
    turns([&](int t, int what, int pair, int, int, float &cos, float &sin) {
        int back = what == 0 ? BLOCK - 1 : what < SLOTS_FROM ? what * BLOCK + BLOCK - 1 : (what - SLOTS_FROM) * BLOCK;
        Angle a = angle_of(float(positions[b * TOKENS + t] - back) * frequencies[pair]);
        cos = a.cos, sin = a.sin;
    });
    // The first landmarks were written by earlier steps: they arrive while the kernel before ends.
    const int part = lane % SPAN, piece = part * EPL;
    const bool has = LANES == SPAN || part < LANES;
    uint4 coming[4];
    auto load_landmarks = [&](int from) {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            int j = from + (r * WARPS + warp) * WARP_KEYS + lane / SPAN;
            coming[r] = make_uint4(0, 0, 0, 0);
            if (j < last && has)
                coming[r] = *reinterpret_cast<const uint4 *>(marks + (long long)slot_of(j) * HEAD_DIM + piece);
        }
    };
    load_landmarks(first);
#if !CACHED
    // So do the earlier keys of the query's own block.
    if (thread == 0 && rank == TOPK % RANKS && unfinished > 0) {
        const long long own = ((long long)(b * slots + own_slot) * kv_heads + hk) * BLOCK * HEAD_DIM;
        prefetch_bulk(keys + own, unfinished * HEAD_DIM * sizeof(Bits));
        prefetch_bulk(values + own, unfinished * HEAD_DIM * sizeof(Bits));
    }
#endif

    wait_for_launch_ahead();
#pragma unroll 1
    for (int i = thread; i < TOKENS * HEAD_DIM; i += THREADS)
        raw[i] = X::load(q[(long long)(b * TOKENS + i / HEAD_DIM) * q_stride + h * HEAD_DIM + i % HEAD_DIM]);
    __syncthreads();
    turns([&](int t, int, int, int e, int f, float &first, float &second) {
        float x = raw[t * HEAD_DIM + e], y = raw[t * HEAD_DIM + f], cos = first, sin = second;
        first = x * cos - y * sin;
        second = y * cos + x * sin;
    });
    __syncthreads();

    // ---- scores of this block's share of the landmarks
    const int each = (blocks + RANKS - 1) / RANKS;
    {
        float away[TOKENS][EPL];
#pragma unroll
        for (int t = 0; t < TOKENS; t++)
#pragma unroll
            for (int e = 0; e < EPL; e++) away[t][e] = has ? turned[t * TURNED * HEAD_DIM + piece + e] : 0.0f;
        for (int from = first; from < last; from += 4 * ROUND_KEYS) {
            const uint4 key[4] = {coming[0], coming[1], coming[2], coming[3]};
            load_landmarks(from + 4 * ROUND_KEYS);
#pragma unroll
            for (int r = 0; r < 4; r++) {
                int j = from + (r * WARPS + warp) * WARP_KEYS + lane / SPAN;
                float x[EPL];
                unpack<X_T>(key[r], x);
#pragma unroll
                for (int t = 0; t < TOKENS; t++) {
                    float s = 0.0f;
                    if (j < old) {
#pragma unroll
                        for (int e = 0; e < EPL; e++) s = fmaf(x[e], away[t][e], s);
                    } else if (j < last && has) {
                        const float *near = turned + (t * TURNED + 1 + j - old) * HEAD_DIM + piece;
#pragma unroll
                        for (int e = 0; e < EPL; e++) s = fmaf(x[e], near[e], s);
                    }
#pragma unroll
                    for (int i = SPAN / 2; i > 0; i /= 2) s += __shfl_xor_sync(0xffffffffu, s, i);
                    if (part == 0 && j < last) scores[t * each + j - first] = ordered(s);
                }
            }
        }
    }
    cluster_wait(); // every block of the cluster runs: its shared memory may be written
    __syncthreads();
#if TOPK > 0
    // ---- the best of this block's share; these go to all blocks, which find the best of all
    const int entries = last - first;
    auto to_all = [&](int t) {
        return [&, t](int place, uint2 best) {
            for (int to = 0; to < RANKS; to++) push(at_rank(candidates + (t * RANKS + rank) * TOPK + place, to), best);
        };
    };
    // Where there are fewer than k.
    if (thread < TOPK && thread >= entries)
        for (int t = 0; t < TOKENS; t++) to_all(t)(thread, make_uint2(0u, NO_BLOCK));
    if (share <= COUNTED) {
#pragma unroll 1
        for (int t = 0; t < TOKENS; t++)
            count_better(entries, [&](int c) { return make_uint2(scores[t * each + c], u32(first + c)); }, to_all(t));
    } else {
        // First the best of each warp's part.
        const int rounds = (entries + THREADS - 1) / THREADS;
#pragma unroll 1
        for (int t = 0; t < TOKENS; t++) {
            auto scored = [&](int c) {
                int j = first + c / 32 * THREADS + warp * 32 + c % 32;
                return j < last ? make_uint2(scores[t * each + j - first], u32(j)) : make_uint2(0u, NO_BLOCK);
            };
            best_entries(rounds * 32, lane, scored, [&](int i, uint2 best) {
                if (lane == 0) of_warps[(t * WARPS + warp) * TOPK + i] = best;
            });
        }
        __syncthreads();
#pragma unroll 1
        for (int t = 0; t < TOKENS; t++)
            count_better(WARPS * TOPK, [&](int c) { return of_warps[t * WARPS * TOPK + c]; }, to_all(t));
    }
    cluster_arrive();
    cluster_wait();
    u32 *winners = reinterpret_cast<u32 *>(of_warps); // (TOKENS, TOPK), best first
#pragma unroll 1
    for (int i = thread; i < TOKENS * TOPK; i += THREADS)
        if (i % TOPK >= cached) winners[i] = NO_BLOCK;
#pragma unroll 1
    for (int t = 0; t < TOKENS; t++)
        count_better(RANKS * TOPK, [&](int c) { return candidates[t * RANKS * TOPK + c]; },
                     [&](int place, uint2 best) { winners[t * TOPK + place] = best.y; });
    __syncthreads();
    // In time order; queries that are padding choose nothing.
#pragma unroll 1
    for (int i = thread; i < TOKENS * TOPK; i += THREADS) {
        const int t = i / TOPK, o = i % TOPK;
        const u32 mine = winners[i];
        int at = 0;
#pragma unroll
        for (int p = 0; p < TOPK; p++) {
            const u32 other = winners[t * TOPK + p];
            at += other < mine || (other == mine && p < o);
        }
        chosen[t * TOPK + at] = t < int(counts[b]) ? mine : NO_BLOCK;
    }
    __syncthreads();
    if (chosen_out && rank == 0)
#pragma unroll 1
        for (int i = thread; i < TOKENS * TOPK; i += THREADS) chosen_out[(b * heads + h) * TOKENS * TOPK + i] = chosen[i];
#endif

#if CACHED
    // ---- where the chosen blocks are
    u32 *mine_tags = tags + (long long)(b * heads + h) * ways;
#pragma unroll 1
    for (int i = thread; i < TOKENS * TOPK; i += THREADS) way_of[i] = -1, fetch[i] = 0;
    __syncthreads();
#pragma unroll 1
    for (int w = thread; w < ways; w += THREADS) {
        u32 tag = mine_tags[w];
        for (int i = 0; i < TOKENS * TOPK; i++)
            if (chosen[i] != NO_BLOCK && tag == u32(now.oldest) + chosen[i] + 1) way_of[i] = w;
    }
    __syncthreads();
    if (thread == 0) {
        u32 hand = hands[b * heads + h];
        for (int i = 0; i < TOKENS * TOPK; i++) {
            if (chosen[i] == NO_BLOCK || way_of[i] >= 0) continue;
            bool again = false;
            for (int o = 0; o < i; o++) again = again || chosen[o] == chosen[i];
            if (again) continue; // an earlier query fetches it; this one reads it beside
            bool taken = true;
            while (taken) {
                hand = hand + 1 < u32(ways) ? hand + 1 : 0;
                taken = false;
                for (int o = 0; o < TOKENS * TOPK; o++) taken = taken || way_of[o] == int(hand);
            }
            way_of[i] = hand, fetch[i] = 1;
        }
        next_hand = hand;
    }
    __syncthreads();
#endif

    // ---- attention: an item is one block of keys of one query
    const float scale = rsqrtf(float(HEAD_DIM)) * LOG2_E;
    const long long page = (long long)BLOCK * HEAD_DIM;
    auto page_of = [&](int slot) { return ((long long)(b * slots + slot) * kv_heads + hk) * page; };
#if TOPK > 0 && !CACHED
    // This block's later items come nearer while it has the first one in hand.
#pragma unroll 1
    for (int item = rank + RANKS * (thread + 1); item < TOKENS * ITEMS; item += RANKS * THREADS) {
        const int slot = item % ITEMS;
        if (slot >= min(TOPK, retrieved)) continue;
        const unsigned j = chosen[item / ITEMS * TOPK + slot];
        if (j == NO_BLOCK) continue;
        prefetch_bulk(keys + page_of(slot_of(j)), page * sizeof(Bits));
        prefetch_bulk(values + page_of(slot_of(j)), page * sizeof(Bits));
    }
#endif
#pragma unroll 1
    for (int item = rank; item < TOKENS * ITEMS; item += RANKS) {
        const int t = item / ITEMS, slot = item % ITEMS, own = unfinished + t, place = t / RANKS * ITEMS;
        int at, count = BLOCK;
        bool closed = true;
        long long ring = 0;
        const Bits *from_keys = keys, *from_values = values;
        Bits *keep_keys = nullptr, *keep_values = nullptr;
        int local = -1;
        if (slot < TOPK) {
            if (slot >= retrieved) continue;
#if TOPK > 0
            unsigned j = chosen[t * TOPK + slot];
            if (j == NO_BLOCK) { // padding: the landmark's score is 0, and so is what it stands for
#pragma unroll 1
                for (int e = thread; e < HEAD_DIM; e += THREADS) push(at_rank(result + (place + slot) * HEAD_DIM + e, t % RANKS), 0.0f);
                if (thread == 0) push(at_rank(weight + place + slot, t % RANKS), 0.0f);
                continue;
            }
            at = slot + (int(j) >= old ? 1 : 0);
            ring = page_of(slot_of(j));
#if CACHED
            const int way = way_of[t * TOPK + slot];
            if (way >= 0) {
                const long long place = ((long long)(b * heads + h) * ways + way) * page;
                if (fetch[t * TOPK + slot]) keep_keys = cached_keys + place, keep_values = cached_values + place;
                else from_keys = cached_keys, from_values = cached_values, ring = place;
            }
#endif
#endif
        } else {
            local = slot - TOPK;
            if (local * BLOCK > own) continue;
            at = now.start + local;
            closed = own >= (local + 1) * BLOCK;
            if (!closed) count = min(own - local * BLOCK + 1, BLOCK - 1);
            ring = page_of(own_slot);
        }
        uint4 key[ROUNDS], value[ROUNDS];
#pragma unroll
        for (int r = 0; r < ROUNDS; r++) {
            int o = r * ROUND_KEYS + warp * WARP_KEYS + lane / SPAN;
            key[r] = value[r] = make_uint4(0, 0, 0, 0);
            if (has && o < count) {
                const Bits *kp = from_keys + ring + o * HEAD_DIM, *vp = from_values + ring + o * HEAD_DIM;
                if (local >= 0 && local * BLOCK + o >= unfinished) {
                    long long row = b * TOKENS + local * BLOCK + o - unfinished;
                    kp = k + row * k_stride + hk * HEAD_DIM, vp = v + row * v_stride + hk * HEAD_DIM;
                }
                key[r] = *reinterpret_cast<const uint4 *>(kp + piece);
                if (o < BLOCK - 1) value[r] = *reinterpret_cast<const uint4 *>(vp + piece);
            }
        }
        if (CACHED && keep_keys) {
#pragma unroll
            for (int r = 0; r < ROUNDS; r++) {
                int o = r * ROUND_KEYS + warp * WARP_KEYS + lane / SPAN;
                if (!has || o >= BLOCK) continue;
                *reinterpret_cast<uint4 *>(keep_keys + o * HEAD_DIM + piece) = key[r];
                *reinterpret_cast<uint4 *>(keep_values + o * HEAD_DIM + piece) = value[r];
            }
        }
        // This thread's elements of the query, and their partners with the sign that the turn gives them.
        float mine[EPL], other[EPL];
        const float *query = turned + (t * TURNED + SLOTS_FROM + at) * HEAD_DIM;
#pragma unroll
        for (int e = 0; e < EPL; e++) {
            mine[e] = has ? query[piece + e] : 0.0f;
            float p = has ? query[partner_of<STYLE, HEAD_DIM>(piece + e)] : 0.0f;
            other[e] = is_first<STYLE, HEAD_DIM>(piece + e) ? p : -p;
        }
        float score[ROUNDS];
#pragma unroll
        for (int r = 0; r < ROUNDS; r++) {
            int o = r * ROUND_KEYS + warp * WARP_KEYS + lane / SPAN;
            float x[EPL], s = 0.0f;
            unpack<X_T>(key[r], x);
            const float2 *angles = table + min(o, BLOCK - 1) * (HEAD_DIM / 2);
#pragma unroll
            for (int e = 0; e < EPL; e++) {
                float2 a = has ? angles[pair_of<STYLE, HEAD_DIM>(piece + e)] : make_float2(0.0f, 0.0f);
                s = fmaf(x[e], fmaf(a.x, mine[e], a.y * other[e]), s);
            }
#pragma unroll
            for (int i = SPAN / 2; i > 0; i /= 2) s += __shfl_xor_sync(0xffffffffu, s, i);
            score[r] = s * scale;
            if (part == 0 && o < BLOCK) inner[o] = o < count ? score[r] : MINUS_INFINITY;
        }
        __syncthreads();
        const int ordinary = min(count, BLOCK - 1);
        float top = MINUS_INFINITY, sum = 0.0f;
        for (int o = lane; o < ordinary; o += 32) top = fmaxf(top, inner[o]);
#pragma unroll
        for (int i = 16; i > 0; i /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, i));
        for (int o = lane; o < ordinary; o += 32) sum += exp2f(inner[o] - top);
#pragma unroll
        for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, i);
        float acc[EPL];
#pragma unroll
        for (int e = 0; e < EPL; e++) acc[e] = 0.0f;
#pragma unroll
        for (int r = 0; r < ROUNDS; r++) {
            int o = r * ROUND_KEYS + warp * WARP_KEYS + lane / SPAN;
            float w = o < ordinary ? exp2f(score[r] - top) : 0.0f, x[EPL];
            unpack<X_T>(value[r], x);
#pragma unroll
            for (int e = 0; e < EPL; e++) acc[e] = fmaf(w, x[e], acc[e]);
        }
#pragma unroll
        for (int e = 0; e < EPL; e++)
#pragma unroll
            for (int i = SPAN; i < 32; i *= 2) acc[e] += __shfl_xor_sync(0xffffffffu, acc[e], i);
        if (lane < LANES)
#pragma unroll
            for (int e = 0; e < EPL; e++) sums[warp * HEAD_DIM + piece + e] = acc[e];
        const float outer = closed ? inner[BLOCK - 1] : top + log2f(sum), over = 1.0f / sum;
        __syncthreads();
#pragma unroll 1
        for (int e = thread; e < HEAD_DIM; e += THREADS) {
            float x = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) x += sums[w * HEAD_DIM + e];
            push(at_rank(result + (place + slot) * HEAD_DIM + e, t % RANKS), x * over);
        }
        if (thread == 0) push(at_rank(weight + place + slot, t % RANKS), outer);
        __syncthreads();
    }
    // ---- the new keys and values, without positions
    auto append = [&]() {
        if (!APPEND || rank != RANKS - 1) return;
        const int count = min(int(counts[b]), TOKENS);
#pragma unroll 1
        for (int i = thread; i < count * HEAD_DIM; i += THREADS) {
            int t = i / HEAD_DIM, e = i % HEAD_DIM, position = unfinished + t, slot = wrapped(own_slot + position / BLOCK, slots), o = position % BLOCK;
            Bits key = k[(long long)(b * TOKENS + t) * k_stride + hk * HEAD_DIM + e];
            keys[page_of(slot) + o * HEAD_DIM + e] = key;
            values[page_of(slot) + o * HEAD_DIM + e] = v[(long long)(b * TOKENS + t) * v_stride + hk * HEAD_DIM + e];
            if (o == BLOCK - 1) landmarks[((long long)(b * kv_heads + hk) * slots + slot) * HEAD_DIM + e] = key;
        }
    };
    if (TOKENS == 1) append();
    cluster_arrive();
    cluster_wait();

    // ---- the outer softmax, by the block that owns the query
    for (int t = rank; t < TOKENS; t += RANKS) {
        const float *score = weight + t / RANKS * ITEMS, *from = result + t / RANKS * ITEMS * HEAD_DIM;
        const int locals = unfinished + t >= BLOCK ? 2 : 1;
        auto exists = [&](int i) { return i < TOPK ? i < retrieved : i < TOPK + locals; };
        float top = MINUS_INFINITY, sum = 0.0f;
#pragma unroll
        for (int i = 0; i < ITEMS; i++)
            if (exists(i)) top = fmaxf(top, score[i]);
#pragma unroll
        for (int i = 0; i < ITEMS; i++)
            if (exists(i)) sum += exp2f(score[i] - top);
#pragma unroll 1
        for (int e = thread; e < HEAD_DIM; e += THREADS) {
            float x = 0.0f;
#pragma unroll
            for (int i = 0; i < ITEMS; i++)
                if (exists(i)) x = fmaf(exp2f(score[i] - top), from[i * HEAD_DIM + e], x);
            out[(long long)((b * TOKENS + t) * heads + h) * HEAD_DIM + e] = X::store(x / sum);
        }
        if (SHARES && thread < TOPK)
            shares[((b * heads + h) * TOKENS + t) * TOPK + thread] = thread < retrieved ? exp2f(score[thread] - top) / sum : 0.0f;
    }
#if CACHED
    // All have looked. A tag of a block that is written now is of another text that stood there before.
    if (rank == 0) {
        const u32 written = u32(length) / BLOCK + 1, last_written = u32(length + max(int(counts[b]), 1) - 1) / BLOCK + 1;
#pragma unroll 1
        for (int w = thread; w < ways; w += THREADS)
            if (mine_tags[w] >= written && mine_tags[w] <= last_written) mine_tags[w] = 0;
        __syncthreads();
#pragma unroll 1
        for (int i = thread; i < TOKENS * TOPK; i += THREADS)
            if (fetch[i]) mine_tags[way_of[i]] = u32(now.oldest) + chosen[i] + 1;
        if (thread == 0) hands[b * heads + h] = next_hand;
    }
#endif
    if (TOKENS > 1) append();
}
