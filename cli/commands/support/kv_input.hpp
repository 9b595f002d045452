// Keys, values and queries as users hand them in: one safetensors file, or a .npy file each.
#pragma once

#include <optional>
#include <string>

#include "core/io/tensor.hpp"
#include "core/layer_graph.hpp"
#include "core/view.hpp"

namespace kvatlas::cli {

struct KvInput {
  NamedTensor k, v;
  std::optional<NamedTensor> q;
  std::optional<bool> before_rope;  // what the file's metadata says
  Dtype dtype = Dtype::bf16;        // of k in the file; float32 and float64 files count as bf16
};

/// throws IoError: unreadable or broken file, a tensor missing, other than three axes, axes that do not fit together
KvInput read_kv(const std::optional<std::string>& safetensors, const std::optional<std::string>& q,
                const std::optional<std::string>& k, const std::optional<std::string>& v);

/// [heads, tokens, dim] view of a tensor that read_kv has checked.
View<const float> view_of(const NamedTensor& tensor);

}  // namespace kvatlas::cli
