// The closed forms of the four kernel families as pure functions: machine, constants and work in, seconds of each term out.
#pragma once

#include "core/plan.hpp"
#include "simulator/calibration.hpp"

namespace kvatlas::sim {

/// A GPU's datasheet as the closed forms read it.
struct Machine {
  double sms = 1, clock = 1, bandwidth = 1, l2_bytes = 0;
  double tensor = 1;   // bf16, 32-bit accumulation, flop/s
  double achieved = 1; // what large matrix products reach of it, flop/s
  double vector = 1;   // fp32 flop/s
  double link = 1;     // between boards, one way, bytes/s: NVLink or else PCI Express
};
Machine machine_of(const Gpu& gpu);

/// Attention of one layer, one query token a sequence (or several).
struct DecodeWork {
  double heads = 1, group = 1, length = 1;    // caches, query rows that share one, entries of each
  double bytes = 0;                           // distinct bytes read, partial results apart
  double values = 0;                          // stored values to convert
  double row_values = 0;                      // output values of one query row
  double tensor_flops = 0, vector_flops = 0;
};
DecodeWork decode_work(const KernelCall& call);

struct DecodeTerms {
  double launch = 0, split = 0;               // added
  double held = 0;                            // added: what a smaller batch's cut and the whole tiles about this length take longer
  double bytes = 0, items = 0, starts = 0, values = 0, tensor = 0, vector = 0;  // joined by a smooth maximum
  double load = 0;                            // items of the busiest SM
  double item_entries = 0;                    // entries of one item
  double moved = 0;                           // bytes that `bytes` is the time of
  double seconds() const;
};
/// `l2_fill`: the data over L2 when a repeated call may find it there, huge when it is cold. `rate`: values an SM converts in one clock.
DecodeTerms decode_terms(const Machine& m, const GpuConstants& g, const Profile& p, const DecodeWork& w, double l2_fill, double rate);
inline constexpr double kCold = 1e30;
/// Share of data of `fill` times the L2 that a repeated reading finds there, where up to `share` of it stays.
double resident(double fill, double share);

struct PrefillWork {
  double heads = 1, queries = 1;              // query heads of all sequences, new tokens of each
  double pairs = 0;                           // query-key pairs of one head that count
  double flops_per_pair = 0, bytes = 0;
};
PrefillWork prefill_work(const KernelCall& call);

struct PrefillTerms {
  double launch = 0, tensor = 0, exponentials = 0, tile = 0, bytes = 0, items = 0;  // all added
  double seconds() const { return launch + tensor + exponentials + tile + bytes + items; }
};
PrefillTerms prefill_terms(const Machine& m, const GpuConstants& g, const Profile& p, const PrefillWork& w);

/// `groups` equal products of m x k activations with n x k weights.
struct MatrixWork {
  double groups = 1, m = 1, n = 1, k = 1;
  double weight_bytes = 2, activation_bytes = 2;  // of one value
  double l2_fill = kCold;                     // what repeated calls go through, over L2; in a step other layers evict it
  double speedup = 1;                         // peak of the number format over bf16's
  /// Traffic of the pass that reads 16-bit activations and writes them narrower.
  double quantize_bytes() const { return activation_bytes < 2 ? groups * m * k * (2 + activation_bytes) : 0; }
};
struct MatrixTerms {
  double launch = 0, waves = 0;               // added
  double quantize = 0;                        // added: 16-bit activations are read and written narrower first
  double bytes = 0, tensor = 0, tile = 0;     // joined by a smooth maximum
  double body() const;
  double overhead() const { return launch + waves + quantize; }
  double seconds() const { return overhead() + body(); }
};
MatrixTerms matrix_terms(const Machine& m, const GpuConstants& g, const Profile& p, const MatrixWork& w);

/// One collective among the ranks of a deployment.
struct CollectiveWork {
  double ranks = 2;
  double message = 0;                         // bytes of the whole result (reduce-scatter: of each rank's input)
  double rounds = 1;                          // that every byte makes of the ring: 2 in an all-reduce
  /// Bytes that each rank sends.
  double sent() const { return rounds * message * (ranks - 1) / ranks; }
};
struct CollectiveTerms {
  double launch = 0, transfer = 0;            // added
  double share = 1;                           // of the link's rate that so many ranks reach
  double seconds() const { return launch + transfer; }
};
CollectiveTerms collective_terms(const Machine& m, const LinkConstants& l, const Profile& p, const CollectiveWork& w);

}  // namespace kvatlas::sim
