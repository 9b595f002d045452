// Sides of a layer behind a coder: newest (and perhaps first) rows plain and the others coded by a rule of the row count
// alone, or every row coded as it comes.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "reference/faces.hpp"
#include "reference/primitives/row_coder.hpp"

namespace kvatlas {

/// What a ResidualStore needs to know beside its coder.
struct ResidualPolicy {
  /// How many of `rows` rows are coded, the plain first ones counted in `rows`; never falls, rises as the coder allows.
  std::function<Tokens(Tokens rows)> coded_rows;
  Tokens sinks{0};            // first rows, never coded
  bool before_rope = false;   // keys come and are kept before RoPE
  bool own_step_coded = false;  // after the prompt a row is coded before its own step attends, not after it
};

/// Rows are coded when the prompt is done, never before, and are never decoded back.
class ResidualStore final : public SideStore {
 public:
  using CodedRows = std::function<Tokens(Tokens rows)>;

  ResidualStore(int kv_heads, int dim, Side side, Dtype dtype, std::unique_ptr<RowCoder> coder, ResidualPolicy policy);
  /// Groups of one quantizer, no plain first rows.
  ResidualStore(int kv_heads, int dim, Side side, Dtype dtype, const GroupQuantizer& quantizer, CodedRows coded_rows);

  void append(View<const float> rows) override;
  void settle(bool prompt_done) override;
  Tokens size() const override;
  void read(int kv_head, std::int64_t first, View<float> out) const override;
  void check_crop(Tokens length) const override;
  void crop(Tokens length) override;
  void buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const override;
  void load(const std::string& prefix, std::span<const NamedBuffer> saved) override;
  bool before_rope() const override { return policy_.before_rope; }
  void observe(const StepInput& step) override { coder_->observe(step, size().value); }
  void count(ContentCounts& counts) const override { coder_->count(counts); }

 private:
  void code_aged();
  Tokens coded() const { return Tokens(coder_->rows()); }
  Tokens behind() const { return coded() + (sinks_ ? sinks_->size() : Tokens(0)); }  // rows before the residual ones

  std::unique_ptr<SideStore> plain_sinks() const;
  std::unique_ptr<SideStore> plain_residual() const;

  int kv_heads_, dim_;
  Side side_;
  Dtype dtype_;
  ResidualPolicy policy_;
  std::unique_ptr<RowCoder> coder_;
  std::unique_ptr<SideStore> sinks_;     // first rows in the cache's dtype; null without
  std::unique_ptr<SideStore> residual_;  // the newest rows in the cache's dtype
  bool prompt_done_ = false;
};

/// Rows that are independent of each other, coded as they come; windows and crops work. What is read is rounded to the
/// dtype, as a 16-bit attention kernel takes its operands.
class CodedStore final : public SideStore {
 public:
  CodedStore(Dtype dtype, std::unique_ptr<RowCoder> coder) : dtype_(dtype), coder_(std::move(coder)) {}

  void append(View<const float> rows) override { coder_->append(rows); }
  void settle(bool) override {}
  Tokens size() const override { return Tokens(coder_->rows()); }
  void read(int kv_head, std::int64_t first, View<float> out) const override;
  void drop_front(Tokens count) override { coder_->drop_front(count.value); }
  void crop(Tokens length) override { coder_->truncate(length.value); }
  /// Component by component.
  void buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const override;
  void load(const std::string& prefix, std::span<const NamedBuffer> saved) override;
  void count(ContentCounts& counts) const override { coder_->count(counts); }

 private:
  Dtype dtype_;
  std::unique_ptr<RowCoder> coder_;
};

}  // namespace kvatlas
