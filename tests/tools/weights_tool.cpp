// What the readers make of a file, in a form that a script can compare with another implementation.
#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/errors.hpp"
#include "models/files/weight_file.hpp"
#include "models/tokenizer/tokenizer.hpp"

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

bool read(void* to, std::size_t size) {
  const std::size_t got = std::fread(to, 1, size, stdin);
  if (got != 0 && got != size) throw IoError("standard input ends within a text");
  return got == size;
}

/// Texts on standard input, each a little-endian u32 of its length and its bytes: for each a line of ids. What does not decode to
/// the text again is said on the line; `drop` leaves out bytes that the vocabulary cannot spell (and checks no text then).
void encode(const std::string& path, bool drop, bool special) {
  const models::WeightFile file = models::WeightFile::open(path);
  const std::unique_ptr<models::Tokenizer> tokenizer = models::load_tokenizer(file);
  std::uint32_t size = 0;
  std::string text;
  while (read(&size, sizeof size)) {
    text.resize(size);
    if (size > 0 && !read(text.data(), size)) throw IoError("standard input ends within a text");
    std::string line;
    try {
      const std::vector<models::TokenId> ids =
          tokenizer->encode(text, {.add_special = false, .parse_special = special, .drop_unspellable = drop});
      if (!drop && tokenizer->decode(ids, special) != text) line = "differs ";
      for (const models::TokenId id : ids) line += cat(id, ' ');
    } catch (const InvalidArgument&) {
      line = "refused";
    }
    line += '\n';
    write(line.data(), line.size());
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
    if ((command == "encode" || command == "encode-dropping" || command == "encode-special") && argc == 3) {
      encode(argv[2], command == "encode-dropping", command == "encode-special");
      return 0;
    }
    std::fputs("usage: kvatlas_weights_tool tensors|encode|encode-dropping|encode-special FILE\n", stderr);
    return 2;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "kvatlas_weights_tool: %s\n", e.what());
    return 1;
  }
}
