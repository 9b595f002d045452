// Contiguous bytes between global and shared memory, moved by a whole block: what every staged kernel does at its borders.
// Warps meet behind each segment, so that segments never share a request.
#pragma once

#include <cstdint>

#include "gpu/simt/site.hpp"

namespace kvatlas::gpu {

/// Starts copying `bytes` bytes, rounded up to 16, to shared memory; both ends are 16-byte aligned. Nothing is there before
/// async_commit, async_wait and a barrier.
template <class C>
KV_KERNEL inline void fetch(C& c, typename C::template Shared<std::uint8_t> to, typename C::template Global<const std::uint8_t> from, std::int64_t bytes) {
  const std::int64_t units = (bytes + 15) / 16;
  for (std::int64_t i = c.thread(); i < units; i += c.threads()) c.async_copy16(to + i * 16, from + i * 16);
  c.sync_warp();
}

/// Writes `bytes` bytes from shared memory, in the widest accesses that place and length allow; `offset` is the place in bytes
/// behind a 16-byte aligned start.
template <class C>
KV_KERNEL inline void flush(C& c, typename C::template Global<std::uint8_t> to, std::int64_t offset, typename C::template Shared<std::uint8_t> from, std::int64_t bytes) {
  if ((offset | bytes) % 16 == 0) {
    const auto wide = C::template global_as<Vec<std::uint32_t, 4>>(to + offset);
    const auto source = C::template shared_as<Vec<std::uint32_t, 4>>(from);
    for (std::int64_t i = c.thread(); i < bytes / 16; i += c.threads()) c.st(wide, i, c.ld_shared(source, i));
  } else if ((offset | bytes) % 4 == 0) {
    const auto wide = C::template global_as<std::uint32_t>(to + offset);
    const auto source = C::template shared_as<std::uint32_t>(from);
    for (std::int64_t i = c.thread(); i < bytes / 4; i += c.threads()) c.st(wide, i, c.ld_shared(source, i));
  } else {
    for (std::int64_t i = c.thread(); i < bytes; i += c.threads()) c.st(to, offset + i, c.ld_shared(from, i));
  }
  c.sync_warp();
}

}  // namespace kvatlas::gpu
