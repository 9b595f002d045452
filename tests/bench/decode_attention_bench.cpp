// Compares the kernel model with a file of published decode-attention timings:
//   kvatlas_decode_attention_bench FILE.csv
// Without a file it says what was skipped and ends well.
#include <cstdio>
#include <fstream>

#include "core/errors.hpp"
#include "simulator/compare.hpp"

int main(int argc, char** argv) {
  if (argc < 2) {
    std::puts("1 comparison skipped: no file of decode-attention timings was given");
    return 0;
  }
  std::ifstream file(argv[1]);
  if (!file) {
    std::fprintf(stderr, "%s: cannot be read\n", argv[1]);
    return 1;
  }
  try {
    std::fputs(kvatlas::sim::to_text(kvatlas::sim::compare_decode_attention(file)).c_str(), stdout);
  } catch (const kvatlas::Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return 0;
}
