// The model that ships: it finds what a plain cache holds, and cannot find what a window has dropped.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>

#include "models/evaluation/session.hpp"
#include "models/evaluation/task_protocol.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::models;

namespace {

double found(const TaskResult& r, std::size_t way) { return std::accumulate(r.exact[way].begin(), r.exact[way].end(), 0.0); }

}  // namespace

TEST_CASE("the embedded model finds a passkey in a plain cache, and none behind a window", "[unit]") {
  const std::filesystem::path source = KVATLAS_SOURCE_DIR;
  WeightFile weights = WeightFile::open(source / "models/embedded/model.safetensors");
  Architecture architecture = architecture_of(weights);
  const Transformer model(std::move(architecture), WeightSet(std::move(weights)));
  const CacheShape shape = model.model().cache;
  CHECK(shape.layers() == 4);
  std::ifstream prose(source / "models/evaluation/tables/text.txt");
  const TaskOptions options{.tasks = {"passkey"}, .context = 240, .trials = 3, .seed = 1,
                            .filler = std::string(std::istreambuf_iterator<char>(prose), {}), .begin = TokenId{256},
                            .encode = [](std::string_view s) {
                              std::vector<TokenId> ids;
                              for (const char c : s) ids.push_back(static_cast<unsigned char>(c));
                              return ids;
                            }};
  const auto method = [&](const char* recipe) { return candidate_of(Recipe::parse(recipe), shape, {}); };
  const auto results = run_tasks(model, shape, {method("streaming_llm:recent_window=56"), method("kivi:bits=4,group_size=32,residual_window=32")}, options);
  REQUIRE(results.size() == 3);  // full, then the two
  CHECK(found(results[0].tasks[0], 1) == 3);
  CHECK(found(results[1].tasks[0], 1) == 0);
  CHECK(found(results[2].tasks[0], 1) == 3);
}
