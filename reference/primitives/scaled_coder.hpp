// Rows multiplied channel by channel before another coder codes them, and divided again when they are read.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "reference/primitives/row_coder.hpp"

namespace kvatlas {

class ScaledCoder final : public RowCoder {
 public:
  /// Factors [kv_heads * dim] from the rows [kv_heads, n, dim] that are coded first.
  using Calibrate = std::function<std::vector<float>(View<const float> rows)>;
  /// `factors`, where they are not empty, replace the calibration. A factor that is 0 or not finite counts as 1.
  ScaledCoder(std::unique_ptr<RowCoder> inner, int kv_heads, int dim, Side side, Calibrate calibrate, std::vector<float> factors = {});

  std::int64_t rows() const override { return inner_->rows(); }
  void append(View<const float> rows) override;
  void end_prompt() override { inner_->end_prompt(); }
  void read(int kv_head, std::int64_t first, View<float> out) const override;
  void drop_front(std::int64_t count) override { inner_->drop_front(count); }
  void truncate(std::int64_t rows) override { inner_->truncate(rows); }
  /// The inner coder's, and "factors" in float32 once rows are coded.
  void buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const override;
  void load(const std::string& prefix, std::span<const NamedBuffer> saved) override;
  std::unique_ptr<RowCoder> fresh() const override;
  void count(ContentCounts& counts) const override { inner_->count(counts); }

 private:
  std::unique_ptr<RowCoder> inner_;
  int kv_heads_, dim_;
  Side side_;
  Calibrate calibrate_;
  bool given_;
  std::vector<float> factors_;
};

}  // namespace kvatlas
