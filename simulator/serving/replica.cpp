#include "simulator/serving/replica.hpp"

#include <algorithm>
#include <cmath>

#include "core/errors.hpp"

namespace kvatlas::sim {

namespace {

using Phase = Progress::State;

std::size_t place(std::int64_t i) { return static_cast<std::size_t>(i); }

}  // namespace

Replica::Replica(ServingCost& cost, const ReplicaLimits& limits, const Stream& stream, std::vector<Progress>& progress, int number)
    : cost_(cost), limits_(limits), stream_(stream), progress_(progress), pool_(cost.pool_blocks()), whole_prompt_(cost.model().whole_prompt()), number_(number) {
  growing_.assign(place(cost.page()), 0);
  // Every decode takes one of the pass's tokens.
  limits_.sequences = std::min(limits_.sequences, limits_.batched_tokens);
  if (stream.warm_segment != 0 && limits_.prefix_credit > 0) {
    const std::int64_t blocks = std::min<std::int64_t>(stream.warm_tokens / cost.page(), pool_.total());
    if (pool_.take(blocks)) {
      pool_.publish(stream.warm_segment, blocks);
      pool_.leave(stream.warm_segment);
    }
  }
}

bool Replica::submit(std::int64_t id, double now) {
  Progress& p = at(id);
  const Request& r = request(id);
  if (cost_.whole_blocks(r.prompt, r.output) > pool_.total()) {
    p.state = Phase::refused;
    return false;
  }
  p.target = r.prompt + p.emitted;
  p.processed = 0;
  p.state = Phase::waiting;
  const bool was_empty = waiting_.empty();
  waiting_.push_back(id);
  if (end_s_ == kNever) {
    end_s_ = start_s_ = now;  // an empty span: whoever else arrives now takes part in the first pass
    steps_ = 0;
  } else if (was_empty && running() < limits_.sequences) {
    cut_span(now);
  }
  return true;
}

void Replica::cut_span(double now) {
  if (steps_ <= 1 || !chunks_.empty()) return;
  // The first step boundary at or after `now`.
  const double wait = now - start_s_;
  std::int64_t steps = 1;
  if (wait > first_step_s_) {
    const double b = first_step_s_ - 0.5 * slope_s_;
    const double root = slope_s_ > 0 ? (std::sqrt(b * b + 2.0 * slope_s_ * wait) - b) / slope_s_ : wait / first_step_s_;
    steps = std::clamp(static_cast<std::int64_t>(root), std::int64_t{1}, steps_);
    while (steps > 1 && span_s(steps - 1) >= wait) --steps;
    while (steps < steps_ && span_s(steps) < wait) ++steps;
  }
  if (steps >= steps_) return;
  steps_ = steps;
  end_s_ = start_s_ + span_s(steps);
}

std::int64_t Replica::growth_phase(const Progress& p) const {
  const std::int64_t page = cost_.page(), slack = (page - p.target % page) % page;
  return (p.join_step + slack + 1) % page;
}

/// Blocks that the decodes take in steps first_step, ..., first_step + steps - 1.
std::int64_t Replica::growth_of(std::int64_t first_step, std::int64_t steps) const {
  if (!cost_.grows() || steps <= 0) return 0;
  const std::int64_t page = cost_.page(), cycles = steps / page;
  std::int64_t blocks = cycles * decodes_;
  for (std::int64_t s = first_step + cycles * page; s < first_step + steps; ++s) blocks += growing_[place(s % page)];
  return blocks;
}

/// Steps from the next one on, at most `most`, whose blocks are there; the next step's were taken already.
std::int64_t Replica::steps_that_fit(std::int64_t most) const {
  if (!cost_.grows() || most <= 1) return most;
  const std::int64_t room = pool_.available(), page = cost_.page();
  if (growth_of(step_ + 2, most - 1) <= room) return most;
  std::int64_t steps = 1, used = 0;
  if (decodes_ > 0) {
    const std::int64_t cycles = room / decodes_;
    steps += cycles * page, used += cycles * decodes_;
  }
  while (steps < most && used + growing_[place((step_ + 1 + steps) % page)] <= room) used += growing_[place((step_ + 1 + steps) % page)], ++steps;
  return std::min(steps, most);
}

/// All decodes grow by one token a step, so the spread of their lengths changes only when one joins or leaves.
void Replica::count_length(const Progress& p, bool joins) {
  const auto offset = static_cast<std::uint64_t>(p.target - p.join_step);
  sum_offset_ += joins ? offset : 0 - offset;
  sum_square_ += joins ? offset * offset : 0 - offset * offset;
}

PassLoad Replica::decode_load(std::int64_t step) const {
  const auto n = static_cast<std::uint64_t>(decodes_);
  const double spread = std::sqrt(static_cast<double>(n * sum_square_ - sum_offset_ * sum_offset_)) / static_cast<double>(std::max<std::uint64_t>(1, n));
  return {.decodes = decodes_, .prompt_tokens = static_cast<double>(sum_target_), .generated_tokens = static_cast<double>(decodes_ * step - sum_join_), .deviation = spread};
}

void Replica::plan(double now) {
  start_s_ = now;
  chunks_.clear();
  chunk_kernels_s_ = 0;
  steps_ = 0;
  slope_s_ = 0;
  end_s_ = kNever;
  const std::int64_t preempted = counts_.preemptions;
  plan_decodes();
  std::int64_t budget = limits_.batched_tokens - decodes_;
  const bool prompts_go_on = plan_running_prompts(budget);
  if (prompts_go_on && counts_.preemptions == preempted) admit(budget, now);
  if (decodes_ == 0 && chunks_.empty()) return;  // idle, or waiting for blocks under transfer
  PassLoad load = decode_load(step_);
  if (!chunks_.empty()) {
    for (const Chunk& c : chunks_) {
      load.prefill_tokens += c.tokens;
      load.finished_prompts += at(c.id).processed + c.tokens == at(c.id).target ? 1 : 0;
    }
    load.prefill_kernels_s = chunk_kernels_s_;
    steps_ = 1;
    first_step_s_ = cost_.pass_s(load);
  } else {
    while (at(endings_.top().id).admission != endings_.top().admission || at(endings_.top().id).state != Phase::decoding) endings_.pop();
    // Kernels grow almost linearly with the context; a span ends before it has grown much.
    const double mean = (load.prompt_tokens + load.generated_tokens) / static_cast<double>(decodes_);
    const auto smooth = static_cast<std::int64_t>(std::max(32.0, mean * 0.25));
    steps_ = steps_that_fit(std::min(endings_.top().step - step_, smooth));
    first_step_s_ = cost_.pass_s(load);
    if (steps_ > 1) slope_s_ = std::max(0.0, (cost_.pass_s(decode_load(step_ + steps_ - 1)) - first_step_s_) / static_cast<double>(steps_ - 1));
  }
  end_s_ = start_s_ + span_s(steps_);
}

/// Takes the blocks of the next decode step; whoever came last makes room.
void Replica::plan_decodes() {
  while (decodes_ > 0) {
    const std::int64_t need = growth_of(step_ + 1, 1);
    if (pool_.take(need)) {
      pending_growth_ = need;
      return;
    }
    preempt_latest();
  }
  pending_growth_ = 0;
}

/// False when a prompt had to be put off for want of blocks.
bool Replica::plan_running_prompts(std::int64_t& budget) {
  for (std::size_t i = 0; i < prefilling_.size(); ++i) {
    const std::int64_t id = prefilling_[i];
    Progress& p = at(id);
    if (budget <= 0) return false;
    const auto tokens = static_cast<std::int32_t>(std::min<std::int64_t>(p.target - p.processed, budget));
    const std::int64_t need = cost_.grows() ? std::max<std::int64_t>(0, cost_.prompt_blocks(p.processed + tokens) - p.private_blocks - p.shared_blocks) : 0;
    bool taken = pool_.take(need);
    while (!taken) {
      const bool self = latest_running() == id;
      preempt_latest();
      if (self) return false;
      taken = pool_.take(need);
    }
    p.private_blocks += need;
    schedule_chunk(id, tokens);
    budget -= tokens;
  }
  return true;
}

void Replica::schedule_chunk(std::int64_t id, std::int32_t tokens) {
  const Progress& p = at(id);
  chunk_kernels_s_ += cost_.prompt_kernels_s(p.processed, p.processed + tokens);
  chunks_.push_back({id, tokens});
}

void Replica::admit(std::int64_t& budget, double now) {
  while (!waiting_.empty() && running() < limits_.sequences && (budget > 0 || at(waiting_.front()).cache_arrives))
    if (!try_admit(waiting_.front(), budget, now)) break;
}

std::uint32_t Replica::found_segments(std::int64_t id) const {
  const Request& r = request(id);
  if (r.segments == 0 || limits_.prefix_credit <= 0) return 0;
  std::uint32_t found = 0;
  std::int64_t tokens = 0;
  // The last token of a prompt is always processed: its logits are asked for.
  while (found < r.segments && pool_.holds(segment(id, found).id) && tokens + segment(id, found).tokens < r.prompt) tokens += segment(id, found++).tokens;
  return found;
}

bool Replica::try_admit(std::int64_t id, std::int64_t& budget, double now) {
  Progress& p = at(id);
  const Request& r = request(id);
  if (p.cache_arrives) p.target = r.prompt + p.emitted - 1;  // the token that came with the cache is not in it yet
  std::int64_t hit = 0;
  p.shared_blocks = 0;
  p.used_segments = p.cache_arrives ? 0 : found_segments(id);
  for (std::uint32_t s = 0; s < p.used_segments; ++s) {
    hit += segment(id, s).tokens;
    pool_.use(segment(id, s).id);
    p.shared_blocks += pool_.blocks_of(segment(id, s).id);
  }
  hit = static_cast<std::int64_t>(static_cast<double>(hit) * limits_.prefix_credit) / cost_.page() * cost_.page();
  const std::int64_t left = p.target - hit;
  const std::int64_t tokens = p.cache_arrives || whole_prompt_ ? left : std::min(left, budget);
  // A prompt that cannot be cut waits for a pass of its own when it is longer than what is left of this one.
  const bool turn = p.cache_arrives || tokens <= budget || chunks_.empty();
  const std::int64_t next_step = p.cache_arrives && cost_.grows() && p.target % cost_.page() == 0 ? 1 : 0;
  const std::int64_t blocks = cost_.grows() ? cost_.prompt_blocks(hit + tokens) : cost_.whole_blocks(r.prompt, r.output);
  const std::int64_t need = std::max<std::int64_t>(0, blocks - p.shared_blocks);
  if (!turn || !pool_.take(need + next_step)) {
    for (std::uint32_t s = p.used_segments; s-- > 0;) pool_.leave(segment(id, s).id);
    p.used_segments = 0;
    return false;
  }
  waiting_.pop_front();
  p.private_blocks = need;
  p.processed = static_cast<std::int32_t>(hit);
  if (p.scheduled_s < 0) {
    p.scheduled_s = now;
    p.hit_tokens = static_cast<std::int32_t>(hit);
    counts_.hit_tokens += hit;
    counts_.asked_tokens += r.prompt;
  }
  remember_order(id);
  if (p.cache_arrives) {
    p.cache_arrives = false;
    pending_growth_ += next_step;
    join(id);
    return true;
  }
  p.state = Phase::prefilling;
  prefilling_.push_back(id);
  schedule_chunk(id, static_cast<std::int32_t>(tokens));
  budget = std::max<std::int64_t>(0, budget - tokens);
  return true;
}

bool Replica::is_running(std::int64_t id, std::uint32_t admission) const {
  const Progress& p = progress_[place(id)];
  return p.admission == admission && (p.state == Phase::prefilling || p.state == Phase::decoding);
}

void Replica::remember_order(std::int64_t id) {
  if (order_.size() > 64 && order_.size() > 4 * place(running() + 1))
    std::erase_if(order_, [&](const auto& o) { return !is_running(o.first, o.second); });
  order_.emplace_back(id, ++at(id).admission);
}

std::int64_t Replica::latest_running() {
  while (!is_running(order_.back().first, order_.back().second)) order_.pop_back();
  return order_.back().first;
}

/// Throws away what the latest request holds; it is first in line and processes its tokens again.
void Replica::preempt_latest() {
  const std::int64_t id = latest_running();
  Progress& p = at(id);
  if (p.state == Phase::decoding) {
    if (pending_growth_ > 0 && cost_.grows() && growth_phase(p) == (step_ + 1) % cost_.page()) {
      pool_.give_back(1);  // its block of the step that is being planned
      --pending_growth_;
    }
    p.emitted += static_cast<std::int32_t>(step_ - p.join_step);
    leave_decodes(id);
  } else {
    prefilling_.erase(std::find(prefilling_.begin(), prefilling_.end(), id));
  }
  release(id, false);
  p.state = Phase::waiting;
  p.target = request(id).prompt + p.emitted;
  p.processed = 0;
  ++p.preemptions;
  ++counts_.preemptions;
  waiting_.push_front(id);
}

void Replica::join(std::int64_t id) {
  Progress& p = at(id);
  p.state = Phase::decoding;
  p.join_step = step_;
  ++decodes_;
  sum_target_ += p.target;
  sum_join_ += step_;
  count_length(p, true);
  if (cost_.grows()) ++growing_[place(growth_phase(p))];
  endings_.push({step_ + request(id).output - p.emitted, id, p.admission});
}

void Replica::leave_decodes(std::int64_t id) {
  Progress& p = at(id);
  --decodes_;
  sum_target_ -= p.target;
  sum_join_ -= p.join_step;
  count_length(p, false);
  if (!cost_.grows()) return;
  --growing_[place(growth_phase(p))];
  const std::int64_t page = cost_.page(), slack = (page - p.target % page) % page;
  p.private_blocks += ceil_div(std::max<std::int64_t>(0, step_ - p.join_step - slack), page);
}

/// What it held goes; with `keep_output` the following turn can find prompt and answer in the prefix cache.
void Replica::release(std::int64_t id, bool keep_output) {
  Progress& p = at(id);
  const Request& r = request(id);
  if (keep_output && r.output_segment != 0 && limits_.prefix_credit > 0 && !pool_.holds(r.output_segment)) {
    std::int64_t known = 0;
    for (std::uint32_t s = 0; s < r.segments; ++s) known += segment(id, s).tokens;
    const std::int64_t blocks = std::min(p.private_blocks, (r.prompt + r.output) / cost_.page() - known / cost_.page());
    pool_.publish(r.output_segment, blocks);
    pool_.leave(r.output_segment);
    p.private_blocks -= blocks;
  }
  for (std::uint32_t s = p.used_segments; s-- > 0;) pool_.leave(segment(id, s).id);
  p.used_segments = 0;
  pool_.give_back(p.private_blocks);
  p.private_blocks = p.shared_blocks = 0;
}

/// The processed prompt's segments can be found from now on.
void Replica::publish_segments(std::int64_t id) {
  Progress& p = at(id);
  const Request& r = request(id);
  if (limits_.prefix_credit <= 0) return;
  std::int64_t tokens = 0;
  for (std::uint32_t s = 0; s < r.segments; ++s) {
    const Segment& part = segment(id, s);
    const std::int64_t before = tokens;
    tokens += part.tokens;
    if (tokens > r.prompt) break;
    if (s < p.used_segments) continue;
    std::int64_t blocks = std::min(p.private_blocks, tokens / cost_.page() - before / cost_.page());
    if (pool_.holds(part.id)) {  // another request processed the same tokens meanwhile
      pool_.use(part.id);
      pool_.give_back(blocks);
      p.shared_blocks += pool_.blocks_of(part.id);
    } else {
      pool_.publish(part.id, blocks);
      p.shared_blocks += blocks;
    }
    p.private_blocks -= blocks;
    p.used_segments = s + 1;
  }
}

void Replica::finish(std::int64_t id, double now) {
  Progress& p = at(id);
  p.last_token_s = now;
  p.emitted = request(id).output;
  release(id, true);
  p.state = Phase::done;
  finished_.push_back(id);
}

void Replica::finish_prompt(std::int64_t id, double now) {
  Progress& p = at(id);
  publish_segments(id);
  if (p.first_token_s < 0) p.first_token_s = now;
  ++p.emitted;
  ++counts_.emitted_tokens;
  if (p.emitted == request(id).output) {
    finish(id, now);
  } else if (limits_.hands_over) {
    p.state = Phase::handed_over;
    held_.push_back({id, p.private_blocks, p.used_segments});
    handed_.push_back(id);
  } else {
    join(id);
  }
}

void Replica::release_handed(std::int64_t id, double now) {
  const auto held = std::find_if(held_.begin(), held_.end(), [&](const Held& h) { return h.id == id; });
  KV_ASSERT(held != held_.end(), "a request that was handed over is released once");
  Progress& p = at(id);
  p.private_blocks = held->blocks;
  p.used_segments = held->segments;
  held_.erase(held);
  release(id, false);
  if (end_s_ == kNever && !waiting_.empty()) {
    end_s_ = start_s_ = now;
    steps_ = 0;
  }
}

void Replica::complete() {
  finished_.clear();
  handed_.clear();
  const double now = end_s_;
  if (steps_ > 0) {
    if (spans_ != nullptr && spans_->size() < most_spans_) {
      std::int64_t prompt_tokens = 0;
      for (const Chunk& c : chunks_) prompt_tokens += c.tokens;
      spans_->push_back({start_s_, now, steps_, decodes_, prompt_tokens, static_cast<std::int64_t>(waiting_.size()), pool_.in_use(), number_});
    }
    counts_.busy_s += now - start_s_;
    counts_.passes += steps_;
    ++counts_.spans;
    const bool fits = pool_.take(growth_of(step_ + 2, steps_ - 1));
    KV_ASSERT(fits, "a span was planned to fit its blocks");
    pending_growth_ = 0;
    step_ += steps_;
    counts_.emitted_tokens += decodes_ * steps_;
    while (!endings_.empty() && endings_.top().step <= step_) {
      const Ending e = endings_.top();
      endings_.pop();
      if (at(e.id).admission != e.admission || at(e.id).state != Phase::decoding) continue;
      leave_decodes(e.id);
      finish(e.id, now);
    }
    for (const Chunk& c : chunks_) {
      Progress& p = at(c.id);
      p.processed += c.tokens;
      counts_.prefilled_tokens += c.tokens;
      if (p.processed < p.target) continue;
      std::erase(prefilling_, c.id);
      finish_prompt(c.id, now);
    }
  }
  plan(now);
}

}  // namespace kvatlas::sim
