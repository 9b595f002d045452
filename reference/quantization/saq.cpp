// saq: a staircase of widths: rows start plain and move to fewer bits with age, group by group.
// Source    arXiv 2410.18441 (abstract; no code is public), built on KIVI's groups; stages, widths and moves are our reading
// Formula   a token's age gives its width (plain, first_bits, second_bits, last_bits); at every width min-max groups as in kivi,
//           coded anew from what the width before had left
// Keeps     every token; keys after RoPE; the newest `plain` to plain + group_size - 1 tokens in the cache's dtype
// Deviates  ages, widths and the re-coding at a move are not given by what could be read: they are defined here
#include <algorithm>
#include <array>

#include "core/errors.hpp"
#include "core/kernels/store.hpp"
#include "reference/method.hpp"
#include "reference/primitives/residual_store.hpp"
#include "reference/primitives/side_method.hpp"

namespace kvatlas::methods {
namespace {

constexpr int kStages = 3;

struct Params {
  int group_size = 32;
  Tokens plain{128};
  Tokens first{512};
  Tokens second{2048};
  int first_bits = 8;
  int second_bits = 4;
  int last_bits = 2;
  static constexpr auto fields() {
    return std::tuple{
        field(&Params::group_size, "group_size", "element", 8, 256, "tokens that move together; tokens of a key channel, channels of a value, that share a scale"),
        field(&Params::plain, "plain", "token", 0, 65536, "newest tokens that stay plain"),
        field(&Params::first, "first", "token", 0, 65536, "tokens of the first stage, behind the plain ones"),
        field(&Params::second, "second", "token", 0, 65536, "tokens of the second stage"),
        field(&Params::first_bits, "first_bits", "bit", 2, 8, "code width of the first stage"),
        field(&Params::second_bits, "second_bits", "bit", 2, 8, "code width of the second stage"),
        field(&Params::last_bits, "last_bits", "bit", 2, 8, "code width of all older tokens")};
  }
  int bits(int stage) const { return stage == 0 ? first_bits : stage == 1 ? second_bits : last_bits; }
};

std::optional<std::string> why_not(const Params& p, const CacheShape& shape) {
  for (const auto& [name, length] : {std::pair{"plain", p.plain}, std::pair{"first", p.first}, std::pair{"second", p.second}})
    if (length.value % p.group_size != 0) return cat(name, " is ", length.value, ", must be a multiple of group_size (", p.group_size, ")");
  if (p.first_bits < p.second_bits || p.second_bits < p.last_bits)
    return cat("widths are ", p.first_bits, ", ", p.second_bits, " and ", p.last_bits, ", must not grow with age");
  for (int stage = 0; stage < kStages; ++stage)
    if (p.group_size * p.bits(stage) % 8 != 0) return cat("group_size is ", p.group_size, ", must fill whole bytes at ", p.bits(stage), " bits");
  for (const LayerClass& c : shape.classes)
    if (c.kind == RowKind::kv && c.v_dim % p.group_size != 0) return cat("group_size is ", p.group_size, ", must divide head_dim (", c.v_dim, ")");
  return why_not_sides("saq", shape, kWholeRows);
}

/// Rows that have left a stage of `length` rows which `entered` rows have reached: whole groups, oldest first.
std::int64_t left(std::int64_t entered, Tokens length, int group) { return std::max<std::int64_t>(0, entered - length.value) / group * group; }

/// Rows in each stage of `rows` rows; index kStages holds the plain ones.
std::array<std::int64_t, kStages + 1> stage_rows(const Params& p, Tokens rows) {
  const std::int64_t coded = left(rows.value, p.plain, p.group_size);
  const std::int64_t beyond_first = left(coded, p.first, p.group_size), beyond_second = left(beyond_first, p.second, p.group_size);
  return {coded - beyond_first, beyond_first - beyond_second, beyond_second, rows.value - coded};
}

GroupQuantizer quantizer(const Params& p, Side side, int stage) {
  return {.bits = p.bits(stage), .group_size = p.group_size, .axis = side == Side::key ? GroupAxis::tokens : GroupAxis::channels};
}

/// One GroupCoder a stage. A group that grows too old is decoded and coded again with the next stage's bits; its minimum and
/// maximum are codes of every stage, so that only what lies between is rounded again.
class Coder final : public RowCoder {
 public:
  Coder(const Params& p, int kv_heads, int dim, Side side) : p_(p), kv_heads_(kv_heads), dim_(dim), side_(side) {
    for (int s = 0; s < kStages; ++s) stages_.emplace_back(kv_heads, dim, side, quantizer(p, side, s));
  }

