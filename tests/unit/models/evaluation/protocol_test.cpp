// Protocols, tasks and captures on a tiny random model: what must hold whatever the model says.
#include <algorithm>
#include <filesystem>
#include <limits>
#include <set>

#include "core/errors.hpp"
#include "core/io/safetensors.hpp"
#include "core/parallel.hpp"
#include "models/evaluation/captured.hpp"
#include "models/evaluation/session.hpp"
#include "models/evaluation/task_protocol.hpp"
#include "models/evaluation/tasks.hpp"
#include "models/evaluation/text_protocol.hpp"
#include "reference/primitives/step.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::models;

namespace {

Transformer tiny(const char* name) {
  WeightFile weights = WeightFile::open(std::filesystem::path(KVATLAS_SOURCE_DIR "/tests/forward") / name / "model.safetensors");
  Architecture a = architecture_of(weights);
  return {std::move(a), WeightSet(std::move(weights))};
}

std::vector<TokenId> text(std::size_t n) {
  std::vector<TokenId> tokens;
  for (std::size_t i = 0; i < n; ++i) tokens.push_back(static_cast<TokenId>((i * i * 7 + i / 3) % 50));
  return tokens;
}

Candidate method(const char* recipe, const CacheShape& shape) { return candidate_of(Recipe::parse(recipe), shape, {}); }

/// Keeps nothing: once the prompt is over, every token sees itself alone.
class ForgetfulCache final : public KvCache {
 public:
  explicit ForgetfulCache(CacheShape shape) : shape_(std::move(shape)), inside_(Recipe::parse("full").bind(shape_).open()) {}
  void forward(int layer, const StepInput& step, View<float> out) override {
    if (inside_) return inside_->forward(layer, step, out);
    check_step(shape_, layer, step, out);
    const LayerClass& c = shape_.class_of(layer);
    for (int h = 0; h < c.q_heads; ++h)
      for (std::int64_t i = 0; i < step.positions.size(); ++i) std::ranges::copy(step.v.row(h / c.q_per_kv(), i), out.row(h, i).begin());
  }
  void end_prefill() override { inside_.reset(); }
  std::vector<NamedBuffer> buffers() const override { return {}; }
  void load(std::span<const NamedBuffer>) override {}
  Tokens kept(int, int) const override { return Tokens(0); }

 private:
  CacheShape shape_;
  std::unique_ptr<KvCache> inside_;
};

/// Its last layer reads NaN once the prompt is over; an earlier one would be refused by the cache of the next.
class BrokenCache final : public KvCache {
 public:
  BrokenCache(const CacheShape& shape, int last) : inside_(Recipe::parse("full").bind(shape).open()), last_(last) {}
  void forward(int layer, const StepInput& step, View<float> out) override {
    inside_->forward(layer, step, out);
    if (!over_ || layer != last_) return;
    for (std::int64_t h = 0; h < out.dim(0); ++h)
      for (std::int64_t i = 0; i < out.dim(1); ++i) std::ranges::fill(out.row(h, i), std::numeric_limits<float>::quiet_NaN());
  }
  void end_prefill() override { over_ = true; }
  std::vector<NamedBuffer> buffers() const override { return inside_->buffers(); }
  void load(std::span<const NamedBuffer>) override {}
  Tokens kept(int layer, int head) const override { return inside_->kept(layer, head); }

 private:
  std::unique_ptr<KvCache> inside_;
  int last_ = 0;
  bool over_ = false;
};

TaskOptions byte_tasks(std::vector<std::string> tasks) {
  std::string filler;
  for (int i = 0; i < 300; ++i) filler += "words of no meaning ";
  return {.tasks = std::move(tasks), .context = 200, .trials = 3, .seed = 4, .filler = filler,
          .encode = [](std::string_view s) {
            std::vector<TokenId> ids;
            for (const char c : s) ids.push_back(static_cast<unsigned char>(c) % 50);
            return ids;
          }};
}

std::filesystem::path fresh_folder(const char* name) {
  const std::filesystem::path folder = std::filesystem::temp_directory_path() / name;
  std::filesystem::remove_all(folder);
  return folder;
}

}  // namespace

