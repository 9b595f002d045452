#include "gpu/simt/executor.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <fmt/core.h>
#include <numeric>

#include "core/errors.hpp"
#include "core/units.hpp"

namespace kvatlas::gpu {

namespace {

/// splitmix64: schedules are the same everywhere.
std::uint64_t next_random(std::uint64_t& state) {
  std::uint64_t z = (state += 0x9E3779B97F4A7C15ULL);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

template <class T>
void shuffle(std::vector<T>& items, std::uint64_t& state) {
  for (std::size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[next_random(state) % i]);
}

bool all_written(const std::uint8_t* flags, int bytes) { return std::memchr(flags, 0, static_cast<std::size_t>(bytes)) == nullptr; }

constexpr std::byte kPoison{0xFF};  // a NaN as float, fp16, bf16 and e4m3

Touch touch_of(MemoryOp op) {
  switch (op) {
    case MemoryOp::global_atomic:
    case MemoryOp::shared_atomic: return Touch::atomic;
    case MemoryOp::global_store:
    case MemoryOp::shared_store:
    case MemoryOp::copy_store: return Touch::write;
    default: return Touch::read;
  }
}

}  // namespace

std::string Schedule::name() const {
  static constexpr std::array<const char*, 5> kLanes{"ascending", "descending", "warp_by_warp", "one_ahead", "random"};
  static constexpr std::array<const char*, 3> kBlocks{"forward", "backward", "shuffled"};
  return cat(kLanes[static_cast<std::size_t>(lanes)], " lanes, ", kBlocks[static_cast<std::size_t>(blocks)], " blocks, seed ", seed,
             copy_at_issue ? ", copies read at issue" : "");
}

std::vector<Schedule> all_schedules(int random_seeds) {
  std::vector<Schedule> all{{.lanes = LaneOrder::ascending},
                            {.lanes = LaneOrder::descending, .blocks = BlockOrder::descending, .copy_at_issue = true},
                            {.lanes = LaneOrder::warp_by_warp},
                            {.lanes = LaneOrder::one_ahead, .blocks = BlockOrder::descending, .seed = 1}};
  for (int s = 0; s < random_seeds; ++s)
    all.push_back({.lanes = LaneOrder::random, .blocks = BlockOrder::random, .seed = static_cast<std::uint64_t>(s) + 1, .copy_at_issue = s % 2 == 1});
  return all;
}

bool LaunchReport::has(FindingKind kind) const {
  return std::ranges::any_of(findings, [kind](const Finding& f) { return f.kind == kind; });
}

bool Executor::check_launch() {
  const GpuLimits& narrow = gpu_limits("sm_86");
  const GpuLimits& gpu = launch_.gpu != nullptr ? *launch_.gpu : narrow;
  const auto refuse = [this](const std::string& text) {
    report(FindingKind::launch_limit, {}, {}, text);
    return false;
  };
  if (launch_.threads < 32 || launch_.threads > gpu.max_threads || launch_.threads % 32 != 0)
    return refuse(cat("a block has ", launch_.threads, " threads, must have whole warps and at most ", gpu.max_threads));
  if (launch_.grid.x < 1 || launch_.grid.x > gpu.max_grid_x || launch_.grid.y < 1 || launch_.grid.y > gpu.max_grid_yz || launch_.grid.z < 1 ||
      launch_.grid.z > gpu.max_grid_yz)
    return refuse(cat("the grid is ", launch_.grid.x, " x ", launch_.grid.y, " x ", launch_.grid.z, ", must lie within ", gpu.max_grid_x, " x ",
                      gpu.max_grid_yz, " x ", gpu.max_grid_yz));
  if (launch_.shared_bytes < 0 || launch_.shared_bytes > gpu.shared_opt_in)
    return refuse(cat("a block has ", launch_.shared_bytes, " bytes of shared memory, ", gpu.name, " gives at most ", gpu.shared_opt_in));
  return true;
}

LaunchReport Executor::run(const Launch& launch, const Schedule& schedule, Thread thread, void* kernel) {
  launch_ = launch;
  schedule_ = schedule;
  thread_ = thread;
  kernel_ = kernel;
  report_ = {};
  stopped_ = false;
  static std::atomic<std::uint64_t> launches{0};
  launch_number_ = ++launches;
  random_ = schedule.seed * 0x2545F4914F6CDD1DULL;
  if (!check_launch()) return std::move(report_);
  recorder_.begin(warps(), launch.l2_bytes);
  shared_data_.resize(static_cast<std::size_t>(launch.shared_bytes));
  shared_written_.resize(shared_data_.size());
  shared_shadow_.emplace(launch.shared_bytes, Shadow::Lifetime::block);
  const std::int64_t blocks = launch.grid.x * launch.grid.y * launch.grid.z;
  std::vector<std::int64_t> sequence(static_cast<std::size_t>(blocks));
  std::iota(sequence.begin(), sequence.end(), std::int64_t{0});
  if (schedule.blocks == BlockOrder::descending) std::ranges::reverse(sequence);
  if (schedule.blocks == BlockOrder::random) shuffle(sequence, random_);
  std::int32_t number = 0;
  for (const std::int64_t b : sequence) {
    run_block({b % launch.grid.x, b / launch.grid.x % launch.grid.y, b / launch.grid.x / launch.grid.y}, number++);
    if (stopped_) break;
  }
  report_.completed = !stopped_;
  report_.counts = recorder_.finish();
  return std::move(report_);
}

void Executor::run_block(const Dim3& at, std::int32_t number) {
  block_ = at;
  block_number_ = number;
  epoch_ = 0;
  const auto n = static_cast<std::size_t>(launch_.threads);
  threads_.assign(n, {});
  warp_states_.assign(n / 32, {});
  order_.resize(n);
  std::iota(order_.begin(), order_.end(), 0);
  std::ranges::fill(shared_data_, kPoison);
  std::ranges::fill(shared_written_, std::uint8_t{0});
  live_ = launch_.threads;
  at_barrier_ = 0;
  fibers_.start(launch_.threads, &Executor::thread_main, this);
  while (live_ > 0 && !stopped_) {
    const bool moved = sweep();
    if (stopped_ || live_ == 0) break;
    if (!release_barrier() && !moved) dead_lock();
  }
  for (int w = 0; w < warps(); ++w) flush(w);
}

/// Lets every ready thread run once (warp orders: until its warp can do no more).
bool Executor::sweep() {
  bool moved = false;
  const int n = launch_.threads;
  switch (schedule_.lanes) {
    case LaneOrder::ascending:
      for (int t = 0; t < n && !stopped_; ++t) moved = resume(t) || moved;
      break;
    case LaneOrder::descending:
      for (int t = n - 1; t >= 0 && !stopped_; --t) moved = resume(t) || moved;
      break;
    case LaneOrder::warp_by_warp:
      for (int w = 0; w < warps() && !stopped_; ++w) moved = run_warp(w, false) || moved;
      break;
    case LaneOrder::one_ahead: {
      const int first = static_cast<int>(schedule_.seed % static_cast<std::uint64_t>(warps()));
      moved = run_warp(first, true);
      for (int w = warps() - 1; w >= 0 && !stopped_; --w)
        if (w != first) moved = run_warp(w, w % 2 == 0) || moved;
      break;
    }
    case LaneOrder::random:
      shuffle(order_, random_);
      for (const int t : order_)
        if (!stopped_) moved = resume(t) || moved;
      break;
  }
  return moved;
}

bool Executor::run_warp(int warp, bool backwards) {
  bool moved = false;
  for (bool again = true; again && !stopped_;) {
    again = false;
    for (int i = 0; i < 32 && !stopped_; ++i) again = resume(warp * 32 + (backwards ? 31 - i : i)) || again;
    moved = moved || again;
  }
  return moved;
}

bool Executor::resume(int thread) {
  if (state(thread).wait != Wait::ready) return false;
  fibers_.resume(thread);
  if (fibers_.overflowed(thread)) {
    report(FindingKind::stack_overflow, state(thread).site, {}, cat(who(thread), " used more than ", FiberPool::stack_bytes(), " bytes of stack"));
  } else if (fibers_.finished(thread) && state(thread).wait != Wait::done) {
    on_exit(thread);
  }
  return true;
}

void Executor::thread_main(void* self, int thread) {
  Executor& e = *static_cast<Executor*>(self);
  try {
    e.thread_(e.kernel_, e, thread);
  } catch (const KernelFault&) {  // reported where it was thrown
  } catch (const std::exception& error) {
    e.report(FindingKind::exception, e.state(thread).site, {}, cat(e.who(thread), " threw: ", error.what()));
  } catch (...) {
    e.report(FindingKind::exception, e.state(thread).site, {}, cat(e.who(thread), " threw something that is no std::exception"));
  }
}

void Executor::on_exit(int thread) {
  ThreadState& t = state(thread);
  t.wait = Wait::done;
  --live_;
  const Copy* pending = !t.open.empty() ? &t.open.front() : nullptr;
  for (const auto& group : t.groups)
    if (pending == nullptr && !group.empty()) pending = &group.front();
  if (pending != nullptr) report(FindingKind::missing_wait, pending->site, {}, cat(who(thread), " returned while a copy of it was pending"));
  WarpState& w = warp_states_[static_cast<std::size_t>(thread / 32)];
  const std::uint32_t bit = 1U << (thread % 32);
  w.exited |= bit;
  for (int lane = 0; lane < 32; ++lane) {
    const ThreadState& other = state(thread / 32 * 32 + lane);
    if (other.wait == Wait::collective && (other.deposit.mask & bit) != 0) {
      report(FindingKind::exited_lane, other.deposit.site, {},
             cat(who(thread / 32 * 32 + lane), " waits in ", name_of(other.deposit.op), " for lane ", thread % 32, ", which has returned"));
      return;
    }
  }
}

void Executor::barrier(int thread, const Site& site) {
  ThreadState& t = state(thread);
  t.wait = Wait::barrier;
  t.site = site;
  ++at_barrier_;
  fibers_.yield();
}

bool Executor::release_barrier() {
  if (at_barrier_ == 0 || at_barrier_ < live_) return false;
  int first = -1, exited = -1;
  for (int t = 0; t < launch_.threads; ++t) {
    if (state(t).wait == Wait::done) {
      exited = t;
      continue;
    }
    if (first < 0) first = t;
    if (state(t).site.line != state(first).site.line || std::strcmp(state(t).site.file, state(first).site.file) != 0) {
      report(FindingKind::divergent_barrier, state(t).site, state(first).site,
             cat(who(t), " waits at the barrier of ", to_string(state(t).site), ", thread ", first, " at that of ", to_string(state(first).site)));
      return true;
    }
  }
  if (exited >= 0 && !launch_.exited_skip_barriers) {
    report(FindingKind::exited_at_barrier, state(first).site, {}, cat(who(exited), " has returned while others wait at the barrier of ", to_string(state(first).site)));
    return true;
  }
  at_barrier_ = 0;
  ++epoch_;
  for (ThreadState& t : threads_)
    if (t.wait == Wait::barrier) t.wait = Wait::ready;
  for (int w = 0; w < warps(); ++w) flush(w);
  return true;
}

void Executor::dead_lock() {
  std::string text = cat("block (", block_.x, ", ", block_.y, ", ", block_.z, ") cannot move:");
  int listed = 0, left = 0;
  Site site;
  std::string last;
  for (int t = 0; t < launch_.threads; ++t) {
    const ThreadState& s = state(t);
    if (s.wait == Wait::done) continue;
    const bool at_barrier = s.wait == Wait::barrier;
    const std::string place = at_barrier ? cat(" barrier at ", to_string(s.site)) : cat(' ', name_of(s.deposit.op), " at ", to_string(s.deposit.site), " with mask ", fmt::format("{:#x}", s.deposit.mask));
    if (place == last) continue;
    last = place;
    if (listed == 0) site = at_barrier ? s.site : s.deposit.site;
    if (listed++ < 8) text += cat(listed > 1 ? "; thread " : " thread ", t, place);
    else ++left;
  }
  if (left > 0) text += cat("; and ", left, " more places");
  report(FindingKind::dead_lock, site, {}, text);
}

void Executor::flush(int warp) {
  non_uniform_.clear();
  recorder_.flush(warp, non_uniform_);
  for (const auto& n : non_uniform_)
    report(FindingKind::non_uniform_site, recorder_.site_of(n.site), {},
           cat("block (", block_.x, ", ", block_.y, ", ", block_.z, "), warp ", warp, ": lanes ", fmt::format("{:#x}", n.lanes), " ran it between ", n.least,
               " and ", n.most, " times between two reconvergence points"));
}

void Executor::report(FindingKind kind, const Site& site, const Site& other, const std::string& text) {
  if (stops_launch(kind)) stopped_ = true;
  const bool known = std::ranges::any_of(report_.findings, [&](const Finding& f) {
    return f.kind == kind && f.site.line == site.line && f.other.line == other.line && std::strcmp(f.site.file, site.file) == 0;
  });
  if (!known) report_.findings.push_back({kind, site, other, text});
}

void Executor::fault(int thread, FindingKind kind, const Site& site, const std::string& text) {
  report(kind, site, {}, cat(who(thread), ' ', text));
  throw KernelFault{};
}

std::string Executor::who(int thread) const { return cat("block (", block_.x, ", ", block_.y, ", ", block_.z, "), thread ", thread); }

std::uint64_t Executor::draw() { return next_random(random_); }

void Executor::maybe_yield(int thread) {
  if (schedule_.lanes != LaneOrder::random || draw() % 16 != 0) return;
  state(thread).wait = Wait::ready;
  fibers_.yield();
}

// ---- memory --------------------------------------------------------------------------------------------------------

void Executor::note_race(int thread, Shadow& shadow, std::int64_t offset, int bytes, Touch touch, int site, const Site& at, const std::string& memory, bool same_value) {
  static constexpr std::array<const char*, 3> kDoes{"reads", "writes", "updates"};
  static constexpr std::array<const char*, 3> kDid{"read", "wrote", "updated"};
  const WarpState& w = warp_states_[static_cast<std::size_t>(thread / 32)];
  const Who now{.block = block_number_, .epoch = epoch_, .stamp = w.syncs, .site = site, .warp = static_cast<std::uint16_t>(thread / 32),
                .lane = static_cast<std::uint8_t>(thread % 32)};
  Conflict c;
  if (!shadow.touch(offset, bytes, touch, now, w.knows[now.lane], c)) return;
  const bool benign = same_value && touch == Touch::write && c.other_touch == Touch::write;
  report(benign ? FindingKind::same_value_write : FindingKind::race, at, recorder_.site_of(c.other.site),
         cat(who(thread), ' ', kDoes[static_cast<std::size_t>(touch)], ' ', bytes, " bytes at ", offset, " of ", memory, " at ", to_string(at), ", which ",
             c.other.block == block_number_ ? std::string() : std::string("another block's "), "thread ", c.other.warp * 32 + c.other.lane, ' ',
             kDid[static_cast<std::size_t>(c.other_touch)], " at ", to_string(recorder_.site_of(c.other.site)), "; nothing orders the two"));
}

std::byte* Executor::global(int thread, Allocation* allocation, std::int64_t offset, int bytes, MemoryOp op, const Site& site, const void* stored) {
  maybe_yield(thread);
  const Touch touch = touch_of(op);
  if (allocation == nullptr) fault(thread, FindingKind::out_of_bounds, site, cat("follows a null pointer at ", to_string(site)));
  if (offset < 0 || offset + bytes > allocation->bytes())
    fault(thread, FindingKind::out_of_bounds, site,
          cat("touches bytes ", offset, " to ", offset + bytes, " of ", allocation->name, ", which has ", allocation->bytes(), ", at ", to_string(site)));
  const std::uint64_t address = allocation->address + static_cast<std::uint64_t>(offset);
  if (address % static_cast<std::uint64_t>(bytes) != 0)
    fault(thread, FindingKind::misaligned, site, cat("touches ", bytes, " bytes at offset ", offset, " of ", allocation->name, ", which is not a multiple of them, at ", to_string(site)));
  if (touch != Touch::read && allocation->read_only)
    fault(thread, FindingKind::read_only, site, cat("writes ", allocation->name, ", a const input, at ", to_string(site)));
  const int id = recorder_.site(site, op, bytes);
  recorder_.record(thread / 32, thread % 32, id, address);
  std::byte* at = allocation->data.data() + offset;
  std::uint8_t* written = allocation->written.data() + offset;
  // A copy may carry bytes that nobody wrote: using them is the fault, and shared memory remembers.
  if (touch != Touch::write && op != MemoryOp::copy_load && !all_written(written, bytes))
    report(FindingKind::uninitialised_read, site, {}, cat(who(thread), " reads bytes ", offset, " to ", offset + bytes, " of ", allocation->name, ", not all of which were written, at ", to_string(site)));
  if (allocation->shadow) {
    allocation->shadow->enter_launch(launch_number_);
    note_race(thread, *allocation->shadow, offset, bytes, touch, id, site, allocation->name, stored != nullptr && std::memcmp(at, stored, static_cast<std::size_t>(bytes)) == 0);
  }
  if (touch == Touch::write) std::memset(written, 1, static_cast<std::size_t>(bytes));
  return at;
}

std::byte* Executor::shared(int thread, std::int64_t offset, int bytes, MemoryOp op, const Site& site, const void* stored) {
  maybe_yield(thread);
  const Touch touch = touch_of(op);
  if (offset < 0 || offset + bytes > static_cast<std::int64_t>(shared_data_.size()))
    fault(thread, FindingKind::out_of_bounds, site,
          cat("touches bytes ", offset, " to ", offset + bytes, " of shared memory, of which the block has ", shared_data_.size(), ", at ", to_string(site)));
  if (offset % bytes != 0)
    fault(thread, FindingKind::misaligned, site, cat("touches ", bytes, " bytes at offset ", offset, " of shared memory, which is not a multiple of them, at ", to_string(site)));
  const int id = recorder_.site(site, op, bytes);
  recorder_.record(thread / 32, thread % 32, id, static_cast<std::uint64_t>(offset));
  std::byte* at = shared_data_.data() + offset;
  std::uint8_t* written = shared_written_.data() + offset;
  if (touch != Touch::write && !all_written(written, bytes))
    report(FindingKind::uninitialised_read, site, {}, cat(who(thread), " reads bytes ", offset, " to ", offset + bytes, " of shared memory, not all of which were written, at ", to_string(site)));
  note_race(thread, *shared_shadow_, offset, bytes, touch, id, site, "shared memory", stored != nullptr && std::memcmp(at, stored, static_cast<std::size_t>(bytes)) == 0);
  if (touch == Touch::write) std::memset(written, 1, static_cast<std::size_t>(bytes));
  return at;
}

std::int64_t Executor::take_shared(int thread, std::int64_t bytes, const Site& site) {
  ThreadState& t = state(thread);
  const std::int64_t at = round_up(t.shared_taken, 16);
  t.shared_taken = at + bytes;
  report_.shared_used = std::max(report_.shared_used, t.shared_taken);
  if (t.shared_taken > launch_.shared_bytes)
    fault(thread, FindingKind::launch_limit, site, cat("takes ", t.shared_taken, " bytes of shared memory, the launch gives ", launch_.shared_bytes));
  return at;
}

// ---- asynchronous copies: what they bring lies in shared memory only once it was waited for ---------------------------------

void Executor::copy(int thread, std::int64_t to, Allocation* from, std::int64_t offset, int bytes, const Site& site) {
  const std::byte* source = global(thread, from, offset, bytes, MemoryOp::copy_load, site);
  std::byte* target = shared(thread, to, bytes, MemoryOp::copy_store, site);
  const auto n = static_cast<std::size_t>(bytes);
  Copy c{.from = from, .offset = offset, .to = to, .bytes = bytes, .site = site, .data = {}, .written = {}};
  std::memcpy(c.data.data(), source, n);
  std::memcpy(c.written.data(), from->written.data() + offset, n);
  std::memset(target, static_cast<int>(kPoison), n);
  std::memset(shared_written_.data() + to, 0, n);
  state(thread).open.push_back(c);
}

void Executor::copy_commit(int thread) {
  ThreadState& t = state(thread);
  t.groups.push_back(std::move(t.open));
  t.open.clear();
}

void Executor::copy_wait(int thread, int groups_left) {
  ThreadState& t = state(thread);
  while (static_cast<int>(t.groups.size()) > groups_left) {
    for (Copy& c : t.groups.front()) {
      const auto n = static_cast<std::size_t>(c.bytes);
      if (!schedule_.copy_at_issue) {
        std::memcpy(c.data.data(), c.from->data.data() + c.offset, n);
        std::memcpy(c.written.data(), c.from->written.data() + c.offset, n);
      }
      std::memcpy(shared_data_.data() + c.to, c.data.data(), n);
      std::memcpy(shared_written_.data() + c.to, c.written.data(), n);
      const int id = recorder_.site(c.site, MemoryOp::copy_store, c.bytes);
      note_race(thread, *shared_shadow_, c.to, c.bytes, Touch::write, id, c.site, "shared memory", false);
    }
    t.groups.erase(t.groups.begin());
  }
}

}  // namespace kvatlas::gpu
