#include "reference/coding/mustafar/tiles.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/errors.hpp"
#include "core/formats/dtype.hpp"

namespace kvatlas::mustafar_tiles {

namespace {

std::int64_t filled(int values) { return ceil_div(values, kListUnit) * kListUnit; }

template <class Word>
std::vector<std::byte> bytes_of_words(const std::vector<Word>& words) {
  std::vector<std::byte> out;
  for (const Word w : words)
    for (std::size_t b = 0; b < sizeof(Word); ++b) out.push_back(static_cast<std::byte>((w >> (8 * b)) & 0xFFU));
  return out;
}

template <class Word>
std::vector<Word> words_of_bytes(const NamedBuffer& b) {
  if (b.bytes.size() % sizeof(Word) != 0)
    throw InvalidArgument(cat("buffer ", b.name, " has ", b.bytes.size(), " bytes, must be whole words of ", sizeof(Word)));
  std::vector<Word> out(b.bytes.size() / sizeof(Word), Word{0});
  for (std::size_t i = 0; i < b.bytes.size(); ++i)
    out[i / sizeof(Word)] |= static_cast<Word>(std::to_integer<Word>(b.bytes[i]) << (8 * (i % sizeof(Word))));
  return out;
}

}  // namespace

int pruned_rank(double sparsity, int dim) { return std::max(1, static_cast<int>(sparsity * dim)); }

void prune(std::span<float> row, double sparsity) {
  std::vector<float> magnitudes;
  for (const float f : row) magnitudes.push_back(std::fabs(f));
  const auto kth = magnitudes.begin() + (pruned_rank(sparsity, static_cast<int>(row.size())) - 1);
  std::nth_element(magnitudes.begin(), kth, magnitudes.end());
  for (float& f : row)
    if (std::fabs(f) < *kth) f = 0.0F;
}

TileCoder::TileCoder(int kv_heads, int dim, Side side, Dtype dtype, double sparsity)
    : dim_(dim), side_(side), dtype_(dtype), sparsity_(sparsity), heads_(static_cast<std::size_t>(kv_heads)) {}

std::int64_t TileCoder::rows() const { return static_cast<std::int64_t>(heads_.front().bitmaps.size()) / tiles_per_block() * kTile; }

void TileCoder::add_tile(Head& head, std::span<const float> tile) {
  std::uint64_t map = 0;
  std::vector<float> kept;
  for (std::size_t e = 0; e < tile.size(); ++e)
    if (tile[e] != 0.0F) {
      map |= std::uint64_t{1} << (kTile - 1 - static_cast<int>(e));
      kept.push_back(tile[e]);
    }
  kept.resize(static_cast<std::size_t>(filled(static_cast<int>(kept.size()))), 0.0F);
  const std::size_t at = head.values.size(), bytes = kept.size() * static_cast<std::size_t>(bytes_of(dtype_));
  head.values.resize(at + bytes);
  num::store(dtype_, kept, std::span(head.values).subspan(at));
  head.bitmaps.push_back(map);
  head.offsets.push_back(head.offsets.back() + static_cast<std::uint32_t>(bytes / 4));
}

void TileCoder::append(View<const float> rows) {
  KV_ASSERT(rows.dim(1) % kTile == 0 && dim_ % kTile == 0, "whole blocks of 64 tokens and tiles of 64 channels");
  std::vector<float> tile(kTile);
  for (std::size_t h = 0; h < heads_.size(); ++h)
    for (std::int64_t block = 0; block < rows.dim(1); block += kTile) {
      Array pruned({kTile, dim_});
      for (std::int64_t t = 0; t < kTile; ++t) {
        std::ranges::copy(rows.row(static_cast<std::int64_t>(h), block + t), pruned.view().row(t).begin());
        prune(pruned.view().row(t), sparsity_);
      }
      for (std::int64_t n = 0; n < tiles_per_block(); ++n) {
        for (std::int64_t e = 0; e < kTile; ++e)
          tile[static_cast<std::size_t>(e)] = side_ == Side::key ? pruned.view()(e, n) : pruned.view()(n % kTile, n / kTile * kTile + e);
        add_tile(heads_[h], tile);
      }
    }
}

void TileCoder::read(int kv_head, std::int64_t first, View<float> out) const {
  const Head& head = heads_[static_cast<std::size_t>(kv_head)];
  const auto width = static_cast<std::size_t>(bytes_of(dtype_));
  for (std::int64_t i = 0; i < out.dim(0); ++i) {
    const std::int64_t row = first + i, block = row / kTile * tiles_per_block(), token = row % kTile;
    for (std::int64_t c = 0; c < dim_; ++c) {
      const auto tile = static_cast<std::size_t>(block + (side_ == Side::key ? c : c / kTile * kTile + token));
      const int element = static_cast<int>(side_ == Side::key ? token : c % kTile);
      const std::uint64_t map = head.bitmaps[tile], bit = std::uint64_t{1} << (kTile - 1 - element);
      float value = 0;
      if ((map & bit) != 0) {
        const auto before = element == 0 ? 0U : static_cast<unsigned>(std::popcount(map >> (kTile - element)));
        num::load(dtype_, std::span(head.values).subspan(std::size_t{head.offsets[tile]} * 4 + before * width, width), std::span(&value, 1));
      }
      out(i, c) = value;
    }
  }
}

void TileCoder::buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const {
  for (std::size_t h = 0; h < heads_.size(); ++h) {
    const auto add = [&](const char* component, Scope scope, std::vector<std::byte> bytes) {
      out.push_back({.name = cat(prefix, component, "/head", h), .component = component, .side = side_, .scope = scope, .bytes = std::move(bytes)});
    };
    add("bitmaps", Scope::token, bytes_of_words(heads_[h].bitmaps));
    add("offsets", Scope::token, bytes_of_words(heads_[h].offsets));
    add("values", Scope::token, heads_[h].values);
  }
}

void TileCoder::load(const std::string& prefix, std::span<const NamedBuffer> saved) {
  for (std::size_t h = 0; h < heads_.size(); ++h) {
    const std::string at = cat("/head", h);
    Head& head = heads_[h];
    head.bitmaps = words_of_bytes<std::uint64_t>(find_buffer(saved, cat(prefix, "bitmaps", at)));
    head.offsets = words_of_bytes<std::uint32_t>(find_buffer(saved, cat(prefix, "offsets", at)));
    head.values = find_buffer(saved, cat(prefix, "values", at)).bytes;
    bool whole = head.offsets.size() == head.bitmaps.size() + 1 && head.bitmaps.size() % static_cast<std::size_t>(dim_) == 0 &&
                 head.bitmaps.size() == heads_.front().bitmaps.size() && head.offsets.front() == 0;
    for (std::size_t t = 0; whole && t < head.bitmaps.size(); ++t)
      whole = head.offsets[t + 1] - head.offsets[t] ==
              static_cast<std::uint32_t>(filled(std::popcount(head.bitmaps[t])) * bytes_of(dtype_) / 4);
    if (!whole || head.values.size() != std::size_t{head.offsets.back()} * 4)
      throw InvalidArgument(cat("buffers ", prefix, "bitmaps", at, ", offsets and values must agree tile by tile, in whole blocks of ",
                                kTile, " rows, as many in every head"));
  }
}

std::unique_ptr<RowCoder> TileCoder::fresh() const {
  return std::make_unique<TileCoder>(static_cast<int>(heads_.size()), dim_, side_, dtype_, sparsity_);
}

void TileCoder::count(ContentCounts& counts) const {
  for (const Head& h : heads_)
    counts.add(side_ == Side::key ? "k_values" : "v_values", static_cast<std::int64_t>(h.values.size()) / bytes_of(dtype_));
}

}  // namespace kvatlas::mustafar_tiles
