// Counts what a GPU's memory system would see: warp requests, 32-byte sectors, 128-byte lines, shared-memory wavefronts.
//
// Lanes' accesses of one site form a request when they are the k-th of each lane since the warp's last reconvergence point
// (full-mask collective, warp or block barrier). Exact where lanes run the site equally often, or where a loop's last round
// is run by the lower lanes only; anything else is reported as a non-uniform site.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "gpu/simt/l2_model.hpp"
#include "gpu/simt/site.hpp"

namespace kvatlas::gpu {

enum class MemoryOp : std::uint8_t { global_load, global_store, global_atomic, shared_load, shared_store, shared_atomic, copy_load, copy_store };
const char* name_of(MemoryOp op);
constexpr bool is_shared(MemoryOp op) {
  return op == MemoryOp::shared_load || op == MemoryOp::shared_store || op == MemoryOp::shared_atomic || op == MemoryOp::copy_store;
}
/// Loads by value and asynchronous copies both read device memory.
constexpr bool reads_global(MemoryOp op) { return op == MemoryOp::global_load || op == MemoryOp::copy_load; }

/// Sums over requests; of shared memory only requests, lanes, bytes and wavefronts mean something.
struct AccessCounts {
  std::int64_t requests = 0;
  std::int64_t lanes = 0;
  std::int64_t bytes = 0;             // asked for by lanes
  std::int64_t sectors = 0;           // distinct within each request
  std::int64_t distinct_sectors = 0;  // distinct over the launch
  std::int64_t lines = 0;
  std::int64_t partial_sectors = 0;   // of stores: sectors that a request writes in part
  std::int64_t wavefronts = 0;        // shared memory
  std::int64_t ideal_wavefronts = 0;
  std::int64_t serialised = 0;        // of atomics: sum of the largest number of lanes on one address

  std::int64_t conflicts() const { return wavefronts - ideal_wavefronts; }
  /// Share of the sectors' bytes that lanes asked for.
  double efficiency() const { return sectors == 0 ? 1.0 : static_cast<double>(bytes) / (32.0 * static_cast<double>(sectors)); }
  friend bool operator==(const AccessCounts&, const AccessCounts&) = default;
};

struct SiteCounts {
  Site site;
  MemoryOp op = MemoryOp::global_load;
  int width = 0;  // bytes of one lane's access
  AccessCounts counts;
};

struct LaunchCounts {
  std::vector<SiteCounts> sites;  // by file and line
  AccessCounts reads, writes, atomics, shared;
  std::optional<L2Counts> l2;
};

/// One request of up to 32 lanes, in the rules of the counters.
struct Request {
  std::uint32_t mask = 0;
  std::array<std::uint64_t, 32> address{};
};
/// Adds one request to the sums; `sectors`, if given, receives the sectors it touches (address / 32, ascending).
void count_request(const Request& request, MemoryOp op, int width, AccessCounts& into, std::vector<std::uint64_t>* sectors);

class Recorder {
 public:
  void begin(int warps, std::optional<std::int64_t> l2_bytes);
  int site(const Site& site, MemoryOp op, int width);
  const Site& site_of(int id) const { return sites_[static_cast<std::size_t>(id)].counts.site; }
  void record(int warp, int lane, int site, std::uint64_t address);

  struct NonUniform {
    int site;
    std::uint32_t lanes;  // that ran it
    int least, most;      // times
  };
  /// The warp reconverged: its accesses become requests. Non-uniform sites are appended to `found`.
  void flush(int warp, std::vector<NonUniform>& found);
  LaunchCounts finish();

 private:
  struct Pending {
    std::array<int, 32> count{};
    std::vector<Request> requests;
    std::size_t used = 0;
  };
  struct Warp {
    std::vector<Pending> pending;  // by site
    std::vector<int> touched;
  };
  struct SiteState {
    SiteCounts counts;
    std::vector<std::uint64_t> sectors;  // all that were touched, made distinct at the end
  };
  std::vector<SiteState> sites_;
  std::vector<Warp> warps_;
  std::vector<std::uint64_t> scratch_;
  std::unique_ptr<L2Model> l2_;
};

}  // namespace kvatlas::gpu
