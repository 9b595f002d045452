#include "simulator/claims/judge.hpp"

#include <cmath>

#include "core/errors.hpp"
#include "models/registry.hpp"
#include "simulator/evaluator.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::sim;

namespace {

Evaluator evaluator(const char* recipe) {
  return Evaluator({.model = &models::find_model("llama-2-7b"), .gpu = find_gpu("a100"), .recipe = Recipe::parse(recipe)});
}

double figure(std::string_view spec) { return evaluate(make_setup(parse_spec(std::string("model=llama-2-7b gpu=a100 ") + std::string(spec))).ours); }

Claim claim(const char* published, const char* unit) {
  Claim c;
  c.method = "kivi", c.metric = "m", c.published = published, c.unit = unit, c.context = "4096";
  return c;
}

SetupRow row(std::string spec, std::string change = "", std::string note = "") {
  return {.line = 2, .method = "kivi", .metric = "m", .published = "2", .context = "4096", .batch = "", .change = std::move(change), .spec = std::move(spec), .note = std::move(note)};
}

}  // namespace

TEST_CASE("a verdict follows from the values alone", "[unit]") {
  CHECK(verdict_of(2.0, 2.29, false, {}) == Verdict::reproduced);
  CHECK(verdict_of(2.0, 1.71, false, {}) == Verdict::reproduced);
  CHECK(verdict_of(2.0, 2.31, false, {}) == Verdict::not_reproduced);
  CHECK(verdict_of(2.0, 1.69, false, {}) == Verdict::not_reproduced);
  CHECK(verdict_of(2.0, 2.0, true, {}) == Verdict::consistent);
  CHECK(verdict_of(2.0, 4.0, true, {}) == Verdict::not_reproduced);
  CHECK(verdict_of(2.0, 4.0, false, 2.1) == Verdict::reproduced_if);
  CHECK(verdict_of(2.0, 4.0, false, 3.0) == Verdict::not_reproduced);
  CHECK(verdict_of(2.0, 2.1, false, 4.0) == Verdict::reproduced);
  CHECK(verdict_of({}, 2.0, false, {}) == Verdict::undetermined);
  CHECK(verdict_of(2.0, {}, false, 2.0) == Verdict::undetermined);
}

TEST_CASE("the claimed figure is made of both sides in the claim's unit", "[unit]") {
  ClaimSetup s;
  s.ours.quantity = ClaimQuantity::step_s;
  CHECK(claimed_figure(s, 0.025, 0, "ms") == 25.0);
  CHECK(claimed_figure(s, 0.025, 0, "us") == 25000.0);
  REQUIRE_THROWS_WITH(claimed_figure(s, 0.025, 0, "x"), "compare=value of step_s is no figure in \"x\"");
  REQUIRE_THROWS_AS(claimed_figure(s, 0.025, 0, "token/s"), InvalidArgument);
  s.compare = Compare::base_over_ours;
  CHECK(claimed_figure(s, 2, 6, "x") == 3.0);
  s.compare = Compare::ours_over_base;
  CHECK(claimed_figure(s, 6, 2, "x") == 3.0);
  s.compare = Compare::saving;
  CHECK(claimed_figure(s, 1, 4, "%") == 75.0);
  REQUIRE_THROWS_AS(claimed_figure(s, 1, 4, "x"), InvalidArgument);
  s.compare = Compare::value;
  s.ours.quantity = ClaimQuantity::cache_bytes;
  CHECK(claimed_figure(s, 3e9, 0, "GB") == Approx(3.0));
  CHECK(claimed_figure(s, 2147483648.0, 0, "GiB") == 2.0);
}

