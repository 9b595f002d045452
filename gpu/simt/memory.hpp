// Simulated device memory: allocations at fixed, 256-byte aligned addresses, so that counts do not depend on the host, and
// pointers that know their allocation, so that every access can be checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "core/errors.hpp"
#include "gpu/simt/races.hpp"

namespace kvatlas::gpu {

struct Allocation {
  std::string name;
  std::uint64_t address = 0;
  bool read_only = false;
  std::vector<std::byte> data;
  std::vector<std::uint8_t> written;  // one a byte: 1 where a value lies
  std::unique_ptr<Shadow> shadow;     // null for read-only memory, where nothing can race

  std::int64_t bytes() const { return static_cast<std::int64_t>(data.size()); }
};

/// A pointer into an allocation. Arithmetic may leave the allocation; an access outside it is reported.
template <class T>
class GlobalPtr {
 public:
  GlobalPtr() = default;
  GlobalPtr(Allocation* allocation, std::int64_t offset) : allocation_(allocation), offset_(offset) {}
  template <class U>
    requires(std::is_same_v<const U, T>)
  GlobalPtr(const GlobalPtr<U>& other)  // NOLINT: as raw pointers convert
      : allocation_(other.allocation()), offset_(other.offset()) {}

  Allocation* allocation() const { return allocation_; }
  std::int64_t offset() const { return offset_; }
  std::uint64_t address() const { return (allocation_ == nullptr ? 0 : allocation_->address) + static_cast<std::uint64_t>(offset_); }
  explicit operator bool() const { return allocation_ != nullptr; }
  friend GlobalPtr operator+(GlobalPtr p, std::int64_t n) { return {p.allocation_, p.offset_ + n * static_cast<std::int64_t>(sizeof(T))}; }

 private:
  Allocation* allocation_ = nullptr;
  std::int64_t offset_ = 0;
};

/// The memory of a simulated GPU. Outputs are poisoned with 0xFF bytes and count as unwritten.
class DeviceMemory {
 public:
  template <class T>
  GlobalPtr<T> allocate(std::string_view name, std::int64_t count) {
    return {&make(name, count * static_cast<std::int64_t>(sizeof(T)), false), 0};
  }
  /// A copy that kernels may only read.
  template <class T>
  GlobalPtr<const T> upload(std::string_view name, std::span<const T> values) {
    return {&make_copy(name, std::as_bytes(values), true), 0};
  }
  template <class T>
  GlobalPtr<const T> upload(std::string_view name, const std::vector<T>& values) {
    return upload(name, std::span<const T>(values));
  }
  /// A copy that kernels may change.
  template <class T>
  GlobalPtr<T> upload_mutable(std::string_view name, std::span<const T> values) {
    return {&make_copy(name, std::as_bytes(values), false), 0};
  }
  /// throws InvalidArgument when an element was never written
  template <class T>
  std::vector<std::remove_const_t<T>> download(GlobalPtr<T> from, std::int64_t count) const {
    std::vector<std::remove_const_t<T>> values(static_cast<std::size_t>(count));
    read(*from.allocation(), from.offset(), std::as_writable_bytes(std::span(values)));
    return values;
  }
  /// Makes bytes [first, first + count) of an allocation unwritten again: capacity that holds nothing yet.
  template <class T>
  static void forget(GlobalPtr<T> of, std::int64_t first, std::int64_t count) {
    Allocation& a = *of.allocation();
    for (std::int64_t b = of.offset() + first; b < of.offset() + first + count; ++b) {
      a.data[static_cast<std::size_t>(b)] = std::byte{0xFF};
      a.written[static_cast<std::size_t>(b)] = 0;
    }
  }
  std::span<const std::unique_ptr<Allocation>> allocations() const { return allocations_; }

 private:
  Allocation& make(std::string_view name, std::int64_t bytes, bool read_only);
  Allocation& make_copy(std::string_view name, std::span<const std::byte> bytes, bool read_only);
  static void read(const Allocation& from, std::int64_t offset, std::span<std::byte> to);

  std::vector<std::unique_ptr<Allocation>> allocations_;
  std::uint64_t next_ = 0x7000'0000'0000ULL;
};

/// A place in the shared memory of the running block.
template <class T>
class SharedPtr {
 public:
  SharedPtr() = default;
  explicit SharedPtr(std::int64_t offset) : offset_(offset) {}
  std::int64_t offset() const { return offset_; }
  friend SharedPtr operator+(SharedPtr p, std::int64_t n) { return SharedPtr(p.offset_ + n * static_cast<std::int64_t>(sizeof(T))); }

 private:
  std::int64_t offset_ = 0;
};

}  // namespace kvatlas::gpu
