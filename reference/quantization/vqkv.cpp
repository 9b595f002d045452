// vqkv: keys and values as indices of residual vector quantization, one trained codebook a stage; first and newest tokens plain.
// Source    arXiv 2603.16435 (ratio, stages and sizes, first and local tokens; from its opening pages, reviews and a reading note: the
//           official repository LUMIA-Group/VQKV could not be had)
// Formula   residual r_0 = x; index_i = nearest vector of codebook i to r_i, r_{i+1} = r_i - codebook_i[index_i]; x' = sum of codebook_i[index_i]
// Keeps     every token; keys after RoPE; the first `sinks` and the newest local_window tokens stay in the cache's dtype
// Deviates  codebooks are input, one set a layer for all heads, each projection folded into its code vectors; the two branches of keys
//           are codewords that are zero outside their branch; tokens leave the window in whole blocks of quant_block
#include <algorithm>
#include <cmath>

#include "core/arith.hpp"
#include "core/errors.hpp"
#include "core/formats/dtype.hpp"
#include "core/kernels/store.hpp"
#include "reference/primitives/record_store.hpp"
#include "reference/primitives/trained.hpp"

namespace kvatlas::methods {
namespace {

struct Params {
  int k_stages = 56;
  int k_entries = 1024;
  int v_stages = 16;
  int v_entries = 512;
  int sinks = 4;
  int local_window = 1024;
  int quant_block = 1024;
  static constexpr auto fields() {
    return std::tuple{field(&Params::k_stages, "k_stages", "", 1, 256, "codebooks of keys, one after the other"),
                      field(&Params::k_entries, "k_entries", "", 2, 65536, "vectors of a codebook of keys, a power of two"),
                      field(&Params::v_stages, "v_stages", "", 1, 256, "codebooks of values"),
                      field(&Params::v_entries, "v_entries", "", 2, 65536, "vectors of a codebook of values, a power of two"),
                      field(&Params::sinks, "sinks", "token", 0, 1024, "first tokens, never coded"),
                      field(&Params::local_window, "local_window", "token", 0, 65536, "newest tokens kept plain"),
                      field(&Params::quant_block, "quant_block", "token", 1, 8192, "tokens that are coded at once")};
  }
};

int stages(const Params& p, Side side) { return side == Side::key ? p.k_stages : p.v_stages; }
int entries(const Params& p, Side side) { return side == Side::key ? p.k_entries : p.v_entries; }
int index_bits(const Params& p, Side side) {
  int bits = 0;
  while ((1 << bits) < entries(p, side)) ++bits;
  return bits;
}
std::int64_t row_bytes(const Params& p, Side side) { return to_bytes_ceil(Bits(std::int64_t{stages(p, side)} * index_bits(p, side))).value; }

std::optional<std::string> why_not(const Params& p, const CacheShape& shape) {
  for (const auto& [name, n] : {std::pair{"k_entries", p.k_entries}, std::pair{"v_entries", p.v_entries}})
    if ((n & (n - 1)) != 0) return cat(name, " is ", n, ", must be a power of two: an index has whole bits");
  return why_not_sides("vqkv", shape, kWholeRows);
}

RecordLayout layout(const Params& p, const LayerClass& c, Side side) {
  const int dim = dim_of(c, side);
  const std::int64_t bits = 8 * row_bytes(p, side);
  return {.block = p.quant_block,
          .parts = {{"indices", p.quant_block * row_bytes(p, side), Scope::token}},
          .state = {{"codebooks", std::int64_t{2} * stages(p, side) * entries(p, side) * dim, Scope::layer}},  // fp16
          .format = {.kind = CodeKind::table, .bits = static_cast<int>(bits / dim), .axis = GroupAxis::channels, .group_size = dim,
                     .group_bits = static_cast<int>(bits % dim)},
          .ageing = Ageing::slide, .residual = Tokens(p.local_window), .sinks = Tokens(p.sinks)};
}
using Faces = RecordFaces<Params, layout>;

/// Beside the indices every stored row gathers one code vector a stage from the codebooks, which lie in the L2 cache at best.
Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  Plan plan = record_decode_plan(shape, h, Faces::of(p));
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv) continue;
    for (const Side side : {Side::key, Side::value}) {
      const std::int64_t coded = layout(p, c, side).coded(h.tokens()).value;
      plan.add(kernels::Gather{.heads = std::int64_t{h.sequences} * c.kv_heads, .rows = coded * stages(p, side),
                               .row_bytes = std::int64_t{2} * dim_of(c, side)}
                   .call(c.count()));
    }
  }
  return plan;
}