  std::int64_t rows() const override { return stages_[0].rows() + stages_[1].rows() + stages_[2].rows(); }
  void append(View<const float> rows) override {
    stages_[0].append(rows);
    age(0, p_.first);
    age(1, p_.second);
  }
  void read(int kv_head, std::int64_t first, View<float> out) const override {
    std::int64_t start = 0;
    for (auto s = stages_.rbegin(); s != stages_.rend(); ++s) {  // oldest rows first
      const std::int64_t from = std::max(first, start), to = std::min(first + out.dim(0), start + s->rows());
      if (from < to) s->read(kv_head, from - start, out.slice(0, from - first, to - from));
      start += s->rows();
    }
  }
  void buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const override {
    for (std::size_t s = 0; s < stages_.size(); ++s) stages_[s].buffers(cat(prefix, "stage", s, "_"), out);
  }
  void load(const std::string& prefix, std::span<const NamedBuffer> saved) override {
    for (std::size_t s = 0; s < stages_.size(); ++s) stages_[s].load(cat(prefix, "stage", s, "_"), saved);
    for (std::size_t s = 0; s + 1 < stages_.size(); ++s)
      if (stages_[s + 1].rows() > 0 && stages_[s].rows() != (s == 0 ? p_.first : p_.second).value)
        throw InvalidArgument(cat("buffers ", prefix, "stage", s, "_codes hold ", stages_[s].rows(), " rows, must hold ",
                                  (s == 0 ? p_.first : p_.second).value, " before a row is older"));
  }
  std::unique_ptr<RowCoder> fresh() const override { return std::make_unique<Coder>(p_, kv_heads_, dim_, side_); }

 private:
  void age(std::size_t stage, Tokens length) {
    while (stages_[stage].rows() >= length.value + p_.group_size) {
      Array rows({kv_heads_, p_.group_size, dim_});
      for (int h = 0; h < kv_heads_; ++h) stages_[stage].read(h, 0, rows.view()[h]);
      stages_[stage + 1].append(rows.view());
      stages_[stage].drop_front(p_.group_size);
    }
  }

