// Double Sparsity against recorded outputs of its accuracy code, its quantizer and its calibration hooks. Cases without a
// channel table average neighbouring channels, a fallback of that code which is not offered.
#include <algorithm>

#include "reference/compose/recipe.hpp"
#include "reference/retrieval/double_sparse/labels.hpp"
#include "reference/primitives/selection.hpp"
#include "tests/catch.hpp"
#include "tests/support/golden.hpp"

using namespace kvatlas;
using namespace kvatlas::test;
using namespace kvatlas::double_sparsity;

TEST_CASE("labels decode to the bits of the released quantizer", "[golden]") {
  int checked = 0;
  for (const GoldenCase& golden : golden_cases("double_sparse")) {
    if (!golden.has("y")) continue;
    CAPTURE(golden.name());
    const NamedTensor x = golden.floats("x");
    const int bits = golden.parameter<int>("bits");
    const auto r = static_cast<std::size_t>(x.dims.back());
    const LabelFormat stored{.channels = static_cast<int>(r), .bits = bits, .dtype = Dtype::bf16};  // the inputs are bf16 values
    std::vector<float> y(x.values.size());
    for (std::size_t first = 0; first < y.size(); first += r) {
      std::vector<std::byte> bytes(static_cast<std::size_t>(stored.row_bytes()));
      stored.encode(std::span(x.values).subspan(first, r), bytes);
      stored.decode(bytes, std::span(y).subspan(first, r));
    }
    check_exact(golden, "y", y);
    ++checked;
  }
  REQUIRE(checked >= 2);
}

TEST_CASE("the calibration statistic agrees with the released hooks", "[golden]") {
  int checked = 0;
  for (const GoldenCase& golden : golden_cases("double_sparse")) {
    if (!golden.has("q_score")) continue;
    CAPTURE(golden.name());
    const auto tokens = golden.parameter<std::int64_t>("tokens");
    for (const char* which : {"q", "k"}) {
      const NamedTensor score = golden.floats(cat(which, "_score"));
      const auto heads = static_cast<int>(score.dims[0]), dim = static_cast<int>(score.dims[1]);
      Calibration sums(heads, dim);
      for (int block = 0; block < golden.parameter<int>("blocks"); ++block) {
        const NamedTensor rows = golden.floats(cat(which, "_block", block));
        for (std::int64_t t = 0; t < tokens; ++t)
          for (int h = 0; h < heads; ++h)
            sums.add(h, std::span(rows.values).subspan(static_cast<std::size_t>((t * heads + h) * dim), static_cast<std::size_t>(dim)));
      }
      std::vector<float> means;  // theirs is a sum of means over blocks of equal length
      for (const double s : sums.values()) means.push_back(static_cast<float>(s / static_cast<double>(tokens)));
      check_bound(golden, cat(which, "_score"), means);
    }
    ++checked;
  }
  REQUIRE(checked >= 1);
}

TEST_CASE("label scores, kept tokens and outputs agree with the accuracy code, in decoding and in a prompt", "[golden]") {
  int checked = 0;
  for (const GoldenCase& golden : golden_cases("double_sparse")) {
    if (!golden.has("sorted_channel")) continue;
    CAPTURE(golden.name());
    const int q_heads = golden.parameter<int>("q_heads"), kv_heads = golden.parameter<int>("kv_heads"), dim = golden.parameter<int>("head_dim");
    const int bits = golden.parameter<int>("label_bits"), r = dim / golden.parameter<int>("group_factor");
    const auto tokens = golden.parameter<std::int64_t>("tokens"), heavy = golden.parameter<std::int64_t>("heavy_const");
    const std::int64_t queries = golden.parameter<std::string>("phase") == "dec" ? 1 : tokens;
    const NamedTensor q = golden.floats("q"), k = golden.floats("k"), v = golden.floats("v");
    const View<const float> qv = view_of(q, {q_heads, queries, dim}), kv = view_of(k, {kv_heads, tokens, dim}), vv = view_of(v, {kv_heads, tokens, dim});
    const IntTensor table = golden.integers("sorted_channel"), their_kept = golden.integers("kept");
    const NamedTensor their_scores = golden.floats("label_scores");

    std::vector<float> scores;
    std::vector<std::int64_t> kept;
    for (int h = 0; h < q_heads; ++h) {
      std::vector<std::uint16_t> channels;
      for (int c = 0; c < r; ++c) channels.push_back(static_cast<std::uint16_t>(table.values[static_cast<std::size_t>(h * dim + c)]));
      for (std::int64_t i = 0; i < queries; ++i) {
        const std::vector<float> query = query_label(qv.row(h, i), channels, bits);
        const std::int64_t seen = queries == 1 ? tokens : i + 1;
        std::vector<float> row;
        for (std::int64_t t = 0; t < seen; ++t) row.push_back(label_score(query, query_label(kv.row(h / (q_heads / kv_heads), t), channels, bits)));
        if (seen >= heavy) {
          const Slots best = top_k(row, heavy);
          kept.insert(kept.end(), best.begin(), best.end());
        } else {  // every visible token is kept; which hidden ones fill their list means nothing
          const auto* given = their_kept.values.data() + (h * queries + i) * heavy;
          kept.insert(kept.end(), given, given + heavy);
        }
        row.resize(static_cast<std::size_t>(tokens));
        for (std::int64_t t = seen; t < tokens; ++t) row[static_cast<std::size_t>(t)] = their_scores.values[static_cast<std::size_t>((h * queries + i) * tokens + t)];  // -inf
        scores.insert(scores.end(), row.begin(), row.end());
      }
    }
    check_bound(golden, "label_scores", scores);
    check_set(golden, "kept", kept);

    // The cache, with the table as its channel file; a prompt is a step of many tokens behind an empty one.
    TensorMap file;
    file["layer0.channels"] = {.dims = {q_heads, dim}, .values = {table.values.begin(), table.values.end()}};
    const MethodChoice choice = parse_choice(cat("double_sparse:dense_layers=0,labels=per_q_head,heavy=", heavy, ",label_bits=", bits,
                                                 ",group_factor=", dim / r));
    const auto cache = choice.method->open(choice.row, uniform_shape(1, q_heads, kv_heads, dim, Dtype::f32), {.trained = &file});
    std::vector<std::int64_t> positions(static_cast<std::size_t>(tokens));
    for (std::size_t t = 0; t < positions.size(); ++t) positions[t] = static_cast<std::int64_t>(t);
    const std::int64_t old = tokens - queries;
    if (old > 0) {
      const Array no_query({q_heads, old, dim});
      Array ignored({q_heads, old, dim});
      cache->forward(0, {.q = no_query.view(), .k = kv.slice(1, 0, old), .v = vv.slice(1, 0, old), .positions = {positions.data(), {old}}}, ignored.view());
    }
    cache->end_prefill();
    Array out({q_heads, queries, dim});
    cache->forward(0, {.q = qv, .k = kv.slice(1, old, queries), .v = vv.slice(1, old, queries), .positions = {positions.data() + old, {queries}}}, out.view());
    std::vector<float> by_query;  // theirs is [queries, q_heads * dim]
    for (std::int64_t i = 0; i < queries; ++i)
      for (int h = 0; h < q_heads; ++h) by_query.insert(by_query.end(), out.view().row(h, i).begin(), out.view().row(h, i).end());
    check_bound(golden, "out", by_query);
    ++checked;
  }
  REQUIRE(checked >= 2);
}
