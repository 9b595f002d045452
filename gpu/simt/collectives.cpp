// Meetings of lanes: a lane deposits what it brings and waits until every lane of its mask has come.
#include <algorithm>
#include <cstring>
#include <fmt/core.h>

#include "core/errors.hpp"
#include "gpu/simt/executor.hpp"
#include "gpu/simt/mma.hpp"

namespace kvatlas::gpu {

const char* name_of(WarpOp op) {
  static constexpr std::array<const char*, 10> kNames{"sync_warp", "shfl", "shfl_xor", "shfl_up", "shfl_down", "ballot", "any", "all", "match_any", "mma"};
  return kNames[static_cast<std::size_t>(op)];
}

void Executor::collective(int thread, const Deposit& deposit) {
  ThreadState& t = state(thread);
  WarpState& w = warp_states_[static_cast<std::size_t>(thread / 32)];
  const std::uint32_t bit = 1U << (thread % 32);
  if ((deposit.mask & bit) == 0)
    fault(thread, FindingKind::bad_mask, deposit.site, cat("calls ", name_of(deposit.op), " with mask ", fmt::format("{:#x}", deposit.mask), ", which lacks its own lane, at ", to_string(deposit.site)));
  if ((deposit.mask & w.exited) != 0)
    fault(thread, FindingKind::exited_lane, deposit.site, cat("calls ", name_of(deposit.op), " with mask ", fmt::format("{:#x}", deposit.mask), "; lane ", __builtin_ctz(deposit.mask & w.exited), " has returned, at ", to_string(deposit.site)));
  if (deposit.width < 1 || deposit.width > 32 || (deposit.width & (deposit.width - 1)) != 0)
    fault(thread, FindingKind::bad_source, deposit.site, cat("shuffles in segments of ", deposit.width, " lanes, must be a power of two up to 32, at ", to_string(deposit.site)));
  t.deposit = deposit;
  t.wait = Wait::collective;
  w.waiting |= bit;
  try_resolve(thread);
  if (t.wait == Wait::collective || stopped_) fibers_.yield();
}

void Executor::try_resolve(int thread) {
  const ThreadState& t = state(thread);
  const WarpState& w = warp_states_[static_cast<std::size_t>(thread / 32)];
  const std::uint32_t mask = t.deposit.mask;
  if ((w.waiting & mask) != mask) return;
  const int first = thread / 32 * 32;
  for (std::uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    const int other = first + __builtin_ctz(rest);
    const Deposit &a = t.deposit, &b = state(other).deposit;
    if (a.op == b.op && a.mask == b.mask && a.width == b.width && a.bytes == b.bytes && a.site.line == b.site.line && std::strcmp(a.site.file, b.site.file) == 0) continue;
    report(FindingKind::mismatched_collective, a.site, b.site,
           cat(who(thread), " is in ", name_of(a.op), " at ", to_string(a.site), " with mask ", fmt::format("{:#x}", a.mask), " and width ", a.width, ", lane ", other % 32,
               " in ", name_of(b.op), " at ", to_string(b.site), " with mask ", fmt::format("{:#x}", b.mask), " and width ", b.width));
    return;
  }
  resolve(thread / 32, mask);
}

void Executor::resolve(int warp, std::uint32_t mask) {
  WarpState& w = warp_states_[static_cast<std::size_t>(warp)];
  const int first = warp * 32;
  const Deposit& model = state(first + __builtin_ctz(mask)).deposit;
  std::uint32_t votes = 0;
  for (std::uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    if (state(first + lane).deposit.argument != 0) votes |= 1U << lane;
  }
  if (model.op == WarpOp::sync) resolve_sync(w, mask);
  if (model.op == WarpOp::mma) resolve_mma(warp);
  for (std::uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    Deposit& d = state(first + lane).deposit;
    const int segment = lane / d.width * d.width;
    const auto take_from = [&](int source) {
      if ((mask >> source & 1U) == 0) {
        report(FindingKind::bad_source, d.site, {}, cat(who(first + lane), " reads lane ", source, " in ", name_of(d.op), ", which mask ", fmt::format("{:#x}", mask), " lacks, at ", to_string(d.site)));
        return;
      }
      std::memcpy(d.out, state(first + source).deposit.in, static_cast<std::size_t>(d.bytes));
    };
    const auto answer = [&](std::uint32_t value) { std::memcpy(d.out, &value, sizeof value); };
    switch (d.op) {
      case WarpOp::sync:
      case WarpOp::mma: break;
      case WarpOp::shuffle_index: take_from(segment + (d.argument & (d.width - 1))); break;
      case WarpOp::shuffle_xor: {
        const int source = lane ^ d.argument;
        take_from(source < segment + d.width ? source : lane);
        break;
      }
      case WarpOp::shuffle_up: take_from(lane - d.argument >= segment ? lane - d.argument : lane); break;
      case WarpOp::shuffle_down: take_from(lane + d.argument < segment + d.width ? lane + d.argument : lane); break;
      case WarpOp::ballot: answer(votes); break;
      case WarpOp::any: answer(votes != 0 ? 1 : 0); break;
      case WarpOp::all: answer(votes == mask ? 1 : 0); break;
      case WarpOp::match_any: {
        std::uint32_t equal = 0;
        for (std::uint32_t others = mask; others != 0; others &= others - 1) {
          const int other = __builtin_ctz(others);
          if (std::memcmp(d.in, state(first + other).deposit.in, static_cast<std::size_t>(d.bytes)) == 0) equal |= 1U << other;
        }
        answer(equal);
        break;
      }
    }
  }
  w.waiting &= ~mask;
  for (std::uint32_t rest = mask; rest != 0; rest &= rest - 1) state(first + __builtin_ctz(rest)).wait = Wait::ready;
  if (mask == kFullMask) flush(warp);
}

/// Everything that lanes of the mask did is ordered before whatever they do next.
void Executor::resolve_sync(WarpState& w, std::uint32_t mask) {
  const std::uint32_t now = ++w.syncs;
  Knowledge joined{};
  for (std::uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    const auto lane = static_cast<std::size_t>(__builtin_ctz(rest));
    for (std::size_t l = 0; l < 32; ++l) joined[l] = std::max(joined[l], w.knows[lane][l]);
  }
  for (std::uint32_t rest = mask; rest != 0; rest &= rest - 1) joined[static_cast<std::size_t>(__builtin_ctz(rest))] = now;
  for (std::uint32_t rest = mask; rest != 0; rest &= rest - 1) w.knows[static_cast<std::size_t>(__builtin_ctz(rest))] = joined;
}

void Executor::resolve_mma(int warp) {
  std::array<std::array<std::int32_t, mma::kDepth>, mma::kRows> a{};
  std::array<std::array<std::int32_t, mma::kColumns>, mma::kDepth> b{};
  const auto index = [](int i) { return static_cast<std::size_t>(i); };
  for (int lane = 0; lane < 32; ++lane) {
    const Deposit& d = state(warp * 32 + lane).deposit;
    const auto& operands = *static_cast<const mma::Operands*>(d.in);
    for (int i = 0; i < 16; ++i) {
      const mma::Place p = mma::place_of_a(lane, i);
      a[index(p.row)][index(p.column)] = mma::element(operands.a, i, (d.argument & 1) != 0);
    }
    for (int i = 0; i < 8; ++i) {
      const mma::Place p = mma::place_of_b(lane, i);
      b[index(p.row)][index(p.column)] = mma::element(operands.b, i, (d.argument & 2) != 0);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const Deposit& d = state(warp * 32 + lane).deposit;
    const auto& operands = *static_cast<const mma::Operands*>(d.in);
    auto* out = static_cast<std::int32_t*>(d.out);
    for (int i = 0; i < 4; ++i) {
      const mma::Place p = mma::place_of_c(lane, i);
      auto sum = static_cast<std::uint32_t>(operands.c[i]);
      for (int k = 0; k < mma::kDepth; ++k) sum += static_cast<std::uint32_t>(a[index(p.row)][index(k)] * b[index(k)][index(p.column)]);
      out[i] = static_cast<std::int32_t>(sum);
    }
  }
}

}  // namespace kvatlas::gpu