TEST_CASE("protocol A: full is the baseline bit for bit, a cache that keeps nothing fails, coarser codes cost more", "[unit]") {
  const Transformer t = tiny("qwen3");
  const CacheShape shape = t.model().cache;
  const std::vector<Candidate> candidates{
      method("full", shape), method("kivi:bits=4,group_size=16,residual_window=16", shape), method("kivi:bits=2,group_size=16,residual_window=16", shape),
      {.label = "forgets", .open = [&] { return std::make_unique<ForgetfulCache>(shape); }}};
  const auto results = read_text(t, shape, candidates, text(400), {.context = 96, .scored = 32, .windows = 2});
  REQUIRE(results.size() == 5);
  std::vector<TextSummary> s;
  for (const TextResult& r : results) {
    REQUIRE_FALSE(r.failure);
    REQUIRE(r.scores.size() == 64);
    s.push_back(summarize(r.scores, {.block = 2, .window = 32}));
  }
  CHECK(s[1].kl_max == 0.0);
  CHECK(s[1].perplexity.value == s[0].perplexity.value);
  CHECK(results[1].stored == results[1].dense);
  CHECK(*std::ranges::max_element(results[1].attention_error) == 0.0);
  CHECK(s[2].kl_mean.value > 0.0);
  CHECK(s[3].kl_mean.value > 5 * s[2].kl_mean.value);
  CHECK(results[3].stored < results[2].stored);
  CHECK(s[4].kl_mean.value > s[3].kl_mean.value);
  CHECK(verdict_of(s[4]) == Verdict::fails);
  CHECK(results[4].stored.value == 0);
}

TEST_CASE("figures of a method do not depend on who else reads the text, nor on threads", "[unit]") {
  const Transformer t = tiny("qwen3");
  const CacheShape shape = t.model().cache;
  const TextOptions options{.context = 64, .scored = 16};
  const auto alone = read_text(t, shape, {method("snapkv:budget=24,observation_window=8", shape)}, text(200), options);
  const int before = threads();
  set_threads(1);
  const auto among = read_text(t, shape, {method("kivi:bits=2,group_size=16", shape), method("snapkv:budget=24,observation_window=8", shape)}, text(200), options);
  set_threads(before);
  for (std::size_t i = 0; i < alone[1].scores.size(); ++i) {
    CHECK(alone[1].scores[i].nll == among[2].scores[i].nll);
    CHECK(alone[1].scores[i].kl == among[2].scores[i].kl);
  }
}

TEST_CASE("a method that changes the prompt's own attention is followed from the layer where it differs", "[unit]") {
  const Transformer t = tiny("llama");
  const CacheShape shape = t.model().cache;
  const std::vector<TokenId> tokens = text(160);
  const Candidate forgetful{.label = "f", .open = [&] {
                              auto cache = std::make_unique<ForgetfulCache>(shape);
                              cache->end_prefill();  // even the prompt's tokens see themselves alone
                              return cache;
                            }};
  Lockstep run(t, shape, {forgetful});
  run.prefill(std::span(tokens).first(64));
  const Array states = run.step(std::span(tokens).subspan(64, 1));
  MethodAttention own(forgetful.open());
  const Segment prompt{.attention = &own, .tokens = 64, .first_position = 0}, next{.attention = &own, .tokens = 1, .first_position = 64};
  t.forward(std::span(tokens).first(64), {&prompt, 1});
  const Array want = t.forward(std::span(tokens).subspan(64, 1), {&next, 1});
  CHECK(std::equal(want.values().begin(), want.values().end(), states.values().begin() + t.hidden()));
}

