// One replica of a serving engine: continuous batching with chunked prefill over paged blocks. A pass that carries prompts is
// one span of time; decode steps between two events are one span together, which an arrival may cut short.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <queue>
#include <utility>
#include <vector>

#include "simulator/serving/block_pool.hpp"
#include "simulator/serving/cost.hpp"
#include "simulator/serving/request.hpp"

namespace kvatlas::sim {

inline constexpr double kNever = std::numeric_limits<double>::infinity();

/// How far a request has come.
struct Progress {
  enum class State : std::uint8_t { absent, waiting, prefilling, decoding, handed_over, done, refused };
  double arrive_s = 0, scheduled_s = -1, first_token_s = -1, last_token_s = -1;
  std::int64_t private_blocks = 0, shared_blocks = 0, join_step = 0;
  std::int32_t emitted = 0;        // tokens so far; while decoding: when it joined the decodes
  std::int32_t processed = 0;      // tokens in the cache while its prompt is processed
  std::int32_t target = 0;         // tokens to process before the next one is emitted: prompt, and what a preemption threw away
  std::int32_t hit_tokens = 0;     // found in the prefix cache when it was first admitted
  std::uint32_t used_segments = 0; // leading segments that it uses
  std::uint32_t admission = 0;     // counts admissions, so that queued endings of earlier ones are void
  std::int32_t preemptions = 0;
  State state = State::absent;
  bool cache_arrives = false;      // its prompt was processed elsewhere and was transferred
};

/// What a replica did in a span of time; for timelines.
struct Span {
  double start_s = 0, end_s = 0;
  std::int64_t steps = 0, decodes = 0, prefill_tokens = 0, waiting = 0, blocks_in_use = 0;
  int replica = 0;
};

/// What a replica may do, as engines let users set it.
struct ReplicaLimits {
  std::int64_t batched_tokens = 8192;  // tokens of one pass
  std::int64_t sequences = 256;        // running at once
  double prefix_credit = 1;            // share of a found prefix that the method can use
  bool hands_over = false;             // gives requests away after their first token
};

/// Sums that must balance.
struct ReplicaCounts {
  std::int64_t prefilled_tokens = 0, emitted_tokens = 0, hit_tokens = 0, asked_tokens = 0, preemptions = 0, passes = 0, spans = 0;
  double busy_s = 0;
};

class Replica {
 public:
  Replica(ServingCost& cost, const ReplicaLimits& limits, const Stream& stream, std::vector<Progress>& progress, int number);

  /// A request arrives; false when it is refused because it could never fit.
  bool submit(std::int64_t id, double now);
  /// When the span under way ends; kNever without one.
  double end_s() const { return end_s_; }
  /// Ends the span and begins the next. Requests that finished, and those to be handed over, are in `finished` and `handed` until the next call.
  void complete();
  /// Blocks of a request that was handed over are free again.
  void release_handed(std::int64_t id, double now);

  std::int64_t outstanding() const { return static_cast<std::int64_t>(waiting_.size() + prefilling_.size()) + decodes_; }
  const std::vector<std::int64_t>& finished() const { return finished_; }
  const std::vector<std::int64_t>& handed() const { return handed_; }
  const ReplicaCounts& counts() const { return counts_; }
  BlockPool& pool() { return pool_; }
  const BlockPool& pool() const { return pool_; }
  bool idle() const { return running() == 0 && waiting_.empty(); }
  /// Spans are appended here while it is set and shorter than `most`.
  void record(std::vector<Span>* spans, std::size_t most) { spans_ = spans, most_spans_ = most; }

 private:
  struct Ending {
    std::int64_t step;
    std::int64_t id;
    std::uint32_t admission;
    bool operator>(const Ending& o) const { return step != o.step ? step > o.step : id > o.id; }
  };
  struct Chunk {
    std::int64_t id;
    std::int32_t tokens;
  };

  const Request& request(std::int64_t id) const { return stream_.requests[static_cast<std::size_t>(id)]; }
  Progress& at(std::int64_t id) { return progress_[static_cast<std::size_t>(id)]; }
  const Segment& segment(std::int64_t id, std::uint32_t i) const { return stream_.segments[request(id).first_segment + i]; }
  std::int64_t running() const { return decodes_ + static_cast<std::int64_t>(prefilling_.size()); }

  void plan(double now);
  void plan_decodes();
  bool plan_running_prompts(std::int64_t& budget);
  void admit(std::int64_t& budget, double now);
  bool try_admit(std::int64_t id, std::int64_t& budget, double now);
  void schedule_chunk(std::int64_t id, std::int32_t tokens);
  void cut_span(double now);
  void finish_prompt(std::int64_t id, double now);
  void join(std::int64_t id);
  void leave_decodes(std::int64_t id);
  void finish(std::int64_t id, double now);
  void release(std::int64_t id, bool keep_output);
  void preempt_latest();
  std::int64_t latest_running();
  bool is_running(std::int64_t id, std::uint32_t admission) const;
  void remember_order(std::int64_t id);
  void publish_segments(std::int64_t id);
  std::uint32_t found_segments(std::int64_t id) const;
  std::int64_t growth_phase(const Progress& p) const;
  std::int64_t growth_of(std::int64_t first_step, std::int64_t steps) const;
  std::int64_t steps_that_fit(std::int64_t most) const;
  PassLoad decode_load(std::int64_t step) const;
  void count_length(const Progress& p, bool joins);
  double span_s(std::int64_t steps) const { return static_cast<double>(steps) * first_step_s_ + slope_s_ * (0.5 * static_cast<double>(steps) * static_cast<double>(steps - 1)); }

  ServingCost& cost_;
  ReplicaLimits limits_;
  const Stream& stream_;
  std::vector<Progress>& progress_;
  BlockPool pool_;
  std::deque<std::int64_t> waiting_;
  std::vector<std::int64_t> prefilling_;
  std::vector<std::pair<std::int64_t, std::uint32_t>> order_;  // (request, admission) in the order of admission, with some that have left
  std::vector<std::int64_t> growing_;             // decodes by the phase in which they need a block
  std::priority_queue<Ending, std::vector<Ending>, std::greater<>> endings_;
  std::vector<Chunk> chunks_;
  std::vector<std::int64_t> finished_, handed_;
  struct Held {
    std::int64_t id, blocks;
    std::uint32_t segments;
  };
  std::vector<Held> held_;                        // handed over, not yet transferred
  std::int64_t decodes_ = 0, step_ = 0, steps_ = 0, sum_target_ = 0, sum_join_ = 0, pending_growth_ = 0;
  /// Sums over the decodes of (target - join step) and of its square, modulo 2^64: what they give of the spread of lengths is exact.
  std::uint64_t sum_offset_ = 0, sum_square_ = 0;
  double start_s_ = 0, end_s_ = kNever, first_step_s_ = 0, slope_s_ = 0, chunk_kernels_s_ = 0;
  bool whole_prompt_;
  ReplicaCounts counts_;
  std::vector<Span>* spans_ = nullptr;
  std::size_t most_spans_ = 0;
  int number_;
};

}  // namespace kvatlas::sim
