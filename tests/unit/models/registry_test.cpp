#include "models/registry.hpp"

#include <string>

#include "core/errors.hpp"
#include "models/zoo.hpp"
#include "tests/catch.hpp"

namespace kvatlas::models {
namespace {

TEST_CASE("models are found by slug and alias, and listed in order", "[unit]") {
  REQUIRE(find_model("llama-3.1-8b").name == "Llama 3.1 8B");
  REQUIRE(&find_model("Llama-3.1-8B-Instruct") == &find_model("llama-3.1-8b"));
  REQUIRE(load_model("qwen3-next").slug == "qwen3-next-80b-a3b");
  for (std::size_t i = 1; i < all_models().size(); ++i) REQUIRE(all_models()[i - 1].slug < all_models()[i].slug);
}

TEST_CASE("an unknown model gets a suggestion", "[unit]") {
  const auto said = [](std::string_view word) -> std::string {
    try {
      load_model(word);
    } catch (const InvalidArgument& e) {
      return e.what();
    }
    return "accepted";
  };
  CHECK(said("lama-3.1-8b") == "\"lama-3.1-8b\": unknown model; did you mean \"llama-3.1-8b\"?");
  CHECK(said("deepseek-v4") == "\"deepseek-v4\": unknown model; did you mean \"deepseek-v3\"?");
  CHECK_THROWS_AS(load_model("nowhere/config.json"), IoError);
}

TEST_CASE("a zoo file loaded by its path is the shipped model", "[unit]") {
  for (const ZooFile& file : zoo_files()) {
    CAPTURE(file.name);
    const std::string path = cat(KVATLAS_SOURCE_DIR, "/models/zoo/", file.name);
    const Model m = load_model(path);
    CHECK(cat(m.slug, ".json") == file.name);
    CHECK(to_json(m) == to_json(find_model(m.slug)));
  }
}

}  // namespace
}  // namespace kvatlas::models
