#include "gpu/simt/memory.hpp"

#include <algorithm>

#include "core/units.hpp"

namespace kvatlas::gpu {

namespace {
constexpr std::int64_t kAlignment = 256;  // what cudaMalloc guarantees
}

Allocation& DeviceMemory::make(std::string_view name, std::int64_t bytes, bool read_only) {
  auto a = std::make_unique<Allocation>();
  a->name = name;
  a->address = next_;
  a->read_only = read_only;
  a->data.assign(static_cast<std::size_t>(bytes), std::byte{0xFF});
  a->written.assign(static_cast<std::size_t>(bytes), 0);
  if (!read_only) a->shadow = std::make_unique<Shadow>(bytes, Shadow::Lifetime::launch);
  next_ += static_cast<std::uint64_t>(round_up(bytes, kAlignment) + kAlignment);  // a gap that belongs to nobody
  allocations_.push_back(std::move(a));
  return *allocations_.back();
}

Allocation& DeviceMemory::make_copy(std::string_view name, std::span<const std::byte> bytes, bool read_only) {
  Allocation& a = make(name, static_cast<std::int64_t>(bytes.size()), read_only);
  std::copy(bytes.begin(), bytes.end(), a.data.begin());
  std::fill(a.written.begin(), a.written.end(), std::uint8_t{1});
  return a;
}

void DeviceMemory::read(const Allocation& from, std::int64_t offset, std::span<std::byte> to) {
  const auto count = static_cast<std::int64_t>(to.size());
  if (offset < 0 || offset + count > from.bytes())
    throw InvalidArgument(cat("download of bytes ", offset, " to ", offset + count, " of ", from.name, ", which has ", from.bytes()));
  const auto first = from.written.begin() + offset;
  const auto hole = std::find(first, first + count, std::uint8_t{0});
  if (hole != first + count) throw InvalidArgument(cat("byte ", offset + (hole - first), " of ", from.name, " was never written"));
  std::copy_n(from.data.begin() + offset, count, to.begin());
}

}  // namespace kvatlas::gpu
