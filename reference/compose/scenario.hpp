// Random but reproducible situations: a shape, parameters, inputs, and a cache driven through them. Conformance tests and the
// vectors for authors of kernels are made of them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "reference/method.hpp"

namespace kvatlas::scenarios {

/// A counter-based stream of small random numbers; the same on every machine.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next();
  /// Uniform in [0, n).
  std::int64_t below(std::int64_t n) { return static_cast<std::int64_t>(next() % static_cast<std::uint64_t>(n)); }
  /// Roughly normal: a centred sum of four uniforms, exact in float.
  float normal();
  template <class T>
  const T& pick(const std::vector<T>& from) {
    return from[static_cast<std::size_t>(below(static_cast<std::int64_t>(from.size())))];
  }

 private:
  std::uint64_t state_;
};

/// One situation: everything that a run needs.
struct Scenario {
  const Method* method = nullptr;
  CacheShape shape;
  ParamRow row;
  std::int64_t prompt = 0;
  std::int64_t chunk = 0;   // tokens of one forward call while the prompt runs
  std::int64_t decode = 0;
  std::uint64_t seed = 0;

  std::string describe() const;  // for CAPTURE: method, parameters, shape, sizes, seed
  History history(std::int64_t decoded) const { return {.prompt = Tokens(prompt), .generated = Tokens(decoded), .chunk = Tokens(chunk)}; }
};

/// A legal situation of a method: random shape and parameters that its why_not accepts, sizes small enough for thousands.
/// `attempt` makes draws different; the result depends on (method slug, attempt) alone.
Scenario draw(const Method& method, std::uint64_t attempt);

/// The q, k, v of tokens [first, first + n) of one layer. One channel is an outlier; some values tie or are subnormal.
struct Inputs {
  Array q, k, v;
  std::vector<std::int64_t> positions;
  StepInput step() const;
};
Inputs inputs_for(const CacheShape& shape, int layer, std::int64_t first, std::int64_t n, std::uint64_t seed);

/// Runs the prompt, announced where the method can be told, in chunks through every layer, then end_prefill. `before_end` sees the cache just before end_prefill.
/// Returns the outputs' bits, all layers and tokens appended.
std::vector<std::uint32_t> run_prompt(KvCache& cache, const Scenario& s, const std::function<void()>& before_end = {});

/// Tells a cache whose method can be told how long the situation's prompt will be; before its first token.
void announce(KvCache& cache, const Scenario& s);

/// What a caller may have to tell a cache whose method takes events, before decode step `step`: that a span of the prompt, later of what
/// was generated, has served, or that a turn begins. `forward(first, n)` runs tokens that the cache asks for again. Returns whether the
/// step's token is a prompt of its own, behind which end_prefill() has to come.
bool run_events(KvCache& cache, const Scenario& s, std::int64_t step, const std::function<void(std::int64_t, std::int64_t)>& forward);

/// Runs decode steps [first, first + n) through every layer, with their events; returns the outputs' bits.
std::vector<std::uint32_t> run_decode(KvCache& cache, const Scenario& s, std::int64_t first, std::int64_t n);

std::unique_ptr<KvCache> open_cache(const Scenario& s);

/// Methods that have an `open` face.
std::vector<const Method*> cached_methods();

/// A 64-bit digest of words, for tables of hashes.
std::uint64_t digest(std::span<const std::uint32_t> words, std::uint64_t start = 0);
std::uint64_t digest(std::span<const NamedBuffer> buffers);

}  // namespace kvatlas::scenarios
