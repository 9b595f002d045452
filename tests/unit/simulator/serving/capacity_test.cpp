// The cache that engines reported at start-up beside ours; every row is printed with --success or on a failure.
#include "simulator/serving/capacity.hpp"

#include <cmath>
#include <cstdlib>
#include <fmt/core.h>
#include <set>
#include <sstream>

#include "core/errors.hpp"
#include "core/io/file.hpp"
#include "models/registry.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::sim;

TEST_CASE("cache memory is within 5% of at least ten published start-up logs", "[unit]") {
  const auto bytes = io::read_file(KVATLAS_SOURCE_DIR "/simulator/data/engine_startup_logs.csv");
  std::istringstream text(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  std::string line, table;
  std::getline(text, line);
  int rows = 0, close = 0, parallel = 0, windowed = 0;
  std::set<std::string> models;
  while (std::getline(text, line)) {
    std::vector<std::string> cell;
    std::istringstream in(line);
    for (std::string c; std::getline(in, c, ',');) cell.push_back(c);
    REQUIRE(cell.size() >= 11);
    const int tp = std::atoi(cell[2].c_str());
    const StepModel model({.model = &models::find_model(cell[0]), .gpu = find_gpu(cell[1]), .weights = parse_weight_format(cell[3]), .tp = tp, .gpu_memory_utilization = std::atof(cell[4].c_str())});
    const double sampler = cell[7] == "vllm-0.11" || cell[7] == "vllm-0.6" ? kSortingSamplerBytes : StartProfile{}.sampler_bytes;
    const CacheCapacity c = cache_capacity(model, {.batched_tokens = std::atoll(cell[5].c_str()), .sequences = std::atoll(cell[6].c_str()), .sampler_bytes = sampler});
    const double token = model.memory(Tokens(16384), Tokens(16384), 1).cache / 16384;  // of one GPU
    const double published = cell[8].empty() ? std::atof(cell[9].c_str()) * token / 0x1p30 : std::atof(cell[8].c_str());
    const double error = c.cache / 0x1p30 / published - 1;
    table += fmt::format("{:<14} {:<14} tp {} share {:<4} {:<10} published {:6.2f} GiB, ours {:6.2f}, error {:+6.1f} %  {}\n", cell[0], cell[1], tp, cell[4], cell[7], published,
                         c.cache / 0x1p30, 100 * error, std::abs(error) <= 0.05 ? "" : "MISS");
    ++rows;
    if (std::abs(error) > 0.05) continue;
    ++close;
    models.insert(cell[0]);
    parallel += tp > 1 ? 1 : 0;
    windowed += cell[0].starts_with("gpt-oss") ? 1 : 0;
  }
  INFO(table);
  CHECK(rows >= 13);
  CHECK(close >= 10);
  CHECK(models.size() >= 4);
  CHECK(parallel >= 1);
  CHECK(windowed >= 1);
}

TEST_CASE("more ranks, fewer sequences and a larger share leave more cache", "[unit]") {
  const auto cache = [](int tp, double share, std::int64_t sequences) {
    const StepModel model({.model = &models::find_model("qwen3-32b"), .gpu = find_gpu("h100-sxm"), .tp = tp, .gpu_memory_utilization = share});
    return cache_capacity(model, {.sequences = sequences}).cache;
  };
  REQUIRE(cache(2, 0.9, 256) > cache(1, 0.9, 256));
  REQUIRE(cache(1, 0.95, 256) > cache(1, 0.9, 256));
  REQUIRE(cache(1, 0.9, 64) >= cache(1, 0.9, 1024));
}