TEST_CASE("bytes of a side are those of the ledger", "[unit]") {
  // Llama 2 7B: 32 layers x 32 heads x 128 channels x keys and values x 2 bytes = 524,288 bytes a token.
  CHECK(figure("quantity=cache_bytes prompt=4096") == 4096.0 * 524288);
  CHECK(figure("quantity=cache_bytes prompt=4000 output=96 batch=3") == 3 * 4096.0 * 524288);
  CHECK(figure("quantity=bits_per_value prompt=4096") == 16.0);
  CHECK(figure("quantity=bits_per_value recipe=int8_pth prompt=4096") == 8.25);
  CHECK(figure("quantity=bits_per_value recipe=int8_pth metadata=uncounted prompt=4096") == 8.0);
  CHECK(figure("quantity=bits_per_value recipe=int8_pth component=scales prompt=4096 batch=2") == 0.25);
  CHECK(figure("quantity=bits_per_token_head prompt=100") == 16.0 * 256);
  CHECK(figure("quantity=cache_tokens prompt=100 batch=2") == 100.0);
  CHECK(figure("quantity=cache_tokens recipe=freqkv prompt=32768") == 4096.0);
}

TEST_CASE("times, rates and memory of a side are the evaluator's", "[unit]") {
  const Evaluator full = evaluator("full"), quest = evaluator("quest");
  const Tokens prompt(4096), middle(4106), end(4116);
  CHECK(figure("quantity=step_s prompt=4096 output=20 batch=2") == full.step(prompt, middle, 2).step_s);
  CHECK(figure("quantity=prefill_s prompt=4096 batch=2") == full.prefill_s(prompt, 2));
  CHECK(figure("quantity=ttft_s prompt=4096") == Approx(full.prefill_s(prompt, 1) + full.step(prompt, 1).step_s).epsilon(1e-12));
  CHECK(figure("quantity=decode_tokens_per_s prompt=4096 output=20 batch=2") == Approx(2 / full.step(prompt, middle, 2).step_s).epsilon(1e-12));
  CHECK(figure("quantity=tokens_per_s prompt=4096 output=20 batch=2") ==
        Approx(40 / (2 * full.prefill_s(prompt, 1) + 20 * full.step(prompt, middle, 2).step_s)).epsilon(1e-12));
  CHECK(figure("quantity=max_batch prompt=4096 output=20") == static_cast<double>(full.memory(prompt, end, 1).max_batch));
  CHECK(figure("quantity=peak_bytes prompt=4096 output=20 batch=2") == full.step(prompt, end, 2).peak_bytes);
  CHECK(figure("quantity=step_read_bytes prompt=4096 batch=2") == full.step(prompt, 2).cache_read_bytes);
  CHECK(figure("quantity=decode_tokens_per_s prompt=4096 output=20 batch=max") ==
        figure("quantity=decode_tokens_per_s prompt=4096 output=20 batch=" + std::to_string(full.memory(prompt, end, 1).max_batch)));
  const auto longest = static_cast<std::int64_t>(figure("quantity=max_context batch=4"));
  CHECK(full.memory(Tokens(longest), Tokens(longest), 4).fits);
  CHECK_FALSE(full.memory(Tokens(longest + 1), Tokens(longest + 1), 4).fits);
  // A layer's attention: every part of the step that reads the cache, over the 32 layers.
  double parts = 0;
  for (const StepPart& p : quest.explain_step(prompt, 1).parts)
    for (const char* name : {"decode_attention", "span_merge", "page_score", "top_k"})
      if (p.part == name) parts += p.seconds;
  REQUIRE(parts > 0);
  CHECK(figure("quantity=layer_attention_s recipe=quest prompt=4096") == Approx(parts / 32).epsilon(1e-9));
  double prompt_attention = 0;
  for (const StepPart& p : full.explain_prefill(prompt, 1).parts)
    if (p.part == "prefill_attention") prompt_attention += p.seconds;
  CHECK(figure("quantity=prefill_attention_s prompt=4096") == Approx(prompt_attention).epsilon(1e-9));
  // A prefix that all share is processed once.
  CHECK(figure("quantity=tokens_per_s recipe=hydragen prompt=4096 shared=4096 output=20 batch=8") > 2 * figure("quantity=tokens_per_s prompt=4096 output=20 batch=8"));
}

