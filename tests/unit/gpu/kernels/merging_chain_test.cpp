// Kernels that keep statistics and merge, fed step by step beside whole methods: h2o's mass, weightedkv's rows, hydragen's outputs.
#include <algorithm>
#include <cstring>

#include "core/arith.hpp"
#include "core/formats/dtype.hpp"
#include "gpu/kernels/update_shapes.hpp"
#include "gpu/verify/parts.hpp"
#include "gpu/verify/update_case.hpp"
#include "reference/cache.hpp"
#include "reference/compose/recipe.hpp"
#include "reference/method.hpp"
#include "reference/primitives/attention.hpp"
#include "reference/primitives/selection.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::gpu;

namespace {

constexpr int kDim = 64, kGroup = 4;
constexpr std::int64_t kTokens = 24;

/// Tokens of one kv head with a group of four query heads, fed one by one to a method that rotates nothing.
struct Fed {
  CacheShape shape = uniform_shape(1, kGroup, 1, kDim, Dtype::f16);
  Array q = draw_rows(kGroup * kTokens, kDim, Dtype::f16, 5), k = draw_rows(kTokens, kDim, Dtype::f16, 6), v = draw_rows(kTokens, kDim, Dtype::f16, 7);
  std::unique_ptr<KvCache> cache;

  explicit Fed(const std::string& recipe) {
    const MethodChoice m = parse_choice(recipe);
    cache = m.method->open(m.row, shape, {});
    for (float& x : q.values()) x *= 0.05F;
    num::round_to(Dtype::f16, q.values());
    feed(0, 1);
    cache->end_prefill();
  }
  View<const float> query(std::int64_t token) const { return q.view().slice(0, token * kGroup, kGroup); }
  void feed(std::int64_t first, std::int64_t n) {
    for (std::int64_t t = first; t < first + n; ++t) {
      const std::int64_t position = t;
      Array out({kGroup, 1, kDim});
      cache->forward(0, {.q = View<const float>(query(t).data(), {kGroup, 1, kDim}), .k = View<const float>(k.view().row(t).data(), {1, 1, kDim}),
                         .v = View<const float>(v.view().row(t).data(), {1, 1, kDim}), .positions = View<const std::int64_t>(&position, {1})}, out.view());
    }
  }
  template <class T>
  std::vector<T> words(std::string_view name) const {
    for (const NamedBuffer& b : cache->buffers())
      if (b.name.find(name) != std::string::npos) {
        std::vector<T> out(b.bytes.size() / sizeof(T));
        std::memcpy(out.data(), b.bytes.data(), b.bytes.size());
        return out;
      }
    return {};
  }
};

/// What a GPU would hold of one head, and the accumulating kernel run on it.
struct Held {
  std::vector<std::uint16_t> k, v;
  std::vector<std::uint64_t> mass;
  std::vector<std::uint32_t> seen;
  std::int64_t tokens() const { return static_cast<std::int64_t>(mass.size()); }