TEST_CASE("protocol B scores every token behind the first chunk", "[unit]") {
  const Transformer t = tiny("qwen3");
  const CacheShape shape = t.model().cache;
  const auto results = read_text(t, shape, {method("full", shape), method("streaming_llm:sinks=2,recent_window=14", shape)}, text(200),
                                 {.protocol = Protocol::b, .context = 96, .scored = 32, .chunk = 48});
  CHECK(results[1].scores.size() == 80);
  CHECK(summarize(results[1].scores).kl_max == 0.0);
  CHECK(summarize(results[2].scores).kl_mean.value > 0.0);
  // One selection behind the first chunk is not compression of every chunk.
  const auto once = read_text(t, shape, {method("snapkv:budget=24,observation_window=8", shape), method("kivi:bits=2,group_size=16,residual_window=16", shape)}, text(200),
                              {.protocol = Protocol::b, .context = 96, .scored = 32, .chunk = 48});
  CHECK(once[1].failure == "compresses only once, behind the first chunk: protocol B needs a method that compresses every chunk, use protocol A");
  CHECK_FALSE(once[2].failure);
  CHECK_THROWS_WITH(read_text(t, shape, {}, text(100), {.context = 96, .scored = 32}),
                    "the text has 100 tokens, must have 129 for 1 windows of 96 and 32 scored");
}

TEST_CASE("a method whose logits are not finite is a failure of that method alone", "[unit]") {
  const Transformer t = tiny("qwen3");
  const CacheShape shape = t.model().cache;
  const Candidate broken{.label = "broken", .open = [&] { return std::make_unique<BrokenCache>(shape, t.layers() - 1); }};
  const std::vector<Candidate> candidates{broken, method("kivi:bits=4,group_size=16,residual_window=16", shape)};
  const auto results = read_text(t, shape, candidates, text(200), {.context = 64, .scored = 16, .windows = 2});
  CHECK(results[1].failure.value_or("none") == "logits of scored tokens 0 to 15 are not finite");
  CHECK_FALSE(results[2].failure);
  CHECK(results[2].scores.size() == 32);
  CHECK(summarize(results[2].scores).kl_mean.value > 0.0);
  // Windows of equal size store on average what one stores, whether or not the number of windows divides it.
  CHECK(read_text(t, shape, {}, text(200), {.context = 16, .scored = 1, .windows = 5})[0].stored == dense_bytes(shape, 16_tok));
  CHECK(dense_bytes(shape, 16_tok).value % 5 != 0);
  const auto asked = run_tasks(t, shape, candidates, byte_tasks({"passkey"}));
  REQUIRE(asked[1].failure);
  CAPTURE(*asked[1].failure);
  CHECK(asked[1].failure->find("are not finite behind ") != std::string::npos);
  CHECK_FALSE(asked[2].failure);
}

TEST_CASE("a method that refuses is a row with its sentence, windowed layers stay plain where a method refuses windows", "[unit]") {
  const Transformer t = tiny("gemma3_text");
  const CacheShape shape = t.model().cache;
  const Candidate snap = method("snapkv:budget=24,observation_window=8", shape);
  CHECK(snap.label == "windowed:full;*:snapkv:budget=24,observation_window=8");
  CHECK_THROWS_AS(method("kivi:group_size=24", shape), Unsupported);
  const Candidate broken{.label = "broken", .open = []() -> std::unique_ptr<KvCache> { throw Unsupported("needs a trained file"); }};
  const auto results = read_text(t, shape, {broken, snap}, text(200), {.context = 64, .scored = 16});
  CHECK(results[1].failure == "needs a trained file");
  CHECK_FALSE(results[2].failure);
}

