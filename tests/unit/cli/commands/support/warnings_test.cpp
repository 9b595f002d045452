#include "cli/commands/support/warnings.hpp"

#include <algorithm>

#include "core/io/file.hpp"
#include "core/io/safetensors.hpp"
#include "tests/catch.hpp"
#include "tests/support/program.hpp"
#include "tests/support/temp_folder.hpp"

using namespace kvatlas;
using nlohmann::json;
using testing::kvatlas_run;

namespace {

/// One layer's rows that are all the same: what is said does not depend on them.
void write_rows(const std::string& path, const char* rope = "after") {
  io::SafeTensors file;
  for (const char* name : {"q", "k", "v"})
    file.tensors[name] = io::raw_f32({.dims = {2, 200, 64}, .values = std::vector<float>(2 * 200 * 64, 0.5F)}, name);
  file.metadata["rope"] = rope;
  io::write_safetensors(path, file);
}

}  // namespace

TEST_CASE("a budget above the context is said once, at the context it is not", "[unit]") {
  const auto said = [](const char* recipe, std::int64_t context) {
    cli::Warnings w;
    w.add_budgets(Recipe::parse(recipe), Tokens(context));
    return w.sentences();
  };
  REQUIRE(said("snapkv:budget=8192", 4096) == std::vector<std::string>{"snapkv: budget is 8192, context is 4096: nothing is dropped"});
  REQUIRE(said("snapkv:budget=8192", 8191).size() == 1);
  REQUIRE(said("snapkv:budget=8192", 8192).empty());
  REQUIRE(said("quest:budget=8192", 4096) == std::vector<std::string>{"quest: budget is 8192, context is 4096: every token is attended"});
  REQUIRE(said("layers=0-1:full;*:snapkv:budget=8192", 4096).size() == 1);
  REQUIRE(said("full", 1).empty());
}

TEST_CASE("simulate, show and compress say that nothing is dropped, on standard error and in JSON", "[unit]") {
  const testing::TempFolder folder;
  write_rows(folder.file("in"));
  const std::pair<cli::Arguments, const char*> cases[] = {
      {{"simulate", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--context", "4K"}, "4096"},
      {{"simulate", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--prompt", "4K", "--output", "16"}, "4112"},
      {{"compress", folder.file("in"), "--out", folder.file("out")}, "200"}};
  for (auto [args, context] : cases) {
    args.insert(args.end(), {"--method", "snapkv:budget=8192", "--json"});
    const auto run = kvatlas_run(args);
    CAPTURE(args[0]);
    const std::string sentence = cat("snapkv: budget is 8192, context is ", context, ": nothing is dropped");
    REQUIRE(run.code == 0);
    REQUIRE(run.err == cat("kvatlas ", args[0], ": ", sentence, "\n"));
    REQUIRE(run.json()["warnings"] == json{sentence});
  }
  const auto show = kvatlas_run({"show", "snapkv:budget=8192", "--context", "4096", "--json"});
  REQUIRE(show.err == "kvatlas show: snapkv: budget is 8192, context is 4096: nothing is dropped\n");
  REQUIRE(show.json()["warnings"].size() == 1);
  REQUIRE(kvatlas_run({"show", "snapkv", "--json"}).json()["warnings"] == json::array());
}

TEST_CASE("every command that imports a config.json says what it did not understand", "[unit]") {
  const testing::TempFolder folder;
  const std::string config = R"({"model_type":"llama","hidden_size":256,"intermediate_size":512,"num_hidden_layers":2,"num_attention_heads":4,
    "num_key_value_heads":2,"vocab_size":1000,"max_position_embeddings":8192,"rope_theta":10000.0,"torch_dtype":"bfloat16","strange_field":7})";
  const std::string path = folder.file("config.json");
  io::write_file(path, std::as_bytes(std::span(config)));
  write_rows(folder.file("in"), "before");
  const cli::Arguments commands[] = {
      {"simulate", "--model", path, "--gpu", "h100-sxm", "--context", "4K"},
      {"recommend", "--model", path, "--gpu", "h100-sxm", "--prompt", "1K", "--output", "16", "--method", "full"},
      {"show", "full", "--model", path},
      {"compress", folder.file("in"), "--model", path, "--method", "full", "--out", folder.file("out")}};
  for (cli::Arguments args : commands) {
    args.emplace_back("--json");
    const auto run = kvatlas_run(args);
    CAPTURE(args[0], run.err);
    REQUIRE(run.code == 0);
    REQUIRE(run.err.find("strange_field is not known; it was not used\n") != std::string::npos);
    REQUIRE(static_cast<std::size_t>(std::count(run.err.begin(), run.err.end(), '\n')) == run.json()["warnings"].size());
  }
}

TEST_CASE("percentile limits are taken as the plain ones, and that is said", "[unit]") {
  for (const char* command : {"simulate", "recommend"}) {
    const auto run = kvatlas_run({command, "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--prompt", "1K", "--output", "16", "--method", "full",
                                  "--slo", "ttft_ms=5000,tpot_p99_ms=50"});
    REQUIRE(run.code == 0);
    REQUIRE(run.err == cat("kvatlas ", command, ": slo tpot_p99_ms is taken as tpot_ms: the closed form has no percentiles\n"));
  }
}

TEST_CASE("compress says that methods with dense layers leave the one layer plain", "[unit]") {
  const testing::TempFolder folder;
  write_rows(folder.file("in"));
  const auto run = kvatlas_run({"compress", folder.file("in"), "--method", "quest:budget=64", "--out", folder.file("out"), "--json"});
  REQUIRE(run.code == 0);
  REQUIRE(run.err == "kvatlas compress: quest: dense_layers is 2 and the one layer given counts as layer 0, so it stays plain: "
                     "write dense_layers=0 to compress it\n");
  REQUIRE(run.json()["warnings"].size() == 1);
  REQUIRE(kvatlas_run({"compress", folder.file("in"), "--method", "quest:budget=64,dense_layers=0", "--out", folder.file("out")}).err.empty());
}
