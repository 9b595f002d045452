// Coders: what a method puts behind the plain rows of a side. A store asks a coder to code rows and to read them back; which
// rows are coded, and when, is the store's rule.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "reference/faces.hpp"
#include "reference/primitives/group_quantizer.hpp"

namespace kvatlas {

/// Coded rows of all kv heads of one side of a layer, oldest first.
class RowCoder {
 public:
  virtual ~RowCoder() = default;
  virtual std::int64_t rows() const = 0;
  /// Sees a step before its rows come; `row` is the place of its first row.
  virtual void observe(const StepInput&, std::int64_t /*row*/) {}
  /// Codes [kv_heads, n, dim] rows behind those that are there; n as the method's rule allows.
  virtual void append(View<const float> rows) = 0;
  /// The rows of the prompt have come: for coders that treat later rows in another way.
  virtual void end_prompt() {}
  virtual void read(int kv_head, std::int64_t first, View<float> out) const = 0;  // [rows, dim]
  /// throws Unsupported where rows are not independent of each other
  virtual void drop_front(std::int64_t count);
  virtual void truncate(std::int64_t rows);
  virtual void buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const = 0;
  /// Replaces the content; of a fresh coder only, so that a refusal may leave it half loaded.
  virtual void load(const std::string& prefix, std::span<const NamedBuffer> saved) = 0;
  /// An empty coder of the same settings.
  virtual std::unique_ptr<RowCoder> fresh() const = 0;
  virtual void count(ContentCounts&) const {}
};

/// Whether groups lie within a head, or a token's heads form one row.
enum class HeadSpan : std::uint8_t { one, all };

/// Rows in groups of one quantizer. Buffers "codes/head<h>", "scales/head<h>" and, where the scheme has them, "zeros/head<h>";
/// with HeadSpan::all "codes/heads" and so on.
class GroupCoder final : public RowCoder {
 public:
  GroupCoder(int kv_heads, int dim, Side side, const GroupQuantizer& quantizer, HeadSpan span = HeadSpan::one);

  std::int64_t rows() const override { return runs_.front().rows(); }
  void append(View<const float> rows) override;
  void read(int kv_head, std::int64_t first, View<float> out) const override;
  void drop_front(std::int64_t count) override;
  void truncate(std::int64_t rows) override;
  void buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const override;
  void load(const std::string& prefix, std::span<const NamedBuffer> saved) override;
  std::unique_ptr<RowCoder> fresh() const override;

 private:
  int kv_heads_, dim_;
  Side side_;
  GroupQuantizer quantizer_;
  HeadSpan span_;
  std::vector<GroupRows> runs_;  // one a kv head, or one for all
};

/// All heads of [kv_heads, n, dim] rows side by side: [n, kv_heads * dim], the channels of head 0 first.
Array joined_heads(View<const float> rows);

}  // namespace kvatlas