RecordCodec codec_of(const Params& p, Side side, int dim, const std::vector<std::byte>& codebooks) {
  const auto width = static_cast<std::size_t>(dim);
  const int bits = index_bits(p, side), count = stages(p, side), vectors = entries(p, side);
  const std::int64_t stride = row_bytes(p, side);
  // Code vectors are fp16 in the state; float32 is made of one stage at a time.
  const auto stage_of = [=](std::span<const std::byte> state, int stage) {
    std::vector<float> book(static_cast<std::size_t>(vectors) * width);
    num::load(Dtype::f16, state.subspan(static_cast<std::size_t>(stage) * book.size() * 2, book.size() * 2), book);
    return book;
  };
  return {.encode = [=](const RecordPlace& at, View<const float> rows, std::span<std::byte> record) {
            std::vector<std::vector<float>> rest;
            for (std::int64_t t = 0; t < rows.dim(0); ++t) rest.emplace_back(rows.row(t).begin(), rows.row(t).end());
            std::ranges::fill(record, std::byte{0});
            std::vector<float> difference(width);
            for (int stage = 0; stage < count; ++stage) {
              const std::vector<float> book = stage_of(at.state, stage);
              for (std::size_t t = 0; t < rest.size(); ++t) {
                std::uint32_t best = 0;
                float least = num::infinity();
                for (int v = 0; v < vectors; ++v) {  // of equally near ones the first
                  const float* code = book.data() + static_cast<std::size_t>(v) * width;
                  for (std::size_t i = 0; i < width; ++i) difference[i] = rest[t][i] - code[i];
                  const float distance = num::lane_dot(difference, difference);
                  if (distance < least) {
                    least = distance;
                    best = static_cast<std::uint32_t>(v);
                  }
                }
                for (std::size_t i = 0; i < width; ++i) rest[t][i] = rest[t][i] - book[best * width + i];
                put_bits(record.subspan(t * static_cast<std::size_t>(stride), static_cast<std::size_t>(stride)), std::int64_t{stage} * bits, bits, best);
              }
            }
          },
          .decode = [=](const RecordPlace& at, std::span<const std::byte> record, View<float> rows) {
            for (std::int64_t t = 0; t < rows.dim(0); ++t) std::ranges::fill(rows.row(t), 0.0F);
            std::vector<float> code(width);
            for (int stage = 0; stage < count; ++stage)  // stages are added in their order
              for (std::int64_t t = 0; t < rows.dim(0); ++t) {
                const auto row_record = record.subspan(static_cast<std::size_t>(t * stride), static_cast<std::size_t>(stride));
                const auto vector = static_cast<std::size_t>(stage * vectors) + get_bits(row_record, std::int64_t{stage} * bits, bits);
                num::load(Dtype::f16, at.state.subspan(vector * width * 2, width * 2), code);
                const auto row = rows.row(t);
                for (std::size_t i = 0; i < width; ++i) row[i] = row[i] + code[i];
              }
          },
          .start = {}, .initial_state = codebooks,
          .state_fault = [codebooks](std::span<const std::byte> state) -> std::optional<std::string> {
            if (std::ranges::equal(state, codebooks)) return std::nullopt;
            return "codebooks are others than those of the trained file";
          }};
}

/// The codebooks of one side of a layer from the trained file, [stages, entries, head_dim], as fp16.
std::vector<std::byte> codebooks_of(const Params& p, const TensorMap& trained, int layer, Side side, int dim) {
  std::vector<float> values =
      trained_tensor(trained, layer, side == Side::key ? "k_codebooks" : "v_codebooks", {stages(p, side), entries(p, side), dim}).values;
  for (float& x : values) x = num::clamp(x, -65504.0F, 65504.0F);
  std::vector<std::byte> bytes(2 * values.size());
  num::store(Dtype::f16, values, bytes);
  return bytes;
}

std::unique_ptr<KvCache> open(const Params& p, const CacheShape& shape, const OpenInputs& inputs) {
  if (const auto reason = why_not(p, shape)) throw Unsupported(cat("vqkv: ", *reason));
  if (inputs.trained == nullptr)
    throw Unsupported("vqkv needs a trained file: tensors layer<l>.k_codebooks [k_stages, k_entries, head_dim] and layer<l>.v_codebooks alike; nobody has published one");
  const auto trained = std::make_shared<const TensorMap>(*inputs.trained);
  return side_cache(shape, [p, trained, dtype = shape.dtype](const LayerClass& c, int layer, Side side) -> std::unique_ptr<SideStore> {
    const int dim = dim_of(c, side);
    return std::make_unique<RecordStore>(c.kv_heads, dim, side, dtype, layout(p, c, side),
                                         codec_of(p, side, dim, codebooks_of(p, *trained, layer, side, dim)));
  });
}

constexpr Need kNeeds[] = {Need::trained_file};

}  // namespace

extern constinit const Method vqkv{
    .slug = "vqkv", .name = "VQKV", .family = Family::quantization,
    .paper = {.title = "VQKV: High-Fidelity and High-Ratio Cache Compression via Vector-Quantization", .url = "https://arxiv.org/abs/2603.16435", .year = 2026},
    .params = specs<Params>, .needs = kNeeds,
    .serving = {.prefix_cache = {Works::partly, "a shared prefix ends at a multiple of quant_block"},
                .paged_cache = {Works::partly, "pages must hold whole blocks, plain rows live beside them"},
                .chunked_prefill = {Works::yes, "rows stay plain until the prompt ends, so the peak is the dense cache"},
                .cuda_graphs = {Works::partly, "the coding of a block is a second graph"},
                .tensor_parallelism = {Works::yes, "heads are independent; every rank holds the codebooks"},
                .speculation = {Works::partly, "tokens can be taken back until the next block is coded"},
                .multi_turn = {Works::partly, "a later turn attends to coded rows"}},
    .notes = "Known from secondary sources: the published ratios 82.8% and 82.4% follow from stages and sizes exactly, but the split of keys, who shares a codebook and the block size do not. "
             "Codebooks are fp16 state of a layer and count once for all sequences, 16 MiB a layer at defaults with head_dim 128. Indices of a token lie in one stream, lowest bit first, stage "
             "after stage. Plans add the gather of code vectors to a fused attention over table codes.",
    .why_not = typed<why_not>, .ledger_formula = typed<Faces::ledger_formula>, .decode_plan = typed<decode_plan>,
    .prefill_plan = typed<Faces::prefill_plan>, .open = typed<open>,
};

}  // namespace kvatlas::methods
