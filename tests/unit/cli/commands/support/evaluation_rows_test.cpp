// What the rows of `evaluate` claim of rankings and retained shares, from rows made by hand.
#include "cli/commands/support/evaluation_rows.hpp"

#include "core/io/file.hpp"
#include "tests/catch.hpp"
#include "tests/support/temp_folder.hpp"

using namespace kvatlas;
using namespace kvatlas::cli;

namespace {

/// Rows of methods m0, m1, ... with these mean divergences; `bits` joins them in groups.
Json rows_of(const std::vector<double>& kl, const std::vector<int>& bits = {}) {
  Json rows = Json::array();
  for (std::size_t i = 0; i < kl.size(); ++i) {
    Json params = Json::object();
    if (!bits.empty()) params["bits"] = bits[i];
    rows.push_back({{"method", cat("m", i)}, {"params", params}, {"quality_model", "q"}, {"context", 1024}, {"protocol", "a"}, {"kl_mean", kl[i]}});
  }
  return rows;
}

Json transfer(Json here, const Json& there) {
  const testing::TempFolder folder;
  const std::string text = there.dump();
  io::write_file(folder.file("there.json"), std::as_bytes(std::span(text)));
  fill_transfer(here, folder.file("there.json"), {});
  return here[0]["transfer"];
}

}  // namespace

TEST_CASE("a ranking transfers only where its whole interval lies above 0.6, and not at all where tau itself is below", "[unit]") {
  const std::vector<double> up{1, 2, 3, 4, 5, 6, 7, 8}, down{8, 7, 6, 5, 4, 3, 2, 1}, mixed{2, 1, 4, 3, 6, 5, 8, 7};
  CHECK(transfer(rows_of(up), rows_of(up))["verdict"] == "transfers");
  CHECK(transfer(rows_of(up), rows_of(down))["verdict"] == "does not transfer");
  const Json half = transfer(rows_of(up), rows_of(mixed));  // 24 of 28 pairs agree: 20 / 28 = 0.71, which few methods do not prove
  CHECK(half["kendall_tau"].get<double>() == Approx(20.0 / 28.0));
  CHECK(half["verdict"] == "undecided");
  CHECK(half["stratified"].is_null());
  const Json less = transfer(rows_of(up), rows_of({3, 2, 1, 6, 5, 4, 8, 7}));  // 21 of 28 pairs agree: 14 / 28, whatever the interval allows
  CHECK(less["kendall_tau"].get<double>() == Approx(0.5));
  CHECK(less["ci95"][1].get<double>() > 0.6);
  CHECK(less["verdict"] == "does not transfer");
  CHECK(transfer(rows_of({1, 2, 3, 4, 5}), rows_of({1, 2, 3, 4, 5}))["verdict"] == "unknown: fewer than 6 methods in common");
}

TEST_CASE("methods of unlike size are not compared where enough share theirs", "[unit]") {
  // Two bits lose to four on both models; among methods of equal bits the rankings are opposite.
  const Json t = transfer(rows_of({11, 12, 13, 1, 2, 3}, {2, 2, 2, 4, 4, 4}), rows_of({13, 12, 11, 3, 2, 1}, {2, 2, 2, 4, 4, 4}));
  CHECK(t["stratified"] == "bits");
  CHECK(t["kendall_tau"] == -1.0);
}

TEST_CASE("errors on captured rows are ranked against divergences of a text, whatever its context", "[unit]") {
  Json captured = rows_of({1, 2, 3, 4, 5, 6, 7, 8}), read = captured;
  for (Json& r : captured) {
    r["attention_rel_error"] = r["kl_mean"];
    r["kl_mean"] = nullptr;
    r["grade"] = "C";
    r["context"] = 64;
  }
  for (Json& r : read) r["grade"] = "M";
  const Json t = transfer(captured, read);
  CHECK(t["metric"] == "attention_rel_error");
  CHECK(t["other_metric"] == "kl_mean");
  CHECK(t["verdict"] == "transfers");
}

TEST_CASE("scored tokens behind the prompt count where a run leaves the trained context", "[unit]") {
  EvaluationRun run{.quality_model = "q", .text_hash = "", .protocol = "a", .grade = "M", .context = 1024, .trained_context = 1500_tok, .scored = 476, .windows = 1};
  CHECK_FALSE(beyond_training(run));
  run.scored = 477;
  CHECK(beyond_training(run) == "context 1024 with 477 scored tokens is beyond the 1500 tokens that the model was trained on");
  run.protocol = "";  // captured: the prompt's tokens hold its probes
  CHECK_FALSE(beyond_training(run));
  run.context = 1501;
  CHECK(beyond_training(run) == "context 1501 is beyond the 1500 tokens that the model was trained on");
}

TEST_CASE("a perplexity retains something only where 256 tokens a window were scored and it has an interval", "[unit]") {
  Json row{{"method", "kivi"}, {"failure", nullptr}, {"quality_model", "q"}, {"context", 1024}, {"n", 640}, {"grade", "M"}, {"perplexity", 5.0},
           {"perplexity_full", 4.0}, {"kl_mean", 0.1}, {"top1_agreement", 0.9}, {"attention_rel_error", nullptr}, {"tasks", nullptr}};
  row["ci95"] = {{"perplexity", {4.8, 5.2}}, {"kl_mean", nullptr}, {"top1_agreement", nullptr}};
  const auto retained = [&](std::int64_t n, std::int64_t windows, bool interval) {
    Json r = row;
    r["n"] = n;
    if (!interval) r["ci95"]["perplexity"] = nullptr;
    EvaluationRun run;
    run.protocol = "a";
    run.windows = windows;
    return quality_rows(Json::array({r}), run, "m", "s").at(0).retained;
  };
  CHECK(retained(640, 1, true) == 0.8);
  CHECK(retained(640, 2, true) == 0.8);
  CHECK_FALSE(retained(640, 3, true));
  CHECK_FALSE(retained(255, 1, true));
  CHECK_FALSE(retained(640, 1, false));
}

TEST_CASE("nothing is retained of a task that the model itself hardly solves", "[unit]") {
  const auto row = [](const char* method, double found, double least) {
    Json r{{"method", method}, {"failure", nullptr}, {"quality_model", "q"}, {"context", 1024}, {"protocol", "a"}, {"n", 640}, {"grade", "M"}, {"ci95", nullptr},
           {"perplexity", nullptr}, {"attention_rel_error", nullptr}};
    r["tasks"]["passkey"] = {{"n", 20}, {"before", found}, {"after", found}, {"second", nullptr}};
    r["tasks"]["passkey"]["ci95"] = {{"before", {least, 1.0}}, {"after", {least, 1.0}}, {"second", nullptr}};
    return r;
  };
  const auto hardly = quality_rows(Json::array({row("full", 0.05, 0.01), row("kivi", 0.05, 0.01)}), EvaluationRun{}, "m", "s");
  REQUIRE(hardly.size() == 4);  // no figure of a question that was not asked
  CHECK(hardly[2].metric == "passkey:before");
  CHECK_FALSE(hardly[2].retained);
  const auto well = quality_rows(Json::array({row("full", 0.8, 0.58), row("kivi", 0.4, 0.2)}), EvaluationRun{}, "m", "s");
  CHECK(well[2].retained == 0.5);
}
