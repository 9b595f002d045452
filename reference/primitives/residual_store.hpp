// One side of a layer whose newest rows stay plain while older ones are group-quantized, by a rule of the row count alone.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "reference/faces.hpp"
#include "reference/primitives/group_quantizer.hpp"

namespace kvatlas {

/// Rows are coded in settle(), never before the prompt is done, and are never decoded back.
class ResidualStore final : public SideStore {
 public:
  /// How many of `rows` rows are coded; never falls, and rises in whole blocks of the quantizer.
  using CodedRows = std::function<Tokens(Tokens rows)>;

  ResidualStore(int kv_heads, int dim, Side side, Dtype dtype, const GroupQuantizer& quantizer, CodedRows coded_rows);

  void append(View<const float> rows) override;
  void settle(bool prompt_done) override;
  Tokens size() const override;
  void read(int kv_head, std::int64_t first, View<float> out) const override;
  void check_crop(Tokens length) const override;
  void crop(Tokens length) override;
  void buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const override;
  void load(const std::string& prefix, std::span<const NamedBuffer> saved) override;

 private:
  Tokens coded() const { return Tokens(coded_.front().rows()); }

  int dim_;
  Side side_;
  GroupQuantizer quantizer_;
  CodedRows coded_rows_;
  std::vector<GroupRows> coded_;         // one a kv head
  std::unique_ptr<SideStore> residual_;  // the newest rows in the cache's dtype
};

}  // namespace kvatlas