  void append(const Fed& from, std::int64_t token) {
    const auto key = bits_of_rows(from.k.view().slice(0, token, 1), Dtype::f16), value = bits_of_rows(from.v.view().slice(0, token, 1), Dtype::f16);
    k.insert(k.end(), key.begin(), key.end());
    v.insert(v.end(), value.begin(), value.end());
    mass.push_back(0);
    seen.push_back(0);
  }
  void accumulate(const Fed& from, std::int64_t token) {
    Array keys({tokens(), kDim});
    num::load(Dtype::f16, std::as_bytes(std::span(k)), keys.values());
    std::vector<float> logit, state;
    for (int g = 0; g < kGroup; ++g) {
      std::vector<float> x(mass.size());
      logits(from.query(token).row(g), keys.view(), logit_scale(from.shape.classes.front()), x);
      const SoftmaxPart part = softmax_part(x, View<const float>(nullptr, {tokens(), 0}));
      logit.insert(logit.end(), x.begin(), x.end());
      state.push_back(part.max);
      state.push_back(part.sum);
    }
    DeviceMemory memory;
    AccumulateArgs<SimCtx> a;
    a.logits = memory.upload("logits", logit);
    a.state = SimCtx::global_as<const Vec<float, 2>>(memory.upload("state", state));
    a.mass = memory.upload_mutable<std::uint64_t>("mass", mass);
    a.seen = memory.upload_mutable<std::uint32_t>("seen", seen);
    a.tokens = a.stride = tokens();
    Executor executor;
    const AccumulateInstance& i = accumulate_instances()[3];
    REQUIRE((i.shape.counted && i.shape.q_per_kv == kGroup));
    REQUIRE(i.run(executor, {.grid = {1}, .threads = kAccumulateThreads}, {.lanes = LaneOrder::random, .seed = 3}, a).clean());
    mass = memory.download(a.mass, tokens());
    seen = memory.download(a.seen, tokens());
  }
  void merge(std::int32_t from, std::int32_t to) {
    DeviceMemory memory;
    WeightedMergeArgs<SimCtx> a;
    a.pairs = SimCtx::global_as<const Vec<std::int32_t, 2>>(memory.upload("pairs", std::vector<std::int32_t>{from, to}));
    a.mass = memory.upload_mutable<std::uint64_t>("mass", mass);
    a.seen = memory.upload("seen", seen);
    a.values = memory.upload_mutable<std::uint16_t>("values", v);
    a.tokens = a.stride = tokens();
    a.merges = 1;
    a.mass_moves = true;
    Executor executor;
    const WeightedMergeInstance& i = weighted_merge_instances()[1];
    REQUIRE((i.shape.dim == kDim && i.shape.dtype == Dtype::f16));
    REQUIRE(i.run(executor, {.grid = {1}, .threads = kWeightedMergeThreads}, {.lanes = LaneOrder::descending}, a).clean());
    mass = memory.download(a.mass, tokens());
    v = memory.download(a.values, tokens() * kDim);
  }
  void drop(std::int64_t slot) {
    k.erase(k.begin() + slot * kDim, k.begin() + (slot + 1) * kDim);
    v.erase(v.begin() + slot * kDim, v.begin() + (slot + 1) * kDim);
    mass.erase(mass.begin() + slot);
    seen.erase(seen.begin() + slot);
  }
};

}  // namespace

TEST_CASE("h2o's mass after every step is what the kernel accumulates from the logits and states of the step", "[unit]") {
  Fed fed("h2o:heavy_hitters=6,recent_window=4");
  Held held;
  for (std::int64_t t = 0; t < kTokens; ++t) {
    if (t > 0) fed.feed(t, 1);
    held.append(fed, t);
    held.accumulate(fed, t);
    if (held.tokens() > 10) {  // the lowest of the scored tokens leaves; of equal ones the later
      std::int64_t least = 0;
      for (std::int64_t s = 1; s < held.tokens() - 4; ++s)
        if (held.mass[static_cast<std::size_t>(s)] <= held.mass[static_cast<std::size_t>(least)]) least = s;
      held.drop(least);
    }
    CAPTURE(t);
    REQUIRE(fed.words<std::uint64_t>("mass") == held.mass);
  }
}

TEST_CASE("weightedkv's values, masses and counts are what the two kernels leave, step by step", "[unit]") {
  Fed fed("weightedkv:budget=10,sinks=2,recent_window=3,receiver=mass");
  Held held;
  for (std::int64_t t = 0; t < kTokens; ++t) {
    if (t > 0) fed.feed(t, 1);
    held.append(fed, t);
    held.accumulate(fed, t);
    if (held.tokens() > 10) {
      std::vector<float> average;
      for (std::size_t s = 2; s < held.mass.size() - 3; ++s) average.push_back(num::from_mass(held.mass[s]) / static_cast<float>(held.seen[s]));
      const std::int64_t from = 2 + lowest(average);
      held.merge(static_cast<std::int32_t>(from), static_cast<std::int32_t>(from + 1));
      held.drop(from);
    }
    CAPTURE(t);
    REQUIRE(fed.words<std::uint64_t>("mass") == held.mass);
    REQUIRE(fed.words<std::uint32_t>("queries") == held.seen);
    REQUIRE(fed.words<std::uint16_t>("v_rows") == held.v);
  }
}

