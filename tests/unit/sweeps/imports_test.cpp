#include "sweeps/imports.hpp"

#include <span>

#include "core/errors.hpp"
#include "core/io/file.hpp"
#include "sweeps/database.hpp"
#include "tests/catch.hpp"
#include "tests/support/program.hpp"
#include "tests/support/temp_folder.hpp"

using namespace kvatlas;
using namespace kvatlas::sweep;

namespace {

void write(const std::string& path, const std::string& text) { io::write_file(path, std::as_bytes(std::span(text))); }

const ImportedRow& row_of(const ImportReport& r, const std::string& metric) {
  for (const ImportedRow& row : r.rows)
    if (row.metric == metric) return row;
  FAIL("no row " << metric);
  return r.rows.front();
}

}  // namespace

TEST_CASE("kvpress: model, press, share removed and context come from config.yaml or the folder's name", "[unit]") {
  testing::TempFolder folder;
  const auto place = [&](const std::string& name) {
    std::filesystem::create_directories(folder.file(name));
    write(folder.file(name) + "/metrics.json", R"({"niah_single_1": {"string_match": 97.5}, "vt": {"string_match": 80}})");
    return folder.file(name) + "/metrics.json";
  };
  const ImportReport r = read_results("kvpress-results", place("ruler__4096__meta-llama--Meta-Llama-3.1-8B-Instruct__snapkv__0.50"));
  REQUIRE(r.rows.size() == 2);
  const ImportedRow& row = row_of(r, "niah_single_1.string_match");
  REQUIRE(row.value == 97.5);
  REQUIRE(row.model == "llama-3.1-8b");
  REQUIRE(row.recipe == "snapkv:budget=2048");
  REQUIRE(row.setup["budget_from"] == "data_dir x (1 - compression_ratio)");
  REQUIRE(r.unmatched.size() == 1);  // kvpress does not say which GPU
  REQUIRE(r.unmatched[0].field == "gpu");
  REQUIRE(r.unmatched[0].rows == 2);

  REQUIRE(row_of(read_results("kvpress-results", place("ruler__4096__Qwen--Qwen3-8B__no_press__0.00")), "vt.string_match").recipe == "full");
  const ImportReport share = read_results("kvpress-results", place("longbench__qasper__Qwen--Qwen3-8B__snapkv__0.50"));
  REQUIRE(!share.rows[0].recipe);
  REQUIRE(share.unmatched[1].why == "compression_ratio 0.50 is a share of each prompt, our budget is in tokens");
  const ImportReport unknown = read_results("kvpress-results", place("ruler__4096__acme--Acme-9B__quantum_press__0.50"));
  REQUIRE(unknown.unmatched.size() == 3);

  const std::string path = place("results");
  const auto with_config = [&](const std::string& text) {
    write(folder.file("results") + "/config.yaml", text);
    const ImportReport report = read_results("kvpress-results", path, {.model = {}, .gpu = "h100", .method = {}});
    return report.rows[0].recipe ? *report.rows[0].recipe : report.unmatched.at(0).why;
  };
  const std::string known = "model: Qwen/Qwen3-8B\ndata_dir: '8192'\n";
  REQUIRE(with_config(known + "press_name: snapkv\n") == "the file states no compression_ratio");
  REQUIRE(with_config(known + "press_name: snapkv\ncompression_ratio: null\n") == "the file states no compression_ratio");
  REQUIRE(with_config(known + "press_name: snapkv\ncompression_ratio: half\n") == "compression_ratio is half, must be a number from 0 to below 1");
  REQUIRE(with_config(known + "press_name: snapkv\ncompression_ratio: 1.5\n") == "compression_ratio is 1.5, must be a number from 0 to below 1");
  REQUIRE(with_config(known + "press_name: snapkv\ncompression_ratio: 0.0\n") == "full");
  REQUIRE(with_config(known + "press_name: no_press\n") == "full");
  write(folder.file("results") + "/config.yaml", "model: Qwen/Qwen3-8B\npress_name: 'knorm'\ncompression_ratio: 0.5\ndataset: ruler\ndata_dir: '8192'\nseed: 42\n");
  REQUIRE(row_of(read_results("kvpress-results", path), "vt.string_match").recipe == "knorm:budget=4096");
  std::filesystem::remove(folder.file("results") + "/config.yaml");
  REQUIRE_THROWS_WITH(read_results("kvpress-results", path), Catch::Contains("is no name that kvpress gives its results"));
}

