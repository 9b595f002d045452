// The race detector: a shadow of memory that knows, for every byte, who touched it last and whether something orders the
// next access behind that. Exact for block barriers and __syncwarp; shuffles and votes order nothing, as CUDA says.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

namespace kvatlas::gpu {

enum class Touch : std::uint8_t { read, write, atomic };

/// One access: who, when. `stamp` counts the warp's __syncwarp calls so far; `site` is the executor's number of the instruction.
struct Who {
  std::int32_t block = -1;  // place in the order in which blocks ran; -1 = nobody
  std::uint32_t epoch = 0;  // block barriers passed
  std::uint32_t stamp = 0;
  std::int32_t site = 0;
  std::uint16_t warp = 0;
  std::uint8_t lane = 0;
};

/// knows[l]: accesses of lane l with a smaller stamp happened before what this lane does next.
using Knowledge = std::array<std::uint32_t, 32>;

struct Conflict {
  Who other;
  Touch other_touch = Touch::write;
};

class Shadow {
 public:
  /// Shared memory dies with its block, so accesses of earlier blocks cannot conflict; in global memory they all do.
  enum class Lifetime : std::uint8_t { block, launch };
  Shadow(std::int64_t bytes, Lifetime lifetime);

  /// Notes an access and returns whether it conflicts with an earlier one (which `conflict` then holds).
  bool touch(std::int64_t offset, int bytes, Touch touch, const Who& who, const Knowledge& knows, Conflict& conflict);
  void clear();
  /// Forgets what an earlier launch did: launches follow one another.
  void enter_launch(std::uint64_t launch) {
    if (launch != launch_) clear();
    launch_ = launch;
  }

 private:
  /// Accesses of one kind that nothing ordered behind each other: of one warp in one epoch exactly, of several warps or
  /// blocks as the fact that there were several, since any later write then conflicts.
  struct Set {
    Who last;
    std::uint32_t lanes = 0;         // lanes of last's warp that accessed with last's stamp
    bool several_warps = false;      // in last's epoch
    Who elsewhere;                   // somebody of an earlier block
    std::vector<Who> earlier_stamps; // same warp and epoch, older stamps, not known to last's lanes
  };
  struct Cell {
    Who writer;
    Set reads, atomics;
    std::int32_t split = -1;  // index of the four byte cells once a part of the word was touched on its own
  };
  static constexpr std::int64_t kPageWords = 256;

  Cell& cell(std::int64_t word);
  bool touch_cell(Cell& c, Touch touch, const Who& who, const Knowledge& knows, Conflict& conflict) const;
  bool ordered(const Who& before, const Who& now, const Knowledge& knows) const;
  bool conflicts(const Set& set, const Who& now, const Knowledge& knows, Who& other) const;
  void add(Set& set, const Who& now, const Knowledge& knows) const;

  Lifetime lifetime_;
  std::uint64_t launch_ = 0;
  std::vector<std::unique_ptr<std::array<Cell, kPageWords>>> pages_;
  std::vector<std::array<Cell, 4>> split_;
};

}  // namespace kvatlas::gpu
