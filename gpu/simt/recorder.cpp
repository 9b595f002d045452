#include "gpu/simt/recorder.hpp"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

namespace kvatlas::gpu {

namespace {

/// Wavefronts of lanes [first, first + count): the largest number of distinct 4-byte words that one of 32 banks delivers.
void count_phase(const Request& r, int first, int count, int width, AccessCounts& into) {
  std::array<std::uint64_t, 128> words{};
  std::size_t n = 0;
  for (int lane = first; lane < first + count; ++lane) {
    if ((r.mask >> lane & 1U) == 0) continue;
    const std::uint64_t from = r.address[static_cast<std::size_t>(lane)];
    for (std::uint64_t w = from / 4; w <= (from + static_cast<std::uint64_t>(width) - 1) / 4; ++w) words[n++] = w;
  }
  if (n == 0) return;
  std::sort(words.begin(), words.begin() + static_cast<std::ptrdiff_t>(n));
  n = static_cast<std::size_t>(std::unique(words.begin(), words.begin() + static_cast<std::ptrdiff_t>(n)) - words.begin());
  std::array<int, 32> bank{};
  int most = 0;
  for (std::size_t i = 0; i < n; ++i) most = std::max(most, ++bank[words[i] % 32]);
  into.wavefronts += most;
  into.ideal_wavefronts += static_cast<std::int64_t>((n + 31) / 32);
}

/// A request is served in phases by access width: 32 lanes of up to 4 bytes, 16 of 8, 8 of 16. This is what is commonly
/// observed, not a documented contract.
void count_shared(const Request& r, int width, AccessCounts& into) {
  const int lanes = width <= 4 ? 32 : width <= 8 ? 16 : 8;
  for (int first = 0; first < 32; first += lanes) count_phase(r, first, lanes, width, into);
}

void count_partial(const Request& r, int width, std::span<const std::uint64_t> sectors, AccessCounts& into) {
  std::vector<std::uint32_t> covered(sectors.size(), 0);  // one bit a byte of a sector
  for (std::uint32_t rest = r.mask; rest != 0; rest &= rest - 1) {
    const std::uint64_t from = r.address[static_cast<std::size_t>(__builtin_ctz(rest))];
    for (std::uint64_t b = from; b < from + static_cast<std::uint64_t>(width); ++b) {
      const auto at = std::lower_bound(sectors.begin(), sectors.end(), b / 32) - sectors.begin();
      covered[static_cast<std::size_t>(at)] |= 1U << (b % 32);
    }
  }
  into.partial_sectors += std::count_if(covered.begin(), covered.end(), [](std::uint32_t c) { return c != 0xFFFFFFFFU; });
}

std::int64_t most_on_one_address(const Request& r) {
  std::array<std::uint64_t, 32> seen{};
  std::size_t n = 0;
  for (std::uint32_t rest = r.mask; rest != 0; rest &= rest - 1) seen[n++] = r.address[static_cast<std::size_t>(__builtin_ctz(rest))];
  std::sort(seen.begin(), seen.begin() + static_cast<std::ptrdiff_t>(n));
  std::int64_t most = 0, run = 0;
  for (std::size_t i = 0; i < n; ++i) {
    run = i > 0 && seen[i] == seen[i - 1] ? run + 1 : 1;
    most = std::max(most, run);
  }
  return most;
}

void add(AccessCounts& to, const AccessCounts& from) {
  to.requests += from.requests;
  to.lanes += from.lanes;
  to.bytes += from.bytes;
  to.sectors += from.sectors;
  to.lines += from.lines;
  to.partial_sectors += from.partial_sectors;
  to.wavefronts += from.wavefronts;
  to.ideal_wavefronts += from.ideal_wavefronts;
  to.serialised += from.serialised;
}

std::int64_t make_distinct(std::vector<std::uint64_t>& sectors) {
  std::sort(sectors.begin(), sectors.end());
  sectors.erase(std::unique(sectors.begin(), sectors.end()), sectors.end());
  return static_cast<std::int64_t>(sectors.size());
}

}  // namespace

const char* name_of(MemoryOp op) {
  static constexpr std::array<const char*, 8> kNames{"global_load", "global_store", "global_atomic", "shared_load",
                                                     "shared_store", "shared_atomic", "copy_load", "copy_store"};
  return kNames[static_cast<std::size_t>(op)];
}

void count_request(const Request& r, MemoryOp op, int width, AccessCounts& into, std::vector<std::uint64_t>* sectors) {
  const int lanes = __builtin_popcount(r.mask);
  into.requests += 1;
  into.lanes += lanes;
  into.bytes += std::int64_t{lanes} * width;
  if (op == MemoryOp::shared_atomic || op == MemoryOp::global_atomic) into.serialised += most_on_one_address(r);
  if (is_shared(op)) return count_shared(r, width, into);
  std::array<std::uint64_t, 64> touched{};
  std::size_t n = 0;
  bool ascending = true;
  for (std::uint32_t rest = r.mask; rest != 0; rest &= rest - 1) {
    const std::uint64_t from = r.address[static_cast<std::size_t>(__builtin_ctz(rest))];
    for (std::uint64_t s = from / 32; s <= (from + static_cast<std::uint64_t>(width) - 1) / 32; ++s) {
      if (n > 0 && touched[n - 1] == s) continue;
      if (n > 0 && touched[n - 1] > s) ascending = false;
      touched[n++] = s;
    }
  }
  if (!ascending) {
    std::sort(touched.begin(), touched.begin() + static_cast<std::ptrdiff_t>(n));
    n = static_cast<std::size_t>(std::unique(touched.begin(), touched.begin() + static_cast<std::ptrdiff_t>(n)) - touched.begin());
  }
  into.sectors += static_cast<std::int64_t>(n);
  for (std::size_t i = 0; i < n; ++i)
    if (i == 0 || touched[i] / 4 != touched[i - 1] / 4) into.lines += 1;
  if (op == MemoryOp::global_store) count_partial(r, width, std::span(touched).first(n), into);
  if (sectors != nullptr) sectors->assign(touched.begin(), touched.begin() + static_cast<std::ptrdiff_t>(n));
}

void Recorder::begin(int warps, std::optional<std::int64_t> l2_bytes) {
  sites_.clear();
  warps_.assign(static_cast<std::size_t>(warps), {});
  l2_ = l2_bytes ? std::make_unique<L2Model>(*l2_bytes) : nullptr;
}

int Recorder::site(const Site& site, MemoryOp op, int width) {
  // Kernels have a few dozen sites, and the one that ran last mostly runs again.
  for (std::size_t i = 0; i < sites_.size(); ++i) {
    const SiteCounts& s = sites_[i].counts;
    if (s.site.line == site.line && s.op == op && s.width == width && (s.site.file == site.file || std::string_view(s.site.file) == site.file))
      return static_cast<int>(i);
  }
  sites_.push_back({.counts = {.site = site, .op = op, .width = width, .counts = {}}, .sectors = {}});
  return static_cast<int>(sites_.size() - 1);
}

void Recorder::record(int warp, int lane, int site, std::uint64_t address) {
  Warp& w = warps_[static_cast<std::size_t>(warp)];
  if (w.pending.size() < sites_.size()) w.pending.resize(sites_.size());
  Pending& p = w.pending[static_cast<std::size_t>(site)];
  if (p.used == 0) w.touched.push_back(site);
  const auto k = static_cast<std::size_t>(p.count[static_cast<std::size_t>(lane)]++);
  if (k >= p.used) {
    p.used = k + 1;
    if (p.requests.size() < p.used) p.requests.resize(p.used);
    p.requests[k].mask = 0;
  }
  p.requests[k].mask |= 1U << lane;
  p.requests[k].address[static_cast<std::size_t>(lane)] = address;
}

void Recorder::flush(int warp, std::vector<NonUniform>& found) {
  Warp& w = warps_[static_cast<std::size_t>(warp)];
  for (const int id : w.touched) {
    Pending& p = w.pending[static_cast<std::size_t>(id)];
    SiteState& s = sites_[static_cast<std::size_t>(id)];
    int least = 0, most = 0;
    std::uint32_t lanes = 0;
    bool tail = true;  // counts never rise with the lane and differ by one: a loop whose last round is partly filled
    int before = 0;
    for (int lane = 0; lane < 32; ++lane) {
      const int n = std::exchange(p.count[static_cast<std::size_t>(lane)], 0);
      if (n == 0) continue;
      if (lanes != 0 && n > before) tail = false;
      least = lanes == 0 ? n : std::min(least, n);
      most = std::max(most, n);
      lanes |= 1U << lane;
      before = n;
    }
    if (most - least > 1 || (most != least && !tail)) found.push_back({id, lanes, least, most});
    for (std::size_t k = 0; k < p.used; ++k) {
      const MemoryOp op = s.counts.op;
      const bool global = !is_shared(op);
      count_request(p.requests[k], op, s.counts.width, s.counts.counts, global ? &scratch_ : nullptr);
      if (!global) continue;
      for (const std::uint64_t sector : scratch_) {
        if (s.sectors.empty() || s.sectors.back() != sector) s.sectors.push_back(sector);
        if (l2_) l2_->access(sector, !reads_global(op));
      }
    }
    p.used = 0;
  }
  w.touched.clear();
}

LaunchCounts Recorder::finish() {
  LaunchCounts out;
  std::vector<std::uint64_t> reads, writes, atomics;
  for (SiteState& s : sites_) {
    s.counts.counts.distinct_sectors = make_distinct(s.sectors);
    const MemoryOp op = s.counts.op;
    AccessCounts& sum = is_shared(op) ? out.shared : reads_global(op) ? out.reads : op == MemoryOp::global_atomic ? out.atomics : out.writes;
    add(sum, s.counts.counts);
    auto& all = reads_global(op) ? reads : op == MemoryOp::global_atomic ? atomics : writes;
    if (!is_shared(op)) all.insert(all.end(), s.sectors.begin(), s.sectors.end());
    out.sites.push_back(s.counts);
  }
  out.reads.distinct_sectors = make_distinct(reads);
  out.writes.distinct_sectors = make_distinct(writes);
  out.atomics.distinct_sectors = make_distinct(atomics);
  std::ranges::sort(out.sites, [](const SiteCounts& a, const SiteCounts& b) {
    const std::string_view x = a.site.file, y = b.site.file;
    return x != y ? x < y : a.site.line != b.site.line ? a.site.line < b.site.line : a.op != b.op ? a.op < b.op : a.width < b.width;
  });
  if (l2_) out.l2 = l2_->counts();
  return out;
}

}  // namespace kvatlas::gpu