TEST_CASE("lm-eval: tasks with their errors, the cache's dtype from the model's arguments", "[unit]") {
  testing::TempFolder folder;
  write(folder.file("r.json"), R"({"results": {"gsm8k": {"alias": "gsm8k", "exact_match,strict-match": 0.75, "exact_match_stderr,strict-match": 0.012}},
    "n-shot": {"gsm8k": 5}, "n-samples": {"gsm8k": {"original": 1319, "effective": 1319}},
    "config": {"model": "vllm", "model_args": "pretrained=meta-llama/Llama-3.1-8B-Instruct,kv_cache_dtype=fp8"}, "model_name": "meta-llama/Llama-3.1-8B-Instruct"})");
  const ImportReport r = read_results("lm-eval", folder.file("r.json"), {.model = {}, .gpu = "h100", .method = {}});
  REQUIRE(r.rows.size() == 1);
  REQUIRE(r.unmatched.empty());
  REQUIRE(r.rows[0].metric == "gsm8k.exact_match");
  REQUIRE(r.rows[0].recipe == "fp8_kv");
  REQUIRE(r.rows[0].gpu == "h100-sxm");
  REQUIRE(r.rows[0].setup["stderr"] == 0.012);
  REQUIRE(r.rows[0].setup["filter"] == "strict-match");
  REQUIRE(r.rows[0].setup["samples"] == 1319);
}

TEST_CASE("vllm bench: rates, latencies and mean lengths; what it does not say is stated or listed", "[unit]") {
  testing::TempFolder folder;
  write(folder.file("b.json"), R"({"date": "20260101-000000", "backend": "vllm", "model_id": "Qwen/Qwen2.5-7B-Instruct", "num_prompts": 100, "request_rate": "inf", "max_concurrency": 32,
    "duration": 50.0, "completed": 100, "total_input_tokens": 102400, "total_output_tokens": 12800, "request_throughput": 2.0, "output_throughput": 256.0,
    "request_goodput": null, "mean_ttft_ms": 120.5, "p99_tpot_ms": 21.25, "ttfts": [0.1]})");
  const ImportReport r = read_results("vllm-bench", folder.file("b.json"));
  REQUIRE(r.rows.size() == 4);
  REQUIRE(row_of(r, "requests_per_s").value == 2.0);
  REQUIRE(row_of(r, "ttft_ms.mean").value == 120.5);
  REQUIRE(row_of(r, "tpot_ms.p99").value == 21.25);
  REQUIRE(r.rows[0].model == "qwen2.5-7b");
  REQUIRE(r.rows[0].setup["mean_prompt_tokens"] == 1024);
  REQUIRE(r.unmatched.size() == 2);
  REQUIRE(r.unmatched[1].why == "the file does not say how the cache was stored; state it");
  const ImportReport stated = read_results("vllm-bench", folder.file("b.json"), {.model = {}, .gpu = "l40s", .method = "vllm:fp8"});
  REQUIRE(stated.unmatched.empty());
  REQUIRE(stated.rows[0].recipe == "fp8_kv");
}

TEST_CASE("llama-bench: JSON, JSON lines and CSV are the same rows", "[unit]") {
  testing::TempFolder folder;
  const std::string row = R"({"model_filename": "m/Qwen3-8B-Q4_K_M.gguf", "model_type": "qwen3 8B Q4_K - Medium", "gpu_info": "NVIDIA GeForce RTX 3090", "type_k": "q8_0", "type_v": "f16", "n_prompt": 512, "n_gen": 0, "avg_ts": 3000.5})";
  write(folder.file("a.json"), "[" + row + "]");
  write(folder.file("a.jsonl"), row + "\n" + row + "\n");
  write(folder.file("a.csv"), "model_filename,model_type,gpu_info,type_k,type_v,n_prompt,n_gen,avg_ts\n\"m/Qwen3-8B-Q4_K_M.gguf\",\"qwen3 8B Q4_K - Medium\",\"NVIDIA GeForce RTX 3090\",\"q8_0\",\"f16\",\"512\",\"0\",\"3000.5\"\n");
  for (const char* name : {"a.json", "a.jsonl", "a.csv"}) {
    CAPTURE(name);
    const ImportReport r = read_results("llama-bench", folder.file(name));
    REQUIRE(r.rows[0].metric == "prompt_tokens_per_s");
    REQUIRE(r.rows[0].value == 3000.5);
    REQUIRE(r.rows[0].model == "qwen3-8b");
    REQUIRE(r.rows[0].gpu == "rtx-3090");
    REQUIRE(r.rows[0].recipe == "k=llamacpp_kv;v=full");
    REQUIRE(r.unmatched.empty());
  }
}