TEST_CASE("a task's case holds its records, answers what it asks, and comes back from its seed", "[unit]") {
  const std::string prose = "It was a bright cold day in April, and the clocks were striking thirteen [or so]. ";
  std::string filler;
  for (int i = 0; i < 60; ++i) filler += prose;
  for (const std::string_view task : all_tasks()) {
    CAPTURE(std::string(task));
    std::set<std::string> answers;
    for (std::uint32_t trial = 0; trial < 20; ++trial) {
      const TaskCase c = make_case(task, 1, trial, filler, 1000);
      CAPTURE(c.context, c.question, c.answer);
      const auto total = c.context.size() + c.question.size();
      CHECK(total >= 980);
      CHECK(total <= 1010);
      CHECK(c.context.back() == ' ');
      CHECK(c.question.back() == ' ');
      CHECK(c.answer.find(' ') == std::string::npos);
      const std::size_t at = c.context.find(c.question + c.answer + "] ");
      if (task == "few_shot") {
        CHECK(at == std::string::npos);
        CHECK(c.question != c.second_question);
      } else {
        REQUIRE(at != std::string::npos);
        CHECK(static_cast<double>(at) < 0.75 * static_cast<double>(c.context.size()));
        if (c.second_question.empty())
          CHECK((task == "passkey" || task == "copy"));
        else
          CHECK(c.context.find(c.second_question + c.second_answer + "] ") != std::string::npos);
      }
      CHECK(make_case(task, 1, trial, filler, 1000).context == c.context);
      CHECK(make_case(task, 2, trial, filler, 1000).context != c.context);
      answers.insert(c.answer);
    }
    CHECK(answers.size() > 10);
  }
  CHECK(make_case("passkey", 1, 0, filler, 1000).question == "[pass key: ");
  CHECK(make_case("few_shot", 1, 0, filler, 1000).question.substr(4) == " > ");
  CHECK(make_case("passkey", 1, 0, "abc ", 60).context.find("abc abc ") != std::string::npos);
  // Letters of two and three bytes: none is cut, so the prose has whole ones only.
  std::string accents;
  for (int i = 0; i < 60; ++i) accents += "\u00e9\u20ac\u00e9\u20ac ";
  for (std::uint32_t trial = 0; trial < 20; ++trial) {
    std::string c = make_case("passkey", 1, trial, accents, 203).context;
    std::erase_if(c, [](char x) { return static_cast<unsigned char>(x) < 0x80; });
    for (std::size_t i = 0; i < c.size();) {
      const std::size_t whole = static_cast<unsigned char>(c[i]) == 0xC3 ? 2 : 3;
      REQUIRE(i + whole <= c.size());
      CHECK(c.substr(i, whole) == (whole == 2 ? "\u00e9" : "\u20ac"));
      i += whole;
    }
  }
  CHECK_THROWS_WITH(make_case("passkeys", 1, 0, filler, 1000), "\"passkeys\": unknown task; did you mean \"passkey\"?");
  CHECK_THROWS_AS(make_case("few_shot", 1, 0, filler, 60), InvalidArgument);
}

TEST_CASE("tasks ask the same cases of all methods and full agrees with the plain path", "[unit]") {
  const Transformer t = tiny("llama");
  const CacheShape shape = t.model().cache;
  const auto results = run_tasks(t, shape, {method("full", shape), method("streaming_llm:sinks=1,recent_window=15", shape)}, byte_tasks({"passkey", "multi_needle"}));
  REQUIRE(results.size() == 3);
  for (std::size_t k = 0; k < 2; ++k)
    for (std::size_t way = 0; way < 3; ++way) {
      if (k == 0 && way == 2) {  // the only record was just read with its answer: nothing is left to ask
        CHECK(results[0].tasks[k].exact[way].empty());
        CHECK(results[0].tasks[k].log_probability[way].empty());
        continue;
      }
      REQUIRE(results[0].tasks[k].context.size() == 3);  // the encoder makes a token of each byte
      CHECK(results[0].tasks[k].context[0] >= 190);
      CHECK(results[0].tasks[k].context[0] <= 205);
      CHECK(results[0].tasks[k].exact[way].size() == 3);
      CHECK(results[0].tasks[k].log_probability[way] == results[1].tasks[k].log_probability[way]);
      CHECK(results[0].tasks[k].log_probability[way] != results[2].tasks[k].log_probability[way]);
    }
}

