// What the executor reports about a kernel: kinds of findings, each with the sites of the instructions that take part.
#pragma once

#include <string>
#include <vector>

#include "gpu/simt/site.hpp"

namespace kvatlas::gpu {

enum class FindingKind : std::uint8_t {
  out_of_bounds,         // an access outside its allocation or outside shared memory
  misaligned,            // an address that is not a multiple of the access width
  read_only,             // a write to a const input
  uninitialised_read,    // bytes that nobody wrote
  race,                  // two accesses, at least one a write, that nothing orders
  same_value_write,      // a race of two writes that store the same bits
  divergent_barrier,     // threads of a block wait at different barriers
  exited_at_barrier,     // some threads had returned when the others reached a barrier
  dead_lock,             // nothing can move
  mismatched_collective, // lanes of one mask disagree about operation, site or width
  bad_mask,              // the caller is not in its mask, or the mask is empty
  exited_lane,           // a mask names a lane that has returned
  bad_source,            // a shuffle reads a lane outside the mask
  missing_wait,          // a thread returned while an asynchronous copy was pending
  non_uniform_site,      // lanes ran a counted access a different number of times: its grouping is not exact
  launch_limit,          // grid, threads or shared memory beyond what the GPU launches
  stack_overflow,        // local arrays of a thread overran its fiber's stack
  trap,                  // the kernel called trap
  exception,             // the kernel threw
};
const char* name_of(FindingKind kind);
/// Findings that make results or counts worthless stop a launch; the others are collected.
bool stops_launch(FindingKind kind);

struct Finding {
  FindingKind kind;
  Site site;          // of the access that showed it
  Site other;         // of its partner; line 0 without one
  std::string text;   // one sentence with block, threads and addresses
};

/// "decode.hpp:120"
std::string to_string(const Site& site);

}  // namespace kvatlas::gpu