TEST_CASE("llama-bench: only a format of weights is cut from a file's name", "[unit]") {
  testing::TempFolder folder;
  const auto model_of = [&](const std::string& stem) {
    write(folder.file("n.json"), cat(R"([{"model_filename": "m/)", stem, R"(.gguf", "gpu_info": "RTX 4090", "type_k": "f16", "type_v": "f16", "n_gen": 128, "avg_ts": 100.0}])"));
    const ImportReport r = read_results("llama-bench", folder.file("n.json"));
    const auto& setup = r.rows.at(0).setup;
    return std::pair(r.unmatched.empty() ? *r.rows[0].model : r.unmatched[0].name, setup.contains("weights") ? setup["weights"].get<std::string>() : std::string());
  };
  using Names = std::pair<std::string, std::string>;
  REQUIRE(model_of("Acme-9B-Instruct") == Names{"Acme-9B-Instruct", ""});
  REQUIRE(model_of("Acme-9B-Base") == Names{"Acme-9B-Base", ""});
  REQUIRE(model_of("Acme-9B-it") == Names{"Acme-9B-it", ""});
  REQUIRE(model_of("Acme-9B-qat") == Names{"Acme-9B-qat", ""});
  REQUIRE(model_of("Meta-Llama-3.1-8B-Instruct") == Names{"llama-3.1-8b", ""});
  REQUIRE(model_of("Acme-9B-Instruct-IQ2_XS") == Names{"Acme-9B-Instruct", "IQ2_XS"});
  REQUIRE(model_of("Acme-9B-it.q4_k_m") == Names{"Acme-9B-it", "q4_k_m"});
  REQUIRE(model_of("Acme-9B-BF16") == Names{"Acme-9B", "BF16"});
  REQUIRE(model_of("Acme-9B-f16") == Names{"Acme-9B", "f16"});
  REQUIRE(model_of("Acme-9B-F32") == Names{"Acme-9B", "F32"});
}

TEST_CASE("aiconfigurator: one row a figure, systems and cache types by name", "[unit]") {
  testing::TempFolder folder;
  write(folder.file("a.csv"), "model,isl,osl,concurrency,ttft,tpot,seq/s,tokens/s,tokens/s/gpu,tokens/s/user,tp,kvcache,system,backend\n"
                              "Qwen/Qwen3-32B,4000,500,16,812.5,18.5,1.5,750,375,54,2,fp8,h200_sxm,trtllm\nQWEN9_1B,4000,500,16,812.5,18.5,1.5,750,375,54,2,int3,h200,trtllm\n");
  const ImportReport r = read_results("aiconfigurator", folder.file("a.csv"));
  REQUIRE(r.rows.size() == 12);
  REQUIRE(row_of(r, "tokens_per_s_per_gpu").value == 375);
  REQUIRE(r.rows[0].model == "qwen3-32b");
  REQUIRE(r.rows[0].recipe == "fp8_kv");
  REQUIRE(r.rows[0].setup["isl"] == "4000");
  REQUIRE(!r.rows.back().model);
  REQUIRE(!r.rows.back().recipe);
  for (const Unmatched& u : r.unmatched) REQUIRE(u.rows == 6);
}

TEST_CASE("imported rows replace those of the same file and tool, and say so", "[unit]") {
  testing::TempFolder folder;
  write(folder.file("b.json"), R"([{"model_filename": "x.gguf", "gpu_info": "RTX 4090", "type_k": "f16", "type_v": "f16", "n_gen": 128, "avg_ts": 100.0}])");
  const auto import = [&] { return testing::kvatlas_run({"import", "llama-bench", folder.file("b.json"), "--db", folder.file("a.sqlite"), "--json"}); };
  const auto first = import();
  REQUIRE(first.code == 0);
  REQUIRE(first.json()["rows"] == 1);
  REQUIRE(first.json()["unmatched"][0]["name"] == "x");
  REQUIRE(import().code == 0);
  Database db(folder.file("a.sqlite"), Database::Mode::read);
  REQUIRE(db.integer("SELECT count(*) FROM imported WHERE provenance = 'imported' AND model IS NULL AND recipe = 'full'") == 1);
}

