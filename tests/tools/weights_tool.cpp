// What the readers make of a file, in a form that a script can compare with another implementation.
#include <cstdio>
#include <exception>
#include <string>
#include <string_view>
#include <vector>

#include "core/errors.hpp"
#include "models/files/weight_file.hpp"

namespace {

using namespace kvatlas;

void write(const void* bytes, std::size_t size) {
  if (std::fwrite(bytes, 1, size, stdout) != size) throw IoError("cannot write to standard output");
}

/// For every tensor a line `name rows columns`, then its values as little-endian float32.
void tensors(const std::string& path) {
  const models::WeightFile file = models::WeightFile::open(path);
  std::vector<float> values;
  for (const models::TensorInfo& tensor : file.tensors()) {
    const std::string line = cat(tensor.name, ' ', tensor.rows(), ' ', tensor.columns(), '\n');
    write(line.data(), line.size());
    constexpr std::int64_t kRows = 256;
    for (std::int64_t row = 0; row < tensor.rows(); row += kRows) {
      const std::int64_t n = tensor.rows() - row < kRows ? tensor.rows() - row : kRows;
      values.resize(static_cast<std::size_t>(n * tensor.columns()));
      models::dequantize(tensor, row, n, values);
      write(values.data(), values.size() * sizeof(float));
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view command = argc > 1 ? argv[1] : "";
  try {
    if (command == "tensors" && argc == 3) {
      tensors(argv[2]);
      return 0;
    }
    std::fputs("usage: kvatlas_weights_tool tensors FILE\n", stderr);
    return 2;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "kvatlas_weights_tool: %s\n", e.what());
    return 1;
  }
}
