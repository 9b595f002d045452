// Runs every committed input through its target, under any compiler: FOLDER/<target>/<file>.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <vector>

#include "core/io/file.hpp"
#include "tests/fuzz/targets.hpp"

int main(int argc, char** argv) {
  using namespace kvatlas::fuzz;
  if (argc != 2) {
    std::fputs("usage: kvatlas_fuzz_replay FOLDER\n", stderr);
    return 2;
  }
  const Target targets[] = {{"gguf", fuzz_gguf}, {"safetensors", fuzz_safetensors}, {"tokenizer", fuzz_tokenizer},
                            {"tokenizer_json", fuzz_tokenizer_json}, {"npy", fuzz_npy},
                            {"config", fuzz_config}, {"spec", fuzz_spec}, {"cache", fuzz_cache}};
  bool failed = false;
  for (const Target& target : targets) {
    std::vector<std::filesystem::path> files;
    std::error_code missing;
    for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(argv[1]) / target.name, missing)) files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    int passed = 0;
    for (const std::filesystem::path& file : files) {
      try {
        target.run(kvatlas::io::read_file(file.string()));
        ++passed;
      } catch (const std::exception& e) {
        std::printf("%s: %s\n", file.c_str(), e.what());
      }
    }
    // A target without inputs checks nothing.
    failed = failed || files.empty() || passed != static_cast<int>(files.size());
    std::printf("%s: %d of %zu inputs passed\n", target.name, passed, files.size());
  }
  return failed ? 1 : 0;
}