TEST_CASE("one change that explains a figure is stored beside the figure as stated", "[unit]") {
  const Claim c = claim("2", "x");
  const std::string stated = "quantity=cache_bytes compare=base/ours recipe=int8_pth model=llama-2-7b prompt=4096";  // 16 / 8.25 bits = 1.94
  const Judgement plain = judge(c, std::vector{row(stated)});
  CHECK(plain.verdict == Verdict::consistent);
  CHECK(*plain.ours == Approx(16 / 8.25));
  CHECK(*plain.ratio() == Approx(8 / 8.25));
  CHECK_FALSE(plain.ours_if.has_value());

  const std::string four = "quantity=cache_bytes compare=base/ours recipe=int8_pth base.recipe=kivi:bits=2 model=llama-2-7b prompt=4096";
  const Judgement missed = judge(c, std::vector{row(four)});
  CHECK(missed.verdict == Verdict::not_reproduced);
  const Judgement explained = judge(c, std::vector{row(four), row("base.recipe=fp8_kv", "denominator", "appendix A"), row("base.recipe=full", "denominator", "section 4: \"16-bit cache\"")});
  CHECK(explained.verdict == Verdict::reproduced_if);
  CHECK(*explained.ours == *missed.ours);
  CHECK(*explained.ours_if == Approx(16 / 8.25));
  CHECK(explained.change == "denominator");
  CHECK(explained.change_source == "section 4: \"16-bit cache\"");
  CHECK(explained.why.find("appendix A") != std::string::npos);  // what was tried before stays visible
}

TEST_CASE("what cannot be computed says why", "[unit]") {
  const Claim c = claim("2", "x");
  CHECK(judge(c, {}).why == "no machine-readable setup");
  CHECK(judge(c, std::vector{row("quantity=none", "", "the lengths are not stated")}).why == "the lengths are not stated");
  Claim text = claim("about two", "x");
  SetupRow r = row("quantity=cache_bytes compare=base/ours recipe=kivi model=llama-2-7b prompt=4096");
  r.published = "about two";
  CHECK(judge(text, std::vector{r}).why == "the published figure \"about two\" is not a number");
  const Judgement refused = judge(c, std::vector{row("quantity=cache_bytes compare=base/ours recipe=kivi:group_size=48 model=llama-2-7b prompt=4096")});
  CHECK(refused.verdict == Verdict::undetermined);
  CHECK(refused.why.starts_with("cannot be computed: "));
}

TEST_CASE("every published figure is judged: with a value, or with the reason why there is none", "[unit]") {
  VerdictShares shares;
  for (const Judgement& j : judge_all()) {
    CAPTURE(j.claim->method, j.claim->metric, j.claim->published, j.why);
    shares.add(j.verdict);
    CHECK_FALSE(j.why.empty());
    CHECK((j.verdict == Verdict::undetermined) == !j.ours.has_value());
    CHECK(j.ours_if.has_value() == !j.change.empty());
    CHECK_FALSE(j.why.starts_with("cannot be computed"));
    if (j.ours) CHECK((std::isfinite(*j.ours) && *j.ours > 0));
  }
  CHECK(shares.total == static_cast<std::int64_t>(all_claims().size()));
  CHECK(shares.determined() > shares.total / 3);
  VerdictShares few;
  for (const Verdict v : {Verdict::reproduced, Verdict::consistent, Verdict::undetermined, Verdict::not_reproduced}) few.add(v);
  CHECK(to_text(few) == "reproduced as stated: 1 of 4 published figures (25.0 %), 33.3 % of the 3 that can be computed; the others: reproduced_if 0 (0.0 %), "
                        "consistent 1 (25.0 %), not_reproduced 1 (25.0 %), undetermined 1 (25.0 %)");
}