TEST_CASE("captured rows score a method as exact where it is, and come back from their files", "[unit]") {
  const Transformer t = tiny("gemma3_text");
  const CacheShape shape = t.model().cache;
  const std::filesystem::path folder = fresh_folder("kvatlas_capture_test");
  const auto files = capture(t, shape, text(60), folder, {.layers = {0, 2}, .outputs = true, .mass_queries = 60, .metadata = {{"model", "tiny"}}});
  CHECK(files == std::vector<std::string>{"layer0.safetensors", "layer2.safetensors"});
  const io::SafeTensors file = io::read_safetensors((folder / files[0]).string());
  CHECK(file.metadata.at("rope") == "after");
  CHECK(file.metadata.at("window") == "7");
  CHECK(file.at("q").dims == std::vector<std::int64_t>{4, 60, 16});
  CHECK(file.at("k").dims == std::vector<std::int64_t>{1, 60, 16});
  const NamedTensor mass = io::to_floats(file.at("mass"), "mass");
  for (std::int64_t h = 0; h < 4; ++h) {  // each of 60 queries gives its keys a total of 1
    double total = 0;
    for (std::int64_t i = 0; i < 60; ++i) total += static_cast<double>(mass.values[static_cast<std::size_t>(h * 60 + i)]);
    CHECK(total == Approx(60).epsilon(1e-5));
  }

  const CapturedSet set = read_captures(folder, Dtype::bf16);
  CHECK(set.model == "tiny");
  REQUIRE(set.prompts.size() == 1);
  CHECK(set.prompts[0].tokens == 60);
  CHECK(set.prompts[0].shape.class_of(0).window == Tokens(7));
  CHECK(set.prompts[0].shape.class_of(2).window == Tokens(0));
  const CapturedScore full = score_captured(set, Recipe::parse("full"), {}, 8);
  CHECK(full.attention_error == std::vector<double>{0, 0});
  CHECK(full.stored == full.dense);
  CHECK(full.probes == 8);
  const CapturedScore four = score_captured(set, Recipe::parse("kivi:bits=4,group_size=16,residual_window=16"), {}, 8);
  const CapturedScore two = score_captured(set, Recipe::parse("kivi:bits=2,group_size=16,residual_window=16"), {}, 8);
  CHECK(four.attention_error[1] > 0);
  CHECK(two.attention_error[1] > 2 * four.attention_error[1]);
  CHECK(two.stored < four.stored);

  CHECK(two.layers == std::vector<int>{0, 2});
  CHECK(two.label == "windowed:full;*:kivi:group_size=16,residual_window=16");
  // What keeps windowed layers plain is named as it ran.
  const CapturedScore around = score_captured(set, Recipe::parse("snapkv:budget=16,observation_window=8"), {}, 8);
  CHECK(around.label == "windowed:full;*:" + Recipe::parse("snapkv:budget=16,observation_window=8").canonical());
  CHECK(around.attention_error[0] == 0);
  // Methods that rotate keys themselves would find them rotated.
  for (const char* recipe : {"kvquant", "rotatekv", "commvq", "freqkv", "xkv", "fireq", "key_rerotation", "finch", "streaming_llm", "double_sparse", "leverage", "compactor",
                             "expected_attention", "cap", "layers=0:full;*:kvquant"})
    CHECK_THROWS_AS(score_captured(set, Recipe::parse(recipe), {}, 8), Unsupported);
  CHECK_THROWS_WITH(score_captured(set, Recipe::parse("streaming_llm"), {}, 8),
                    "streaming_llm: it rotates keys by their slots (positions=true takes them as they come), captured rows are rotated already; give it --weights, or rows captured before RoPE");
  CHECK_NOTHROW(score_captured(set, Recipe::parse("streaming_llm:sinks=1,recent_window=15,positions=true"), {}, 8));
  const CapturedScore post = score_captured(set, Recipe::parse("windowed:full;*:kvquant"), {}, 8, true);  // asked for, they take rotated keys
  CHECK(post.attention_error[1] > 0);
  io::SafeTensors unsaid = file;
  unsaid.metadata.erase("rope");
  io::write_safetensors((folder / "layer0.safetensors").string(), unsaid);
  CHECK_THROWS_WITH(read_captures(folder, Dtype::bf16), cat((folder / "layer0.safetensors").string(), ": metadata rope is missing, must be after: whether keys are rotated cannot be seen"));

  // Files of different runs are not one capture.
  const std::string second = (folder / "layer2.safetensors").string();
  const io::SafeTensors whole = io::read_safetensors(second);
  io::write_safetensors((folder / "layer0.safetensors").string(), file);
  io::SafeTensors other = whole;
  other.metadata["model"] = "huge";
  io::write_safetensors(second, other);
  CHECK_THROWS_WITH(read_captures(folder, Dtype::bf16), cat(second, ": metadata model is \"huge\", must be \"tiny\" as in the folder's other files"));
  other = whole;
  other.metadata["text_hash"] = "00ff";
  io::write_safetensors(second, other);
  CHECK_THROWS_WITH(read_captures(folder, Dtype::bf16), cat(second, ": metadata text_hash is \"00ff\", must be \"\" as in the prompt's other layers"));
  other.metadata["prompt"] = "second";
  io::write_safetensors(second, other);
  const CapturedSet apart = read_captures(folder, Dtype::bf16);
  CHECK(apart.prompts.size() == 2);
  CHECK(apart.text_hash == "");
  CHECK(apart.rows_hash.size() == set.rows_hash.size());
  CHECK(apart.rows_hash != set.rows_hash);  // a prompt more than before
  CHECK(read_captures(folder, Dtype::f32).rows_hash == apart.rows_hash);
  CHECK_THROWS_WITH(capture(t, shape, text(60), folder, {.layers = {0}}),
                    cat(folder.string(), " holds layer2.safetensors, which this run does not write, must be empty or hold no layers of another run"));
  CHECK_NOTHROW(capture(t, shape, text(60), folder, {.layers = {0, 2}}));  // the same layers again

  const auto again = fresh_folder("kvatlas_capture_before");
  capture(t, shape, text(20), again, {.before_rope = true});
  CHECK_THROWS_WITH(read_captures(again, Dtype::bf16), cat((again / "layer0.safetensors").string(), ": metadata rope is before, must be after: without the model (--model) its rotation is not known"));
  // With the model's rotation they are read, and methods that code keys before RoPE run on them.
  const CapturedSet before = read_captures(again, Dtype::bf16, &shape);
  CHECK(before.before_rope);
  CHECK(before.prompts[0].shape.class_of(1).rope == shape.class_of(1).rope);
  CHECK(score_captured(before, Recipe::parse("full"), {}, 4).attention_error == std::vector<double>{0, 0, 0});
  CHECK(score_captured(before, Recipe::parse("windowed:full;*:kvquant"), {}, 4).attention_error[2] > 0);
  CacheShape fewer = shape;
  for (LayerClass& c : fewer.classes) std::erase(c.layers, 0);
  CHECK_THROWS_WITH(read_captures(again, Dtype::bf16, &fewer), cat((again / "layer0.safetensors").string(), ": layer is 0, and the model caches no rows there"));
  CHECK_THROWS_AS(read_captures(fresh_folder("kvatlas_capture_none"), Dtype::bf16), IoError);
  CHECK_THROWS_WITH(capture(t, shape, text(20), again, {.layers = {3}}), "layer is 3, must be below 3");
  std::filesystem::remove_all(folder);
  std::filesystem::remove_all(again);
}
