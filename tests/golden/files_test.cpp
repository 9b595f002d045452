// The golden files themselves: what is committed can be read, and nothing lies beside its manifest.
#include <filesystem>
#include <set>

#include "tests/catch.hpp"
#include "tests/support/golden.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

const std::filesystem::path kFolder = KVATLAS_SOURCE_DIR "/tests/golden";

}  // namespace

TEST_CASE("every golden case reads whole, says where it comes from and how each array is compared", "[golden]") {
  const std::set<std::string> kinds{"exact", "exact_untied", "set", "bound", "sign", "none"};
  int methods = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kFolder)) {
    if (!entry.is_directory()) continue;
    ++methods;
    for (const GoldenCase& golden : golden_cases(entry.path().filename().string())) {
      CAPTURE(golden.slug(), golden.name());
      REQUIRE(golden.parameters().is_object());
      REQUIRE_FALSE(golden.arrays().empty());
      for (const std::string& array : golden.arrays()) {
        CAPTURE(array);
        REQUIRE(kinds.count(golden.check(array)) == 1);
        if (golden.is_float(array)) {
          const NamedTensor values = golden.floats(array);
          std::int64_t size = 1;
          for (const std::int64_t d : values.dims) size *= d;
          REQUIRE(static_cast<std::int64_t>(values.values.size()) == size);
          REQUIRE_THROWS_AS(golden.integers(array), InvalidArgument);
        } else {
          REQUIRE_NOTHROW(golden.integers(array));
          REQUIRE_THROWS_AS(golden.floats(array), InvalidArgument);
        }
      }
    }
  }
  REQUIRE(methods >= 12);
}

TEST_CASE("no golden file lies beside its manifest, and each method keeps to its share of bytes", "[golden]") {
  if (std::getenv("KVATLAS_GOLDEN_DIR") != nullptr) return;  // the manifests then describe another folder
  std::uintmax_t all = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kFolder)) {
    if (!entry.is_directory()) continue;
    std::set<std::string> named;
    for (const GoldenCase& golden : golden_cases(entry.path().filename().string())) named.insert(golden.name() + ".safetensors");
    named.insert("manifest.json");
    std::uintmax_t bytes = 0;
    for (const auto& file : std::filesystem::directory_iterator(entry.path())) {
      CAPTURE(file.path().filename().string());
      REQUIRE(named.count(file.path().filename().string()) == 1);
      bytes += file.file_size();
    }
    CAPTURE(entry.path().filename().string());
    REQUIRE(bytes <= 262144);
    all += bytes;
  }
  REQUIRE(all <= 12000000);
}

TEST_CASE("a golden case refuses an array that it does not have", "[golden]") {
  const GoldenCase golden = golden_cases("streaming_llm").front();
  REQUIRE_FALSE(golden.has("queries"));
  REQUIRE_THROWS_WITH(golden.floats("queries"), "streaming_llm/case01_kvpress_S97_cr0.5_sink4 has no array queries");
  REQUIRE_THROWS_AS(golden_cases("no_such_method"), IoError);
}
