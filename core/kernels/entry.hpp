// What every kernel entry shares: only an entry makes a KernelCall, and traffic is counted by contiguous segments.
#pragma once

#include "core/plan.hpp"

namespace kvatlas::kernels {

struct DecodeAttention;
struct SpanMerge;
struct PrefillAttention;
struct Append;
struct QuantizePack;
struct WindowScore;
struct MassUpdate;
struct PageScore;
struct LabelScore;
struct TopK;
struct Gather;
struct WeightedMerge;
struct Resample;
struct LowRank;
struct Factorize;
struct EntropyCode;
struct BlockSelect;
struct SharedAttention;
struct StateMerge;
struct RopeApply;
struct Transfer;
struct Copy;
struct StateUpdate;

inline constexpr std::int64_t kSectorBytes = 32;
inline constexpr std::int64_t kRequestBytes = 512;  // 32 lanes of 16 bytes

/// Bytes in `Traffic` are distinct bytes, each once; sectors and requests are summed over all accesses.
class Entry {
  friend struct DecodeAttention;
  friend struct SpanMerge;
  friend struct PrefillAttention;
  friend struct Append;
  friend struct QuantizePack;
  friend struct WindowScore;
  friend struct MassUpdate;
  friend struct PageScore;
  friend struct LabelScore;
  friend struct TopK;
  friend struct Gather;
  friend struct WeightedMerge;
  friend struct Resample;
  friend struct LowRank;
  friend struct Factorize;
  friend struct EntropyCode;
  friend struct BlockSelect;
  friend struct SharedAttention;
  friend struct StateMerge;
  friend struct RopeApply;
  friend struct Transfer;
  friend struct Copy;
  friend struct StateUpdate;

  KernelCall call_;

  Entry(KernelId kernel, Stage stage, double launches) {
    call_.kernel = kernel;
    call_.stage = stage;
    call_.launches = launches;
  }
  /// `segments` contiguous, sector-aligned runs of `bytes` each, every one read `times` times.
  Entry& read(std::int64_t segments, std::int64_t bytes, std::int64_t times = 1) {
    call_.traffic.read_bytes += segments * bytes;
    call_.traffic.read_sectors += segments * ceil_div(bytes, kSectorBytes) * times;
    call_.traffic.requests += segments * ceil_div(bytes, kRequestBytes) * times;
    return *this;
  }
  Entry& write(std::int64_t segments, std::int64_t bytes) {
    call_.traffic.write_bytes += segments * bytes;
    call_.traffic.write_sectors += segments * ceil_div(bytes, kSectorBytes);
    call_.traffic.requests += segments * ceil_div(bytes, kRequestBytes);
    return *this;
  }
  Entry& tensor(double flops) { return call_.operations.tensor_flops += flops, *this; }
  Entry& vector(double flops) { return call_.operations.vector_flops += flops, *this; }
  Entry& convert(std::int64_t values, const CodeFormat& format) {
    // A plain side never hides the format of a coded one.
    if (values > 0 && (format.kind != CodeKind::plain || call_.operations.values == 0)) call_.operations.format = format;
    call_.operations.values += values;
    return *this;
  }
  Entry& work(std::int64_t items, std::int64_t sequences) {
    call_.items = items;
    call_.even_items = static_cast<double>(items);
    call_.sequences = sequences;
    return *this;
  }
  /// `heads` caches of `length` entries, `group` query rows each: what a kernel needs to choose its own split.
  Entry& attends(std::int64_t heads, int group, std::int64_t length) {
    call_.heads = heads;
    call_.group = group;
    call_.length = length;
    return *this;
  }
  Entry& queries(int rows) { return call_.queries = rows, *this; }
  /// Rows of `tokens` tokens in spans of `span`: the last span of a row is shorter than the others.
  Entry& uneven(std::int64_t rows, std::int64_t tokens, std::int64_t span) {
    call_.even_items = static_cast<double>(rows) * static_cast<double>(tokens) / static_cast<double>(span);
    return *this;
  }
};

}  // namespace kvatlas::kernels
