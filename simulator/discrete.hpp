// Attention whose sequences or heads differ in length, item by item: SMs take items in order as they come free, and all that run share
// tensor units and memory. The closed form gives the level of a uniform batch, this gives what unequal lengths cost on top.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "simulator/closed_form.hpp"
#include "simulator/end_to_end.hpp"

namespace kvatlas::sim {

/// One work item: `entries` of one cache that a tile of query rows goes through.
struct DiscreteItem {
  double entries = 0;
  double dram_bytes = 0;  // of one entry, that no other item brings along
};

/// What an SM and the memory give to items.
struct DiscreteMachine {
  double sms = 1;
  double bandwidth = 1;   // bytes/s that streaming kernels reach
  double entry_s = 0;     // of one entry on an SM alone: the longer (smooth maximum) of its padded tensor work and its conversions
  double start_s = 0;     // from an item's end to the first entry of the one that takes its place
};
inline constexpr int kItemsOfAnSm = 2;  // that run at a time: what shared memory and registers of published decode kernels leave room for

/// `query_tile` rows go through every entry together, full or not; `rate`: values an SM converts in one clock.
DiscreteMachine discrete_machine(const Machine& m, const GpuConstants& g, double query_tile, double row_values, double values_per_entry, double rate);

/// Seconds until the last item ends. Items start in order; those that run advance at one pace, the root of squares of their share
/// of the tensor units and of memory.
double discrete_s(const DiscreteMachine& m, const std::vector<DiscreteItem>& items);

/// Decode attention over caches of unequal lengths, one each of sequence and kv head, in the order in which they are dispatched.
struct RaggedWork {
  std::vector<double> lengths{};
  double group = 1, row_values = 1;         // query rows that share a cache, output values of one
  double entry_bytes = 0, entry_values = 0; // of one entry of one cache: stored bytes, values to convert
};

struct RaggedTime {
  double seconds = 0;         // of the ragged batch
  double uniform_s = 0;       // closed form of as many caches of the mean length
  double penalty = 1;         // of unequal lengths
};
/// throws InvalidArgument without caches or with one that is empty
RaggedTime ragged_decode(const Machine& m, const GpuConstants& g, const Profile& p, const RaggedWork& w, double rate);

/// So many lengths about a mean with this coefficient of variation, in an order that mixes long and short. A part of each is the mean's, the rest grows as a
/// power of its rank, the lowest that reaches the variation: uniform up to 0.58, some long ones beyond. At most 4.
std::vector<double> spread_lengths(std::size_t count, double mean, double variation);

/// A uniform batch by the discrete model alone, launch included: for comparison with the closed form.
double discrete_uniform_s(const Machine& m, const GpuConstants& g, const Profile& p, double heads, double length, const RaggedWork& w, double rate);

/// Reads skewed_decode.csv or mixed_batch_attention.csv. Of the former, kind "skewed_decode": the time over that of a uniform batch of the same mean,
/// on both sides (a roofline knows none: 1). Of the latter, kind "mixed_batch": seconds of one call with a prompt's chunk and decodes.
/// throws InvalidArgument naming line and field
std::vector<EndToEndFigure> read_ragged(std::string_view csv, std::string_view name, const Calibration& calibration = shipped_calibration());

}  // namespace kvatlas::sim
