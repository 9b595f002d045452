// Keeps the first and the newest tokens of a side plain and hands what ages out of the recent part to another store.
#pragma once

#include <memory>

#include "reference/faces.hpp"

namespace kvatlas {

class EdgeStore final : public SideStore {
 public:
  EdgeStore(std::unique_ptr<SideStore> inner, int kv_heads, int dim, Side side, Dtype dtype, Tokens sinks, Tokens recent);

  bool before_rope() const override { return inner_->before_rope(); }
  void observe(const StepInput& step) override { inner_->observe(step); }
  void count(ContentCounts& counts) const override { inner_->count(counts); }
  void append(View<const float> rows) override;
  void settle(bool prompt_done) override;
  Tokens size() const override;
  void read(int kv_head, std::int64_t first, View<float> out) const override;
  void check_crop(Tokens length) const override;
  void crop(Tokens length) override;
  void buffers(const std::string& prefix, std::vector<NamedBuffer>& out) const override;
  void load(const std::string& prefix, std::span<const NamedBuffer> saved) override;

 private:
  std::unique_ptr<SideStore> inner_;
  std::unique_ptr<SideStore> sinks_, recent_;
  int kv_heads_, dim_;
  Side side_;
  Dtype dtype_;
  Tokens max_sinks_, max_recent_;
};

}  // namespace kvatlas