  Params p_;
  int kv_heads_, dim_;
  Side side_;
  std::vector<GroupCoder> stages_;
};

Ledger ledger_formula(const Params& p, const CacheShape& shape, const History& h, const ContentCounts&) {
  const auto rows = stage_rows(p, h.tokens());
  Ledger ledger;
  for_sides(shape, h, [&](const LayerClass&, Side side, std::int64_t width) {
    for (int s = 0; s < kStages; ++s) {
      const std::int64_t values = rows[static_cast<std::size_t>(s)] * width;
      ledger.add("codes", side, Scope::token, Bytes(values * p.bits(s) / 8));
      ledger.add("scales", side, Scope::group, Bytes(values / p.group_size * 2));
      ledger.add("zeros", side, Scope::group, Bytes(values / p.group_size * 2));
    }
    ledger.add("residual", side, Scope::sequence, Bytes(rows[kStages] * width * bytes_of(shape.dtype)));
  });
  ledger.set_prefill(dense_prompt(shape, h));
  return ledger;
}

/// Stages at their mean width.
SideLayout side_layout(const Params& p, const LayerClass& c, Side side, Dtype, Tokens context) {
  const auto rows = stage_rows(p, context);
  const std::int64_t coded = context.value - rows[kStages];
  double bits = p.last_bits;
  if (coded > 0) {
    bits = 0;
    for (int s = 0; s < kStages; ++s) bits += static_cast<double>(rows[static_cast<std::size_t>(s)]) * p.bits(s) / static_cast<double>(coded);
  }
  const GroupAxis axis = side == Side::key ? GroupAxis::tokens : GroupAxis::channels;
  const int dim = dim_of(c, side);
  return {.format = spread_format(CodeKind::integer, axis, dim, (bits + 32.0 / p.group_size) * dim), .plain = Tokens(rows[kStages]),
          .flush = Tokens(p.group_size)};
}

/// Groups that move from stage to stage are read and written once more on their way.
Plan decode_plan(const Params& p, const CacheShape& shape, const History& h, const ContentCounts& counts) {
  Plan plan = side_decode<Params, side_layout>(p, shape, h, counts);
  const auto rows = stage_rows(p, h.tokens());
  for (const LayerClass& c : shape.classes) {
    if (c.kind != RowKind::kv) continue;
    for (const Side side : {Side::key, Side::value})
      for (int s = 1; s < kStages; ++s)
        if (rows[static_cast<std::size_t>(s)] > 0)
          plan.add(kernels::QuantizePack{.heads = std::int64_t{h.sequences} * c.kv_heads, .rows = p.group_size, .dim = dim_of(c, side),
                                         .dtype = shape.dtype, .format = quantizer(p, side, s).format()}
                       .call(c.count() / static_cast<double>(p.group_size)));
  }
  return plan;
}

std::unique_ptr<SideStore> open_side(const Params& p, const LayerClass& c, int, Side side, Dtype dtype) {
  return std::make_unique<ResidualStore>(
      c.kv_heads, dim_of(c, side), side, dtype, std::make_unique<Coder>(p, c.kv_heads, dim_of(c, side), side),
      ResidualPolicy{.coded_rows = [p](Tokens rows) { return Tokens(left(rows.value, p.plain, p.group_size)); }});
}

std::unique_ptr<KvCache> open(const Params& p, const CacheShape& shape, const OpenInputs&) {
  return std::make_unique<SideCache>(
      shape, [p, dtype = shape.dtype](const LayerClass& c, int layer, Side side) { return open_side(p, c, layer, side, dtype); });
}

}  // namespace

extern constinit const Method saq{
    .slug = "saq", .name = "SAQ", .family = Family::quantization,
    .paper = {.title = "The Nature of Mathematical Modeling and Probabilistic Optimization Engineering in Generative AI",
              .url = "https://arxiv.org/abs/2410.18441", .year = 2024},
    .params = specs<Params>,
    .serving = {.prefix_cache = {Works::partly, "the width of a shared prefix depends on what follows it"},
                .paged_cache = {Works::partly, "pages of a stage change their size when they grow older"},
                .chunked_prefill = {Works::yes, "rows stay plain until the prompt ends, so the peak is the dense cache"},
                .cuda_graphs = {Works::partly, "the moves every group_size steps are a second graph"},
                .tensor_parallelism = {Works::yes, "heads are independent"},
                .speculation = {Works::partly, "tokens can be taken back until the next group moves"},
                .multi_turn = {Works::yes, ""}},
    .exact_when = "plain=65536",
    .notes = "Only the abstract of the paper could be read; no code exists. Stage lengths and widths are this program's definition: 128 plain tokens, "
             "512 at 8 bits, 2048 at 4, the rest at 2, in KIVI's groups of 32. With first and second 0 and last_bits 2 values are KIVI's with "
             "flushes of a group. plain=65536 equals the full cache up to 65535 + group_size tokens. Decoded rows stay float32.",
    .why_not = typed<why_not>, .ledger_formula = typed<ledger_formula>, .decode_plan = typed<decode_plan>,
    .prefill_plan = typed<side_prefill<Params, side_layout>>, .open = typed<open>, .open_side = typed<open_side>, .side_layout = typed<side_layout>,
};

}  // namespace kvatlas::methods