TEST_CASE("hydragen's outputs are what prefix_merge makes of the partial results of the shared part and of each sequence's own", "[unit]") {
  constexpr std::int64_t kShared = 270, kSpan = 256, kSequences = 2;
  const MethodChoice m = parse_choice("hydragen");
  const CacheShape shape = uniform_shape(1, kGroup, 1, kDim, Dtype::f16);
  const Array k = draw_rows(kShared + kSequences, kDim, Dtype::f16, 11), v = draw_rows(kShared + kSequences, kDim, Dtype::f16, 12);
  Array q = draw_rows(kGroup * (kShared + kSequences), kDim, Dtype::f16, 13);
  for (float& x : q.values()) x *= 0.05F;
  num::round_to(Dtype::f16, q.values());
  const auto group = m.method->open_group(m.row, shape);
  const auto feed = [&](const std::vector<int>& sequences, std::int64_t first, std::int64_t n, std::int64_t position) {
    std::vector<std::vector<std::int64_t>> positions(sequences.size());
    std::vector<StepInput> inputs;
    std::vector<Array> outs;
    std::vector<View<float>> views;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      const std::int64_t from = first + static_cast<std::int64_t>(i) * n;
      for (std::int64_t t = 0; t < n; ++t) positions[i].push_back(position + t);
      inputs.push_back({.q = View<const float>(q.view().row(from * kGroup).data(), {kGroup, n, kDim}), .k = View<const float>(k.view().row(from).data(), {1, n, kDim}),
                        .v = View<const float>(v.view().row(from).data(), {1, n, kDim}), .positions = View<const std::int64_t>(positions[i].data(), {n})});
      outs.emplace_back(Array({kGroup, n, kDim}));
    }
    for (Array& out : outs) views.push_back(out.view());
    group->forward(0, sequences, inputs, views);
    return outs;
  };
  const int parent = group->fork(-1);
  feed({parent}, 0, kShared, 0);
  const auto want = feed({parent, group->fork(parent)}, kShared, 1, kShared);

  std::vector<float> state, partial;
  const auto add = [&](std::int64_t sequence, int g, std::int64_t first, std::int64_t count) {
    std::vector<float> x(static_cast<std::size_t>(count));
    logits(q.view().row((kShared + sequence) * kGroup + g), k.view().slice(0, first, count), logit_scale(shape.classes.front()), x);
    const SoftmaxPart part = softmax_part(x, v.view().slice(0, first, count));
    state.push_back(part.max);
    state.push_back(part.sum);
    partial.insert(partial.end(), part.acc.begin(), part.acc.end());
  };
  for (std::int64_t s = 0; s < kSequences; ++s)
    for (int g = 0; g < kGroup; ++g) {
      add(s, g, 0, kSpan);
      add(s, g, kSpan, kShared - kSpan);
    }
  for (std::int64_t s = 0; s < kSequences; ++s)
    for (int g = 0; g < kGroup; ++g) add(s, g, kShared + s, 1);
  const std::vector<PrefixPart> parts{{0, 2, 2}, {16, 1, 1}, {8, 2, 2}, {20, 1, 1}};
  DeviceMemory memory;
  PrefixMergeArgs<SimCtx> a;
  a.parts = memory.upload("parts", parts);
  a.partial = memory.upload("partial", partial);
  a.state = SimCtx::global_as<const Vec<float, 2>>(memory.upload("state", state));
  a.out = memory.allocate<std::uint16_t>("out", kSequences * kGroup * kDim);
  a.rows = kGroup;
  a.levels = 2;
  Executor executor;
  const PrefixMergeInstance& i = prefix_merge_instances()[1];
  REQUIRE((i.shape.dim == kDim && i.shape.dtype == Dtype::f16));
  REQUIRE(i.run(executor, {.grid = {kGroup, kSequences}, .threads = kDim}, {.blocks = BlockOrder::random, .seed = 3}, a).clean());
  const auto got = memory.download(a.out, kSequences * kGroup * kDim);
  for (std::size_t s = 0; s < kSequences; ++s) {
    const auto bits = bits_of_rows(View<const float>(want[s].view().data(), {kGroup, kDim}), Dtype::f16);
    CHECK(std::ranges::equal(bits, std::span(got).subspan(s * bits.size(), bits.size())));
  }
}
