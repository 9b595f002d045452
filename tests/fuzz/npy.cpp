#include "core/io/npy.hpp"

#include "core/errors.hpp"
#include "tests/fuzz/targets.hpp"

namespace kvatlas::fuzz {

void fuzz_npy(std::span<const std::byte> data) {
  try {
    const io::RawTensor tensor = io::parse_npy(data, "file");
    require(io::element_count(tensor.dims) * io::bytes_of(tensor.type) == static_cast<std::int64_t>(tensor.bytes.size()), "an array is as long as its shape");
    if (io::is_float(tensor.type)) {
      const NamedTensor floats = io::to_floats(tensor, "file");
      io::parse_npy(io::npy_bytes(floats, "file"), "again");
    } else {
      io::to_integers(tensor, "file");
    }
  } catch (const Error&) {
  }
}

}  // namespace kvatlas::fuzz