TEST_CASE("files of one name in two folders are two files, one file under two names is one", "[unit]") {
  testing::TempFolder folder;
  const std::string store = folder.file("a.sqlite");
  const auto count = [&](const std::string& sql) { return Database(store, Database::Mode::read).integer(sql); };
  const std::filesystem::path before = std::filesystem::current_path();
  for (const char* run : {"one", "two"}) {
    std::filesystem::create_directories(folder.file(run));
    write(folder.file(run) + "/metrics.json", R"([{"model_filename": "x.gguf", "gpu_info": "RTX 4090", "type_k": "f16", "type_v": "f16", "n_gen": 128, "avg_ts": 100.0}])");
    std::filesystem::current_path(folder.file(run));
    store_results(store, read_results("llama-bench", "metrics.json"));
    std::filesystem::current_path(before);
  }
  CHECK(count("SELECT count(*) FROM imported") == 2);
  store_results(store, read_results("llama-bench", folder.file("one") + "/../one/metrics.json"));
  CHECK(count("SELECT count(*) FROM imported") == 2);
  CHECK(count("SELECT count(DISTINCT file) FROM imported") == 2);
}

TEST_CASE("a field of the wrong type is named with its file and value", "[unit]") {
  testing::TempFolder folder;
  const auto sentence_of = [&](const char* kind, const std::string& text) {
    write(folder.file("w.json"), text);
    try {
      read_results(kind, folder.file("w.json"));
    } catch (const IoError& e) {
      return std::string(e.what()).substr(folder.file("").size());
    }
    return std::string("no IoError");
  };
  CHECK(sentence_of("vllm-bench", R"({"request_throughput": 2.0, "completed": "100"})") == R"(w.json: completed is "100", must be a number)");
  CHECK(sentence_of("llama-bench", R"([{"avg_ts": 1.0, "n_prompt": "512"}])") == R"(w.json: n_prompt is "512", must be a number)");
  CHECK(sentence_of("llama-bench", R"([{"avg_ts": 1.0, "n_gen": [1]}])") == "w.json: n_gen is [1], must be a number");
  CHECK(sentence_of("lm-eval", R"({"results": {"t": {"acc": 1}}, "n-samples": {"t": 5}})") == "w.json: n-samples of t is 5, must be an object with effective");
  CHECK(sentence_of("lm-eval", R"({"results": {"t": {"acc": 1}}, "n-shot": [5]})") == "w.json: n-shot is [5], must be an object of tasks");
  CHECK(sentence_of("vllm-bench", R"({"request_throughput": 2.0, "completed": null})") == "no IoError");
}

TEST_CASE("files that are not what they should be get one sentence", "[unit]") {
  testing::TempFolder folder;
  write(folder.file("x.json"), "{\"a\": 1}");
  write(folder.file("broken.json"), "{\"a\": ");
  REQUIRE_THROWS_WITH(read_results("lm-evil", folder.file("x.json")), Catch::Contains("did you mean \"lm-eval\"?"));
  REQUIRE_THROWS_WITH(read_results("lm-eval", folder.file("x.json")), Catch::Contains("results is missing"));
  REQUIRE_THROWS_WITH(read_results("lm-eval", folder.file("broken.json")), Catch::Contains("not a JSON document"));
  REQUIRE_THROWS_WITH(read_results("vllm-bench", folder.file("x.json")), Catch::Contains("request_throughput is missing"));
  REQUIRE_THROWS_WITH(read_results("llama-bench", folder.file("x.json")), Catch::Contains("avg_ts is missing"));
  REQUIRE_THROWS_WITH(read_results("aiconfigurator", folder.file("x.json")), Catch::Contains("column model is missing"));
  REQUIRE_THROWS_AS(read_results("lm-eval", folder.file("none.json")), IoError);
  REQUIRE_THROWS_WITH(read_results("lm-eval", folder.file("x.json"), {.model = "lama", .gpu = {}, .method = {}}), Catch::Contains("lama"));
}
